"""`python -m measure.cells`: runs of a committed grid, made again here from nothing and compared with their rows.

Data, critiques, encoding, training and evaluation all run anew in a temporary folder
or name a run folder where that was done (`--folder`) and runs
in it. On a CPU with the locked versions every verdict of the pocket grid must be the same;
a grid in bfloat16 (`--config configs/school.yaml`) may differ on another kind of CPU, and the rows say by how much.
data/results/reruns.csv, or PROFILE_repeat.csv of another grid, gets a row for each run."""
import argparse, csv, random, subprocess, sys, tempfile, time
from pathlib import Path

from measure.rows import RESULTS, ROOT

CONFIG, FIELDS = 'configs/ablation.yaml', 'run arm seed n different lengths_different cpu versions seconds'.split()
MORE = 'points same_rows committed_cpu'.split()  # of a grid whose runs say where they were trained


def cells(n: int, seed: int, names: tuple | list = (), config: str = CONFIG, rows=None) -> dict:
    "Run -> its models, one a prompt: those named, or random ones of different arms; of `rows` where they are given."
    from mcft.grid import models, read_grid
    runs, have = {}, None if rows is None else {*zip(rows.arm, rows.seed)}
    for m in models(read_grid(config)):
        if m.job and not m.step and (have is None or (m.arm.name, m.seed) in have):
            runs.setdefault(m.run.partition('@')[0], []).append(m)
    if unknown := [x for x in names if x not in runs]:
        raise SystemExit(f'{config} has no run {unknown[0]!r} with rows; some that have: {", ".join(list(runs)[:3])}')
    if not names:
        rng, by_arm = random.Random(seed), {}
        for name, (m, *_) in runs.items(): by_arm.setdefault(m.arm.name, []).append(name)
        names = [rng.choice(by_arm[a]) for a in rng.sample(sorted(by_arm), min(n, len(by_arm)))]
    return {name: runs[name] for name in names}


def compare(found: list, folder: Path, rows, prompt: str = '') -> dict:
    "Verdicts and lengths of one run against the committed rows; points of accuracy under the prompt of the tests."
    import pandas as pd
    import torch, transformers
    from mcft.compare import verdict_frame
    keys, arm, seed = ['prompt', 'benchmark', 'problem'], found[0].arm.name, found[0].seed
    def sorted_by_key(d):
        return d.assign(prompt=d.get('prompt', '')).astype(dict.fromkeys(keys, str)).set_index(keys).sort_index()
    new = sorted_by_key(pd.concat([verdict_frame(folder/m.score, arm, seed).assign(prompt=m.prompt) for m in found]))
    old = sorted_by_key(rows[(rows.arm == arm) & (rows.seed == seed) & (rows.step == 0)])
    if list(new.index) != list(old.index):
        raise RuntimeError(f'{found[0].run} answered other problems than its committed rows')
    def accuracy(d): return 100*d.right[d.index.get_level_values('prompt') == prompt].mean()
    return dict(run=found[0].run.partition('@')[0], arm=arm, seed=seed, n=len(new),
                different=int((new.right != old.right).sum()), lengths_different=int((new.n_tok != old.n_tok).sum()),
                versions=f'torch {torch.__version__.split("+")[0]}, transformers {transformers.__version__}',
                points=round(accuracy(new) - accuracy(old), 2))


def trained_on(cfg: dict, folder: Path, arm: str, seed: int) -> dict:
    "Whether a run learned from as many tokens as the committed one, and where that was trained; {} if nobody noted it."
    from mcft.grid import kept_rows
    from mcft.report import run_table
    old = kept_rows(cfg, 'runs')
    if old is None or 'machine' not in old: return {}
    new = run_table({**cfg, 'run_dir': str(folder)}, partial=True)
    new, old = (d[(d.arm == arm) & (d.seed == seed)].iloc[0] for d in (new, old))
    return dict(same_rows=bool(new.loss_tokens == old.loss_tokens), committed_cpu=old.machine)


def make(runs: dict, folder: str, cores: int, config: str = CONFIG):
    "Make everything that these runs need, and the runs; committed rows spare none of it."
    targets = [f'{folder}/{m.score}/run.json' for found in runs.values() for m in found]
    command = [sys.executable, '-m', 'snakemake', *targets, '--cores', str(cores), '--nolock', '--quiet', 'all']
    own = [f'run_dir={folder}', 'drop_weights=False']  # weights whose rows are committed would go before they are read
    subprocess.run([*command, '--configfile', config, '--config', *own], cwd=ROOT, check=True)


def save(made: list[dict], path: Path, fields: list):
    "Add to the file, in place of older rows of the same runs."
    old = []
    if path.exists(): old = [r for r in csv.DictReader(path.open(encoding='utf-8'))
                             if r['run'] not in {m['run'] for m in made}]
    with path.open('w', encoding='utf-8', newline='') as f:
        w = csv.DictWriter(f, fields, lineterminator='\n', extrasaction='ignore')
        w.writeheader()
        w.writerows(sorted([*old, *made], key=lambda r: r['run']))


def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog='python -m measure.cells', description=__doc__.splitlines()[0])
    p.add_argument('runs', nargs='*', help='names of runs, such as cft-s0; none for random ones')
    p.add_argument('--config', default=CONFIG, help='the grid')
    p.add_argument('-n', type=int, default=3, help='how many random runs')
    p.add_argument('--seed', type=int, default=0, help='which')
    p.add_argument('--folder', help='run folder that has them already, made elsewhere; else they are made now')
    p.add_argument('--cores', type=int, default=2, help='jobs at a time')
    a = p.parse_args(argv)
    from mcft.compare import load_rows
    from mcft.core import cpu, resolve
    from mcft.grid import read_grid
    cfg = read_grid(a.config)
    kept, prompt = resolve(cfg['report'].get('keep') or RESULTS), cfg['report'].get('prompt', '')
    if not (kept/cfg['report']['rows']).exists():
        raise SystemExit(f"{kept/cfg['report']['rows']} is not there: no run of {a.config} has committed rows yet")
    rows, t0 = load_rows(kept/cfg['report']['rows']), time.time()
    runs = cells(a.n, a.seed, a.runs, a.config, rows)
    with tempfile.TemporaryDirectory() as d:
        if not a.folder: make(runs, d, a.cores, a.config)
        seconds, folder = '' if a.folder else round(time.time() - t0), Path(a.folder or d)
        facts = dict(cpu=cpu(), seconds=seconds)
        out = [compare(found, folder, rows, prompt) | facts for found in runs.values()]
        out = [r | trained_on(cfg, folder, r['arm'], r['seed']) for r in out]
    for r in out: print('  '.join(f'{k}={v}' for k, v in r.items()))
    own = a.config == CONFIG
    save(out, kept/('reruns.csv' if own else f'{Path(a.config).stem}_repeat.csv'), FIELDS if own else FIELDS + MORE)
    return int(any(r['different'] for r in out))


if __name__ == '__main__': sys.exit(main())
