"""Stage 02 against an endpoint that breaks, is killed, or is slow: what is lost, asked twice or hung, by its counts.

The server is tests/fault_server.py: real HTTP on 127.0.0.1, seeded faults. Three runs: a fifth of the requests meets a
fault; the client is killed (SIGKILL) at random moments and resumed; the same with an endpoint that honours the
Idempotency-Key of each request."""

import multiprocessing as mp, os, random, shutil, sys, tempfile, threading, time
from contextlib import redirect_stdout
from pathlib import Path

from tqdm.auto import tqdm

from measure import processes
from measure.rows import RESULTS, ROOT, read, write

sys.path.insert(0, str(ROOT / 'tests'))
from fault_server import FaultServer

ENV = dict(
    OMP_NUM_THREADS='1',
    OMP_WAIT_POLICY='PASSIVE',
    GOMP_SPINCOUNT='0',
    MCFT_QUIET='1',
    HF_HUB_OFFLINE='1',
    MPLBACKEND='Agg',
)
LIBRARIES = [
    'mcft.critique',
    'openai',
    'openai.resources.chat',
    'matplotlib.backends.backend_agg',
    'IPython.display',
    'seaborn',
]
MONEY = 1.0  # dollars per million tokens, in and out


def wrong_by(text: str, line: int, k: int) -> str:
    "A chain whose `line` ends with a number that is off by k, and its answer if it is the last."
    lines = text.splitlines()
    head, _, tail = lines[line].rpartition('=')
    lines[line] = f'{head}={int(tail) + k}'
    return '\n'.join(lines)


def world(folder: Path, n_questions: int, n_samples: int = 3) -> int:  # number of rollouts
    "Pocket questions and made-up chains, some right, some wrong, no two alike; one in fifty counts as cut off."
    from mcft.core import SCHEMAS, stream_rows, write_rows
    from mcft.format import solution_text
    from mcft.pocket import teach

    kinds = {k: t[0] if isinstance(t, tuple) else t for k, t in SCHEMAS['rollouts'].items()}
    blank = {k: (t[0] if isinstance(t, tuple) else t)() for k, t in kinds.items()}
    unique = {}
    for p in stream_rows(ROOT / 'data' / 'pocket' / 'problems.jsonl.gz', 'problems'):
        if len(unique) < n_questions:
            unique.setdefault(p['question'], p)

    def rollouts():
        for i, p in enumerate(unique.values()):
            t = teach(p['question'], '1+1=2')
            for k in range(n_samples):
                chain = wrong_by(t['reasoning'], (i + k) % len(t['reasoning'].splitlines()), k) if k else t['reasoning']
                yield {
                    **blank,
                    'id': f"{p['id']}.{k}",
                    'problem_id': p['id'],
                    'sample': k,
                    'text': solution_text(chain, t['answer']),
                    'finish_reason': 'length' if (n_samples * i + k) % 50 == 49 else 'stop',
                }

    write_rows(folder / 'problems.jsonl', unique.values(), 'problems')
    return write_rows(folder / 'rollouts.jsonl', rollouts(), 'rollouts')


def config(folder: Path, url: str, **limits) -> dict:
    "What a client process is told."
    return dict(folder=str(folder), url=url, limits=dict(dict(concurrency=32, timeout=3.0, first_wait=0.05), **limits))


def client(c: dict, out: str):
    "Stage 02 in this process."
    from mcft.critique import CritiqueConfig, TeacherConfig, run_critique
    from mcft.teacher import Limits

    os.environ |= ENV
    tqdm.set_lock(threading.RLock())  # its own lock holds a semaphore, which a killed process leaves behind
    who = TeacherConfig(
        'openai',
        model='teacher',
        base_url=c['url'],
        prices=dict(teacher=[MONEY, MONEY]),
        max_tokens=4000,
    )
    cfg = CritiqueConfig(
        f"{c['folder']}/problems.jsonl",
        f"{c['folder']}/rollouts.jsonl",
        who,
        limits=Limits(**c['limits']),
        repairs=1,
        confirm=True,
        out_dir=out,
        resume='same',
    )
    with open(os.devnull, 'w') as f, redirect_stdout(f):
        run_critique(cfg)


def start(c: dict, out: Path) -> mp.Process:
    "Stage 02 in a process of its own."
    return processes.start(LIBRARIES, client, c, str(out))


def finish(p: mp.Process, limit: float) -> bool:  # True = it ended by itself
    "Wait for a client."
    return processes.finish(p, limit, 'the client')


def lines(path: Path) -> list[dict]:
    "Rows of a file that a kill may have torn."
    from mcft.core import read_rows

    return read_rows(path, partial=True)


def answered(out: Path) -> set:  # keys
    "Asks whose reply is on the disk."
    return {r['key'] for r in lines(out / 'paid' / 'replies.jsonl') if not r['error']}


def settled(rollouts: Path, rows: list[dict]) -> tuple[int, int]:  # lost, duplicated
    "Every rollout must have one row, kept or dropped with a reason."
    ids = [r['rollout_id'] for r in rows if r['status'] == 'kept' or (r['status'] == 'dropped' and r['reason'])]
    return len({r['id'] for r in lines(rollouts)} - set(ids)), len(ids) - len(set(ids))


