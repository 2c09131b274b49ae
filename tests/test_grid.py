"""A grid from its config: names that are not there, an arm that one line adds, jobs that read what others make."""
import re
import shutil

import pandas as pd
import pytest
import yaml

from conftest import ROOT
from mcft.ablation import KINDS
from mcft.eval import build_tables
from mcft.grid import Arm, arms_of, check_grid, check_rates, comparisons, encoding_of, jobs, label_run, models, overlaid
from mcft.grid import read_grid, run_names, seeds_of, slug
from mcft.report import ReportConfig, run_report

GRIDS = ('pocket', 'ablation', 'ablation_paper', 'beyond', 'paper', 'smoke', 'smoke_ablation', 'factorial',
         'smoke_factorial', 'beyond_techniques')
ROWS = ROOT/'data'/'results'
NEW, LINE = 'mcft 0.20, spans', {'method': 'mcft', 'mask_rate': 0.2, 'mask_unit': 'span', 'lr_from': 'cft'}


def raw(name='pocket'): return yaml.safe_load((ROOT/'configs'/f'{name}.yaml').read_text())


def test_one_line_adds_an_arm(tmp_path):
    "It is trained, pooled, compared and drawn, with no other edit; rows of its runs are stubs."
    config = raw()
    config['arms'][NEW] = LINE
    (tmp_path/'grid.yaml').write_text(yaml.safe_dump(config, sort_keys=False))
    cfg = read_grid(tmp_path/'grid.yaml')

    todo = jobs(cfg, str(tmp_path/'grid.yaml'))
    trained = todo['04_train/mcft-0.20-spans-s1'].params
    assert (trained['mask_unit'], trained['seed']) == ('span', 1)
    assert trained['lr'] == todo['04_train/cft-s1'].params['lr']
    assert 'runs/pocket/05_eval/mcft-0.20-spans-s2' in todo['results'].params['runs_from']
    assert todo['05_eval/mcft-0.20-spans-s2'].record['name'] == NEW

    for name in ('loss_curves.csv', 'funnel.csv'): shutil.copy(ROWS/name, tmp_path)
    runs = pd.read_csv(ROWS/'pocket_runs.csv')
    like = runs[runs.run.isin([f'mcft-0.20-s{s}' for s in cfg['seeds']])]
    stub = like.assign(run=like.run.str.replace('0.20', '0.20-spans'), accuracy=like.accuracy + .1)
    pd.concat([runs, stub]).to_csv(tmp_path/'pocket_runs.csv', index=False)
    build_tables(tmp_path, tmp_path, config=tmp_path/'grid.yaml')
    pooled = pd.read_csv(tmp_path/'table_pocket.csv').set_index(['model', 'benchmark'])
    assert pooled.seeds[NEW, 'chain'] == 3

    out = tmp_path/'out'
    report = ReportConfig(config=tmp_path/'grid.yaml', rows=tmp_path, figures=out/'figures', out_dir=out/'page')
    run_report(report, '06_ablation', KINDS)
    compared = pd.read_csv(out/'page'/'contrasts_pocket.csv').set_index('contrast')
    assert compared.n_seeds[f'{NEW} − base'] == 3
    drawn = pd.read_csv(out/'figures'/'accuracy_by_arm.csv').set_index('arm').accuracy
    assert drawn[NEW] == pytest.approx(drawn['mcft 0.20'] + .1, abs=1e-4)
    assert f'{NEW} − base' in (out/'page'/'findings.md').read_text()


@pytest.mark.parametrize('name', GRIDS)
def test_every_job_reads_what_is_there_or_made(name):
    cfg = read_grid(f'configs/{name}.yaml')
    todo = jobs(cfg)
    made = {f for job in todo.values() for f in job.makes}
    waited = {f for job in todo.values() for f in job.needs if f.startswith(f'{cfg["run_dir"]}/')}
    assert waited <= made
    assert all((ROOT/job.nb).exists() for job in todo.values())
    folders = [job.params['out_dir'] for job in todo.values() if 'out_dir' in job.params]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize('name', GRIDS)
