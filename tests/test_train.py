"""Fine-tuning: what is refused, what the labels of every mask train on, runs that are killed and go on, switches
that change the weights."""

import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from killing import kill_after, small_student
from mcft.core import read_rows, run_info, sha256_file, write_rows
from mcft.devices import has_bf16
from mcft.mask import PRESETS, MaskSpec, preset
from mcft.models import load_model, load_tokenizer, model_config
from mcft.params import ParameterError
from mcft.train import (METHODS, TOKEN_KINDS, TrainConfig, check_counts, check_platform, count_labels, label_rows,
                        main_layout, mask_plan, mask_spec, needed_gib, ready_labels, row_parts, run_params, train,
                        training_rows, update_size)
from mcft.trainer import LabelGuard, use_label_head


def toy_row(i: int) -> dict:
    "32 tokens: prompt, tag, critique, tag, chain, tag, answer, end."
    parts = [
        ("prompt", 8),
        ("tag", 1),
        ("critique", 12),
        ("tag", 1),
        ("reasoning", 4),
        ("tag", 1),
        ("answer", 1),
        ("answer", 2),
        ("answer", 1),
        ("eos", 1),
    ]
    ends = [sum(n for _, n in parts[: j + 1]) for j in range(len(parts))]
    ids = [5 + (i * 7 + j * j * (i + 1)) % 35 for j in range(ends[-1] - 1)] + [1]
    return dict(
        id=f"c{i}:critique",
        layout="critique",
        problem_id=f"p{i}",
        input_ids=ids,
        spans=[[e - n, e, kind] for (kind, n), e in zip(parts, ends)],
        words=[3, 4, 5, 2, 2, 2],
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    "A tiny model with the pocket tokenizer, and 40 encoded rows."
    d = small_student(tmp_path_factory.mktemp("train"), max_position_embeddings=64)
    write_rows(d / "encoded.jsonl", [toy_row(i) for i in range(40)], "encoded")
    return d


def config(d, name: str) -> TrainConfig:
    return TrainConfig(str(d / name), model_dir=str(d / "model"), encoded=str(d / "encoded.jsonl"), method="mcft",
                       epochs=12, lr=1e-3, batch_size=4, max_length=64, save_steps=10, part_steps=30, device="cpu")


# What is refused.

BASE = TrainConfig("toy/out")


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(method="dpo"), "method is 'dpo', expected one of sft, cft, mcft"),
        (dict(mask_rate=1.5), "mask_rate is 1.5"),
        (dict(mask_mode="labels"), "mask_mode is 'labels'"),
        (dict(mask_unit="letter"), "mask_unit is 'letter'"),
        (dict(mask_target="tag"), "mask_target is 'tag'"),
        (dict(method="cft", mask_rate=0.2), "method='cft' masks nothing"),
        (dict(mix_question_only=1.0), "mix_question_only is 1.0"),
        (dict(method="sft", mix_question_only=0.1), "already"),
        (dict(optimizer="adam"), "optimizer is 'adam'"),
        (dict(val_share=1.0), "val_share is 1.0"),
        (dict(strategy="tp"), "strategy is 'tp'"),
        (dict(num_processes=0), "num_processes is 0"),
        (dict(n_critiques=0), "n_critiques is 0"),
        (dict(strategy="fsdp2"), "num_processes is 1"),
        (dict(sanity_steps=20, num_processes=2), "run it with num_processes=1 first"),
        (dict(loader="vllm"), "loader is 'vllm'"),
        (dict(snapshot_steps=2, strategy="zero3", num_processes=2), "weights in shards are not copied"),
        (dict(mask_preset="papr"), "mask_preset is 'papr'"),
        (dict(mask_preset="paper", mask_unit="span"), "but mask_unit is 'span'"),
        (dict(method="cft", mask_preset="paper"), "method='cft' masks nothing"),
        (dict(method="sft", mask_rate=0.2), "has no critique to mask"),
        (dict(mask_by="loss_high"), "needs a file of scores"),
        (dict(mask_scores="s.jsonl"), "a random one takes none"),
    ],
)
def test_a_bad_parameter_is_named(bad, says):
    with pytest.raises(ValueError, match=says):
        replace(BASE, **bad)


