"""What a later stage would stop at stops the workflow before its first job, and an estimate keeps its upper bound."""

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from conftest import ROOT
from mcft.critique import Guess, estimate_cost
from mcft.grid import check_grid, jobs, read_grid
from mcft.preflight import Place, find_place, main, memory_gib, preflight
from mcft.teacher import Ask, Endpoint, Limits, OpenAITeacher, Price
from mcft.train import TrainConfig


def test_a_fault_of_a_later_stage_starts_no_job(tmp_path):
    config = yaml.safe_load((ROOT / 'configs/smoke.yaml').read_text())
    where = dict(base_url='http://127.0.0.1:9/v1', key_env='NO_SUCH_KEY')
    config['critique'] = dict(teacher_name='openai', model='m', prices=dict(m=[1, 10]), **where)
    config['train']['device'] = 'cuda'
    (tmp_path / 'faulty.yaml').write_text(yaml.safe_dump(config))
    command = [sys.executable, '-m', 'snakemake', '--cores', '1', '--nolock', '--configfile', tmp_path / 'faulty.yaml']
    command += ['--config', f'run_dir={tmp_path / "run"}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode != 0 and 'NO_SUCH_KEY is not set' in done.stderr, done.stderr[-3000:]
    assert 'no answer from http://127.0.0.1:9/v1' in done.stderr, 'a missing key hides no missing server'
    assert not list(tmp_path.glob('run/**/run.json')) and not (tmp_path / 'run/01_data').exists()


def test_the_command_ends_with_1_where_something_is_missing(tmp_path, capsys):
    config = yaml.safe_load((ROOT / 'configs/smoke.yaml').read_text())
    config['masking']['max_length'] = 4096
    (tmp_path / 'long.yaml').write_text(yaml.safe_dump(config | dict(run_dir=str(tmp_path / 'run'))))
    assert main([str(tmp_path / 'long.yaml')]) == 1
    said = capsys.readouterr().out
    assert 'max_length=4096' in said and 'positions: lower it' in said


def test_a_file_of_problems_that_is_not_there_is_told_before_any_job(tmp_path):
    cfg = read_grid('configs/smoke.yaml') | dict(run_dir=str(tmp_path / 'run'))
    cfg['eval'] = cfg['eval'] | dict(problems=str(tmp_path / 'none.jsonl'))
    assert [f.where for f in preflight(cfg, 'configs/smoke.yaml') if 'no problems at' in f.what] == ['05_eval']


@pytest.mark.parametrize('reply_tokens', [1, 500, 5000])
@pytest.mark.parametrize('chars_per_token', [0.5, 3.0])
def test_an_estimate_never_exceeds_its_upper_bound(reply_tokens, chars_per_token):
    asks = [Ask(f'r{i}', 'q', 'c', '1', (dict(role='user', content='x' * 700),), f'o{i}') for i in range(5)]
    for repairs in (0, 1, 3):
        endpoint = Endpoint('http://localhost/v1', 'm', max_tokens=800)
        teacher = OpenAITeacher(endpoint, Limits(), Price(3, 15), chars_per_token)
        e = estimate_cost(asks, teacher, repairs, Guess(reply_tokens, 30.0, chars_per_token))
        assert e['dollars'] <= e['dollars_at_most']


def test_the_command_line_can_say_yes():
    cfg = read_grid('configs/smoke.yaml')
    assert 'confirm' not in jobs(cfg)['02_critique'].params
    assert jobs(cfg | dict(confirm=True))['02_critique'].params['confirm'] is True
    with pytest.raises(ValueError, match="confirm is 'true', expected True or False"):
        check_grid(cfg | dict(confirm='true'))
    said = subprocess.run(['make', '-n', 'paper', 'CONFIRM=yes'], cwd=ROOT, capture_output=True, text=True).stdout
    assert '--config confirm=True' in said


def test_memory_grows_with_length_and_shrinks_with_shards():
    plain = TrainConfig('toy', max_length=512)
    assert memory_gib(plain) < memory_gib(replace(plain, max_length=1024))
    shared = replace(plain, num_processes=4, strategy='fsdp2')
    assert memory_gib(shared) < memory_gib(plain)
    assert find_place(dict(resources=dict(gpu_model='h200')), True) == Place('H200', 139.8, True)


def test_what_an_interrupted_run_left_is_not_taken_for_a_model(tmp_path):
    cfg = read_grid('configs/smoke.yaml') | dict(run_dir=str(tmp_path))
    job = next(j for j in jobs(cfg).values() if j.section == 'train')
    (tmp_path / job.name / 'steps').mkdir(parents=True)
    (tmp_path / '01_data').mkdir()
    (tmp_path / '01_data/rollouts.jsonl').write_text('{"id"')
    assert not [f for f in preflight(cfg, 'configs/smoke.yaml') if f.stops]
