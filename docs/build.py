"""Build the site: nbdev runs the exported cells for their signatures, convert.py makes pages, Sphinx renders them to _docs/.

The command `nbdev_proc_nbs` is not used: where Quarto is missing it tries to install Quarto and the package, into whatever
`pip` is on the path. The function behind it does neither."""
import ast, shutil, sys
from pathlib import Path

import nbformat
from nbdev.quarto import proc_nbs
from sphinx.cmd.build import main as sphinx_build

from convert import convert, local_links, page_name
from results import write_results

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT/'_proc'/'sphinx'
SITE, OUT = WORK/'site', ROOT/'_docs'
TOC = """

```{{toctree}}
:caption: {caption}
:hidden:

{names}
```
"""


def symbols() -> dict:  # name -> module
    "Names that exactly one module exports, from nbdev's index."
    index = ast.literal_eval((ROOT/'mcft'/'_modidx.py').read_text().split('d = ', 1)[1])['syms']
    owner = {}
    for module, syms in index.items():
        for full in syms: owner.setdefault(full.removeprefix(f'{module}.'), set()).add(module.removeprefix('mcft.'))
    return {k: v.pop() for k, v in owner.items() if len(v) == 1 and '.' not in k and not k.startswith('_')}


def exported_ids(
    nb,  # the notebook as its author wrote it
) -> set:
    "Ids of cells whose first lines say export."
    return {c['id'] for c in nb.cells if c.cell_type == 'code' and c.source.lstrip().startswith(('#| export', '#|export'))}


def contents(names: list) -> str:
    "The hidden tables of contents that make the sidebar: foundations, stages, what stands around them, results and audit."
    number = {n: n.split('_')[0] for n in names if n[:2].isdigit()}
    pages = lambda *which: [page_name(n) for n, k in number.items() if k in which]
    rest = [page_name(n) for n, k in number.items() if k > '06' and k != '10']
    parts = [('Foundations', pages('00')), ('Stages', pages('01', '02', '03', '04', '05', '06')), ('Around the stages', rest), ('Results', ['found', 'results', *pages('10')])]
    return ''.join(TOC.format(caption=c, names='\n'.join(p)) for c, p in parts if p)


def copy_linked():
    "The files that pages link to, at the same place as in the repository; Sphinx reports those that do not exist."
    texts = [p.read_text(encoding='utf-8') for p in SITE.glob('*.md')]
    for p in SITE.glob('*.ipynb'): texts += [c.source for c in nbformat.read(p, 4).cells if c.cell_type == 'markdown']
    for link in set().union(*map(local_links, texts)):
        if not (ROOT/link).is_file(): continue
        (SITE/link).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT/link, SITE/link)


def write_pages(
    processed: Path,  # folder of nbdev's processed notebooks
):
    "All pages into the site's source folder, with the files they link to."
    shutil.rmtree(WORK, ignore_errors=True)
    SITE.mkdir(parents=True)
    names = sorted(p.name for p in (ROOT/'nbs').glob('[!_.]*.ipynb'))
    pages, known = {n: page_name(n) for n in names}, symbols()
    for name in names:
        ids = exported_ids(nbformat.read(ROOT/'nbs'/name, 4))
        page = convert(nbformat.read(processed/name, 4), name, ids, pages, known)
        if name == 'index.ipynb': page['cells'].append(nbformat.v4.new_markdown_cell(contents(names)))
        nbformat.write(nbformat.from_dict(page), SITE/f'{pages[name]}.ipynb')
    write_results([ROOT/'data'/'results'], ROOT/'figures', SITE/'results.md', ROOT)
    (SITE/'found.md').write_text((ROOT/'docs'/'found.md').read_text(encoding='utf-8').replace('](../', ']('), encoding='utf-8')
    copy_linked()


def main() -> int:
    "Exit status of Sphinx: any warning, so any broken link, is a failure."
    write_pages(proc_nbs(n_workers=2, force=True))
    status = sphinx_build(['-q', '-E', '-W', '--keep-going', '-n', '-b', 'html', '-c', str(ROOT/'docs'), '-d', str(WORK/'doctrees'), str(SITE), str(WORK/'html')])
    if status == 0:
        shutil.rmtree(OUT, ignore_errors=True)
        (WORK/'html').rename(OUT)
        print(f'site: {OUT.name}/index.html')
    return status


if __name__ == '__main__': sys.exit(main())
