"""Grading speed: `symbolic` against `full_text` on the released responses, and what the pool of workers costs."""
import os, random
from functools import partial
from importlib.metadata import version

from math_verify import LatexExtractionConfig, parse, verify

from mcft.grading import grade
from mcft.released import read_responses
from measure.rows import bench_row, paired

MATH_VERIFY = f'math-verify {version("math-verify")}'


def symbolic_against_full_text(n: int) -> dict:
    "Seconds over all released responses; a warm pool, all cores, default time limit."
    rows = read_responses()  # their texts are not committed, so the folder MCFT_DATA_DIR must be there
    texts, golds = [r['text'] for r in rows], [r['gold'] for r in rows]
    grade([r'\boxed{1/%d}' % i for i in range(2, 100)], ['0.5']*98, 'symbolic')
    ratios = paired(partial(grade, texts, golds, 'symbolic'), partial(grade, texts, golds, 'full_text'), n)
    name = 'grading time, full_text over symbolic, 451 released responses'
    return bench_row(name, 'full_text of mcft', ratios, '>= 20')


def benign(
    n: int,  # answers
    seed: int,  # another seed, other numbers: no cache helps
) -> tuple[list, list]:  # answers and golds, none equal as strings
    "Fractions against decimals, roots and polynomials in another form; every third is wrong."
    rng, answers, golds = random.Random(seed), [], []
    for i in range(n):
        a, b, off = rng.randint(10, 99999), rng.choice([8, 16, 25, 40, 125]), int(i % 3 == 0)
        forms = [(rf'\frac{{{a}}}{{{b}}}', f'{(a + off)/b}'),
                 (rf'{a%97 + 2}\sqrt{{{b}}}', rf'\sqrt{{{(a%97 + 2)**2*b + off}}}'),
                 (rf'(x+{a})(x-{b})', rf'x^2+{a - b + off}x-{a*b}'), (f'{a}.50', rf'\frac{{{2*a + 1 + off}}}{{2}}')]
        answers.append(forms[i % 4][0])
        golds.append(forms[i % 4][1])
    return answers, golds


def loop(answers: list, golds: list) -> list[str]:
    "math-verify in this process, no time limits, the same settings as the workers."
    def read(s): return parse(rf'\boxed{{{s}}}', [LatexExtractionConfig()], parsing_timeout=None)
    return ['right' if verify(read(g), read(a), timeout_seconds=None) else 'wrong' for a, g in zip(answers, golds)]


def pool_against_loop(n: int, answers: int) -> dict:
    "One worker, warm, against a loop in this process, warm: the same answers in both, new ones in each pair."
    def pool(a, g): return grade([rf'\boxed{{{t}}}' for t in a], g, 'symbolic', workers=1).symbolic.tolist()
    a, g = benign(min(200, answers), seed=-1)
    if pool(a, g) != loop(a, g): raise ValueError('the pool and the loop give other verdicts')
    ratios = []
    for i in range(n):
        a, g = benign(answers, seed=i)
        ours, peer = partial(pool, a, g), partial(loop, a, g)
        ratios += paired(peer, ours, 1) if i % 2 == 0 else [1/r for r in paired(ours, peer, 1)]
    return bench_row('grading time, pool of one worker over a loop', f'{MATH_VERIFY} in a loop', ratios, '<= 1.15')


def measure(small: bool) -> list[dict]:
    "The first row needs the released files: without MCFT_DATA_DIR it is an error at full size and left out when small."
    rows = [pool_against_loop(2, 60) if small else pool_against_loop(7, 1200)]
    if not small or os.environ.get('MCFT_DATA_DIR'): rows.append(symbolic_against_full_text(1 if small else 7))
    return rows
