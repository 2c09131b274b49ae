"""What the pocket design can show: how well its base predicts the critiques before any training, and what a mask hides.

`python -m measure.sensitivity` writes data/results/pocket_sensitivity.csv from the committed base and critiques;
`--base runs/ablation/05_eval/base` adds how carefully the base answers, from an evaluation of it."""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from mcft.core import read_rows
from mcft.endpoints import answer_rows
from mcft.mask import MaskPlan, MaskSpec
from mcft.models import load_model
from mcft.scores import token_losses

ROOT = Path(__file__).resolve().parent.parent
POCKET, OUT = ROOT/'data'/'pocket', ROOT/'data'/'results'/'pocket_sensitivity.csv'
KNOWN = 0.05  # nats: a token below it is as good as known
BEFORE = 1, 2, 4, 8  # tokens that must be the same before a hidden one
RATE = 0.20


def critiques() -> list:  # encoded rows of layout `critique`
    "The committed examples."
    return [r for r in read_rows(POCKET/'encoded.jsonl', 'encoded') if r['layout'] == 'critique']


def critique_losses(rows: list) -> np.ndarray:  # nats of every critique token of all rows
    "What the untrained base makes of the critiques."
    losses = token_losses(load_model(str(POCKET/'base')).eval(), [r['input_ids'] for r in rows])
    may = MaskPlan(rows, MaskSpec(RATE)).may_mask()
    return np.concatenate([loss[at] for loss, at in zip(losses, may)])


def told_elsewhere(rows: list, before: int) -> tuple:  # fraction, hidden tokens
    "How many masked tokens stand labelled, behind the same tokens, in another place of the training rows."
    plan, hidden, labelled = MaskPlan(rows, MaskSpec(RATE)), [], set()
    for row, mask, may in zip(rows, plan.masks(), plan.may_mask()):
        for i in np.flatnonzero(may):
            words = tuple(row['input_ids'][i - before:i + 1])
            if mask[i]: hidden.append(words)
            else: labelled.add(words)
    return float(np.mean([w in labelled for w in hidden])), len(hidden)


def summary(nats: np.ndarray, rows: list) -> list:  # measure, value, n
    "The rows about critiques."
    said = [('nats_mean', nats.mean()), ('nats_median', np.median(nats)), ('known', (nats < KNOWN).mean())]
    told = [(f'told_after_{k}', *told_elsewhere(rows, k)) for k in BEFORE]
    return [*((name, float(x), len(nats)) for name, x in said), *told]


def style(folder: str) -> list:  # measure, value, n
    "How an evaluated model answers."
    problems = {p['id']: p for p in read_rows(POCKET/'problems.jsonl.gz', 'problems')}
    d = pd.DataFrame(answer_rows(folder, problems))
    d = d.assign(value=d.value*d.n).groupby('endpoint', sort=False)[['value', 'n']].sum()
    return [(f'base_{k}', r.value/r.n, int(r.n)) for k, r in d.iterrows()]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--base', default='', help='evaluated folder of the base; its rows are kept without it')
    base = parser.parse_args().base
    kept = pd.read_csv(OUT) if OUT.exists() else pd.DataFrame(columns=['measure', 'value', 'n'])
    kept = [tuple(r) for r in kept.itertuples(index=False) if r.measure.startswith('base_')]
    rows = critiques()
    made = summary(critique_losses(rows), rows) + (style(base) if base else kept)
    pd.DataFrame(made, columns=['measure', 'value', 'n']).round(5).to_csv(OUT, index=False)
    print(pd.DataFrame(made, columns=['measure', 'value', 'n']).round(4).to_string(index=False))
