"""What the evaluation notebook cannot show: kill -9 in the middle of a real generation, and the committed tables."""
import json, os, signal, subprocess, sys, time

import pytest

from mcft.core import read_rows, repo_root, write_rows
from mcft.eval import EvalConfig, build_tables, collect, evaluate

N, BATCH = 48, 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A model with random weights, its run.json, and problems."
    from mcft.pocket import BaseConfig, make_model, make_tokenizer
    d = tmp_path_factory.mktemp("eval")
    tok = make_tokenizer(n_rows=200)
    tok.unk_token = tok.pad_token
    make_model(BaseConfig(), tok).save_pretrained(d/"model"); tok.save_pretrained(d/"model")
    (d/"model/run.json").write_text(json.dumps(dict(params=dict(method="mcft", mask_rate=0.2, mix_question_only=0.0, lr=1e-4, seed=3))))
    write_rows(d/"problems.jsonl", [dict(id=f"{b}-{i}", source="test", split=b, question=f"What is ({i}*7+{i}) mod 13?", answer=str(8*i % 13), family="mod", level=1)
                                    for b in ("near", "far") for i in range(N//2)], "problems")
    return d


def config(world, out, **kw):
    return EvalConfig(str(world/"model"), str(world/"problems.jsonl"), str(world/out), **dict(dict(max_new_tokens=24, batch_size=BATCH), **kw))


def test_killed_evaluation_goes_on_and_ends_the_same(world):
    sampling = dict(temperature=1.0, n_samples=2)
    whole = evaluate(config(world, "whole", **sampling))
    out = world/"killed"
    code = f"from mcft.eval import *; evaluate({config(world, out.name, **sampling)!r})"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    responses, deadline = out/"responses.jsonl", time.monotonic() + 60
    while not (responses.exists() and responses.read_bytes().count(b"\n") >= 2*BATCH):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL); child.wait()
    before = len(read_rows(responses, partial=True))
    assert not (out/"run.json").exists() and 0 < before < whole["scores"]["near"]["n"] + whole["scores"]["far"]["n"]
    with open(responses, "a") as f: f.write('{"id": "near-')  # a torn line, as a kill during a write leaves it
    resumed = evaluate(config(world, out.name, **sampling))
    assert resumed["scores"] == whole["scores"]
    for name in ("responses.jsonl", "verdicts.jsonl"):
        assert (out/name).read_bytes() == (world/"whole"/name).read_bytes()


def test_a_changed_setting_never_returns_old_scores(world):
    first = evaluate(config(world, "changed", max_new_tokens=4))
    second = evaluate(config(world, "changed", max_new_tokens=6))
    assert (first["scores"]["near"]["mean_tok"], second["scores"]["near"]["mean_tok"]) == (4.0, 6.0)
    assert list(collect([world/"changed"]).mask_rate) == [0.2, 0.2]


def test_committed_tables_are_what_the_committed_rows_give(tmp_path):
    build_tables("data/results", tmp_path)
    for f in sorted(tmp_path.iterdir()):
        assert (repo_root()/"data/results"/f.name).read_bytes() == f.read_bytes(), f"data/results/{f.name} is not what its rows give: run 05_eval and commit it"
