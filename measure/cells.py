"""`python -m measure.cells`: runs of the committed grid, made again here from nothing and compared with their rows.

Data, critiques, encoding, training and evaluation all run anew in a temporary folder
or name a run folder where that was done (`--folder`) and runs
in it. On a CPU with the locked versions every verdict must be the same
data/results/reruns.csv gets a row for each cell."""
import argparse, csv, random, subprocess, sys, tempfile, time
from pathlib import Path

from measure.rows import RESULTS, ROOT

CONFIG, FIELDS = 'configs/ablation.yaml', 'run arm seed n different lengths_different cpu versions seconds'.split()


def cells(n: int, seed: int, names: tuple | list = ()) -> list:
    "Named models of the grid, or random ones of different arms."
    from mcft.grid import models, read_grid
    rng, runs = random.Random(seed), [m for m in models(read_grid(CONFIG)) if m.job and not m.step]
    if unknown := [x for x in names if x not in {m.run for m in runs}]:
        raise SystemExit(f'{CONFIG} has no run {unknown[0]!r}; one of its runs is {runs[0].run!r}')
    if names: return [m for m in runs if m.run in names]
    arms = sorted({m.arm.name for m in runs})
    return [rng.choice([m for m in runs if m.arm.name == a]) for a in rng.sample(arms, n)]


def compare(model, folder: Path, rows) -> dict:
    "Verdicts and lengths of one cell against the committed rows."
    import torch, transformers
    from mcft.compare import verdict_frame
    keys, arm, seed = ['benchmark', 'problem'], model.arm.name, model.seed
    new = verdict_frame(folder/model.score, arm, seed).set_index(keys).sort_index()
    old = rows[(rows.arm == arm) & (rows.seed == seed) & (rows.step == 0)].set_index(keys).sort_index()
    if list(new.index) != list(old.index):
        raise RuntimeError(f'{model.run} answered other problems than its committed rows')
    return dict(run=model.run, arm=arm, seed=seed, n=len(new), different=int((new.right != old.right).sum()),
                lengths_different=int((new.n_tok != old.n_tok).sum()),
                versions=f'torch {torch.__version__.split("+")[0]}, transformers {transformers.__version__}')


def make(runs: list, folder: str, cores: int):
    "Make everything that these runs need, and the runs."
    targets = [f'{folder}/{m.score}/run.json' for m in runs]
    command = [sys.executable, '-m', 'snakemake', *targets, '--cores', str(cores), '--nolock', '--quiet', 'all']
    subprocess.run([*command, '--configfile', CONFIG, '--config', f'run_dir={folder}'], cwd=ROOT, check=True)


def save(made: list[dict]):
    "Add to the file, in place of older rows of the same runs."
    path, old = RESULTS/'reruns.csv', []
    if path.exists(): old = [r for r in csv.DictReader(path.open(encoding='utf-8'))
                             if r['run'] not in {m['run'] for m in made}]
    with path.open('w', encoding='utf-8', newline='') as f:
        w = csv.DictWriter(f, FIELDS, lineterminator='\n')
        w.writeheader()
        w.writerows(sorted([*old, *made], key=lambda r: r['run']))


def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog='python -m measure.cells', description=__doc__.splitlines()[0])
    p.add_argument('runs', nargs='*', help='names of runs, such as cft-s0; none for random ones')
    p.add_argument('-n', type=int, default=3, help='how many random runs')
    p.add_argument('--seed', type=int, default=0, help='which')
    p.add_argument('--folder', help='run folder that has them already, made elsewhere; else they are made now')
    p.add_argument('--cores', type=int, default=2, help='jobs at a time')
    a = p.parse_args(argv)
    from mcft.compare import load_rows
    from mcft.core import cpu
    rows, runs, t0 = load_rows(RESULTS/'ablation.parquet'), cells(a.n, a.seed, a.runs), time.time()
    with tempfile.TemporaryDirectory() as d:
        if not a.folder: make(runs, d, a.cores)
        seconds = '' if a.folder else round(time.time() - t0)
        out = [compare(r, Path(a.folder or d), rows) | dict(cpu=cpu(), seconds=seconds) for r in runs]
    for r in out: print('  '.join(f'{k}={v}' for k, v in r.items()))
    save(out)
    return int(any(r['different'] for r in out))


if __name__ == '__main__': sys.exit(main())