def test_no_job_waits_for_itself(name):
    cfg = read_grid(f'configs/{name}.yaml')
    todo = jobs(cfg)
    maker = {f: job.name for job in todo.values() for f in job.makes}
    depth = {}

    def deep(job):
        if job not in depth:
            depth[job] = None
            depth[job] = 1 + max((deep(maker[f]) for f in todo[job].needs if f in maker), default=0)
        assert depth[job], f'{job} waits for itself'
        return depth[job]

    assert max(map(deep, todo)) < 12


@pytest.mark.parametrize('change, says', [
    (dict(sedes=[1]), "unknown key 'sedes'"),
    (dict(resources={'gpus': 1}), "unknown resource 'gpus' in the config: one of gpu, "),
    (dict(arms={'x': {'mask_rte': 0.2}}), "did you mean 'mask_rate'?"),
    (dict(arms={'x': {'masking': {'contrl': 'verdict'}}}), "did you mean 'control'?"),
    (dict(arms={'x': {'stage': 'train2'}}), "unknown stage 'train2'"),
    (dict(arms={'x': {'model': 'data/pocket/base', 'lr': 1}}),
     "'lr' is a parameter, but an arm with `model` is not trained"),
    (dict(arms={'x': {'method': 'cft', 'lr_from': 'ctf'}}), 'lr_from: ctf names an arm that is not there'),
    (dict(arms={'x': {'stage': 'grpo', 'after': 'y'}}), 'after: y names an arm that is not there'),
    (dict(central=['ctf']), 'central: ctf names an arm that is not there'),
    (dict(dpo={'beat': 1}), "did you mean 'beta'"),
    (dict(lr_rows=''), "arm 'sft' has no learning rate"),
])
def test_a_slip_is_refused_before_anything_runs(change, says):
    cfg = raw()
    if 'arms' in change: change, cfg['report'] = {'arms': {**change['arms']}}, {}
    with pytest.raises(ValueError, match=re.escape(says)): check_grid({**cfg, **change})


def test_arms_that_would_share_a_folder_are_refused():
    cfg = raw()
    with pytest.raises(ValueError, match='would share a folder'):
        check_grid({**cfg, 'arms': {**cfg['arms'], 'CFT': {'method': 'cft'}}})


def test_a_missing_key_or_file_is_named():
    with pytest.raises(ValueError, match='the config lacks arms'): check_grid({k: v for k,
                                                                               v in raw().items() if k != 'arms'})
    with pytest.raises(FileNotFoundError,
                       match='no config at .*: there are ablation.yaml'): read_grid('configs/none.yaml')


def test_numbers_given_on_the_command_line_are_numbers():
    cfg = check_grid({**raw(), 'resources': {'gpu': '2', 'gpu_model': 'a100'}})
    assert cfg['resources'] == {'gpu': 2, 'gpu_model': 'a100'}


def test_an_arm_without_a_rate_stops_the_grid_but_not_its_search():
    cfg = raw()
    cfg['arms']['cft, new'] = {'method': 'cft'}
    cfg = check_grid(cfg)
    with pytest.raises(ValueError, match="no dev scores for arm 'cft, new'.*lr_from"): check_rates(cfg)
    assert [m.lr for m in models(cfg, 'lr') if m.arm.name == 'cft, new'] == cfg['lr_grid']


def test_rates_come_from_the_rows_unless_the_config_says_otherwise(tmp_path):
    rows = pd.DataFrame(dict(arm=['dpo', 'dpo', 'grpo'], lr=[.1, .2, .3], benchmark='dev', accuracy=[.5, .6, .1]))
    rows.to_csv(tmp_path/'lr.csv')
    cfg = read_grid('configs/beyond.yaml') | dict(lr_rows=str(tmp_path/'lr.csv'))
    todo = jobs(cfg)
    assert (todo['dpo/sft-s0'].params['lr'], todo['grpo/base-s0'].params['lr']) == (.2, .3)
    assert jobs({**cfg, 'dpo': {**cfg['dpo'], 'lr': .7}})['dpo/sft-s0'].params['lr'] == .7
    assert 'lr' not in jobs({**cfg, 'lr_rows': str(tmp_path/'none.csv')})['dpo/sft-s0'].params


