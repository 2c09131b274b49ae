"""Techniques of GRPO, a rate for each initial checkpoint, orders of stages: the plan and the config say the same."""
import re

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from mcft.beyond import KINDS
from mcft.compare import difference, load_rows, save_rows
from mcft.core import run_info
from mcft.grid import arms_of, check_grid, jobs, load_yaml, models, names_in, read_grid, run_job, slug
from mcft.report import Evidence, fill_page
from mcft.stats import crossed, crossed_mdd

ROWS, CONFIG = ROOT/'data'/'results', 'configs/beyond_techniques.yaml'
PLAN = (ROOT/'docs'/'pages'/'plan_techniques.md').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def cfg(): return read_grid(CONFIG)


def test_problems_and_seeds_are_new(cfg):
    "No pocket grid has looked at these problems, or trained with these seeds."
    own = range(cfg['eval']['skip_problems'], cfg['eval']['skip_problems'] + cfg['eval']['n_problems'])
    for name in ('pocket', 'ablation', 'beyond', 'factorial'):
        other = read_grid(f'configs/{name}.yaml')
        first = other['eval'].get('skip_problems', 0)
        assert first + other['eval']['n_problems'] <= own[0]
        assert not {*cfg['seeds'], cfg['search']['seed']} & {*other['seeds'], other['search'].get('seed')}
    assert f'numbers {own[0] + 1} to {own[-1] + 1:,}' in PLAN


def test_each_technique_is_one_change(cfg):
    "All have the budget and the rate of plain GRPO; those that choose prompts read all draws of the base."
    todo, arms = jobs(cfg), arms_of(cfg)
    plain = todo['grpo/base-then-grpo-s30'].params
    own = {'max_length_cv': 'rollouts', 'filter': '', 'oversample': 'rollouts', 'temperature_end': ''}
    for name in (a for a in cfg['arms'] if a.startswith('GRPO, ') and arms[a].after == 'base'):
        given, changed = todo[f'grpo/{slug(name)}-s30'].params, arms[name].params
        assert arms[name].lr_from == arms['base, then GRPO'].lr_from
        reads = any(own.get(k) for k in changed)
        assert given.get('rollouts', '').endswith('rollouts/base-s30/draws.jsonl') == reads
        apart = {k for k in given if given[k] != plain.get(k)} - {'out_dir', 'rollouts'}
        assert apart == set(changed) and apart & set(own)
    drawn = cfg['rollouts']['n_questions']*cfg['rollouts']['n_samples']
    assert drawn == cfg['grpo']['n_steps']*cfg['grpo']['prompts_per_step']*cfg['grpo']['num_generations']


def test_each_initial_checkpoint_has_a_search(cfg):
    "It starts from a checkpoint of its kind that was trained with the search's seed."
    todo, searched = jobs(cfg), arms_of(cfg, cfg['search']['arms'])
    for m in models(cfg, 'lr'):
        if not m.lr: continue
        before = searched[m.arm.after]
        assert todo[m.job].params['model_dir'].endswith(f'-s{cfg["search"]["seed"]}' if before.stage else before.model)
    for arm in arms_of(cfg).values():
        if arm.stage in ('dpo', 'grpo'): assert searched[arm.lr_from].stage == arm.stage


def test_a_search_does_not_start_from_an_arm_without_a_rate(cfg):
    one = {'sft': {'stage': 'grpo', 'after': 'base'}, 'x': {'stage': 'grpo', 'after': 'sft', 'lr_grid': [.1]}}
    with pytest.raises(ValueError, match="others start from 'sft', which has no learning rate"):
        models({**cfg, 'search': {'arms': one}}, 'lr')


