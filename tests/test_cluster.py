"""The workflow on a cluster, as far as it can be tested without one.

tests/cluster/slurm.sh (`make cluster`) runs it on a Slurm."""
import csv
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml
from snakemake.cli import get_argument_parser

from conftest import ROOT
from mcft.grid import REPORTS, SECTIONS, read_grid

PROFILE = ROOT/'configs'/'slurm'
GPU_RULES = {'data', 'train', 'evaluate'}
def rows(name):
    return list(csv.DictReader(open(ROOT/'data'/'results'/name, newline='')))


def rules():
    "Names of the Snakefile's rules: one for each section of a config, and those that it writes out."
    written = re.findall(r'^rule (\w+):', (ROOT/'Snakefile').read_text(), re.M)
    return {*written, *REPORTS, *SECTIONS, 'evaluate'} - {'eval', 'eval_dev'}


def dry_run(config, run_dir, *args):
    "What Snakemake would do, in words, by rule."
    done = subprocess.run([sys.executable, '-m', 'snakemake', '-n', '--nolock', '--configfile',
                           f'configs/{config}.yaml', '--config', f'run_dir={run_dir}', *args],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    return re.findall(r'^rule (\w+):\n(.*?)(?=^\[|^Job stats|^rule )', said, re.M | re.S)


def test_profile_names_only_what_there_is():
    profile = yaml.safe_load((PROFILE/'config.yaml').read_text())
    known = {o.removeprefix('--') for a in get_argument_parser()._actions for o in a.option_strings}
    plugin = find_spec('snakemake_executor_plugin_slurm')
    unknown = {k for k in profile if k not in known and (plugin or not k.startswith('slurm-'))}
    assert not unknown, f'configs/slurm/config.yaml: {unknown} are no options of snakemake'
    assert profile['executor'] == 'slurm' and profile['retries'] > 0
    assert {*profile.get('set-resources', {}), *profile.get('set-threads', {})} <= rules()


def test_gpus_go_to_the_rules_that_run_the_model(tmp_path):
    jobs = dry_run('smoke', tmp_path/'run', 'resources={gpu: 2, gpu_model: a100}', '--cores', '1')
    assert {rule for rule, text in jobs if 'gpu=2' in text and 'gpu_model=a100' in text} == {rule for rule, text in jobs
        if ' gpu=' in text} == GPU_RULES
    scored = dry_run('ablation', tmp_path/'grid', 'resources={gpu: 1}', '--cores', '1')
    assert {rule for rule, text in scored if ' gpu=1' in text} == GPU_RULES | {'masking'}
    assert (read_grid('configs/paper.yaml')['resources']['gpu'] == 1
            and not read_grid('configs/pocket.yaml')['resources'])


def test_misspelt_resource_stops_it(tmp_path):
    with pytest.raises(AssertionError, match="unknown resource 'gpus' in the config: one of gpu, "):
        dry_run('smoke', tmp_path/'run', 'resources={gpus: 1}', '--cores', '1')


@pytest.mark.skipif(not find_spec('snakemake_executor_plugin_slurm'),
                    reason='the extra `slurm` is not installed: make reproduce CLUSTER=slurm does it')
@pytest.mark.parametrize('config', ['smoke', 'paper', 'ablation'])
def test_dry_run_with_the_profile(config, tmp_path):
    jobs = dry_run(config, tmp_path/'run', '--profile', str(PROFILE))
    also = set() if config == 'ablation' else {'tables', 'costs'}
    assert {'data', 'critique', 'masking', 'train', 'evaluate', 'figures', *also} <= {rule for rule, _ in jobs}
    for rule, text in jobs:
        assert re.search(r'mem_mb=\d+.*cpus_per_task=\d+|cpus_per_task=\d+.*mem_mb=\d+',
                         text) and 'runtime=' in text, f'{rule}: {text}'


def test_make_sends_the_jobs_of_a_run_to_the_cluster():
    def run(*words):
        return subprocess.run(['make', '-n', 'reproduce', 'PROFILE=smoke', *words], cwd=ROOT,
                                            capture_output=True, text=True, timeout=60).stdout
    assert '--profile configs/slurm ' in run('CLUSTER=slurm') and "'.[slurm]'" in run('CLUSTER=slurm', '-B')
    assert '--cores 2 ' in run() and 'slurm' not in run()


def test_rows_of_the_runs_on_slurm():
    """What a whole and a disturbed run on a Slurm of one node left: slurm.csv counts the rows of slurm_jobs.csv, and
    no verdict differed."""
    jobs, checks = rows('slurm_jobs.csv'), rows('slurm.csv')
    for c in checks:
        of = [j for j in jobs if j['check'] == c['check']]
        def count(state):
            return sum(j['state'] == state for j in of)
        assert [int(c[k]) for k in ('jobs', 'completed', 'failed', 'cancelled', 'node_fail')] == [len(of),
            *map(count, ('COMPLETED', 'FAILED', 'CANCELLED', 'NODE_FAIL'))]
        assert int(c['requeued']) == sum(int(j['requeued']) for j in of)
        assert (c['tasks'] == c['tasks_complete'] == str(count('COMPLETED'))
                and c['verdicts'] == c['verdicts_equal'] != '0')
    assert sorted(j['state'] for j in jobs if j['fault']) == ['CANCELLED', 'COMPLETED', 'FAILED', 'NODE_FAIL']
    assert {j['rule'] for j in jobs} <= rules() and {j['rule'] for j in jobs if j['gpus'] != '0'} == GPU_RULES
