"""The try-it notebooks: short, quiet, and run by their own commands on a newcomer's files, model and endpoint."""
import json
import os
import re
import shutil
import subprocess

import nbformat
import pandas as pd
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
    assert error_lines(nb) == [] and long_outputs(nb) == [] and not [o for c in code for o in c.outputs if o.output_type
                                                                     == 'error']
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
        env = {k: v for k, v in os.environ.items() if k != 'MCFT_ROOT'} | dict(PYTHONPATH=str(tmp_path),
            PATH=f'{ROOT}/.venv/bin:{os.environ["PATH"]}') | env
        (tmp_path/'runs').mkdir(exist_ok=True)
        done = subprocess.run(['bash', '-euo', 'pipefail', '-c', command], cwd=tmp_path, env=env, capture_output=True,
                              text=True, timeout=1800)
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
    nb = run(own_command('1_mask_critiques.ipynb').replace('ORG/MODEL', 'data/pocket/base')
             + ' -p steps 2 -p mask_rate 0.5')
    assert (folder/'runs'/'examples'/'1_mask_critiques'/'model.safetensors').exists()
    assert 'title="masked: no label"' in shown(nb, 'text/html')
    assert re.search(r'^8 rows, \d+ tokens of critique, \d+ of '
        r'them masked: (4|5)\d\.\d%', shown(nb), re.M)
    assert re.search(r'^masked +\d\.\d+ +\d\.\d+ ', shown(nb), re.M) and re.search(r'^kept +\d\.\d+ +\d\.\d+ ',
                                                                                   shown(nb), re.M)


def test_its_own_command_grades_own_outputs(clone):
    "Three of four right, of two problems: the shares and pass@k by hand."
    folder, run = clone
    own = [('a', r'\boxed{2}', '2'), ('a', r'\boxed{\frac{4}{2}}', '2'), ('b', r'\boxed{3}', '3'),
           ('b', r'\boxed{4}', '3')]
    (folder/'my_outputs.jsonl').write_text(''.join(json.dumps(dict(problem_id=p, text=t, gold=g)) + '\n' for p, t,
                                                   g in own))
    text = shown(run(own_command('2_grade_outputs.ipynb')))
    assert re.search(r'^strict +100% \[\d+%, 100%\] +50% \[50%, 50%\]', text,
                     re.M) and re.search(r'^symbolic +100% \[\d+%, 100%\] +75% \[50%, 100%\]', text, re.M)
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
    assert "'n_rows': 6" in text and 'asking the address in MCFT_BASE_URL' in text
    assert 'k-own' not in (folder/'runs'/'mine.ipynb').read_text()
    assert {r['teacher'] for r in read_rows(folder/'runs'/'examples'/'3_own_teacher'/'critiques'/'critiques.jsonl',
                                            'critiques')} == {'openai:mine'}


def test_run_all_asks_the_practice_server_and_leaves_none_behind(clone, monkeypatch):
    folder, _ = clone
    monkeypatch.delenv('MCFT_BASE_URL', raising=False)
    monkeypatch.delenv('MCFT_ROOT', raising=False)
    monkeypatch.setenv('PYTHONPATH', str(folder))
    row, nb = run_all(folder/'examples'/'3_own_teacher.ipynb')
    assert row['error_lines'] == 0 and 'asking a practice server' in shown(nb) and "'n_sent': 6" in shown(nb)
    assert not shutil.which('pgrep') or subprocess.run(['pgrep', '-f', f'{folder}/tests/fault_server.py'],
                                                       capture_output=True).returncode == 1


def play(name: str, until: str = '', **params) -> dict:
    """Run an example's code cells in this process with parameters of one's own, up to the cell that holds `until`;
    its variables."""
    scope, code = {}, [c for c in cells(name) if c.cell_type == 'code']
    for cell in code:
        exec(compile(cell.source, name, 'exec'), scope)
        if 'parameters' in cell.metadata.get('tags', []): scope.update(params)
        if until and until in cell.source: break
    return scope


OUTPUTS = [dict(problem_id=1, text=r'\boxed{72}', gold=72),
           dict(problem_id=2, text=r'\boxed{5}', gold='so 2+2=4\n#### 1,000'), dict(problem_id=3, text='', gold=0.5)]


