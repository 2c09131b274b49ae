"""vLLM against transformers on one checkpoint: equal greedy rows in float32, two end tokens, a system turn, no room,
seeds, and its server. `make venv-vllm`, then `make test-engines`."""

import os

import pytest

pytest.importorskip('vllm', reason='vllm is not installed: make venv-vllm, then make test-engines')
os.environ |= dict(VLLM_CPU_KVCACHE_SPACE='1', VLLM_ENABLE_V1_MULTIPROCESSING='0')

from conftest import ROOT  # noqa: E402
from mcft.generate import BackendConfig, Prompt, Sampling, make_backend  # noqa: E402
from measure.engines import ENGINE, QUESTIONS, rows_of, served, vllm_server, with_two_ends  # noqa: E402

BASE = ROOT / 'data/pocket/base'
GREEDY = Sampling(max_new_tokens=40)
PROMPTS = [Prompt(q) for q in QUESTIONS[:8]]


def inside(model) -> object:
    return make_backend(BackendConfig(str(model), 'vllm', engine=ENGINE))


@pytest.fixture(scope='module')
def two_ends(tmp_path_factory):
    "A checkpoint with two end tokens, and both back ends."
    model = with_two_ends(BASE, tmp_path_factory.mktemp('ends') / 'base')
    return model, make_backend(BackendConfig(str(model), dtype='float32')), inside(model)


def test_greedy_rows_are_equal_with_two_end_tokens(two_ends):
    _, here, there = two_ends
    expected = rows_of(here, PROMPTS, GREEDY)
    assert rows_of(there, PROMPTS, GREEDY) == expected
    assert {r['finish_reason'] for r in expected} == {'stop'}, 'the second end token ends them'
    assert len(there.ends) == 2


def test_a_system_turn_reaches_both(two_ends):
    _, here, there = two_ends
    asked = [Prompt(q, 'Answer in short steps.') for q in QUESTIONS[:4]]
    assert rows_of(there, asked, GREEDY) == rows_of(here, asked, GREEDY)


def test_no_room_is_an_error_in_both(two_ends):
    _, here, there = two_ends
    for backend in (here, there):
        with pytest.raises(ValueError, match='exceed the model'):
            rows_of(backend, PROMPTS, Sampling(max_new_tokens=1020))


def test_a_seed_repeats_and_another_differs(two_ends):
    there = two_ends[2]
    draws = [rows_of(there, PROMPTS, Sampling(16, 1.0, n=2, seed=s)) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_the_stored_type_is_kept(two_ends):
    assert str(two_ends[2].llm.model_config.dtype) == 'torch.float32'


def test_the_server_answers_as_the_model_in_process():
    here = make_backend(BackendConfig(str(BASE), dtype='float32'))
    with vllm_server(BASE) as url:
        got = rows_of(make_backend(served(BASE, url)), PROMPTS, GREEDY)
    assert got == rows_of(here, PROMPTS, GREEDY)
