"""The package as others get it.

Wheel and sdist hold what runs, the light install does its work outside a clone, and what is lacking is named."""
import ast
import csv
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution, packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT
from measure import packaging
from test_setup import MODULES, copy_to, groups, requirements

LIGHT = [m for m in MODULES if m not in ('dataset', 'midtrain', 'preference', 'preflight', 'rl', 'train', 'trainer')]
# Python's own finders, without the packages that an empty environment with `pip install .` would lack.
HIDE = '''
import sys
from importlib.machinery import PathFinder
hidden, find = set(%r), PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *a, **kw: None if name.partition('.')[0] in hidden else find(name, *a, **kw))
'''


def closure(reqs: list) -> set:
    "Canonical names of the distributions that the requirements bring, with what those need."
    todo, done = list(reqs), set()
    while todo:
        req = todo.pop()
        key = canonicalize_name(req.name), tuple(sorted(req.extras))
        if key in done: continue
        done.add(key)
        todo += [sub for sub in map(Requirement, distribution(req.name).requires or [])
                 if sub.marker is None or any(sub.marker.evaluate({'extra': e}) for e in req.extras or {''})]
    return {name for name, _ in done}


@pytest.fixture(scope='module')
def hidden(settings):
    "Top-level modules that are here and would not be after `pip install .`."
    light = closure(requirements(settings, 'requirements')) | {'mcft', 'pip', 'setuptools'}
    return sorted(m for m, owners in packages_distributions().items()
                  if not {canonicalize_name(o) for o in owners} & light)


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Wheel and sdist, made by the frontend from a copy, with the backend that is installed."
    copy, out = copy_to(tmp_path_factory.mktemp('clone')), tmp_path_factory.mktemp('dist')
    done = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(out), str(copy)],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
    "The unpacked wheel: what lies in site-packages."
    folder = tmp_path_factory.mktemp('site')
    with zipfile.ZipFile(next(built.glob('*.whl'))) as z: z.extractall(folder)
    return folder


def python(code: str, site, cwd, hidden=()):
    "Run code with the installed package, in a folder that is no clone."
    env = {k: v for k, v in os.environ.items() if k not in ('MCFT_ROOT', 'PYTHONPATH')} | dict(PYTHONPATH=str(site))
    done = subprocess.run([sys.executable, '-P', '-c', HIDE % list(hidden) + code], cwd=cwd, env=env,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_wheel_and_sdist_hold_what_runs(built, settings):
    version = settings['version']
    names = set(zipfile.ZipFile(built/f'mcft-{version}-py3-none-any.whl').namelist())
    with tarfile.open(built/f'mcft-{version}.tar.gz') as t: source = {n.partition('/')[2] for n in t.getnames()}
    modules = {f'mcft/{p.name}' for p in (ROOT/'mcft').iterdir() if p.is_file()}
    files = {str(p.relative_to(ROOT)) for d in ('configs', 'data/paper') for p in (ROOT/d).rglob('*') if p.is_file()}
    info = {n for n in names if n.startswith(f'mcft-{version}.dist-info/')}
    assert names - info == modules | {f'mcft/repo/{f}' for f in files}
    assert modules | files | {'setup.py', 'settings.ini', 'README.md', 'LICENSE', 'CHANGELOG.md',
                              'CITATION.cff'} <= source
    assert not [n for n in source if n.startswith(('tests/', 'runs/')) or '__pycache__' in n]


def test_the_light_install_reads_grades_and_makes_tables(installed, hidden, tmp_path, settings):
    "Without torch and without a clone; and the run folder names the version."
    code = '''
import json, sys
import mcft
from mcft.core import read_rows, start_run, write_rows
from mcft.data import read_table
from mcft.eval import build_tables
from mcft.grading import grade
from mcft.released import paper_rows
from mcft.stats import pass_at_k, wilson
write_rows('rows.jsonl', [dict(text=r'\\\\boxed{0.5}', gold=r'\\\\frac{1}{2}')])
import pandas as pd
pd.DataFrame([dict(question='1 + 1?', answer='2')]).to_parquet('rows.parquet')
row = read_rows('rows.jsonl')[0]
verdict = grade([row['text']], [row['gold']], 'symbolic').symbolic[0]
run = start_run('run', 'mine', dict(a=1), ['rows.jsonl'])
run.finish()
tables = build_tables(RESULTS, 'tables')
print(json.dumps(dict(version=mcft.__version__, verdict=verdict, parquet=read_table('rows.parquet'),
                      interval=wilson(7, 30), files=len(paper_rows('files')), tables=sorted(tables),
                      heavy=[m for m in ('torch', 'transformers', 'datasets', 'openai', 'IPython') if m in sys.modules],
                      at=mcft.__file__)))
'''
    got = json.loads(python(f'RESULTS = {str(ROOT/"data"/"results")!r}\n{code}', installed, tmp_path,
                            hidden).splitlines()[-1])
    assert {'torch', 'transformers', 'trl', 'datasets', 'openai', 'IPython', 'papermill', 'ipykernel',
            'jupyterlab'} <= set(hidden)
    assert got['at'].startswith(str(installed)) and got['version'] == settings['version']
    assert got['verdict'] == 'right' and got['parquet'] == [dict(question='1 + 1?', answer='2')] and got['heavy'] == []
    info = json.loads((tmp_path/'run'/'run.json').read_text())
    assert (info['versions']['mcft'] == settings['version'] and info['commit'] == 'unknown'
            and list(info['inputs']) == ['rows.jsonl'])
    assert (got['tables'] == ['table1', 'table2', 'table_pocket'] and got['files'] > 0
            and 0 < got['interval'][0] < 7/30 < got['interval'][1] < 1)
    assert (tmp_path/'tables'/'table1.csv').read_text() == (ROOT/'data'/'results'/'table1.csv').read_text()


def test_every_module_imports_or_names_what_it_lacks(installed, hidden, tmp_path):
    code = f'''
import importlib
for m in {MODULES}:
    try: print(m, importlib.import_module("mcft." + m).__name__)
    except ModuleNotFoundError as e: print(m, e)
'''
    said = dict(line.split(' ', 1) for line in python(code, installed, tmp_path, hidden).splitlines())
    assert {m for m in MODULES if said[m] == f'mcft.{m}'} == set(LIGHT)
    for m in set(MODULES) - set(LIGHT): assert said[m].startswith('No module named '), said[m]


def imports() -> set:
    "Top-level names of other packages that some line of mcft imports."
    nodes = [n for m in MODULES for n in ast.walk(ast.parse((ROOT/'mcft'/f'{m}.py').read_text(encoding='utf-8')))]
    named = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names} | {n.module for n in nodes
        if isinstance(n, ast.ImportFrom) and not n.level}
    return {n.partition('.')[0] for n in named} - set(sys.stdlib_module_names) - {'mcft'}


