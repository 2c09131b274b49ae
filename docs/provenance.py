"""Where a table or figure comes from: its rows, the notebook cell and the command that made it, the commit of that run.

`make publish` and the commands that write single tables note the run:
`python docs/provenance.py --run runs/pocket --command "make reproduce"`.
A file without such a note was committed before there were any: the site then names the commit that holds it."""
import argparse, hashlib, json, re, subprocess
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NOTES = Path('data')/'results'/'provenance.json'
SHOWN = '.csv', '.md', '.png', '.parquet'  # endings of files that pages show or link to
WRITTEN = 'data/results', 'figures', 'docs/results.md'  # what the commands write: no local change of what they run


class Maker(NamedTuple):
    "What makes a published file."
    files: str  # name without suffix, or a pattern; with its folder where that matters
    source: str  # notebook or script
    marker: str  # text of the one cell of that notebook that makes it; '' = a script
    command: str


REPRODUCE, AUDIT, EXPERIMENT = 'make reproduce', 'make audit', 'make ablation'
PAGE = 'made = run_report('  # the cell that makes a page of results
MAKERS = (  # the first pattern that fits
    Maker('audit', 'nbs/around/01_audit.ipynb', '"audit.csv"', AUDIT),
    Maker('audit_truncation', 'nbs/around/01_audit.ipynb', '"audit_truncation"', AUDIT),
    Maker('audit_paired', 'nbs/around/01_audit.ipynb', '"audit_paired"', AUDIT),
    Maker('pocket_runs', 'nbs/05_eval.ipynb', 'collect(tables.runs_from)', REPRODUCE),
    Maker('table*', 'nbs/05_eval.ipynb', 'build_tables(rows_from', REPRODUCE),
    Maker('figures/funnel', 'nbs/06_ablation.ipynb', PAGE, REPRODUCE),
    Maker('funnel', 'nbs/02_critique.ipynb', 'guess = read_params(CritiqueConfig', REPRODUCE),
    Maker('measured_runs', 'nbs/around/04_costs.ipynb', 'resolve(p.measured).exists()', REPRODUCE),
    Maker('overlap', 'nbs/around/05_overlap.ipynb', 'table = report(cfg)',
          'papermill nbs/around/05_overlap.ipynb runs/overlap.ipynb'),
    *(Maker(f, 'nbs/06_ablation.ipynb', PAGE, 'make rows')
      for f in ('school', 'school_probe*', 'school_runs', 'school_families', 'school_arms', 'school_forms',
                'school_power', 'school_endpoints')),
    Maker('school_pilot*', 'Snakefile', '', 'make pilot PROFILE=school'),
    Maker('school_lr', 'Snakefile', '', 'make lr PROFILE=school_more'),
    Maker('school_repeat', 'measure/cells.py', '', 'make cells PROFILE=school'),
    Maker('school_beyond_lr', 'Snakefile', '', 'make lr PROFILE=school_beyond'),
    Maker('school_beyond*', 'nbs/10_beyond.ipynb', PAGE, 'make school PROFILE=school_beyond'),
    Maker('school_*', 'nbs/worlds/04_school.ipynb', 'cfg = read_params(SchoolRun',
          'papermill nbs/worlds/04_school.ipynb OUT.ipynb -p gate True -p score True'),
    Maker('figures/paper_*', 'docs/paper_figures.py', '', 'python docs/paper_figures.py'),
    Maker('pocket_sensitivity', 'measure/sensitivity.py', '', 'python -m measure.sensitivity'),
    Maker('lr_dev', 'Snakefile', '', 'make lr'),
    Maker('ablation_lr', 'Snakefile', '', 'make lr PROFILE=ablation'),
    Maker('pilot', 'Snakefile', '', 'make pilot'),
    Maker('packaging', 'measure/packaging.py', '', 'python -m measure.packaging'),
    Maker('command_times', 'measure/commands.py', '', 'python -m measure.commands'),
    Maker('notebook_times', 'measure/notebooks.py', '', 'python -m measure.notebooks'),
    Maker('slurm*', 'tests/cluster/jobs.py', '', 'make cluster'),
    Maker('reruns', 'measure/cells.py', '', 'make cells'),
    Maker('benchmarks', 'measure/rows.py', '', 'make bench'),
    Maker('faults', 'measure/rows.py', '', 'make faults'),
    Maker('funnel_faults', 'measure/faults_teacher.py', '', 'make faults NAMES=teacher'),
    Maker('teacher_counts', 'measure/faults_teacher.py', '', 'make faults NAMES=teacher'),
    Maker('gpu', 'measure/gpu_train.py', '', 'make gpu'),
    Maker('engines', 'measure/engines.py', '', 'python -m measure.engines'),
    Maker('rehearsal*', 'tests/rehearse.py', '', 'make rehearse'),
    Maker('where_run', 'measure/where.py', '', 'python -m measure.where'),
    Maker('beyond_techniques_lr', 'Snakefile', '', 'make lr PROFILE=beyond_techniques'),
    Maker('beyond_techniques*', 'nbs/10_beyond.ipynb', PAGE, 'make beyond PROFILE=beyond_techniques'),
    Maker('beyond_lr', 'Snakefile', '', 'make lr PROFILE=beyond'),
    Maker('beyond*', 'nbs/10_beyond.ipynb', PAGE, 'make beyond'),
    Maker('displacement_plot', 'nbs/08_preference.ipynb', '"displacement_plot"',
          'papermill nbs/08_preference.ipynb OUT.ipynb'),
    Maker('pass_and_cons', 'nbs/09_rl.ipynb', 'measured = measure_curves(cfg',
          'papermill nbs/09_rl.ipynb OUT.ipynb'),
    *(Maker(f, 'nbs/06_ablation.ipynb', PAGE, EXPERIMENT)
      for f in ('ablation*', 'contrasts', 'contrasts_by_benchmark', 'power')),
    *(Maker(f, 'nbs/06_ablation.ipynb', PAGE, 'make factorial') for f in ('factorial*', 'endpoints')),
    *(Maker(f, 'nbs/06_ablation.ipynb', PAGE, REPRODUCE)
      for f in ('contrasts_pocket', 'findings', 'accuracy_*', 'loss_*', 'learning_rates')),
)


