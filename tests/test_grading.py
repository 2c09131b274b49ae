"""What the grading notebook cannot show: limits, killed workers, odd callers, adversarial text."""
import multiprocessing, os, signal, subprocess, sys, threading, time

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mcft import grading
from mcft.grading import extract_boxed, grade

HANG = r"\boxed{9^{9^{9^{9}}}}"
EASY = r"\boxed{0.5}"


def test_hang_is_a_timeout_within_its_limit_and_takes_nothing_with_it():
    grade([EASY], [r"\frac{1}{2}"])  # a worker is running
    t0 = time.monotonic()
    got = grade([EASY, HANG, r"\boxed{1/3}"], [r"\frac{1}{2}", "3", r"\frac{1}{3}"], "symbolic", timeout=1.0).symbolic.tolist()
    assert got == ["right", "timeout", "right"]
    assert time.monotonic() - t0 < 15  # 1 s of processor time, a new worker, a busy machine


def test_wall_clock_stops_a_worker_that_is_stuck_without_using_the_processor():
    w = grading.Worker()
    os.kill(w.proc.pid, signal.SIGSTOP)
    w.line_seconds = w.line
    w.line = lambda seconds: w.line_seconds(1.0)
    assert list(w.ask([("symbolic", "1/2", "0.5")], 1.0)) == []
    assert not w.usable()


def test_a_worker_killed_from_outside_is_replaced():
    grade([EASY], [r"\frac{1}{2}"])
    while not grading._idle.empty():
        w = grading._idle.get()
        w.proc.kill(); w.proc.wait()
        grading._idle.put(w)
        break
    assert grade([r"\boxed{0.25}"], [r"\frac{1}{4}"]).symbolic.tolist() == ["right"]


def test_memory_limit_ends_the_worker_not_the_caller():
    code = "from mcft.grading import _limit; _limit(512); bytes(1 << 30)"
    assert "MemoryError" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_script_without_main_guard():
    code = f"from mcft.grading import grade; print(*grade([{EASY!r}], [{chr(92)+'frac{1}{2}'!r}]).symbolic)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "right", done.stderr


def _in_child(pipe):
    pipe.send(grade([EASY, r"\boxed{0.75}"], [r"\frac{1}{2}"] * 2).symbolic.tolist())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_does_not_touch_the_parents_workers():
    grade([EASY], [r"\frac{1}{2}"])
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(there,))
    child.start()
    assert here.poll(60) and here.recv() == ["right", "wrong"]
    child.join()
    assert grade([r"\boxed{0.125}"], [r"\frac{1}{8}"]).symbolic.tolist() == ["right"]


def test_workers_end_with_their_parent():
    code = f"""
import os, signal
from mcft import grading
grading.grade([{EASY!r}], [{chr(92)+'frac{1}{2}'!r}])
w = grading._idle.get(); print(w.proc.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)"""
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout)
    for _ in range(100):
        try: os.kill(pid, 0)
        except ProcessLookupError: return
        if open(f"/proc/{pid}/stat").read().split(")")[1].split()[0] == "Z": return
        time.sleep(0.1)
    pytest.fail(f"worker {pid} outlived its parent by 10 s")


_tex = st.recursive(
    st.sampled_from(["1", "x", "-3", "0.1", "9^{9}", "20!", "\\pi", "\\{", "{", "}", "\\boxed{", "\\frac", "\\text{a}", "$", "__import__('os')", "\ud7ff", "٣"]),
    lambda s: st.one_of(st.tuples(s, s).map(lambda p: f"{p[0]}^{{{p[1]}}}"), st.tuples(s, s).map(lambda p: f"\\frac{{{p[0]}}}{{{p[1]}}}"),
                        st.tuples(s, s).map("+".join), s.map(lambda x: f"\\sqrt{{{x}}}"), s.map(lambda x: f"({x})!")), max_leaves=6)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.one_of(_tex, st.text(max_size=40)), min_size=8, max_size=8))
def test_every_adversarial_answer_gets_a_verdict(texts):
    got = grade([f"\\boxed{{{t}}}" for t in texts], ["5"] * len(texts), timeout=0.5)
    assert got.isin(["right", "wrong", "no_answer", "timeout"]).all(axis=None)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="{}\\boxedf 5ab$", max_size=60), st.text(alphabet="ab5", max_size=5), st.text(alphabet="ab5 .$", max_size=20))
def test_the_last_closed_box_wins_whatever_stands_before_it(before, content, after):
    before = before.rstrip("\\")
    assert extract_boxed(f"{before} \\boxed{{{content}}}{after}") == content


def test_threads_share_nothing_they_should_not():
    want, got = {}, {}
    def one(i):
        got[i] = grade([f"\\boxed{{{i}/{j}}}" for j in range(1, 20)], [rf"\frac{{{i}}}{{7}}"] * 19, "symbolic").symbolic.tolist()
    threads = [threading.Thread(target=one, args=(i,)) for i in (3, 5)]
    for t in threads: t.start()
    for t in threads: t.join()
    for i in (3, 5): want[i] = ["right" if j == 7 else "wrong" for j in range(1, 20)]
    assert got == want
