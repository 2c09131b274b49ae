"""The paper's training step on a GPU: `python -m measure.gpu_train`. Without a GPU the rows are kept as missing,
never as numbers.

The architecture is the 1.5B one of mcft.costs (the shape of DeepSeek-R1-Distill-Qwen-1.5B), with random weights:
speed and memory do not depend on their values. Full fine-tuning at 16,384 tokens, one example a pass and 8 passes
an update, 8-bit Adam, bfloat16, gradient checkpointing, through mcft.train. Two numbers: peak memory (the paper's
card, an A40, has 48 GB; the bound leaves a little) and model FLOPs utilisation: the arithmetic the model needs,
once forward and twice backward, without what checkpointing repeats, over what the card could do in that time."""

import json, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path

from mcft.costs import ARCHS, DEVICES, Arch, train_flops
from measure.rows import FIELDS, RESULTS, read, write

ROWS = (
    ('training at 16,384 tokens, peak memory', 'GiB', '<= 44'),
    ('training at 16,384 tokens, model FLOPs utilisation', '%', '>= 40'),
)


@dataclass(frozen=True)
class Plan:
    "What is measured."

    architecture: Arch
    tokens: int = 16_384
    passes: int = 8  # forward passes of one example in an update
    updates: int = 3  # timed, after one that is not
    optimizer: str = 'adamw_8bit'
    device: str = 'cuda'
    prompt_share: float = 0.45  # of an example, as in the pocket world's encoded critiques


PAPER = Plan(ARCHS['1.5B'])
TINY = Plan(Arch(2, 32, 64, 4, 2, 512, False), tokens=64, passes=2, updates=2, optimizer='adamw_torch', device='cpu')


def build(plan: Plan):
    "The architecture with random weights."
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    a = plan.architecture
    config = Qwen2Config(
        vocab_size=a.vocab,
        hidden_size=a.hidden,
        intermediate_size=a.ffn,
        num_hidden_layers=a.layers,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        tie_word_embeddings=a.tied,
        max_position_embeddings=2 * plan.tokens,
        use_cache=False,
    )
    with torch.device(plan.device):
        return Qwen2ForCausalLM(config)


def update_flops(plan: Plan) -> float:
    "Floating-point operations that an update needs; what checkpointing repeats does not count."
    return plan.passes * train_flops(
        plan.architecture, plan.tokens, plan.tokens - round(plan.tokens * plan.prompt_share)
    )


def examples(plan: Plan) -> list[dict]:
    "Random examples, each `tokens` long."
    import numpy as np

    rng, n = np.random.default_rng(0), plan.tokens
    cuts = [0, round(n * plan.prompt_share), round(n * 0.8), n - 8, n - 1, n]
    spans = [[a, b, k] for a, b, k in zip(cuts, cuts[1:], ('prompt', 'critique', 'reasoning', 'answer', 'eos'))]
    return [
        dict(
            id=f'c{i}:critique',
            layout='critique',
            problem_id=f'p{i}',
            input_ids=rng.integers(3, plan.architecture.vocab, n).tolist(),
            spans=spans,
            words=[],
        )
        for i in range(plan.passes * (plan.updates + 1))
    ]


def clock():
    "A callback that notes when each update ends."
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.at = []

        def on_step_end(self, args, state, control, **kw):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.at.append(time.perf_counter())

    return Clock()


def run(plan: Plan) -> dict:
    "Train, and say what it cost: seconds of an update, GiB at the peak (None on a CPU), FLOPs of an update, loss."
    import torch
    from measure.bench_training import Size, tokenizer
    from mcft.train import TrainConfig, TrainData, make_trainer, quiet

    cfg = TrainConfig(
        'unused',
        method='mcft',
        epochs=1,
        batch_size=1,
        grad_accumulation=plan.passes,
        max_length=plan.tokens,
        optimizer=plan.optimizer,
        bf16=True,
        gradient_checkpointing=True,
        device=plan.device,
        warmup=0,
    )
    with tempfile.TemporaryDirectory() as d, quiet():
        watch = clock()
        tok = tokenizer(Size(vocab=plan.architecture.vocab))
        trainer = make_trainer(cfg, TrainData(examples(plan), []), build(plan), tok, Path(d), callbacks=[watch])
        trainer.log_rows.measure = dict
        trainer.train()
    seconds = (watch.at[-1] - watch.at[0]) / plan.updates
    peak = torch.cuda.max_memory_allocated() / 2**30 if plan.device == 'cuda' else None
    return dict(seconds=seconds, gib=peak, flops=update_flops(plan), loss=trainer.state.log_history[-2]['loss'])


def rows_of(result: dict | None, device: str, plan: Plan = PAPER) -> list[dict]:
    "Rows of gpu.csv; without a result they are missing."
    config = f"{plan.tokens} tokens, 1 x {plan.passes}, {plan.optimizer}, bf16, checkpointing, head on labelled tokens"
    peak = next((speed for k, (_, speed) in DEVICES.items() if k in device), None)
    values = (
        [None, None]
        if result is None
        else [result['gib'], 100 * result['flops'] / result['seconds'] / peak if peak else None]
    )
    return [
        dict(
            name=name,
            value='missing' if v is None else round(v, 2),
            unit=unit,
            bound=bound,
            device=device,
            config=config,
        )
        for (name, unit, bound), v in zip(ROWS, values)
    ]


def save(rows: list[dict], folder: Path = RESULTS):
    "Keep the rows of gpu.csv under other names and devices; a missing row never replaces a measured one."
    old = read('gpu', folder)
    new = [
        r
        for r in rows
        if r['value'] != 'missing' or not any(o['name'] == r['name'] and o['value'] != 'missing' for o in old)
    ]
    measured = {r['name'] for r in new if r['value'] != 'missing'}
    def gone(o):
        return (
            any((o['name'], o['device']) == (r['name'], r['device']) for r in new)
            or (o['value'] == 'missing' and o['name'] in measured)
        )
    write('gpu', sorted([o for o in old if not gone(o)] + new, key=lambda r: (r['name'], r['device'])), folder)


def main(folder: Path = RESULTS) -> int:
    "Measure if there is a GPU; keep the rows either way."
    import torch

    if not torch.cuda.is_available():
        save(rows_of(None, 'no GPU'), folder)
        print('no GPU: the rows are kept as missing', file=sys.stderr)
        return 0
    device, result = torch.cuda.get_device_name(0), run(PAPER)
    rows = rows_of(result, device)
    save(rows, folder)
    print(json.dumps(dict(device=device, **result)))
    for r in rows:
        print('  '.join(f'{k}={r[k]}' for k in FIELDS['gpu']))
    return 0


if __name__ == '__main__':
    sys.exit(main())
