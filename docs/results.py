"""The results page: every table in data/results and every figure, read from the files; no number is typed here.

`write_results` gives Markdown that GitHub and the site both render: docs/results.md is the committed copy."""
import argparse
import csv
import html
import os
import re
from functools import partial
from pathlib import Path

import provenance

HEAD = """# Results

Everything on this page is read from rows and the figures drawn from them: `make reproduce` writes them to `runs/`,
`make publish` puts them into `data/results/` and `figures/`, `make docs` renders this. Intervals are 95% intervals
(Wilson) unless a table says otherwise. `paper` is the printed number, `released` is rebuilt from the outputs in the
paper's release, `pocket` is our own small world on a CPU: it shows what the method does there, and says nothing about
1.5B models.
"""
ENGINEERING = """# Engineering

How fast the library is against named peers, what it survives, and what a newcomer waits for. Nothing here is about the
method; each table names the command that measures it again.
"""
HEADS = dict(results=HEAD, engineering=ENGINEERING)
MEASURED = ('benchmarks', 'command_times', 'engines', 'faults', 'funnel_faults', 'gpu', 'measured_runs',
            'notebook_times', 'packaging', 'rehearsal', 'rehearsal_tables', 'reruns', 'slurm', 'slurm_jobs',
            'teacher_counts', 'where_run')  # rows of the page on engineering
MAX_ROWS = 60  # longer tables are linked, not printed
PROSE_ROWS = dict(findings='contrasts_pocket.csv')  # sentences -> the rows that a table among them shows


