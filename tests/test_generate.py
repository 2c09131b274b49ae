"""A real OpenAI-compatible server that answers as the model in process does, and servers that fail."""

import json, re, subprocess, sys, threading, time, traceback
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcft.core import read_rows
from mcft.generate import BackendConfig, Prompt, Sampling, answer_row, check_prompt_count, draw_ids, load
from mcft.generate import make_backend, servable_copy, shared_heads

QUESTIONS = [
    'Start with 7. Add 5. What is the result?',
    'What is (17*6+45) mod 13?',
    'quick: gcd of 84 and 36 = ?',
    'Solve 3x+4=19.',
    'Take 12, (a) add 30, (b) take away 5, (c) multiply by 2, what do you get?',
]
GREEDY = Sampling(max_new_tokens=22)  # the longest of the completions is cut off, the others stop


def rows_of(backend, prompts, *args, **kw) -> list[dict]:
    "All rows, in the order of the prompts."
    return sorted(
        (r for batch in backend.generate(prompts, *args, **kw) for r in batch),
        key=lambda r: (r['index'], r['sample']),
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    "A copy of the pocket base that a server hands out whole, and one whose chat template writes two BOS tokens."
    d = tmp_path_factory.mktemp('served')
    servable_copy('data/pocket/base', d / 'base')
    template = servable_copy('data/pocket/base', d / 'two_bos') / 'chat_template.jinja'
    template.write_text('{{ bos_token }}' + template.read_text())
    return d


@pytest.fixture(scope='module')
def url(folder):
    "`transformers serve` on the CPU; it loads the model that a request names."
    cmd = [
        str(Path(sys.executable).with_name('transformers')),
        'serve',
        '--host',
        '127.0.0.1',
        '--port',
        '0',
        '--device',
        'cpu',
    ]
    server = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)
    said = []
    try:
        for line in server.stdout:
            said.append(line)
            if found := re.search(r'http://127\.0\.0\.1:\d+', line):
                break
        else:
            pytest.fail('transformers serve did not start:\n' + ''.join(said))
        threading.Thread(target=lambda: [None for _ in server.stdout], daemon=True).start()  # keep its pipe empty
        yield found[0] + '/v1'
    finally:
        server.terminate()
        server.wait(30)


def served(url, folder, model='base', **kw) -> BackendConfig:
    how = dict(concurrency=2, key_env='MCFT_TEST_KEY', timeout=60)
    return BackendConfig(
        str(folder / model), 'openai', base_url=url, tokenizer=str(folder / 'base'), **dict(how, **kw)
    )


def test_a_server_answers_as_the_model_in_process(url, folder):
    here, there = make_backend(BackendConfig(str(folder / 'base'))), make_backend(served(url, folder))
    expected = rows_of(here, QUESTIONS, GREEDY)
    assert {r['finish_reason'] for r in expected} == {'stop', 'length'}
    assert rows_of(there, QUESTIONS, GREEDY) == expected
    assert rows_of(there, QUESTIONS, GREEDY, skip=lambda i: i < 3) == expected[3:]
    assert here.info()['model'] == there.info()['model'] and (here.info()['backend'], there.info()['backend']) == (
        'transformers',
        'openai',
    )


def test_a_server_samples_as_asked_and_again(url, folder):
    warm, there = Sampling(12, temperature=1.5, n=3, seed=4), make_backend(served(url, folder, concurrency=1))
    first = rows_of(there, QUESTIONS[:2], warm)
    assert [(r['index'], r['sample']) for r in first] == [(i, k) for i in range(2) for k in range(3)]
    assert len({r['text'] for r in first}) > 2
    assert rows_of(there, QUESTIONS[:2], warm) == first
    assert rows_of(there, QUESTIONS[:2], replace(warm, seed=5)) != first


def test_a_second_bos_on_the_server_is_seen(url, folder):
    with pytest.raises(ValueError, match='one more, as with a second BOS'):
        rows_of(make_backend(served(url, folder, 'two_bos')), QUESTIONS[:1], GREEDY)


def test_a_model_that_the_server_does_not_know(url, folder):
    there = make_backend(served(url, folder, 'none', max_retries=0))
    with pytest.raises(RuntimeError, match=re.escape(url) + ' answered with status'):
        rows_of(there, QUESTIONS[:1], GREEDY)


