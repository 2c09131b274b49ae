"""Tokens per second of our batched generation against `generate` of transformers: alone, in plain batches, and in short
pieces between which finished rows leave the batch, which is how this project generated before its own loop."""

import random, time

import torch
import transformers

from mcft.core import read_rows
from mcft.generate import Sampling, chat_prompt, completion, generate, load, plan_batches, prompt_ids
from measure.rows import bench_row, paired

NEW, BATCH = 160, 256


def padded(rows: list[list[int]], pad: int) -> dict:
    "Left-padded input of `generate`."
    t = max(map(len, rows))
    return dict(
        input_ids=torch.tensor([[pad] * (t - len(r)) + r for r in rows]),
        attention_mask=torch.tensor([[0] * (t - len(r)) + [1] * len(r) for r in rows]),
    )


def plain(model, tok, rows: list[list[int]], batch: int) -> int:
    "Generate as a user of transformers would, in batches of like length; return the tokens of all completions."
    n = 0
    for b in plan_batches([len(r) for r in rows], batch):
        given = {k: v.to(model.device) for k, v in padded([rows[i] for i in b], tok.pad_token_id).items()}
        out = model.generate(**given, max_new_tokens=NEW, do_sample=False, pad_token_id=tok.pad_token_id)
        made = out[:, given['input_ids'].shape[1]:].tolist()
        n += sum(completion(tok, ids, {tok.eos_token_id})['n_tok'] for ids in made)
    return n


def pieces(model, tok, rows: list[list[int]], batch: int) -> int:
    "Generate piece by piece, dropping finished rows from the batch and from the library's cache between two pieces."
    n = 0
    for b in plan_batches([len(r) for r in rows], batch):
        given = {k: v.to(model.device) for k, v in padded([rows[i] for i in b], tok.pad_token_id).items()}
        made, cache = 0, None
        while made < NEW and len(given['input_ids']):
            width, piece = given['input_ids'].shape[1], min(NEW - made, max(8, made // 8))
            out = model.generate(
                **given,
                past_key_values=cache,
                max_new_tokens=piece,
                do_sample=False,
                pad_token_id=tok.pad_token_id,
                return_dict_in_generate=True,
            )
            new, cache, made = out.sequences[:, width:], out.past_key_values, made + piece
            ended = (new == tok.eos_token_id).cumsum(1) > 0
            n += int((~ended).sum())
            on = (~ended[:, -1]).nonzero()[:, 0]
            mask = torch.cat([given['attention_mask'], torch.ones_like(new)], 1)
            given = dict(input_ids=out.sequences[on], attention_mask=mask[on])
            cache.batch_select_indices(on)
    return n


def per_token(call) -> float:
    "Seconds per generated token, of the processor where it does the work; the call returns the number of tokens."
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    t0 = clock()
    n = call()
    return (clock() - t0) / n


def measure(small: bool) -> list[dict]:
    "Rows of benchmarks."
    model, tok = load('data/pocket/base')
    asked = [
        r['question']
        for r in read_rows('data/pocket/problems.jsonl.gz', 'problems')
        if not r['split'].startswith(('train', 'dev'))
    ]
    rng, n = random.Random(0), 2 if small else 7
    prompts = [chat_prompt(tok, q) for q in rng.sample(asked, 24 if small else 512)]
    rows = [prompt_ids(tok, p) for p in prompts]
    few = rng.sample(rows, 4 if small else 48)

    def ours():
        return sum(r['n_tok'] for b in generate(model, tok, prompts, Sampling(NEW), BATCH) for r in b)

    peer = f'generate (transformers {transformers.__version__})'
    alone = paired(ours, lambda: plain(model, tok, few, 1), n, per_token)
    batched = paired(ours, lambda: plain(model, tok, rows, BATCH), n, per_token)
    before = paired(ours, lambda: pieces(model, tok, rows, BATCH), n, per_token)
    device = 'cpu' if model.device.type == 'cpu' else torch.cuda.get_device_name()
    return [
        bench_row('tokens per second, batched', f'one at a time {peer}', alone, '>= 3', device),
        bench_row('tokens per second, batched', f'plain batched {peer}', batched, '>= 1', device),
        bench_row('tokens per second, batched', f'in pieces, as before, by {peer}', before, '>= 1.5', device),
    ]
