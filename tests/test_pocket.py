"""The pocket world as a whole: the committed base, its corpus and the problem sets belong together."""
from concurrent.futures import ProcessPoolExecutor

from mcft.core import read_rows, run_info
from mcft.pocket import BENCHMARKS, corpus_row, problem_set, read_question, split_of

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
