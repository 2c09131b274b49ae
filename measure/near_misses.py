"""Near misses: answers made from a gold by one small change, by rule, so that none of them is correct."""
import json, random, re
from pathlib import Path


def benchmark_golds(
    folder: Path,  # with a JSON Lines file per benchmark
) -> list[str]:  # distinct, in order
    "Read the reference answers of benchmark files."
    golds = {}
    for file in sorted(folder.glob('*.jsonl')):
        lines = file.read_text(encoding='utf-8').splitlines()
        golds.update({str(json.loads(line)['answer']): None for line in lines if line.strip()})
    return list(golds)


def _replaced(s: str, m: re.Match, new: str) -> str:
    return s[:m.start()] + new + s[m.end():]


def near_misses(
    gold: str,
    rng: random.Random,  # chooses the digits
) -> list[tuple[str, str]]:  # (rule, answer)
    "Change a digit, a sign, a bracket or a base, drop or repeat an element, add a term, a factor or a letter."
    bare, out = gold.strip('$. '), []
    for m in re.finditer(r'\d', bare):
        out.append(('digit', _replaced(bare, m, str((int(m[0]) + rng.randint(1, 9)) % 10))))
    for m in re.finditer(r'(?<!\{)[+-]', bare):
        out.append(('sign', _replaced(bare, m, '-' if m[0] == '+' else '+')))
    if bare[0] not in '+-': out.append(('sign', '-' + bare))
    for m in re.finditer(r'[()\[\]]', bare):
        out.append(('bracket', _replaced(bare, m, '[(])'['([)]'.index(m[0])])))
    if m := re.search(r'_\{?(\d)\}?$', bare):
        out += [('base', f'{bare[:m.start()]}_{base}') for base in range(2, 10) if str(base) != m[1]]
        out.append(('base', bare[:m.start()]))
    parts = bare.split(',')
    if len(parts) > 1:
        for i in range(len(parts)):
            out.append(('dropped', ','.join(parts[:i] + parts[i + 1:])))
            out.append(('repeated', ','.join(parts[:i + 1] + parts[i:])))
    out.append(('factor', f'1{bare}' if bare[0].isdigit() else f'2{bare}'))
    out += [('term', f'{bare}+1'), ('letter', f'{bare}m'), ('letter', f'{bare}x')]
    return [(rule, answer) for rule, answer in out if answer != bare]


def draw(
    golds: list[str],
    n: int,  # as many as there are, if fewer
    seed: int,
) -> list[tuple[str, str, str]]:  # (rule, gold, answer)
    "Draw near misses of many golds, without those that change nothing: -0 is 0, and so is 0x."
    rng = random.Random(seed)
    pairs = [(rule, gold, answer) for gold in golds for rule, answer in near_misses(gold, rng)]
    pairs = [p for p in pairs if not re.search(r'(?<![\d.])(?:[-+]0(?![\d.])|0[mx]$)', p[2])]
    return rng.sample(pairs, min(n, len(pairs)))
