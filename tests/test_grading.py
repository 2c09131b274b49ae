"""What the grading notebook cannot show: limits, killed workers, odd callers, adversarial text."""
import csv, json, multiprocessing, os, re, signal, subprocess, sys, threading, time
from collections import Counter
from pathlib import Path

import nbformat, papermill, psutil, pytest
from hypothesis import given, settings, strategies as st

from conftest import ROOT, needs_files
from mcft import grading
from mcft.grading import REASONS, VERDICT_FIELDS, close_workers, extract_boxed, grade, verify_text
from mcft.released import MODELS, RUNS
from measure import bench_grading, faults_grading

PAPER = Path(__file__).resolve().parent.parent/'data'/'paper'

HANG = r"\boxed{9^{9^{9^{9}}}}"
EASY = r"\boxed{0.5}"


def test_hang_is_a_timeout_within_its_limit_and_takes_nothing_with_it():
    grade([EASY], [r"\frac{1}{2}"])  # a worker is running
    t0 = time.monotonic()
    got = grade([EASY, HANG, r"\boxed{1/3}"], [r"\frac{1}{2}", "3", r"\frac{1}{3}"], "symbolic", timeout=1.0)
    assert got.symbolic.tolist() == ["right", "timeout", "right"]
    assert time.monotonic() - t0 < 60  # 1 s of processor time, a new worker, a busy machine; without a limit: for ever


def test_wall_clock_stops_a_worker_that_is_stuck_without_using_the_processor():
    w = grading.Worker()
    os.kill(w.proc.pid, signal.SIGSTOP)
    w.line_seconds = w.line
    w.line = lambda seconds: w.line_seconds(1.0)
    assert list(w.ask([("symbolic", "1/2", "0.5")], 1.0)) == []
    assert not w.usable()
    assert w.end() == 1 and w.proc.returncode is not None  # one chance, and gone


def test_a_worker_killed_from_outside_is_replaced():
    grade([EASY], [r"\frac{1}{2}"])
    assert grading._idle
    for w in grading._idle:
        w.proc.kill()
        w.proc.wait()
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


def _gone(pid: int, seconds: float = 45) -> bool:
    try: psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess: return True
    except psutil.TimeoutExpired: return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def _script(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)


BUSY = 'threading.Thread(target=grade, args=([HANG], ["3"], "symbolic", 2.0)).start(); time.sleep(1)'


# A busy worker may be deep in a C function that lets no other code run: then the limit of its answer ends it.
@pytest.mark.parametrize('then', ['', BUSY], ids=['idle', 'busy'])
def test_workers_end_with_their_parent_even_when_another_process_holds_their_pipes(then):
    p = _script(f"""
import os, signal, subprocess, threading, time
from mcft import grading
from mcft.grading import grade
HANG = {HANG!r}
grading.grade([{EASY!r}], ["1/2"], "symbolic")
w = grading._idle[-1]
other = os.fork() or time.sleep(60) or os._exit(0)
print(w.proc.pid, other, flush=True)
{then}
os.kill(os.getpid(), signal.SIGKILL)""")
    worker, other = map(int, p.stdout.readline().split())
    p.wait(30)
    p.stdout.close()
    try: assert _gone(worker), f'worker {worker} outlived its parent'
    finally: os.kill(other, signal.SIGKILL)


def test_an_interrupt_ends_the_call_at_once_and_leaves_no_busy_worker():
    p = _script(f"""
import threading, time
from mcft import grading
def told():
    while not grading._idle and threading.active_count() < 4: time.sleep(0.1)
    time.sleep(2); print("graded", flush=True)
threading.Thread(target=told, daemon=True).start()
answers = [{HANG!r}.replace("9}}", str(i) + "}}") for i in range(100, 200)]
try: grading.grade(answers, ["3"]*100, "symbolic", timeout=120.0)
except KeyboardInterrupt: print("stopped", flush=True)
print(*grading.grade([{EASY!r}], ["1/2"], "symbolic").symbolic, flush=True)
import psutil
print(sum(c.cpu_times().user > 5 for c in psutil.Process().children()))""")
    assert p.stdout.readline() == 'graded\n'
    t0 = time.monotonic()
    p.send_signal(signal.SIGINT)
    assert p.stdout.readline() == 'stopped\n'
    assert time.monotonic() - t0 < 10
    assert p.stdout.read().split() == ['right', '0']
    p.wait(10)
    p.stdout.close()