@contextmanager
def fake(respond):
    "Address of a server whose answers `respond(body, number of the request, headers)` gives: a status and an object."
    count, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            with lock:
                count.append(body)
                n = len(count)
            status, data = respond(body, n, self.headers)
            text = json.dumps(data).encode()
            self.send_response(status)
            for k, v in {
                'Content-Type': 'application/json',
                'Content-Length': str(len(text)),
                'retry-after-ms': '10',
            }.items():
                self.send_header(k, v)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}/v1', count
    finally:
        server.shutdown()
        server.server_close()


def answer(text='ok', n=2):
    return 200, dict(
        id='a',
        object='chat.completion',
        created=0,
        model='m',
        usage=dict(prompt_tokens=5, completion_tokens=n, total_tokens=5 + n),
        choices=[dict(index=0, finish_reason='stop', message=dict(role='assistant', content=text))],
    )


def far(url, **kw) -> BackendConfig:
    return BackendConfig(
        'm', 'openai', base_url=url, **dict(dict(key_env='MCFT_TEST_KEY', max_retries=2, concurrency=2), **kw)
    )


def test_a_busy_server_is_asked_again():
    with fake(lambda body, n, headers: (429, dict(error=dict(message='busy'))) if n <= 2 else answer()) as (
        url,
        count,
    ):
        assert [r['text'] for r in rows_of(make_backend(far(url)), ['a'])] == ['ok']
        assert len(count) == 3


def test_a_request_holds_the_turns_the_sampling_and_its_own_seed():
    with fake(lambda *_: answer()) as (url, count):
        rows = rows_of(
            make_backend(far(url, extra_body=dict(top_k=-1))), [Prompt('a', 'be brief')], Sampling(9, 0.6, 0.95, 4)
        )
    assert len({b['seed'] for b in count}) == 4 == len(rows)
    for b in count:
        assert b['messages'] == [dict(role='system', content='be brief'), dict(role='user', content='a')]
        assert [b[k] for k in ('model', 'max_tokens', 'temperature', 'top_p', 'top_k')] == ['m', 9, 0.6, 0.95, -1]
    assert {frozenset(r) for r in rows} == {
        frozenset('index sample text n_tok n_prompt_tok finish_reason prompt_hash'.split())
    }


def test_what_was_answered_before_a_failure_is_handed_out():
    with fake(
        lambda body, n, headers: (
            (400, dict(error=dict(message='no'))) if body['messages'][0]['content'] == 'q5' else answer()
        )
    ) as (url, count):
        got = []
        with pytest.raises(RuntimeError, match='status 400'):
            for batch in make_backend(far(url)).generate([f'q{i}' for i in range(50)]):
                got.extend(batch)
    assert {0, 1, 2, 3, 4} <= {r['index'] for r in got} and len(count) < 12


def test_a_withheld_answer_is_named_and_the_others_are_kept():
    def respond(body, n, headers):
        status, data = answer()
        if body['messages'][0]['content'] in ('q1', 'q3'):
            data['choices'][0] |= dict(finish_reason='content_filter')
        return status, data

    with fake(respond) as (url, count):
        got = []
        with pytest.raises(RuntimeError, match=r'to the prompts \[1, 3\].*leave these problems out'):
            for batch in make_backend(far(url)).generate([f'q{i}' for i in range(9)]):
                got.extend(batch)
    assert sorted(r['index'] for r in got) == [0, 2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(choices=[]), 'sent no response'),
        (dict(choices=None), 'sent no response'),
        (dict(usage=None), 'counts no tokens'),
    ],
)
def test_an_answer_that_makes_no_row_is_named(change, said):
    with fake(lambda *_: (200, answer()[1] | change)) as (url, count):
        with pytest.raises(ValueError, match=re.escape(f'{url}, prompt 0: ') + f'.*{said}'):
            rows_of(make_backend(far(url)), ['a'])


