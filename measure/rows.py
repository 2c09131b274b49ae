"""What a measurement is: paired ratios for benchmarks, counts for fault tests, one row each in data/results/."""
import csv, statistics, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT/'data'/'results'
FIELDS = dict(benchmarks='name peer ratio spread n bound device'.split(),
              faults='name tried lost duplicated hung seconds'.split(),
              gpu='name value unit bound device config'.split(),
              engines='engine version model check equal n ratio low high rounds'.split(),
              where_run='part version machine date test'.split(), teacher_counts='run count value'.split(),
              rehearsal='name value unit device optimizer'.split(),
              rehearsal_tables='table model benchmark n correct accuracy low high'.split(),
              command_times='command seconds bound device date'.split())


def seconds(
    f,  # function without arguments
) -> float:  # wall time of one call
    "Time one call."
    t0 = time.perf_counter()
    f()
    return time.perf_counter() - t0


def paired(
    ours,  # function without arguments
    peer,  # the same work done another way
    n: int,  # pairs
    cost=seconds,  # what is compared: a call -> a positive number, less is better
) -> list[float]:  # peer / ours per pair; above 1 = ours is better
    "Measure both in turn, the order changing from pair to pair, so that a slow minute of the machine meets both."
    ratios = []
    for i in range(n):
        first, second = (ours, peer) if i % 2 == 0 else (peer, ours)
        a, b = cost(first), cost(second)
        ratios.append(b/a if i % 2 == 0 else a/b)
    return ratios


def bench_row(
    name: str,  # what was measured, with its unit or direction
    peer: str,  # named peer, with its version where it is a library
    ratios: list[float],  # one per pair
    bound: str,  # what must hold, such as ">= 20" or "<= 0.5"; "" = nothing
    device: str = 'cpu',  # where it was measured
) -> dict:
    "Median and interquartile range of the ratios."
    q = statistics.quantiles(ratios, n=4, method='inclusive') if len(ratios) > 1 else [ratios[0]]*3
    return dict(name=name, peer=peer, ratio=round(q[1], 3), spread=round(q[2] - q[0], 3), n=len(ratios), bound=bound,
                device=device)


def holds(
    row: dict,  # of benchmarks
) -> bool:  # True when there is no bound
    "Does the measured ratio keep its bound?"
    if not row['bound'] or row['ratio'] in ('', None): return not row['bound']
    sign, value = row['bound'].split()
    return float(row['ratio']) >= float(value) if sign == '>=' else float(row['ratio']) <= float(value)


def read(
    table: str,  # one of FIELDS
    folder: Path = RESULTS,
) -> list[dict]:
    "The rows of a table, [] if there is none."
    f = folder/f'{table}.csv'
    return list(csv.DictReader(f.open(encoding='utf-8'))) if f.exists() else []


def write(
    table: str,  # one of FIELDS
    rows: list[dict],  # all of them, in order
    folder: Path = RESULTS,  # made if absent
):
    "Write a table."
    folder.mkdir(parents=True, exist_ok=True)
    with (folder/f'{table}.csv').open('w', encoding='utf-8', newline='') as f:
        w = csv.DictWriter(f, FIELDS[table], lineterminator='\n')
        w.writeheader()
        w.writerows(rows)


def save(
    table: str,  # benchmarks or faults
    rows: list[dict],
    folder: Path = RESULTS,
):
    "Replace the rows of the same name (and peer), keep the others."
    def key(r):
        return (r['name'], r.get('peer', ''), r.get('device', ''))
    kept = {key(r): r for r in read(table, folder)}
    kept.update({key(r): r for r in rows})
    write(table, sorted(kept.values(), key=key), folder)
