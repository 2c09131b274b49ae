"""Every notebook by the command the README gives, from the repository root, at its defaults (08 in a smaller size).

Misspelt parameters are refused."""
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

from conftest import ROOT, notebooks, stages
from mcft.core import check_params, notebook_params, run_notebook
from measure.notebooks import error_lines, long_outputs

STAGES = stages()
# minutes at its defaults, which nbdev_test runs
SMALLER = {'09_rl.ipynb': ('-p', 'n_steps', '4', '-p', 'eval_problems', '4')}


def papermill(name, out, *args):
    "The executed copy goes to `out`, never into nbs/."
    return subprocess.run([sys.executable, '-m', 'papermill', f'nbs/{name}', str(out), '--no-progress-bar', *args],
                          cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope='module')
def runs(request, tmp_path_factory):
    "The selected notebooks, two at a time: name -> running papermill."
    folder = tmp_path_factory.mktemp('executed')
    names = [i.callspec.params['executed'] for i in request.session.items
             if 'executed' in getattr(getattr(i, 'callspec', None), 'params', {})]
    with ThreadPoolExecutor(int(os.environ.get('TEST_WORKERS', 2))) as pool:
        out = {n: folder/n.replace('/', '-') for n in names}
        yield {n: (out[n], pool.submit(papermill, n, out[n], *SMALLER.get(n, ()))) for n in names}


@pytest.mark.parametrize('executed', notebooks())
def test_runs_from_the_root(runs, executed):
    path, run = runs[executed]
    done = run.result()
    assert done.returncode == 0, done.stderr[-3000:]
    nb = nbformat.read(path, 4)
    assert all(c.execution_count for c in nb.cells if c.cell_type == 'code'
               and c.source.strip()), f'{executed}: a cell was not run'
    assert error_lines(nb) == [] and long_outputs(nb) == [], f'{executed}: warnings or logs'


@pytest.mark.parametrize('name', STAGES)
def test_misspelt_parameter_is_refused_before_anything_runs(name, tmp_path):
    right = next(iter(notebook_params(ROOT/'nbs'/name)))
    with pytest.raises(ValueError, match=f"is no parameter of {name}: did you mean '{right}'"):
        run_notebook(ROOT/'nbs'/name, tmp_path/name, {f'{right}x': 1})
    assert not list(tmp_path.iterdir())
    assert check_params(ROOT/'nbs'/name, {right: 1}) == {right: 1}


def test_papermill_alone_refuses_a_misspelt_parameter(tmp_path):
    done = papermill('03_masking.ipynb', tmp_path/'out.ipynb', '-p', 'mask_raet', '0.5')
    assert done.returncode != 0 and "'mask_raet' is no parameter" in done.stderr


def test_an_executed_copy_may_not_lie_among_the_sources():
    with pytest.raises(ValueError, match='write it to runs/'): run_notebook('nbs/lib/01_core.ipynb', 'nbs/copy.ipynb')
