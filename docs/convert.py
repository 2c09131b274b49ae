"""From nbdev's processed notebooks to pages that Sphinx and MyST-NB render.

nbdev writes for Quarto: a YAML title, `show_doc` outputs, `#|` lines, `:::` callouts. Each function below turns one of
those into what MyST reads. Nothing is executed here; nbdev has done that."""
import re
from pathlib import PurePosixPath

from yaml import safe_load

ROOT_PAGES = 'CONTRIBUTING', 'CHANGELOG'  # files of the root that are pages of the site, in small letters
CALLOUTS = dict(note='note', tip='tip', warning='warning', important='important', caution='caution')


def page_name(
    nb_name: str,  # file name of a notebook, such as `lib/01_core.ipynb`
) -> str:  # name of its page, such as `core`
    "The page of a notebook is named like its module: without number and suffix."
    return re.sub(r'^\d+[a-zA-Z]?_', '', PurePosixPath(nb_name).stem)


def title_cell(
    raw: str,  # front matter between `---` lines
) -> str:  # markdown
    "nbdev's front matter to a heading and its subtitle."
    meta = safe_load(raw.strip().strip('-')) or {}
    sub = meta.get('description', '')
    return f"# {meta['title']}\n" + (f'\n*{sub}*\n' if sub else '')


def strip_directives(
    src: str,  # source of a code cell
) -> str:  # the same without `#|` lines
    "Directives steer nbdev; a reader need not see them."
    return re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip('\n')


def fix_links(
    md: str,  # markdown
    pages: dict,  # notebook file name (of an example, with its folder) -> page name
) -> str:
    """Links to notebooks and to the pages in docs/ become links to pages of the site; other links out of a file's
    folder start at the site's root."""
    md = re.sub(r'(\]\([^)\s]+\))\{target=[^}]*\}', r'\1', md)
    md = re.sub(r'(\]\(|src=")(?:\.\./)+', r'\1', md)
    md = re.sub(r'\]\((?:\w+/)*?((?:examples/)?[\w.]+\.ipynb)(#[^)\s]*)?\)',
                lambda m: f"]({pages[m[1]]}.ipynb{m[2] or ''})" if m[1] in pages else m[0], md)
    md = re.sub(r'\]\((?:docs/)?(?:pages/)?(\w+\.md)', r'](\1', md)
    return re.sub(rf"\]\(({'|'.join(ROOT_PAGES)})\.md", lambda m: f'](' + m[1].lower() + '.md', md)


def local_links(
    md: str,  # markdown
) -> set:  # paths, as written
    "Files that links and images point to: no page of the site, no other host, no place on the page itself."
    found = re.findall(r'\]\(([^)\s#]+)(?:#[^)\s]*)?\)', md)
    return {f for f in found if '://' not in f and not f.endswith('.ipynb') and not re.fullmatch(r'\w+\.md', f)}


def fix_divs(
    md: str,  # markdown
) -> str:
    "Quarto's fenced divs to MyST: a callout becomes an admonition, any other div a container with its classes."
    def opening(m):
        fence, attrs = m[1], m[2]
        classes = re.findall(r'\.([\w-]+)', attrs)
        kind = next((c[8:] for c in classes if c.startswith('callout-')), None)
        if kind is None: return f"{fence}{{container}} {' '.join(classes)}".rstrip()
        if kind not in CALLOUTS:
            raise ValueError(f"callout {kind!r} in `{m[0]}` is not known: one of {', '.join(CALLOUTS)}")
        title = re.search(r'title="([^"]*)"', attrs)
        return (f'{fence}{{admonition}} {title[1]}\n:class: {CALLOUTS[kind]}' if title
                else f'{fence}{{{CALLOUTS[kind]}}}')
    return re.sub(r'^(:{3,})\s*\{([^}]*\..*?)\}\s*$', opening, md, flags=re.M)


