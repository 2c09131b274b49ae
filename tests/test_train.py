"""A training process that is killed with SIGKILL goes on where it stopped, and ends with the same weights."""
import json, os, signal, subprocess, sys, time
import pytest
from mcft.core import read_rows, write_rows
from mcft.train import TrainConfig, train


def toy_row(i: int) -> dict:
    "30 tokens: prompt, tag, critique, tag, chain, tag, answer, end."
    parts = [("prompt", 8), ("tag", 1), ("critique", 12), ("tag", 1), ("reasoning", 4), ("tag", 1), ("answer", 2), ("eos", 1)]
    ends = [sum(n for _, n in parts[:j + 1]) for j in range(len(parts))]
    ids = [5 + (i*7 + j*j*(i + 1)) % 35 for j in range(ends[-1] - 1)] + [1]
    return dict(id=f"c{i}:critique", layout="critique", problem_id=f"p{i}", input_ids=ids,
                spans=[[e - n, e, kind] for (kind, n), e in zip(parts, ends)])


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
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>").save_pretrained(d/"model")
    write_rows(d/"encoded.jsonl", [toy_row(i) for i in range(40)], "encoded")
    return d


def config(d, name: str) -> TrainConfig:
    return TrainConfig(str(d/"model"), str(d/"encoded.jsonl"), str(d/name), method="mcft", epochs=12, lr=1e-3,
                       batch_size=4, max_length=64, save_steps=10, part_steps=30, device="cpu")


# each update waits a little, so that the kill falls between two saved states whatever the machine's speed
CHILD = """
import sys, json, time
from transformers import TrainerCallback
from mcft.train import TrainConfig, train
class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kw):
        open(sys.argv[2], "w").write(str(state.global_step)); time.sleep(.01)
train(TrainConfig(**json.loads(sys.argv[1])), [Slow()])
"""


def kill_after(cfg: TrainConfig, step: int, marker) -> int:
    "Start a run, kill it with SIGKILL once it has passed `step` updates; how far it came."
    child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(cfg.__dict__), str(marker)], env={**os.environ, "MCFT_QUIET": "1"})
    at = lambda: int(marker.read_text() or 0) if marker.exists() else 0
    try:
        deadline = time.time() + 60
        while at() < step:
            assert child.poll() is None, f"the run ended with code {child.returncode} before update {step}"
            assert time.time() < deadline, f"no update {step} within a minute"
            time.sleep(.01)
    finally:
        if child.poll() is None: child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    return at()


def test_kill_and_resume(inputs):
    "Killed twice, at updates that are no multiple of save_steps; weights and log equal those of the run left alone."
    whole = train(config(inputs, "whole"))
    cfg = config(inputs, "killed"); folder = inputs/"killed"
    first = kill_after(cfg, 13, inputs/"marker1")
    assert not (folder/"run.json").exists() and not (folder/"model.safetensors").exists()
    assert (folder/"steps").exists() and first < whole["steps"]
    kill_after(cfg, 37, inputs/"marker2")
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
                    warmup=dict(warmup=3), order=dict(group_by_length=False), hidden=dict(mask_mode="both"), sentence=dict(mask_unit="sentence"),
                    exact=dict(mask_draw="exact"), few=dict(n_examples=8), cft=dict(method="cft"), clip=dict(max_grad_norm=.01), seed=dict(seed=1))
    seen = {}
    for name, kw in switches.items():
        info = train(replace(plain, out_dir=str(inputs/f"switch-{name}"), **kw))
        assert info["steps"] == 4 and math.isfinite(info["loss_last"]), name
        seen[name] = sha256_file(inputs/f"switch-{name}/model.safetensors")
    assert len(set(seen.values())) == len(seen), [a for a in seen if list(seen.values()).count(seen[a]) > 1]
    same = train(replace(plain, out_dir=str(inputs/"switch-checkpointing"), gradient_checkpointing=True, log_steps=4, optimizer="adamw_torch_fused"))
    assert abs(same["loss_last"] - train(plain)["loss_last"]) < .05                   # costs less memory, not another answer
