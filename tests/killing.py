"""Trainings that a test kills, and the small student that they train."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

# each update waits a little, so that the kill falls between two saved states whatever the machine's speed
CHILD = """
import importlib, json, sys, time
from transformers import TrainerCallback
module, config, train, given, marker, pause = sys.argv[1:]
m = importlib.import_module(module)
class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kw):
        open(marker, "w").write(str(state.global_step)); time.sleep(float(pause))
getattr(m, train)(getattr(m, config)(**json.loads(given)), [Slow()])
"""


def kill_after(train, cfg, step: int, marker, pause=0.02, limit=900) -> int:
    "Start a run, kill it with SIGKILL once it has passed `step` updates; how far it came."
    words = [train.__module__, type(cfg).__name__, train.__name__, json.dumps(asdict(cfg)), str(marker), str(pause)]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *words], env={**os.environ, "MCFT_QUIET": "1"})
    def at():
        return int(marker.read_text() or 0) if marker.exists() else 0
    try:
        deadline = time.time() + limit
        while at() < step:
            assert child.poll() is None, f"the run ended with code {child.returncode} before update {step}"
            assert time.time() < deadline, f"no update {step} within {limit} seconds"
            time.sleep(0.01)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    return at()


def tiny_model(vocab_size: int, **how):
    "A Qwen2 of two layers, always with the same weights."
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    return Qwen2ForCausalLM(Qwen2Config(**(shape | heads | how), vocab_size=vocab_size))


def small_student(d, **how):
    "A tiny model with the pocket tokenizer, and the first committed rollouts."
    from mcft.core import read_rows, write_rows
    from mcft.models import load_tokenizer

    tiny_model(512, tie_word_embeddings=True, **how).save_pretrained(d / "model")
    load_tokenizer("data/pocket/base").save_pretrained(d / "model")
    write_rows(d / "rollouts.jsonl", read_rows("data/pocket/rollouts.jsonl", "rollouts")[:120], "rollouts")
    return d
