"""Contamination: the committed rows, planted copies, and the whole report on small files."""
import csv, json, random
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from mcft.core import read_rows
from mcft.overlap import OverlapConfig, nearest, overlap, read_questions, report, words

ROOT = Path(__file__).resolve().parent.parent
POCKET = 'data/pocket/problems.jsonl.gz'
_word = st.sampled_from('a train leaves rome with twelve people and 3 or 14 of them'.split())


@settings(max_examples=200, deadline=None)
@given(st.lists(_word, min_size=13, max_size=40), st.lists(_word, max_size=30), st.lists(_word, max_size=30),
       st.integers(0, 27))
def test_a_planted_run_of_words_is_found_wherever_it_stands(question, before, after, start):
    run = question[:13] if start > len(question) - 13 else question[start:start+13]
    train = [' '.join([*before, *run, *after]).upper() + '!']
    assert overlap(train, [' '.join(question)], n=13).hits[0] == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(_word, max_size=12).map(' '.join), max_size=6),
       st.lists(st.lists(_word, max_size=12).map(' '.join), min_size=1, max_size=6), st.integers(1, 5))
def test_hits_are_those_of_the_plain_double_loop(train, questions, n):
    def runs(q):
        return {words(q)[i:i+n] for i in range(len(words(q)) - n + 1)}
    d = nearest(train, questions, n)
    assert list(d.shared > 0) == [any(runs(q) & runs(t) for t in train) for q in questions]
    assert list(d.exact) == [words(q) in [words(t) for t in train] for q in questions]


def test_the_committed_rows_come_out_again():
    train = read_questions(POCKET, 'train')
    asked = {}
    for r in read_rows(POCKET, 'problems'): asked.setdefault(r['split'], []).append(r['question'])
    rows = list(csv.DictReader((ROOT/'data'/'results'/'overlap.csv').open(encoding='utf-8')))
    assert {r['benchmark'] for r in rows} == {'chain', 'equation', 'long', 'gcd'} and len(rows) == 16
    for r in random.Random(0).sample(rows, 4):
        found = overlap(train, {r['benchmark']: asked[r['benchmark']]}, int(r['n']), r['numbers']).iloc[0]
        assert {k: str(found[k]) for k in r} == r
    assert all(r['exact'] == '0' for r in rows if r['numbers']
               == 'keep'), 'a question of a pocket benchmark is in training'


def test_a_report_runs_once_and_is_read_again(tmp_path):
    long = 'Let a b and c be positive reals with sum one and find the largest value of their product'
    (tmp_path/'train.jsonl').write_text(json.dumps(dict(question=long)) + '\n')
    row = dict(id='p1', source='toy', split='toy', question=long.upper(), answer='1/27', family='x', level=1)
    (tmp_path/'problems.jsonl').write_text(json.dumps(row) + '\n')
    cfg = OverlapConfig(tmp_path/'train.jsonl', '', tmp_path/'problems.jsonl', ('toy',), out_dir=tmp_path/'run')
    first = report(cfg)
    assert list(first.exact) == [1]*4 and (tmp_path/'run'/'run.json').exists()
    again = report(cfg)
    assert again.values.tolist() == first.values.tolist()
    assert 'train_question' in (tmp_path/'run'/'overlap_pairs.csv').read_text()


def test_a_split_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no rows with split 'trian'"): read_questions(POCKET, 'trian')
