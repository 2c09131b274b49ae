"""Copy a finished run's rows, tables, figures and small artifacts to their places in the repository: `make publish`.

Nothing is copied while a file that would be overwritten has changes of the user's own."""
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = '01_data/rollouts.jsonl', '02_critique/critiques.jsonl', '03_masking/encoded.jsonl'  # of the pocket world


def copies(
    run: Path,  # run folder of a profile
    page: str,  # notebook that makes the profile's page
    artifacts: bool,  # whether the run's small artifacts are published too
) -> list:  # (file of the run, its place)
    "List what is copied, and where to."
    found = [(f, ROOT/'figures'/f.name) for f in sorted((run/'figures').glob('*'))]
    for f in sorted(f for d in ('results', page) for f in (run/d).glob('*')):
        if f.suffix not in ('.csv', '.parquet', '.md', '.tex'): continue
        found.append((f, ROOT/('docs' if f.name.startswith('found') else 'data/results')/f.name))
    return found + [(run/f, ROOT/'data'/'pocket'/Path(f).name) for f in ARTIFACTS if artifacts]


def own_changes(pairs: list) -> list:  # places, relative to the repository
    "List the places whose content is neither committed nor that of the run."
    said = subprocess.run(['git', 'status', '--porcelain', '-z', '-uall', '--', 'data', 'figures', 'docs'], cwd=ROOT,
                          capture_output=True, text=True, check=True).stdout
    changed = {ROOT/entry[3:] for entry in said.split('\0') if entry}
    return [to.relative_to(ROOT).as_posix() for f, to in pairs if to in changed and f.read_bytes() != to.read_bytes()]


def main(profile: str, page: str, made_by: str) -> str | None:  # None, or what stands in the way
    "Publish the run of a profile."
    run = ROOT/'runs'/profile
    if not (run/page/'run.json').exists():
        return f'make publish: runs/{profile} is not complete; run make {made_by} PROFILE={profile} first'
    pairs = copies(run, page, artifacts=made_by == 'reproduce')
    if own := own_changes(pairs):
        return ('make publish: these files have changes of your own, which would be overwritten; '
                'commit them or put them away first:\n' + '\n'.join(own))
    for f, to in pairs:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(f, to)
    return None


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
