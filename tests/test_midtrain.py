"""Stage 14: what is kept, what carries loss, that packed chains stand alone, a run killed with SIGKILL, and that
stage 04 goes on from it."""

from dataclasses import replace

import numpy as np
import pytest

from killing import kill_after, small_student
from mcft.core import read_rows, sha256_file
from mcft.mask import IGNORE
from mcft.midtrain import LEAK, MidtrainConfig, chain_rows, check_leak, midtrain, pack_leak, pack_rows, rejection_sample

PROBLEMS = "data/pocket/problems.jsonl.gz"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_student(tmp_path_factory.mktemp("midtrain"), max_position_embeddings=512, initializer_range=0.1)


@pytest.fixture(scope="module")
def rows(inputs):
    from mcft.models import load_tokenizer

    kept, _ = rejection_sample(read_rows(inputs / "rollouts.jsonl", "rollouts"))
    return chain_rows(kept, {p["id"]: p for p in read_rows(PROBLEMS, "problems")}, load_tokenizer(inputs / "model"))


def config(d, name: str, **kw) -> MidtrainConfig:
    usual = dict(model_dir=str(d / "model"), rollouts=str(d / "rollouts.jsonl"), problems=PROBLEMS,
                 out_dir=str(d / name), pack_length=256, epochs=6, lr=1e-3, save_steps=5, watch_steps=10, device="cpu")
    return MidtrainConfig(**usual | kw)


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(packing="ffd"), "packing is 'ffd', expected one of bfd, wrapped, none"),
        (dict(loss_on="answer"), "loss_on is 'answer'"),
        (dict(lr=2), "lr is 2"),
        (dict(pack_length=0), "pack_length is 0"),
        (dict(val_share=1.0), "val_share is 1.0"),
        (dict(save_steps=3, log_steps=2), "no multiple of log_steps"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(chains_per_question=-1), "chains_per_question is -1"),
        (dict(bf16="no"), "bf16 is 'no'"),
    ],
)
def test_a_bad_parameter_is_named(bad, says):
    with pytest.raises(ValueError, match=says):
        MidtrainConfig("toy/out", **bad)


@pytest.mark.parametrize("packing, batch_size", [("wrapped", 1), ("none", 8)])
def test_stopped_and_taken_up_again(inputs, packing, batch_size):
    "Right after a state was saved; weights, log and counts equal those of the run that was not stopped."
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kw):
            raise KeyboardInterrupt

    whole, cut = (
        config(inputs, f"{name}-{packing}", packing=packing, batch_size=batch_size, epochs=1, save_steps=2)
        for name in ("left", "cut")
    )
    with pytest.raises(KeyboardInterrupt):
        midtrain(cut, [Stop()])
    assert (midtrain(whole)["resumed_at"], midtrain(cut)["resumed_at"]) == (None, 2)
    for name in ("train_log.jsonl", "model.safetensors", "pack_stats.csv"):
        assert (inputs / f"left-{packing}" / name).read_bytes() == (inputs / f"cut-{packing}" / name).read_bytes(), name


def test_kill_and_resume(inputs):
    "Killed between two saved states; weights and log equal those of the run left alone."
    whole, cfg, marker = midtrain(config(inputs, "whole")), config(inputs, "killed"), inputs / "marker"
    kill_after(midtrain, cfg, 8, marker)
    assert not (inputs / "killed/run.json").exists()
    again = midtrain(cfg)
    assert (
        again["resumed_at"] >= 5
        and again["resumed_at"] % 5 == 0
        and whole["resumed_at"] is None
        and whole["steps"] == again["steps"]
    )
    for name in ("train_log.jsonl", "model.safetensors", "pack_stats.csv"):
        assert (inputs / "whole" / name).read_bytes() == (inputs / "killed" / name).read_bytes(), name
    assert whole["val_loss_last"] < whole["val_loss_first"] and not (inputs / "killed/steps").exists()


