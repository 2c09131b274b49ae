"""How long a newcomer waits: `python -m measure.commands venv reproduce test` times `make venv` and the others.

Each time is a new row of data/results/command_times.csv. A new clone is named by `--root`: what was done there before
takes no time, so a folder that a command would make must not be there."""

import argparse, datetime, os, subprocess, sys
from pathlib import Path

from measure.rows import RESULTS, ROOT, read, seconds, write

BOUNDS = dict(venv='', reproduce='<= 600', test='<= 600')  # target of the Makefile -> seconds that it may take
MADE = dict(venv='.venv', reproduce='runs/pocket')  # what it makes


def row(target: str, root: Path) -> dict:
    "Run a target to its end; raises if it fails, or if it was run before."
    if target in MADE and (root / MADE[target]).exists():
        raise SystemExit(f'{root / MADE[target]} is there already: name a new clone by --root')
    took = seconds(lambda: subprocess.run(['make', target], cwd=root, check=True))
    return dict(
        command=f'make {target}',
        seconds=round(took),
        bound=BOUNDS.get(target, ''),
        device=f'{os.cpu_count()} cores',
        date=datetime.date.today().isoformat(),
    )


def main(argv=None) -> int:
    "Time targets one after the other and keep the rows."
    p = argparse.ArgumentParser(prog='python -m measure.commands', description=__doc__.splitlines()[0])
    p.add_argument('targets', nargs='+', help='of the Makefile, such as ' + ', '.join(BOUNDS))
    p.add_argument('--root', type=Path, default=ROOT, help='clone in which they run')
    p.add_argument('--out', type=Path, default=RESULTS, help='folder of the csv file')
    a = p.parse_args(argv)
    for target in a.targets:
        made = row(target, a.root)
        print('  '.join(f'{k}={v}' for k, v in made.items()), flush=True)
        write('command_times', [*read('command_times', a.out), made], a.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