def maker(path: Path) -> Maker:
    "Who makes a file; a file nobody claims is an error, for its page would be silent about it."
    for m in MAKERS:
        if fnmatch(f'{path.parent.name}/{path.stem}' if '/' in m.files else path.stem, m.files): return m
    raise ValueError(f'nothing is known about {path.name}: add a line for it to MAKERS in docs/provenance.py')


@cache
def cell_id(
    source: str,  # notebook
    marker: str,
) -> str:
    "Id of the cell that holds the marker and is not exported; none or several are an error."
    cells = json.loads((ROOT/source).read_text(encoding='utf-8'))['cells']
    code = [c for c in cells if c['cell_type'] == 'code' and not ''.join(c['source']).startswith('#| export')]
    found = [c['id'] for c in code if marker in ''.join(c['source'])]
    if len(found) != 1:
        raise ValueError(f'{len(found)} cells of {source} hold {marker!r}: '
                         'give MAKERS in docs/provenance.py a text that one cell has')
    return found[0]


def anchor(
    source: str,  # notebook
    cell: str,  # its id
) -> str:
    "The place of a cell on the site: ids of cells are unique in a notebook only."
    return re.sub(r'^\d+[a-zA-Z]?_', '', Path(source).stem) + f'-cell-{cell}'


def digest(path: Path) -> str:
    "Of a file, short."
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def notes(root: Path = ROOT) -> dict:  # path -> {commits, command, digest}
    "What was noted when files were published."
    f = root/NOTES
    return json.loads(f.read_text(encoding='utf-8')) if f.exists() else {}


def noted(path: Path, root: Path = ROOT) -> dict:
    "The note about a file, {} when there is none or the file has changed since."
    if not path.resolve().is_relative_to(root): return {}
    note = notes(root).get(path.resolve().relative_to(root).as_posix(), {})
    return note if note and note['digest'] == digest(path) else {}


def git(*args, root: Path = ROOT) -> str:
    "What git says, '' where it cannot."
    try: done = subprocess.run(['git', '-C', str(root), *args], capture_output=True, text=True)
    except FileNotFoundError: return ''
    return done.stdout.strip() if done.returncode == 0 else ''


@cache
def committed_in(path: Path, root: Path = ROOT) -> str:  # short hash, '' = not known
    "The last commit that changed a file; a shallow clone does not know."
    if git('rev-parse', '--is-shallow-repository', root=root) != 'false': return ''
    return git('log', '-1', '--format=%h', '--', str(path), root=root)


