"""Training against the release's loop and against transformers' Trainer, and how much of pocket training is
arithmetic.

Three ways do the same work: the same random examples of 500 to 1,500 tokens, the same weights, one update of AdamW
over 4 examples, in one thread. The model is a Qwen2 with the real vocabulary of 151,936, 256 wide, 4 layers. Each
run is a process of its own, so that its peak memory is its own; what Python and the libraries take before the model
is made is subtracted.

- `ours`: mcft.train, examples of like length together, the head on labelled positions alone, its logits in pieces.
- `trainer`: transformers.Trainer with labels padded to the longest of a batch, and the model's own loss on all
  positions.
- `release`: a loop like the release's. Every example is padded to the maximum, logits of all positions are kept,
  and each step decodes their argmax to text for a reward (which has no gradient, so it is left out of the loss).

The labels are the same (prompt -100) and so must the losses be: to 1e-4, an error otherwise. (The release's own
labels fall on the prompt too.)"""

import argparse, json, resource, subprocess, sys, tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from measure import processes
from measure.rows import ROOT, bench_row, seconds

SHARES = dict(
    prompt=0.45, tag=0.06, critique=0.31, reasoning=0.15, answer=0.03
)  # of the pocket world's encoded critiques


@dataclass(frozen=True)
class Size:
    "How large a run is."

    vocab: int = 151_936
    hidden: int = 256
    layers: int = 4
    examples: int = 4
    shortest: int = 500
    longest: int = 1500
    batch: int = 2  # examples in one forward pass
    update: int = 4  # examples in one update


SMALL = Size(vocab=4096, hidden=64, layers=2, examples=8, shortest=50, longest=150, update=4)


def examples(size: Size) -> list[dict]:
    "Random token ids with the spans of an encoded critique, by the shares of the pocket world."
    import numpy as np

    rng, rows = np.random.default_rng(0), []
    for i in range(size.examples):
        n = int(rng.integers(size.shortest, size.longest + 1))
        cuts = [0, *(round(n * sum(list(SHARES.values())[: j + 1])) for j in range(len(SHARES)))]
        spans = [[a, b, kind] for a, b, kind in zip(cuts, cuts[1:], SHARES)]
        spans[-1][1] = n - 1
        ids = rng.integers(3, size.vocab, n).tolist()
        rows.append(
            dict(
                id=f'c{i}:critique',
                layout='critique',
                problem_id=f'p{i}',
                input_ids=ids,
                words=[],
                spans=[*spans, [n - 1, n, 'eos']],
            )
        )
    return rows


def model_of(size: Size):
    "The same random weights each time."
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=size.vocab,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            intermediate_size=4 * size.hidden,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2 * size.longest,
            use_cache=False,
        )
    )


def tokenizer(size: Size):
    "As many tokens as the vocabulary has."
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {'<pad>': 0, '<eos>': 1, '<unk>': 2, **{f'w{i}': i for i in range(3, size.vocab)}}
    words = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token='<pad>', eos_token='<eos>', unk_token='<unk>')


def plain_labels(row: dict) -> list[int]:
    "-100 on the prompt, the token elsewhere."
    n = row['spans'][0][1]
    return [-100] * n + row['input_ids'][n:]


def order(rows: list[dict], size: Size) -> list[int]:
    "The order ours takes: all three see the same examples in each update."
    from mcft.train import EpochOrder

    return list(EpochOrder([len(r['input_ids']) for r in rows], size.update, 0, True))


def ours(size: Size, rows: list[dict], tok, model) -> tuple:
    "mcft.train on ready rows; the time is that of the updates, without its two measurements of the loss by part."
    from mcft.train import TrainConfig, TrainData, make_trainer, quiet

    cfg = TrainConfig(
        'unused',
        method='cft',
        epochs=1,
        batch_size=size.batch,
        grad_accumulation=size.update // size.batch,
        max_length=2 * size.longest,
        lr=1e-4,
        warmup=0,
        scheduler='constant',
        device='cpu',
    )
    with tempfile.TemporaryDirectory() as d, quiet(1):
        t = make_trainer(cfg, TrainData(rows, []), model, tok, Path(d))
        t.log_rows.measure = dict
        return seconds(t.train), [r['loss'] for r in t.state.log_history if 'loss' in r]


def trainer(size: Size, rows: list[dict], tok, model) -> tuple:
    "transformers.Trainer with dynamic padding and a random order within each update, so that losses can be compared."
    import numpy as np
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from mcft.train import quiet

    class SameUpdates(Trainer):
        def _get_train_sampler(self, dataset=None):
            at = np.array(order(rows, size)).reshape(-1, size.update)
            return _Fixed(np.random.default_rng(1).permuted(at, axis=1).ravel().tolist())

    data = Dataset.from_list(
        [dict(input_ids=r['input_ids'], attention_mask=[1] * len(r['input_ids']), labels=plain_labels(r)) for r in rows]
    )
    with tempfile.TemporaryDirectory() as d, quiet(1):
        args = TrainingArguments(
            d,
            per_device_train_batch_size=size.batch,
            gradient_accumulation_steps=size.update // size.batch,
            num_train_epochs=1,
            learning_rate=1e-4,
            lr_scheduler_type='constant',
            logging_steps=1,
            report_to='none',
            use_cpu=True,
            save_strategy='no',
            disable_tqdm=True,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim='adamw_torch',
            dataloader_pin_memory=False,
        )
        t = SameUpdates(model, args, DataCollatorForSeq2Seq(tok), data)
        return seconds(t.train), [r['loss'] for r in t.state.log_history if 'loss' in r]


