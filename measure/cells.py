"""`python -m measure.cells`: runs of the committed grid made again from nothing, here, and compared with their committed rows.

Data, critiques, encoding, training and evaluation all run anew in a temporary folder. On a CPU with the locked versions every verdict must be the
same; data/results/reruns.csv gets a row for each cell."""
import argparse, csv, random, subprocess, sys, tempfile, time
from pathlib import Path

from measure.rows import RESULTS, ROOT

CONFIG, FIELDS = 'configs/ablation.yaml', 'run arm seed n different lengths_different versions seconds'.split()


def cells(n: int, seed: int) -> list[dict]:
    "Random runs of the grid, of different arms."
    from mcft.ablation import read_config, runs_of
    rng, runs = random.Random(seed), runs_of(read_config(CONFIG))
    return [rng.choice([r for r in runs if r['arm'] == a]) for a in rng.sample(sorted({r['arm'] for r in runs}), n)]


def compare(run: dict, folder: Path, rows) -> dict:
    "Verdicts and lengths of one cell against the committed rows."
    import torch, transformers
    from mcft.experiment import verdict_frame
    keys = ['benchmark', 'problem']
    new = verdict_frame(folder/'05_eval'/run['run'], run['arm'], run['seed']).set_index(keys).sort_index()
    old = rows[(rows.arm == run['arm']) & (rows.seed == run['seed']) & (rows.step == 0)].set_index(keys).sort_index()
    if list(new.index) != list(old.index): raise RuntimeError(f'{run["run"]} answered other problems than its committed rows')
    return dict(run=run['run'], arm=run['arm'], seed=run['seed'], n=len(new), different=int((new.right != old.right).sum()), lengths_different=int((new.n_tok != old.n_tok).sum()),
                versions=f'torch {torch.__version__.split("+")[0]}, transformers {transformers.__version__}')


def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog='python -m measure.cells', description=__doc__.splitlines()[0])
    p.add_argument('-n', type=int, default=3, help='how many runs')
    p.add_argument('--seed', type=int, default=0, help='which')
    p.add_argument('--cores', type=int, default=2, help='jobs at a time')
    a = p.parse_args(argv)
    from mcft.experiment import load_rows
    rows, runs, t0 = load_rows(RESULTS/'ablation.parquet'), cells(a.n, a.seed), time.time()
    with tempfile.TemporaryDirectory() as d:
        targets = [f'{d}/05_eval/{r["run"]}/run.json' for r in runs]
        subprocess.run([sys.executable, '-m', 'snakemake', *targets, '--cores', str(a.cores), '--nolock', '--quiet', 'all', '--configfile', CONFIG, '--config', f'run_dir={d}'], cwd=ROOT, check=True)
        out = [compare(r, Path(d), rows) for r in runs]
    for r in out: print('  '.join(f'{k}={v}' for k, v in r.items()))
    with (RESULTS/'reruns.csv').open('w', encoding='utf-8', newline='') as f:
        w = csv.DictWriter(f, FIELDS, lineterminator='\n')
        w.writeheader()
        w.writerows(r | dict(seconds=round(time.time() - t0)) for r in out)
    return int(any(r['different'] for r in out))


if __name__ == '__main__': sys.exit(main())
