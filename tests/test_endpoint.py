"""Servers and teachers as they are: names of settings, words of a refusal, ends of a reply, what stands around it.

Where a client is involved, it talks to tests/fault_server.py over real HTTP."""

import json
import re
import sys
import time
from dataclasses import replace
from html import escape
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT))
from measure.faults_teacher import FaultServer, world  # noqa: E402

from mcft.core import read_rows  # noqa: E402
from mcft.critique import (
    CritiqueConfig,
    ReplyFault,
    TeacherConfig,
    find_reply,
    read_reply,  # noqa: E402
    run_critique,
)
from mcft.endpoint import redact, server_words, settings_hint, token_counts  # noqa: E402
from mcft.format import target_text  # noqa: E402
from mcft.generate import BackendConfig, Sampling, make_backend  # noqa: E402
from mcft.teacher import Limits, Reply, TeacherStop  # noqa: E402

KEY = 'mcft-marker-5f0c9a71e2d84b36'
GOOD = dict(critique='Line 1 says 47+38=75; it is 85.', reasoning='47+38=85\n85*3=255', answer='255')
TEXT = target_text(**GOOD)


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    "Three rollouts of one question."
    folder = tmp_path_factory.mktemp('world')
    assert world(folder, 1) == 3
    return folder


def stage(folder, url, **teacher):
    "Stage 02 with an API teacher that asks once."
    limits = Limits(concurrency=2, first_wait=0.02, max_tries=1)
    who = TeacherConfig('openai', model='teacher', base_url=url, prices=dict(teacher=[1, 1]), max_tokens=1000,
                        **teacher)
    return CritiqueConfig(problems=f'{folder}/problems.jsonl', rollouts=f'{folder}/rollouts.jsonl', teacher=who,
                          limits=limits, confirm=True)


def critiqued(cfg, folder, resume='same'): return run_critique(replace(cfg, out_dir=folder, resume=resume))


def student(url, **kw):
    "The evaluation's back end at the same server."
    return make_backend(
        BackendConfig('m', 'openai', base_url=url, max_retries=0, **dict(dict(key_env='MCFT_NO_KEY'), **kw))
    )


def answers(backend, **sampling):
    return [r for rows in backend.generate(['a'], Sampling(9, **sampling)) for r in rows]


AROUND = dict(  # what stands around a reply -> what was mended
    thought='<think>\nIs it <critique>? No.\n</think>\n\n{}',
    thinking='<thinking>Hm.</thinking>{}',
    thought_word='<thought>Hm.</thought>{}',
    no_opener='I look at line 1 first.\n</think>\n{}',
    brackets='[THINK]Hm.[/THINK]{}',
    kimi='◁think▷Hm.◁/think▷{}',
    channel='<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{}',
    reasoning_channel='<reasoning>\nFirst I solve it: 47+38=85.\n</reasoning>\n{}',
    draft='<think>' + TEXT.replace('255', '7') + '</think>{}',
    greeting='Sure! Here is my review in <critique>, <reasoning> and <ans> tags:\n\n{}',
    fence='```xml\n{}\n```',
    never_closed='<think>\nHm.\n{}',
    two_thoughts='<think>a</think><think>b</think>{}',
    seed='<seed:think>Hm.</seed:think>{}',
)


@pytest.mark.parametrize('name', AROUND)
def test_text_before_a_reply_is_cut_off(name):
    reply = AROUND[name].replace('{}', TEXT)
    assert read_reply(Reply(reply, 'stop')) == GOOD
    assert 'text before the reply' in find_reply(reply)[1]


