"""A training process that is killed with SIGKILL goes on where it stopped, and ends with the same weights."""
import pytest

from killing import kill_after
from mcft.core import read_rows, write_rows
from mcft.train import TrainConfig, train


def toy_row(i: int) -> dict:
    "32 tokens: prompt, tag, critique, tag, chain, tag, answer, end."
    parts = [("prompt", 8), ("tag", 1), ("critique", 12), ("tag", 1), ("reasoning", 4), ("tag", 1), ("answer", 1), ("answer", 2), ("answer", 1), ("eos", 1)]
    ends = [sum(n for _, n in parts[:j + 1]) for j in range(len(parts))]
    ids = [5 + (i*7 + j*j*(i + 1)) % 35 for j in range(ends[-1] - 1)] + [1]
    return dict(id=f"c{i}:critique", layout="critique", problem_id=f"p{i}", input_ids=ids,
                spans=[[e - n, e, kind] for (kind, n), e in zip(parts, ends)], words=[3, 4, 5, 2, 2, 2])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    "A tiny model with a tokenizer, and 40 encoded rows."
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    d = tmp_path_factory.mktemp("train")
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=40, hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
                                 num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True)).save_pretrained(d/"model")
    vocab = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 40)}}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(d/"model")
    write_rows(d/"encoded.jsonl", [toy_row(i) for i in range(40)], "encoded")
    return d


def config(d, name: str) -> TrainConfig:
    return TrainConfig(str(d/"model"), str(d/"encoded.jsonl"), str(d/name), method="mcft", epochs=12, lr=1e-3,
                       batch_size=4, max_length=64, save_steps=10, part_steps=30, device="cpu")


def test_kill_and_resume(inputs):
    "Killed twice, at updates that are no multiple of save_steps; weights and log equal those of the run left alone."
    whole = train(config(inputs, "whole"))
    cfg = config(inputs, "killed"); folder = inputs/"killed"
    first = kill_after(train, cfg, 13, inputs/"marker1", .01, 60)
    assert not (folder/"run.json").exists() and not (folder/"model.safetensors").exists()
    assert (folder/"steps").exists() and first < whole["steps"]
    kill_after(train, cfg, 37, inputs/"marker2", .01, 60)
    with open(folder/"train_log.jsonl", "a") as f: f.write('{"step": 38, "lo')       # and a torn last line
    again = train(cfg)
    assert again["resumed_at"] % 10 == 0 and again["resumed_at"] >= 30 and whole["resumed_at"] is None
    assert (folder/"model.safetensors").read_bytes() == (inputs/"whole/model.safetensors").read_bytes()
    assert read_rows(folder/"train_log.jsonl") == read_rows(inputs/"whole/train_log.jsonl")
    assert not (folder/"steps").exists()
    assert train(cfg) == again                                                       # complete: not made again


def test_prompt_is_that_of_inference():
    "The first tokens of an encoded example are those the model is given when it is evaluated."
    from mcft.generate import chat_prompt, prompt_ids
    from mcft.masking import encode, example_text, load_tokenizer
    tok = load_tokenizer("data/pocket/base")
    row = dict(id="c", problem_id="p", question="What is 3+4*2?", rollout="<think>\n4*2=8\n3+8=12\n</think>\n\\boxed{12}",
               critique="Line 2 is wrong: 3+8 is 11.", reasoning="4*2=8\n3+8=11", answer="11")
    for layout in ("critique", "question"):
        e = encode(row, tok, layout)
        ids = prompt_ids(tok, chat_prompt(tok, example_text(row, layout)[0]))
        assert e["spans"][0] == [0, len(ids), "prompt"] and e["input_ids"][:len(ids)] == ids


