"""The results page: every table in data/results and every figure, read from the files; no number is typed here.

`write_results` gives Markdown that GitHub and the site both render: docs/results.md is the committed copy."""
import argparse
import csv
import os
import re
from pathlib import Path

HEAD = """# Results

Everything on this page is read from rows and the figures drawn from them: `make reproduce` writes them to `runs/`,
`make publish` puts them into `data/results/` and `figures/`, `make docs` renders this. Intervals are 95% intervals (Wilson) unless a table says otherwise. `paper` is the printed
number, `released` is rebuilt from the outputs in the paper's release, `pocket` is our own small world on a CPU: it shows
what the method does there, and says nothing about 1.5B models.
"""
MAX_ROWS = 60  # longer tables are linked, not printed


CELL = 'A cell is percent right (right answers / problems) [interval].'
SECTIONS = dict(  # file name without suffix -> title, how to read it; also the order, others follow by name
    findings=('Findings in the pocket world', ''),
    table1=('Table 1: three models', CELL),
    table2=('Table 2: base and MCFT', CELL),
    table_pocket=('The pocket world: methods', f'{CELL} Seeds are pooled; a value after ± is their standard deviation. The seeds answer the same problems, so the interval of a pooled cell is narrower than one over fresh problems would be.'),
    contrasts_pocket=('The pocket world: differences', 'Shares, mean over benchmarks, paired by seed; 95% t intervals.'),
    contrasts=('The experiment: differences', 'Shares, mean over benchmarks, paired by seed and problem: `low` and `high` from the variances of problems and seeds, `boot_low` and `boot_high` from the hierarchical bootstrap; `p_adjusted` after Holm, planned contrasts only. [What we found](found.md) reads them.'),
    power=('The experiment: power', 'Smallest difference (`mdd`, a share) seen with 80% power at the 5% level, from a pilot on the dev split.'),
    ablation_arms=('The experiment: arms', 'Accuracy at the end of training, 95% intervals over problems and seeds.'),
    ablation_lr=('The experiment: learning rates', 'Dev scores of the search; each arm has the rate with the best mean, or that of the arm it is a variation of.'),
    funnel=('From questions to training examples', 'Rows left after each step of stage 02.'),
    lr_dev=('Learning rates', 'Scores on the dev split, from which each method got its learning rate.'),
    benchmarks=('Speed and memory against named peers', '`make bench`: `ratio` is the median of `n` paired runs, `spread` their interquartile range; what the ratio is of, and in which direction, stands in the name. `bound` is what must hold; a row without a ratio was not measured on that device.'),
    faults=('Faults and kills', '`make faults`: what was tried, and what was lost, duplicated or hung.'),
    slurm=('The workflow on a Slurm cluster', '`make cluster`, on a Slurm of one node: `tasks` are what the workflow has to make, `jobs` what Slurm ran for them; `requeued` counts jobs that Slurm itself started again, `verdicts_equal` the verdict rows that are, byte for byte, those of a local run.'),
    slurm_jobs=('The jobs of these runs', 'In order of submission; `attempt` is that of Snakemake, `requeued` what Slurm did in between, `seconds` the last start alone, `fault` what was done to the job.'),
    gpu=('On a GPU', 'The exact 1.5B architecture with random weights; a row says `missing` where no such device was at hand.'),
    overlap=('Questions shared by training and benchmarks', 'n-gram overlap of the training questions with each benchmark.'),
    measured_runs=('Measured training runs', 'What the cost formulas are held against.'),
    audit=('Facts of the release', 'Each fact with its number, its evidence and what it does not prove; the audit page computes them.'),
    pocket_runs=('All pocket runs', 'One row per run and benchmark: what the tables and figures above are made from.'),
)


def heading(path: Path) -> str:
    "The title of a known file, else its name: `loss_curves.csv` as `Loss curves`."
    text = path.stem.replace('_', ' ').replace('-', ' ')
    return SECTIONS.get(path.stem, (text[:1].upper() + text[1:],))[0]