def test_what_a_run_masks():
    assert [mask_spec(replace(BASE, method=m)).mask_rate for m in METHODS] == [0.0, 0.0, 0.2]
    assert mask_spec(replace(BASE, mask_preset="paper", seed=3)) == preset("paper", seed=3)
    assert mask_spec(replace(BASE, method="sft", mask_rate=0.3, mask_target="reasoning")).mask_rate == 0.3
    assert update_size(replace(BASE, batch_size=2, grad_accumulation=3, num_processes=4)) == 24


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(device="cuda"), "torch finds no GPU"),
        (dict(optimizer="adamw_8bit"), "needs the package bitsandbytes"),
        (dict(loader="unsloth"), "needs the package unsloth"),
        (dict(report_to="wandb"), "needs the package wandb"),
    ],
)
def test_what_is_not_there_is_named(bad, says):
    if find_spec(says.split()[-1]):
        pytest.skip(f"{says.split()[-1]} is installed")
    with pytest.raises(ValueError, match=says):
        check_platform(replace(BASE, **bad))


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(max_length=4096), "has 64 positions"),
        (dict(encoded="none.jsonl"), "missing input"),
        (dict(model_dir="runs/none"), "no model in"),
        (dict(lr=1e-8, sanity_steps=2), "2 updates on one batch took the loss from"),
    ],
)
def test_a_run_that_cannot_work_is_refused(inputs, tmp_path, bad, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        train(replace(config(inputs, "x"), out_dir=str(tmp_path), **bad))
    assert run_info(tmp_path) is None


# Rows and labels.

ROWS = [dict(toy_row(i), id=f"c{i}:{layout}", layout=layout) for i in range(28) for layout in ("critique", "question")]


def ids(rows) -> list:
    "Of rows."
    return [r["id"] for r in rows]


def test_rows_of_methods_and_their_controls():
    "Seeds draw other critiques, methods the same ones; added rows are those of the control; more contain fewer."
    drawn = replace(BASE, n_critiques=9)
    sft = replace(drawn, method="sft")
    assert [r.split(":")[0] for r in ids(training_rows(ROWS, drawn))] == [
        r.split(":")[0] for r in ids(training_rows(ROWS, sft))
    ]
    assert {*ids(training_rows(ROWS, replace(drawn, n_critiques=8)))} < {*ids(training_rows(ROWS, drawn))}
    assert {*ids(training_rows(ROWS, replace(drawn, seed=1)))} != {*ids(training_rows(ROWS, drawn))}
    assert ids(training_rows(ROWS, replace(drawn, mix_question_only=0.1)))[9:] == ids(
        training_rows(ROWS, replace(sft, n_examples=1))
    )
    told = [dict(r, layout="comment") if r["layout"] == "critique" else r for r in ROWS]
    assert [main_layout(x, m) for x in (ROWS, told) for m in ("sft", "mcft")] == [
        "question",
        "critique",
        "question",
        "comment",
    ]
    assert len(training_rows(told, replace(BASE, mix_question_only=0.5))) == 56
    assert (
        len(training_rows(ROWS, replace(BASE, mix_question_only=0.6))) == 70
    )  # 42 added out of 28: again from the start
    with pytest.raises(ValueError, match="n_critiques is 29, but the file holds 28"):
        training_rows(ROWS, replace(BASE, n_critiques=29))
    with pytest.raises(ValueError, match="more than max_length=20"):
        training_rows(ROWS, replace(BASE, max_length=20))


MASKS = [
    MaskSpec(0.3, mask_mode=mode, mask_unit=unit, mask_draw=draw)
    for mode in ("loss", "input", "both")
    for unit in ("token", "span", "word")
    for draw in ("bernoulli", "exact")
]
MASKS += [MaskSpec(0.5, mask_target=target) for target in ("reasoning", "answer", "critique+reasoning")] + [
    MaskSpec(0.5, mask_schedule="per_epoch")
]
MASKS += [preset(name) for name, spec in PRESETS.items() if spec.mask_by == "random"]


@pytest.mark.parametrize(
    "spec", MASKS, ids=lambda s: "-".join(map(str, (s.mask_mode, s.mask_unit, s.mask_draw, s.mask_target, s.mask_rate)))
)
def test_every_mask_reaches_the_loss_and_no_other_does(spec):
    "Through TRL's collator, epoch by epoch; the guard of another seed's draw stops it."
    tok, rows, draws = load_tokenizer("data/pocket/base"), ROWS[::2], 2 if spec.mask_schedule == "per_epoch" else 1
    ready, other = (
        ready_labels(rows, mask_plan(rows, replace(spec, seed=seed), tok), None, draws, True) for seed in (0, 1)
    )
    guard, wrong = (LabelGuard(r.data, len(rows), draws, r.masked) for r in (ready, other))
    collate = DataCollatorForLanguageModeling(pad_token_id=0)

    def batches(epoch):
        for i in range(0, len(rows), 7):
            batch = collate(
                [{**ready.data[epoch * len(rows) + j], "attention_mask": [1] * 32} for j in range(i, i + 7)]
            )
            yield *(batch[k].numpy() for k in ("input_ids", "labels", "attention_mask")), epoch

    for epoch in range(draws):
        for batch in batches(epoch):
            guard.check(*batch)
    masked, may = guard.logged
    assert 0 < masked < may and (masked, may) == tuple(ready.masked.sum(0))
    with pytest.raises(ValueError, match="labels differ|does not hold"):
        for batch in batches(0):
            wrong.check(*batch)


def test_counts_of_a_column():
    "Every fault of a column has its own words."
    tok, row, spec = load_tokenizer("data/pocket/base"), ROWS[0], MaskSpec(0.2)
    (parts,) = row_parts([row], spec)
    one = label_rows([row], mask_plan([row], spec, tok))[0]
    x, y = np.array(one["input_ids"]), np.array(one["labels"])
    counts = count_labels(row, parts, x, y)
    check_counts(counts, spec)

    def spoilt(line, kind, by):
        c = counts.copy()
        c[line, TOKEN_KINDS.index(kind)] += by
        return c

    for bad, how, says in (
        (spoilt(1, "prompt", 3), spec, "3 of 8 prompt tokens are trained on, expected none"),
        (spoilt(1, "tag", -1), spec, "1 of 3 tag tokens are not trained on"),
        (spoilt(2, "maskable", 1), spec, "maskable tokens were replaced"),
        (spoilt(2, "tag", 1), MaskSpec(0.2, mask_mode="both"), "1 tag tokens were replaced"),
        (counts, MaskSpec(0.2, mask_mode="input"), "maskable tokens are not trained on"),
        (counts, MaskSpec(0.0), "maskable tokens are not trained on"),
        (counts * [[1], [0], [1]], spec, "no label is left"),
    ):
        with pytest.raises(ValueError, match=says):
            check_counts(bad, how)
    with pytest.raises(ValueError, match="a label is not the token it stands on"):
        count_labels(row, parts, x, np.roll(y, 1))


# Runs.


def test_kill_and_resume(inputs):
    "Killed twice, at updates that are no multiple of save_steps; weights and log equal those of the run left alone."
    whole = train(config(inputs, "whole"))
    cfg = config(inputs, "killed")
    folder = inputs / "killed"
    first = kill_after(train, cfg, 13, inputs / "marker1", 0.01)
    assert not (folder / "run.json").exists() and not (folder / "model.safetensors").exists()
    assert (folder / "steps").exists() and first < whole["steps"]
    kill_after(train, cfg, 37, inputs / "marker2", 0.01)
    with open(folder / "train_log.jsonl", "a") as f:
        f.write('{"step": 38, "lo')  # and a torn last line
    again = train(cfg)
    assert again["resumed_at"] % 10 == 0 and again["resumed_at"] >= 30 and whole["resumed_at"] is None
    assert (folder / "model.safetensors").read_bytes() == (inputs / "whole/model.safetensors").read_bytes()
    assert read_rows(folder / "train_log.jsonl") == read_rows(inputs / "whole/train_log.jsonl")
    assert not (folder / "steps").exists()
    assert train(cfg) == again  # complete: not made again


def test_prompt_is_that_of_inference():
    "The first tokens of an encoded example are those the model is given when it is evaluated."
    from mcft.encode import encode, example_text
    from mcft.models import chat_prompt, prompt_ids

    tok = load_tokenizer("data/pocket/base")
    row = dict(
        id="c",
        problem_id="p",
        question="What is 3+4*2?",
        rollout="<think>\n4*2=8\n3+8=12\n</think>\n\\boxed{12}",
        critique="Line 2 is wrong: 3+8 is 11.",
        reasoning="4*2=8\n3+8=11",
        answer="11",
    )
    for layout in ("critique", "question"):
        e = encode(row, tok, layout)
        ids = prompt_ids(tok, chat_prompt(tok, example_text(row, layout)[0]))
        assert e["spans"][0] == [0, len(ids), "prompt"] and e["input_ids"][: len(ids)] == ids


def test_every_switch_runs_and_changes_the_weights(inputs):
    "A switch that does nothing would give the weights of the plain run."
    plain = replace(config(inputs, "switch-plain"), max_steps=4, save_steps=0, part_steps=0)
    switches = dict(
        plain={},
        bf16=dict(bf16=True),
        linear=dict(scheduler="linear"),
        decay=dict(weight_decay=0.1),
        sgd=dict(optimizer="sgd"),
        warmup=dict(warmup=3),
        order=dict(group_by_length=False),
        hidden=dict(mask_mode="both"),
        inputs=dict(mask_mode="input"),
        sentence=dict(mask_unit="sentence"),
        exact=dict(mask_draw="exact"),
        word=dict(mask_unit="word"),
        chain=dict(mask_target="reasoning"),
        whole=dict(mask_unit="part", mask_rate=0.5),
        answer=dict(mask_preset="partial_answer_masking"),
        held=dict(val_share=0.3),
        few=dict(n_examples=8),
        cft=dict(method="cft"),
        clip=dict(max_grad_norm=0.01),
        seed=dict(seed=1),
    )
    seen = {}
    for name, kw in switches.items():
        info = train(replace(plain, out_dir=str(inputs / f"switch-{name}"), **kw))
        assert info["steps"] == 4 and math.isfinite(info["loss_last"]), name
        seen[name] = sha256_file(inputs / f"switch-{name}/model.safetensors")
    assert len(set(seen.values())) == len(seen), [a for a in seen if list(seen.values()).count(seen[a]) > 1]
    same = train(
        replace(
            plain,
            out_dir=str(inputs / "switch-checkpointing"),
            gradient_checkpointing=True,
            log_steps=4,
            optimizer="adamw_torch_fused",
        )
    )
    assert abs(same["loss_last"] - train(plain)["loss_last"]) < 0.05  # costs less memory, not another answer


def test_a_spread_update_is_the_same_run(inputs):
    "Passes of an update are no part of the run key; a state of another architecture is refused by name."

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kw):
            raise KeyboardInterrupt

    cfg = config(inputs, "spread")
    with pytest.raises(KeyboardInterrupt):
        train(cfg, [Stop()])
    states = inputs / "spread/steps/checkpoint-10/config.json"
    good = states.read_text()
    states.write_text(good.replace('"hidden_size": 32', '"hidden_size": 64'))
    with pytest.raises(ValueError, match="was saved by a model with hidden_size=64, this one has 32"):
        train(cfg)
    states.write_text(good)
    again = train(replace(cfg, batch_size=2, grad_accumulation=2))
    whole = train(replace(cfg, out_dir=str(inputs / "spread-whole")))
    logs = [
        [r["loss"] for r in read_rows(inputs / name / "train_log.jsonl") if "loss" in r]
        for name in ("spread", "spread-whole")
    ]
    assert again["resumed_at"] == 10 and len(logs[0]) == whole["steps"] == 120
    assert max(abs(a - b) for a, b in zip(*logs)) < 1e-4


