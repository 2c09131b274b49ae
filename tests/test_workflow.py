"""The whole workflow in its smallest size: killed in the middle, resumed, complete, and idle when asked again."""
import base64
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from conftest import ROOT

SMOKE = ROOT/'configs'/'smoke.yaml'
STAGES = '01_data', '02_critique', '03_masking', '04_train', '05_eval', '06_ablation'


def command(config, run_dir, *args):
    return [sys.executable, '-m', 'snakemake', '--cores', '2', '--force-use-threads', '--nolock',
            '--rerun-incomplete', '--configfile', str(config), '--config', f'run_dir={run_dir}', *args]


def snakemake(config, run_dir, *args):
    "Run to the end; what it said goes with a failure."
    return subprocess.run(command(config, run_dir, *args), cwd=ROOT, capture_output=True, text=True, timeout=900)


def kill_after(path: Path, config, run_dir):
    "Start the workflow and kill it with all its processes as soon as `path` is there."
    with subprocess.Popen(command(config, run_dir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as p:
        until = time.time() + 300
        while not path.exists() and p.poll() is None and time.time() < until: time.sleep(0.2)
        os.killpg(p.pid, signal.SIGKILL)
    assert path.exists(), f'the workflow ended before it wrote {path.name}'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run that was killed when its first stage was complete and its second had begun, and then resumed."
    folder = tmp_path_factory.mktemp('run')/'smoke'
    first = folder/'01_data'/'run.json'
    kill_after(folder/'02_critique', SMOKE, folder)
    before = first.stat().st_mtime_ns
    done = snakemake(SMOKE, folder)
    assert done.returncode == 0, done.stderr[-5000:]
    assert first.stat().st_mtime_ns == before, 'the resumed run made the complete first stage again'
    return folder


def test_every_stage_left_a_complete_folder(run):
    for stage in STAGES:
        infos = list((run/stage).glob('**/run.json'))
        assert infos, f'no run.json in {stage}'
        for path in infos: assert {'params', 'inputs', 'versions', 'seconds'} <= set(json.loads(path.read_text())), path


def test_a_run_lists_every_file_it_wrote(run):
    "What a run does not list it would never replace, nor delete."
    for info in run.glob('**/run.json'):
        folder = info.parent
        listed = [line.split('\t')[0] for line in (folder/'.files').read_text().splitlines()]
        nested = [p.parent for p in folder.glob('*/**/run.json')]
        found = [p for p in folder.rglob('*') if p.is_file() and not p.name.startswith('.') and p.suffix != '.ipynb'
                 and p.parent.name != 'paid'  # what was paid for outlives its run
                 and not any(p.is_relative_to(n) for n in nested)]
        whole = tuple(f for f in listed if f.endswith('/'))
        names = [p.relative_to(folder).as_posix() for p in found]
        assert not [n for n in names if n not in listed and not n.startswith(whole)], folder


def test_tables_have_the_columns_of_the_paper_tables(run):
    with open(run/'results'/'table2.csv', newline='') as f: rows = list(csv.DictReader(f))
    assert list(rows[0]) == ['model', 'benchmark', 'source', 'n', 'correct', 'accuracy', 'low', 'high']
    assert {r['source'] for r in rows} == {'paper', 'released', 'pocket'}
    with open(run/'results'/'pocket_runs.csv', newline='') as f: assert list(csv.DictReader(f))


def test_figures_were_drawn(run):
    figures = list((run/'figures').glob('*.png'))
    assert figures and all(p.read_bytes()[:4] == b'\x89PNG' for p in figures)


@pytest.fixture(scope='module')
def report(run):
    "The text of Snakemake's report."
    page = run.parent/'report.html'
    done = snakemake(SMOKE, run, '--report', str(page))
    assert done.returncode == 0, done.stderr[-3000:]
    return page.read_text(encoding='utf-8')


def test_report_holds_every_figure(run, report):
    figures = list((run/'figures').glob('*.png'))
    assert figures and not [p.name for p in figures if base64.b64encode(p.read_bytes()).decode() not in report]


def test_its_report_holds_every_figure(run, report):
    "By name, and nothing comes from another host."
    assert not [p.name for p in (run/'figures').glob('*.png')
                if p.name not in report] and not re.search(r'<(script|link)[^>]+(src|href)="https?:', report)


def test_asked_again_it_does_nothing(run):
    stamps = {p: p.stat().st_mtime_ns for p in run.rglob('*') if p.is_file()}
    done = snakemake(SMOKE, run)
    assert done.returncode == 0 and 'Nothing to be done' in done.stderr, done.stderr[-3000:]
    assert stamps == {p: p.stat().st_mtime_ns for p in run.rglob('*') if p.is_file()}


def test_another_parameter_makes_its_jobs_run_again(run, tmp_path):
    "Those jobs and what reads them, and no other."
    config = yaml.safe_load(SMOKE.read_text())
    config['eval']['max_new_tokens'] -= 1
    (tmp_path/'other.yaml').write_text(yaml.safe_dump(config))
    planned = snakemake(tmp_path/'other.yaml', run, '--dry-run').stdout
    jobs = dict(re.findall(r'^(\w+) +(\d+)$', planned, re.M))
    assert {'evaluate', 'tables', 'figures'} <= set(jobs), planned
    assert not {'data', 'critique', 'masking', 'train'} & set(jobs), planned


@pytest.mark.parametrize('section, name', [('train', 'epocks'), ('data', 'n_question')])
def test_misspelt_parameter_stops_it_before_anything_runs(tmp_path, section, name):
    config = yaml.safe_load(SMOKE.read_text())
    config[section][name] = 1
    (tmp_path/'typo.yaml').write_text(yaml.safe_dump(config))
    done = snakemake(tmp_path/'typo.yaml', tmp_path/'run')
    assert done.returncode != 0 and f"'{name}' is no parameter" in done.stderr + done.stdout, done.stderr[-3000:]
    assert not list(tmp_path.glob('run/**/run.json'))


def test_paper_asks_the_hub_and_runs_one_job_at_a_time():
    "The switches of `make reproduce` (offline, two jobs) are not those of `make paper`."
    done = subprocess.run(['make', '-n', 'paper'], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert 'reproduce PROFILE=paper CORES=1 HF_HUB_OFFLINE=0' in done.stdout, done.stdout + done.stderr
    assert '--configfile configs/paper.yaml --quiet rules host --cores 1 ' in done.stdout


def test_base_in_shards_of_another_origin(tmp_path):
    "A local base needs neither model.safetensors nor run.json."
    base = tmp_path/'base'
    base.mkdir()
    shards = [f'model-0000{k}-of-00002.safetensors' for k in (1, 2)]
    for name in ('config.json', *shards): (base/name).write_text('{}')
    config = yaml.safe_load(SMOKE.read_text())
    for section in 'data', 'train': config[section]['model_dir'] = str(base)
    (tmp_path/'shards.yaml').write_text(yaml.safe_dump(config))
    done = snakemake(tmp_path/'shards.yaml', tmp_path/'run', '-n')
    assert done.returncode == 0 and 'model-00002-of-00002.safetensors' in done.stdout + done.stderr, done.stderr[-3000:]
    trained = next(text for text in (done.stdout + done.stderr).split('rule evaluate:')[1:]
                   if '05_eval/base/' not in text)
    assert '04_train/' in trained.split('output:')[0]
