"""Training at the shape of SmolLM2-135M on the CPU, against TRL's plain trainer and transformers' own.

The weights are random (30 layers, 576 wide, 49,152 entries). Each way makes one update of SGD over the same 6 examples
of some 200 tokens, in one thread, in float32 and under bfloat16 autocast, in a process of its own: so the plain ways
stay under 6 GB. What Python and the libraries take before the model is made is subtracted from the peak.

- `ours`: mcft.train, which splits the update so that it keeps `max_memory`; the head on labelled positions alone.
- `trl`: SFTTrainer as it comes, told which tokens are the completion.
- `trainer`: transformers.Trainer with labels padded to the longest of a batch.

The last rows hold ours against the rate of a plain matrix product, measured in the same process. Times are those of the
processor, so that work beside it counts little."""

import argparse, json, re, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path

from measure.bench_training import examples, plain_labels, tokenizer
from measure.rows import ROOT, bench_row

GIB = 3.2  # what ours may take, with the libraries


@dataclass(frozen=True)
class Size:
    "How large a run is."

    vocab: int = 49_152
    hidden: int = 576
    layers: int = 30
    ffn: int = 1536
    heads: int = 9
    kv_heads: int = 3
    examples: int = 6
    shortest: int = 150
    longest: int = 250
    optimizer: str = 'sgd'


SMALL = Size(vocab=4096, hidden=64, layers=2, ffn=128, heads=4, kv_heads=2, examples=4, shortest=50, longest=80)


def model_of(size: Size):
    "The same random weights each time."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocab,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            intermediate_size=size.ffn,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            tie_word_embeddings=True,
            max_position_embeddings=2 * size.longest,
            use_cache=False,
        )
    )


def cpu_seconds(f) -> float:
    "Time of this process."
    t0 = time.process_time()
    f()
    return time.process_time() - t0


