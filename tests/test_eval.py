"""What the evaluation notebook cannot show: kill -9 in a real evaluation, a server that dies, prompts as the model sees
them."""
import json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mcft.core import read_arm, read_rows, write_rows
from mcft.eval import EvalConfig, _key_parts, collect, compare_runs, evaluate, load_problems, pick_problems
from measure.faults_eval import measure

N, BATCH = 48, 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A model with random weights, its run.json, and problems."
    from mcft.pocket import BaseConfig, make_model, make_tokenizer
    d = tmp_path_factory.mktemp("eval")
    tok = make_tokenizer(n_rows=200)
    tok.unk_token = tok.pad_token
    make_model(BaseConfig(), tok).save_pretrained(d/"model")
    tok.save_pretrained(d/"model")
    (d/"model/run.json").write_text(json.dumps(dict(params=dict(method="mcft", mask_rate=0.2, mix_question_only=0.0,
                                                                lr=1e-4, seed=3))))
    def problem(b, i):
        question, answer = f"What is ({i}*7+{i}) mod 13?", str(8*i % 13)
        return dict(id=f"{b}-{i}", source="test", split=b, question=question, answer=answer, family="mod", level=1)

    write_rows(d/"problems.jsonl", [problem(b, i) for b in ("near", "far") for i in range(N//2)], "problems")
    return d


def config(world, out, **kw):
    return EvalConfig(str(world/"model"), str(world/"problems.jsonl"), str(world/out),
                      **dict(dict(max_new_tokens=24, batch_size=BATCH), **kw))


def test_kills_at_random_moments_lose_nothing_and_repeat_nothing():
    [row] = measure(small=True)
    assert row['name'] == 'evaluation, kill -9' and row['tried'] == 3
    assert row['lost'] == row['duplicated'] == row['hung'] == 0


def test_a_changed_setting_never_returns_old_scores(world):
    first = evaluate(config(world, "changed", max_new_tokens=4))
    second = evaluate(config(world, "changed", max_new_tokens=6))
    assert (first["scores"]["near"]["mean_tok"], second["scores"]["near"]["mean_tok"]) == (4.0, 6.0)
    assert list(collect([world/"changed"]).mask_rate) == [0.2, 0.2]


def test_other_graders_keep_the_responses_and_no_checkpoint_is_replaced(world):
    first = evaluate(config(world, "judged", max_new_tokens=4))
    file = world/"judged/responses/responses.jsonl"
    before = file.stat().st_mtime_ns, file.read_bytes()
    second = evaluate(config(world, "judged", max_new_tokens=4, graders=("symbolic",)))
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    assert first["scores"]["near"]["strict"] is not None and second["scores"]["near"]["strict"] is None
    weights = (world/"model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="choose another out_dir"): evaluate(config(world, "model"))
    assert (world/"model/model.safetensors").read_bytes() == weights


def test_the_prompt_is_question_instruction_and_system_prompt_with_one_bos(world):
    from mcft.generate import load, prompt_ids, text_hash
    _, tok = load(world/"model")
    kinds = dict(bare={}, asked=dict(instruction="Box it."),
                 told=dict(instruction="Box it.", system_prompt="Solve user question"))
    for k, kw in kinds.items(): evaluate(config(world, f"prompt-{k}", n_problems=2, max_new_tokens=2, **kw))
    rows = {k: read_rows(world/f"prompt-{k}/responses/responses.jsonl", "responses")[0] for k in kinds}
    question = next(p for p in read_rows(world/"problems.jsonl") if p["id"] == rows["bare"]["problem_id"])["question"]
    turns = dict(bare=[question], asked=[f"{question}\n\nBox it."],
                 told=["Solve user question", f"{question}\n\nBox it."])
    for k, r in rows.items():
        roles = ["system", "user"][-len(turns[k]):]
        prompt = tok.apply_chat_template([dict(role=a, content=b) for a, b in zip(roles, turns[k])],
                                         add_generation_prompt=True, tokenize=False)
        ids = prompt_ids(tok, prompt)
        assert (r["prompt_hash"], r["n_prompt_tok"]) == (text_hash(prompt),
                                                         len(ids)) and ids.count(tok.bos_token_id) == 1
        assert (r["backend"], r["temperature"], r["max_new_tokens"], r["seed"]) == ("transformers", 0.0, 2, 0)


class Server:
    "A chat server that answers 7, and breaks after so many answers."
    def __init__(self, lives=10**9):
        outer, self.answers = self, 0
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    alive = outer.answers < lives
                    outer.answers += alive
                text = r"\boxed{7}" if body["messages"][-1]["content"] else ""
                answer = dict(id="1", object="chat.completion", created=0, model=body["model"],
                              usage=dict(prompt_tokens=9, completion_tokens=5, total_tokens=14),
                              choices=[dict(index=0, finish_reason="stop",
                                            message=dict(role="assistant", content=text))])
                data = json.dumps(answer if alive else dict(error=dict(message="out of order"))).encode()
                self.send_response(200 if alive else 400)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *a): pass
        self.lock, self.http = threading.Lock(), ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def __exit__(self, *exc):
        self.http.shutdown()
        self.http.server_close()


def test_a_server_that_dies_is_replaced_by_one_at_another_address(world):
    def served(url): return EvalConfig("org/some-model", str(world/"problems.jsonl"), str(world/"served"),
                                       backend="openai", n_samples=2, temperature=0.6,
                                       backend_options=dict(base_url=url, concurrency=3, max_retries=0))
    first, second = Server(lives=20), Server()
    with first as url, pytest.raises(RuntimeError, match="out of order"): evaluate(served(url))
    assert len(read_rows(world/"served/responses/responses.jsonl", "responses")) == 20
    with second as url: info = evaluate(served(url))
    ids = [r["id"] for r in read_rows(world/"served/responses/responses.jsonl", "responses")]
    assert len(ids) == len(set(ids)) == 2*N and second.answers == 2*N - 20 # no sample is asked for twice
    assert info["params"]["arm"]["method"] == "some-model" and info["model"]["backend"] == "openai"
    assert all(s["maj_at_k"] == s["pass_at_k"] == s["accuracy"] for s in info["scores"].values())
    evaluate(config(world, "local", max_new_tokens=4, temperature=1.0, n_samples=2))
    paired = compare_runs(world/"local", world/"served")
    assert list(paired.only_second) == [info["scores"][b]["correct"]//2
                                        for b in paired.benchmark] and (paired.p_holm >= paired.p).all()


def test_problems_are_picked_by_benchmark_and_number():
    def toy(split, i):
        return dict(id=f"{split}-{i}", source="toy", split=split, question=f"{i} + 3 = ?", answer=str(i+3),
                    family="sum", level=1)
    rows = [toy(s, i) for s in ("easy", "hard", "dev_easy") for i in range(5)]
    assert [p["id"] for p in pick_problems(rows, n_problems=2)] == ["easy-0", "easy-1", "hard-0", "hard-1"]
    assert len(pick_problems(rows, ("dev_easy",))) == 5
    assert [p["id"] for p in pick_problems(rows, ("hard",), 2, skip=3)] == ["hard-3", "hard-4"]
    for how, why in ((dict(n_problems=6), "n_problems is 6 but benchmark 'easy' has 5"),
                     (dict(n_problems=2, skip=4), "has 1 behind the 4 that skip_problems leaves out"),
                     (dict(n_problems=-1), "a positive number, or 0")):
        with pytest.raises(ValueError, match=why): pick_problems(rows, **how)
    loaded = load_problems("benchmarks", ("amc23", "aime24"), lambda b: [toy(b, 0)])
    assert [p["id"] for p in loaded] == ["amc23-0", "aime24-0"]
    with pytest.raises(ValueError, match="unknown benchmark 'gsm8k': `problems` is 'benchmarks', which has aime24"):
        load_problems("benchmarks", ("gsm8k",))
    with pytest.raises(ValueError, match="`symbolic`, which counts, and any of strict"):
        EvalConfig("m", "p", "o", graders=("strict",))


class Toy:
    "A back end that adds: the third sum is wrong, the fifth answer has no box; with `closed` nothing may be asked."
    tok = None

    def __init__(self, closed=False): self.closed = closed

    def info(self): return dict(backend="toy", model="toy", revision="")

    def answer(self, prompt, i):
        k = int(prompt.user.split()[0])
        text = "<critique> hm" if k == 4 else rf"{k} + 3 = {k + 3}</think>\boxed{{{k + 3 + (k == 2)}}}"
        return dict(index=i, sample=0, text=text, n_tok=9, n_prompt_tok=5, prompt_hash="0", finish_reason="stop")

    def generate(self, prompts, sampling, batch_size, skip, desc="", done=None):
        if self.closed: raise AssertionError("asked again")
        yield [self.answer(p, i) for i, p in enumerate(prompts) if not skip(i)]


class Bench:
    "A folder with toy problems, checkpoints that are made when asked for, and evaluations by a toy back end."
    def __init__(self, folder):
        self.folder, self.problems = folder, str(folder/"problems.jsonl")
        write_rows(self.problems, [dict(id=f"{s}-{i}", source="toy", split=s, question=f"{i} + 3 = ?", answer=str(i+3),
                                        family="sum", level=1) for s in ("easy", "hard", "dev_easy") for i in range(5)])

    def checkpoint(self, name, **params):
        folder = self.folder/name
        if not folder.exists():
            folder.mkdir()
            (folder/"model.safetensors").write_bytes(name.encode())
            (folder/"run.json").write_text(json.dumps(dict(params=params)))
        return str(folder)

    def config(self, out, **how):
        model = self.checkpoint("mcft-0", method="mcft", mask_rate=0.2, mix_question_only=0.0, lr=1e-4, seed=0)
        return EvalConfig(**dict(dict(model_dir=model, problems=self.problems, out_dir=str(self.folder/out)), **how))

    def evaluate(self, out, closed=False, **how): return evaluate(self.config(out, **how), Toy(closed))


@pytest.fixture
def bench(tmp_path): return Bench(tmp_path)


def test_a_finished_evaluation_has_its_rows_and_its_arm(bench):
    info = bench.evaluate("eval")
    assert info["params"]["arm"]["mask_rate"] == 0.2 and info["scores"]["easy"]["correct"] == 3
    assert len(read_rows(bench.folder/"eval"/"verdicts.jsonl", "verdicts")) == 10
    assert "opening" not in info["params"], "what is not asked for leaves the keys of earlier runs as they were"


def test_a_model_from_elsewhere_has_its_name_for_a_method(bench):
    elsewhere = bench.folder/"elsewhere"
    elsewhere.mkdir()
    (elsewhere/"model-00001-of-00002.safetensors").write_bytes(b"a")
    foreign = (elsewhere, "vllm"), ("org/model-1b", "transformers"), ("served", "openai")
    assert [read_arm(*f)["method"] for f in foreign] == ["elsewhere", "model-1b", "served"]
    with pytest.raises(FileNotFoundError, match="not a complete checkpoint"): read_arm("runs/mistyped")


def test_a_servers_address_is_not_in_the_key(bench):
    def at(port): return dict(backend="openai", model_dir="served",
                              backend_options=dict(base_url=f"http://127.0.0.1:{port}/v1"))
    bench.evaluate("eval", **at(8000))
    assert bench.evaluate("eval", closed=True, **at(8001))["params"]["arm"]["method"] == "served"


def test_every_file_of_a_model_is_in_the_key(bench):
    cfg = bench.config("eval")
    before = _key_parts(cfg)[1]
    (bench.folder/"mcft-0"/"generation_config.json").write_text("{}")
    assert {Path(f).name for f in set(_key_parts(cfg)[1]) - set(before)} == {"generation_config.json"}


def test_responses_are_graded_again_without_asking_again(bench):
    full = bench.evaluate("eval")
    bench.evaluate("eval", closed=True, graders=("symbolic",))
    assert bench.evaluate("eval", closed=True)["scores"] == full["scores"]
    by_result = bench.evaluate("eval", closed=True, answer_from="result")["scores"]["easy"]
    assert (by_result["correct"], by_result["boxed"]) == (4, 0.8), "the third chain is correct, its box is not"


@pytest.mark.parametrize("how, says", [(dict(opening="<think>"), "asked again"),
                                       (dict(graders=("symbolic",), resume="same"), "other parameters or inputs"),
                                       (dict(problems="none.jsonl"), "missing input")])
def test_what_an_evaluation_refuses(bench, how, says):
    bench.evaluate("eval")
    with pytest.raises((AssertionError, ValueError, FileNotFoundError), match=says):
        bench.evaluate("eval", closed=True, **how)


def test_an_evaluation_never_overwrites_a_checkpoint(bench):
    with pytest.raises(ValueError, match="must not replace: choose another out_dir"):
        bench.evaluate(bench.checkpoint("cft-0", method="cft"))
    assert (bench.folder/"cft-0"/"model.safetensors").exists()


@pytest.mark.parametrize("other, says", [(dict(benchmarks=("dev_easy",)), "no benchmark in common"),
                                         (None, "no finished evaluation in")])
def test_runs_that_cannot_be_compared_are_named(bench, other, says):
    bench.evaluate("first")
    if other: bench.evaluate("second", **other)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        compare_runs(bench.folder/"first", bench.folder/"second")


def test_five_problems_show_no_difference(bench):
    bench.evaluate("first")
    bench.evaluate("second", seed=1)
    paired = compare_runs(bench.folder/"first", bench.folder/"second")
    assert paired.only_first.tolist() == [0, 0] and paired.mdd.isna().all()
