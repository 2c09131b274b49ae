"""Tables as editors, spreadsheets and scripts make them.

They are read when they can be read in one way; else the error names file and line, or row and column.
"""
import gzip
import json
import math
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcft.data import load_questions, load_solutions, map_columns
from mcft.tables import arrow_rows, csv_rows, gold_text, json_rows, level_cell, number_cell, number_text, read_table
from mcft.tables import text_cell

BOTH = dict(question='question', answer='answer')
ROWS = [dict(question='Was ist 2+2, "genau"? é', answer='04'), dict(question='Half\nof 3; or 4?', answer='1.5')]
LINES = ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in ROWS)
INDENTED = json.dumps(ROWS, ensure_ascii=False, indent=2)

JSON_FORMS = {
    'as written': LINES, 'no last newline': LINES.rstrip(), 'Windows': LINES.replace('\n', '\r\n'),
    'old Mac': LINES.replace('\n', '\r'), 'blank lines': '\n' + LINES.replace('\n', '\n\n'),
    'commas': LINES.replace('}\n', '},\n'), 'commas inside': LINES.replace('}\n', ',}\n'), 'array': json.dumps(ROWS),
    'array over lines': INDENTED,
    'array with a last comma': '[\n' + LINES.replace('}\n', '},\n') + ']\n',
    'objects over lines': '\n'.join(json.dumps(r, indent=1) for r in ROWS),
    'joined with marks': ''.join('\ufeff' + s for s in LINES.splitlines(True))}
ENCODINGS = ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32']


@pytest.mark.parametrize('form', JSON_FORMS)
def test_every_form_of_json_gives_the_same_rows(form, tmp_path):
    for name in ('a.jsonl', 'a.ndjson', 'a.json', 'A.JSONL'):
        (tmp_path/name).write_text(JSON_FORMS[form], encoding='utf-8', newline='')
        assert read_table(tmp_path/name) == ROWS


def csv_text(separator=',', end='\n', **kw) -> str:
    return pd.DataFrame(ROWS).to_csv(index=False, sep=separator, lineterminator=end, **kw)


CSV_FORMS = {
    'as written': csv_text(), 'semicolons': csv_text(';'), 'tabs': csv_text('\t'), 'bars': csv_text('|'),
    'Windows': csv_text(end='\r\n'), 'no last newline': csv_text().rstrip(), 'all quoted': csv_text(quoting=1),
    'blank lines': csv_text().replace('04\n', '04\n\n,\n'), 'index of pandas': pd.DataFrame(ROWS).to_csv(),
    'empty columns': csv_text().replace('answer\n', 'answer,,\n').replace('04\n', '04,,\n').replace('1.5\n', '1.5,,\n'),
    'blanks in the header': csv_text().replace('question,answer', ' question ,answer '), 'separator named': 'sep=;\n'
    + csv_text(';'), 'blanks after commas': 'question, answer\n"Was ist 2+2, ""genau""? é", "04"\n"Half\nof 3; or 4?", '
                                            '1.5\n'}


@pytest.mark.parametrize('form', CSV_FORMS)
def test_every_form_of_csv_gives_the_same_rows(form, tmp_path):
    (tmp_path/'a.csv').write_text(CSV_FORMS[form], encoding='utf-8', newline='')
    assert read_table(tmp_path/'a.csv') == ROWS


@pytest.mark.parametrize('encoding', ENCODINGS)
@pytest.mark.parametrize('name, text', [('a.jsonl', LINES), ('a.csv', csv_text()), ('a.tsv', csv_text('\t'))])
def test_encodings_and_packing_change_no_row(encoding, name, text, tmp_path):
    (tmp_path/name).write_bytes(text.encode(encoding))
    (tmp_path/f'{name}.gz').write_bytes(gzip.compress(text.encode(encoding)))
    assert read_table(tmp_path/name) == read_table(tmp_path/f'{name}.gz') == ROWS


