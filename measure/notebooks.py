"""Every notebook as *Run All* in JupyterLab runs it.

`python -m measure.notebooks`, or with names: `python -m measure.notebooks 03_masking 04_train`.

A fresh kernel in the notebook's own folder, progress bars as on a screen. Kept in data/results/notebook_times.csv:
seconds on the clock and of the processors, code cells run, outputs so long that they are logs, and lines on the error
stream, where warnings and logs end up."""
import csv, os, resource, sys, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from measure.rows import RESULTS, ROOT

FIELDS = 'notebook seconds cpu_seconds bound code_cells long_outputs error_lines device'.split()
SLOW, SCREEN = {**dict.fromkeys(('04_train', '05_eval', '06_ablation', '07_midtrain'), 180), '08_preference': 600,
                '09_rl': 1200}, 150  # seconds; lines, as many as a data card has
FOLDERS = 'nbs', 'examples'


def notebooks(names: list[str]) -> list[Path]:
    "Paths of the notebooks called `names`; of all when there are none."
    have = {p.stem: p for d in FOLDERS for p in sorted((ROOT/d).rglob('[!_.]*.ipynb'))}
    for n in names:
        if n not in have: raise SystemExit(f'no notebook {n!r}: one of {", ".join(have)}')
    return [have[n] for n in names or have]


def error_lines(nb) -> list[str]:
    "What the notebook's outputs say on the error stream."
    return [line for c in nb.cells for o in c.get('outputs', []) if o.get('name') == 'stderr'
            for line in o.text.splitlines()]


def long_outputs(nb) -> list[str]:
    "Ids of cells whose printed text is longer than anything a reader wants."
    return [c.id for c in nb.cells if sum(o.text.count('\n') for o in c.get('outputs', []) if o.output_type
                                          == 'stream') > SCREEN]


def cpu_seconds() -> float:
    "Of this process and of the children that have ended."
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage,
                                                    (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def run_all(path: Path) -> tuple[dict, object]:
    "A row, and the notebook as executed; a cell that fails raises."
    for name in 'CI', 'MCFT_QUIET': os.environ.pop(name, None)
    nb, t0, cpu0 = nbformat.read(path, 4), time.perf_counter(), cpu_seconds()
    NotebookClient(nb, kernel_name='python3', timeout=3600, extra_arguments=['--IPKernelApp.log_level=ERROR'],
                   resources=dict(metadata=dict(path=str(path.parent)))).execute()
    row = dict(notebook=path.stem, seconds=round(time.perf_counter() - t0, 1),
               cpu_seconds=round(cpu_seconds() - cpu0, 1), bound=f'<= {SLOW.get(path.stem, 60)}',
               code_cells=sum(c.cell_type == 'code' for c in nb.cells), long_outputs=len(long_outputs(nb)),
               error_lines=len(error_lines(nb)), device=f'{os.cpu_count()} cores')
    return row, nb


def save(rows: list[dict], folder: Path = RESULTS):
    "Replace the rows of the same notebooks, keep the others."
    f, name = folder/'notebook_times.csv', lambda r: r['notebook']
    old = list(csv.DictReader(f.open(encoding='utf-8'))) if f.exists() else []
    with f.open('w', encoding='utf-8', newline='') as out:
        w = csv.DictWriter(out, FIELDS, lineterminator='\n')
        w.writeheader()
        w.writerows(sorted({name(r): r for r in [*old, *rows]}.values(), key=name))


def main(names: list[str]) -> int:
    "Run, say and keep."
    bad = []
    for path in notebooks(names):
        row, nb = run_all(path)
        print('  '.join(f'{k}={v}' for k, v in row.items()), flush=True)
        for line in error_lines(nb): print(f'  {line}', file=sys.stderr)
        bad += [path.stem] if row['error_lines'] or row['seconds'] > float(row['bound'].split()[1]) else []
        save([row])
    if bad: print(f'slow, or not quiet: {", ".join(bad)}', file=sys.stderr)
    return bool(bad)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
