"""Fetching by pinned commit against a real server: the right file comes through, a wrong one leaves nothing."""
import ast
import hashlib
import http.server
import json
import re
import subprocess
import sys
import threading
from functools import partial

import pandas as pd
import pytest

from conftest import ROOT, needs_files
from mcft import released
from mcft.core import check_row
from mcft.released import BENCHMARKS, benchmark_problems, fetch, fill, git_blob, paper_rows

GOOD = b'{"id": 1}\n'


class Handler(http.server.SimpleHTTPRequestHandler):
    """A folder; /short promises more bytes than it sends, /slow sends none, /broken answers 500; what was asked is
    counted."""
    def log_message(self, *args): pass

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == '/slow': return self.server.ended.wait(10)
        if self.path == '/broken': return self.send_error(500)
        if self.path != '/short': return super().do_GET()
        self.send_response(200)
        self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(GOOD)


@pytest.fixture
def site(tmp_path, monkeypatch):
    "A server of a folder, a registry of what should be there, an empty cache; no data folder."
    monkeypatch.delenv('MCFT_DATA_DIR', raising=False)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    folder, cache = tmp_path/'site', tmp_path/'cache'
    folder.mkdir()
    for name in ('good', 'blob'): (folder/name).write_bytes(GOOD)
    (folder/'changed').write_bytes(b'something else')
    (folder/'changed_blob').write_bytes(b'something else')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=folder))
    server.daemon_threads, server.asked, server.ended = True, [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    sha = hashlib.sha256(GOOD).hexdigest()
    rows = [dict(path=f'released/{n}.jsonl', url=f'{url}/{n}', sha256='' if 'blob' in n or n in ('short', 'slow')
                 else sha, git_blob=git_blob(GOOD))
            for n in ('good', 'blob', 'changed', 'changed_blob', 'missing', 'broken', 'short', 'slow')]
    rows.append(dict(path='derived/made.jsonl', url='', sha256=sha, git_blob=git_blob(GOOD)))
    server.files, server.cache, server.folder, server.url = pd.DataFrame(rows), cache, folder, url
    server.get = partial(fetch, files=server.files, cache=cache)
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


def kept(site):
    "Every file in the cache, temporary ones included."
    return sorted(p.name for p in site.cache.rglob('*') if p.is_file())


@pytest.mark.parametrize('name', ['good', 'blob'])
def test_a_good_file_comes_through_once(site, name):
    path = site.get(f'released/{name}.jsonl')
    assert path.read_bytes() == GOOD
    assert site.get(f'released/{name}.jsonl') == path and len(site.asked) == 1


@pytest.mark.parametrize('name', ['changed', 'changed_blob'])
def test_a_changed_file_is_refused_and_leaves_nothing(site, name):
    with pytest.raises(ValueError, match=f'released/{name}.jsonl: {site.url}/{name} is refused and nothing is kept'):
        site.get(f'released/{name}.jsonl')
    assert kept(site) == []


@pytest.mark.parametrize('name, says', [('missing', 'answered 404'), ('broken', 'answered 500'),
                                        ('short', 'cannot be reached'),
                                        ('slow', 'cannot be reached')])
def test_a_failing_server_is_named_with_the_way_out(site, monkeypatch, name, says):
    monkeypatch.setattr(released, 'TIMEOUT', 0.5)
    with pytest.raises(ConnectionError) as e: site.get(f'released/{name}.jsonl')
    text = str(e.value)
    assert says in text and f'{site.url}/{name}' in text and f'MCFT_DATA_DIR names, as released/{name}.jsonl' in text
    assert e.value.__cause__ is None and e.value.__suppress_context__  # no stack of urllib below it
    assert kept(site) == []


def test_offline_the_trace_is_short(site):
    "What a user without a network sees: no frames of urllib3 or requests."
    rows = site.files.assign(url='http://127.0.0.1:9/nowhere').to_dict('records')
    code = ('import pandas as pd; from mcft.released import fetch; '
            f'fetch("released/good.jsonl", pd.DataFrame({rows!r}), {str(site.cache)!r})')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and 'site-packages' not in done.stderr and 'urllib' not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ConnectionError: released/good.jsonl: http://127.0.0.1:9/nowhere cannot be reached '
                           '(ConnectionError)')
    assert 'MCFT_DATA_DIR' in last


def test_a_file_without_a_url_can_only_come_from_the_folder(site):
    with pytest.raises(FileNotFoundError, match='has no url: it was derived.*MCFT_DATA_DIR'):
        site.get('derived/made.jsonl')


def test_the_cache_serves_offline_and_is_verified(site):
    path = {n: site.get(f'released/{n}.jsonl') for n in ('good', 'blob')}
    for p in path.values(): p.write_bytes(b'damaged on disk')
    assert all(site.get(f'released/{n}.jsonl').read_bytes() == GOOD for n in path)  # fetched anew
    site.shutdown()
    site.server_close()
    asked = len(site.asked)
    assert all(site.get(f'released/{n}.jsonl').read_bytes() == GOOD for n in path) and len(site.asked) == asked
    path['blob'].write_bytes(b'damaged on disk')
    with pytest.raises(ConnectionError, match='cannot be reached'): site.get('released/blob.jsonl')
    assert kept(site) == ['good.jsonl']  # the damaged copy is gone, so it cannot be read by mistake


def test_a_damaged_copy_is_not_replaced_by_a_changed_file(site):
    site.get('released/blob.jsonl').write_bytes(b'damaged on disk')
    (site.folder/'blob').write_bytes(b'something else')
    with pytest.raises(ValueError, match=f'expected {git_blob(GOOD)}'): site.get('released/blob.jsonl')
    assert kept(site) == []


