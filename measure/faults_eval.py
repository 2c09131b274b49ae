"""Kill -9 at random moments of a real evaluation, restarted each time.

Afterwards no row is lost, none is there twice, and every file and score is as without kills."""
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from mcft.core import read_rows
from mcft.eval import EvalConfig, collect, evaluate
from measure import processes

PATIENCE = 300  # seconds of one attempt; more counts as hung
TAIL = 5  # seconds after the last response in which a kill may fall
FILES = dict(responses='responses/responses.jsonl', verdicts='verdicts.jsonl')
LIBRARIES = ['mcft.eval', 'mcft.generate', 'pandas', 'torch', 'transformers.generation.utils',
             'transformers.models.auto.modeling_auto',
             'transformers.models.auto.tokenization_auto', 'transformers.models.qwen2.modeling_qwen2']


@dataclass
class Seen:
    "What was tried, and what went wrong."
    tried: int = 0  # kills that hit a running process
    lost: int = 0  # rows of the uninterrupted run that are missing or changed
    duplicated: int = 0  # ids that stand twice
    hung: int = 0  # attempts that had to be given up


def written(
    cfg: EvalConfig,
) -> int:  # complete lines
    "Responses on disk."
    f = Path(cfg.out_dir)/FILES['responses']
    return f.read_bytes().count(b'\n') if f.exists() else 0


def attempt(
    cfg: EvalConfig,
    rows: int,  # responses on disk after which the moment has come
    wait: float,  # further seconds
    seen: Seen,
) -> bool:  # True when the evaluation ended by itself
    "Start, and kill -9 at the moment; a process that has ended before is no kill."
    child, end = processes.start(LIBRARIES, evaluate, cfg), time.monotonic() + PATIENCE
    while child.is_alive() and written(cfg) < rows and time.monotonic() < end: time.sleep(0.002)
    ended = processes.finish(child, wait, f'the evaluation in {cfg.out_dir}')
    seen.hung += time.monotonic() > end
    seen.tried += not ended
    return ended


def finish(
    cfg: EvalConfig,
    seen: Seen,
):
    "Run to the end."
    if not attempt(cfg, 10**9, 0, seen):
        raise RuntimeError(f'the evaluation in {cfg.out_dir} did not end within {PATIENCE} s')


def lines(
    folder: Path,
    name: str,
) -> Counter:  # line -> how often
    "The lines of a file, in any order."
    return Counter((folder/FILES[name]).read_bytes().splitlines(True))


def compare(
    whole: Path,  # uninterrupted
    killed: Path,
    seen: Seen,
):
    "Count what the kills changed."
    for name in FILES:
        seen.lost += (lines(whole, name) - lines(killed, name)).total()
        ids = [r['id'] for r in read_rows(killed/FILES[name], name)]
        seen.duplicated += len(ids) - len(set(ids))
    seen.lost += int((collect([whole]).to_csv() != collect([killed]).to_csv()))


def config(
    out: Path,
    small: bool,
) -> EvalConfig:
    "The pocket base on short problems, in many small batches, sampled: a draw that depends on the kill would show."
    return EvalConfig('data/pocket/base', 'data/pocket/problems.jsonl.gz', str(out), ('chain', 'gcd'), 10 if small
                      else 100, n_samples=2,
                      max_new_tokens=120, batch_size=8, temperature=0.8)


def moment(
    have: int,  # responses on disk
    total: int,  # responses of one evaluation
    kills: int,  # how many in all
    draw: random.Random,
) -> tuple[int, float]:  # responses to wait for, further seconds
    "When to kill: anywhere in the answering, and when all is answered anywhere in start-up, grading and counting."
    return (total, draw.uniform(0, TAIL)) if have >= total else (min(total, have + draw.randint(0, 3*total//kills)),
                                                                 draw.uniform(0, 0.5))


def kill_until_done(
    cfg: EvalConfig,  # where to start; finished early, another folder follows
    kills: int,  # how many
    total: int,  # responses of one evaluation
    draw: random.Random,
) -> tuple:  # Seen, folders that were completed
    "As many kills as asked for, then to the end."
    seen, folders = Seen(), [Path(cfg.out_dir)]
    while seen.tried < kills:
        here = replace(cfg, out_dir=str(folders[-1]))
        if attempt(here, *moment(written(here), total, kills, draw), seen):
            folders.append(Path(f'{cfg.out_dir}-{len(folders)}'))
    finish(replace(cfg, out_dir=str(folders[-1])), seen)
    return seen, folders


def measure(
    small: bool,  # 3 kills instead of 20
) -> list[dict]:  # one row
    "Kill, restart, compare."
    t0, kills = time.monotonic(), 3 if small else 20
    with tempfile.TemporaryDirectory() as d:
        whole = config(Path(d)/'whole', small)
        finish(whole, Seen())
        seen, folders = kill_until_done(replace(whole, out_dir=f'{d}/killed'), kills, written(whole), random.Random(7))
        for f in folders: compare(Path(whole.out_dir), f, seen)
    counts = dict(tried=seen.tried, lost=seen.lost, duplicated=seen.duplicated, hung=seen.hung)
    return [dict(name='evaluation, kill -9', **counts, seconds=round(time.monotonic() - t0, 1))]