def test_every_switch_runs_and_changes_the_weights(inputs):
    "A switch that does nothing would give the weights of the plain run."
    import math
    from dataclasses import replace
    from mcft.core import sha256_file
    plain = replace(config(inputs, "switch-plain"), max_steps=4, save_steps=0, part_steps=0)
    switches = dict(plain={}, bf16=dict(bf16=True), linear=dict(scheduler="linear"), decay=dict(weight_decay=.1), sgd=dict(optimizer="sgd"),
                    warmup=dict(warmup=3), order=dict(group_by_length=False), hidden=dict(mask_mode="both"), inputs=dict(mask_mode="input"),
                    sentence=dict(mask_unit="sentence"),
                    exact=dict(mask_draw="exact"), word=dict(mask_unit="word"), chain=dict(mask_target="reasoning"), whole=dict(mask_unit="part", mask_rate=.5),
                    answer=dict(mask_preset="partial_answer_masking"), held=dict(val_share=.3), few=dict(n_examples=8),
                    cft=dict(method="cft"), clip=dict(max_grad_norm=.01), seed=dict(seed=1))
    seen = {}
    for name, kw in switches.items():
        info = train(replace(plain, out_dir=str(inputs/f"switch-{name}"), **kw))
        assert info["steps"] == 4 and math.isfinite(info["loss_last"]), name
        seen[name] = sha256_file(inputs/f"switch-{name}/model.safetensors")
    assert len(set(seen.values())) == len(seen), [a for a in seen if list(seen.values()).count(seen[a]) > 1]
    same = train(replace(plain, out_dir=str(inputs/"switch-checkpointing"), gradient_checkpointing=True, log_steps=4, optimizer="adamw_torch_fused"))
    assert abs(same["loss_last"] - train(plain)["loss_last"]) < .05                   # costs less memory, not another answer


def test_a_spread_update_is_the_same_run(inputs):
    "Passes of an update are no part of the run key; a state of another architecture is refused by name."
    from dataclasses import replace
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kw): raise KeyboardInterrupt
    cfg = config(inputs, "spread")
    with pytest.raises(KeyboardInterrupt): train(cfg, [Stop()])
    states = inputs/"spread/steps/checkpoint-10/config.json"
    good = states.read_text()
    states.write_text(good.replace('"hidden_size": 32', '"hidden_size": 64'))
    with pytest.raises(ValueError, match="was saved by a model with hidden_size=64, this one has 32"): train(cfg)
    states.write_text(good)
    again = train(replace(cfg, batch_size=2, grad_accumulation=2))
    whole = train(replace(cfg, out_dir=str(inputs/"spread-whole")))
    logs = [[r["loss"] for r in read_rows(inputs/name/"train_log.jsonl") if "loss" in r] for name in ("spread", "spread-whole")]
    assert again["resumed_at"] == 10 and len(logs[0]) == whole["steps"] == 120
    assert max(abs(a - b) for a, b in zip(*logs)) < 1e-4


def test_rows_of_benchmark_faults_and_gpu(tmp_path):
    "The measurements run at their small size, and a machine without a GPU keeps missing rows, which never replace measured ones."
    import csv
    from measure import bench_training, faults_train, gpu_train
    from mcft.costs import n_parameters
    rows = bench_training.measure(small=True)
    assert [(r["peer"].split()[0], r["bound"]) for r in rows] == [
        ("the", ">= 2.5"), ("the", "<= 0.5"), ("transformers.Trainer", ">= 1.3"), ("transformers.Trainer", "<= 0.4"), ("wall", ">= 0.85")]
    assert all(r["ratio"] > 0 for r in rows if "memory" not in r["name"])            # next to nothing at this size
    fault, = faults_train.measure(small=True)
    assert fault["tried"] == 2 and fault["lost"] == fault["duplicated"] == fault["hung"] == 0
    got = gpu_train.run(gpu_train.TINY)
    model = gpu_train.build(gpu_train.TINY)
    assert n_parameters(gpu_train.TINY.architecture) == sum(p.numel() for p in model.parameters())
    assert got["loss"] > 0 and got["seconds"] > 0
    read = lambda: [r["value"] for r in csv.DictReader((tmp_path/"gpu.csv").open())]
    gpu_train.save(gpu_train.rows_of(None, "no GPU"), tmp_path); assert read() == ["missing", "missing"]
    gpu_train.save(gpu_train.rows_of(dict(got, gib=40.), "NVIDIA H200"), tmp_path); assert "missing" not in read() and len(read()) == 2
    gpu_train.save(gpu_train.rows_of(None, "no GPU"), tmp_path); assert "missing" not in read() and len(read()) == 2
