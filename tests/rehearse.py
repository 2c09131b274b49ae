"""The paper's run at toy size: `make rehearse`, or `python tests/rehearse.py`.

It makes what configs/paper_mini.yaml reads (problems in the shape of LIMO's file, a student with a chat template like
DeepSeek's, four small benchmarks under the paper's names), starts a teacher behind HTTP that breaks now and then, and
runs the workflow once, from problems to tables. With `--keep`, its times and its own rows of Tables 1 and 2 go to
data/results."""

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from fault_server import ROOT, FaultServer

CONFIG, INPUTS, RUN = 'configs/paper_mini.yaml', 'runs/paper_mini_inputs', 'runs/paper_mini'
# The shape of DeepSeek's: a system turn stands bare in front, a thought of an earlier turn is dropped, the generation
# prompt opens one.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% else %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
FAULTS = dict(none='without a fault')
BENCHMARKS = dict(aime24='long', amc23='gcd', math500='chain', olympiadbench='equation')  # paper's name -> pocket's


def put_away(folder: Path):
    "Rename a folder that is there already, so that nothing in it is lost."
    names = (folder.with_name(f'{folder.name}.{n}') for n in itertools.count(1))
    if folder.exists():
        free = next(name for name in names if not name.exists())
        folder.rename(free)
        print(f'rehearse: {folder} was there, it is {free.name} now')


def make_inputs(folder: Path):
    "Write problems, benchmarks and the two models."
    from mcft.core import read_rows, write_rows

    put_away(folder)
    folder.mkdir(parents=True)
    problems = read_rows('data/pocket/problems.jsonl.gz', 'problems')
    solutions = {s['problem_id']: s['reasoning'] for s in read_rows('data/pocket/solutions.jsonl.gz', 'solutions')}
    train = [p for p in problems if p['split'] == 'train'][:40]
    rows = [dict(question=p['question'], solution=solutions[p['id']], answer=p['answer']) for p in train]
    pd.DataFrame(rows).to_parquet(folder / 'limo.parquet')
    named = [dict(p, split=b) for b, own in BENCHMARKS.items() for p in problems if p['split'] == own]
    write_rows(folder / 'benchmarks.jsonl', named, 'problems')
    for name, source in dict(student='base', r1='early').items():
        shutil.copytree(ROOT / 'data/pocket' / source, folder / name, ignore=shutil.ignore_patterns('run.json', '*.md'))
        (folder / name / 'chat_template.jinja').write_text(TEMPLATE)


def command(url: str, *more: str) -> list[str]:
    "The workflow, with the teacher's address and the answer yes."
    given = ['confirm=True', f'critique={{base_url: {url}}}']
    if not find_spec('bitsandbytes'):
        given.append('train={optimizer: adamw_torch}')
        print('rehearse: bitsandbytes is not installed, adamw_torch stands in for 8-bit Adam')
    return [sys.executable, '-m', 'snakemake', '--cores', '2', '--nolock', '--rerun-incomplete', '--quiet', 'rules',
            'host', '--configfile', CONFIG, '--config', *given, *more]


def optimizer() -> str:
    "The optimizer that ran, by the runs' own word."
    infos = [json.loads(f.read_text()) for f in (ROOT / RUN).glob('04_train/*/run.json')]
    return ', '.join(sorted({i['optimizer_ran'] for i in infos}))


def write_rows_of(seconds: float, cpu: float, counts: dict):
    "Write rehearsal.csv and rehearsal_tables.csv into the run folder."
    from measure.rows import write
    from measure.where import machine

    jobs = len([*(ROOT / RUN).glob('**/*.ipynb')])
    told = [('notebooks run', jobs, ''), ('wall time', round(seconds), 's'), ('processor time', round(cpu), 's')]
    told.append(('load average of the last 15 minutes', round(os.getloadavg()[2]), ''))
    told += [(f'replies of the teacher, {FAULTS.get(kind, kind)}', n, '') for kind, n in sorted(counts.items())]
    where = dict(device=machine(), optimizer=optimizer())
    write('rehearsal', [dict(name=name, value=value, unit=unit, **where) for name, value, unit in told], ROOT / RUN)
    found = []
    for k in (1, 2):
        cells = pd.read_csv(ROOT / RUN / f'results/table{k}.csv').query("source == 'rehearsal'").drop(columns='source')
        found += [dict(r, table=k) for r in cells.astype(dict(n=int, correct=int)).to_dict('records')]
    write('rehearsal_tables', found, ROOT / RUN)


def rehearse() -> float:
    "Run everything once; returns the processor time in seconds, which does not depend on what else the machine does."
    os.chdir(ROOT)
    put_away(ROOT / RUN)
    make_inputs(ROOT / INPUTS)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | dict(REHEARSAL_KEY='any-key', HF_HUB_OFFLINE='1', PYTHONPATH=str(ROOT))
    with FaultServer(share=0.2, hang=25.0) as teacher:
        subprocess.run(command(teacher.url), check=True, env=env)
        counts = teacher.counts()['kinds']
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    write_rows_of(seconds, cpu, counts)
    print(f'rehearse: {seconds:.0f} s, {cpu:.0f} s of processors, the teacher answered {json.dumps(counts)}')
    print((ROOT / RUN / 'results/table1.md').read_text())
    return cpu


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument('--keep', action='store_true', help='copy the rows into data/results')
    keep = words.parse_args().keep
    rehearse()
    for name in ('rehearsal', 'rehearsal_tables') if keep else ():
        shutil.copy(ROOT / RUN / f'{name}.csv', ROOT / 'data/results')