def test_an_unreachable_server_is_named_and_the_key_is_not(monkeypatch):
    monkeypatch.setenv('MCFT_TEST_KEY', 'sk-very-secret')
    there = make_backend(far('http://127.0.0.1:9/v1', max_retries=1))
    with pytest.raises(ConnectionError, match=r'no answer from http://127\.0\.0\.1:9/v1') as e:
        rows_of(there, ['a'])
    assert 'sk-very-secret' not in ''.join(traceback.format_exception(e.value)) + repr(there.cfg) + str(there.info())


def test_a_refused_key_is_not_quoted(monkeypatch):
    monkeypatch.setenv('MCFT_TEST_KEY', 'sk-very-secret')
    with fake(lambda body, n, headers: (401, dict(error=dict(message=f'wrong key: {headers["Authorization"]}')))) as (
        url,
        count,
    ):
        with pytest.raises(
            RuntimeError, match=r'status 401: .*\*\*\*.*set the environment variable MCFT_TEST_KEY'
        ) as e:
            rows_of(make_backend(far(url)), ['a'])
    assert 'sk-very-secret' not in ''.join(traceback.format_exception(e.value)) and len(count) == 1


def test_a_slow_server_is_given_up():
    with fake(lambda *_: time.sleep(1) or answer()) as (url, count):
        there = make_backend(far(url, timeout=0.2, max_retries=1))
        with pytest.raises(TimeoutError, match=r'did not answer within 0\.2 s \(1 retries\)'):
            rows_of(there, ['a'])


def test_an_interrupted_generation_goes_on_with_equal_rows():
    here = make_backend(BackendConfig('data/pocket/base'))
    warm = Sampling(24, temperature=1.0, n=2, seed=3)
    batches = list(here.generate(QUESTIONS, warm, batch_size=4))
    have = {r['index'] for b in batches[:1] for r in b} | {
        batches[1][0]['index']
    }  # a whole batch and a part of the next
    again = [r for b in here.generate(QUESTIONS, warm, batch_size=4, skip=lambda i: i in have) for r in b]
    assert again == [r for b in batches for r in b if r['index'] not in have] and len(again) == 2 * (
        len(QUESTIONS) - len(have)
    )


def test_finished_rows_leave_and_the_text_stays():
    "Greedy completions of the base, against `generate` of transformers one prompt at a time."
    model, tok = load('data/pocket/base')
    here = make_backend(BackendConfig('data/pocket/base'))
    asked = [r['question'] for r in read_rows('data/pocket/problems.jsonl.gz', 'problems')][:8000:500]
    rows = rows_of(here, asked, Sampling(96), batch_size=16)
    for q, r in zip(asked, rows):
        ids = tok.apply_chat_template(
            Prompt(q).turns, add_generation_prompt=True, return_tensors='pt', return_dict=True
        ).to(model.device)
        out = model.generate(**ids, max_new_tokens=96, do_sample=False)[0, ids['input_ids'].shape[1] :].tolist()
        assert (r['text'], r['n_prompt_tok']) == (
            tok.decode([t for t in out if t != tok.eos_token_id]),
            ids['input_ids'].shape[1],
        )
    assert len({r['n_tok'] for r in rows}) > 10


def test_vllm_says_how_to_get_it():
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match='needs the package vllm'):
            make_backend(BackendConfig('data/pocket/base', 'vllm'))
    else:
        pytest.skip('vllm is installed')


def test_benchmark_rows():
    from measure.bench_generation import measure

    rows = measure(small=True)
    assert [r['bound'] for r in rows] == ['>= 3', '>= 1', '>= 1.5'] and rows[0]['ratio'] > 1.5


SHAPE = dict(
    vocab_size=64,
    hidden_size=64,
    num_hidden_layers=2,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)


def random_model(kind: str, dtype: str):
    "A small model with random weights whose next token is not obvious."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    windowed = MistralConfig(**SHAPE, sliding_window=16, initializer_range=0.3)
    made = (
        MistralForCausalLM(windowed)
        if kind == 'sliding window'
        else LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.3))
    )
    made.generation_config.suppress_tokens = [7, 8]  # the model's own logits processor stays in force
    return made.to(getattr(torch, dtype)).eval()


def to_end(ids: list[int], ends: list[int]) -> list[int]:
    "What counts of a row: up to its first end token."
    return ids[: next((i + 1 for i, t in enumerate(ids) if t in ends), len(ids))]