def test_every_import_is_of_a_requirement(settings):
    "What mcft imports is in settings.ini, for everyone or in an extra."
    owner = {canonicalize_name(r.name) for k in settings if k.endswith('requirements') and k != 'dev_requirements'
             for r in requirements(settings, k)}
    def known(m):
        return any(canonicalize_name(o) in owner for o in packages_distributions().get(m, [m]))
    assert not [m for m in imports() if not known(m)], 'imported, and no requirement of settings.ini'


def test_windows_itself_is_refused_in_one_sentence():
    done = subprocess.run([sys.executable, '-c', 'import sys; sys.platform = "win32"; import mcft'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode and done.stderr.splitlines()[-1] == (
        'ImportError: mcft runs on Linux, macOS and Windows through WSL, not on Windows itself: run it inside WSL')


def test_dev_is_what_make_venv_installs(settings):
    def extra(name):
        return {Requirement(r.partition(';')[0]).name for r in distribution('mcft').requires
                              if re.search(rf'extra == .{name}\b', r)}
    assert extra('dev') == {r.name for r in requirements(settings, *groups(settings)[1:])}


def test_the_command_names_the_version(installed, settings, tmp_path):
    def say(*args):
        return subprocess.run([sys.executable, '-m', 'mcft', *args], cwd=tmp_path,
                              env={**os.environ, 'PYTHONPATH': str(installed)}, capture_output=True, text=True)
    assert say('--version').stdout == f"mcft {settings['version']}\n"
    assert f"mcft {settings['version']}\n" in say().stdout and 'pandas ' in say().stdout
    wrong = say('--versoin')
    assert wrong.returncode == 2 and "has no '--versoin'" in wrong.stderr


def test_types_travel_with_the_package(installed):
    "The marker is there, and what a script meets first is annotated in full."
    assert (installed/'mcft'/'py.typed').exists()
    first = dict(core=('read_rows', 'write_rows', 'append_rows', 'start_run', 'resolve'),
                 grading=('grade', 'extract_boxed'), released=('paper_rows',), stats=('wilson',))
    for module, names in first.items():
        tree = {n.name: n for n in ast.parse((installed/'mcft'/f'{module}.py').read_text()).body
                if isinstance(n, ast.FunctionDef)}
        for name in names:
            assert tree[name].returns and all(a.annotation for a in tree[name].args.args), f'{module}.{name}'


def test_grading_is_imported_without_what_it_does_not_need(installed):
    "And the time of an import is measured in fresh processes."
    code = ('import sys, mcft.core, mcft.grading; '
            'print(sorted({"torch", "pandas", "numpy", "scipy", "math_verify", "transformers"} & set(sys.modules)))')
    assert packaging.run(sys.executable, '-c', code, cwd=installed, PYTHONPATH=str(installed)).strip() == '[]'
    times = packaging.import_seconds(sys.executable, 'mcft.grading', 2, PYTHONPATH=str(installed))
    assert len(times) == 2 and all(0 < t < 60 for t in times)
    with pytest.raises(RuntimeError, match='imports torch'):
        packaging.import_seconds(sys.executable, 'torch', 1, PYTHONPATH=str(installed))


def test_committed_measurements_keep_their_bounds():
    rows = list(csv.DictReader((ROOT/'data'/'results'/'packaging.csv').open()))
    assert rows and list(rows[0]) == packaging.FIELDS
    for r in rows:
        sign, bound = (r['bound'] or '>= 0').split()
        assert (float(r['value']) >= float(bound)) if sign == '>=' else (float(r['value']) <= float(bound)), r