BAD = {
    'Latin-1': ('a.jsonl', LINES.encode('latin1'), 'a.jsonl line 1: byte 0xe9'),
    'Latin-1 csv': ('a.csv', csv_text().encode('latin1'), 'a.csv line 2: byte 0xe9'),
    'torn': ('a.jsonl', LINES[:-5].encode(), 'line 2 is not one JSON'),
    'torn middle': ('a.jsonl', LINES.replace('"04"}', '"04').encode(), 'line 1 is not JSON'),
    'field twice': ('a.jsonl', b'{"a": 1, "a": 2}\n', "called 'a'"),
    'field twice later': ('a.jsonl', b'{"a": 1}\n{"a": 1, "a": 2}\n', 'line 2 .*called .a.'),
    'repr of Python': ('a.jsonl', b"{'a': 1}\n", 'line 1 is not JSON'),
    'not an object': ('a.jsonl', b'{"a": 1}\n[1]\n', 'line 2 is a list'),
    'array of texts': ('a.json', b'["a", "b"]', 'row 0 of .*a.json is a text'),
    'two columns of a name': ('a.csv', b'a,a\n1,2\n', "line 1: two columns are called 'a'"),
    'short row': ('a.csv', b'a,b\n1,2\n3\n', 'line 3 has 1 cells, expected 2'),
    'long row': ('a.csv', b'a,b\n1,2,3\n', 'line 2 has more cells'),
    'open quote': ('a.csv', b'a,b\n1,2\n"3,4\n5,6\n', 'line 3: unexpected end'),
    'quote in a cell': ('a.csv', b'a,b\n"x" y,2\n', 'line 2:'),
    'header again': ('a.csv', b'a,b\n1,2\na,b\n3,4\n', 'line 3 is the header again'),
    'two separators': ('a.csv', b'a,b;c\n1,2;3\n', 'line 1 can be split at'),
    'after the separator line': ('a.csv', b'sep=;\na;b\n1\n', 'line 3 has 1 cells'),
    'no rows': ('a.csv', b'a,b\n', 'a.csv holds no rows'), 'empty': ('a.jsonl', b'', 'a.jsonl holds no rows'),
    'no parquet': ('a.parquet', b'PAR1 or not', 'a.parquet is damaged'),
    'spreadsheet': ('a.csv', b'PK\x03\x04xx', 'export the sheet as CSV'),
    'cut gzip': ('a.csv.gz', gzip.compress(csv_text().encode())[:-9], 'a.csv.gz is damaged'),
    'excel': ('a.xlsx', b'PK\x03\x04', "ends in '.xlsx'")}


@pytest.mark.parametrize('name', BAD)
def test_what_can_be_read_in_two_ways_names_file_and_line(name, tmp_path):
    file, data, says = BAD[name]
    (tmp_path/file).write_bytes(data)
    with pytest.raises(ValueError, match=says): read_table(tmp_path/file)


def test_long_cells_are_no_fault(tmp_path):
    pd.DataFrame([dict(question='x'*400_000, answer='1')]).to_csv(tmp_path/'a.csv', index=False)
    assert len(read_table(tmp_path/'a.csv')[0]['question']) == 400_000


def test_line_separators_inside_a_text_end_no_row(tmp_path):
    rows = [dict(question='a\u2028b\x85c\x0bd', answer='1')]
    (tmp_path/'a.jsonl').write_text(json.dumps(rows[0], ensure_ascii=False) + '\n', encoding='utf-8')
    assert read_table(tmp_path/'a.jsonl') == rows


@pytest.mark.parametrize('x, text', [(27.0, '27'), (1e-05, '0.00001'), (0.1, '0.1'), (-0.0, '0'), (1e22, '1' + '0'*22),
                                     (123456789.123, '123456789.123'), (2**70, str(2**70)), (Decimal('1.50'), '1.5'),
                                     (Decimal('1E-7'), '0.0000001'), (-3, '-3'), (100, '100')])
def test_numbers_are_written_as_people_do(x, text):
    assert number_text(x) == text