class _Fixed:
    "A given order as a sampler."

    def __init__(self, at):
        self.at = at

    def __len__(self):
        return len(self.at)

    def __iter__(self):
        return iter(self.at)


def release(size: Size, rows: list[dict], tok, model) -> tuple:
    "Pad to the maximum, full logits, decode their argmax in every step."
    import torch

    opt, losses, at = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0), [], order(rows, size)
    def pad(x, fill):
        return x + [fill] * (size.longest - len(x))
    torch.set_num_threads(1)

    def work():
        for u in range(0, len(at), size.update):
            part = [rows[i] for i in at[u : u + size.update]]
            n, total = sum(len(r['input_ids']) - r['spans'][0][1] for r in part), 0.0
            for b in range(0, len(part), size.batch):
                batch = part[b : b + size.batch]
                ids, y = (
                    torch.tensor([pad(r['input_ids'], 0) for r in batch]),
                    torch.tensor([pad(plain_labels(r), -100) for r in batch]),
                )
                logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
                nll = (
                    torch.nn.functional.cross_entropy(
                        logits[:, :-1].reshape(-1, size.vocab), y[:, 1:].reshape(-1), reduction='sum'
                    )
                    / n
                )
                rewards = [float('<ans>' in t) for t in tok.batch_decode(logits.argmax(-1))]
                nll.backward()
                total += nll.item() + 0 * sum(rewards)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step(), opt.zero_grad()
            losses.append(total)

    return seconds(work), losses


WAYS = dict(ours=ours, trainer=trainer, release=release)


def child(way: str, small: bool) -> dict:
    "One measurement, in this process: seconds, MiB above what the libraries take, losses."
    import mcft.train  # noqa: F401  all three pay for the same imports

    size = SMALL if small else Size()
    rows, tok = examples(size), tokenizer(size)
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak()
    took, losses = WAYS[way](size, rows, tok, model_of(size))
    return dict(seconds=took, mib=peak() - before, losses=losses, tokens=sum(len(r['input_ids']) for r in rows))


def run(way: str, small: bool) -> dict:
    "The same in a process of its own; the small ones are forked from a server that has imported the libraries."
    if small:
        with ProcessPoolExecutor(1, processes.server(['mcft.train'])) as pool:
            return pool.submit(child, way, small).result()
    cmd = [sys.executable, '-m', 'measure.bench_training', way]
    done = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{way} ended with code {done.returncode}:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def same_losses(results: dict) -> float:
    "Largest difference of the losses of the ways, relative; an error above 1e-4."
    first = results['ours']['losses']
    worst = max(abs(a - b) / abs(a) for r in results.values() for a, b in zip(first, r['losses'], strict=True))
    if worst > 1e-4:
        raise ValueError(
            f"losses differ by {worst:.1e}, expected under 1e-4: { {k: r['losses'] for k, r in results.items()} }"
        )
    return worst


def peers() -> dict:
    "Name of each peer, with its version."
    from importlib.metadata import version

    return dict(
        release="the release's loop: padding to the maximum, full logits, argmax decoded",
        trainer=f"transformers.Trainer {version('transformers')}, dynamic padding",
    )


def against_peers(small: bool) -> list[dict]:
    "Rows of speed and memory; one round is all three, the order turning."
    rounds, names = [], list(WAYS)
    for i in range(1 if small else 3):
        turned = names[i % 3 :] + names[: i % 3]
        rounds.append({way: run(way, small) for way in turned})
        same_losses(rounds[-1])
    bounds = dict(release=('>= 2.5', '<= 0.5'), trainer=('>= 1.3', '<= 0.4'))
    return [
        row
        for way, peer in peers().items()
        for row in (
            bench_row(
                'training, tokens per second',
                peer,
                [r[way]['seconds'] / r['ours']['seconds'] for r in rounds],
                bounds[way][0],
            ),
            bench_row(
                'training, peak memory',
                peer,
                [r['ours']['mib'] / max(r[way]['mib'], 1) for r in rounds],
                bounds[way][1],
            ),
        )
    ]


def compute_share(small: bool) -> dict:
    """Forward, backward and optimizer of a pocket run, as the pocket profile sets it, as a share of the wall time of
    training."""
    import yaml
    from mcft.train import TrainConfig, train

    pocket = yaml.safe_load((ROOT / 'configs' / 'pocket.yaml').read_text())['train']
    shares = []
    for i in range(1 if small else 3):
        with tempfile.TemporaryDirectory() as d:
            cfg = TrainConfig(
                **{
                    **pocket,
                    'encoded': 'data/pocket/encoded.jsonl',
                    'out_dir': d,
                    'seed': i,
                    **(dict(max_steps=2, part_rows=4) if small else {}),
                }
            )
            shares.append(train(replace(cfg, n_examples=16) if small else cfg)['compute_share'])
    return bench_row('share of training time in forward, backward, optimiser', 'wall time', shares, '>= 0.85')


def measure(small: bool) -> list[dict]:
    "Rows of data/results/benchmarks.csv."
    return [*against_peers(small), compute_share(small)]


if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('way', choices=WAYS)
    p.add_argument('--small', action='store_true')
    a = p.parse_args()
    print(json.dumps(child(a.way, a.small)))