BOXES = (
    r'$\boxed{255}$',
    r'\boxed{255}.',
    '$$\n\\boxed{255}\n$$',
    r'\[ \boxed{255} \]',
    r'\(\boxed{255}\)',
    r'**\boxed{255}**',
    r'`\boxed{255}`',
    '```latex\n\\boxed{255}\n```',
    r'The answer is $\boxed{255}$.',
    r'$\displaystyle \boxed{255}$',
    r'\boxed {255}',
    '255',
    '$255$',
    r'\textbf{\boxed{255}}',
    '\\begin{equation*}\n\\boxed{255}\n\\end{equation*}',
    '\\boxed{255}\n\n',
    r'**Answer:** \boxed{255}',
    r'$$\boxed{255}$$.',
    r'\boxed{255}。',
    'x = \\boxed{255}',
)


@pytest.mark.parametrize('ans', BOXES)
def test_a_box_counts_whatever_stands_around_it(ans):
    reply = TEXT.replace(r'\boxed{255}', ans)
    assert read_reply(Reply(reply, 'stop')) == GOOD and find_reply(reply)[1] in (('box',), ())


@pytest.mark.parametrize(
    'change',
    [
        ('<critique>', '<Critique>'),
        ('</ans>', '</ANS>'),
        ('<ans>', '&lt;ans&gt;'),
        ('<reasoning>', '**<reasoning>**'),
        ('</critique>', ''),
        ('</reasoning>', ''),
        ('</ans>', ''),
        ('<ans>', '< ans >'),
        ('it is 85', 'the <ans> is 85'),
    ],
)
def test_the_form_of_a_reply_is_mended(change):
    parts = read_reply(Reply(TEXT.replace(*change), 'stop'))
    assert parts | dict(critique=GOOD['critique']) == GOOD and len(find_reply(TEXT.replace(*change))[1]) == 1


@pytest.mark.parametrize(
    'reply, finish, reason',
    [
        ('', 'stop', 'empty reply'),
        ('<think>Hm.</think>', 'stop', 'empty reply'),
        ('<think>Hm.', 'length', 'reply cut off'),
        ('<think>' + TEXT, 'max_tokens', 'reply cut off'),
        (TEXT[:-6], 'length', 'reply cut off'),
        (TEXT.replace('<ans>', ''), 'stop', 'format fault'),
        (TEXT.replace(r'\boxed{255}', r'\boxed{255} or \boxed{3}'), 'stop', 'no boxed answer'),
        (TEXT.replace(r'\boxed{255}', ''), 'stop', 'no boxed answer'),
        ("<think>Hm.</think>I'm sorry, but I can't help with that.", 'stop', 'refusal'),
    ],
)
def test_what_cannot_be_mended_stays_a_fault(reply, finish, reason):
    with pytest.raises(ReplyFault) as e:
        read_reply(Reply(reply, finish))
    assert e.value.reason == reason


@pytest.mark.parametrize(
    'how, mended',
    [
        (dict(around='Hm.</think>{}', finish='eos'), 'text before the reply'),
        (dict(around='{}<|im_end|>', finish=None), ''),
        (dict(around='```\n{}\n```', finish='EOS_TOKEN', counts='none'), 'text before the reply'),
        (dict(counts='zeros', finish='end_turn'), ''),
    ],
)
def test_replies_of_all_kinds_are_kept_and_counted(asked, tmp_path, how, mended):
    with FaultServer(**how) as s:
        table = critiqued(stage(asked, s.url), tmp_path).set_index('step')['rows']
    rows = read_rows(tmp_path / 'critiques.jsonl', 'critiques')
    assert table['kept'] == 3 and {r['finish_reason'] for r in rows} == {'stop'}
    assert table.get(f'mended: {mended}', 0) == (3 if mended else 0)
    not_counted = how.get('counts') in ('zeros', 'none')
    assert all((r['n_tok'] is None, r['cost'] == 0, r['cost_unseen'] > 0) == (not_counted,) * 3 for r in rows)


