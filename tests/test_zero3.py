"""ZeRO-3 on gloo: two processes with half of the model each lose what the whole model loses, and go on from sharded
states as one run would. DeepSpeed is no requirement of the project: pip install deepspeed."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from conftest import ROOT
from mcft.devices import check_world, found_strategy, launch_command, run_processes
from mcft.train import use_label_head

PLACE = ROOT / 'tests'


def test_zero3_on_gloo(tmp_path, monkeypatch):
    pytest.importorskip('deepspeed', reason='deepspeed is not installed: pip install deepspeed')
    monkeypatch.setenv('PYTHONPATH', f'{PLACE}{os.pathsep}{ROOT}')
    monkeypatch.setenv('DS_ACCELERATOR', 'cpu')
    run_processes(launch_command('test_zero3', [str(tmp_path)], 2, cpu=True), [].append)
    for rank in (0, 1):
        saw = json.loads((tmp_path / f'saw{rank}.json').read_text())
        assert saw['found'] == 'zero3' and saw['losses'] < 1e-5 and saw['weights'] < 1e-5 and saw['same']
        assert saw['local'] == saw['total'] / 2


def engine(model):
    "DeepSpeed's, with all weights in shards, however small; it clips gradients unless it is told not to."
    import deepspeed

    from two_processes import adam

    zero = dict(stage=3, stage3_param_persistence_threshold=0)
    settings = dict(train_micro_batch_size_per_gpu=3, zero_optimization=zero, gradient_clipping=0.0)
    settings['zero_force_ds_cpu_optimizer'] = False
    use_label_head(model)
    return deepspeed.initialize(model=model, optimizer=adam(model), config=settings)[0]


def steps(trained, ids, n_items: int) -> torch.Tensor:
    "Losses of three updates, over both processes; the engine takes the mean of their gradients."
    losses = []
    for _ in range(3):
        loss = trained(input_ids=ids, labels=ids, num_items_in_batch=n_items).loss
        trained.backward(2 * loss)
        trained.step()
        losses.append(loss.detach().clone())
    losses = torch.stack(losses)
    dist.all_reduce(losses)
    return losses


def weights(trained) -> dict:
    "Whole, in each process."
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(trained.module.parameters())):
        return {k: p.detach().clone() for k, p in trained.module.named_parameters()}


def main(folder: Path):
    "What each of the two processes runs."
    import deepspeed

    from two_processes import adam, steps as steps_alone, tiny

    deepspeed.init_distributed(dist_backend='gloo')
    rank, ids, n = dist.get_rank(), torch.arange(6 * 10).view(6, 10) % 35 + 3, 6 * 9
    plain, mine = tiny(), engine(tiny())
    use_label_head(plain)
    alone = torch.tensor(steps_alone(plain, adam(plain), ids, n, 1))
    together = steps(mine, ids[rank::2], n)
    check_world(type('A', (), dict(num_processes=2, distributed_type='DEEPSPEED')), 2, 'zero3', mine.module)
    got = weights(mine)
    mine.save_checkpoint(str(folder / 'shards'))
    other = engine(tiny())
    other.load_checkpoint(str(folder / 'shards'))
    on = [steps(e, ids[rank::2], n) for e in (mine, other)]
    saw = dict(
        found=found_strategy(None, mine.module),
        losses=(together - alone).abs().max().item(),
        weights=max((got[k] - p).abs().max().item() for k, p in plain.named_parameters()),
        same=torch.equal(*on),
        local=sum(p.ds_tensor.numel() for p in mine.module.parameters()),
        total=sum(p.numel() for p in plain.parameters()),
    )
    (folder / f'saw{rank}.json').write_text(json.dumps(saw))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
