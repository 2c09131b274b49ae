"""Two gloo processes on a CPU: they train as one would, go on where one stopped and the reverse, and refuse what
they are not."""

import json, os, sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from conftest import ROOT
from test_train import config, inputs  # noqa: F401  a fixture

from mcft.core import read_rows
from mcft.devices import launch_command, run_processes
from mcft.train import launch, train


def losses(folder) -> np.ndarray:
    "Of a run's log."
    return np.array([r['loss'] for r in read_rows(folder / 'train_log.jsonl') if 'loss' in r])


@pytest.fixture(scope='module')
def runs(inputs):  # noqa: F811
    "One run alone; one that stopped, for the pair to go on with; and what the pair saw."
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kw):
            raise KeyboardInterrupt

    cfg = replace(config(inputs, 'whole'), epochs=3, n_examples=38, save_steps=8, part_steps=12,
                  mask_schedule='per_epoch', mask_mode='both')
    train(cfg)
    with pytest.raises(KeyboardInterrupt):
        train(replace(cfg, out_dir=str(inputs / 'single')), [Stop()])
    pair = replace(cfg, batch_size=2, num_processes=2, out_dir=str(inputs / 'pair'))
    (inputs / 'pair.json').write_text(json.dumps(asdict(pair)))
    old = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = f'{ROOT / "tests"}{os.pathsep}{ROOT}'
    out = []
    try:
        with pytest.raises(RuntimeError, match='ended with code'):
            run_processes(launch_command('two_processes', [str(inputs)], 2, cpu=True), out.append)
    finally:
        if old is None:
            del os.environ['PYTHONPATH']
        else:
            os.environ['PYTHONPATH'] = old
    assert (inputs / 'saw0.json').exists() and (inputs / 'saw1.json').exists(), ''.join(
        s for s in out if 'torch/distributed' not in s
    )[:4000]
    return cfg, [json.loads((inputs / f'saw{i}.json').read_text()) for i in (0, 1)], inputs


def test_the_pair_goes_on_where_one_process_stopped(runs):
    "38 rows do not come out even: dummy examples are at work, and a new draw in each epoch."
    cfg, (saw, other), d = runs
    assert (
        saw['resumed']['resumed_at'] == 8
        and saw['resumed']['num_processes'] == 2
        and other['resumed'] == saw['resumed']
    )
    whole, single = losses(d / 'whole'), losses(d / 'single')
    assert len(whole) == len(single) == 30 and np.abs(whole - single).max() < 1e-5
    steps = [r['step'] for r in read_rows(d / 'single/train_log.jsonl') if 'loss' in r]
    assert steps == list(range(1, 31))  # one process writes


def test_one_process_goes_on_where_the_pair_stopped(runs):
    cfg, (saw, _), d = runs
    assert saw['stopped'].startswith('InterruptedError') and not (d / 'pair/run.json').exists()
    again = train(replace(cfg, out_dir=str(d / 'pair')))
    assert again['resumed_at'] == 8 and again['num_processes'] == 1
    assert np.abs(losses(d / 'whole') - losses(d / 'pair')).max() < 1e-5
    a, b = (read_rows(d / n / 'train_log.jsonl') for n in ('whole', 'pair'))
    assert [(r['masked'], r['maskable']) for r in a if 'loss' in r] == [
        (r['masked'], r['maskable']) for r in b if 'loss' in r
    ]  # the same draws


def test_sharding_that_is_not_there_is_refused(runs):
    cfg, seen, d = runs
    for saw in seen:
        assert "strategy='fsdp2' was asked for, but the weights lie as in 'ddp'" in saw['asked']
    with pytest.raises(ValueError, match="strategy='zero3' shards a model over GPUs, and this run has none"):
        launch(replace(cfg, num_processes=2, strategy='zero3', out_dir=str(d / 'zero')))
    assert not (d / 'zero').exists()


def test_fully_shard_on_gloo(runs):
    "Each process holds half; losses and weights are those of the whole model, and sharded states go on as one run."
    for saw in runs[1]:
        s = saw['shards']
        assert s['found'] == 'fsdp2' and s['losses'] < 1e-5 and s['weights'] < 1e-5 and s['same']
        assert s['local'] == s['total'] / 2


def test_every_process_stops_when_the_folder_holds_another_run(runs):
    assert all('holds a run with other parameters' in saw['other'] for saw in runs[1])


def test_the_guard_stands_in_every_process(runs):
    assert 'the data collator rebuilt the labels from input_ids' in (runs[2] / 'guard1.txt').read_text()


def test_accelerate_starting_one_process_of_two_is_an_error(runs):
    cfg, _, d = runs
    (d / 'two.json').write_text(json.dumps(asdict(replace(cfg, num_processes=2, out_dir=str(d / 'two')))))
    command = [
        sys.executable,
        '-m',
        'accelerate.commands.launch',
        '--cpu',
        '--num_processes',
        '2',
        '-m',
        'mcft.train',
        '--config',
        str(d / 'two.json'),
    ]
    with pytest.raises(RuntimeError, match='num_processes=2 was asked for, but 1 trains'):
        run_processes(command, lambda line: None)