@pytest.mark.parametrize('x', [math.nan, math.inf, -math.inf, Decimal('NaN'), Decimal('1E+999999')])
def test_what_is_no_number_has_no_text(x):
    with pytest.raises(ValueError): number_text(x)


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
def test_a_number_reads_back_as_itself(x):
    text = number_text(x)
    assert float(text) == x and 'e' not in text.lower() and not (('.' in text) and text.endswith('0'))


def test_a_number_in_a_file_keeps_its_digits():
    row, = json_rows('{"a": 3.141592653589793238462643, "b": 1e-05, "c": 12345678901234567890123, "d": 1e400}', 'x')
    assert [text_cell(row, c, 'row 0') for c in 'abc'] == ['3.141592653589793238462643', '0.00001',
                                                           '12345678901234567890123']
    assert len(number_text(json_rows('{"a": 1e300}', 'x')[0]['a'])) == 301


NO_TEXT = [None, math.nan, math.inf, True, [], ['4'], {}, {'a': 1}, '', '  ', 'nan', 'NaN', 'None', 'null', b'4',
           pd.Timestamp(0), '\ud800', 'a\0b']


@pytest.mark.parametrize('value', NO_TEXT, ids=repr)
@pytest.mark.parametrize('column', ['question', 'answer', 'id', 'family', 'solution'])
def test_a_cell_that_holds_no_text_names_row_and_column(value, column):
    good = dict(question='2+2?', answer='4', id='a', family='sums', solution='2+2=4')
    columns = {c: c for c in good}
    with pytest.raises(ValueError, match=f"row 1 of toy.csv: column '{column}' "):
        map_columns([good, dict(good, id='b') | {column: value}], columns, 'toy.csv', 'train')
    with pytest.raises(ValueError, match=f"row 1 of toy.csv has no column '{column}'"):
        map_columns([good, {k: v for k, v in dict(good, id='b').items() if k != column}], columns, 'toy.csv', 'train')


@pytest.mark.parametrize('save', ['jsonl', 'csv', 'parquet', 'json'])
@pytest.mark.parametrize('gap', [None, math.nan])
def test_a_gap_in_a_file_is_never_the_text_nan(save, gap, tmp_path):
    frame = pd.DataFrame([dict(question='2+2?', answer=4), dict(question='3+3?', answer=gap)])
    path = tmp_path/f'a.{save}'
    writers = dict(csv=lambda: frame.to_csv(path, index=False), parquet=lambda: frame.to_parquet(path),
                   jsonl=lambda: frame.to_json(path, orient='records', lines=True),
                   json=lambda: frame.to_json(path, orient='records'))
    writers[save]()
    with pytest.raises(ValueError, match="row 1 of a.*: column 'answer' is"): load_questions(str(path), 'train', BOTH)
    path.with_suffix('.jsonl').write_text('{"question": "2+2?", "answer": NaN}\n')
    with pytest.raises(ValueError, match="row 0 of a.jsonl: column 'answer' is nan"):
        load_questions(str(path.with_suffix('.jsonl')), 'train', BOTH)


@pytest.mark.parametrize('answer, gold', [
    ('Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72', '72'), ('#### 1,000', '1000'), ('x\n#### $18', '18'),
    ('x #### -3', '-3'), ('#### $-3', '-3'), ('#### -$3', '-3'), ('#### 2,125,000.50', '2125000.50'),
    ('#### 18.', '18'),
    ('#### 3,4', '3,4'), ('#### 1/2', '1/2'), ('#### Step 1\nx\n#### 7\n', '7'),
    (r'So \boxed{\frac{1}{2}}.', r'\frac{1}{2}'), ('1,000', '1,000'), ('$18', '$18'), (' 7 ', '7'), ('070', '070')])
def test_gold_answers_of_known_data_sets(answer, gold):
    assert gold_text(answer) == gold


