"""What both of two processes run, started by tests/test_devices.py: `torchrun -m two_processes FOLDER`. Each check
writes what it saw to a file."""

import json, os, sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.distributed.checkpoint.state_dict as dcs
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

from killing import tiny_model
from mcft.devices import check_world, found_strategy, is_main
from mcft.train import LabelGuard, TrainConfig, train, use_label_head


class Stop(TrainerCallback):
    "Ends both processes after the first state."

    def on_save(self, args, state, control, **kw):
        raise InterruptedError


def tiny():
    "The same weights in each process."
    return tiny_model(40, max_position_embeddings=64, tie_word_embeddings=False)


def steps(model, opt, ids, n_items: int, scale: int) -> list[float]:
    "Three updates; the loss is a sum over labelled tokens over their number in all processes."
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids, num_items_in_batch=n_items).loss
        (loss * scale).backward()
        opt.step(), opt.zero_grad()
        losses.append(loss.item())
    return losses


def adam(model):
    "An optimizer for it."
    return torch.optim.AdamW(model.parameters(), 1e-2)


def sharded() -> tuple:
    "The tiny model in shards, by PyTorch's fully_shard, and its optimizer."
    model = tiny()
    use_label_head(model)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model, adam(model)


def fully_sharded(folder: Path) -> dict:
    "Shards on gloo: losses of the whole model, and states, whole and in shards, that another model goes on from."
    whole = dcs.StateDictOptions(full_state_dict=True, cpu_offload=True)
    rank, ids = dist.get_rank(), torch.arange(6 * 10).view(6, 10) % 35 + 3
    (model, opt), plain, n = sharded(), tiny(), 6 * 9
    use_label_head(plain)
    mine = torch.tensor(steps(model, opt, ids[rank::2], n, 2))
    dist.all_reduce(mine)
    alone = steps(plain, adam(plain), ids, n, 1)
    check_world(type('A', (), dict(num_processes=2, distributed_type='FSDP')), 2, 'fsdp2', model)
    saved = {k: v.clone() for k, v in dcs.get_model_state_dict(model, options=whole).items()}
    dcp.save(dict(zip(('model', 'optimizer'), dcs.get_state_dict(model, opt))), checkpoint_id=str(folder / 'shards'))
    other, its = sharded()
    got = dict(zip(('model', 'optimizer'), dcs.get_state_dict(other, its)))
    dcp.load(got, checkpoint_id=str(folder / 'shards'))
    dcs.set_state_dict(other, its, model_state_dict=got['model'], optim_state_dict=got['optimizer'])
    on = [steps(m, o, ids[rank::2], n, 2) for m, o in ((model, opt), (other, its))]
    a, b = (dcs.get_model_state_dict(m, options=whole) for m in (model, other))
    if is_main():
        tiny().load_state_dict(saved)
    return dict(
        found=found_strategy(None, model),
        losses=max(abs(x - y) for x, y in zip(mine.tolist(), alone)),
        same=on[0] == on[1] and all(torch.equal(a[k], b[k]) for k in a),
        weights=max((saved[k] - plain.state_dict()[k]).abs().max().item() for k in saved) if is_main() else 0.0,
        local=sum(p.to_local().numel() for p in model.parameters()),
        total=sum(p.numel() for p in plain.parameters()),
    )


def failure(f) -> str:
    "The error of a call."
    try:
        f()
    except (ValueError, RuntimeError, InterruptedError) as e:
        return f'{type(e).__name__}: {e}'
    return 'no error'


def spoilt_on_rank_1(cfg) -> str:
    "Labels rebuilt in one process only: its guard stops it."
    check = LabelGuard.check

    def broken(self, ids, labels, attention, epoch):
        return check(self, ids, ids.copy() if not is_main() else labels, attention, epoch)

    LabelGuard.check = broken
    try:
        return failure(lambda: train(cfg))
    finally:
        LabelGuard.check = check


def main(folder: Path):
    "All checks, one after the other; the process that fails alone comes last."
    cfg = TrainConfig(**json.loads((folder / 'pair.json').read_text()))
    saw = dict(stopped=failure(lambda: train(cfg, [Stop()])))
    saw['resumed'] = train(replace(cfg, out_dir=str(folder / 'single')))
    saw['other'] = failure(lambda: train(replace(cfg, out_dir=str(folder / 'single'), lr=2e-3)))
    saw['shards'] = fully_sharded(folder)
    os.environ['ACCELERATE_USE_FSDP'] = 'true'
    saw['asked'] = failure(lambda: train(replace(cfg, strategy='fsdp2', out_dir=str(folder / 'asked'))))
    del os.environ['ACCELERATE_USE_FSDP']
    if is_main():
        (folder / 'saw0.json').write_text(json.dumps(saw, default=str))
        dist.barrier()
        failure(
            lambda: train(replace(cfg, mask_mode='loss', out_dir=str(folder / 'spoilt')))
        )  # waits for the other, which is gone
    else:
        (folder / 'saw1.json').write_text(json.dumps(saw, default=str))
        dist.barrier()
        (folder / 'guard1.txt').write_text(
            spoilt_on_rank_1(replace(cfg, mask_mode='loss', out_dir=str(folder / 'spoilt')))
        )
        os._exit(3)


if __name__ == '__main__':
    main(Path(sys.argv[1]))
