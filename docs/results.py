"""The results page: every table in data/results and every figure, read from the files; no number is typed here.

`write_results` gives Markdown that GitHub and the site both render: docs/results.md is the committed copy."""
import argparse
import csv
import os
from pathlib import Path

HEAD = """# Results

Everything on this page is read from the rows in `data/results/` and the figures drawn from them: `make reproduce` writes
those, `make docs` renders this. Intervals are 95% intervals (Wilson) unless a table says otherwise. `paper` is the printed
number, `released` is rebuilt from the outputs in the paper's release, `pocket` is our own small world on a CPU: it shows
what the method does there, and says nothing about 1.5B models.
"""
MAX_ROWS = 60  # longer tables are linked, not printed


def heading(path: Path) -> str:
    "`loss_curves.csv` as `Loss curves`."
    text = path.stem.replace('_', ' ').replace('-', ' ')
    return (text[:1].upper() + text[1:]).replace('Table1', 'Table 1').replace('Table2', 'Table 2')


def short(cell: str) -> str:
    "A fraction to four digits; anything else as it stands."
    try: return f'{float(cell):.4g}' if '.' in cell else cell
    except ValueError: return cell


def csv_table(path: Path) -> str:
    "A CSV file as a Markdown table, or the number of its rows where it is long."
    with open(path, newline='', encoding='utf-8') as f: head, *rows = list(csv.reader(f))
    if len(rows) > MAX_ROWS: return f'{len(rows)} rows with the columns {", ".join(f"`{h}`" for h in head)}.'
    line = lambda cells: '| ' + ' | '.join(short(c).replace('|', '\\|') for c in cells) + ' |'
    return '\n'.join([line(head), line(['---']*len(head)), *map(line, rows)])


def table_section(
    path: Path,  # rows
    base: Path,  # folder that links are relative to
) -> str:
    "One table: the laid-out form where the run wrote one, else the rows; always a link to the rows."
    laid = path.with_suffix('.md')
    body = laid.read_text(encoding='utf-8').strip() if laid.exists() else csv_table(path)
    return f'## {heading(path)}\n\n{body}\n\nRows: [{path.name}]({link(path, base)})\n'


def figure_section(path: Path, base: Path) -> str:
    "One figure."
    return f'## {heading(path)}\n\n![{heading(path)}]({link(path, base)})\n'


def link(path: Path, base: Path) -> str:
    "Relative, with forward slashes."
    return Path(os.path.relpath(path, base)).as_posix()


def write_results(
    tables: Path,  # folder of CSV files
    figures: Path,  # folder of PNG files
    out: Path,  # page to write
    base: Path|None = None,  # folder that links are relative to; None = the one of `out`
):
    "Tables first, then figures, each in the order of their names."
    base = base or out.parent
    parts = [table_section(p, base) for p in sorted(tables.glob('*.csv'))] + [figure_section(p, base) for p in sorted(figures.glob('*.png'))]
    if not parts: raise FileNotFoundError(f'no tables in {tables} and no figures in {figures}: run make reproduce first, or name other folders')
    out.write_text('\n'.join([HEAD, *parts]), encoding='utf-8')


if __name__ == '__main__':
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(tables=root/'data'/'results', figures=root/'figures', out=root/'docs'/'results.md').items():
        parser.add_argument(f'--{name}', type=Path, default=default, help=f'default: {default.relative_to(root)}')
    write_results(**vars(parser.parse_args()))