@pytest.mark.parametrize("args, options, says", [
    ((["a"], ["1"]), dict(graders=("exact",)), "unknown grader 'exact': one of strict, symbolic, full_text, raw"),
    ((["a", "b"], ["1"]), {}, "2 responses but 1 golds"),
    (([None], ["1"]), {}, "response 0 is None"),
    ((["a"], [" "]), {}, "gold 0 is empty"),
    ((["a"], ["1"]), dict(timeout=0), "timeout is 0"),
    ((["a"], ["1"]), dict(workers=-1), "workers is -1")])
def test_bad_input_is_named(args, options, says):
    with pytest.raises((TypeError, ValueError), match=says): grade(*args, **options)


def test_a_worker_that_takes_nothing_does_not_block_the_caller():
    w = grading.Worker()
    os.kill(w.proc.pid, signal.SIGSTOP)
    t0 = time.monotonic()
    assert not w.send(b'x'*10_000_000, 1.0)
    assert time.monotonic() - t0 < 10
    w.kill()


def test_an_answer_that_needs_gigabytes_is_a_timeout_never_wrong_and_the_caller_stays_small(monkeypatch):
    monkeypatch.setattr(grading, '_start', grading._start.replace('serve({parent})', 'serve({parent}, 300)'))
    close_workers()
    before = psutil.Process().memory_info().rss
    got = grading._grade_batch([('symbolic', '2^{2^{36}}', '5'), ('symbolic', '0.5', '1/2')], 60.0, grading._Crew())
    close_workers()  # their limit is not the usual one
    assert got == ['timeout', 'right']
    assert psutil.Process().memory_info().rss - before < 50 << 20


def test_the_callers_alarm_is_left_alone():
    def handler(*_): pass
    old = signal.signal(signal.SIGALRM, handler)
    signal.alarm(500)
    try:
        assert grade([EASY, HANG], ['1/2', '3'], 'symbolic', 0.2).symbolic.tolist() == ['right', 'timeout']
        assert signal.getsignal(signal.SIGALRM) is handler and 0 < signal.alarm(0) <= 500
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def test_under_papermill(tmp_path):
    code = f"""from mcft.grading import grade
got = grade([{EASY!r}, {HANG!r}], ["1/2", "3"], "symbolic", 0.2)
assert list(got.symbolic) == ["right", "timeout"]"""
    kernel = dict(name='python3', display_name='python3', language='python')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=dict(kernelspec=kernel))
    nbformat.write(nb, tmp_path/'in.ipynb')
    papermill.execute_notebook(str(tmp_path/'in.ipynb'), str(tmp_path/'out.ipynb'), progress_bar=False)


# --- adversarial answers: the full size is `make faults` --------------------------------------------------------------
def test_every_adversarial_answer_gets_a_verdict():
    row = faults_grading.adversarial(150, 0.1)
    assert (row['tried'], row['lost'], row['duplicated'], row['hung']) == (150, 0, 0, 0)


def test_killed_workers_and_killed_callers_change_nothing():
    for row in (faults_grading.killed_workers(60, 2), faults_grading.killed_callers(1)):
        assert row['lost'] == row['duplicated'] == row['hung'] == 0


def test_benchmarks_are_measured():
    rows = bench_grading.measure(small=True)
    assert all(r['ratio'] > 0 and r['bound'] for r in rows) and len(rows) == 1 + bool(os.environ.get('MCFT_DATA_DIR'))


# --- the released responses -------------------------------------------------------------------------------------------
def _facts(name: str) -> list[dict]: return list(csv.DictReader((PAPER/f'{name}.csv').open(encoding='utf-8')))


def test_graders_on_the_released_responses_cell_by_cell():
    rows = [{**r, **v} for r, v in zip(_facts('responses'), _facts('verdicts'), strict=True)]
    def cells(model, benchmark):
        here = [r for r in rows if r['run'] == RUNS[model] and r['benchmark'] == benchmark]
        graders = ('raw', 'strict', 'full_text', 'symbolic')
        return [sum(r['released'] == '1' for r in here), *(sum(r[g] == 'right' for r in here) for g in graders)]
    want = dict(base=([9, 9, 9, 9, 9], [24, 0, 24, 25, 24]), R1=([7, 7, 7, 8, 7], [21, 0, 20, 24, 22]),
                MCFT=([7, 7, 7, 7, 7], [27, 0, 27, 27, 27]))
    assert {m: (cells(m, 'aime24'), cells(m, 'amc23')) for m in MODELS} == want
    others = [r for r in rows if r['run'] not in RUNS.values()]
    assert len({(r['run'], r['settings']) for r in others}) == 5
    for g in ('raw', 'strict', 'symbolic', 'full_text'):
        assert all((r['released'] == '1') == (r[g] == 'right') for r in others)