def test_few_seeds_and_snapshots():
    cfg = read_grid('configs/ablation.yaml')
    assert seeds_of(cfg, 'mcft 0.90') == cfg['seeds'][:cfg['few_seeds']] and seeds_of(cfg, 'cft') == cfg['seeds']
    todo = jobs(cfg)
    assert todo['04_train/cft-s0'].params['snapshot_steps'] == cfg['snapshots']['steps']
    assert 'snapshot_steps' not in todo['04_train/mcft-0.90-s0'].params
    assert todo['05_eval/cft-s0@step-30'].params['n_problems'] == cfg['snapshots']['n_problems']


def test_an_overlay_replaces_merges_and_removes():
    cfg = read_grid('configs/ablation_paper.yaml')
    assert cfg['arms']['those questions alone, 10%']['n_examples'] == 89
    assert 'batch_size' not in cfg['arms']['those questions alone, 10%'] and not cfg['pilot']
    assert overlaid(dict(a=[1], b=dict(c=1)), dict(a=[2], b=dict(d=2))) == dict(a=[2], b=dict(c=1, d=2))


def test_several_prompts_make_several_evaluations():
    cfg = check_grid({**raw(), 'prompts': {'bare': {}, 'asked': {'instruction': 'Box it.'}}})
    found = models(cfg)
    assert len(found) == 2*len(models(read_grid('configs/pocket.yaml')))
    todo = jobs(cfg)
    assert todo['05_eval/cft-s0@asked'].params['instruction'] == 'Box it.'
    assert len([n for n in todo if n.startswith('04_train/cft-s0')]) == 1


@pytest.mark.parametrize('name', GRIDS)
def test_a_search_and_a_pilot_see_the_dev_split_alone(name):
    cfg = read_grid(f'configs/{name}.yaml')
    todo = jobs(cfg)
    for m in [*models(cfg, 'lr'), *models(cfg, 'pilot')]:
        params = todo[m.score].params
        assert {k: params[k] for k in cfg['eval_dev']} == cfg['eval_dev']


def test_an_arm_looks_like_its_method_or_its_initial_checkpoint():
    arms = arms_of(read_grid('configs/beyond.yaml'))
    assert arms['cft, then GRPO'].look == arms['cft'].look != arms['sft, then GRPO'].look
    arms = arms_of(read_grid('configs/ablation.yaml'))
    assert not arms['cft + 30% questions'].look['filled'] and arms['cft, other question'].look == arms['cft'].look
    assert arms['those questions alone, 30%'].look == dict(color=4, mark='^', filled=False)


def test_names_are_folders_and_folders_are_arms():
    assert slug('mcft 0.20 + 30% questions') == 'mcft-0.20-30-questions'
    names = run_names(read_grid('configs/pocket.yaml'))
    assert names['base'] == 'base' and names['cft-30-questions-s0'] == 'cft + 30% questions'
    arm = Arm('x', masking=dict(layouts=['comment', 'question'], solutions='data/x.jsonl'))
    assert encoding_of(arm) == '03_masking-comment-question'


def test_an_arm_that_no_pair_names_is_compared_with_its_initial_checkpoint():
    cfg = read_grid('configs/beyond.yaml')
    assert comparisons(cfg)['explored'] == comparisons({**cfg, 'arms': cfg['arms']})['explored']
    more = {**cfg, 'arms': {**cfg['arms'], 'cft again, then DPO': {'stage': 'dpo', 'after': 'cft'}}}
    assert comparisons(more)['explored'][-1] == ('cft again, then DPO', 'cft')


def test_a_record_changes_no_key(tmp_path):
    (tmp_path/'run.json').write_text('{"key": "1", "params": {}}')
    label_run(tmp_path, dict(name='cft'))
    before = (tmp_path/'run.json').stat().st_mtime_ns
    label_run(tmp_path, dict(name='cft'))
    assert (tmp_path/'run.json').stat().st_mtime_ns == before
    assert yaml.safe_load((tmp_path/'run.json').read_text()) == {'key': '1', 'params': {}, 'arm': {'name': 'cft'}}
