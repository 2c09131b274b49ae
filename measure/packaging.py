"""The package as a newcomer gets it.

`python -m measure.packaging`, or with names for some of it: `python -m measure.packaging light types first`.

light: `pip install .` into an empty environment, how much that is, and how long imports take there. types: mypy on a
right and on a wrong script, in that environment. first: from a new clone to the first result of examples/1, with
whatever pip has in its cache. Rows go to data/results/packaging.csv."""
import csv, os, resource, shutil, statistics, subprocess, sys, tempfile, time
from pathlib import Path

from measure.rows import RESULTS, ROOT

FIELDS = 'name value spread n unit bound device'.split()
DEVICE = f'{os.cpu_count()} cores'
RIGHT = '''
from mcft.core import read_rows
from mcft.grading import extract_boxed, grade
from mcft.stats import wilson
rows: list[dict] = read_rows('rows.jsonl')
box: str | None = extract_boxed(rows[0]['text'])
n: int = len(grade(['2'], ['2'], 'strict').columns)
low, high = wilson(1, 2)
share: float = high - low
'''
WRONG = '''
from mcft.core import read_rows
from mcft.grading import extract_boxed, grade
from mcft.stats import wilson
rows: int = read_rows('rows.jsonl')
box: str = extract_boxed('2')
grade('2', 2)
low, high, third = wilson(1, 2)
'''


def row(name: str, values: list[float], unit: str, bound: str = '') -> dict:
    "Median and interquartile range."
    q = statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else [values[0]]*3
    return dict(name=name, value=round(q[1], 4), spread=round(q[2] - q[0], 4), n=len(values), unit=unit, bound=bound,
                device=DEVICE)


def run(*command, cwd=None, **env) -> str:
    "What it says; an error says what went wrong."
    clean = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'MCFT_ROOT')} | env
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=clean, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}')
    return done.stdout


def import_seconds(python, module: str, n: int, **env) -> list[float]:
    "Seconds of an import in `n` fresh processes, after one that only warms the disk; torch must not come along."
    code = (f'import sys, time; t = time.perf_counter(); import {module}; '
            'print(time.perf_counter() - t, "torch" in sys.modules)')
    said = [run(python, '-c', code, cwd=tempfile.gettempdir(), **env).split() for _ in range(n + 1)][1:]
    if any(torch == 'True' for _, torch in said): raise RuntimeError(f'import {module} imports torch')
    return [float(s) for s, _ in said]


def environment(folder: Path) -> Path:
    "A fresh environment with `pip install .`, of what is tracked: its Python."
    run('git', 'clone', '-q', ROOT, folder/'clone')
    run(sys.executable, '-m', 'venv', folder/'env')
    run(folder/'env'/'bin'/'pip', 'install', '-q', '--disable-pip-version-check', folder/'clone')
    return folder/'env'/'bin'/'python'


def light(python: Path) -> list[dict]:
    "How much the light install is, and its imports."
    bare = {'pip', 'setuptools', 'mcft'}
    names = {line.split('==')[0] for line in run(python, '-m', 'pip', 'list', '--format=freeze',
                                                 '--disable-pip-version-check').splitlines()} - bare
    size = sum(f.stat().st_size for f in python.parent.parent.rglob('*') if f.is_file() and not f.is_symlink()
               and f.suffix != '.pyc')
    heavy = names & {'torch', 'transformers', 'trl', 'datasets', 'openai', 'ipykernel', 'jupyterlab', 'papermill'}
    rows = [row('light install, packages besides mcft', [len(names)], 'packages'),
            row('light install, size with its environment, without bytecode', [size/2**20], 'MiB'),
            row('light install, packages of models, APIs and notebooks', [len(heavy)], 'packages', '<= 0')]
    bounds = {'mcft': .05, 'mcft.core': .5, 'mcft.grading': .5, 'mcft.stats': 1, 'mcft.eval': 1}
    return rows + [row(f'import {m}, light install', import_seconds(python, m, 15), 's', f'<= {b}') for m,
                   b in bounds.items()]


def types(python: Path) -> list[dict]:
    "What mypy finds in two scripts that use the installed package."
    run(python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', 'mypy', 'pandas-stubs')

    def errors(script: str) -> int:
        with tempfile.TemporaryDirectory() as d:
            (Path(d)/'script.py').write_text(script)
            said = subprocess.run([str(python), '-m', 'mypy', 'script.py'], cwd=d, capture_output=True,
                                  text=True).stdout
        return sum('error:' in line for line in said.splitlines())
    return [row('mypy errors in a script that uses the types rightly', [errors(RIGHT)], 'errors', '<= 0'),
            row('mypy errors in a script that uses them wrongly in five places', [errors(WRONG)], 'errors', '>= 5')]


def first() -> list[dict]:
    "Seconds from a new clone to the executed first example, on the clock and of the processors."
    def cpu():
        return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = cpu()
    with tempfile.TemporaryDirectory() as d:
        clone, out, t0 = Path(d)/'mcft', Path(d)/'1.ipynb', time.perf_counter()
        run('git', 'clone', '-q', ROOT, clone)
        run('make', 'venv', *([f'TORCH_ARGS={a}'] if (a := os.environ.get('TORCH_ARGS')) else []), cwd=clone)
        t1 = time.perf_counter()
        run('.venv/bin/papermill', 'examples/1_mask_critiques.ipynb', out, '--no-progress-bar', cwd=clone,
            HF_HUB_OFFLINE='1')
        t2 = time.perf_counter()
        if not (clone/'runs'/'examples'/'1_mask_critiques'/'model.safetensors').exists():
            raise RuntimeError('the first example saved no model')
    return [row('first result of examples/1, from git clone, package cache warm', [t2 - t0], 's', '<= 300'),
            row('first result of examples/1: of these git clone and make venv', [t1 - t0], 's'),
            row('first result of examples/1: processor time', [cpu() - before], 's')]


def save(rows: list[dict], folder: Path = RESULTS):
    "Replace the rows of the same name, keep the others."
    f = folder/'packaging.csv'
    old = list(csv.DictReader(f.open(encoding='utf-8'))) if f.exists() else []
    with f.open('w', encoding='utf-8', newline='') as out:
        w = csv.DictWriter(out, FIELDS, lineterminator='\n')
        w.writeheader()
        w.writerows(sorted({r['name']: r for r in [*old, *rows]}.values(), key=lambda r: r['name']))


def main(names: list[str]) -> int:
    "Measure, say and keep."
    if unknown := set(names) - {'light', 'types', 'first'}:
        raise SystemExit(f'unknown {sorted(unknown)}: light, types, first')
    if not shutil.which('git'): raise SystemExit('this needs git')
    names, rows = names or ['light', 'types', 'first'], []
    if {'light', 'types'} & set(names):
        with tempfile.TemporaryDirectory() as d:
            python = environment(Path(d))
            for name, what in dict(light=light, types=types).items(): rows += what(python) if name in names else []
    if 'first' in names: rows += first()
    for r in rows: print('  '.join(f'{k}={r[k]}' for k in FIELDS))
    save(rows)
    return 0


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
