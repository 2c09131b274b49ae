"""The page of what comes after critique fine-tuning is what the committed rows give: change a row and this fails."""
import pandas as pd
import pytest

from conftest import ROOT
from mcft.beyond import EXPLORED, PLANNED, BeyondConfig, evaluated, jobs, read_plan, run_beyond
from mcft.compare import contrast_table, load_rows

ROWS, FIGURES = ROOT/'data'/'results', ROOT/'figures'


@pytest.fixture(scope='module')
def rebuilt(tmp_path_factory):
    "The notebook's stage on the committed rows."
    out = tmp_path_factory.mktemp('beyond')
    run_beyond(BeyondConfig('configs/beyond.yaml', str(ROWS), str(out/'figures')), out/'15_beyond')
    return out


@pytest.fixture(scope='module')
def rows(): return load_rows(ROWS/'beyond.parquet')


@pytest.mark.parametrize('name', ['beyond_contrasts.csv', 'beyond_arms.csv', 'beyond_stages.csv'])
def test_committed_tables_are_those_of_the_rows(rebuilt, name):
    assert (rebuilt/'15_beyond'/name).read_text() == (ROWS/name).read_text()


def test_the_page_is_that_of_the_rows(rebuilt):
    assert (rebuilt/'15_beyond'/'found_beyond.md').read_text() == (ROOT/'docs'/'found_beyond.md').read_text()


def test_every_committed_figure_shows_its_rows(rebuilt):
    made, kept = ({p.name for p in d.glob('beyond_*.csv')} for d in (rebuilt/'figures', FIGURES))
    assert made == kept and len(made) >= 2
    for name in made: assert (rebuilt/'figures'/name).read_text() == (FIGURES/name).read_text(), f'{name}: run 15_beyond on data/results and commit figures/'
    for name in made: assert (FIGURES/name).with_suffix('.png').exists() and (FIGURES/name).with_suffix('.svg').exists()


def test_a_changed_row_changes_a_number(rows):
    first = next(p for p in PLANNED if {*p} <= set(rows.arm))
    one = rows.index[rows.arm == first[0]][0]
    changed = rows.assign(right=rows.right.mask(rows.index == one, ~rows.right[one]))
    before, after = (contrast_table(r, (first,)).iloc[0] for r in (rows, changed))
    assert abs(abs(before['diff'] - after['diff'])*before.n_problems*before.n_seeds - 1) < 1e-6


def test_rows_are_those_of_the_config(rows):
    "Every model answered every problem once; what is missing is said on the page."
    plan = read_plan('configs/beyond.yaml')
    planned, have = {(arm, seed) for _, _, arm, seed in evaluated(plan)}, set(rows[['arm', 'seed']].drop_duplicates().itertuples(index=False, name=None))
    assert have <= planned
    assert (f'{len(planned - have)} of its evaluations are still to come' in (ROOT/'docs'/'found_beyond.md').read_text()) == bool(planned - have)
    counts = rows.groupby(['arm', 'seed', 'benchmark']).problem.agg(['size', 'nunique'])
    assert (counts['size'] == counts['nunique']).all() and set(counts['size']) == {plan['eval']['n_problems']}
    assert set(counts.index.get_level_values('benchmark')) == set(plan['eval']['benchmarks'])


def test_every_start_has_the_same_budget():
    "Equal parameters but for the start, the seed and the curves; equal numbers of completions, as the runs counted them."
    plan = read_plan('configs/beyond.yaml')
    own = {'model_dir', 'rollouts', 'seed', 'out_dir', *plan['curves']}
    for kind in ('rollouts', 'dpo', 'grpo'):
        given = [{k: v for k, v in j['params'].items() if k not in own} for name, j in jobs(plan).items() if name.startswith(f'{kind}/')]
        assert len(given) > 1 and all(g == given[0] for g in given)
    assert plan['rollouts']['n_questions'] == plan['grpo']['n_prompts'] and plan['rollouts']['split'] == plan['grpo']['split'] and not plan['grpo'].get('rollouts')
    runs = pd.read_csv(ROWS/'beyond_runs.csv')
    assert set(runs[runs.stage == 'grpo'].samples) == set(runs[runs.stage == 'dpo'].samples) and runs[runs.stage.isin(['dpo', 'grpo'])].samples.nunique() == 1


def test_the_three_starts_have_the_learning_rate_of_the_search():
    from mcft.ablation import best_lr
    best, plan = best_lr(pd.read_csv(ROWS/'ablation_lr.csv')), read_plan('configs/beyond.yaml')
    assert {best[a] for a in plan['starts']} == {plan['train']['lr']}


def test_nothing_planned_is_explored(): assert not {*PLANNED} & {*EXPLORED}


def test_dpo_and_grpo_see_the_same_questions():
    "The first of the split, whatever the seed; none of them is held out or on the dev split."
    from mcft.core import read_rows
    from mcft.data import take_problems
    from mcft.rl import RLConfig, load_prompts
    plan = read_plan('configs/beyond.yaml'); problems = read_rows(plan['rollouts']['problems'], 'problems')
    rollouts = {p['id'] for p in take_problems(problems, plan['rollouts']['split'], plan['rollouts']['n_questions'], 'problems')}
    held_out = {p['id'] for p in problems if p['split'] in (*plan['eval']['benchmarks'], *plan['search']['benchmarks'])}
    given = {k: v for k, v in jobs(plan)['grpo/base-s1']['params'].items() if k in RLConfig.__dataclass_fields__}
    for seed in plan['seeds'][:2]: assert set(load_prompts(RLConfig(**{**given, 'problems': plan['rollouts']['problems'], 'seed': seed}))[0]['group']) == rollouts
    assert not rollouts & held_out


def test_rates_are_the_best_of_the_search():
    "Inside their grids, so that no better one lies just outside; every run had its section's rate."
    from mcft.ablation import best_lr
    plan, rows, runs = read_plan('configs/beyond.yaml'), pd.read_csv(ROWS/'beyond_lr.csv'), pd.read_csv(ROWS/'beyond_runs.csv')
    best = best_lr(rows)
    for section, stage in (('dpo', 'dpo'), ('grpo', 'grpo'), ('midtrain', 'mid')):
        grid = sorted(plan['search']['lr'][section])
        assert grid[0] < best[section] < grid[-1] and set(runs[runs.stage == stage].lr) == {best[section]}
        assert sorted(set(rows[rows.arm == section].lr)) == grid
