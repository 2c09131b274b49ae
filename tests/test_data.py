"""Stage 01 as a process: LIMO's shape from a file and from a hub, killed and resumed to the same bytes."""
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from mcft.core import read_rows, run_info
from mcft.data import DataConfig, Draws, draw_rollouts, full_revision, keep_different, loop_length, question_table
from mcft.data import questions_of, run_data
from mcft.generate import Sampling

COLUMNS = {'question': 'question', 'answer': 'answer'}
OUTPUTS = 'problems.jsonl', 'draws.jsonl', 'rollouts.jsonl', 'questions.csv'


def limo_rows(n: int) -> list:
    "Pocket questions in LIMO's columns; every third answer is a number, as it may be in a Parquet file."
    found = [r for r in read_rows('data/pocket/problems.jsonl.gz', 'problems') if r['split'] == 'train'][:n]
    return [dict(question=r['question'], solution='Left to the reader.', answer=r['answer']) for r in found]


def sample(source, out):
    "A small run of stage 01."
    cfg = DataConfig(problems=source, columns=COLUMNS, n_questions=0, temperature=1.0, max_new_tokens=60, max_rounds=3,
                     batch_size=12, out_dir=out, resume='same')
    return run_data(cfg, questions_of(cfg))


@pytest.fixture(scope='module')
def limo(tmp_path_factory):
    path = tmp_path_factory.mktemp('limo')/'limo.parquet'
    pd.DataFrame(limo_rows(10)).to_parquet(path)
    return path


@pytest.fixture(scope='module')
def whole(limo, tmp_path_factory):
    "An uninterrupted run."
    out = tmp_path_factory.mktemp('whole')/'run'
    sample(limo, out)
    return out


def contents(out) -> dict:
    return {f: (out/f).read_bytes() for f in OUTPUTS}


def test_three_different_rollouts_of_every_question_or_it_says_how_many(whole):
    rollouts, draws, table = read_rows(whole/'rollouts.jsonl', 'rollouts'), read_rows(whole/'draws.jsonl',
        'rollouts'), pd.read_csv(whole/'questions.csv')
    assert table.problem_id.tolist() == [f'limo-{i:04d}' for i in range(10)]
    for q in table.itertuples():
        texts = [r['text'] for r in rollouts if r['problem_id'] == q.problem_id]
        assert len(texts) == len({' '.join(t.split()) for t in texts}) == q.rollouts == 3 - q.missing
        assert q.missing == 0 or q.rounds == 3
    assert len({r['id'] for r in draws}) == len(draws) and {r['id'] for r in rollouts} <= {r['id'] for r in draws}
    assert {r['round'] for r in draws} == {0, 1, 2} and len([r for r in draws if r['round'] == 0]) == 30
    first = [r for r in draws if r['round'] == 0 and r['problem_id'] == 'limo-0003']
    assert table.pass_rate[3] == pytest.approx(sum(r['is_correct'] for r in first)/3, abs=1e-4)
    assert run_info(whole)['n_missing'] == table.missing.sum()


def test_flags_agree_with_the_rows(whole):
    for r in read_rows(whole/'rollouts.jsonl', 'rollouts'):
        assert (r['n_tok'] == 60) == (r['finish_reason']
                                      == 'length') and r['is_repetitive'] == (loop_length(r['text']) > 0)
        assert r['n_prompt_tok'] > 5 and len(r['prompt_hash']) == 12 and r['backend'] == 'transformers'


def test_a_complete_folder_is_only_read(limo, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.iterdir()}
    sample(limo, whole)
    assert before == {p: p.stat().st_mtime_ns for p in whole.iterdir()}


RUN = """
import sys
from tests.test_data import sample
sample(*sys.argv[1:])
"""


@pytest.mark.parametrize('share', [0.1, 0.7])
def test_killed_in_the_middle_it_ends_with_the_same_bytes(limo, whole, tmp_path, share):
    out, until = tmp_path/'run', share*len((whole/'draws.jsonl').read_bytes())
    env = dict(os.environ, PYTHONPATH=f'{ROOT}:{ROOT}/tests')
    with subprocess.Popen([sys.executable, '-c', RUN, str(limo), str(out)], cwd=ROOT, env=env,
                          stderr=subprocess.DEVNULL, start_new_session=True) as p:
        end = time.time() + 120
        while p.poll() is None and time.time() < end and not ((out/'draws.jsonl').exists()
                                                              and (out/'draws.jsonl').stat().st_size >= until):
            time.sleep(0.01)
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    half = (out/'draws.jsonl').read_bytes()
    assert half and not (out/'run.json').exists()
    (out/'draws.jsonl').write_bytes(half[:-7])  # and the last line torn
    sample(limo, out)
    assert contents(out) == contents(whole)


class Server:
    "A back end like an endpoint: one row at a time, in any order, and it dies of the request that is its turn to fail."
    tok = None

    def __init__(self, dies_after=None): self.asked, self.dies_after = [], dies_after

    def info(self): return dict(backend='openai', model='toy', revision='')

    def generate(self, prompts, sampling, batch_size, skip, desc, done):
        jobs = [(i, s) for i in range(len(prompts)) if not skip(i) for s in range(sampling.n) if not done(i, s)]
        random.Random(len(self.asked)).shuffle(jobs)
        for i, s in jobs:
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise ConnectionError('the endpoint is gone')
            self.asked.append((prompts[i].user, sampling.seed, s))
            text = f'\\boxed{{{random.Random(f"{prompts[i].user} {sampling.seed} {s}").randint(0, 3)}}}'
            yield [dict(index=i, sample=s, text=text, n_tok=3, n_prompt_tok=5, finish_reason='stop',
                        prompt_hash='0'*12)]