def test_the_folder_comes_first_and_is_verified(site, tmp_path, monkeypatch):
    folder = tmp_path/'data'
    (folder/'released').mkdir(parents=True)
    (folder/'released'/'good.jsonl').write_bytes(GOOD)
    monkeypatch.setenv('MCFT_DATA_DIR', str(folder))
    assert site.get('released/good.jsonl') == folder/'released'/'good.jsonl' and not site.asked
    assert site.get('released/blob.jsonl').is_relative_to(site.cache)  # not in the folder: downloaded
    (folder/'released'/'good.jsonl').write_bytes(b'edited by hand')
    with pytest.raises(ValueError, match='good.jsonl has sha256'): site.get('released/good.jsonl')
    assert (folder/'released'/'good.jsonl').read_bytes() == b'edited by hand'  # a user's own file is not deleted
    monkeypatch.setenv('MCFT_DATA_DIR', str(folder/'nowhere'))
    with pytest.raises(FileNotFoundError, match='which is no folder: correct it, or unset it'):
        site.get('released/good.jsonl')


def test_several_at_once(site):
    "Threads that want the same file all get a whole one."
    got, n = [], 6
    threads = [threading.Thread(target=lambda: got.append(site.get('released/good.jsonl').read_bytes()))
               for _ in range(n)]
    for t in threads: t.start()
    for t in threads: t.join(30)
    assert got == [GOOD]*n and kept(site) == ['good.jsonl']


def test_unknown_names():
    with pytest.raises(ValueError, match='is not in the registry: it has benchmarks/aime24.jsonl'):
        fetch('benchmarks/aime25.jsonl')
    with pytest.raises(ValueError, match='one of aime24, amc23, math500, olympiadbench'): benchmark_problems('aime25')


def test_the_committed_registry():
    "Public addresses at a pinned commit, no spaces; a digest for every file, and no sha256 for what nobody has seen."
    files = paper_rows('files')
    assert files.path.is_unique and set(files.kind) == {'benchmark', 'outputs', 'derived'}
    for f in files.itertuples():
        assert re.fullmatch('[0-9a-f]{40}', f.git_blob) and re.fullmatch('[0-9a-f]{64}' if f.status == 'available'
                                                                         else '', f.sha256)
        if f.kind == 'derived':
            assert not f.url
            continue
        assert f.url.startswith(f'https://raw.githubusercontent.com/{f.source_repository}/{f.commit}/')
        assert ' ' not in f.url
    assert files[files.kind == 'benchmark'].set_index('path')['rows'].to_dict() == {f'benchmarks/{n}.jsonl': k for n,
                                                                                    k in BENCHMARKS.items()}


def outputs(n, right):
    """An output file with counts like the paper's; the first `right` of `n` are right. No ids, as the release may
    have it."""
    return '\n'.join(json.dumps(dict(question='q', generated_responses=[rf'<think></think>\boxed{{{i}}}'],
                                     generated_answers=[str(i)], gold_answer=str(i),
                                     is_correct=i < right, answers_correctness=[i < right])) for i in range(n))


def test_absent_outputs_fill_their_cells(site):
    """Every absent MATH-500 and OlympiadBench file, fetched and verified by blob id: its cell of the paper's table is
    counted."""
    from mcft.eval import paper_cells, released_cells
    printed = paper_cells('1')
    count = {(c['model'], c['benchmark']): (c['n'], c['correct']) for c in printed}
    model = {run: m for m, run in released.RUNS.items()}
    files = paper_rows('files').query("status == 'absent' and benchmark in ('math500', 'olympiadbench')").copy()
    for i, f in files.iterrows():
        text = outputs(*count[model[f.path.split('/')[1]], f.benchmark])
        (site.folder/f'{i}').write_text(text)
        files.loc[i, ['url', 'git_blob']] = f'{site.url}/{i}', git_blob(text.encode())
    assert len(files) == 6
    filled = fill(files=files, cache=site.cache)
    cells = released_cells(printed, filled)
    assert [(c['n'], c['correct']) for c in cells] == [(c['n'], c['correct']) for c in printed]
    assert len(filled) == 451 + 3*(500 + 675) and not filled.duplicated(['run', 'benchmark', 'settings', 'problem_id',
                                                                         'sample']).any()
    (site.folder/str(files.index[0])).write_text(outputs(500, 1))
    for p in site.cache.rglob('*math500*'): p.unlink()
    with pytest.raises(ValueError, match='is refused and nothing is kept'): fill(files=files, cache=site.cache)


def test_no_pickle_is_ever_opened():
    "Pickles of the release are named by blob id only: no module that reads the release can load one."
    for name in ('released', 'audit'):
        tree = ast.parse((ROOT/'mcft'/f'{name}.py').read_text(encoding='utf-8'))
        names = {a.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))
                 for a in n.names} | {getattr(n, 'module', None)
            for n in ast.walk(tree)}
        attrs = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not {'pickle', 'cloudpickle', 'joblib', 'dill'} & names and not {'read_pickle', 'Unpickler'} & attrs


@needs_files
def test_real_benchmarks():
    problems = {n: benchmark_problems(n) for n in BENCHMARKS}
    assert {n: len(p) for n, p in problems.items()} == BENCHMARKS
    assert len({p['id'] for ps in problems.values() for p in ps}) == sum(BENCHMARKS.values())
    for ps in problems.values():
        for p in ps: check_row(p, 'problems')
    amc = paper_rows('responses').query("benchmark == 'amc23'")
    golds = amc.drop_duplicates('problem_id').set_index('problem_id').gold
    assert {p['id'].removeprefix('amc23-'): p['answer'] for p in problems['amc23']} == {i: g.removesuffix('.0') for i,
                                                                                        g in golds.items()}
