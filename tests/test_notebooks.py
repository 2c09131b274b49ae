"""Every notebook by the command the README gives, from the repository root, at its defaults.

Misspelt parameters are refused."""
import subprocess
import sys

import nbformat
import pytest
from click.testing import CliRunner
from papermill.cli import papermill

from conftest import ROOT, notebooks, stages
from mcft.core import check_params, notebook_params, run_notebook
from measure.notebooks import error_lines, long_outputs

STAGES = stages()


@pytest.mark.parametrize('name', notebooks())
def test_runs_from_the_root(name, tmp_path, monkeypatch):
    "The command without a process of its own; the executed copy never goes into nbs/."
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(papermill, [f'nbs/{name}', str(tmp_path/'out.ipynb'), '--no-progress-bar'])
    assert done.exit_code == 0, str(done.exception)[-3000:]
    nb = nbformat.read(tmp_path/'out.ipynb', 4)
    assert all(c.execution_count for c in nb.cells if c.cell_type == 'code'
               and c.source.strip()), f'{name}: a cell was not run'
    assert error_lines(nb) == [] and long_outputs(nb) == [], f'{name}: warnings or logs'


@pytest.mark.parametrize('name', STAGES)
def test_misspelt_parameter_is_refused_before_anything_runs(name, tmp_path):
    right = next(iter(notebook_params(ROOT/'nbs'/name)))
    with pytest.raises(ValueError, match=f"is no parameter of {name}: did you mean '{right}'"):
        run_notebook(ROOT/'nbs'/name, tmp_path/name, {f'{right}x': 1})
    assert not list(tmp_path.iterdir())
    assert check_params(ROOT/'nbs'/name, {right: 1}) == {right: 1}


def test_papermill_alone_refuses_a_misspelt_parameter(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'papermill', 'nbs/03_masking.ipynb', str(tmp_path/'out.ipynb'), '-p',
                           'mask_raet', '0.5'], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0 and "'mask_raet' is no parameter" in done.stderr


def test_an_executed_copy_may_not_lie_among_the_sources():
    with pytest.raises(ValueError, match='write it to runs/'): run_notebook('nbs/lib/01_core.ipynb', 'nbs/copy.ipynb')
