"""The paper's run at toy size: every key of its config is rehearsed, and the whole of it runs where it is asked for."""

import pandas as pd
import pytest
import yaml

from conftest import ROOT
from mcft.grid import jobs, read_grid
from measure import where
from measure.rows import read, write

TOP = ('data', 'critique', 'masking', 'train', 'eval', 'resources', 'report')  # sections with keys of their own


def keys(name: str) -> set:
    "Keys of a config, those of a section with its name."
    cfg = yaml.safe_load((ROOT / f'configs/{name}.yaml').read_text(encoding='utf-8'))
    return {*cfg, *(f'{s}.{k}' for s in TOP for k in cfg.get(s) or {}), *(f'arms.{a}' for a in cfg['arms'])}


def test_every_key_of_the_paper_is_rehearsed():
    assert keys('paper') <= keys('paper_mini'), sorted(keys('paper') - keys('paper_mini'))


@pytest.mark.parametrize('name', ['paper', 'ablation_paper'])
def test_every_model_from_the_hub_is_pinned(name):
    of_hub = 0
    for job in jobs(read_grid(f'configs/{name}.yaml')).values():
        model = job.params.get('model_dir', '')
        if '/' not in model or model.startswith('runs/'):
            continue
        told = job.params.get('backend_options', job.params)
        assert len(told['revision']) == 40, job.name
        of_hub += 1
    assert of_hub > 3


def test_what_has_not_run_is_missing_and_what_has_keeps_its_row(tmp_path):
    sharded = 'ZeRO-3 by accelerate on GPUs'
    write('where_run', [dict(part=sharded, version='deepspeed 1', machine='a', date='b', test='c')], tmp_path)
    where.main([sharded, 'FSDP2 by accelerate on GPUs', '--out', str(tmp_path)])
    rows = {r['part']: r for r in read('where_run', tmp_path)}
    assert list(rows) == list(where.PARTS)
    assert rows[sharded]['version'] == 'deepspeed 1'
    assert rows['FSDP2 by accelerate on GPUs']['version'] == 'missing'
    for _, test in where.PARTS.values():
        assert not test or (ROOT / test.split()[0]).exists(), test


def test_the_rehearsal_goes_from_problems_to_tables():
    import rehearse

    cpu = rehearse.rehearse()
    results = ROOT / rehearse.RUN / 'results'
    for name in ('table1', 'table2'):
        rows = pd.read_csv(results / f'{name}.csv')
        assert {*rows.source} == {'paper', 'released', 'rehearsal'}
    own = pd.read_csv(results / 'table_rehearsal.csv')
    assert own[own.model == 'base'].correct.sum() > 0, 'the student gets some answers right'
    assert {'base', 'R1', 'sft', 'cft', 'mcft 0.15', 'mcft 0.20'} == {*own.model}
    made = [p.name for p in (ROOT / rehearse.RUN).rglob('*') if p.is_file() and 'pocket' in p.name]
    assert not made, made
    assert cpu < 2 * 480, 'eight minutes of two cores'
