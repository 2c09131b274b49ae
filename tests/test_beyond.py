"""What comes after critique fine-tuning: equal budgets, rates inside their grids, rows of every model."""
import pandas as pd
import pytest

from conftest import ROOT
from mcft.compare import load_rows
from mcft.core import read_rows
from mcft.grid import arms_of, best_lr, comparisons, jobs, models, read_grid

ROWS = ROOT/'data'/'results'
OWN = {'model_dir', 'rollouts', 'seed', 'out_dir'}  # parameters in which equal jobs may differ


@pytest.fixture(scope='module')
def cfg(): return read_grid('configs/beyond.yaml')


def test_rows_are_those_of_the_config(cfg):
    "Every model answered every problem once; what is missing is said on the page."
    rows = load_rows(ROWS/'beyond.parquet')
    planned = {(m.arm.name, m.seed) for m in models(cfg)}
    have = set(rows[['arm', 'seed']].drop_duplicates().itertuples(index=False, name=None))
    assert have <= planned
    missing = len(planned - have)
    page = (ROOT/'docs'/'found_beyond.md').read_text()
    assert (f'{missing} of its evaluations are still to come' in page) == bool(missing)
    counts = rows.groupby(['arm', 'seed', 'benchmark']).problem.agg(['size', 'nunique'])
    assert (counts['size'] == counts['nunique']).all() and set(counts['size']) == {cfg['eval']['n_problems']}
    assert set(counts.index.get_level_values('benchmark')) == set(cfg['eval']['benchmarks'])


def test_every_initial_checkpoint_has_the_same_budget(cfg):
    "Equal parameters but for the model, the seed and the curves; equal numbers of completions, as counted."
    curves = arms_of(cfg)['base, then GRPO'].first_seed
    for section in ('rollouts', 'dpo', 'grpo'):
        of = [j.params for j in jobs(cfg).values() if j.section == section and j.name.startswith(f'{section}/')]
        given = [{k: v for k, v in p.items() if k not in OWN | set(curves)} for p in of]
        assert len(given) > 1 and all(g == given[0] for g in given)
    rollouts, grpo = cfg['rollouts'], cfg['grpo']
    assert (rollouts['n_questions'], rollouts['split']) == (grpo['n_prompts'], grpo['split'])
    assert not grpo.get('rollouts')
    runs = pd.read_csv(ROWS/'beyond_runs.csv')
    assert runs[runs.stage.isin(['dpo', 'grpo'])].groupby('stage').samples.unique().map(tuple).nunique() == 1


def test_the_arms_have_the_learning_rate_of_their_search(cfg):
    best = best_lr(pd.read_csv(ROWS/'ablation_lr.csv'))
    fine_tuned = [a for a in arms_of(cfg).values() if a.stage == 'train' and not a.after]
    assert {best[a.name] for a in fine_tuned} == {cfg['train']['lr']}


def test_nothing_planned_is_explored(cfg):
    asked = comparisons(cfg)
    assert not {*asked['planned']} & {*asked['explored']}


def test_dpo_and_grpo_see_the_same_questions(cfg):
    "The first of the split, whatever the seed; none of them is held out or on the dev split."
    from mcft.data import take_problems
    from mcft.rl import RLConfig, load_prompts
    source = cfg['rollouts']
    problems = read_rows(source['problems'], 'problems')
    rollouts = {p['id'] for p in take_problems(problems, source['split'], source['n_questions'], 'problems')}
    held_out = {p['id'] for p in problems if p['split'] in (*cfg['eval']['benchmarks'], *cfg['eval_dev']['benchmarks'])}
    params = jobs(cfg)['grpo/base-s1'].params
    given = {k: v for k, v in params.items() if k in RLConfig.__dataclass_fields__} | dict(problems=source['problems'])
    for seed in cfg['seeds'][:2]:
        prompts = load_prompts(RLConfig(**{**given, 'seed': seed}))[0]
        assert set(prompts['group']) == rollouts
    assert not rollouts & held_out


def test_rates_are_the_best_of_the_search(cfg):
    "Inside their grids, so that no better one lies just outside; every run had the rate of its stage."
    rows, runs = pd.read_csv(ROWS/'beyond_lr.csv'), pd.read_csv(ROWS/'beyond_runs.csv')
    best, arms = best_lr(rows), arms_of(cfg)
    for name, searched in arms_of(cfg, cfg['search']['arms']).items():
        if not searched.stage: continue
        grid = sorted(searched.lr_grid)
        of = runs[[arms[a].lr_from == name for a in runs.arm]]
        assert grid[0] < best[name] < grid[-1] and set(of.lr) == {best[name]}
        assert sorted(set(rows[rows.arm == name].lr)) == grid


def test_the_starts_are_the_models_of_the_long_grid(cfg):
    "The page says so: the same verdicts, problem by problem."
    old, new = (load_rows(ROWS/f'{name}.parquet') for name in ('ablation', 'beyond'))
    key = ['arm', 'seed', 'benchmark', 'problem']
    both = new.merge(old[old.step == 0], on=key, suffixes=('', '_old'))
    assert set(both.arm) == {'base', 'sft', 'cft', 'mcft 0.20'} and (both.right == both.right_old).all()
    assert len(both) == len(new[new.arm.isin(both.arm)])
