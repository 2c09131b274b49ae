"""Stage 11: what is written is what is read, the card tells the truth, and nothing is published by accident."""
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
import yaml
from datasets import load_dataset, load_from_disk

from conftest import ROOT
from mcft.core import notebook_params, read_rows, write_rows
from mcft.dataset import DatasetConfig, FEATURES, dataset_rows, push_to_hub, run_dataset

EVIL = '<script>window.pwned=1</script>|\n\n# [x](javascript:window.pwned=1)\n```\n<img src=x onerror=window.pwned=1>'


@pytest.fixture(scope='module')
def artifacts(tmp_path_factory):
    "The pocket artifacts with some rows dropped and one row hostile."
    d = tmp_path_factory.mktemp('artifacts')
    critiques, rollouts = read_rows('data/pocket/critiques.jsonl',
                                    'critiques')[:30], read_rows('data/pocket/rollouts.jsonl', 'rollouts')
    for c in critiques[:4]: c.update(status='dropped', reason='format fault')
    critiques[4].update(critique=EVIL, teacher='a|<b>')
    write_rows(d/'critiques.jsonl', critiques, 'critiques')
    write_rows(d/'rollouts.jsonl', rollouts, 'rollouts')
    return d


def config(d, out, **kw) -> DatasetConfig:
    kw = dict(licences={'pocket': 'apache-2.0'}) | kw
    return DatasetConfig(d/'critiques.jsonl', d/'rollouts.jsonl', out_dir=out, **kw)


def with_benchmarks(d, out) -> DatasetConfig:
    return config(d, out, benchmark_problems='data/pocket/problems.jsonl.gz', benchmarks=('chain', 'gcd'),
                  name='A | <b>name</b>')


@pytest.fixture(scope='module')
def run(artifacts, tmp_path_factory):
    out = tmp_path_factory.mktemp('run')/'11'
    run_dataset(with_benchmarks(artifacts, out))
    return out


def wanted(artifacts) -> list:
    return dataset_rows(read_rows(artifacts/'critiques.jsonl'), read_rows(artifacts/'rollouts.jsonl'),
                        read_rows('data/pocket/problems.jsonl.gz'))


def test_every_way_of_loading_gives_the_rows_back(artifacts, run, tmp_path):
    rows = wanted(artifacts)
    assert len(rows) == 26 and {r['critique'] for r in rows} >= {EVIL}
    assert load_from_disk(run/'saved').to_list() == rows
    hub = load_dataset(str(run/'hub'), split='train', cache_dir=str(tmp_path))
    assert hub.to_list() == rows and hub.features == FEATURES
    assert pd.read_parquet(run/'hub'/'data'/'train-00000-of-00001.parquet').to_dict('records') == rows


def test_the_card_counts_what_is_there(run):
    _, head, body = (run/'hub'/'README.md').read_text().split('---\n', 2)
    head = yaml.safe_load(head)
    assert head['license'] == 'apache-2.0' and head['size_categories'] == ['n<1K']
    assert head['configs'][0]['data_files'][0]['path'] == 'data/train-*.parquet'
    for line in ('| asked | 30 | 1.0 |', '| dropped: format fault | 4 | 0.1333 |', '| kept | 26 | 0.8667 |',
                 '| gcd | 13 | 2000 |', '| symbolic | none | 25 |'):
        assert line in body, line


def test_text_of_data_cannot_break_the_card(run):
    outside = (run/'hub'/'README.md').read_text().split('---\n', 2)[2].split('## An example')
    table = outside[0]
    assert '<b>' not in table and '<script' not in table and '\n# [x]' not in table
    fence = outside[1].split('text\n')[0].strip()
    assert outside[1].count(f'\n{fence}\n') == 1


def test_a_source_without_a_licence_stops_it(artifacts, tmp_path):
    with pytest.raises(ValueError, match="no licence given for the source 'pocket'"):
        run_dataset(config(artifacts, tmp_path/'x', licences={}))
    assert not (tmp_path/'x'/'run.json').exists()


def test_an_unknown_benchmark_or_an_unfinished_run_stops_it(artifacts, tmp_path):
    with pytest.raises(ValueError, match="unknown benchmark 'chian'"):
        run_dataset(config(artifacts, tmp_path/'a', benchmark_problems='data/pocket/problems.jsonl.gz',
                           benchmarks=('chian',)))
    with pytest.raises((ValueError, FileNotFoundError), match='run'):
        run_dataset(config(artifacts, tmp_path/'b', made_by=(str(tmp_path/'none'),)))


def test_two_runs_write_the_same_bytes(artifacts, run, tmp_path):
    run_dataset(with_benchmarks(artifacts, tmp_path/'again'))
    for f in ('hub/README.md', 'hub/data/train-00000-of-00001.parquet'):
        assert (tmp_path/'again'/f).read_bytes() == (run/f).read_bytes()


def test_publishing_is_off_and_refuses_without_name_token_or_run(run, tmp_path, monkeypatch):
    assert notebook_params('nbs/around/03_dataset.ipynb')['push_to'] == "''"
    monkeypatch.delenv('HF_TOKEN', raising=False)
    with pytest.raises(ValueError, match='set the environment variable HF_TOKEN'): push_to_hub(run, 'org/name')
    monkeypatch.setenv('HF_TOKEN', 'hf_marker')
    for name in ('', 'name', 'a/b/c', 'org/na me'):
        with pytest.raises(ValueError, match='"org/name" is needed') as e: push_to_hub(run, name)
        assert 'hf_marker' not in str(e.value)
    with pytest.raises(ValueError, match='is not complete'): push_to_hub(tmp_path, 'org/name')


class Refuses(BaseHTTPRequestHandler):
    "A hub that knows the token and refuses it."
    asked = []

    def do_POST(self):
        self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.asked.append((self.path, self.headers.get('Authorization')))
        body = json.dumps(dict(error='Forbidden')).encode()
        self.send_response(403)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *a): pass


def test_the_token_goes_to_the_hub_and_into_no_message(run):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = dict(os.environ, HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HUB_OFFLINE='0',
               HF_TOKEN='hf_marker',
               HF_HUB_DISABLE_TELEMETRY='1', NO_PROXY='127.0.0.1')
    code = f'from mcft.dataset import push_to_hub; push_to_hub({str(run)!r}, "org/name")'
    try:
        done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True,
                              timeout=120)
    finally: server.shutdown()
    assert done.returncode != 0 and '403' in done.stderr and 'hf_marker' not in done.stderr + done.stdout
    assert Refuses.asked and Refuses.asked[0][1] == 'Bearer hf_marker'
