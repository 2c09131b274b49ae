"""The long grid: its rows are those of its config, its pilot stands apart, and its world is worth measuring in."""
import pandas as pd
import pytest
import yaml

from conftest import ROOT
from mcft.ablation import world_checks
from mcft.compare import contrast_table, load_rows
from mcft.grid import comparisons, models, read_grid

ROWS = ROOT/'data'/'results'


@pytest.fixture(scope='module')
def rows(): return load_rows(ROWS/'ablation.parquet')


@pytest.fixture(scope='module')
def cfg(): return read_grid('configs/ablation.yaml')


def test_rows_are_those_of_the_config(rows, cfg):
    "Every run, and every copy on the way, answered every problem once; what is missing is said on the page."
    planned = {(m.arm.name, m.seed, m.step) for m in models(cfg)}
    have = set(rows[['arm', 'seed', 'step']].drop_duplicates().itertuples(index=False, name=None))
    assert have <= planned
    missing = len(planned - have)
    said = f'{missing} of its evaluations are still to come' in (ROOT/'docs'/'found.md').read_text()
    assert said == bool(missing)
    counts = rows.groupby(['arm', 'seed', 'step', 'benchmark']).problem.agg(['size', 'nunique'])
    assert (counts['size'] == counts['nunique']).all()
    full = counts[counts.index.get_level_values('step') == 0]
    assert set(full['size']) == {cfg['eval']['n_problems']}
    assert set(full.index.get_level_values('benchmark')) == set(cfg['eval']['benchmarks'])
    assert (ROWS/'ablation.parquet').stat().st_size < 20e6


def test_no_problem_of_the_pilot_is_one_of_the_grid(rows):
    pilot = load_rows(ROWS/'pilot.parquet')
    assert all(b.startswith('dev_') for b in pilot.benchmark.unique())
    assert not any(b.startswith('dev_') for b in rows.benchmark.unique())
    assert not set(pilot.seed) - {-1} & set(rows.seed)


def test_the_world_is_worth_measuring_in(rows, cfg):
    "Base in the middle, format kept, and an effect that must be there is found."
    checks = world_checks(pd.read_csv(ROWS/'ablation_lr.csv'))
    assert checks.ok.all(), checks
    known = contrast_table(rows, **comparisons(cfg)).set_index('contrast')
    assert known.reading['sft − sft, a sixth of the examples'] == 'higher'


def test_each_comparison_is_asked_once_and_no_arm_is_forgotten(cfg):
    asked = comparisons(cfg)
    pairs = [pair for kind in asked.values() for pair in kind]
    assert len(set(pairs)) == len(pairs) == sum(map(len, cfg['report']['compare'].values()))
    assert {a for pair in pairs for a in pair} == {'base', *cfg['arms']}


def test_the_size_of_the_paper_differs_from_its_profile_only_where_it_says():
    paper = yaml.safe_load((ROOT/'configs'/'paper.yaml').read_text())
    grid, pocket = read_grid('configs/ablation_paper.yaml'), read_grid('configs/ablation.yaml')
    assert paper['critique'] == grid['critique'] and paper['masking'] == grid['masking']
    assert {**paper['data'], 'columns': grid['data']['columns']} == grid['data']
    assert grid['data']['columns'].items() > paper['data']['columns'].items()
    assert {k for k in paper['train'] if paper['train'][k] != grid['train'].get(k)} == {'val_share'}

    def masks(arms): return {a: {k: v for k, v in p.items() if k.startswith('m')} for a,
                             p in arms.items() if 'reference' not in a}

    assert masks(grid['arms']) == masks(pocket['arms']) and grid['central'] == pocket['central']


def test_runs_made_again_on_another_machine_gave_the_same_verdicts(rows):
    "`make cells`: every problem of each rerun cell, verdict and length."
    again = pd.read_csv(ROWS/'reruns.csv')
    assert len(again) >= 3 and again.arm.nunique() >= 3 and not again.run.duplicated().any()
    assert (again.different == 0).all() and (again.n == rows[rows.arm == 'base'].problem.nunique()).all()
    assert {*zip(again.arm, again.seed)} <= {*zip(rows.arm, rows.seed)}
