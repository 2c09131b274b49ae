"""Under every table and figure of a page: its rows, the cell and the command that made it, the commit.

A figure of a notebook is shown from `figures/`, where the committed file lies; a table can be had as CSV, just as it
is shown."""
import csv, hashlib, io, re
from base64 import b64decode
from html import escape
from pathlib import Path

from bs4 import BeautifulSoup

from paper_figures import FIGURES, POCKET, svg
from provenance import MAKERS, ROOT, anchor, boxed, cell_id, committed_in, line, short
from results import alt_text

ROWS = 'rows'  # folder of the site for tables as CSV


def from_root(path: Path) -> str:
    "Links of the site are written from its root, where everything lies as in the repository."
    return Path(path).relative_to(ROOT).as_posix()


def html_tables(cell: dict) -> list:  # each a list of rows of strings
    "The tables among a cell's outputs."
    pages = [''.join(o.get('data', {}).get('text/html', '')) for o in cell.get('outputs', [])]
    tables = [t for p in pages if '<table' in p for t in BeautifulSoup(p, 'html.parser').find_all('table')]
    return [[[c.get_text(' ', strip=True) for c in r.find_all(['th', 'td'])] for r in t.find_all('tr')] for t in tables]


def images(cell: dict) -> list:  # bytes
    "The pictures among a cell's outputs."
    return [b64decode(''.join(o['data']['image/png'])) for o in cell.get('outputs', [])
            if 'image/png' in o.get('data', {})]


def figure_files(cell: dict, folder: Path = ROOT/'figures') -> list:  # committed PNG files
    "Which committed figures a cell shows: those it names, else those with the very same bytes."
    shown = images(cell)
    named = [f for n in re.findall(r'"(\w+)"', cell['source']) if (f := folder/f'{n}.png').exists()]
    if len(named) == len(shown): return named
    known = {hashlib.sha256(f.read_bytes()).digest(): f for f in folder.glob('*.png')}
    found = [known.get(hashlib.sha256(b).digest()) for b in shown]
    if None in found:
        raise ValueError(f"cell {cell['id']} shows a picture that is no file of {folder.name}/: run the notebook on "
                         "the committed rows, and commit both")
    return found


def figure_markdown(path: Path) -> str:
    "A committed figure, what it says in words, and where it comes from."
    return f'![{alt_text(path)}]({from_root(path)})\n\n' + line(path.with_suffix('.csv'), from_root, True, path)


def table_line(cell: dict, tables: list, source: str, folder: Path) -> str:
    "The line under a cell's tables; writes them as CSV."
    links, place = [], anchor(source, cell['id'])
    for i, table in enumerate(tables):
        out = io.StringIO()
        csv.writer(out, lineterminator='\n').writerows(table)
        (folder/ROWS).mkdir(exist_ok=True)
        file = folder/ROWS/f'{place}{"-" + str(i + 1) if i else ""}.csv'
        file.write_text(out.getvalue(), encoding='utf-8')
        links.append(f'[{file.name}]({ROWS}/{file.name})')
    c = committed_in(ROOT/source)
    return boxed([f'Rows: {", ".join(links)}', f"cell [{cell['id']}](#{place}) of {Path(source).name}",
                  f'`papermill {source} OUT.ipynb`', f'commit {short(c)}' if c else 'commit not recorded'])


def markdown(md: str, id: str) -> dict:
    "A cell of its own."
    return {'cell_type': 'markdown', 'id': id, 'metadata': {}, 'source': md}


def add_sources(
    cells: list,  # of a page
    source: str,  # its notebook, from the repository's root
    folder: Path,  # the site's
) -> list:
    "The cells, with a place before every cell that made something and a line after it."
    makers, out = {cell_id(m.source, m.marker) for m in MAKERS if m.source == source}, []
    for cell in cells:
        if cell['cell_type'] == 'markdown': cell = dict(cell, source=with_figures(cell['source']))
        tables, figures = (html_tables(cell), figure_files(cell)) if cell.get('outputs') else ([], [])
        if cell['id'] in makers or tables: out.append(markdown(f"({anchor(source, cell['id'])})=", f"{cell['id']}-at"))
        if figures: cell = dict(cell, outputs=[o for o in cell['outputs'] if 'image/png' not in o.get('data', {})])
        out.append(cell)
        if tables: out.append(markdown(table_line(cell, tables, source, folder), f"{cell['id']}-rows"))
        out += [markdown(figure_markdown(f), f"{cell['id']}-{f.stem}") for f in figures]
    return out


def inline(name: str, alt: str) -> str:
    """A drawing as a part of the page, so that it takes the colours of the theme; on a small screen it scrolls in its
    own box."""
    text = svg(name, inline=True)
    used = set(re.findall(r'#([\w-]+)[")]', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else '', text)
    text = text.replace('<svg ', f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    return f'```{{raw}} html\n<div class="drawing" tabindex="0">\n{text}</div>\n```'


def with_figures(md: str) -> str:
    """An image of `figures/` that stands alone gets its line, below its caption if it has one; a drawing of the
    paper's figures becomes part of the page."""
    def one(m):
        image, alt, file, caption = m.groups()
        path, drawn = ROOT/file, Path(file).stem in FIGURES
        rows = POCKET/'critiques.jsonl' if drawn else path.with_suffix('.csv')
        return (inline(path.stem, alt) if drawn else image) + (caption or '') + '\n\n' + line(rows, from_root, True,
                                                                                              path)
    return re.sub(r'^(!\[([^\]]*)\]\((figures/\w+\.(?:png|svg))\))$(\n\n\*[^\n*]+\*$)?', one, md, flags=re.M)


def with_rows(
    md: str,  # a page made from rows
    rows: dict,  # heading -> name of the rows that the table below it shows
) -> str:
    "A line under each table of the page."
    out, heading = [], ''
    for block in re.split(r'(\n{2,})', md):
        if block.startswith('#'): heading = block.lstrip('# ')
        out.append(block)
        if block.startswith('|'):
            if heading not in rows:
                raise ValueError(f'nothing is known about the rows of the table below {heading!r}: add it to FOUND in '
                                 'docs/build.py')
            out.append('\n\n' + line(ROOT/'data'/'results'/f'{rows[heading]}.csv', from_root, True))
    return ''.join(out)