def test_the_reasons_name_the_released_cases_and_no_others():
    facts = _facts('verdicts')
    short = {v: k for k, v in RUNS.items()}
    facts_named = [r for r in facts if r['reason'] not in ('', 'number format')]
    named = {(short[r['run']], r['benchmark'], int(r['problem_id'])): r['reason'] for r in facts_named}
    cut, unit = 'nothing boxed, cut off: a stray number equals the gold', 'unit in the box'
    assert named == {
        ('base', 'amc23', 44): 'nothing boxed, stopped: the text holds the value', ('base', 'amc23', 17): 'timeout',
        ('R1', 'aime24', 78): cut, ('R1', 'amc23', 41): cut, ('R1', 'amc23', 49): cut,
        ('R1', 'amc23', 0): unit, ('R1', 'amc23', 44): unit}
    assert Counter(r['benchmark'] for r in facts if r['reason'] == 'number format').keys() == {'amc23'}
    assert {r['reason'] for r in facts} <= {'', *REASONS} and list(facts[0]) == VERDICT_FIELDS


def test_verdicts_belong_to_the_committed_responses():
    keys = ['run', 'benchmark', 'settings', 'problem_id', 'sample', 'sha256']
    assert [[r[k] for k in keys] for r in _facts('verdicts')] == [[r[k] for k in keys] for r in _facts('responses')]


@needs_files
@pytest.mark.parametrize('name, bare', [('math500', 108), ('olympiadbench', 41)])
def test_golds_equal_themselves_in_a_box_and_not_all_do_bare(name, bare):
    from math_verify import parse, verify
    text = (Path(os.environ['MCFT_DATA_DIR'])/'benchmarks'/f'{name}.jsonl').read_text(encoding='utf-8')
    golds = [str(json.loads(line)['answer']) for line in text.splitlines() if line.strip()]
    def response(gold): return rf'The answer is \boxed{{{gold}}}'
    assert sum(not verify(parse(g), parse(response(g))) for g in golds) == bare
    for g in golds:
        assert (verify_text('symbolic', g, g), verify_text('full_text', response(g), g)) == ('right', 'right'), g


# --- extraction -------------------------------------------------------------------------------------------------------
_pieces = st.lists(st.sampled_from(['\\boxed', '\\fbox', '\\boxed{', '\\boxedx', 'boxed', '\\frac', '{', '}', '\\',
                                    '\\{', '\\}', '\\\\', ' ', '\n', '5', 'x', '$']), max_size=40).map(''.join)


@settings(max_examples=500, deadline=None)
@given(_pieces)
def test_the_short_way_to_the_last_box_finds_what_the_whole_pass_finds(text):
    boxes = list(grading._boxes(text))
    full = [b for b in boxes if b[1].strip()] or boxes
    assert extract_boxed(text) == max(full, default=(0, None), key=lambda b: b[0])[1]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="{}\\boxedf 5ab$", max_size=60), st.text(alphabet="ab5", min_size=1, max_size=5),
       st.text(alphabet="ab5 .$", max_size=20))
def test_the_last_closed_box_wins_whatever_stands_before_it(before, content, after):
    before = before.rstrip("\\")
    assert extract_boxed(f"{before} \\boxed{{{content}}}{after}") == content


def test_threads_share_nothing_they_should_not():
    want, got = {}, {}
    def one(i):
        answers = [f"\\boxed{{{i}/{j}}}" for j in range(1, 20)]
        got[i] = grade(answers, [rf"\frac{{{i}}}{{7}}"] * 19, "symbolic").symbolic.tolist()
    threads = [threading.Thread(target=one, args=(i,)) for i in (3, 5)]
    for t in threads: t.start()
    for t in threads: t.join()
    for i in (3, 5): want[i] = ["right" if j == 7 else "wrong" for j in range(1, 20)]
    assert got == want


def test_the_page_grades_as_it_says():
    "The lines on grading of the page on benchmarks run, and give a column per grader."
    page = (ROOT/'docs'/'pages'/'howto_benchmark.md').read_text(encoding='utf-8')
    code = next(b for b in re.findall(r'```python\n(.*?)```', page, re.S) if 'mcft.grading' in b)
    lines = code.strip().splitlines()
    scope = {}
    exec('\n'.join(lines[:-1]) + '\ntable = ' + lines[-1], scope)
    assert list(scope['table'].columns) == re.search(r'a DataFrame: (.*)', code)[1].split(', ')
    assert scope['table'].symbolic.tolist() == ['right', 'wrong']
