"""The facts about the release: its tables come out of rows digit by digit, and change when the rows change."""
import csv
import hashlib
import json
from types import SimpleNamespace

import pytest

from conftest import ROOT, needs_files
from mcft import audit
from mcft.audit import (FACT_FIELDS, MADE, audit_rows, build_facts, by_truncation, disputed, endings, grader_table,
                        loops, outcomes, paired_table,
                        read_facts, run_label, total_table)
from mcft.released import KEYS, csv_text, git_blob, paper_rows

AUDIT = ROOT/'data'/'results'/'audit.csv'


@pytest.fixture(scope='module')
def d(): return read_facts()


@pytest.fixture(scope='module')
def rows(d): return audit_rows(d)


def changed(d, **tables): return SimpleNamespace(**{**vars(d), **tables})


# The tables of grading and of statistics, cell by cell.

GRADERS = {  # model, benchmark: released, string as it stands, strict, math-verify on the text, on the box
    ('base', 'aime24'): (9, 9, 9, 9, 9), ('base', 'amc23'): (24, 0, 24, 25, 24),
    ('R1', 'aime24'): (7, 7, 7, 8, 7), ('R1', 'amc23'): (21, 0, 20, 24, 22),
    ('MCFT', 'aime24'): (7, 7, 7, 7, 7), ('MCFT', 'amc23'): (27, 0, 27, 27, 27)}
OTHERS = {('all 04-15', 't0.0_k1_s0_e30'): 7, ('all 04-15', 't0.7_k1_s0_e30'): 9, ('all 04-15', 't0.7_k5_s0_e30'): 52,
          ('all 04-16', 't0.0_k1_s0_e30'): 9,
          ('all_updated 04-27', 't0.0_k1_s0_e1'): 1}


def test_graders_cell_by_cell(d):
    t = grader_table(d)
    main, rest = t[t.run.isin(('base', 'R1', 'MCFT'))], t[~t.run.isin(('base', 'R1', 'MCFT'))]
    columns = ['released', 'raw', 'strict', 'full_text', 'symbolic']
    assert {(r.run, r.benchmark): tuple(getattr(r, c) for c in columns) for r in main.itertuples()} == GRADERS
    assert {(r.run, r.settings): {getattr(r, c) for c in columns} for r in rest.itertuples()} == {k: {v} for k,
                                                                                                  v in OTHERS.items()}
    assert t.n.sum() == 451 and len(t) == 11


def test_disputed_responses(d):
    "The seven that differ for more than the format of AMC's golds; on the first, math-verify does not come to an end."
    t = disputed(d)
    assert set(zip(t.run, t.benchmark, t.problem_id)) == {('base', 'amc23', '17'), ('base', 'amc23', '44'),
                                                          ('R1', 'aime24', '78'), ('R1', 'amc23', '41'),
                                                          ('R1', 'amc23', '49'), ('R1', 'amc23', '0'), ('R1', 'amc23',
                                                                                                        '44')}
    assert list(t[t.full_text == 'timeout'].problem_id) == ['17'] and (t.reason != '').all()


def test_verdicts_belong_to_the_responses(d):
    assert d.verdicts[KEYS].equals(d.responses[KEYS]) and list(d.verdicts.sha256) == list(d.responses.sha256)
    assert set(d.verdicts[['raw', 'strict', 'symbolic', 'full_text']].stack()) <= {'right', 'wrong', 'no_answer',
                                                                                   'timeout'}


def test_paired_p_values_to_the_digit(d):
    want = {('base', 'MCFT', 'aime24'): (7, 5, '0.774'), ('base', 'MCFT', 'amc23'): (5, 8, '0.581'),
            ('base', 'R1', 'aime24'): (6, 4, '0.754'),
            ('base', 'R1', 'amc23'): (6, 3, '0.508'),
            ('R1', 'MCFT', 'aime24'): (3, 3, '1.000'), ('R1', 'MCFT', 'amc23'): (0, 6, '0.031')}
    assert {(r.first, r.second, r.benchmark): (r.only_first, r.only_second, f'{r.p:.3f}')
            for r in paired_table(d.responses).itertuples()} == want


