"""README.md from nbs/index.ipynb: its Markdown cells, its code cells as code, and their text outputs.

First its findings are counted anew."""
import ast
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTE = '<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->'


def cell_markdown(cell) -> str:
    "One cell as Markdown; hidden cells give nothing."
    if cell.cell_type == 'markdown': return cell.source
    if cell.cell_type != 'code' or cell.source.startswith('#| hide'): return ''
    if cell.source.startswith('#| echo: false'): return '\n\n'.join(''.join(o['data']['text/markdown'])
                                                                    for o in cell.outputs)  # sentences made from rows
    text = [o['text'] if 'text' in o else o.get('data', {}).get('text/plain', '') for o in cell.outputs]
    shown = '\n'.join(''.join(t).rstrip() for t in text if t)
    return f'```python\n{cell.source}\n```' + (f'\n\n```\n{shown}\n```' if shown else '')


def from_root(md: str) -> str:
    "Links are written from nbs/, where the notebook lies; README.md lies one folder up."
    md = re.sub(r'\]\(((?:\w+/)?\w+\.ipynb)', r'](nbs/\1', md)
    return md.replace('](../', '](')


def readme(
    nb_path: Path,  # the notebook
) -> str:  # text of README.md
    "All cells, one blank line between them."
    parts = [cell_markdown(c) for c in nbformat.read(nb_path, 4).cells]
    return from_root('\n\n'.join([NOTE, *filter(None, parts)])) + '\n'


def refresh(nb_path: Path) -> bool:  # did it change?
    "The sentences of the home page, made from the rows as they are now."
    nb, scope = nbformat.read(nb_path, 4), {}
    for cell in (c for c in nb.cells if c.cell_type == 'code'):
        *lines, last = ast.parse(cell.source).body
        exec(compile(ast.Module(lines, []), nb_path.name, 'exec'), scope)
        if not cell.source.startswith('#| echo: false'):
            exec(ast.unparse(last), scope)
            continue
        cell.outputs[0]['data']['text/markdown'] = eval(ast.unparse(last), scope).data
    changed = nb != nbformat.read(nb_path, 4)
    if changed: nbformat.write(nb, nb_path)
    return changed


if __name__ == '__main__':
    refresh(ROOT/'nbs'/'index.ipynb')
    (ROOT/'README.md').write_text(readme(ROOT/'nbs'/'index.ipynb'), encoding='utf-8')