ELSEWHERE = 'audit', 'ablation_', 'factorial', 'beyond_techniques', 'paper_'  # what other pages show begins so
CELL = 'A cell is percent correct (correct answers / problems) [interval].'
SECTIONS = dict(  # file name without suffix -> title, how to read it; also the order, others follow by name
    findings=('Findings in the pocket world', ''),
    table1=('Table 1: three models', CELL),
    table2=('Table 2: base and MCFT', CELL),
    table_pocket=(
        'The pocket world: methods',
        f'{CELL} Seeds are pooled; a value after ± is their standard deviation. The seeds answer the same problems, '
        f'so the interval '
        'of a pooled cell is narrower than one over fresh problems would be.',
    ),
    contrasts_pocket=(
        'The pocket world: differences',
        'Fractions, mean over benchmarks, paired by seed; 95% t intervals over seeds.',
    ),
    school_families=('The school world: planned contrasts',
                     'Accuracy in fractions, log-likelihoods in nats a token; 95% intervals over problems and seeds, '
                     '`p_adjusted` after Holm within a family, `mdd` the smallest difference seen with 80% power. '
                     '[What a language model shows](found_school.md) reads them.'),
    school_endpoints=('The school world: endpoints by mask rate', ''),
    school_arms=('The school world: arms', 'Accuracy by the native chain, 95% intervals over problems and seeds.'),
    school_forms=('The school world: form and skill',
                  'For each prompt the fraction correct, the fraction boxed, and what stands in place of a box.'),
    school_probe=('The school world: probes', 'One row a run: nats a token, or fractions of answers.'),
    school_power=('The school world: power',
                  'Smallest difference (`mdd`, a fraction) seen with 80% power at the 5% level, from a pilot on dev.'),
    school_runs=('The school world: runs', 'What each run was trained on, where its losses ended, and where it ran.'),
    school_pilot_runs=('The school world: runs of the pilot', 'Wall time, speed and peak memory, beside other work.'),
    school_lr=('The school world: a second learning rate', 'Dev scores of the search, with the thought opened.'),
    school_repeat=('The school world: runs made again',
                   '`make cells PROFILE=school`: runs made again from nothing on another machine (`cpu`; the committed '
                   'ones ran on `committed_cpu`). `different` verdicts and `lengths_different` of `n` responses; '
                   '`points`: by how much accuracy by the native chain differs; `same_rows`: both learned from equally '
                   'many tokens.'),
    school_beyond_starts=('The school world: before and after DPO and GRPO', ''),
    school_beyond_contrasts=('The school world: differences after DPO and GRPO', 'As for the experiment.'),
    school_beyond_arms=('The school world: models before and after DPO and GRPO',
                        'Accuracy by the native chain, 95% intervals over problems and seeds.'),
    school_beyond_lr=('The school world: learning rates of DPO and GRPO', 'Dev scores of the search from the student.'),
    school_beyond_runs=('The school world: runs of DPO and GRPO', 'What each run was given, and how long it took.'),
    school_gate=('The school world: what its student expects',
                 'Nats of each part of a training example under the student.'),
    school_hidden=('The school world: what a mask hides',
                   'Nats of masked critique tokens, a 20% mask, one row an example.'),
    school_faults=('The school world: faults of its rollouts', 'The kind of the first fault of each sampled rollout.'),
    school_student=('The school world: answers of its student', 'Greedy, the question alone; one row a problem.'),
    contrasts=(
        'The experiment: differences',
        'Fractions, mean over benchmarks, paired by seed and problem: `low` and `high` from the variances of problems '
        'and seeds, '
        '`boot_low` and `boot_high` from the hierarchical bootstrap; `p_adjusted` after Holm, planned contrasts only. '
        '[What we found](found.md) reads them.',
    ),
    contrasts_by_benchmark=(
        'The experiment: differences by benchmark',
        '`low` and `high` over problems and seeds, `seeds_low` and `seeds_high` over seeds alone, `mdd` the smallest '
        'difference seen with 80% power by the variances found.',
    ),
    pocket_sensitivity=(
        'The pocket world: what its base expects',
        'Nats of critique tokens under the untrained base (`known`: the share below 0.05); `told_after_k` is the share '
        'of tokens that a 20% mask hides and that stand labelled elsewhere behind the same k tokens; `base_` rows are '
        'its greedy answers on the problems of the experiment.',
    ),
    factorial=('The factorial: runs', 'One row a run: where it stands in the factorial, and every endpoint.'),
    factorial_contrasts=('The factorial: differences', 'As for the experiment.'),
    factorial_benchmarks=('The factorial: differences by benchmark', 'As for the experiment.'),
    factorial_endpoints=('The factorial: differences of every endpoint', 'Paired by seed; intervals over seeds.'),
    factorial_runs=('The factorial: what each run was trained on', ''),
    endpoints=('The factorial: endpoints', 'Of every run and set; `n` are responses, or tokens for nats.'),
    power=(
        'The experiment: power',
        'Smallest difference (`mdd`, a fraction) seen with 80% power at the 5% level, from a pilot on the dev split.',
    ),
    ablation_arms=('The experiment: arms', 'Accuracy at the end of training, 95% intervals over problems and seeds.'),
    ablation_lr=(
        'The experiment: learning rates',
        'Dev scores of the search; each arm has the rate with the best mean, or that of the arm it is a variation of.',
    ),
    ablation_runs=('The experiment: runs', 'What each run was trained on, and where its losses ended.'),
    beyond_starts=('Beyond the paper: before and after DPO and GRPO', ''),
    beyond_planned=('Beyond the paper: planned differences', ''),
    beyond_curves=(
        'Beyond the paper: pass@k and maj@k',
        'On dev problems, before and after GRPO, for the first seed of each initial checkpoint.',
    ),
    beyond_contrasts=(
        'Beyond the paper: differences',
        'As for the experiment: four initial checkpoints, each continued by DPO and by GRPO. [Beyond the '
        'paper](found_beyond.md) '
        'reads them.',
    ),
    beyond_arms=(
        'Beyond the paper: models',
        'Accuracy of each initial checkpoint, of each continuation and of each stage of the recipe, 95% intervals '
        'over problems and '
        'seeds.',
    ),
    beyond_stages=(
        'Beyond the paper: the stages of Phi-4-Mini-Reasoning',
        'Percent correct; the last columns are the numbers of that report, of a larger model on other problems.',
    ),
    beyond_lr=(
        'Beyond the paper: learning rates',
        'Dev scores of the search from the base (mid-training: from the early checkpoint); `lr` is 0 or empty for the '
        'models before training.',
    ),
    beyond_runs=('Beyond the paper: runs', 'What each run was given, and how long it took.'),
    beyond_benchmarks=('Beyond the paper: differences by benchmark', 'As for the experiment.'),
    beyond_techniques_contrasts=('Techniques, rates and orders: differences', 'As for the experiment.'),
    beyond_techniques_benchmarks=('Techniques, rates and orders: differences by benchmark', 'As for the experiment.'),
    beyond_techniques_arms=('Techniques, rates and orders: models', 'As for *Beyond the paper*.'),
    beyond_techniques_stages=('Techniques, rates and orders: the stages', 'As for *Beyond the paper*.'),
    beyond_techniques_lr=('Techniques, rates and orders: learning rates', 'Dev scores of the search.'),
    beyond_techniques_runs=('Techniques, rates and orders: runs', 'What each run was given, and how long it took.'),
    funnel=('From questions to training examples', 'Rows left after each step of stage 02.'),
    lr_dev=('Learning rates', 'Scores on the dev split, from which each method got its learning rate.'),
    benchmarks=(
        'Speed and memory against named peers',
        '`make bench`: `ratio` is the median of `n` paired runs, `spread` their interquartile range; what the ratio '
        'is of, and in '
        'which direction, stands in the name. `bound` is what must hold; a row without a ratio was not measured on '
        'that device.',
    ),
    faults=('Faults and kills', '`make faults`: what was tried, and what was lost, duplicated or hung.'),
    reruns=(
        'The experiment: runs made again',
        '`make cells`: runs of the grid made again from nothing on another machine; `different` verdicts and '
        '`lengths_different` of '
        '`n` responses.',
    ),
    slurm=(
        'The workflow on a Slurm cluster',
        '`make cluster`, on a Slurm of one node: `tasks` are what the workflow has to make, `jobs` what Slurm ran for '
        'them; '
        '`requeued` counts jobs that Slurm itself started again, `verdicts_equal` the verdict rows that are, byte for '
        'byte, those '
        'of a local run.',
    ),
    slurm_jobs=(
        'The jobs of these runs',
        'In order of submission; `attempt` is that of Snakemake, `requeued` what Slurm did in between, `seconds` the '
        'last start '
        'alone, `fault` what was done to the job.',
    ),
    packaging=(
        'The package as a newcomer gets it',
        '`python -m measure.packaging`: medians of `n` runs in an empty environment; `spread` is the interquartile '
        'range.',
    ),
    command_times=(
        'Commands',
        '`python -m measure.commands`: seconds on the clock of each time that a command was measured; `bound` is in '
        'seconds.',
    ),
    notebook_times=(
        'Run All, notebook by notebook',
        '`python -m measure.notebooks`: seconds on the clock and of the processors, in a fresh kernel with the '
        'parameters as they '
        'are; `bound` is in seconds. `long_outputs` counts outputs long enough to be logs, `error_lines` lines on the '
        'error stream.',
    ),
    gpu=(
        'On a GPU',
        'The exact 1.5B architecture with random weights; a row says `missing` where no such device was at hand.',
    ),
    engines=(
        'Engines of generation',
        'Rows in float32 that are equal to those of transformers in text, length and reason, or, with a seed, to those '
        'drawn before. `ratio` is tokens a second over those of transformers, on a thread each: the median of rounds '
        'in which the engines take turns, with the lowest and the highest.',
    ),
    rehearsal=(
        "The paper's run, rehearsed",
        '`make rehearse`: the switches of configs/paper.yaml at toy size, from problems to tables, with a teacher that '
        'fails now and then. Wall time counts what else the machine did; processor time over two is what two cores '
        'need that do nothing else.',
    ),
    rehearsal_tables=(
        "The rehearsal's rows of Tables 1 and 2",
        'Fractions of toy problems under the names of the paper: they say that the tables are made, and nothing of the '
        'method.',
    ),
    where_run=(
        'What has run where',
        'Each part, the version and machine on which its test passed, and when; `missing`: not run for this table yet.',
    ),
    overlap=(
        'Questions shared by training and benchmarks',
        'n-gram overlap of the training questions with each benchmark.',
    ),
    measured_runs=('Measured training runs', 'What the cost formulas are held against.'),
    audit=(
        'Facts of the release',
        'Each fact with its number, its evidence and what it does not prove; the audit page computes them.',
    ),
    funnel_faults=(
        'The funnel with a faulty endpoint',
        'Stage 02 at full size against a server that breaks a part of its replies.',
    ),
    teacher_counts=(
        'Requests to that endpoint',
        'What was sent, answered, lost and billed, with faults and with kills.',
    ),
    accuracy_by_arm=('Accuracy of every arm', ''),
    accuracy_by_mask_rate=('Accuracy against the mask rate', ''),
    learning_rates=('Accuracy against the learning rate', ''),
    displacement_plot=('After stage 04: preferences, an example run', ''),
    pass_and_cons=('After stage 04: reinforcement, an example run', ''),
    loss_by_part=('Loss by part of what is learned', ''),
    loss_curves=('Training loss', 'A row per run and measurement: the loss over ten updates, and that of each part.'),
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

    def line(cells): return '| ' + ' | '.join(short(c).replace('|', '\\|') for c in cells) + ' |'

    return '\n'.join([line(head), line(['---']*len(head)), *map(line, rows)])


def is_shown(path: Path) -> bool:
    "Whether a table is laid out by the run or short enough to print."
    return path.with_suffix('.md').exists() or len(read_csv(path)[1]) <= MAX_ROWS


def source(
    path: Path,  # rows
    base: Path,  # folder that links are relative to
    site: bool = False,  # for the site, which has places for cells and shows commits
    figure: Path|None = None,  # drawn from the rows
) -> str:
    "The line that says where something comes from."
    return provenance.line(path, partial(link, base=base), site, figure)


def table_section(path: Path, base: Path, site: bool = False) -> str:
    "One table: the laid-out form where the run wrote one, else the rows; always where they come from."
    laid = path.with_suffix('.md')
    body = laid.read_text(encoding='utf-8').strip() if laid.exists() else csv_table(path)
    return f'## {heading(path)}\n\n{note(path)}{body}\n\n{source(path, base, site)}\n'


def prose_section(path: Path, base: Path, site: bool = False) -> str:
    "Show what a run wrote about itself, its tables with their source, under a title that fits this page."
    text = re.sub(r'\A#+ .*\n+', '', path.read_text(encoding='utf-8').strip() + '\n')
    rows = path.with_name(PROSE_ROWS.get(path.stem, path.name))
    sourced = re.sub(r'(?:^\|.*\n)+', lambda m: f'{m[0]}\n{source(rows, base, site)}\n', text, flags=re.M)
    return f'## {heading(path)}\n\n{sourced}'


def rows_section(paths: list, base: Path, site: bool = False) -> str:
    "Rows that are too many to print."
    lines = ['## More rows\n\nThese files are too long for a page.\n']
    for p in paths:
        head, rows = read_csv(p)
        columns = ', '.join(f'`{h}`' for h in head)
        lines.append(f'### {heading(p)}\n\n{len(rows)} rows of {columns}.\n\n{source(p, base, site)}\n')
    return '\n'.join(lines)


def alt_text(path: Path) -> str:
    "What a figure is and what its titles say, read from its vector twin, where text is text."
    twin = path.with_suffix('.svg')
    drawn = twin.read_text(encoding='utf-8') if twin.exists() else ''
    texts = re.findall(r'<text style="font-size: ([\d.]+)px[^"]*text-anchor: start[^>]*>([^<]+)', drawn)
    # legends are smaller, labels of bars are one word
    titles = [html.unescape(t).rstrip('.') for size, t in texts if float(size) > 10 and ' ' in t]
    return re.sub(r'[\[\]]', '', '. '.join([heading(path), *titles]))


def figure(path: Path, base: Path, site: bool = False) -> str:
    "One figure, with the table of what is drawn."
    rows = path.with_suffix('.csv')
    return f'![{alt_text(path)}]({link(path, base)})\n' + (f'\n{source(rows, base, site, path)}\n' if rows.exists()
                                                           else '')


def figure_section(path: Path, base: Path, site: bool = False) -> str:
    "A figure that has no table of its name."
    return f'## {heading(path)}\n\n{figure(path, base, site)}'


def link(path: Path, base: Path) -> str:
    "Relative, with forward slashes."
    return Path(os.path.relpath(path, base)).as_posix()


def write_results(
    tables: list,  # folders of CSV and Markdown files
    figures: Path,  # folder of PNG files
    out: Path,  # page to write
    base: Path|None = None,  # folder that links are relative to; None = the one of `out`
    site: bool = False,  # for the site
    page: str = 'results',  # or engineering
):
    "Write a page: findings, figures, tables (each with the figure of its name), longer rows."
    base = base or out.parent
    here = page == 'engineering'
    csvs = sorted((p for d in tables for p in d.glob('*.csv') if (p.stem in MEASURED) == here), key=place)
    figures_here = [] if here else sorted(figures.glob('*.png'), key=place)
    drawn = {p.stem: p for p in figures_here if not p.name.startswith(ELSEWHERE)}
    prose = [] if here else sorted(p for d in tables for p in d.glob('*.md') if not p.with_suffix('.csv').exists())
    shown, longer = [p for p in csvs if is_shown(p)], [p for p in csvs if not is_shown(p)]
    parts = [prose_section(p, base, site) for p in prose]
    parts += [figure_section(p, base, site) for name, p in drawn.items() if name not in {p.stem for p in shown}]
    for p in shown:
        below = f'\n{figure(drawn[p.stem], base, site)}' if p.stem in drawn else ''
        parts.append(table_section(p, base, site) + below)
    if longer: parts.append(rows_section(longer, base, site))
    if not parts:
        where = f'no tables in {", ".join(map(str, tables))} and no figures in {figures}'
        raise FileNotFoundError(f'{where}: run make reproduce first, or name other folders')
    out.write_text('\n'.join([HEADS[page], *parts]), encoding='utf-8')


if __name__ == '__main__':
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables = [root/'data'/'results']
    parser.add_argument('--tables', type=Path, nargs='+', default=tables, help='default: data/results')
    parser.add_argument('--figures', type=Path, default=root/'figures', help='default: figures')
    parser.add_argument('--out', type=Path, help='default: docs/results.md, and docs/engineering.md beside it')
    asked = vars(parser.parse_args())
    if asked['out']: write_results(**asked)
    else:
        for page in HEADS: write_results(**{**asked, 'out': root/'docs'/f'{page}.md'}, page=page)