def test_totals_to_the_digit(d):
    t = total_table(d.tables).set_index(['first', 'second', 'benchmark'])
    a, b, c, e = (t.loc[k] for k in (('base', 'MCFT', 'math500'), ('base', 'MCFT', 'olympiadbench'),
                                     ('R1', 'MCFT', 'math500'),
                                     ('R1', 'MCFT', 'olympiadbench')))
    assert (a.right1, a.right2, f'{a.fisher_p:.1e}', a.z, f'{a.z_p:.1e}', a.points, a.low, a.high) == (302, 362,
        '7.6e-05', 4.02, '5.9e-05', 12.0, 6.2, 17.7)
    assert (b.right1, b.right2, f'{b.fisher_p:.3f}', b.z, f'{b.z_p:.3f}', b.points, b.low, b.high) == (268, 265,
        '0.911', -0.17, '0.867', -0.4, -5.6, 4.8)
    assert (c.right1, c.right2, f'{c.fisher_p:.3f}', e.right1, e.right2, f'{e.fisher_p:.1e}') == (348, 362, '0.365',
                                                                                                  199, 265, '1.9e-04')
    assert (f'{a.paired_p_high:.4f}', f'{b.paired_p_low:.2f}', f'{c.paired_p_low:.4f}',
            f'{c.paired_p_high:.2f}') == ('0.0013', '0.25', '0.0001', '0.45')


def test_by_who_was_cut_off(d):
    t = by_truncation(d.responses).set_index(['benchmark', 'cut'])
    assert t.loc[('amc23', 'neither'), ['n', 'base', 'MCFT', 'only_base', 'only_MCFT', 'p']].tolist() == [25, 21, 22, 2,
                                                                                                          3, 1.0]
    assert t.loc[('aime24', 'neither'), ['n', 'base', 'MCFT', 'only_base', 'only_MCFT', 'p']].tolist() == [5, 2, 4, 0,
                                                                                                           2, 0.5]
    assert [t.loc[k, ['n', m]].tolist() for k, m in ((('amc23', 'base only'), 'MCFT'),
                                                     (('aime24', 'base only'), 'MCFT'), (('amc23', 'MCFT only'),
                                                                                         'base'),
                                                     (('aime24', 'MCFT only'), 'base'))] == [[5, 5], [5, 3], [5, 3],
                                                                                             [8, 7]]


# Every other number of the audit, by the key of its fact.

NUMBERS = {
    '1_same_aime24': '5', '1_same_amc23': '4', '1_same_math500': '4', '1_same_olympiadbench': '4',
    '1_same_tokens': '40 of 40', '1_tokens': '254,741',
           '1_jobs': '4', '1_pickles': '4',
    '1_control_runs': '0 of 30', '1_control_base': '0 of 40', '1_control_single': '1 of 1', '1_control_batch': '1,096',
    '2_base_aime24': '9; 30.00; 16.7-47.9', '2_base_amc23': '24; 60.00; 44.6-73.7',
    '2_base_math500': '302; 60.40; 56.0-64.6',
           '2_base_olympiadbench': '268; 39.70; 36.1-43.4',
    '2_R1_aime24': '7; 23.33; 11.8-40.9', '2_R1_amc23': '21; 52.50; 37.5-67.1', '2_R1_math500': '348; 69.60; 65.4-73.5',
           '2_R1_olympiadbench': '199; 29.48; 26.2-33.0',
    '2_MCFT_aime24': '7; 23.33; 11.8-40.9', '2_MCFT_amc23': '27; 67.50; 52.0-79.9',
    '2_MCFT_math500': '362; 72.40; 68.3-76.1',
           '2_MCFT_olympiadbench': '265; 39.26; 35.6-43.0',
    '2_agree': '6 of 6', '2_one_count': '12 of 12', '2_card': '8 of 8', '2_other_1': '7 of 30; 7 of 30',
    '2_other_2': '9 of 30; 9 of 30',
           '2_other_3': '52 of 150; 18 of 30', '2_other_4': '9 of 30; 9 of 30', '2_other_5': '1 of 1; 1 of 1',
    '3_ends_base_aime24': '17 of 30; 9 of 13; 0', '3_ends_base_amc23': '10 of 40; 24 of 30; 0',
    '3_ends_R1_aime24': '20 of 30; 7 of 10; 0',
           '3_ends_R1_amc23': '18 of 40; 21 of 22; 0', '3_ends_MCFT_amc23': '10 of 40; 27 of 30; 0',
    '3_unboxed': '21 of 30; 7 of 9', '3_limit': '15,872', '3_proxy': '7 of 8; 2', '3_short_1': '20 of 30',
    '3_short_2': '12 of 30', '3_short_3': '17 of 30',
           '3_loop_base_amc23': '10 of 10; 0 of 30', '3_loop_MCFT_amc23': '9 of 10; 0 of 30',
    '3_bos': '393 of 393', '3_think': '70', '3_value': '1', '3_tags': '0 in 451', '3_tag_job': '1; length; 15,872',
    '4_collator': '[1, 2, 3, -100]', '4_default_collator': '[-100, -100, 3, -100]', '4_reward': '1; 3',
    '4_split': 'True; False', '4_rows': '2115, 236',
           '4_steps': '792; 825', '4_warm_up': '63%; 61%', '4_full_rate': '500; 500', '4_arguments': '4 of 4',
    '5_golds_math500': '108 of 500; 0', '5_golds_olympiadbench': '41 of 675; 0', '5_limo_flag': '451 of 451'}


