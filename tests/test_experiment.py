"""The page of the experiment, its tables and figures are what the committed rows give: change a row and this fails."""
import pandas as pd
import pytest
import yaml

from conftest import ROOT
from mcft.ablation import read_config
from mcft.compare import contrast_table, load_rows
from mcft.experiment import EQUAL, EXPLORED, ExperimentConfig, PLANNED, missing_runs, planned_runs, run_experiment, world_checks

ROWS, FIGURES = ROOT/'data'/'results', ROOT/'figures'


@pytest.fixture(scope='module')
def rebuilt(tmp_path_factory):
    "The experiment's notebook on the committed rows."
    out = tmp_path_factory.mktemp('experiment')
    run_experiment(ExperimentConfig('configs/ablation.yaml', str(ROWS), str(ROWS/'pilot.parquet'), str(out/'figures')), out/'13_experiment')
    return out


@pytest.fixture(scope='module')
def rows(): return load_rows(ROWS/'ablation.parquet')


@pytest.mark.parametrize('name', ['contrasts.csv', 'ablation_arms.csv', 'power.csv'])
def test_committed_tables_are_those_of_the_rows(rebuilt, name):
    assert (rebuilt/'13_experiment'/name).read_text() == (ROWS/name).read_text()


def test_the_page_is_that_of_the_rows(rebuilt):
    assert (rebuilt/'13_experiment'/'found.md').read_text() == (ROOT/'docs'/'found.md').read_text()


def test_every_committed_figure_shows_its_rows(rebuilt):
    made, kept = ({p.name for p in d.glob('ablation_*.csv')} for d in (rebuilt/'figures', FIGURES))
    assert made == kept and len(made) >= 5
    for name in made: assert (rebuilt/'figures'/name).read_text() == (FIGURES/name).read_text(), f'{name}: run 13_experiment on data/results and commit figures/'
    for name in made: assert (FIGURES/name).with_suffix('.png').exists() and (FIGURES/name).with_suffix('.svg').exists()


def test_a_changed_row_changes_a_number(rows):
    pairs = (PLANNED[0],)
    shared = set.intersection(*(set(rows[(rows.arm == a) & (rows.step == 0)].seed) for a in pairs[0]))
    one = rows.index[(rows.arm == pairs[0][0]) & (rows.step == 0) & (rows.seed == min(shared))][0]
    changed = rows.assign(right=rows.right.mask(rows.index == one, ~rows.right[one]))
    before, after = (contrast_table(r, pairs, (), ()).iloc[0] for r in (rows, changed))
    assert abs(abs(before['diff'] - after['diff'])*before.n_problems*before.n_seeds - 1) < 1e-6


def test_rows_are_those_of_the_config(rows):
    "Every run of the grid, and every copy on the way, answered every problem once; what is missing is said on the page."
    cfg = read_config('configs/ablation.yaml')
    missing = missing_runs(cfg, rows)
    assert {k for k in rows[['arm', 'seed', 'step']].drop_duplicates().itertuples(index=False, name=None)} <= {tuple(k) for _, *k in planned_runs(cfg)}
    assert (f'{len(missing)} of its evaluations are still to come' in (ROOT/'docs'/'found.md').read_text()) == bool(missing)
    counts = rows.groupby(['arm', 'seed', 'step', 'benchmark']).problem.agg(['size', 'nunique'])
    assert (counts['size'] == counts['nunique']).all()
    full = counts[counts.index.get_level_values('step') == 0]
    assert set(full['size']) == {cfg['eval']['n_problems']} and set(full.index.get_level_values('benchmark')) == set(cfg['eval']['benchmarks'])
    assert (ROWS/'ablation.parquet').stat().st_size < 20e6


def test_no_problem_of_the_pilot_is_one_of_the_grid(rows):
    pilot = load_rows(ROWS/'pilot.parquet')
    assert all(b.startswith('dev_') for b in pilot.benchmark.unique()) and not any(b.startswith('dev_') for b in rows.benchmark.unique())
    assert not set(pilot.seed) - {-1} & set(rows.seed)


def test_the_world_is_worth_measuring_in(rows):
    "Base in the middle, format kept, and an effect that must be there is found."
    checks = world_checks(pd.read_csv(ROWS/'ablation_lr.csv'))
    assert checks.ok.all(), checks
    known = contrast_table(rows, PLANNED, EQUAL, EXPLORED)
    assert known.set_index('contrast').reading['sft − sft, a sixth of the examples'] == 'higher'


def test_the_paper_s_size_differs_from_its_profile_only_where_it_says():
    paper, grid, pocket = (yaml.safe_load((ROOT/'configs'/f'{n}.yaml').read_text()) for n in ('paper', 'ablation_paper', 'ablation'))
    assert paper['critique'] == grid['critique'] and paper['masking'] == grid['masking']
    assert {**paper['data'], 'columns': grid['data']['columns']} == grid['data'] and grid['data']['columns'].items() > paper['data']['columns'].items()
    same = lambda a, b: {k for k in a if a[k] == b.get(k)}
    assert set(paper['train']) - same(paper['train'], grid['train']) == {'val_share'}
    masks = lambda arms: {a: {k: v for k, v in p.items() if k.startswith('m')} for a, p in arms.items() if 'reference' not in a}
    assert masks(grid['arms']) == masks(pocket['arms']) and grid['central'] == pocket['central']
    assert read_config('configs/ablation_paper.yaml')


def test_runs_made_again_on_another_machine_gave_the_same_verdicts(rows):
    "`make cells`: every problem of each rerun cell, verdict and length."
    again = pd.read_csv(ROWS/'reruns.csv')
    assert len(again) >= 3 and again.arm.nunique() >= 3 and not again.run.duplicated().any()
    assert (again.different == 0).all() and (again.n == rows[rows.arm == 'base'].problem.nunique()).all()
    assert {*zip(again.arm, again.seed)} <= {*zip(rows.arm, rows.seed)}