@pytest.mark.parametrize(
    'names', [dict(max_tokens='max_completion_tokens', temperature=''), dict(max_tokens='', temperature=None)]
)
def test_settings_go_by_the_names_that_a_server_takes(asked, tmp_path, names):
    with FaultServer(unknown=('max_tokens', 'temperature')) as s:
        with pytest.raises(
            TeacherStop, match="'max_tokens' is not supported with this model.*set request_names to {'max_tokens': ''}"
        ):
            critiqued(stage(asked, s.url, temperature=1.0), tmp_path / 'a')
        assert (
            critiqued(
                stage(asked, s.url, temperature=1.0, request_names=names), tmp_path / 'a', 'fresh'
            ).step.tolist()[-1]
            == 'kept'
        )
    with FaultServer(unknown=('max_tokens', 'temperature', 'top_p', 'seed'), fixed='so 12') as s:
        with pytest.raises(RuntimeError, match="'max_tokens' is not supported with this model.*set request_names to"):
            answers(student(s.url))
        assert [
            r['text']
            for r in answers(student(s.url, request_names=dict(names, top_p='', seed='random_seed')), temperature=0.5)
        ] == ['so 12']


BODIES = (
    json.dumps([dict(error=dict(code=400, message='the model is overloaded'))]),
    json.dumps(dict(detail='the model is overloaded')),
    'the model is overloaded',
    '<html><body><h1>the model is overloaded</h1></body></html>',
    json.dumps(dict(error='Bad Request', message='the model is overloaded')),
    json.dumps(dict(detail=[dict(loc=['body', 'n'], msg='the model is overloaded')])),
    json.dumps(dict(errors=['the model is overloaded'])),
)


@pytest.mark.parametrize('body', BODIES)
def test_the_words_of_a_server_are_in_the_error_and_in_the_row(asked, tmp_path, monkeypatch, body):
    monkeypatch.setenv('MCFT_MARKER_KEY', KEY)
    said = body.replace('overloaded', f'overloaded for {KEY} and {KEY[:12]}... ' + 'x' * 400)
    with FaultServer(share=1, kinds=('500',), body=said) as s:
        with pytest.raises(TeacherStop, match=r'status 500: .*the model is overloaded for \*\*\* and \*\*\*') as e:
            critiqued(stage(asked, s.url, key_env='MCFT_MARKER_KEY'), tmp_path)
        with pytest.raises(RuntimeError, match=r'status 500: .*the model is overloaded for \*\*\* and \*\*\*') as other:
            answers(student(s.url, key_env='MCFT_MARKER_KEY'))
    rows = read_rows(tmp_path / 'critiques.jsonl', 'critiques')
    for text in (str(e.value), str(other.value), *(r['reason'] for r in rows)):
        assert 'the model is overloaded' in text and KEY[:12] not in text and len(text) < 600
    assert all(len(r['reason']) <= 300 + len('no reply: status 500: ') for r in rows)
    assert not [f for f in tmp_path.rglob('*') if f.is_file() and KEY[:12].encode() in f.read_bytes()]


@pytest.mark.parametrize(
    'how, row',
    [
        (dict(fixed='so 12', finish='eos'), ('so 12', 'stop')),
        (dict(fixed='so 12', finish='eos_token'), ('so 12', 'stop')),
        (dict(fixed='so 12</s>', finish=None), ('so 12', 'stop')),
        (dict(fixed='so 12', finish='MAX_TOKENS'), ('so 12', 'length')),
        (dict(fixed='so 12', finish='model_length'), ('so 12', 'length')),
    ],
)
def test_the_evaluation_knows_the_words_for_an_end(how, row):
    with FaultServer(**how) as s:
        (got,) = answers(student(s.url))
    assert (got['text'], got['finish_reason']) == row


@pytest.mark.parametrize(
    'how, said',
    [
        (dict(counts='zeros'), 'counts no tokens'),
        (dict(finish=None), 'ended a response with'),
        (dict(finish='content_filter'), 'withheld'),
    ],
)
def test_the_evaluation_refuses_what_makes_no_row(how, said):
    with FaultServer(fixed='so 12', **how) as s, pytest.raises((ValueError, RuntimeError), match=said):
        answers(student(s.url))