def note(path: Path) -> str:
    "How to read a known table, as a paragraph."
    text = SECTIONS.get(path.stem, ('', ''))[1]
    return f'{text}\n\n' if text and path.suffix == '.csv' else ''


def place(path: Path) -> tuple:
    "Known files in the order above, others after them by name."
    known = list(SECTIONS)
    return known.index(path.stem) if path.stem in known else len(known), path.name


def short(cell: str) -> str:
    "A fraction to four digits; anything else as it stands."
    try: return f'{float(cell):.4g}' if '.' in cell else cell
    except ValueError: return cell


def read_csv(path: Path) -> tuple:
    "Header and rows."
    with open(path, newline='', encoding='utf-8') as f: head, *rows = list(csv.reader(f))
    return head, rows


def csv_table(path: Path) -> str:
    "A CSV file as a Markdown table."
    head, rows = read_csv(path)
    line = lambda cells: '| ' + ' | '.join(short(c).replace('|', '\\|') for c in cells) + ' |'
    return '\n'.join([line(head), line(['---']*len(head)), *map(line, rows)])


def is_shown(path: Path) -> bool:
    "Whether a table is laid out by the run or short enough to print."
    return path.with_suffix('.md').exists() or len(read_csv(path)[1]) <= MAX_ROWS


def table_section(
    path: Path,  # rows
    base: Path,  # folder that links are relative to
) -> str:
    "One table: the laid-out form where the run wrote one, else the rows; always a link to the rows."
    laid = path.with_suffix('.md')
    body = laid.read_text(encoding='utf-8').strip() if laid.exists() else csv_table(path)
    return f'## {heading(path)}\n\n{note(path)}{body}\n\nRows: [{path.name}]({link(path, base)})\n'


def prose_section(path: Path) -> str:
    "What a run wrote about itself in sentences; its own title gives way to one that fits this page."
    text = path.read_text(encoding='utf-8').strip()
    return f'## {heading(path)}\n\n' + re.sub(r'\A#+ .*\n+', '', text) + '\n'


def rows_section(paths: list, base: Path) -> str:
    "Rows that are too many to print."
    lines = [f'- [{p.name}]({link(p, base)}): {len(read_csv(p)[1])} rows of {", ".join(f"`{h}`" for h in read_csv(p)[0])}' for p in paths]
    return '## More rows\n\n' + '\n'.join(lines) + '\n'


def figure_section(path: Path, base: Path) -> str:
    "One figure."
    return f'## {heading(path)}\n\n![{heading(path)}]({link(path, base)})\n'


def link(path: Path, base: Path) -> str:
    "Relative, with forward slashes."
    return Path(os.path.relpath(path, base)).as_posix()


def write_results(
    tables: list,  # folders of CSV and Markdown files
    figures: Path,  # folder of PNG files
    out: Path,  # page to write
    base: Path|None = None,  # folder that links are relative to; None = the one of `out`
):
    "Findings, tables, figures, longer rows."
    base = base or out.parent
    csvs = sorted((p for d in tables for p in d.glob('*.csv')), key=place)
    prose = sorted(p for d in tables for p in d.glob('*.md') if not p.with_suffix('.csv').exists())
    shown, longer = [p for p in csvs if is_shown(p)], [p for p in csvs if not is_shown(p)]
    parts = [*map(prose_section, prose), *(table_section(p, base) for p in shown), *(figure_section(p, base) for p in sorted(figures.glob('*.png')) if not p.name.startswith(('audit_', 'ablation_')))]  # the audit's and the experiment's stand on their pages
    if longer: parts.append(rows_section(longer, base))
    if not parts: raise FileNotFoundError(f'no tables in {", ".join(map(str, tables))} and no figures in {figures}: run make reproduce first, or name other folders')
    out.write_text('\n'.join([HEAD, *parts]), encoding='utf-8')


if __name__ == '__main__':
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tables', type=Path, nargs='+', default=[root/'data'/'results'], help='default: data/results')
    parser.add_argument('--figures', type=Path, default=root/'figures', help='default: figures')
    parser.add_argument('--out', type=Path, default=root/'docs'/'results.md', help='default: docs/results.md')
    write_results(**vars(parser.parse_args()))