def faulty(folder: Path, n: int, keep: Path | None) -> dict:
    "One run, a fifth of the requests meeting a fault."
    out, t0 = folder / 'faulty', time.perf_counter()
    with FaultServer(share=0.2, latency=0.02, hang=8) as s:
        ended = finish(start(config(folder, s.url), out), 120 + n * 0.3)
        seconds, counts = time.perf_counter() - t0, s.counts()
    lost, twice = settled(folder / 'rollouts.jsonl', lines(out / 'critiques.jsonl'))
    again = sum(k > 1 for k in counts['sent'].values())  # asked again after a reply had been sent in full
    if keep:
        shutil.copy(out / 'funnel.csv', keep / 'funnel_faults.csv')
        note(
            keep,
            'faults',
            dict(
                rollouts=n,
                requests=sum(counts['seen'].values()),
                **{f'fault {k}': v for k, v in sorted(counts['kinds'].items()) if k != 'none'},
                **{
                    'replies sent in full': sum(counts['sent'].values()),
                    'sent twice': again,
                    'replies on disk': len(answered(out)),
                },
            ),
        )
    return dict(
        name='teacher, 20% faults',
        tried=n,
        lost=lost,
        duplicated=twice + again,
        hung=0 if ended else 1,
        seconds=round(seconds, 1),
    )


def note(folder: Path, run: str, counts: dict):
    "Keep the server's counts: data/results/teacher_counts.csv, one row per run and count."
    others = [r for r in read('teacher_counts', folder) if r['run'] != run]
    write('teacher_counts', [*others, *(dict(run=run, count=k, value=v) for k, v in counts.items())], folder)


def kill_at(p: mp.Process, s: FaultServer, n_seen: int, rng: random.Random) -> bool:  # False = it had ended
    "Kill a client when the server has seen so many requests, and a random moment later."
    while p.is_alive() and sum(s.counts()['seen'].values()) < n_seen:
        time.sleep(0.005)
    time.sleep(rng.random() * 0.05)
    alive = p.is_alive()
    p.kill(), p.join()
    return alive


def killed(folder: Path, n: int, kills: int, idempotent: bool) -> dict:  # what happened
    "A run killed again and again; what was on the disk at a kill must never be asked for again."
    rng, out, t0 = random.Random(kills), folder / f'killed{int(idempotent)}', time.perf_counter()
    with FaultServer(
        share=0.2, kinds=('429', '500', 'reset', 'answer', 'tags'), latency=0.05, idempotent=idempotent
    ) as s:
        c, again, n_killed, before = config(folder, s.url, concurrency=8), 0, 0, {}
        for at in sorted(rng.uniform(0, n * 1.15) for _ in range(kills)):
            n_killed += kill_at(start(c, out), s, at, rng)
            counts = s.counts()
            again += sum(counts['seen'][counts['text_of'][k]] > v for k, v in before.items())
            before = {k: counts['seen'][counts['text_of'][k]] for k in answered(out)}
        ended, counts = finish(start(c, out), 120 + n), s.counts()
        again += sum(counts['seen'][counts['text_of'][k]] > v for k, v in before.items())
    return dict(out=out, again=again, n_killed=n_killed, ended=ended, seconds=time.perf_counter() - t0, counts=counts)


def same(a: list[dict], b: list[dict]) -> int:  # how many rows differ
    "Compare runs by what a row says, not by what it took."
    took = ('tries', 'cost_unseen')
    x, y = ({r['rollout_id']: {k: v for k, v in r.items() if k not in took} for r in rows} for rows in (a, b))
    return sum(x.get(k) != y.get(k) for k in {*x, *y}) + ([r['rollout_id'] for r in a] != [r['rollout_id'] for r in b])


def kills_row(folder: Path, n: int, kills: int, idempotent: bool, keep: Path | None) -> dict:
    "Killed and resumed against left alone."
    alone = folder / 'alone'
    if not (alone / 'run.json').exists():
        with FaultServer(share=0.2, kinds=('429', '500', 'reset', 'answer', 'tags')) as s:
            finish(start(config(folder, s.url, concurrency=8), alone), 120 + n)
    k = killed(folder, n, kills, idempotent)
    sent, billed, disk = *(sum(k['counts'][x].values()) for x in ('sent', 'billed')), len(answered(k['out']))
    in_flight = sent - disk  # sent in full, not on the disk when the client was killed
    if in_flight > 8 * k['n_killed']:
        raise RuntimeError(f"{in_flight} replies lost in flight by {k['n_killed']} kills at 8 requests at once")
    if not k['n_killed']:
        raise RuntimeError('no kill met a running client: take more questions')
    twice = (
        sum(v > 1 for v in k['counts']['billed'].values()) if idempotent else 0
    )  # without the key a reply lost in flight is billed again
    name, differ = (
        'kill -9' + (', endpoint honours the idempotency key' if idempotent else ''),
        same(lines(alone / 'critiques.jsonl'), lines(k['out'] / 'critiques.jsonl')),
    )
    if keep:
        note(
            keep,
            name,
            {
                'kills': k['n_killed'],
                'requests': sum(k['counts']['seen'].values()),
                'replies on disk': disk,
                'asked again after a reply was on disk': k['again'],
                'replies lost in flight': in_flight,
                'most that could be': 8 * k['n_killed'],
                'billed': billed,
                'asks billed twice': sum(v > 1 for v in k['counts']['billed'].values()),
            },
        )
    return dict(
        name=f'teacher, {name}',
        tried=n,
        lost=differ,
        duplicated=k['again'] + twice,
        hung=0 if k['ended'] else 1,
        seconds=round(k['seconds'], 1),
    )


def measure(small: bool) -> list[dict]:
    "Rows of data/results/faults.csv; the full size also keeps the funnel and the server's counts there."
    keep, rows = None if small else RESULTS, []
    with tempfile.TemporaryDirectory() as d:
        for name, questions in (('faults', 20 if small else 817), ('kills', 20 if small else 200)):
            (Path(d) / name).mkdir()
            n = world(Path(d) / name, questions)
            if name == 'faults':
                rows.append(faulty(Path(d) / name, n, keep))
            else:
                rows += [kills_row(Path(d) / name, n, 2 if small else 20, i, keep) for i in (False, True)]
    return rows
