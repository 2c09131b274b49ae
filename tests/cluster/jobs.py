"""What slurm.sh cannot say in a line of shell.

Which processes a node has, what became of its jobs, and whether two runs say the same:

jobs.py crash [JOB]   kill everything that runs on the node (of one job), with kill -9
jobs.py check RUN     rows of a run's jobs; its verdicts against those of the local run
jobs.py report        whether the HTML report holds every figure of the run
jobs.py write         the rows into data/results"""
import base64
import csv
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
OUT, RESULTS = ROOT/'runs'/'slurm', ROOT/'data'/'results'
NODE = Path(os.environ['SLURM_CONF']).parent
# run -> what it shows
CHECKS = dict(whole='every rule as a Slurm job, one GPU asked for', faults='jobs killed and cancelled, node lost twice')
GPU_RULES = {'data', 'train', 'evaluate'}  # they get `resources` of the config


def lines(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def steps(job=''):
    "Slurm's step daemons of this cluster, which work in its folder: each is the root of what it has started."
    for p in psutil.process_iter(['name', 'cmdline']):
        try:
            name = ' '.join(p.info['cmdline'] or [])
            if name.startswith(f'slurmstepd: [{job}') and Path(p.cwd()) == NODE: yield p
        except (psutil.NoSuchProcess, psutil.AccessDenied): continue


def crash(job=''):
    "kill -9: of a job its tasks alone, of a node the daemons too."
    found = list(steps(f'{job}.' if job else ''))
    tasks = [c for p in found for c in p.children(recursive=True)]
    daemons = [] if job else [*found, *(p for p in psutil.process_iter(['name']) if p.info['name'] == 'slurmd'
                                        and Path(p.cwd()) == NODE)]
    if job and not tasks: sys.exit(f'jobs.py: job {job} has no process to kill')
    for p in [*daemons, *tasks]:
        try: p.kill()
        except psutil.NoSuchProcess: pass
    print(f'  killed {len(daemons)} daemons and {len(tasks)} processes of jobs')


def seconds(text):
    "Of Slurm's [DAYS-]HH:MM:SS."
    days, _, clock = text.rpartition('-')
    h, m, s = map(int, clock.split(':'))
    return int(days or 0)*86400 + h*3600 + m*60 + s


def job_rows(run):
    "A row per Slurm job of a run, and its intervals on the GPU."
    faults = dict(r for r in csv.reader(open(OUT/'faults.csv'))) if (OUT/'faults.csv').exists() else {}
    rows, spans, tries = [], [], {}
    jobs = [dict(re.findall(r'(\w+)=(\S*)', line)) for line in lines('scontrol', '-o', 'show', 'jobs')]
    for j in sorted((j for j in jobs if j['JobName'].startswith(f'{run}_')), key=lambda j: int(j['JobId'])):
        rule, _, of = j['Comment'].removeprefix('rule_').partition('_wildcards_')
        of = of.split('_', 2)[-1]  # without the folder of its stage, such as 04_train
        tries[rule, of] = tries.get((rule, of), 0) + 1
        gpus = int((re.search(r'gpu[:=](\d+)', j.get('TresPerJob', '')) or [0, 0])[1])
        rows.append(dict(check=CHECKS[run], rule=rule, run=of, job=int(j['JobId']), attempt=tries[rule, of],
                         state=j['JobState'], requeued=int(j['Restarts']),
                         gpus=gpus, seconds=seconds(j['RunTime']), fault=faults.get(j['JobId'], '') if run == 'faults'
                         else ''))
        if gpus: spans.append([datetime.fromisoformat(j[k]) for k in ('StartTime', 'EndTime')])
    return rows, spans


def at_once(spans):
    "Most intervals that share a moment."
    return max((sum(a <= start < b for a, b in spans) for start, _ in spans), default=0)


def same_verdicts(run):
    "Files of verdicts and their rows, equal and all."
    files = sorted((OUT/'local'/'05_eval').glob('*/verdicts.jsonl'))
    n = {f: f.read_bytes() for f in files}
    equal = [f for f in files if (OUT/run/f.relative_to(OUT/'local')).read_bytes() == n[f]]
    return sum(n[f].count(b'\n') for f in equal), sum(b.count(b'\n') for b in n.values())


def save(path, rows):
    with open(path, 'w', newline='') as f:
        w = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        w.writeheader()
        w.writerows(rows)


def check(run):
    "Every rule ended well, verdicts are those of the local run, nothing but GPU rules held a GPU; else stop."
    rows, spans = job_rows(run)
    last = {(r['rule'], r['run']): r['state'] for r in rows}
    equal, verdicts = same_verdicts(run)
    row = dict(check=CHECKS[run], tasks=len(last), jobs=len(rows),
               completed=sum(r['state'] == 'COMPLETED' for r in rows),
               **{s.lower(): sum(r['state'] == s for r in rows) for s in ('FAILED', 'CANCELLED', 'NODE_FAIL')},
               requeued=sum(r['requeued'] for r in rows),
               tasks_complete=sum(s == 'COMPLETED' for s in last.values()), gpu_jobs=len(spans),
               gpu_jobs_at_once=at_once(spans),
               verdicts=verdicts, verdicts_equal=equal, seconds=int((OUT/f'{run}.seconds').read_text()))
    for r in rows:
        print('  {job:>4} {rule:<10}{run:<14} attempt {attempt}  {state:<10} requeued {requeued}  gpus {gpus}  '
              '{seconds:>4} s  {fault}'.format(**r))
    print(f'  {equal} of {verdicts} verdict rows equal those of the local run, byte for byte')
    save(OUT/f'{run}_jobs.csv', rows)
    save(OUT/f'{run}_check.csv', [row])
    wrong = []
    if row['tasks_complete'] != row['tasks']:
        wrong.append(f'not complete: {[k for k, s in last.items() if s != "COMPLETED"]}')
    if not verdicts or equal != verdicts:
        wrong.append(f'{verdicts - equal} of {verdicts} verdict rows differ from the local run')
    if run == 'whole' and {r['rule'] for r in rows if r['gpus']} != GPU_RULES:
        wrong.append(f'a GPU went to {sorted({r["rule"] for r in rows if r["gpus"]})}, not to {sorted(GPU_RULES)}')
    if row['gpu_jobs_at_once'] > 1: wrong.append(f'{row["gpu_jobs_at_once"]} jobs held the one GPU')
    if run == 'faults':
        ends = {r['fault']: (r['state'], r['requeued']) for r in rows if r['fault']}
        if sorted(s for s, _ in ends.values()) != ['CANCELLED', 'COMPLETED', 'FAILED', 'NODE_FAIL']:
            wrong.append(f'the disturbed jobs ended otherwise than meant: {ends}')
        if not any(s == 'COMPLETED' and n for s, n in ends.values()):
            wrong.append(f'no disturbed job was requeued: {ends}')
    if wrong: sys.exit('jobs.py: ' + '; '.join(wrong))


def report():
    "Every figure of the run called whole stands in the report, whole."
    page, figures = (OUT/'report.html').read_text(encoding='utf-8'), sorted((OUT/'whole'/'figures').glob('*.png'))
    lacking = [p.name for p in figures if base64.b64encode(p.read_bytes()).decode() not in page]
    if lacking or not figures:
        sys.exit(f'jobs.py: runs/slurm/report.html lacks {lacking or "all figures: none was drawn"}')
    print(f'  {len(figures)} of {len(figures)} figures are in the report ({len(page)/1e6:.1f} MB): '
          f'{", ".join(p.stem for p in figures)}')
    rows = list(csv.DictReader(open(OUT/'whole_check.csv')))
    save(OUT/'whole_check.csv', [{**rows[0], 'figures_in_report': len(figures)}])


def write():
    "The rows of both runs into data/results."
    RESULTS.mkdir(parents=True, exist_ok=True)
    def read(name):
        return [r for run in CHECKS for r in csv.DictReader(open(OUT/f'{run}_{name}.csv'))]
    save(RESULTS/'slurm_jobs.csv', read('jobs'))
    checks = read('check')
    save(RESULTS/'slurm.csv', [{**dict.fromkeys(checks[0], ''), **r} for r in checks])


if __name__ == '__main__': dict(crash=crash, check=check, report=report, write=write)[sys.argv[1]](*sys.argv[2:])