def short(commit: str) -> str:  # `1234567`, said in words when the tree had local changes
    "A commit for people."
    return f"`{commit.removesuffix('-dirty')[:7]}`" + (' with local changes' if commit.endswith('-dirty') else '')


def said_commit(path: Path, site: bool) -> str:
    "Name the commit of the run; where it was not noted, on the site alone, the one that holds the file."
    if note := noted(path): return 'run at ' + ', '.join(map(short, note['commits']))
    if not site: return ''
    return f"commit {short(c)}" if (c := committed_in(path)) else 'commit not recorded'


def line(
    path: Path,  # rows: CSV, or the table behind a figure
    link,  # function: path -> link from the page
    site: bool = False,  # a page of the site, where cells have places
    figure: Path|None = None,  # what is drawn from the rows, with a vector twin
) -> str:  # Markdown
    "One line of provenance: rows, cell, command, commit."
    m = maker(figure or path)
    script = f'[{Path(m.source).name}]({link(ROOT/m.source)})'
    cell = m.marker and cell_id(m.source, m.marker)
    where = script
    if cell: where = f'cell `{cell}` of {script}'
    if cell and site: where = f'cell [{cell}](#{anchor(m.source, cell)}) of {Path(m.source).name}'
    vector = f', [vector]({link(figure.with_suffix(".svg"))})' if figure and figure.with_suffix('.svg').exists() else ''
    command = noted(path).get('command', m.command)
    parts = f'Rows: [{path.name}]({link(path)}){vector}', where, f'`{command}`', said_commit(path, site)
    return boxed(parts) if site else ' · '.join(filter(None, parts))


def boxed(parts) -> str:
    "The line as a block of the site, in small print."
    return ':::{container} provenance\n' + ' · '.join(filter(None, parts)) + '\n:::'


# Noting a run.

def commits(folders: list) -> list:
    "Commits of finished runs, each once."
    infos = [json.loads(f.read_text(encoding='utf-8')) for d in folders if (f := d/'run.json').exists()]
    return sorted({i.get('commit', '') for i in infos} - {''})


def of_run(
    path: Path,  # published file
    run: Path,  # folder of a finished workflow
) -> list:  # commits
    "Say from which commits a run made a file: by its folder, the stage that writes there, or all its folders."
    twin = next((p for p in sorted(run.rglob(path.name)) if p.is_file() and p.read_bytes() == path.read_bytes()), None)
    if twin is None: return []
    stage = run/Path(maker(path).source).stem
    return commits([twin.parent]) or commits([stage]) or commits(sorted(stage.glob('*/')))


def published(root: Path = ROOT) -> list:
    "The files that pages show or link to."
    files = [p for d in ('data/results', 'figures') for p in (root/d).glob('*')]
    return sorted(p for p in files if p.suffix in SHOWN and p.name != NOTES.name)


def note_run(
    files: list,  # published files; [] = all that the run made
    run: Path|None,  # its folder; None = the command was run just now, at the commit that is checked out
    command: str,
    root: Path = ROOT,
) -> dict:  # what was noted anew
    "Write which run made which file into data/results/provenance.json."
    changed = git('status', '--porcelain', '-uno', '--', '.', *(f':!{d}' for d in WRITTEN), root=root)
    now = git('rev-parse', 'HEAD', root=root) + ('-dirty' if changed else '')
    new = {}
    for f in map(Path.absolute, files or published(root)):
        found = of_run(f, run) if run else [now]
        if found: new[f.relative_to(root).as_posix()] = dict(command=command, commits=found, digest=digest(f))
    text = json.dumps(notes(root) | new, indent=1, sort_keys=True, ensure_ascii=False)
    if new: (root/NOTES).write_text(text + '\n', encoding='utf-8')
    return new


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('files', type=Path, nargs='*', help='published files; none = all that the run made')
    parser.add_argument('--run', type=Path,
                        help='folder of the finished run; without it, the commit that is checked out')
    parser.add_argument('--command', required=True, help='what made them, such as "make audit"')
    given = parser.parse_args()
    if not given.files and not given.run: parser.error('name files, or a finished run by --run')
    print(f'{len(note_run(given.files, given.run, given.command))} files noted in {NOTES}')