def test_numbers(rows):
    found = {r['key']: r['number'] for r in rows}
    assert {k: found[k] for k in NUMBERS} == NUMBERS


def test_every_fact_has_evidence_and_limits(rows):
    assert {r['section'] for r in rows} == {1, 2, 3, 4, 5, 6} and len({r['key'] for r in rows}) == len(rows)
    for r in rows:
        assert list(r) == FACT_FIELDS and r['fact'] and r['evidence'] and r['limits'], r['key']
        assert r['recomputed'] == ('no' if 'not recomputed here' in r['evidence'] else 'yes')
    assert sum(r['recomputed'] == 'yes' for r in rows) > 2*sum(r['recomputed'] == 'no' for r in rows)


def test_the_committed_table_is_this_one(rows):
    "Versions of installed libraries, which section 4 names, may differ."
    have = list(csv.DictReader(AUDIT.open(encoding='utf-8')))
    def plain(r):
        return {k: str(v) for k, v in r.items() if k != 'evidence' or r['key'][0] != '4'}
    assert [plain(r) for r in have] == [plain(r) for r in rows], 'run make audit'


# Facts are computed: other rows give other numbers.

def test_facts_follow_their_rows(d):
    def number(x, part, key):
        return {r['key']: r['number'] for r in getattr(audit, part)(x)}[key]
    r = d.responses
    assert number(changed(d, responses=r.assign(released=0)), 'facts_accuracies', '2_agree') == '0 of 6'
    assert number(changed(d, responses=r.assign(finish_reason='stop')), 'facts_endings',
                  '3_ends_base_aime24') == '0 of 30; 9 of 30; 0'
    assert number(changed(d, tails=d.tails.assign(period=0)), 'facts_endings',
                  '3_loop_base_amc23') == '0 of 10; 0 of 30'
    assert number(changed(d, completions=d.completions.assign(completion=range(393))), 'facts_outputs',
                  '1_same_tokens') == '0 of 40'
    assert number(changed(d, completions=d.completions.assign(leading_bos=1)), 'facts_prompts', '3_bos') == '0 of 393'
    assert number(changed(d, verdicts=d.verdicts.assign(symbolic='wrong')), 'facts_grading',
                  '5_base_amc23_t0.0_k1_s0_e40') == '24 / 0 / 24 / 25 / 0 of 40'
    swapped = r.assign(run=r.run.replace({audit.RUNS['base']: 'x',
                                          audit.RUNS['R1']: audit.RUNS['base']}).replace({'x': audit.RUNS['R1']}))
    assert number(changed(d, responses=swapped), 'facts_differences', '6_base_MCFT_amc23').startswith('0, 6;')


def test_no_text_of_a_response_is_committed():
    "The widest cells are extracted answers, hashes and our own sentences."
    for name in ('responses', *MADE):
        t = paper_rows(name)
        wide = {c: t[c].astype(str).str.len().max() for c in t.columns}
        assert max(wide.values()) <= 100, f'{name}: {wide}'


# The builders, on a small folder written for the purpose.

