"""`python -m measure bench` and `python -m measure faults`: run what this folder's modules measure and keep the rows.

A module bench_X.py has `measure(small: bool) -> list of rows`, a module faults_X.py too. Names after the word choose
some of them: `python -m measure bench grading`. `--small` is the size the tests use; its rows are printed, not kept."""
import argparse, importlib, sys
from pathlib import Path

from measure.rows import FIELDS, RESULTS, holds, save

TABLES = dict(bench='benchmarks', faults='faults')


def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog='python -m measure', description=__doc__.splitlines()[0])
    p.add_argument('what', choices=TABLES)
    def have(what):
        return sorted(f.stem.removeprefix(f'{what}_') for f in Path(__file__).parent.glob(f'{what}_*.py'))
    p.add_argument('names', nargs='*', help=f'some of {", ".join(sorted({*have("bench"), *have("faults")}))}; none = '
                                            'all')
    p.add_argument('--small', action='store_true', help='the size of the tests; rows are printed, not kept')
    p.add_argument('--out', type=Path, default=RESULTS, help='folder of the csv file')
    a = p.parse_args(argv)
    known, bad = have(a.what), []
    for name in a.names:
        if name not in known: p.error(f'unknown name {name!r}: one of {", ".join(known)}')
    for name in a.names or known:
        rows = importlib.import_module(f'measure.{a.what}_{name}').measure(a.small)
        for r in rows: print('  '.join(f'{k}={r[k]}' for k in FIELDS[TABLES[a.what]]), flush=True)
        bad += [r for r in rows if not (holds(r) if a.what == 'bench' else r['lost'] == r['duplicated'] == r['hung']
                                        == 0)]
        if not a.small: save(TABLES[a.what], rows, a.out)
    for r in bad: print(f'does not hold: {r}', file=sys.stderr)
    return 1 if bad and not a.small else 0


if __name__ == '__main__': sys.exit(main())