@pytest.mark.parametrize('save', ['jsonl', 'csv', 'parquet', 'json'])
def test_outputs_in_any_table_with_one_sample_a_problem(save, tmp_path, capsys):
    "Numbers as ids and golds, an empty output, GSM8K's gold; k is capped at the samples there are."
    frame = pd.DataFrame([dict(r, gold=str(r['gold'])) for r in OUTPUTS] if save == 'parquet' else OUTPUTS)
    path = tmp_path/f'a.{save}'
    if save == 'jsonl': path.write_text('\n'.join(map(json.dumps, OUTPUTS)), encoding='utf-8-sig')
    elif save == 'json': path.write_text(json.dumps(OUTPUTS, indent=1))
    else: getattr(frame, f'to_{save}')(path, index=False)
    scope = play('2_grade_outputs.ipynb', 'pass@{n}', outputs=str(path), k=4)
    said = capsys.readouterr().out
    assert scope['rows'].gold.tolist() == ['72', '1000', '0.5'] and scope['graded'].symbolic.tolist()[:2] == ['right',
                                                                                                              'wrong']
    assert "k is 4, but problem '1' has 1 sample: pass@1 at most" in said and 'pass@1: 33%' in said
    assert 'pass@2' not in said


@pytest.mark.parametrize('bad, says', [
    (dict(gold=None), "row 1 of a.jsonl: column 'gold' is null"),
    (dict(gold=float('nan')), "row 1 of a.jsonl: column 'gold' is nan"), (dict(gold=['4']), "column 'gold' is a list"),
    (dict(text=None), "row 1 of a.jsonl: column 'text' is null"),
    (dict(problem_id=None), "row 1 of a.jsonl: column 'problem_id' is null"),
    (dict(problem_id=1), "problem '1' has several golds")])
def test_outputs_that_cannot_be_graded_name_row_and_column(bad, says, tmp_path):
    (tmp_path/'a.jsonl').write_text('\n'.join(json.dumps(r) for r in (OUTPUTS[0], OUTPUTS[1] | bad)))
    with pytest.raises(ValueError, match=says):
        play('2_grade_outputs.ipynb', 'several', outputs=str(tmp_path/'a.jsonl'))
    (tmp_path/'b.jsonl').write_text(json.dumps(dict(problem_id=1, answer='72')))
    with pytest.raises(ValueError, match="row 0 of b.jsonl has no column 'text'"):
        play('2_grade_outputs.ipynb', 'several', outputs=str(tmp_path/'b.jsonl'))


def test_rows_to_mask_may_lack_ids_and_hold_numbers(tmp_path):
    row = dict(question='2+2?', rollout='5', critique='It is 4.', reasoning='2+2=4', answer=4.0)
    path, until = tmp_path/'a.jsonl', 'rows[0]'
    path.write_text(json.dumps(row) + '\n\n' + json.dumps(dict(row, answer='x\n#### 5')))
    rows = play('1_mask_critiques.ipynb', until, critiques=str(path))['rows']
    assert [(r['id'], r['answer']) for r in rows] == [('row-0000', '4'), ('row-0001', '5')]
    for bad, says in ((dict(critique=None), "row 1 of .*a.jsonl: column 'critique' is null"),
                      (dict(id='a'), "row 0 of .*a.jsonl has no column 'id'"),
                      (dict(reasoning=' '), "column 'reasoning' is empty")):
        path.write_text(json.dumps(row) + '\n' + json.dumps(row | bad))
        with pytest.raises(ValueError, match=says): play('1_mask_critiques.ipynb', until, critiques=str(path))


@pytest.mark.parametrize('name, wrong', [('1_mask_critiques.ipynb', dict(mask_rate='0.5')),
                                         ('2_grade_outputs.ipynb', dict(k=1.5)), ('3_own_teacher.ipynb',
    dict(confirm='false')), ('3_own_teacher.ipynb', dict(dollars=[1]))])
def test_a_parameter_of_another_kind_is_refused_by_name(name, wrong):
    field, = wrong
    with pytest.raises(ValueError, match=f'^{field} is '): play(name, 'read_params(', **wrong)