@pytest.mark.parametrize('answer', ['no answer\n####', '####', '#### Step 1\nnothing more', r'\boxed{}'])
def test_a_solution_without_its_answer_names_row_and_column(answer):
    with pytest.raises(ValueError, match="row 0 of gsm8k: column 'answer' has"):
        map_columns([dict(question='q', answer=answer)], BOTH, 'gsm8k', 'train')


def test_gsm8k_from_a_file(tmp_path):
    row = dict(question='How many clips?', answer='48/2 = <<48/2=24>>24.\n48+24 = 72 clips.\n#### 72')
    (tmp_path/'train.jsonl').write_text(json.dumps(row))
    path, columns = str(tmp_path/'train.jsonl'), dict(BOTH, solution='answer')
    assert load_questions(path, 'train', columns)[0]['answer'] == '72'
    assert load_solutions(path, 'train', columns)[0]['reasoning'].endswith('72 clips.')


@pytest.mark.parametrize('ids, says', [(['a', 'b', 'a'], "rows 0 and 2 both have 'a'"),
                                       ([1, 1.0, 2], "rows 0 and 1 both have '1'")])
def test_ids_that_are_not_unique_are_named_with_their_rows(ids, says):
    rows = [dict(question='q', answer='1', id=i) for i in ids]
    with pytest.raises(ValueError, match=says): map_columns(rows, dict(BOTH, id='id'), 'x', 'train')


def test_ids_and_levels_of_many_kinds():
    made = map_columns([dict(question='q', answer=1, id=7, level='Level 5'),
                        dict(question='q', answer=0.5, id=8.0, level=3.0)], dict(BOTH, id='id', level='level'), 'x',
                       'train')
    assert [(p['id'], p['answer'], p['level']) for p in made] == [('7', '1', 5), ('8', '0.5', 3)]
    for bad in ('Level ?', 2.5, -1, None, 'hard'):
        with pytest.raises(ValueError, match="row 3: column 'level' is"): level_cell(dict(level=bad), 'level', 'row 3')


def test_a_column_of_nearly_that_name_is_suggested():
    with pytest.raises(ValueError, match=r"has no column 'question' \(did you mean 'Question'\?\)"):
        map_columns([{'Question': 'q', 'answer': '1'}], BOTH, 'x', 'train')


@pytest.mark.parametrize('value', ['', 'x', None, '1 s', math.nan, True, [1], '1,5', '1_000'])
def test_what_is_no_number_names_row_and_column(value):
    with pytest.raises(ValueError, match="row 2 of x.csv: column 'n' is"):
        number_cell(dict(n=value), 'n', 'row 2 of x.csv')


def test_parquet_keeps_numbers_exact(tmp_path):
    table = pa.table(dict(question=['a', 'b'], big=pa.array([2**53 + 1, None]),
                          single=pa.array([0.1, 27], pa.float32()), money=pa.array([Decimal('1.50'), Decimal('2.00')])))
    pq.write_table(table, tmp_path/'a.parquet')
    rows = read_table(tmp_path/'a.parquet')
    assert [[text_cell(r, c, 'row') for c in ('single', 'money')] for r in rows] == [['0.1', '1.5'], ['27', '2']]
    assert rows[0]['big'] == 2**53 + 1 and rows[1]['big'] is None
    categories = pa.table(dict(a=pa.array(['x', 'y', 'x']).dictionary_encode()))
    assert arrow_rows(categories, 't') == [dict(a='x'), dict(a='y'), dict(a='x')]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fixed_dictionaries(dict(question=st.text(st.characters(codec='utf-8', exclude_characters='\x00\r'),
                                                            min_size=1, max_size=20), answer=st.text('0123456789abc',
    min_size=1))), min_size=1, max_size=5), st.sampled_from(',;\t|'))
def test_what_csv_writes_is_what_it_reads(rows, separator):
    rows = [r for r in rows if r['question'].strip() and list(r.values()) != list(r)]
    text = pd.DataFrame(rows, columns=['question', 'answer']).to_csv(index=False, sep=separator, quoting=1)
    assert csv_rows(text, 'x') == rows