def test_the_plan_says_what_is_compared_and_seen(cfg):
    assert f"all {len(cfg['report']['compare']['planned'])} are corrected together" in PLAN
    trained = [m for m in models(cfg) if m.job]
    assert f"{len({m.arm.name for m in trained})} arms, {len(trained)} trained models" in PLAN
    assert f'{len(jobs(cfg))} jobs' in PLAN
    rows, n = load_rows(ROWS/'beyond.parquet'), len(cfg['eval']['benchmarks'])*cfg['eval']['n_problems']
    said = re.findall(r'^- `(.+)` − `(.+)` \(for [\d–]+\): ([\d.]+)$', PLAN, flags=re.M)
    assert len(said) == 9
    for first, second, points in said:
        c = crossed(difference(rows, first, second))
        mdd = crossed_mdd(n, len(cfg['seeds']), c['var_problem'], c['var_seed'], c['var_rest'])
        assert f'{100*mdd:.1f}' == points, (first, second)


def test_the_page_reads_the_rows(cfg, tmp_path):
    "From made-up rows in which `sft` stands highest and rollout DPO lowers what was there before it."
    rng, frames = np.random.default_rng(0), []
    best = {'sft': .9, '+ fine-tuning': .8, '+ rollout DPO': .4}
    for m in models(cfg):
        right = rng.random(40) < best.get(m.arm.name, .6)
        frames.append(pd.DataFrame(dict(
            arm=m.arm.name, seed=np.int16(m.seed), step=np.int16(0), benchmark=['chain']*20 + ['gcd']*20,
            problem=[f'p{i}' for i in range(40)], right=right, boxed=True, critique=False, cut_off=False,
            n_tok=np.int32(40))))
    save_rows(frames, tmp_path/'beyond_techniques.parquet')
    runs = [dict(arm=m.arm.name, seed=m.seed, stage=m.arm.stage, lr=1e-4, updates=20, pairs=None, samples=1280,
                 sampling_seconds=None, seconds=80) for m in models(cfg) if m.job]
    pd.DataFrame(runs).to_csv(tmp_path/'beyond_techniques_runs.csv', index=False)
    scores = [dict(arm=m.arm.name, lr=m.lr, benchmark='dev_gcd', accuracy=m.lr or 0) for m in models(cfg, 'lr')]
    pd.DataFrame(scores).to_csv(tmp_path/'lr.csv', index=False)
    e = Evidence({**cfg, 'lr_rows': str(tmp_path/'lr.csv')}, tmp_path)
    page = fill_page(cfg['report']['page']['from'], e, KINDS.names(e))
    assert '**No continuation ends above plain `sft`**' in page
    assert 'rollout DPO lowers what the stage before it had reached' in page
    assert 'grpo after base 0.0003' in page and 'not measured yet' not in page and 'still to come' not in page
    assert len(KINDS.tables['by_benchmark'](e)) == 3*len({*map(str, sum(cfg['report']['compare'].values(), []))})
    assert {*names_in(cfg['report']['compare']['planned'])} <= {*cfg['arms']}


def test_committed_rows_are_those_of_the_config(cfg):
    if not (ROWS/cfg['report']['rows']).exists(): pytest.skip('no run of this grid has ended')
    rows = load_rows(ROWS/cfg['report']['rows'])
    assert set(rows[['arm', 'seed']].drop_duplicates().itertuples(index=False, name=None)) == {
        (m.arm.name, m.seed) for m in models(cfg)}


def test_a_small_run_of_all_three_techniques(tmp_path):
    "Draws of the base, then GRPO that chooses prompts, weighs samples and cools down."
    small = load_yaml(CONFIG) | dict(run_dir=str(tmp_path))
    small |= dict(rollouts=dict(n_questions=12, n_samples=4, max_new_tokens=96), lr=1e-4,
                  grpo=dict(n_prompts=12, n_steps=2, prompts_per_step=4, num_generations=4, batch_size=16,
                            max_new_tokens=96))
    todo = jobs(check_grid(small))
    for name in ('rollouts/base-s30', 'grpo/grpo-all-three-s30'): run_job(todo[name], str(tmp_path))
    info = run_info(tmp_path/'grpo'/'grpo-all-three-s30')
    assert 0 < info['n_prompts'] == info['n_even'] < info['n_problems'] == 12
    log = pd.read_json(tmp_path/'grpo'/'grpo-all-three-s30'/'train_log.jsonl', lines=True)
    assert list(log.temperature) == pytest.approx([1., .6]) and (log.kept < 1).all()
