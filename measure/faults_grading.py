"""Grading under attack: adversarial answers, workers killed from outside, callers killed with kill -9."""
import os, random, signal, subprocess, sys, tempfile, threading, time
from contextlib import contextmanager
from pathlib import Path

import psutil
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from mcft import grading
from mcft.grading import grade
from measure.bench_grading import benign

GRADERS = ('strict', 'symbolic', 'full_text')
VERDICTS = {'right', 'wrong', 'no_answer', 'timeout'}
FILE = 'written-by-an-answer'  # what an answer that were evaluated would leave behind

# --- answers that mean harm -------------------------------------------------------------------------------------------
_atoms = st.one_of(
    st.sampled_from([
        '1', 'x', '-3', '0.1', '20!', r'\pi', r'\infty', r'\{', '{', '}', r'\boxed{', r'\boxed', r'\frac', r'\frac{1}',
        r'\sqrt[', r'\text{a}', '$', '$$',
        r'\left(', r'\right.', '\x00', '\n', '\ud800', '\udfff', '٣', '\u202e', '∞', '𝟗', '½',
        '&', '\\\\', '\\', r'\begin{pmatrix}', '%', r'\%', r'\circ', '|', '==', 'nan']),
    st.integers(-10**6, 10**6).map(str), st.text(max_size=12))
_OF_ONE = (r'\sqrt{{{}}}', '({})!', r'{}\text{{ cm}}^2', r'{}\%', '|{}|')
_OF_TWO = ('{}^{{{}}}', r'\frac{{{}}}{{{}}}', '{}+{}', '{},{}', '{}={}', r'\binom{{{}}}{{{}}}',
           r'[{0},{1})\cup({1},\infty)', r'\{{{},{}\}}', r'{}\leq x<{}', r'\log_{{{}}}{}')


def _join(s):
    "Larger answers from smaller ones."
    one = st.tuples(st.sampled_from(_OF_ONE), s).map(lambda p: p[0].format(p[1]))
    two = st.tuples(st.sampled_from(_OF_TWO), s, s).map(lambda p: p[0].format(p[1], p[2]))
    return st.one_of(two, two, one)


_tex = st.recursive(_atoms, _join, max_leaves=8)
_big = st.integers(3, 40).map(lambda k: f'10^{{{k}}}')
_bound = st.one_of(_big, st.integers(10**4, 10**12).map(str), st.just(r'\infty'), _atoms)
_tower = st.lists(st.integers(2, 99).map(str), min_size=3, max_size=9).map(lambda xs: '^{'.join(xs) + '}'*(len(xs) - 1))
_LARGE = (r'\sum_{{k=1}}^{{{}}} {}', r'\prod_{{k=1}}^{{{}}} {}', r'\int_0^{{{}}} {} \,dk', r'\lim_{{k\to {}}} {}')
_TERMS = ('k', 'k!', 'k^k', r'\frac{1}{k}', r'\sin(k^k)', r'\frac{k^{50}}{e^k-1}')
_sums = st.tuples(st.sampled_from(_LARGE), _bound, st.sampled_from(_TERMS)).map(lambda p: p[0].format(p[1], p[2]))


def _power_of_matrix(p):
    "An n x n matrix of equal cells, to a power; p is (n, cell)."
    rows = ['&'.join([p[1]]*p[0])]*p[0]
    return r'\begin{pmatrix}' + r'\\'.join(rows) + r'\end{pmatrix}^{99}'


_matrix = st.tuples(st.integers(1, 25), _atoms).map(_power_of_matrix)
_nested = st.tuples(st.sampled_from([('{', '}'), ('(', ')'), (r'\frac{1}{', '}'), (r'\sqrt{', '}'), (r'\boxed{', '}'),
                                      (r'\left(', r'\right)'), ('{', ''), ('', '}'), ('-', '')]),
                    st.sampled_from([10, 100, 1000, 20_000]), _atoms).map(lambda p: p[0][0]*p[1] + p[2] + p[0][1]*p[1])
