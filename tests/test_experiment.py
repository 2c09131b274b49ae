"""The page of the experiment, its tables and figures are what the committed rows give: change a row and this fails."""
import pandas as pd
import pytest

from conftest import ROOT
from mcft.ablation import read_config, runs_of, snapshots
from mcft.experiment import ExperimentConfig, PLANNED, contrast_table, load_rows, run_experiment, world_checks

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
    assert (rebuilt/'13_experiment'/'experiment.md').read_text() == (ROOT/'docs'/'experiment.md').read_text()


def test_every_committed_figure_shows_its_rows(rebuilt):
    made, kept = ({p.name for p in d.glob('ablation_*.csv')} for d in (rebuilt/'figures', FIGURES))
    assert made == kept and len(made) >= 5
    for name in made: assert (rebuilt/'figures'/name).read_text() == (FIGURES/name).read_text(), f'{name}: run 13_experiment on data/results and commit figures/'
    for name in made: assert (FIGURES/name).with_suffix('.png').exists() and (FIGURES/name).with_suffix('.svg').exists()


def test_a_changed_row_changes_a_number(rows):
    pairs = (PLANNED[0],)
    one = rows.index[(rows.arm == pairs[0][0]) & (rows.step == 0)][0]
    changed = rows.assign(right=rows.right.mask(rows.index == one, ~rows.right[one]))
    before, after = (contrast_table(r, pairs, (), ())['diff'][0] for r in (rows, changed))
    assert abs(abs(before - after) * len(rows[(rows.arm == pairs[0][0]) & (rows.step == 0)]) - 1) < 1e-6


def test_rows_are_those_of_the_config(rows):
    "Every run of the grid, and every copy on the way, answered every problem once."
    cfg = read_config('configs/ablation.yaml')
    want = {('base', -1, 0)} | {(r['arm'], r['seed'], 0) for r in runs_of(cfg)} | {(r['arm'], r['seed'], n) for r in snapshots(cfg) for n in cfg['snapshots']['at']}
    counts = rows.groupby(['arm', 'seed', 'step', 'benchmark']).problem.agg(['size', 'nunique'])
    assert {k[:3] for k in counts.index} == want
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
    known = contrast_table(rows)
    assert known.set_index('contrast').reading['sft − sft, 40 examples'] == 'higher'