def test_a_limit_of_memory_splits_the_updates(inputs):
    "The log is that of the unsplit run, run.json says what was taken, and a run that cannot fit does not start."
    cfg = replace(config(inputs, "memory"), epochs=1, save_steps=0)
    whole = train(cfg)
    needed = needed_gib(cfg, training_rows(read_rows(cfg.encoded, "encoded"), cfg), model_config(cfg.model_dir))
    limit = round(needed - 1e-4, 4)
    split = train(replace(cfg, out_dir=str(inputs / "memory-split"), max_memory=limit))
    assert whole["batch_size"] == 4 and split["batch_size"] < 4 and split["estimated_gib"] <= limit
    assert split["batch_size"] * split["grad_accumulation"] == 4 and split["peak_mib"]
    logs = [
        [r["loss"] for r in read_rows(inputs / name / "train_log.jsonl") if "loss" in r]
        for name in ("memory", "memory-split")
    ]
    assert max(abs(a - b) for a, b in zip(*logs, strict=True)) < 1e-4
    with pytest.raises(ParameterError, match="one example of 32 tokens takes about 0.9 GiB: raise max_memory"):
        train(replace(cfg, out_dir=str(inputs / "memory-none"), max_memory=0.1))
    assert not (inputs / "memory-none/train_log.jsonl").exists()