_REPEATED = ('1', '9', '1,', 'x+', '(', '{', '\\', r'\frac', ' ', '$', '٣', '\x00', r'\boxed{', '2^', '-', r'\text{a}',
             'a', '1/', '\ud800', '. ', '0.', r'\pm', 'x<', '1 000 ')
_lengths = st.sampled_from([5_000, 50_000, 1_000_000])
_long = st.tuples(st.sampled_from(_REPEATED), _lengths).map(lambda p: (p[0]*p[1])[:p[1]])
_sum_of_letters = st.sampled_from(['x+1', 'x+y+z', r'\sin x+\cos y', 'x^{99}-1'])
_polynomial = st.tuples(_sum_of_letters, st.integers(10, 10**6)).map(lambda p: f'({p[0]})^{{{p[1]}}}')


def code(
    folder: Path,  # where the file would be
):  # strategy
    "Python and TeX that would write a file if somebody evaluated it."
    f = str(folder/FILE)
    calls = [f"__import__('pathlib').Path('{f}').write_text('x')", f"open('{f}','w')",
             f"__import__('os').system('touch {f}')", f"eval(\"open('{f}','w')\")",
             f"[c for c in ().__class__.__base__.__subclasses__()][0];open('{f}','w')",
             rf'\write18{{touch {f}}}', rf'\input{{|"touch {f}"}}', f'$(touch {f})', f"open('{FILE}','w')"]
    around = ['{}', '1+{}', r'\text{{{}}}', '({})', 'lambda: {}', 'x={}', '"+{}+"', 'exec({!r})', 'answer: {}']
    return st.tuples(st.sampled_from(around), st.sampled_from(calls)).map(lambda p: p[0].format(p[1]))


def answers(
    folder: Path,  # where evaluated code would leave a file
):  # strategy of (response, gold)
    "Adversarial responses, boxed or not, and golds that are at times no better (but short)."
    factorials = st.integers(10, 10**9).map(lambda n: f'{n}!')
    numbers = st.integers(1, 30_000).map(lambda n: '7'*n)
    harm = st.one_of(_tex, _tex, _tower, factorials, _sums, _matrix, _nested, _polynomial, code(folder), _long, numbers)
    shapes = st.sampled_from([(r'\boxed{', '}'), (r'\boxed{', '}'), (r'\boxed{', '}.'), ('so $', '$.'),
                              ('The answer is ', ''), (r'\boxed ', ''), (r'\boxed{', ''), ('', '')])
    usual = st.sampled_from(['5', r'\frac{1}{2}', 'x^2+2x+1', '(1,2)', r'\{1,2\}'])
    golds = st.one_of(usual, _tower, _tex.filter(lambda s: s.strip()))
    return st.tuples(st.tuples(shapes, harm).map(lambda p: p[0][0] + p[1] + p[0][1]), golds)


def draw(strategy, n: int) -> list:
    "n examples, the same on every machine with this version of hypothesis."
    seen = []

    @settings(max_examples=n, database=None, deadline=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example): seen.append(example)

    collect()
    if len(seen) < n: raise RuntimeError(f'hypothesis gave {len(seen)} examples of {n}: the strategy is too narrow')
    return seen[:n]


# --- measurements -----------------------------------------------------------------------------------------------------
@contextmanager
def waits():
    "Seconds of every wait for a line of a worker."
    line, seen = grading.Worker.line, []

    def timed(self, seconds):
        t0 = time.monotonic()
        try: return line(self, seconds)
        finally: seen.append((time.monotonic() - t0, seconds))
    grading.Worker.line = timed
    try: yield seen
    finally: grading.Worker.line = line


