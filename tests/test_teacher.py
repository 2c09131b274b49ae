"""Stage 02 over real HTTP: a breaking endpoint, kills, budgets, keys, `transformers serve`, the student as teacher."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT))
from measure import bench_teacher, faults_teacher  # noqa: E402
from measure.faults_teacher import ENV, FaultServer, answered, lines, world  # noqa: E402

from mcft.core import read_rows, run_notebook  # noqa: E402
from mcft.critique import (  # noqa: E402
    Asking,
    Checks,
    CritiqueConfig,
    TeacherPrompt,
    TeacherConfig,
    _formulas,
    critique_row,
    mentions,
    run_critique,
)
from mcft.format import solution_text, target_text  # noqa: E402
from mcft.teacher import Book, Limits, Lines, Reply, TeacherStop  # noqa: E402

KEY = 'mcft-marker-5f0c9a71e2d84b36'


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    "Twelve rollouts of four questions."
    folder = tmp_path_factory.mktemp('world')
    assert world(folder, 4) == 12
    return folder


def config(folder, url, price=1.0, confirm=True, repairs=0, **limits):
    "Stage 02 with an API teacher at `url`."
    who = TeacherConfig(
        'openai',
        model='teacher',
        base_url=url,
        prices=dict(teacher=[price, price]),
        max_tokens=1000,
    )
    return CritiqueConfig(
        f'{folder}/problems.jsonl', f'{folder}/rollouts.jsonl', who, TeacherPrompt(), repairs, confirm=confirm,
        limits=Limits(**dict(dict(concurrency=4, first_wait=0.02), **limits))
    )


def critiqued(cfg, folder, resume='same'): return run_critique(replace(cfg, out_dir=folder, resume=resume))


def wait_until_asked(server, alive, seconds=60):
    "Until the endpoint has seen a request; the asker must be alive."
    until = time.monotonic() + seconds
    while not server.counts()['seen']:
        assert alive() and time.monotonic() < until, 'nothing was asked'
        time.sleep(0.01)


def test_a_fifth_of_the_requests_broken_and_killed_in_between():
    rows = faults_teacher.measure(small=True)
    assert [(r['name'], r['lost'], r['duplicated'], r['hung']) for r in rows] == [
        ('teacher, 20% faults', 0, 0, 0),
        ('teacher, kill -9', 0, 0, 0),
        ('teacher, kill -9, endpoint honours the idempotency key', 0, 0, 0),
    ]
    assert all(r['tried'] == 60 for r in rows)


def test_bench_measures(tmp_path):
    few = bench_teacher.world_of(tmp_path / 'few', 8)
    (ratio,) = bench_teacher.wall(few, 24, 0.25, 8, 1)
    assert 1 <= ratio < 20  # the bound is for the full size
    assert bench_teacher.peak_mib(few, 'memory') > 50


@pytest.mark.parametrize(
    'kind, reason',
    [
        ('empty', 'empty reply'),
        ('cut', 'reply cut off'),
        ('tags', 'format fault'),
        ('answer', 'rewrite has a wrong answer'),
    ],
)
def test_a_reply_that_is_no_good_is_dropped_with_its_reason(asked, tmp_path, kind, reason):
    with FaultServer(share=1, kinds=(kind,)) as s:
        critiqued(config(asked, s.url, repairs=1), tmp_path)
        rows, counts = read_rows(tmp_path / 'critiques.jsonl', 'critiques'), s.counts()
    told = [r for r in rows if r['attempts']]
    assert {(r['status'], r['reason'], r['attempts'], tuple(r['faults'])) for r in told} == {
        ('dropped', reason, 2, (reason, reason))
    }
    assert sum(counts['seen'].values()) == 2 * len(told) and len(rows) == 12


@pytest.mark.parametrize(
    'kind, reason',
    [
        ('500', 'no reply: status 500: internal'),
        ('reset', 'no reply: connection lost'),
        ('malformed', 'no reply: malformed reply'),
        ('hang', 'no reply: timeout'),
    ],
)
def test_tries_are_bounded_and_counted_and_broken_ones_cost(asked, tmp_path, kind, reason):
    with FaultServer(share=1, kinds=(kind,), hang=60) as s:
        with pytest.raises(
            TeacherStop, match=f'none of 12 asks was answered by openai:teacher, the first: {reason[10:]}'
        ):
            critiqued(
                config(asked, s.url, max_tries=3, timeout=0.3 if kind == 'hang' else 10, max_failed=99), tmp_path
            )
        rows, seen = (
            [r for r in read_rows(tmp_path / 'critiques.jsonl', 'critiques') if r['attempts']],
            s.counts()['seen'],
        )
    assert {(r['reason'], r['tries']) for r in rows} == {(reason, 3)} and set(seen.values()) == {3}
    assert all((r['cost_unseen'] > 0.003) == (kind != '500') and r['cost'] == 0 for r in rows)
    assert not (tmp_path / 'run.json').exists()
    with Book(tmp_path / 'paid') as book:
        assert book.n_sent == 3 * len(rows) and book.spent == pytest.approx(sum(r['cost_unseen'] for r in rows))


def test_failed_asks_are_asked_again_by_the_next_run_and_only_those(asked, tmp_path):
    with FaultServer(share=0.4, kinds=('400',), says='flagged by our filter') as s:
        with pytest.warns(
            UserWarning, match='status 400: flagged by our filter .rollout .* run again to ask for these alone'
        ):
            table = critiqued(config(asked, s.url), tmp_path)
        failed = [r for r in read_rows(tmp_path / 'critiques.jsonl', 'critiques') if r['reason'].startswith('no reply')]
    assert 0 < len(failed) < 12 and not (tmp_path / 'run.json').exists()
    assert {r['reason'] for r in failed} == {'no reply: status 400: flagged by our filter'}
    assert table.set_index('step')['rows']['dropped: no reply: status 400'] == len(failed)
    with FaultServer() as s:
        assert critiqued(config(asked, s.url), tmp_path).step.tolist()[-1] == 'kept'
        assert list(s.counts()['seen'].values()) == [1] * len(failed)
    assert all(r['status'] == 'kept' for r in read_rows(tmp_path / 'critiques.jsonl', 'critiques') if r['attempts'])
    assert json.loads((tmp_path / 'run.json').read_text())['n_unanswered'] == 0


def test_a_complete_run_that_lacks_replies_is_opened_again_unless_it_may_lack_them(asked, tmp_path):
    with FaultServer(share=0.4, kinds=('400',)) as s:
        cfg = replace(config(asked, s.url), max_unanswered=11)
        critiqued(cfg, tmp_path)
        seen = s.counts()['seen']
        assert json.loads((tmp_path / 'run.json').read_text())['n_unanswered'] > 0
        critiqued(cfg, tmp_path)
        assert s.counts()['seen'] == seen  # complete: nothing is asked
        with pytest.raises(TeacherStop, match='none of .* asks was answered'):
            critiqued(config(asked, s.url), tmp_path)
        assert not (tmp_path / 'run.json').exists()


@pytest.mark.parametrize('word', ['false', 'no', 'abc', 'true', 1])
def test_a_word_does_not_pay(asked, tmp_path, word):
    with FaultServer() as s:
        with pytest.raises(ValueError, match='confirm is .*, expected True or False'):
            config(asked, s.url, confirm=word)
        params = dict(problems=f'{asked}/problems.jsonl', rollouts=f'{asked}/rollouts.jsonl', teacher_name='openai',
                      model='teacher', base_url=s.url, prices=dict(teacher=[1, 1]), confirm=word,
                      out_dir=str(tmp_path / 'run'))
        if word == 'false':
            with pytest.raises(Exception, match="confirm is 'false', expected True or False"):
                run_notebook('nbs/02_critique.ipynb', tmp_path / '02.ipynb', params, examples=False)
        assert not s.counts()['seen'] and not (tmp_path / 'run').exists()


def test_retry_after_is_honoured_by_all_requests(asked, tmp_path):
    with FaultServer(share=0.5, kinds=('429',), retry_after=0.7, seed=1) as s:
        t0 = time.monotonic()
        critiqued(config(asked, s.url), tmp_path)
        assert time.monotonic() - t0 > 0.7 and s.counts()['kinds']['429']
    with (
        FaultServer(share=1, kinds=('429',), retry_after=3600) as s,
        pytest.raises(TeacherStop, match='asks to wait 3600 s, more than max_wait'),
    ):
        critiqued(config(asked, s.url), tmp_path / 'long')
    assert not (tmp_path / 'long' / 'run.json').exists()


def test_a_dead_endpoint_stops_the_run_instead_of_dropping_rollouts(asked, tmp_path):
    with FaultServer() as s:
        url = s.url
    with pytest.raises(TeacherStop, match='3 asks in a row failed for good, the last by connection refused'):
        critiqued(config(asked, url, max_tries=2, max_failed=3, concurrency=1), tmp_path)
    assert not (tmp_path / 'run.json').exists() and not any(
        e.get('unseen') for e in lines(tmp_path / 'paid' / 'ledger.jsonl')
    )


def test_budgets_stop_cleanly_and_a_raised_one_goes_on(asked, tmp_path):
    with FaultServer(latency=0.05) as s:
        with pytest.raises(TeacherStop, match='request budget: 5 of 5 requests are sent; raise max_requests'):
            critiqued(config(asked, s.url, max_requests=5), tmp_path)
        assert (
            len(answered(tmp_path))
            == 5
            == sum(s.counts()['sent'].values())
            == len(read_rows(tmp_path / 'critiques.jsonl', 'critiques'))
        )
        spent = sum(r['cost'] for r in lines(tmp_path / 'paid' / 'replies.jsonl'))
        with pytest.raises(TeacherStop, match='money budget'):
            critiqued(config(asked, s.url, max_cost=spent + 0.003), tmp_path)
        more = sum(r['cost'] for r in lines(tmp_path / 'paid' / 'replies.jsonl'))
        assert spent < more <= spent + 0.003
        critiqued(config(asked, s.url, max_cost=1, max_requests=100), tmp_path)
        counts = s.counts()
    assert set(counts['billed'].values()) == {1} and len(counts['billed']) == 12
    assert json.loads((tmp_path / 'run.json').read_text())['n_sent'] == 12


def test_nothing_is_sent_before_the_price_is_confirmed(asked, tmp_path):
    with FaultServer() as s:
        with pytest.raises(
            TeacherStop, match='12 requests to openai:teacher will cost about .* nothing was sent. Set confirm: true'
        ):
            critiqued(config(asked, s.url, confirm=False), tmp_path)
        assert not s.counts()['seen'] and json.loads((tmp_path / 'estimate.json').read_text())['requests'] == 12
        critiqued(config(asked, s.url, price=0, confirm=False), tmp_path / 'free')
        assert len(s.counts()['seen']) == 12


def test_another_check_asks_nothing_again(asked, tmp_path):
    with FaultServer() as s:
        cfg = config(asked, s.url)
        critiqued(cfg, tmp_path)
        kept = critiqued(replace(cfg, checks=Checks(min_chars=80)), tmp_path, 'fresh').set_index('step')['rows']
        assert (
            kept['dropped: degenerate: length'] > 0
            and len(s.counts()['seen']) == 12
            and set(s.counts()['seen'].values()) == {1}
        )


def test_two_processes_may_not_ask_for_the_same(asked, tmp_path):
    with FaultServer(latency=0.5) as s:
        first = threading.Thread(target=critiqued, args=(config(asked, s.url), tmp_path))
        first.start()
        wait_until_asked(s, first.is_alive)
        with pytest.raises(TeacherStop, match='open in another process'):
            critiqued(config(asked, s.url), tmp_path)
        first.join()
        assert set(s.counts()['seen'].values()) == {1}


def test_an_interrupt_lets_what_is_in_flight_come_home(asked, tmp_path):
    code = 'import json, sys; from measure.faults_teacher import client; client(json.loads(sys.argv[1]), sys.argv[2])'
    with FaultServer(latency=0.8) as s:
        c = faults_teacher.config(asked, s.url, concurrency=3)
        p = subprocess.Popen(
            [sys.executable, '-c', code, json.dumps(c), str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, **ENV},
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until_asked(s, lambda: p.poll() is None)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=60)
        counts = s.counts()
    assert 'interrupted: what was in flight is written' in err
    assert 0 < len(answered(tmp_path)) == sum(counts['sent'].values()) == sum(counts['seen'].values()) < 12


def test_a_row_that_does_not_fit_on_the_disk_leaves_no_trace(tmp_path):
    file = Lines(tmp_path / 'a.jsonl')
    file.append(dict(n=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (50, hard)
    )  # the system takes the first 50 bytes of the file and refuses the rest
    try:
        with pytest.raises(OSError):
            file.append(dict(text='x' * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.path.read_text() == '{"n": 1}\n'
    at = file.append(dict(n=2))
    assert file.at(at) == dict(n=2) and lines(file.path) == [dict(n=1), dict(n=2)]
    file.close()


def holding(folder: Path, secret: str) -> list[Path]:
    "Files that hold a text."
    return [f for f in folder.rglob('*') if f.is_file() and secret.encode() in f.read_bytes()]


@pytest.mark.parametrize('right', [True, False])
def test_a_key_is_in_no_file_and_no_message(asked, tmp_path, monkeypatch, right):
    sent = KEY if right else KEY[::-1]
    for name, value in dict(MCFT_MARKER_KEY=sent, OPENAI_LOG='debug', PYTHONPATH=str(ROOT)).items():
        monkeypatch.setenv(name, value)
    with FaultServer(key=KEY, share=0.2, kinds=('429', '500', 'reset', 'answer')) as s:
        params = dict(problems=f'{asked}/problems.jsonl', rollouts=f'{asked}/rollouts.jsonl', teacher_name='openai',
                      model='teacher', base_url=s.url, key_env='MCFT_MARKER_KEY', prices=dict(teacher=[1, 1]),
                      confirm=True, max_tokens=1000, first_wait=0.02, repairs=1, out_dir=str(tmp_path / 'run'))
        said = ''
        try:
            run_notebook('nbs/02_critique.ipynb', tmp_path / 'run' / '02_critique.ipynb', params, examples=False)
        except Exception as e:
            said = repr(e) + str(e)
        assert sum(s.counts()['sent'].values()) == (0 if not right else len(answered(tmp_path / 'run')))
    assert (tmp_path / 'run' / 'run.json').exists() == right == (not said)
    assert right or '401 key refused' in said and 'bad key Bearer ***' in said
    assert sent not in said and not holding(tmp_path, sent)
    written = {f.name for f in tmp_path.rglob('*') if f.is_file()}
    assert {'02_critique.ipynb', 'ledger.jsonl', 'replies.jsonl', 'critiques.jsonl', 'estimate.json'} <= written
    assert holding(tmp_path, 'MCFT_MARKER_KEY')  # the name of the variable is there, so the search finds what is there


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    "`transformers serve` with the pocket model; its tags become plain tokens, since that server drops special ones."
    model = tmp_path_factory.mktemp('served') / 'base'
    shutil.copytree(ROOT / 'data' / 'pocket' / 'base', model)
    tok = json.loads((model / 'tokenizer.json').read_text())
    for t in tok['added_tokens']:
        t['special'] = t['special'] and '｜' in t['content']
    (model / 'tokenizer.json').write_text(json.dumps(tok))
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / 'transformers'),
        'serve',
        str(model),
        '--host',
        '127.0.0.1',
        '--port',
        str(port),
        '--device',
        'cpu',
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
        until = time.monotonic() + 180
        while time.monotonic() < until and p.poll() is None:
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=2).close()
            except OSError:
                time.sleep(0.3)
            else:
                break
        yield model, f'http://127.0.0.1:{port}/v1'
        p.kill()


def self_critique(folder, teacher, repairs=0):
    return CritiqueConfig(
        f'{folder}/problems.jsonl', f'{folder}/rollouts.jsonl', teacher, TeacherPrompt(prompt_style='student'), repairs
    )


def test_transformers_serve_is_a_teacher(served, asked, tmp_path):
    model, url = served
    who = TeacherConfig(
        'openai',
        model=str(model),
        base_url=url,
        prices={str(model): [0, 0]},
        temperature=0.0,
        max_tokens=200,
    )
    patient = replace(self_critique(asked, who), limits=Limits(concurrency=2, timeout=120))
    table = critiqued(patient, tmp_path / 'http').set_index('step')['rows']
    rows = read_rows(tmp_path / 'http' / 'critiques.jsonl', 'critiques')
    assert (
        len(rows) == 12
        and all(r['status'] == 'kept' or r['reason'] for r in rows)
        and not any('no reply' in r['reason'] for r in rows)
    )
    assert table['kept'] > 0 and all(r['n_tok'] for r in rows if r['attempts'])
    # the student in this process says the same: greedy, the same prompt
    student = TeacherConfig('student', model=str(model), max_tokens=200)
    critiqued(self_critique(asked, student), tmp_path / 'here')
    here = {r['rollout_id']: r for r in read_rows(tmp_path / 'here' / 'critiques.jsonl', 'critiques')}
    assert sum(here[r['rollout_id']]['critique'] == r['critique'] for r in rows) >= 10


WRONG = solution_text('(a)47+38=75\n(b)75*3=225', '225')


def test_what_shows_that_a_critique_is_about_its_rollout():
    assert mentions('Line 1 says 47 + 38=75; it is 85.', WRONG) == ['formula', 'number', 'step']
    assert mentions('Nice work, all of it is right!', WRONG) == []
    assert mentions('In step 9 the sum is off.', WRONG) == []  # there is no step 9
    assert mentions('You say we know that both are even, why?', 'First, we know that both are even.') == ['quote']
    assert mentions('你说两个数都是偶数所以和是偶数，为什么？', '因为两个数都是偶数所以和是偶数。') == ['quote']
    pieces = _formulas('so 47 + 38=75, x^2-1 > y; - 5 (a)+(b)= , no + \nmore a-')
    assert pieces == {'47+38=75', 'x^2-1>y', '(a)+(b)', 'no+more'}
    t0 = time.perf_counter()
    assert [mentions(t, WRONG) for t in ('a'*60_000, 'step ' + '9'*60_000, 'a+'*30_000)] == [[], [], []]
    assert time.perf_counter() - t0 < 1


def test_a_row_is_made_of_the_replies_in_the_book(tmp_path):
    how = Asking(settings=dict(model='toy'), repairs=1)
    problem = dict(id='train-0000', question='Start with 47. (a) Add 38. (b) Multiply by 3. What is the result?',
                   answer='255')
    rollout = dict(id='train-0000.0', problem_id='train-0000', text=WRONG, finish_reason='stop')

    def text(answer='255'):
        return target_text('Line 1 says 47+38=75; it is 85. It is wrong.', '47+38=85\n85*3=255', answer)

    def row(*replies, rollout=rollout):
        folder = tmp_path/str(len(list(tmp_path.iterdir())))
        with Book(folder) as book:
            ask = how.opening(rollout, problem)
            for reply in replies:
                book.keep(ask, reply)
                ask = how.follow(ask, reply)
            return critique_row(rollout, problem, how, book, 'toy')

    def told(*replies, **kw):
        made = row(*replies, **kw)
        return made and [made[k] for k in ('status', 'reason', 'attempts', 'answer_match')]
    made = row(Reply(text('225'), 'stop', 100, 20, cost=.5),
               Reply(text(), 'stop', 150, 20, tries=2, cost=.75, cost_unseen=.25))
    assert [made[k] for k in ('status', 'attempts', 'tries')] == ['kept', 2, 3]
    assert made['faults'] == ['rewrite has a wrong answer']
    assert [made[k] for k in ('n_prompt_tok', 'n_tok', 'cost', 'cost_unseen')] == [250, 40, 1.25, .25]
    no_tags, failed = Reply('no tags', 'stop'), Reply(error='status 500: oops', tries=8)
    assert [told(), told(no_tags)] == [None, None]  # not asked yet; the repair is still to come
    assert told(no_tags, Reply(text('3'), 'stop')) == ['dropped', 'rewrite has a wrong answer', 2, False]
    assert told(failed) == ['dropped', 'no reply: status 500: oops', 1, False]
    assert told(no_tags, failed) == ['dropped', 'no reply: status 500: oops', 2, False]
    assert told(rollout=dict(rollout, text='')) == ['dropped', 'empty rollout', 0, False]
    mended = row(Reply('<think>Hm.</think>' + text(), 'eos'))
    assert [mended[k] for k in ('status', 'finish_reason')] == ['kept', 'stop']
    assert mended['faults'] == ['mended: text before the reply']
