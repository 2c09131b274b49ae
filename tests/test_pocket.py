"""The pocket world as a whole: the committed base, its corpus and the problem sets belong together."""
from concurrent.futures import ProcessPoolExecutor

import pandas as pd
import pytest

from mcft.core import read_rows, run_info
from mcft.pocket import BENCHMARKS, chain_result, corpus_row, is_careful, problem_set, read_question, split_of
from measure import sensitivity

N_JOBS, CHUNK = 2, 20_000


def replay(seed: int, start: int, n: int) -> list[tuple]:
    "Problem and texts of a stretch of the training stream."
    out = []
    for i in range(start, start + n):
        row = corpus_row(seed, i)
        out.append((row['problem'], row['layout'], row['turns'][0] if row['layout'] in ('solve', 'retry') else ''))
    return out


def test_no_held_out_question_in_the_whole_training_stream():
    info = run_info('data/pocket/base')
    n, seed = info['params']['n_rows'], info['params']['seed']
    problems = read_rows('data/pocket/problems.jsonl.gz', 'problems')
    held_out, texts = {read_question(r['question']) for r in problems}, {r['question'] for r in problems}
    assert len(held_out) == len(problems), 'two rows of the problem file are the same problem'
    with ProcessPoolExecutor(N_JOBS) as pool:
        parts = pool.map(replay, *zip(*[(seed, i, min(CHUNK, n - i)) for i in range(0, n, CHUNK)]))
        seen = [row for part in parts for row in part]
    assert len(seen) == n
    assert not held_out & {p for p, _, _ in seen}
    assert not texts & {t for _, _, t in seen}
    assert {split_of(p) for p, _, _ in seen} == {'base'}


def test_problem_file_is_what_the_code_draws():
    rows = read_rows('data/pocket/problems.jsonl.gz', 'problems')
    for name in (*BENCHMARKS, 'dev_gcd', 'train'):
        found = [r for r in rows if r['split'] == name]
        assert found[:100] == problem_set(name, 100)
        assert len(found) == (2000 if name in BENCHMARKS else 600 if name == 'train' else 250)


def test_corpus_row_does_not_depend_on_order():
    a = [corpus_row(0, i) for i in (5, 3, 4)]
    assert a == [corpus_row(0, i) for i in (5, 3, 4)] and a[1] == corpus_row(0, 3)


def test_what_the_base_expects_is_what_the_rows_say():
    "Measured again on the committed base and critiques."
    rows = pd.read_csv(sensitivity.OUT).set_index('measure')
    again = sensitivity.summary(sensitivity.critique_losses(sensitivity.critiques()), sensitivity.critiques())
    for name, value, n in again:
        assert rows.value[name] == pytest.approx(value, abs=2e-4) and rows.n[name] == n, name
    ended = pd.read_csv(sensitivity.ROOT/'data'/'results'/'ablation_arms.csv').set_index('arm')
    assert rows.value['base_right'] == pytest.approx(ended.accuracy['base'])
    assert set(rows.index) - {name for name, *_ in again} == {f'base_{k}' for k in (
        'right', 'boxed', 'careful', 'chain_right', 'chain_is_box', 'right_if_careful')}


@pytest.mark.parametrize('chain, careful, result', [
    ('10-4=6\n56-32=24\n24/6=4', True, '4'), ('(56-32)/(10-4)=4', False, '4'), ('', False, ''),
    ('10-4=6\n\\boxed{4}', True, '6')])
def test_a_chain_is_read_apart_from_the_box(chain, careful, result):
    assert is_careful(chain) == careful and chain_result('Solve 10x+32=4x+56.', chain) == result


def test_the_chain_of_euclid_ends_in_its_last_divisor():
    gcd = next(p for p in read_rows('data/pocket/problems.jsonl.gz', 'problems') if p['split'] == 'gcd')
    assert chain_result(gcd['question'], '168mod114=54\n114mod54=6\n54mod6=0') == '6'
    assert chain_result('Solve 10x+32=4x+56.', '54mod6=0') == '0'
