"""The experiment's grid in its smallest size: killed at random moments with two jobs at a time, resumed, and compared
with one job at a time.

Each kill takes the workflow with its processes (SIGKILL); notebook kernels end by themselves when their parent is gone.
The rows of the run that was killed must be those of a run left alone, byte for byte: `lost` counts rows missing
or differ, `duplicated` rows too many, `hung` workflows that had to be stopped."""
import os, random, signal, subprocess, sys, tempfile, time
from pathlib import Path

from measure.rows import ROOT

CONFIG = 'configs/smoke_ablation.yaml'


def command(folder: Path, cores: int) -> list[str]:
    "The workflow with its rows in a folder of its own."
    own = ['--configfile', CONFIG, '--config', f'run_dir={folder}']
    return [sys.executable, '-m', 'snakemake', '--cores', str(cores), '--nolock', '--rerun-incomplete', *own]


def run(folder: Path, cores: int, limit: float) -> bool:
    "Run for so many seconds at most, then kill; True if it ended by itself."
    with open(f'{folder}.log', 'ab') as log, subprocess.Popen(command(folder, cores), cwd=ROOT, stdout=log,
                                                              stderr=log, start_new_session=True) as p:
        try: code = p.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            return False
    if code: raise RuntimeError(f'the workflow ended with code {code}: {Path(f"{folder}.log").read_text()[-2000:]}')
    return True


def difference(whole: Path, other: Path) -> tuple[int, int]:
    "Rows missing or changed, and rows too many."
    import pandas as pd
    def read(folder):
        table = pd.read_parquet(folder/'results'/'ablation.parquet').astype(dict(arm=str, benchmark=str))
        return set(map(tuple, table.itertuples(index=False)))

    rows = read(whole), read(other)
    return len(rows[0] - rows[1]), len(rows[1] - rows[0])


def measure(small: bool) -> list[dict]:
    "Rows of data/results/faults.csv."
    n, rng, t0 = 1 if small else 3, random.Random(0), time.time()
    row = dict(name='grid, kill -9, two jobs at a time against one', tried=0, lost=0, duplicated=0, hung=0)
    with tempfile.TemporaryDirectory() as d:
        whole, other = Path(d)/'whole', Path(d)/'other'
        began = time.time()
        if not run(whole, 1, 1800): raise RuntimeError('the undisturbed grid did not end in half an hour')
        span = time.time() - began
        while row['tried'] < n and not run(other, 2, rng.uniform(.1, .4)*span): row['tried'] += 1
        if not run(other, 2, 10*span): row['hung'] += 1
        row['lost'], row['duplicated'] = difference(whole, other)
    return [row | dict(seconds=round(time.time() - t0, 1))]