def link_symbols(
    md: str,  # markdown
    symbols: dict,  # name -> module, for names that one module alone exports
    pages: dict,  # notebook file name -> page name
) -> str:
    """`name` or `NN_notebook` in backticks links to its page; plain lower-case words, fenced code, headings and
    existing links stay as they are."""
    def one(m):
        if m[1][0].isdigit() and f'{m[1]}.ipynb' in pages: return f"[`{m[1]}`]({pages[f'{m[1]}.ipynb']}.ipynb)"
        name = m[1].removesuffix('()').rsplit('.', 1)[-1]
        module = symbols.get(name)
        known = module and m[1].removesuffix('()') in (name, f'{module}.{name}', f'mcft.{module}.{name}')
        known = known and not (m[1].isalpha() and m[1].islower())  # `labels` is a column, `words` an arm
        return f'[`{m[1]}`](#{module}.{name})' if known else m[0]
    out, fenced = [], False
    for line in md.split('\n'):
        if re.match(r'\s*(```|~~~)', line): fenced = not fenced
        skip = fenced or line.startswith('#')
        out.append(line if skip else re.sub(r'(?<![\[`])`(\w[\w.]*(?:\(\))?)`(?![\]`])', one, line))
    return '\n'.join(out)


def doc_cell(
    md: str,  # output of `show_doc`
    module: str,  # where the symbol lives
    seen: set,  # targets already given
) -> str:
    "What `show_doc` wrote, as prose with a target to link to; no rule above, no link to a hosted source."
    md = re.sub(r'^---\n+', '', md)
    md = re.sub(r'^\[source\]\(.*\n+', '', md)
    name = re.search(r'^#+ (\S+)', md)[1].replace('\\', '')
    md = re.sub(r'^#+ (\S+)', rf'### `{name}`', md, count=1)
    target = f'{module}.{name}'
    if target in seen: return md
    seen.add(target)
    return f'({target})=\n{md}'


def is_show_doc(cell) -> bool:
    "A cell that nbdev added to show a signature."
    return cell['cell_type'] == 'code' and bool(re.search(r'^show_doc\(', cell['source'], re.M))


def output_markdown(
    cell: dict,  # an executed `show_doc` cell
) -> str:
    "The Markdown a `show_doc` cell gave; its absence is an error, for the page would lack a symbol in silence."
    for o in cell['outputs']:
        md = o.get('data', {}).get('text/markdown')
        if md: return ''.join(md)
    raise ValueError(f"show_doc gave no Markdown in the cell `{cell['source']}`: see what `nbdev.quarto.proc_nbs` "
                     "printed")


def code_cell(cell, exported: bool) -> dict:
    """A code cell without directives; exported ones folded, but for dataclasses, whose signature does not say what
    fields mean."""
    tags = ['remove-input'] if cell['source'].startswith('#| echo: false') else []
    cell = dict(cell, source=strip_directives(cell['source']), metadata={'tags': tags} if tags else {})
    if exported and not re.search('^@(dataclass|parameters)', cell['source'], re.M):
        cell['metadata']['tags'] = ['hide-input']
    return cell


def convert(
    nb: dict,  # a notebook that nbdev processed, `source` as strings
    name: str,  # its file name
    exported: set,  # ids of the cells that go into the module
    pages: dict,  # notebook file name -> page name
    symbols: dict,  # name -> module
) -> dict:  # a notebook for MyST-NB
    """One notebook to one page: title, prose, signatures as prose, then the folded source, then examples with their
    outputs."""
    module, cells, held, seen = page_name(name), [], [], set()
    for cell in nb['cells']:
        src = cell['source']
        if held and not is_show_doc(cell): cells, held = cells + held, []
        if cell['cell_type'] == 'raw': cells.append(md_cell(title_cell(src), cell))
        elif is_show_doc(cell): cells.append(md_cell(doc_cell(output_markdown(cell), module, seen), cell))
        elif cell['cell_type'] == 'markdown':
            md = link_symbols(fix_divs(fix_links(src, pages)), symbols, pages)
            if not src.startswith('<!-- WARNING'): cells.append(md_cell(md, cell))
        elif strip_directives(src).strip():
            (held if cell.get('id') in exported else cells).append(code_cell(cell, cell.get('id') in exported))
    return dict(nb, cells=cells + held, metadata={'kernelspec': nb['metadata'].get('kernelspec', {})})


def md_cell(md, like) -> dict:
    "A markdown cell that keeps the id of the cell it replaces."
    return {'cell_type': 'markdown', 'id': like.get('id'), 'metadata': {}, 'source': md}