def test_only_right_chains_and_only_their_tokens(inputs, rows):
    "No wrong rollout, no prompt token in the loss, each chain's end in it, packed or not."
    right = {r["id"] for r in read_rows(inputs / "rollouts.jsonl", "rollouts") if r["is_correct"]}
    assert {r["id"] for r in rows} <= right and len(rows) > 20
    for r in rows:
        n = sum(y == IGNORE for y in r["labels"])
        assert r["labels"] == [IGNORE] * n + r["input_ids"][n:] and 0 < n < len(r["labels"])
    on = sorted(y for r in rows for y in r["labels"] if y != IGNORE)
    for packing in ("bfd", "wrapped", "none"):
        packed = pack_rows(rows, packing, 256)
        assert sorted(y for seq in packed["labels"] for y in seq if y != IGNORE) == on, packing
        assert all(y in (IGNORE, x) for xs, ys in zip(packed["input_ids"], packed["labels"]) for x, y in zip(xs, ys)), (
            packing
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_chains_stand_alone(inputs, rows, attention):
    "Best-fit packing changes no token's probability; wrapping does, and a model that ignores boundaries is refused."
    from mcft.generate import load

    model, _ = load(str(inputs / "model"))
    model.set_attn_implementation(attention)
    assert pack_leak(model, rows[:12], "bfd", 512) < LEAK < pack_leak(model, rows[:12], "wrapped", 512)
    forward = model.base_model.forward
    model.base_model.forward = lambda input_ids, position_ids=None, **kw: forward(
        input_ids=input_ids, **kw
    )  # boundaries lost
    with pytest.raises(ValueError, match="lets packed chains read each other"):
        check_leak(pack_leak(model, rows[:12], "bfd", 512), "bfd", attention)


def test_gradient_of_a_packed_update(inputs, rows):
    "TRL's loss on one packed sequence has the gradient of the same chains, one to a row."
    import torch
    from mcft.generate import load
    from mcft.midtrain import pack_collator

    model, tok = load(str(inputs / "model"))

    def gradient(packing, data):
        model.zero_grad()
        model(**pack_collator(packing, tok.pad_token_id)(list(data)), use_cache=False).loss.backward()
        return torch.cat([p.grad.ravel() for p in model.parameters()])

    few = [r for r in rows if len(r["input_ids"]) < 100][:5]
    apart, packed, wrapped = (gradient(k, pack_rows(few, k, 512)) for k in ("none", "bfd", "wrapped"))
    assert torch.allclose(apart, packed, atol=1e-5) and not torch.allclose(apart, wrapped, atol=1e-3)


def test_every_switch_changes_the_weights(inputs):
    from mcft.core import sha256_file

    plain, seen = config(inputs, "switch", max_steps=3, save_steps=0, watch_steps=0, warmup=0), {}
    for name, kw in dict(plain={}, wrapped=dict(packing="wrapped"), none=dict(packing="none"), all=dict(loss_on="all"),
                         one=dict(chains_per_question=1), held=dict(val_share=0.4), length=dict(pack_length=512),
                         seed=dict(seed=1), two=dict(batch_size=2)).items():
        midtrain(replace(plain, out_dir=str(inputs / f"switch-{name}"), **kw))
        seen[name] = sha256_file(inputs / f"switch-{name}/model.safetensors")
    assert len(set(seen.values())) == len(seen), [a for a in seen if list(seen.values()).count(seen[a]) > 1]
    assert midtrain(replace(plain, out_dir=str(inputs / "switch-wrapped"), packing="wrapped"))["leak"] > LEAK


def test_stage_04_goes_on_from_it(inputs):
    "The checkpoint is a model_dir for `sft`, unpacked: the second round."
    from mcft.train import TrainConfig, train

    midtrain(config(inputs, "first", max_steps=3, save_steps=0, watch_steps=0))
    info = train(
        TrainConfig(str(inputs / "second"), model_dir=str(inputs / "first"), method="sft", max_steps=2, n_examples=16,
                    max_length=512, device="cpu")
    )
    assert (
        info["steps"] == 2
        and np.isfinite(info["loss_last"])
        and sha256_file(inputs / "first" / "model.safetensors") in info["inputs"].values()
    )
