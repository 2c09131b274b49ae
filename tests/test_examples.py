"""The try-it notebooks: short, quiet, and run by the very command that each of them shows, on a newcomer's own files, model and endpoint."""
import json
import os
import re
import shutil
import subprocess

import nbformat
import pytest

from conftest import ROOT
from fault_server import FaultServer
from mcft.core import read_rows
from measure.notebooks import error_lines, long_outputs, run_all
from test_setup import copy_to

EXAMPLES = sorted(p.name for p in (ROOT/'examples').glob('*.ipynb'))


def cells(name: str) -> list:
    return nbformat.read(ROOT/'examples'/name, 4).cells


@pytest.mark.parametrize('name', EXAMPLES)
def test_short_and_quiet_with_its_outputs(name):
    nb = nbformat.read(ROOT/'examples'/name, 4)
    code = [c for c in nb.cells if c.cell_type == 'code']
    assert len(nb.cells) < 15 and re.match(r'# .+\n\n> .+', nb.cells[0].source)
    assert error_lines(nb) == [] and long_outputs(nb) == [] and not [o for c in code for o in c.outputs if o.output_type == 'error']
    assert code[-1].outputs, f'{name} shows no result: run it and commit what it shows'
    assert nb.metadata.kernelspec.name == 'python3' and all(set(c.metadata) <= {'tags'} for c in nb.cells)
    assert not [c.id for c in code if c.execution_count], 'run nbdev_clean --fname examples'


def own_command(name: str) -> str:
    "The papermill command that the notebook shows."
    text = '\n'.join(c.source for c in cells(name) if c.cell_type == 'markdown')
    command, = re.findall(rf'`((?:MCFT_BASE_URL=\S+ )?papermill examples/{name} [^`]+)`', text)
    return ' '.join(command.split())


@pytest.fixture
def clone(tmp_path):
    "A clean clone, and how to run a command in it."
    copy_to(tmp_path)

    def run(command, **env):
        env = {k: v for k, v in os.environ.items() if k != 'MCFT_ROOT'} | dict(PYTHONPATH=str(tmp_path), PATH=f'{ROOT}/.venv/bin:{os.environ["PATH"]}') | env
        (tmp_path/'runs').mkdir(exist_ok=True)
        done = subprocess.run(['bash', '-euo', 'pipefail', '-c', command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]
        nb = nbformat.read(tmp_path/'runs'/'mine.ipynb', 4)
        assert error_lines(nb) == []
        return nb
    return tmp_path, run


def shown(nb, kind='text/plain') -> str:
    "All that the notebook shows."
    return '\n'.join(o.get('text') or o.get('data', {}).get(kind, '') for c in nb.cells for o in c.get('outputs', []))


def test_its_own_command_masks_own_rows(clone):
    "Six fields of text are enough; the model is saved, and the mask view is drawn."
    folder, run = clone
    fields = 'id question rollout critique reasoning answer'.split()
    rows = [r for r in read_rows('data/pocket/critiques.jsonl') if r['status'] == 'kept'][:8]
    (folder/'my_rows.jsonl').write_text(''.join(json.dumps({k: r[k] for k in fields}) + '\n' for r in rows))
    nb = run(own_command('1_mask_critiques.ipynb').replace('ORG/MODEL', 'data/pocket/base') + ' -p steps 2 -p mask_rate 0.5')
    assert (folder/'runs'/'examples'/'1_mask_critiques'/'model.safetensors').exists()
    assert 'title="masked: no loss"' in shown(nb, 'text/html') and re.search(r'^8 rows, \d+ tokens of critique, \d+ of them masked: (4|5)\d\.\d%', shown(nb), re.M)
    assert re.search(r'^masked +\d\.\d+ +\d\.\d+ ', shown(nb), re.M) and re.search(r'^kept +\d\.\d+ +\d\.\d+ ', shown(nb), re.M)


def test_its_own_command_grades_own_outputs(clone):
    "Three of four right, of two problems: the shares and pass@k by hand."
    folder, run = clone
    own = [('a', r'\boxed{2}', '2'), ('a', r'\boxed{\frac{4}{2}}', '2'), ('b', r'\boxed{3}', '3'), ('b', r'\boxed{4}', '3')]
    (folder/'my_outputs.jsonl').write_text(''.join(json.dumps(dict(problem_id=p, text=t, gold=g)) + '\n' for p, t, g in own))
    text = shown(run(own_command('2_grade_outputs.ipynb')))
    assert re.search(r'^strict +100% \[\d+%, 100%\] +50% \[50%, 50%\]', text, re.M) and re.search(r'^symbolic +100% \[\d+%, 100%\] +75% \[50%, 100%\]', text, re.M)
    assert 'pass@1: 75% [50%, 100%], 2 problems' in text and 'pass@2: 100% [100%, 100%], 2 problems' in text
    assert 'equal value in another form' in text


def test_its_own_command_asks_the_endpoint_that_the_variable_names(clone):
    "Each solution is asked for once, with the key; without `confirm` nothing is."
    folder, run = clone
    command = own_command('3_own_teacher.ipynb').replace('NAME', 'mine').replace('https://HOST/v1', '"$URL"')
    with FaultServer(key='k-own') as server:
        with pytest.raises(AssertionError, match='nothing was sent'): run(command, URL=server.url, MY_KEY='k-own')
        assert server.counts()['seen'] == {}
        text = shown(run(command + ' -p confirm True', URL=server.url, MY_KEY='k-own'))
        assert sum(server.counts()['seen'].values()) == 6
    assert "'n_rows': 6" in text and 'asking the address in MCFT_BASE_URL' in text and 'k-own' not in (folder/'runs'/'mine.ipynb').read_text()
    assert {r['teacher'] for r in read_rows(folder/'runs'/'examples'/'3_own_teacher'/'critiques'/'critiques.jsonl', 'critiques')} == {'openai:mine'}


def test_run_all_asks_the_practice_server_and_leaves_none_behind(clone, monkeypatch):
    folder, _ = clone
    monkeypatch.delenv('MCFT_BASE_URL', raising=False)
    monkeypatch.delenv('MCFT_ROOT', raising=False)
    monkeypatch.setenv('PYTHONPATH', str(folder))
    row, nb = run_all(folder/'examples'/'3_own_teacher.ipynb')
    assert row['error_lines'] == 0 and 'asking a practice server' in shown(nb) and "'n_sent': 6" in shown(nb)
    assert not shutil.which('pgrep') or subprocess.run(['pgrep', '-f', f'{folder}/tests/fault_server.py'], capture_output=True).returncode == 1
