"""Pairs, losses and runs of stage 07: the losses against TRL's and by hand, a run killed with SIGKILL, what is
refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from killing import kill_after, small_student
from mcft.core import arm_of, read_rows, sha256_file
from mcft.eval import read_arm
from mcft.preference import (NEAR, PreferenceConfig, displacement, distance, edit_distance, encode_pairs, make_pairs,
                             pair_logps, pick_pairs, prefer, redi_loss, rewrite_candidates)

FILES = ("pairs.jsonl", "pair_stats.csv", "train_log.jsonl", "displacement.csv", "model.safetensors")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_student(tmp_path_factory.mktemp("preference"), max_position_embeddings=256)


def config(d, name: str, **kw) -> PreferenceConfig:
    usual = dict(model_dir=str(d / "model"), rollouts=str(d / "rollouts.jsonl"),
                 problems="data/pocket/problems.jsonl.gz", out_dir=str(d / name), lr=1e-3, epochs=6, batch_size=4,
                 max_length=256, save_steps=5, watch_steps=10, device="cpu", )
    return PreferenceConfig(**usual | kw)


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(method="orpo"), "method is 'orpo', expected one of dpo, supercorrect, redi"),
        (dict(near_miss="far"), "near_miss is 'far'"),
        (dict(beta=0.0), "beta is 0.0"),
        (dict(beta=100.0), "beta is 100.0"),
        (dict(alpha=1.5), "alpha is 1.5"),
        (dict(right_low=0.8, right_high=0.2), "right_low=0.8 to right_high=0.2"),
        (dict(lr=3), "lr is 3"),
        (dict(method="supercorrect"), "name critiques"),
        (dict(method="redi", sft_weight=1.0), "leave it out, or lower alpha"),
        (dict(epochs=0), "epochs is 0"),
        (dict(save_steps=3, log_steps=2), "no multiple of log_steps"),
        (dict(watch_steps=3, log_steps=2), "no multiple of log_steps"),
        (dict(n_pairs=0), "n_pairs is 0"),
        (dict(loss_type="kto"), "loss_type is 'kto'"),
        (dict(pairs_from="web"), "pairs_from is 'web'"),
        (dict(watch_steps=-1), "watch_steps is -1"),
        (dict(levels=["a"]), "levels is"),
    ],
)
def test_a_bad_parameter_is_named(bad, says):
    with pytest.raises(ValueError, match=says):
        PreferenceConfig("toy/out", **bad)


@pytest.mark.parametrize("method", ["dpo", "redi"])
def test_kill_and_resume(inputs, method):
    "Killed between two saved states, with a torn line in the log; every file equals that of the run left alone."
    whole = prefer(config(inputs, f"whole-{method}", method=method))
    cfg = config(inputs, f"killed-{method}", method=method)
    folder = inputs / f"killed-{method}"
    first = kill_after(prefer, cfg, 13, inputs / f"marker-{method}")
    assert not (folder / "run.json").exists() and not (folder / "model.safetensors").exists() and first < whole["steps"]
    with open(folder / "train_log.jsonl", "a") as f:
        f.write('{"step": 38, "lo')
    again = prefer(cfg)
    assert again["resumed_at"] % 5 == 0 and again["resumed_at"] >= 10 and whole["resumed_at"] is None
    for name in FILES:
        assert (folder / name).read_bytes() == (inputs / f"whole-{method}" / name).read_bytes(), name
    assert not (folder / "steps").exists() and prefer(cfg) == again
    assert read_arm(folder)["method"] == arm_of(dict(method=method, start_arm="model")), "stage 05 knows it"


def test_training_prefers(inputs):
    "Margin and accuracy grow, the loss falls; REDI pushes the rejected down only with alpha 1."
    dpo = prefer(config(inputs, "learns", epochs=10))
    assert (
        abs(dpo["loss_first"] - math.log(2)) < 1e-4
        and dpo["loss_last"] < dpo["loss_first"]
        and dpo["watched_margin"] > 0
        and dpo["watched_accuracy"] > 0.8
    )
    sft, redi = (prefer(config(inputs, f"alpha-{a}", method="redi", alpha=a, epochs=10)) for a in (0.0, 1.0))
    assert (
        sft["chosen_shift"] > 0.5 and sft["rejected_shift"] > 0.5 and sft["displaced"] == 0
    )  # near misses: what helps the one helps the other
    assert redi["chosen_shift"] - redi["rejected_shift"] > sft["chosen_shift"] - sft["rejected_shift"] > 0
    assert redi["rejected_shift"] < sft["rejected_shift"] - 0.2


def test_every_switch_changes_the_weights(inputs):
    "A switch that does nothing would give the weights of the plain run."
    plain = config(inputs, "switch-plain", max_steps=3, save_steps=0, watch_steps=0, warmup=0)
    switches = dict(
        plain={},
        beta=dict(beta=0.5),
        sft=dict(sft_weight=0.5),
        ipo=dict(loss_type="ipo"),
        redi=dict(method="redi"),
        alpha=dict(method="redi", alpha=0.9),
        rewrite=dict(method="supercorrect", critiques="data/pocket/critiques.jsonl"),
        any=dict(near_miss="none"),
        two=dict(pairs_per_question=2),
        band=dict(right_low=0.5),
        levels=dict(levels=(1,)),
        few=dict(n_pairs=9),
        seed=dict(seed=1),
        decay=dict(weight_decay=0.1),
        accumulate=dict(grad_accumulation=2),
        order=dict(scheduler="linear", warmup=2),
    )
    seen = {}
    for name, kw in switches.items():
        info = prefer(replace(plain, out_dir=str(inputs / f"switch-{name}"), **kw))
        assert info["steps"] == 3 and math.isfinite(info["loss_last"]), name
        seen[name] = sha256_file(inputs / f"switch-{name}/model.safetensors")
    assert len(set(seen.values())) == len(seen), [a for a in seen if list(seen.values()).count(seen[a]) > 1]


def test_distances():
    "A metric where it should be; the nearest pair is the one that a person would pick."

    def slow(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            new = [i]
            for j, y in enumerate(b, 1):
                new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
            row = new
        return row[-1]

    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b, c = (rng.integers(0, 4, rng.integers(0, 12)).tolist() for _ in range(3))
        assert edit_distance(a, b) == slow(a, b) == edit_distance(b, a) <= edit_distance(a, c) + edit_distance(c, b)
    for near in NEAR:
        assert 0 <= distance("4*2=8\n8+1=9", "4*2=8\n8+1=10\n\n", near) <= 1 and distance("", "", near) == 0
    assert distance("a b c", "a b", "length") == pytest.approx(1 / 3)


def test_pairs_of_the_committed_data():
    "Every pair is a right and a wrong chain of one question; dropping is counted; a pair is not made twice."
    rollouts = read_rows("data/pocket/rollouts.jsonl", "rollouts")
    by_id = {r["id"]: r for r in rollouts}
    problems = {p["id"]: p for p in read_rows("data/pocket/problems.jsonl.gz", "problems")}
    critiques = read_rows("data/pocket/critiques.jsonl", "critiques")
    cfg = PreferenceConfig("o", pairs_per_question=9)
    pairs, counts, dropped = make_pairs(cfg, rollouts, problems)
    assert all(by_id[p["chosen_id"]]["is_correct"] and not by_id[p["rejected_id"]]["is_correct"] for p in pairs)
    assert all(
        by_id[p["chosen_id"]]["problem_id"] == by_id[p["rejected_id"]]["problem_id"] == p["problem_id"] for p in pairs
    )
    assert counts["questions"] == counts["questions_with_pairs"] + sum(dropped["questions"].values())
    assert len({(p["problem_id"], p["rejected"]) for p in pairs}) == len(pairs)
    nearest = {p["problem_id"]: p["distance"] for p in pick_pairs(pairs)}
    assert all(p["distance"] >= nearest[p["problem_id"]] for p in pairs)
    chosen = {
        near: tuple(
            p["id"] for p in make_pairs(replace(cfg, near_miss=near, pairs_per_question=1), rollouts, problems)[0]
        )
        for near in NEAR
    }
    assert len(set(chosen.values())) == len(NEAR)
    teacher, *_ = make_pairs(replace(cfg, method="supercorrect", critiques="c"), rollouts, problems, critiques)
    wrong = [c for c in critiques if not by_id[c["rollout_id"]]["is_correct"] and c["answer_match"]]
    assert len(teacher) == len([c for c in wrong if by_id[c["rollout_id"]]["finish_reason"] == "stop"]) > len(pairs) - 5
    assert not rewrite_candidates(critiques, {})[0]


def test_log_probabilities_and_loss_by_hand(inputs):
    "Against a softmax written out; a prompt never counts, whatever the other side's length."
    import torch
    from mcft.generate import load

    model, tok = load(str(inputs / "model"))
    pairs = [dict(problem_id="p", chosen="1+1=2", rejected="1+1=3, or perhaps 4")]
    (row,) = encode_pairs(pairs, dict(p=dict(question="What is 1+1?")), tok)

    def slow(prompt, completion):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0].double()
        return sum(
            float(torch.log_softmax(logits[i - 1], -1)[(prompt + completion)[i]])
            for i in range(len(prompt), len(prompt + completion))
        )

    got = pair_logps(model, [row], pad=tok.pad_token_id)[0]
    assert got == pytest.approx([slow(row["prompt_ids"], row[k]) for k in ("chosen_ids", "rejected_ids")], abs=1e-3)
    assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == tok.eos_token_id
    a, b = torch.tensor([-2.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    redi_loss(a, b, 0.3).backward()
    assert (a.grad.item(), b.grad.item()) == pytest.approx((-1, 0.3))
    moved = displacement(np.array([[-4.0, -4.0]]), np.array([[-6.0, -8.0]]), np.array([[2, 4]]))
    assert (
        moved["chosen_shift"],
        moved["rejected_shift"],
        moved["displaced"],
        moved["both_down"],
        moved["watched_accuracy"],
    ) == (-1, -1, 1, 1, 1)


def test_a_loss_that_is_no_number_stops_the_run(inputs):
    from safetensors.torch import load_file, save_file
    import shutil

    broken = inputs / "broken"
    shutil.copytree(inputs / "model", broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, broken / "model.safetensors", metadata=dict(format="pt"))
    with pytest.raises(ValueError, match="the loss is nan at update 1: lower lr"):
        prefer(config(inputs, "nan", model_dir=str(broken)))
    assert not (inputs / "nan/run.json").exists()