def test_bf16_changes_the_loss_by_less_than_a_percent():
    "On a fixed batch of the pocket world; `auto` takes what the processor has, and the key says which it was."
    model = load_model("data/pocket/base", dtype="float32").eval()
    use_label_head(model)
    rows = [r for r in read_rows("data/pocket/encoded.jsonl", "encoded") if r["layout"] == "critique"][:8]
    labels = [r["input_ids"][:] for r in rows]
    for y, r in zip(labels, rows):
        y[: r["spans"][0][1]] = [-100] * r["spans"][0][1]
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(
        [dict(input_ids=r["input_ids"], labels=y) for r, y in zip(rows, labels)]
    )
    losses = []
    for bf16 in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses.append(model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.item())
    assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1) < 0.01
    auto = TrainConfig("runs/none", bf16="auto", device="cpu")
    assert run_params(auto)["bf16"] is has_bf16("cpu") and run_params(TrainConfig("runs/none"))["bf16"] is False


def test_rows_of_training_at_135m():
    from measure.bench_smol import measure

    rows = measure(small=True)
    assert [r["bound"] for r in rows] == [">= 1.3", "<= 0.7", "", "", ">= 0.5"] * 2
    assert all(r["ratio"] > 0 for r in rows)


def test_rows_of_benchmark_faults_and_gpu(tmp_path):
    "The measurements run at their small size; without a GPU rows stay missing and replace no measured ones."
    import csv
    from measure import bench_training, faults_train, gpu_train
    from mcft.costs import n_parameters

    rows = bench_training.measure(small=True)
    assert [(r["peer"].split()[0], r["bound"]) for r in rows] == [
        ("the", ">= 2.5"),
        ("the", "<= 0.5"),
        ("transformers.Trainer", ">= 1.3"),
        ("transformers.Trainer", "<= 0.4"),
        ("wall", ">= 0.85"),
    ]
    assert all(r["ratio"] > 0 for r in rows if "memory" not in r["name"])  # next to nothing at this size
    (fault,) = faults_train.measure(small=True)
    assert fault["tried"] == 2 and fault["lost"] == fault["duplicated"] == fault["hung"] == 0
    got = gpu_train.run(gpu_train.TINY)
    model = gpu_train.build(gpu_train.TINY)
    assert n_parameters(gpu_train.TINY.architecture) == sum(p.numel() for p in model.parameters())
    assert got["loss"] > 0 and got["seconds"] > 0
    def read():
        return [r["value"] for r in csv.DictReader((tmp_path / "gpu.csv").open())]
    gpu_train.save(gpu_train.rows_of(None, "no GPU"), tmp_path)
    assert read() == ["missing", "missing"]
    gpu_train.save(gpu_train.rows_of(dict(got, gib=40.0), "NVIDIA H200"), tmp_path)
    assert "missing" not in read() and len(read()) == 2
    gpu_train.save(gpu_train.rows_of(None, "no GPU"), tmp_path)
    assert "missing" not in read() and len(read()) == 2