def toy_folder(folder):
    """A looping response to problem 7 and a stopped one to problem 8, a one-question job, a generation record, a
    pickle, four benchmarks of one problem."""
    def run(name, *texts):
        return (f'released/{name}/aime24_t0.0_k1_s0_e{len(texts)}.jsonl',
                                    [dict(id=7+i, generated_responses=[t], gold_answer='5', answers_correctness=[False])
                                     for i, t in enumerate(texts)])
    parts = dict([run('DeepScaleR-1.5B-Preview', 'so x=5 ' + 'wait. '*9, 'so x=6'),
                  run('one__2025-01-02_00_00_00', 'so x=6')])
    parts['derived/completions_meta.jsonl'] = [dict(run='DeepScaleR-1.5B-Preview', benchmark='aime24',
                                                    settings='t0.0_k1_s0_e2', row=0, id=7, sample=0,
                                                    finish_reason='length', prompt_tokens=9, leading_bos=2,
                                                    completion_tokens=20,
                                                    completion_ids_sha256='a'*64, prompt_ids_sha256='b'*64,
                                                    system_prompt='Solve user question',
                                                    prompt_ends_with_think=False,
                                                    arrival_time_utc='2025-01-01T00:00:00Z')]
    for n, answer in dict(aime24='5', amc23=5.0, math500=r'\text{odd}', olympiadbench='$5$').items():
        parts[f'benchmarks/{n}.jsonl'] = [dict(answer=answer)]
    files = []
    for path, lines in parts.items():
        f = folder/path
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text('\n'.join(map(json.dumps, lines)))
        kind = {'released': 'released_outputs', 'derived': 'derived', 'benchmarks': 'benchmark'}[path.split('/')[0]]
        files.append(dict(path=path, kind=kind, benchmark='aime24', settings=f.stem.split('_', 1)[1] if kind
                          == 'released_outputs' else '',
                          sha256=hashlib.sha256(f.read_bytes()).hexdigest(), git_blob_sha1=git_blob(f.read_bytes())))
    pickles = [dict(kind='completions_pickle', run='DeepScaleR-1.5B-Preview', benchmark='aime24',
                    settings='t0.0_k1_s0_e2', git_blob_sha1='c'*40)]
    (folder/'MANIFEST.json').write_text(json.dumps(dict(files=files,
                                                        absent=[dict(kind='completions_pickle', git_blob_sha1='d'*40)],
                                                        pickles_not_copied=pickles)))
    return folder


def test_builders_on_a_small_folder(tmp_path):
    (tmp_path/'raw').mkdir()
    raw = toy_folder(tmp_path/'raw')
    assert build_facts(raw, tmp_path/'out') == {'verdicts.csv': 3, 'completions.csv': 1, 'pickles.csv': 2,
                                                'tails.csv': 3, 'overlaps.csv': 1, 'golds.csv': 4}
    def read(n):
        return paper_rows(n, tmp_path/'out')
    assert list(read('tails').period) == [6, 0, 0]
    assert read('overlaps')[['n_char', 'other_n_char', 'same_char']].values.tolist() == [[6, 61, 5]]
    assert read('completions')[['leading_bos', 'n_tok', 'ends_with_think', 'prompt']].values.tolist() == [[2, 20, 0,
                                                                                                           'b'*16]]
    assert set(read('pickles').git_blob) == {'c'*40, 'd'*40}
    assert list(read('golds').n) == [1, 1, 1, 1] and set(read('golds').boxed_unequal) == {0}
    first = {p.name: p.read_bytes() for p in (tmp_path/'out').iterdir()}
    build_facts(raw, tmp_path/'out')
    assert first == {p.name: p.read_bytes() for p in (tmp_path/'out').iterdir()}
    (raw/'released'/'DeepScaleR-1.5B-Preview'/'aime24_t0.0_k1_s0_e2.jsonl').write_text('{}')
    with pytest.raises(ValueError, match='has sha256'): build_facts(raw, tmp_path/'out')


@needs_files
def test_raw_files_give_the_committed_rows(tmp_path):
    build_facts(None, tmp_path)
    for name in MADE:
        committed = (ROOT/'data'/'paper'/f'{name}.csv').read_bytes()
        assert (tmp_path/f'{name}.csv').read_bytes() == committed, f'{name}.csv is not what the raw files give'


# Figures.

@pytest.mark.parametrize('name, make', [('audit_truncation', endings), ('audit_paired', outcomes)])
def test_figures_show_these_rows(d, name, make, tmp_path):
    make(d.responses).to_csv(tmp_path/'now.csv', index=False, float_format='%.6g', lineterminator='\n')
    assert (ROOT/'figures'/f'{name}.csv').read_text() == (tmp_path/'now.csv').read_text(), 'run make audit'
    assert all((ROOT/'figures'/f'{name}.{kind}').stat().st_size > 5000 for kind in ('png', 'svg'))


def test_labels_keep_runs_apart(d):
    runs = set(d.responses.run) | set(d.completions.run)
    assert len({run_label(r) for r in runs}) == len(runs) and {'base', 'R1', 'MCFT'} <= {run_label(r) for r in runs}


def test_one_response_loops_without_a_record(d):
    t = loops(d)
    assert t.stopped_looping.sum() == 1 and t.query('stopped_looping > 0')[['model', 'benchmark',
        'looping_ids']].values.tolist() == [['MCFT', 'aime24',
        '71']]


def test_equal_rows_give_equal_bytes(d, rows):
    assert csv_text(audit_rows(read_facts()), FACT_FIELDS) == csv_text(rows, FACT_FIELDS)
