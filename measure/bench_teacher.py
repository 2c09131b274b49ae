"""Stage 02 behind an API: wall time against what latency and concurrency allow, memory against the number of requests.

The endpoint is tests/fault_server.py without faults, over real HTTP, in a process of its own. Wall time is that of the
whole stage in a warm process: reading, estimate, requests, checks, rows, funnel. Memory is the peak of a fresh
process."""

import json, os, subprocess, sys, tempfile, time
from pathlib import Path

from measure.faults_teacher import ENV, FaultServer, client, config, world
from measure.rows import ROOT, bench_row


def wall(folder: Path, n: int, latency: float, concurrency: int, repeats: int) -> list[float]:
    "Wall time over requests x latency / concurrency, once per repeat."
    with tempfile.TemporaryDirectory() as d, FaultServer() as s:
        client(config(world_of(Path(d), 2), s.url), f'{d}/warm')  # imports and first use
    ratios = []
    for i in range(repeats):
        with FaultServer(latency=latency) as s:
            t0 = time.perf_counter()
            client(config(folder, s.url, concurrency=concurrency, timeout=60.0), str(folder / f'wall{i}'))
            ratios.append((time.perf_counter() - t0) / (n * latency / concurrency))
    return ratios


def world_of(folder: Path, n_questions: int) -> Path:
    "A folder with questions and rollouts."
    folder.mkdir(exist_ok=True)
    world(folder, n_questions)
    return folder


def peak_mib(folder: Path, run: str) -> int:
    "Peak memory of the stage in a fresh process."
    code = 'import json, sys; from measure.faults_teacher import client; client(json.loads(sys.argv[1]), sys.argv[2])'
    with FaultServer() as s:
        subprocess.run(
            [sys.executable, '-c', code, json.dumps(config(folder, s.url, timeout=60.0)), str(folder / run)],
            cwd=ROOT,
            env={**os.environ, **ENV},
            check=True,
        )
    return json.loads((folder / run / 'run.json').read_text())['peak_mib']


def measure(small: bool) -> list[dict]:
    "Rows of data/results/benchmarks.csv."
    questions, latency, concurrency, repeats = (20, 0.5, 16, 1) if small else (817, 2.0, 64, 2)
    with tempfile.TemporaryDirectory() as d:
        few = world_of(Path(d) / 'few', questions)
        ratios = wall(few, 3 * questions, latency, concurrency, repeats)
        many = world_of(Path(d) / 'many', 10 * questions)
        memory = [peak_mib(many, f'memory{i}') / peak_mib(few, f'memory{i}') for i in range(1 if small else 2)]
    return [
        bench_row('wall time, API teacher', 'requests x latency / concurrency', ratios, '<= 1.25'),
        bench_row(f'peak memory, {30 * questions:,} requests / {3 * questions:,}', 'mcft itself', memory, '<= 1.1'),
    ]