@pytest.mark.parametrize(
    'kind, dtype', [('plain', 'float32'), ('plain', 'bfloat16'), ('sliding window', 'float32')]
)
@pytest.mark.parametrize('n_rows', [1, 5, 70])
def test_our_loop_draws_what_generate_draws(kind, dtype, n_rows):
    "Token for token: left padding, two end tokens, a sampled batch, a stop of our own."
    import torch
    from mcft.generate import _pad_left

    model, rng = random_model(kind, dtype), torch.Generator().manual_seed(n_rows)
    lengths = sorted(torch.randint(1, 60, (n_rows,), generator=rng).tolist(), reverse=True)
    rows = [torch.randint(9, 64, (n,), generator=rng).tolist() for n in lengths]
    ids, mask = _pad_left(rows, 0)
    ends = [3, 4]
    plain = dict(input_ids=ids, attention_mask=mask, pad_token_id=0, eos_token_id=ends)

    expected = model.generate(**plain, max_new_tokens=40, do_sample=False)[:, ids.shape[1] :].tolist()
    with torch.inference_mode(), shared_heads(model):
        made = draw_ids(model, rows, Sampling(40), 0, ends)
        cut = draw_ids(model, rows, Sampling(40), 0, ends, lambda ids: len(ids) > 8)
    for row, short, want in zip(made, cut, expected):
        assert to_end(row, ends) == to_end(want, ends)
        assert short == row[: len(short)] and len(to_end(short, ends)) <= 16

    torch.manual_seed(5)
    expected = model.generate(**plain, max_new_tokens=8, do_sample=True, temperature=0.7, top_p=0.9, top_k=0)
    torch.manual_seed(5)
    with torch.inference_mode(), shared_heads(model):
        made = draw_ids(model, rows, Sampling(8, temperature=0.7, top_p=0.9), 0, ends)
    for row, want in zip(made, expected[:, ids.shape[1] :].tolist()):
        assert to_end(row, ends) == to_end(want, ends)
    assert model.config._attn_implementation == 'sdpa'


def said(content, why, n, **kw):
    "An answer as the client returns it."
    choice = SimpleNamespace(finish_reason=why, message=SimpleNamespace(content=content, **kw))
    return SimpleNamespace(choices=[choice], usage=SimpleNamespace(prompt_tokens=9, completion_tokens=n))


def test_an_answer_becomes_a_completion():
    plain = answer_row(said('12', 'stop', 3))
    assert plain == dict(text='12', n_tok=2, n_prompt_tok=9, finish_reason='stop')
    assert answer_row(said('12', 'length', 3))['n_tok'] == 3
    assert answer_row(said('12', 'stop', 3), end_counted=False)['n_tok'] == 3
    assert answer_row(said('12', 'stop', 3, reasoning_content='7+5'))['text'] == '<think>7+5</think>12'
    assert [answer_row(said('12<|im_end|>', why, 3)) for why in ('eos', None)] == [plain]*2
    assert answer_row(said('a\ud800b\ud83d\ude00\udc00', 'stop', 3))['text'] == 'a\ufffdb\U0001f600\ufffd'


NO_ROW = [(said(None, 'tool_calls', 0), "with 'tool_calls'"), (said(None, 'content_filter', 0), 'withheld'),
          (said(dict(text='12'), 'stop', 3), 'sent a dict where text belongs'),
          (said('12', 'stop', 0), 'counts no tokens'), (said('12', 'stop', None), 'counts no tokens'),
          (SimpleNamespace(choices=None, error=dict(message='busy')),
           r'sent no response \(no `choices` in its answer\): busy'),
          *((SimpleNamespace(choices=choices, usage=None), 'sent no response') for choices in ([], None, [None]))]


@pytest.mark.parametrize('answer, why', NO_ROW)
def test_what_is_no_answer_is_told(answer, why):
    with pytest.raises((ValueError, RuntimeError), match=why): answer_row(answer)


LENGTHS = [(11, 'a second BOS'), (9, 'without a BOS'), (30, "name the served model's own")]


@pytest.mark.parametrize('found, why', LENGTHS)
def test_a_prompt_of_another_length_is_told(found, why):
    with pytest.raises(ValueError, match=why): check_prompt_count(found, 10, 'the server')