def test_words_of_a_server_are_read_in_any_shape():
    deep = dict(error={})
    for _ in range(50):
        deep = dict(error=deep)
    for body in (
        deep,
        [[]] * 9,
        dict(error=None),
        '',
        b'\xff',
        5,
        [5],
        '[' * 100_000,
        dict(message=dict(error=[None, 'x'])),
    ):
        assert len(server_words(body)) <= 300
    assert server_words(b'{"detail": "no"}') == 'no' and server_words('x\ud800') == 'x\ufffd'
    assert settings_hint('extra inputs are not permitted: top_p').startswith("; set request_names to {'top_p'")


@pytest.mark.parametrize(
    'secret',
    [
        'sk-' 'proj-0123456789abcdefghij',
        'gsk_' '0123456789abcdefghij',
        'AIzaSyA0123456789abcdefghij01234',
        'hf_' '0123456789abcdefghij',
    ],
)
def test_what_looks_like_a_key_is_taken_out(secret):
    for text in (
        f'Incorrect API key provided: {secret}.',
        f'api_key={secret}',
        f'Authorization: Bearer {secret}',
        f'{{"api-key": "{secret}"}}',
    ):
        assert secret not in redact(text)
    assert (
        redact('max_tokens: 16384, model deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B')
        == 'max_tokens: 16384, model deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B'
    )


@pytest.mark.parametrize(
    'text',
    ['<critique>' * 20_000, '< ' * 100_000, '<' + ' ' * 200_000, '`' * 200_000, '<critique>a<reasoning>' * 10_000,
     '<critique>a<reasoning>b<ans>' + '$ ' * 100_000 + '</ans>', '</think>' * 50_000, '</s>' + ' ' * 200_000 + 'x'],
)  # fmt: skip
def test_a_strange_reply_costs_no_time(text):
    start = time.perf_counter()
    with pytest.raises(ReplyFault):
        read_reply(Reply(text, 'stop'))
    assert time.perf_counter() - start < 10


KEY = 'Zx9+ab/CdEf=12&45'
ECHOES = ['{0}', 'bad key {1}', 'key {2} is unknown', '<p>{3}</p>', '{{"a": "{4}"', "{{'Authorization': 'Bearer {0}'}}",
          'Authorization: Token {0}', '{5}*** and ***{6}', '{0}{0}', 'https://u:{0}@host/v1', '["{0}", {{"{0}": 1}}]']


@pytest.mark.parametrize('echo', ECHOES)
def test_the_key_that_was_sent_is_taken_out_however_it_is_written(echo):
    written = KEY, KEY.lower(), quote(KEY, safe=''), escape(KEY), KEY.replace('/', '\\/'), KEY[:9], KEY[-8:]
    said = server_words(echo.format(*written), KEY)
    assert '***' in said and not re.search('zx9|cdef|12&|45', said.lower()), said


@pytest.mark.parametrize('secret', ['AKIA' 'ABCDEFGHIJKLMNOP', 'ghp' '_abcdefghijklmnopqrst'])
def test_what_looks_like_a_key_of_a_cloud_is_taken_out(secret):
    assert secret not in redact(f'denied for {secret} here')


@pytest.mark.parametrize('n_in, n_out, counted', [
    ('12', '7', (12, 7)), (12.0, 7.0, (12, 7)), (' 12 ', '7.0', (12, 7)), (True, 5, (None, 5)), (-1, 5, (None, 5)),
    (float('nan'), float('inf'), (None, None)), ('\u0661\u0662', 'x', (None, None)), (1e30, 3, (None, 3)),
    ([1], {}, (None, None)), (1.5, 2, (None, 2)), ('0', '0', (None, None)), ('', None, (None, None)),
])  # fmt: skip
def test_token_counts_of_any_type(n_in, n_out, counted):
    assert token_counts(SimpleNamespace(prompt_tokens=n_in, completion_tokens=n_out), 'text')[:2] == counted