def test_weights_in_shards_are_the_same_run(inputs):
    "Another input by its digest, the same weights out."
    from transformers import AutoModelForCausalLM

    cfg = replace(config(inputs, "whole-file"), max_steps=4, save_steps=0)
    AutoModelForCausalLM.from_pretrained(inputs / "model").save_pretrained(inputs / "shards", max_shard_size="40KB")
    load_tokenizer(inputs / "model").save_pretrained(inputs / "shards")
    info = train(replace(cfg, model_dir=str(inputs / "shards"), out_dir=str(inputs / "from-shards")))
    train(cfg)
    assert (
        sum(name.endswith(".safetensors") for name in info["inputs"])
        == len(list((inputs / "shards").glob("model-*-of-*.safetensors")))
        > 1
    )
    assert sha256_file(inputs / "from-shards/model.safetensors") == sha256_file(inputs / "whole-file/model.safetensors")


@pytest.mark.parametrize(
    "name, how",
    [
        ("thought", dict(mask_preset="partial_answer_masking")),
        ("both", dict(mask_mode="both", report_to="tensorboard")),
        ("input", dict(mask_mode="input")),
    ],
)
def test_the_log_has_every_part(inputs, name, how):
    "Loss by part on training rows and held-out ones; TensorBoard gets what the file gets."
    info = train(replace(config(inputs, f"parts-{name}"), max_steps=3, save_steps=0, val_share=0.2, **how))
    assert {"loss_masked", "loss_kept", "loss_reasoning", "loss_answer"} <= set(info["parts"]) and info[
        "mask_share"
    ] > 0
    assert {"val_loss_masked", "val_loss_kept"} <= set(info["val"])
    events = list((inputs / f"parts-{name}/tensorboard").glob("events*"))
    assert bool(events) == (name == "both")