def adversarial(n: int, timeout: float) -> dict:
    "n answers by three graders: every one a verdict, no file, the caller's memory flat."
    with tempfile.TemporaryDirectory() as d, waits() as seen:
        pairs = draw(answers(Path(d)), n)
        before, t0, lost = psutil.Process().memory_info().rss, time.monotonic(), 0
        for i in range(0, n, 100):
            responses, golds = zip(*pairs[i:i+100])
            got = grade(responses, golds, GRADERS, timeout)
            lost += len(responses) - int(got.isin(VERDICTS).all(axis=1).sum())
        seconds, grown = time.monotonic() - t0, (psutil.Process().memory_info().rss - before) >> 20
        left = [*Path(d).iterdir(), *Path('.').glob(FILE)]
        if left: raise RuntimeError(f'an answer was evaluated: it left {left}')
        if grown > 200: raise RuntimeError(f'the caller grew by {grown} MiB while grading {n} answers')
    hung = sum(took > limit + 1 for took, limit in seen)
    name = 'grading, adversarial answers'
    return dict(name=name, tried=n, lost=lost, duplicated=0, hung=hung, seconds=round(seconds, 1))


def is_worker(p) -> bool:
    "A grading process that still runs; one that ends while it is looked at is none."
    try: return 'mcft.grading' in ' '.join(p.cmdline())
    except psutil.Error: return False


def killed_workers(n: int, kills: int) -> dict:
    "Workers die at random moments, busy or starting: the verdicts are those of an undisturbed run."
    answers, golds = benign(n, seed=0)
    responses = [rf'\boxed{{{a}}}' for a in answers]
    def once(): return grade(responses, golds, 'symbolic', 10.0).symbolic.tolist()
    want, rng, killed = once(), random.Random(0), []

    def killer():
        while len(killed) < kills:
            time.sleep(rng.uniform(0.5, 4))
            mine = [p for p in psutil.Process().children() if is_worker(p)]
            if not mine: continue
            killed.append(rng.choice(mine))
            killed[-1].kill()
    t0, t, runs = time.monotonic(), threading.Thread(target=killer), []
    t.start()
    while t.is_alive() or not runs: runs.append(once())
    lost, twice = sum(a != b for got in runs for a, b in zip(got, want)), sum(len(got) - n for got in runs)
    name, seconds = f'grading, workers killed {len(killed)} times', round(time.monotonic() - t0, 1)
    return dict(name=name, tried=n*len(runs), lost=lost, duplicated=twice, hung=0, seconds=seconds)


_caller = r"""
from mcft.grading import grade
i = 0
while True:
    print("round", flush=True)
    answers = [r"\boxed{%d/7}" % (i + j) for j in range(40)] + [r"\boxed{9^{9^{9^{9}}}}"]
    grade(answers, [r"\frac{1}{7}"]*41, "symbolic", 1.0)
    i += 40
"""


def killed_callers(n: int) -> dict:
    "kill -9 at random moments: no worker outlives its caller by more than a second and the limit of one answer."
    rng, lost, t0 = random.Random(0), 0, time.monotonic()
    for _ in range(n):
        caller = subprocess.Popen([sys.executable, '-c', _caller], stdout=subprocess.PIPE)
        caller.stdout.readline()
        time.sleep(rng.uniform(0.3, 3))
        workers = psutil.Process(caller.pid).children(recursive=True)
        os.kill(caller.pid, signal.SIGKILL)
        caller.wait()
        caller.stdout.close()
        _, left = psutil.wait_procs(workers, timeout=20)
        lost += len(left)
        for p in left: p.kill()
    name, seconds = 'grading, workers after kill -9 of their caller', round(time.monotonic() - t0, 1)
    return dict(name=name, tried=n, lost=lost, duplicated=0, hung=0, seconds=seconds)


def measure(small: bool) -> list[dict]:
    "Adversarial answers, killed workers, killed callers."
    if small: return [adversarial(30, 0.2), killed_workers(60, 2), killed_callers(1)]
    return [adversarial(2200, 0.25), killed_workers(400, 20), killed_callers(20)]