def common(size: Size, bf16: bool) -> dict:
    "What both peers are told."
    return dict(
        per_device_train_batch_size=size.examples,
        num_train_epochs=1,
        learning_rate=1e-4,
        lr_scheduler_type='constant',
        weight_decay=0.0,
        optim=size.optimizer,
        bf16=bf16,
        use_cpu=True,
        logging_steps=1,
        report_to='none',
        save_strategy='no',
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def ours(size: Size, bf16: bool, rows: list[dict], tok, model, folder: Path):
    "Training by mcft, in passes that fit."
    from mcft.train import TrainConfig, TrainData, make_trainer, passes_within

    cfg = TrainConfig(
        str(folder),
        method='cft',
        batch_size=size.examples,
        epochs=1,
        lr=1e-4,
        warmup=0,
        scheduler='constant',
        optimizer=size.optimizer,
        bf16=bf16,
        max_memory=GIB,
        device='cpu',
    )
    cfg = passes_within(cfg, rows, model.config)
    t = make_trainer(cfg, TrainData(rows, []), model, tok, folder)
    t.log_rows.measure = dict
    return t


def trl(size: Size, bf16: bool, rows: list[dict], tok, model, folder: Path):
    "TRL's trainer as it comes."
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = [dict(input_ids=r['input_ids'], completion_mask=[int(y != -100) for y in plain_labels(r)]) for r in rows]
    args = SFTConfig(
        str(folder), **common(size, bf16), gradient_checkpointing=False, max_length=None, completion_only_loss=True
    )
    return SFTTrainer(model, args, train_dataset=Dataset.from_list(data), processing_class=tok)


def trainer(size: Size, bf16: bool, rows: list[dict], tok, model, folder: Path):
    "transformers.Trainer with dynamic padding."
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    data = [
        dict(input_ids=r['input_ids'], attention_mask=[1] * len(r['input_ids']), labels=plain_labels(r)) for r in rows
    ]
    args = TrainingArguments(str(folder), **common(size, bf16))
    return Trainer(model, args, DataCollatorForSeq2Seq(tok), Dataset.from_list(data))


WAYS = dict(ours=ours, trl=trl, trainer=trainer)


def product_rate(bf16: bool, n: int = 1024) -> float:
    "Operations a second of a matrix product."
    import torch

    a, b = torch.randn(2, n, n, dtype=torch.bfloat16 if bf16 else torch.float32)
    a @ b
    return 5 * 2 * n**3 / cpu_seconds(lambda: [a @ b for _ in range(5)])


def child(way: str, bf16: bool, size: Size) -> dict:
    "One measurement, in this process."
    import torch
    import mcft.train
    from mcft.costs import shape_of, train_flops

    torch.set_num_threads(1)
    rows, tok = examples(size), tokenizer(size)
    def peak():  # a child keeps the peak of the process that started it in ru_maxrss, but not in VmHWM
        return int(re.search(r'VmHWM:\s*(\d+)', Path('/proc/self/status').read_text())[1]) / 1024
    limit, before = product_rate(bf16, 1024 if size.layers > 2 else 64), peak()
    model = model_of(size)
    with tempfile.TemporaryDirectory() as d, mcft.train.quiet(1):
        t = WAYS[way](size, bf16, rows, tok, model, Path(d))
        took = cpu_seconds(t.train)
    loss = next(r['loss'] for r in t.state.log_history if 'loss' in r)
    shape = shape_of(model.config)
    flops = sum(train_flops(shape, len(r['input_ids']), len(r['input_ids']) - r['spans'][0][1]) for r in rows)
    tokens = sum(len(r['input_ids']) for r in rows)
    return dict(seconds=took, mib=peak() - before, loss=loss, tokens=tokens, share=flops / took / limit)


def run(way: str, bf16: bool, small: bool) -> dict:
    "The same in a process of its own."
    cmd = [sys.executable, '-m', 'measure.bench_smol', way, *['--bf16'] * bf16, *['--small'] * small]
    done = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{way} ended with code {done.returncode}:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def same_losses(found: dict, bf16: bool):
    "The three ways start from the same loss."
    first = found['ours']['loss']
    for way, r in found.items():
        if abs(r['loss'] - first) > (1e-2 if bf16 else 1e-4) * first:
            raise ValueError(f'{way} has a loss of {r["loss"]}, ours is {first}')


def rows_of(bf16: bool, small: bool) -> list[dict]:
    "Rows of one precision; the order of the ways turns."
    from importlib.metadata import version

    names, rounds = list(WAYS), []
    for i in range(1 if small else 2):
        rounds.append({way: run(way, bf16, small) for way in names[i:] + names[:i]})
        same_losses(rounds[-1], bf16)
    kind = 'bf16' if bf16 else 'fp32'
    peers = dict(
        trl=f"TRL's SFTTrainer {version('trl')}", trainer=f'transformers.Trainer {version("transformers")}'
    )
    bounds = dict(trl=('>= 1.3', '<= 0.7'), trainer=('', ''))
    out = []
    for way, peer in peers.items():
        speed = [r[way]['seconds'] / r['ours']['seconds'] for r in rounds]
        memory = [r['ours']['mib'] / max(r[way]['mib'], 1) for r in rounds]
        out += [
            bench_row(f'training at 135M in {kind}, tokens per second', peer, speed, bounds[way][0]),
            bench_row(f'training at 135M in {kind}, peak memory', peer, memory, bounds[way][1]),
        ]
    share = [r['ours']['share'] for r in rounds]
    return [*out, bench_row(f'training at 135M in {kind}, share of the limit', 'a matrix product', share, '>= 0.5')]


def measure(small: bool) -> list[dict]:
    "Rows of data/results/benchmarks.csv."
    return [*rows_of(True, small), *rows_of(False, small)]


if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('way', choices=WAYS)
    p.add_argument('--bf16', action='store_true')
    p.add_argument('--small', action='store_true')
    a = p.parse_args()
    print(json.dumps(child(a.way, a.bf16, SMALL if a.small else Size())))
