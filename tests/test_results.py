"""Every committed table, figure and page is what the committed rows give: change a row and this fails."""
import pandas as pd
import pytest

import provenance
import results
from conftest import ROOT
from mcft.ablation import KINDS as ABLATION
from mcft.beyond import KINDS as BEYOND
from mcft.compare import contrast_table, load_rows
from mcft.core import read_rows
from mcft.eval import build_tables
from mcft.grid import read_grid
from mcft.report import ReportConfig, run_report
from measure import rows as measured

ROWS, FIGURES = ROOT/'data'/'results', ROOT/'figures'
PAGES = dict(pocket=('06_ablation', ABLATION), ablation=('06_ablation', ABLATION), beyond=('10_beyond', BEYOND),
             school=('06_ablation', ABLATION))
LATER = dict(factorial=('06_ablation', ABLATION), beyond_techniques=('10_beyond', BEYOND))
PAGES |= {name: made for name, made in LATER.items() if (ROWS/f'{name}.parquet').exists()}


@pytest.fixture(scope='module', params=PAGES)
def rebuilt(request, tmp_path_factory):
    "A page, its tables and its figures, from the committed rows."
    out = tmp_path_factory.mktemp(request.param)
    stage, kinds = PAGES[request.param]
    config = f'configs/{request.param}.yaml'
    run_report(ReportConfig(config=config, rows=str(ROWS), figures=str(out/'figures'), out_dir=str(out/'page')),
               stage, kinds)
    return out, read_grid(config)['report']


def test_committed_tables_are_those_of_the_rows(rebuilt):
    out, report = rebuilt
    made = [name for name in report['tables'] if (out/'page'/name).exists() or (ROWS/name).exists()]
    assert made or report['rows'] == 'school.parquet' and not (ROWS/'school.parquet').exists()
    for name in made: assert (out/'page'/name).read_bytes() == (ROWS/name).read_bytes(), name


def test_the_committed_page_is_that_of_the_rows(rebuilt):
    out, report = rebuilt
    name = report['page']['to']
    committed = ROWS/name if (ROWS/name).exists() else ROOT/'docs'/name
    assert (out/'page'/name).read_text() == committed.read_text()


def test_every_committed_figure_shows_its_rows(rebuilt):
    out, report = rebuilt
    if not (ROWS/report['rows']).exists(): pytest.skip(f"{report['rows']}: no run of this grid has ended")
    assert {p.stem for p in (out/'figures').glob('*.csv')} == set(report['figures'])
    for name in report['figures']:
        drawn, kept = (folder/f'{name}.csv' for folder in (out/'figures', FIGURES))
        assert drawn.read_bytes() == kept.read_bytes(), f'{name}: commit figures/'
        assert (FIGURES/f'{name}.png').exists() and (FIGURES/f'{name}.svg').exists()


def test_committed_tables_of_the_paper_are_what_the_committed_rows_give(tmp_path):
    build_tables(ROWS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 9
    for f in tmp_path.iterdir():
        assert (ROWS/f.name).read_bytes() == f.read_bytes(), f'{f.name}: run 05_eval and commit it'


@pytest.mark.parametrize('name', ['ablation', 'beyond'])
def test_a_changed_row_changes_a_number(name):
    rows = load_rows(ROWS/f'{name}.parquet')
    first, second = read_grid(f'configs/{name}.yaml')['report']['compare']['planned'][0]
    ended = rows[rows.step == 0]
    shared = set(ended[ended.arm == first].seed) & set(ended[ended.arm == second].seed)
    one = ended.index[(ended.arm == first) & (ended.seed == min(shared))][0]
    changed = rows.assign(right=rows.right.mask(rows.index == one, ~rows.right[one]))
    before, after = (contrast_table(r, ((first, second),)).iloc[0] for r in (rows, changed))
    assert abs(abs(before['diff'] - after['diff'])*before.n_problems*before.n_seeds - 1) < 1e-6


def test_every_file_has_a_heading():
    "No page shows a file's bare name."
    shown = [p for p in provenance.published() if p.suffix in ('.csv',
                                                               '.png') and not p.stem.startswith(results.ELSEWHERE)]
    assert shown and not [p.name for p in shown if p.stem not in results.SECTIONS]


def test_the_pocket_world_is_worth_measuring_in():
    runs = pd.read_csv(ROWS/'pocket_runs.csv')
    base = runs[runs.method == 'base']
    assert len(base) == 4 and 0.35 <= base.accuracy.mean() <= 0.65
    assert base.accuracy.between(0.1, 0.9).all()
    dev = pd.read_csv(ROWS/'lr_dev.csv')
    means = dev.groupby(['arm', 'lr']).accuracy.mean()
    far = abs(means - dev[dev.arm == 'base'].accuracy.mean()).max()
    assert far >= 0.05, 'no method moves the dev mean by five points'


def test_funnel_counts_the_committed_critiques():
    rows = read_rows(ROOT/'data'/'pocket'/'critiques.jsonl', 'critiques')
    funnel = pd.read_csv(ROWS/'funnel.csv').set_index('step')['rows']
    rollouts = read_rows(ROOT/'data'/'pocket'/'rollouts.jsonl', 'rollouts')
    assert funnel['rollouts sampled'] == len(rows) == len(rollouts)
    assert funnel['kept'] == sum(r['status'] == 'kept' for r in rows)


@pytest.mark.parametrize('table', ['benchmarks', 'faults'])
def test_committed_measurements_keep_their_bounds(table):
    rows = measured.read(table)
    assert rows and list(rows[0]) == measured.FIELDS[table]
    if table == 'faults':
        assert all(r['lost'] == r['duplicated'] == r['hung'] == '0' and int(r['tried']) > 0 for r in rows)
    else: assert not [r for r in rows if r['ratio'] != '' and not measured.holds(r)]


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

    def cost(work):
        work()
        return 1.0 if calls[-1] == 'a' else 2.0

    ratios = measured.paired(lambda: calls.append('a'), lambda: calls.append('b'), 2, cost=cost)
    assert calls == ['a', 'b', 'b', 'a'] and ratios == [2.0, 2.0]
