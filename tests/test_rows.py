"""JSON-lines files as kills, editors and other programs leave them.

What is whole is read and kept, what is torn is cut, everything else names file and line.
"""
import gzip
from concurrent.futures import ThreadPoolExecutor

import pytest

from mcft.core import append_rows, read_rows, sha256_file, stream_rows, write_rows

ROW = dict(id='p1', source='pocket', split='train', question='2+2?', answer='4', family='chain', level=1)
TWO = '{"a": "é"}\n{"a": 2}\n'
SAME = {
    'as written': TWO.encode(), 'no last newline': TWO.rstrip().encode(), 'byte order mark': TWO.encode('utf-8-sig'),
    'Windows': TWO.replace('\n', '\r\n').encode(),
    'Windows without the last': TWO.replace('\n', '\r\n').rstrip().encode(),
    'blank lines': ('\n' + TWO.replace('\n', '\n\n') + ' \n').encode(), 'UTF-16': TWO.encode('utf-16'),
    'UTF-16 without mark': TWO.encode('utf-16-le'), 'UTF-32': TWO.encode('utf-32'),
    'two files joined': b''.join(line.encode('utf-8-sig') for line in TWO.splitlines(True))}


@pytest.mark.parametrize('name', SAME)
def test_what_changes_no_row_is_read(name, tmp_path):
    (tmp_path/'a.jsonl').write_bytes(SAME[name])
    (tmp_path/'a.jsonl.gz').write_bytes(gzip.compress(SAME[name]))
    for file in ('a.jsonl', 'a.jsonl.gz'):
        assert read_rows(tmp_path/file) == read_rows(tmp_path/file, partial=True) == [dict(a='é'), dict(a=2)]


BAD = {
    'torn': (b'{"a": 1}\n{"a": ', 'line 2: torn last line'),
    'torn in a character': ('{"a": 1}\n{"a": "é'.encode()[:-1], 'line 2: torn last line'),
    'NUL bytes': (b'{"a": 1}\n\0\0\0', 'line 2: torn'),
    'comma': (b'{"a": 1},\n{"a": 2}\n', 'line 1 is not JSON'), 'array': (b'[\n{"a": 1}\n]\n', 'line 1 is not JSON'),
    'middle': (b'{"a": 1}\n{"a" 2}\n{"a": 3}\n', 'line 2 is not JSON'),
    'Latin-1': ('{"a": 1}\n{"a": "é"}\n'.encode('latin1'), 'line 2 is byte 0xe9 is not UTF-8'),
    'list': (b'[1, 2]\n', 'line 1 is a list, expected an object'), 'number': (b'12\n', 'line 1 is a whole number')}


@pytest.mark.parametrize('name', BAD)
def test_what_is_no_row_names_file_and_line(name, tmp_path):
    data, says = BAD[name]
    (tmp_path/'a.jsonl').write_bytes(data)
    with pytest.raises(ValueError, match='a.jsonl ' + says.replace('(', r'\(')): read_rows(tmp_path/'a.jsonl')


def test_a_packed_file_that_is_cut_names_itself(tmp_path):
    write_rows(tmp_path/'a.jsonl.gz', [ROW]*2000)
    whole = (tmp_path/'a.jsonl.gz').read_bytes()
    for data in (whole[:len(whole)//2], b'{"a": 1}\n'):
        (tmp_path/'a.jsonl.gz').write_bytes(data)
        with pytest.raises(ValueError, match='a.jsonl.gz is damaged or no gzip file'): read_rows(tmp_path/'a.jsonl.gz')


def test_equal_rows_give_equal_packed_bytes(tmp_path):
    digests = []
    for _ in range(2):
        write_rows(tmp_path/'a.jsonl.gz', [ROW]*9)
        digests.append(sha256_file(tmp_path/'a.jsonl.gz'))
    assert digests[0] == digests[1] and read_rows(tmp_path/'a.jsonl.gz') == [ROW]*9


@pytest.mark.parametrize('torn', [0, 10, 70_000, 200_000])
def test_a_torn_line_is_cut_however_long_it_is(torn, tmp_path):
    "The last newline lies in the last block read, or blocks before it, or nowhere."
    for before, rows in ((b'{"a": 1}\n', [dict(a=1)]), (b'', [])):
        (tmp_path/'a.jsonl').write_bytes(before + b'x'*torn)
        append_rows(tmp_path/'a.jsonl', [dict(b=2)])
        assert read_rows(tmp_path/'a.jsonl') == rows + [dict(b=2)]


@pytest.mark.parametrize('end', ['', '\r', ' '])
def test_a_whole_last_line_is_kept_and_ended(end, tmp_path):
    for text in ('x', 'x'*100_000):
        (tmp_path/'a.jsonl').write_text('{"a": "%s"}%s' % (text, end), newline='')
        append_rows(tmp_path/'a.jsonl', [dict(b=2)])
        append_rows(tmp_path/'a.jsonl', [dict(c=3)])
        assert read_rows(tmp_path/'a.jsonl') == [dict(a=text), dict(b=2), dict(c=3)]


def test_nothing_is_appended_to_utf_16(tmp_path):
    (tmp_path/'a.jsonl').write_bytes(TWO.encode('utf-16'))
    with pytest.raises(ValueError, match='a.jsonl is utf-16: save it as UTF-8'):
        append_rows(tmp_path/'a.jsonl', [dict(a=1)])
    assert len(read_rows(tmp_path/'a.jsonl')) == 2


def test_rows_before_a_torn_line_are_handed_out(tmp_path):
    (tmp_path/'a.jsonl').write_bytes('{"a": "é"}\n{"a": "é'.encode()[:-1])
    rows = stream_rows(tmp_path/'a.jsonl')
    assert next(rows) == dict(a='é')
    with pytest.raises(ValueError, match='torn last line'): next(rows)
    assert read_rows(tmp_path/'a.jsonl', partial=True) == [dict(a='é')]


def test_no_writer_cuts_what_another_is_writing(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: append_rows(tmp_path/'a.jsonl', [dict(i=i, text='x'*50_000)]), range(40)))
    assert sorted(r['i'] for r in read_rows(tmp_path/'a.jsonl')) == list(range(40))


def test_an_id_that_two_rows_have_names_both_lines(tmp_path):
    write_rows(tmp_path/'a.jsonl', [ROW, dict(ROW, id='p2'), ROW], 'problems')
    with pytest.raises(ValueError, match="a.jsonl line 3: the id 'p1' is that of line 1"):
        read_rows(tmp_path/'a.jsonl', 'problems')


@pytest.mark.parametrize('field, value, says', [('answer', 4, 'expected text'), ('answer', None, 'expected text'),
                                                ('level', float('nan'), 'expected a whole number'),
                                                ('level', True, 'expected a whole number')])
def test_a_field_of_another_kind_names_line_and_field(field, value, says, tmp_path):
    write_rows(tmp_path/'a.jsonl', [dict(ROW, **{field: value})])
    with pytest.raises(ValueError, match=f'a.jsonl line 1: problems.{field} is .*, {says}'):
        read_rows(tmp_path/'a.jsonl', 'problems')