def test_rows_of_an_endpoint_that_dies_are_kept_and_the_rest_follows(tmp_path):
    problems = [dict(id=f'p{i}', question=f'{i}?', answer='1', family='f') for i in range(20)]
    draws = Draws(Sampling(8, 1.0, 1.0, 3, 0), max_rounds=5)
    want = keep_different(draw_rollouts(Server(), problems, draws, tmp_path/'a.jsonl'), 3)
    for after in (0, 7, 33, 61, 10**6):
        try: draw_rollouts(Server(after), problems, draws, tmp_path/'b.jsonl')
        except ConnectionError: assert len(read_rows(tmp_path/'b.jsonl', partial=True)) >= after
    rows = read_rows(tmp_path/'b.jsonl', 'rollouts')
    assert len({r['id'] for r in rows}) == len(rows)
    assert keep_different(draw_rollouts(Server(0), problems, draws, tmp_path/'b.jsonl'), 3) == want
    assert question_table(problems, rows, 3).missing.max() <= 2


class Hub(BaseHTTPRequestHandler):
    "As much of a hub as one data set of one file needs."
    commits = ['b60f446' + '0'*33, 'c21cc2d' + '1'*33]
    data, asked = b'', []

    def do_GET(self):
        path = unquote(self.path.split('?')[0])
        self.asked.append(path)
        info = dict(id='GAIR/LIMO', sha=self.commits[0], siblings=[dict(rfilename='limo.jsonl')], private=False,
                    tags=[], downloads=0, likes=0)
        entry = dict(type='file', oid='0'*40, size=len(self.data), path='limo.jsonl')
        if '/commits/' in path:
            self.say([dict(id=c, title='t', message='', authors=[], date='2025-02-01T00:00:00.000Z')
                      for c in self.commits])
        elif '/tree/' in path: self.say([entry])
        elif path.startswith('/api/datasets/GAIR/LIMO'): self.say(info)
        elif path.endswith(f'/resolve/{self.commits[0]}/limo.jsonl'): self.say(self.data)
        else: self.say(dict(error='Entry not found'), 404, {'X-Error-Code': 'EntryNotFound'})

    do_HEAD = do_GET

    def do_POST(self):
        self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.asked.append(self.path)
        self.say([dict(type='file', oid='0'*40, size=len(self.data), path='limo.jsonl')] if 'paths-info' in self.path
                 else {})

    def say(self, body, status=200, headers=()):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in dict(headers, **{'Content-Length': str(len(body)), 'ETag': '"0"',
                                     'X-Repo-Commit': self.commits[0]}).items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def log_message(self, *a): pass


ASK_HUB = """
from mcft.data import load_questions
rows = load_questions('GAIR/LIMO', 'train', {'question': 'question', 'answer': 'answer'}, 'b60f446')
print(len(rows), rows[0]['source'], rows[0]['id'], rows[2]['answer'])
try: load_questions('GAIR/LIMO', 'train', {'question': 'question', 'answer': 'answer'}, 'abcdef0')
except ValueError as e: print(e)
"""


def test_limo_from_a_hub_by_commit_over_http(tmp_path):
    Hub.data = ''.join(json.dumps(r) + '\n' for r in limo_rows(5)).encode()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = dict(os.environ, HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HOME=str(tmp_path),
               HF_HUB_OFFLINE='0', HF_HUB_DISABLE_XET='1',
               HF_HUB_DISABLE_TELEMETRY='1', NO_PROXY='127.0.0.1')
    try:
        done = subprocess.run([sys.executable, '-c', ASK_HUB], cwd=ROOT, env=env, capture_output=True, text=True,
                              timeout=120)
    finally: server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:] + '\n'.join(Hub.asked)
    said = done.stdout.splitlines()
    assert said[0] == f'5 GAIR/LIMO@b60f44600000 limo-0000 {limo_rows(3)[2]["answer"]}'
    assert said[1].startswith('no commit of GAIR/LIMO begins with abcdef0')
    assert any(p.endswith(f'/resolve/{Hub.commits[0]}/limo.jsonl') for p in Hub.asked) and not any('/resolve/main' in p
                                                                                                   for p in Hub.asked)


def test_a_branch_is_no_revision():
    for name in ('main', '', 'v1', 'b60f44', 'refs/convert/parquet'):
        with pytest.raises(ValueError, match='because a branch moves'): full_revision('GAIR/LIMO', name)


@settings(max_examples=150, deadline=None)
@given(st.text('abc .,', max_size=60), st.lists(st.sampled_from('so we get x = 3 . wait is it'.split()), min_size=1,
                                                max_size=12), st.integers(3, 12))
def test_a_loop_at_the_end_is_found_and_nothing_else(before, period, times):
    text = before + ' ' + ' '.join(period*times) + ' cut'
    if len(period)*times >= 24: assert loop_length(text) >= len(period)*times
    assert loop_length(before + ' ' + ' '.join(f'step{i}' for i in range(200))) == 0
