"""Every notebook by the command the README gives, from the repository root, at its defaults.

Misspelt parameters are refused."""
import ast
import subprocess
import sys

import nbformat
import pytest
from click.testing import CliRunner
from papermill.cli import papermill

from conftest import ROOT, cells, notebooks, stages
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


def batteries(cells) -> list:
    "Return the ids of code cells with eight checks or more: asserts and calls of `test_...`."
    def is_check(node):
        return isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                                                and node.func.id.startswith('test_'))
    return [c.id for c in cells if c.cell_type == 'code' and sum(map(is_check, ast.walk(ast.parse(c.source)))) >= 8]


def repeated_ids(cells) -> list:
    "Return the ids that two cells have."
    ids = [c.id for c in cells]
    return sorted({i for i in ids if ids.count(i) > 1})


def test_a_battery_and_a_repeated_id_are_found():
    nb = nbformat.v4
    seven, eight = (nb.new_code_cell('test_eq(1, 1)\n'*n + 'assert True', id=f'c{n}') for n in (6, 7))
    assert batteries([seven, eight, nb.new_markdown_cell('x', id='c0')]) == ['c7']
    assert repeated_ids([seven, eight, eight]) == ['c7']


@pytest.mark.parametrize('name', notebooks())
def test_checks_beside_a_definition_are_few_and_ids_are_unique(name):
    "Batteries stand in tests/; a cell whose id another has is lost when its notebook is exported."
    assert batteries(cells(name)) == [], 'move them to tests/, and keep one case that works and one that fails'
    assert repeated_ids(cells(name)) == []