class StopAt(TrainerCallback):
    "Ctrl-C right after a state was saved, or between the last update and the finished folder."

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kw):
        if state.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_end(self, args, state, control, **kw):
        self.on_save(args, state, control)


@pytest.mark.parametrize("stop, max_steps, save_steps, resumed", [(4, -1, 2, 4), (3, 3, 1, 2)])
def test_stopped_with_everything_on_that_could_go_wrong(inputs, stop, max_steps, save_steps, resumed):
    "A new draw each epoch, hidden tokens, accumulation, added rows; stopped on the way or after the last update."
    write_rows(inputs / "both.jsonl", ROWS, "encoded")
    hard = replace(config(inputs, f"hard-{stop}"), encoded=str(inputs / "both.jsonl"), epochs=2, max_steps=max_steps,
                   save_steps=save_steps, grad_accumulation=2, part_steps=0, mask_schedule="per_epoch",
                   mask_mode="both", mix_question_only=0.3)
    cut = replace(hard, out_dir=str(inputs / f"cut-{stop}"))
    with pytest.raises(KeyboardInterrupt):
        train(cut, [StopAt(stop)])
    assert run_info(cut.out_dir) is None
    whole, again = train(replace(hard, snapshot_steps=1)), train(cut)
    assert (whole["resumed_at"], again["resumed_at"], again["steps"]) == (None, resumed, whole["steps"])
    assert sha256_file(f"{hard.out_dir}/model.safetensors") == sha256_file(f"{cut.out_dir}/model.safetensors")
    assert read_rows(f"{hard.out_dir}/train_log.jsonl") == read_rows(f"{cut.out_dir}/train_log.jsonl")
    kept = sorted((inputs / f"hard-{stop}/snapshots").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    assert [run_info(p)["steps"] for p in kept] == list(range(1, whole["steps"]))
    assert len({sha256_file(p / "model.safetensors") for p in kept}) == len(kept)


def test_a_loss_can_be_divided_by_all_target_tokens(tmp_path):
    "Then the rewrite weighs the same under every mask; without the switch the key is that of earlier runs."
    losses = {}
    for over in ('trained', 'target'):
        cfg = TrainConfig(tmp_path/over, method='mcft', mask_rate=1.0, max_steps=1, batch_size=2, loss_over=over)
        assert ('loss_over' in run_params(cfg)) == (over == 'target') and 'mask_nested' not in run_params(cfg)
        train(cfg)
        log = read_rows(tmp_path/over/'train_log.jsonl')
        losses[over] = next(r['loss'] for r in log if 'loss' in r)
    assert run_params(replace(cfg, mask_nested=False))['mask_nested'] is False
    assert .2 < losses['target']/losses['trained'] < .8
    with pytest.raises(ValueError, match='needs num_processes=1'):
        TrainConfig(tmp_path/'x', loss_over='target', num_processes=2)


# Optimizers and loaders that need a package of their own; on the CPU as well.


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    "A model whose matrices are large enough for 8-bit states, rows, and a run with PyTorch's Adam to compare with."
    shape = dict(max_position_embeddings=64, hidden_size=64, intermediate_size=128)
    d = small_student(tmp_path_factory.mktemp("wide"), **shape)
    write_rows(d / "encoded.jsonl", [toy_row(i) for i in range(40)], "encoded")
    return d, train(short(d, "plain"))


def short(d, name: str, **kw) -> TrainConfig:
    return replace(config(d, name), epochs=2, save_steps=5, part_steps=0, **kw)


def test_run_json_says_what_ran(wide):
    _, plain = wide
    assert plain["optimizer_ran"] == "torch.optim.adamw.AdamW"
    assert plain["optimizer_bytes"] == 8.0 and plain["model_ran"].endswith(".Qwen2ForCausalLM")


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed: pip install bitsandbytes")
def test_8_bit_adam_trains_and_resumes_on_the_cpu(wide):
    d, plain = wide
    whole = train(short(d, "adam8", optimizer="adamw_8bit"))
    assert whole["optimizer_ran"].startswith("bitsandbytes.") and whole["optimizer_bytes"] < 6.0
    assert abs(whole["loss_last"] - plain["loss_last"]) < 0.02 * plain["loss_last"]
    cut = short(d, "adam8-cut", optimizer="adamw_8bit")
    with pytest.raises(KeyboardInterrupt):
        train(cut, [StopAt(5)])
    assert train(cut)["resumed_at"] == 5
    assert sha256_file(d / "adam8/model.safetensors") == sha256_file(d / "adam8-cut/model.safetensors")


@pytest.mark.skipif(not find_spec("unsloth"), reason="unsloth is not installed: pip install unsloth")
def test_unsloth_trains_in_float32_on_the_cpu(wide):
    d, plain = wide
    made = train(short(d, "unsloth", loader="unsloth"))
    assert abs(made["loss_last"] - plain["loss_last"]) < 1e-4
    assert {w.dtype for w in load_file(d / "unsloth/model.safetensors").values()} == {torch.float32}
