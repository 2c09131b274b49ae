"""The committed figures and findings are what the committed rows give: change a row and this fails."""
import pandas as pd
import pytest

import provenance
from conftest import ROOT
from mcft.ablation import AblationConfig, run_ablation
from mcft.core import read_rows
from measure import rows as measured

ROWS, FIGURES = ROOT/'data'/'results', ROOT/'figures'


@pytest.fixture(scope='module')
def rebuilt(tmp_path_factory):
    "Stage 06 on the committed rows."
    out = tmp_path_factory.mktemp('ablation')
    lr = ROWS/'lr_dev.csv'
    run_ablation(AblationConfig(str(ROWS), (), str(ROWS/'funnel.csv'), str(lr), str(out/'figures')), out)
    return out


def test_every_committed_figure_shows_its_rows(rebuilt):
    made, kept = ({p.name for p in d.glob('*.csv') if provenance.maker(FIGURES/p.name).source == 'nbs/06_ablation.ipynb'} for d in (rebuilt/'figures', FIGURES))
    assert made == kept
    for name in made: assert (rebuilt/'figures'/name).read_text() == (FIGURES/name).read_text(), f'{name}: run 06_ablation on data/results and commit figures/'
    for name in made: assert (FIGURES/name).with_suffix('.png').exists() and (FIGURES/name).with_suffix('.svg').exists()


@pytest.mark.parametrize('name', ['findings.md', 'contrasts_pocket.csv'])
def test_findings_are_those_of_the_rows(rebuilt, name):
    assert (rebuilt/name).read_text() == (ROWS/name).read_text()


def test_the_pocket_world_is_worth_measuring_in():
    runs = pd.read_csv(ROWS/'pocket_runs.csv')
    base = runs[runs.method == 'base']
    assert len(base) == 4 and 0.35 <= base.accuracy.mean() <= 0.65
    assert base.accuracy.between(0.1, 0.9).all()
    dev = pd.read_csv(ROWS/'lr_dev.csv')
    means = dev.groupby(['arm', 'lr']).accuracy.mean()
    assert abs(means - dev[dev.arm == 'base'].accuracy.mean()).max() >= 0.05, 'no method moves the dev mean by five points'


def test_funnel_counts_the_committed_critiques():
    rows = read_rows(ROOT/'data'/'pocket'/'critiques.jsonl', 'critiques')
    funnel = pd.read_csv(ROWS/'funnel.csv').set_index('step')['rows']
    assert funnel['rollouts sampled'] == len(rows) == len(read_rows(ROOT/'data'/'pocket'/'rollouts.jsonl', 'rollouts'))
    assert funnel['kept'] == sum(r['status'] == 'kept' for r in rows)


@pytest.mark.parametrize('table', ['benchmarks', 'faults'])
def test_committed_measurements_keep_their_bounds(table):
    rows = measured.read(table)
    assert rows and list(rows[0]) == measured.FIELDS[table]
    if table == 'faults': assert all(r['lost'] == r['duplicated'] == r['hung'] == '0' and int(r['tried']) > 0 for r in rows)
    else: assert all(measured.holds(r) for r in rows if r['ratio'] != ''), [r for r in rows if r['ratio'] != '' and not measured.holds(r)]


def test_a_measurement_replaces_its_row_and_no_other(tmp_path):
    row = measured.bench_row('speed', 'peer', [2.0, 3.0, 4.0], '>= 3')
    assert (row['ratio'], row['spread'], row['n']) == (3.0, 1.0, 3) and measured.holds(row)
    measured.save('benchmarks', [row, measured.bench_row('other', 'peer', [1.0], '')], tmp_path)
    worse = measured.bench_row('speed', 'peer', [2.0], '>= 3')
    measured.save('benchmarks', [worse], tmp_path)
    kept = {r['name']: r for r in measured.read('benchmarks', tmp_path)}
    assert kept['speed']['ratio'] == '2.0' and kept['other']['ratio'] == '1.0' and not measured.holds(kept['speed'])


def test_pairs_change_their_order():
    calls = []
    ratios = measured.paired(lambda: calls.append('a'), lambda: calls.append('b'), 2, cost=lambda f: f() or (1.0 if calls[-1] == 'a' else 2.0))
    assert calls == ['a', 'b', 'b', 'a'] and ratios == [2.0, 2.0]
