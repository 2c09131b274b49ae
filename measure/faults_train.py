"""Training processes killed with SIGKILL at random moments, gone on with until the run is complete, and compared
with a run left alone.

Each victim is a process that trains the pocket base; it is killed anywhere between its start and its end, also
while a state is being saved. The next process goes on from the last whole state. When a run completes, its weights
must equal those of the undisturbed run bit for bit, and its log must hold the same rows: `lost` counts rows (and
runs with other weights) that are missing, `duplicated` rows written twice, `hung` processes that had to be
stopped."""

import random, shutil, tempfile, time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from measure import processes
from measure.rows import ROOT


def config(folder: Path, steps: int):
    "A short pocket run that saves often."
    from mcft.train import TrainConfig

    return TrainConfig(
        str(folder),
        model_dir=str(ROOT / 'data/pocket/base'),
        encoded=str(ROOT / 'data/pocket/encoded.jsonl'),
        n_examples=32,
        max_length=512,
        batch_size=2,
        lr=1e-4,
        mask_schedule='per_epoch',
        max_steps=steps,
        epochs=9,
        save_steps=4,
        part_steps=12,
        part_rows=4,
        device='cpu',
    )


def victim(cfg):
    "What a process does."
    from mcft.train import train

    train(cfg)


def finished(cfg, limit: float) -> bool:
    "Let a run go on for so many seconds; False if it was killed then."
    return processes.finish(processes.start(['mcft.train'], victim, cfg), limit, 'a run nobody had killed')


def compare(whole: Path, other: Path) -> tuple[int, int]:
    "Rows lost (weights count as one) and rows written twice."
    from mcft.core import read_rows

    logs = [Counter(map(repr, read_rows(d / 'train_log.jsonl'))) for d in (whole, other)]
    same = (whole / 'model.safetensors').read_bytes() == (other / 'model.safetensors').read_bytes()
    return sum((logs[0] - logs[1]).values()) + (not same), sum((logs[1] - logs[0]).values())


def kills(n: int, steps: int, seed: int = 0) -> dict:
    "Kill `n` times, comparing each run that completes."
    rng, t0, row = (
        random.Random(seed),
        time.time(),
        dict(name='training, kill -9', tried=0, lost=0, duplicated=0, hung=0),
    )
    with tempfile.TemporaryDirectory() as d:
        cfg, folder = config(Path(d) / 'run', steps), Path(d) / 'run'
        began = time.time()
        if not finished(replace(cfg, out_dir=f'{d}/whole'), 600):
            raise RuntimeError('the undisturbed run did not end in 10 minutes')
        span = time.time() - began
        while row['tried'] < n or folder.exists():
            if row['tried'] < n and not finished(cfg, rng.uniform(0.1, 1) * span):
                row['tried'] += 1
                continue
            if not finished(cfg, 60 + 10 * span):
                row['hung'] += 1
            else:
                lost, twice = compare(Path(d) / 'whole', folder)
                row['lost'] += lost
                row['duplicated'] += twice
            shutil.rmtree(folder)
    return row | dict(seconds=round(time.time() - t0, 1))


def measure(small: bool) -> list[dict]:
    "Rows of data/results/faults.csv."
    return [kills(2, 8) if small else kills(20, 48)]
