"""Build the site in _docs/.

nbdev runs the exported cells for their signatures, convert.py makes pages, and Sphinx renders them.

The command `nbdev_proc_nbs` is not used: where Quarto is missing it tries to install Quarto and the package, into
whatever `pip` is on the path. The function behind it does neither."""
import ast, shutil, sys
from pathlib import Path

import nbformat
from nbdev.quarto import proc_nbs
from sphinx.cmd.build import main as sphinx_build

from convert import ROOT_PAGES, convert, fix_links, link_symbols, local_links, page_name
from results import write_results
from sources import add_sources, with_figures, with_rows

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT/'_proc'/'sphinx'
SITE, OUT = WORK/'site', ROOT/'_docs'
FOUND = {  # pages of docs/ that runs write: section -> the rows of its table
    'found_school': {'Gate 0: do the critiques tell the student anything?': 'school_gate', 'Masking': 'school_power',
                     'Planned contrasts': 'school_families', "In the layout of the paper's tables": 'school_arms',
                     'Form and skill': 'school_forms', 'What the probes say': 'school_probe',
                     'Wall time': 'school_runs'},
    'found': {'Planned contrasts': 'contrasts', 'Exploratory contrasts': 'contrasts',
              'By benchmark': 'contrasts_by_benchmark', 'What each arm trained on': 'ablation_runs'},
    'found_factorial': {'Planned contrasts': 'factorial_contrasts', 'By benchmark': 'factorial_benchmarks',
                        'Endpoints': 'endpoints', 'Exploratory contrasts': 'factorial_contrasts',
                        'What each arm trained on': 'factorial_runs'},
    'found_school_beyond': {'Planned contrasts': 'school_beyond_contrasts',
                            'Exploratory contrasts': 'school_beyond_contrasts',
                            'What each run was given': 'school_beyond_runs'},
    'found_beyond': {'The stages of Phi-4-Mini-Reasoning': 'beyond_stages', 'Planned contrasts': 'beyond_contrasts',
                     'By benchmark': 'beyond_benchmarks', 'Exploratory contrasts': 'beyond_contrasts',
                     'What each run was given': 'beyond_runs'},
    'found_techniques': {'The order of the stages': 'beyond_techniques_stages',
                         'Planned contrasts': 'beyond_techniques_contrasts',
                         'By benchmark': 'beyond_techniques_benchmarks',
                         'Exploratory contrasts': 'beyond_techniques_contrasts',
                         'What each run was given': 'beyond_techniques_runs'}}
FOUND = {name: rows for name, rows in FOUND.items() if (ROOT/'docs'/f'{name}.md').exists()}  # others are to come
GUIDES = ('howto_model', 'howto_arm', 'howto_mask_unit', 'howto_continue', 'howto_teacher', 'howto_paper',
          'howto_benchmark', 'howto_cluster')
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
    return {c['id'] for c in nb.cells if c.cell_type == 'code'
            and c.source.lstrip().startswith(('#| export', '#|export'))}


def contents(
    names: list,  # notebooks
    written: list,  # names of the pages in docs/pages
    examples: list,  # names of their pages
    extra: list,  # names of the root's pages
) -> str:
    """The hidden tables of contents that make the sidebar: what a reader wants first, then stages, what stands around
    them, the library."""
    def room(folder):
        return [page_name(n) for n in names if Path(n).parent.name == folder and n != 'index.ipynb']
    stages = room('')
    guides = [n for n in GUIDES if n in written]
    rest = [n for n in written if n not in ('stages', *guides)]
    parts = [('Start here', ['stages', *FOUND, 'results', 'audit']), ('How to', [*guides, *examples]),
             ('Stages', stages[:6]), ('Later stages', stages[6:]), ('Worlds', room('worlds')),
             ('Around the stages', [n for n in room('around') if n != 'audit']), ('Library', ['api', *room('lib')]),
             ('Reference', [*rest, 'engineering', *extra])]
    return ''.join(TOC.format(caption=c, names='\n'.join(p)) for c, p in parts if p)


def api_page(names: list, pages: dict) -> str:
    "Every module with its first line and what it exports, from the modules themselves."
    index = ast.literal_eval((ROOT/'mcft'/'_modidx.py').read_text().split('d = ', 1)[1])['syms']
    out = ['# API\n\nEvery name that the library exports, by module. Each leads to its signature, its parameters with '
           'meaning and unit, and an example that runs.\n']
    for name in names:
        module, page = f'mcft.{page_name(name)}', page_name(name)
        if not index.get(module): continue
        first = ast.get_docstring(ast.parse((ROOT/'mcft'/f'{page}.py').read_text(encoding='utf-8'))).splitlines()[0]
        public = [s for s in (full.removeprefix(f'{module}.') for full in index[module]) if '.' not in s
                  and not s.startswith('_')]
        out.append(f'## [`{module}`]({pages[Path(name).name]}.ipynb)\n\n{first}.\n\n'
                   + ', '.join(f'[`{s}`](#{page}.{s})' for s in public) + '\n')
    return '\n'.join(out)


def write_texts(names: list, pages: dict, known: dict) -> tuple:  # names of pages in docs/pages, of the root's
    "The pages that are no notebooks: those of docs/pages, those of the root, the API and the results."
    def write(path, page):
        (SITE/f'{page}.md').write_text(with_figures(link_symbols(fix_links(path.read_text(encoding='utf-8'), pages),
                                                                 known, pages)), encoding='utf-8')
    written, extra = sorted((ROOT/'docs'/'pages').glob('*.md')), [p for n in ROOT_PAGES
                                                                  if (p := ROOT/f'{n}.md').exists()]
    for p in written: write(p, p.stem)
    for p in extra: write(p, p.stem.lower())
    for name, rows in FOUND.items():
        found = fix_links((ROOT/'docs'/f'{name}.md').read_text(encoding='utf-8'), pages)
        (SITE/f'{name}.md').write_text(with_figures(with_rows(found, rows)), encoding='utf-8')
    (SITE/'api.md').write_text(api_page(names, pages), encoding='utf-8')
    for page in ('results', 'engineering'):
        write_results([ROOT/'data'/'results'], ROOT/'figures', SITE/f'{page}.md', ROOT, site=True, page=page)
    return [p.stem for p in written], [p.stem.lower() for p in extra]


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
    shutil.copyfile(ROOT/'docs'/'references.bib', SITE/'references.bib')
    names = sorted(p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').rglob('[!_.]*.ipynb')
                   if '.ipynb_checkpoints' not in p.parts)
    examples = sorted(f'examples/{p.name}' for p in (ROOT/'examples').glob('[!_.]*.ipynb'))
    pages, known = {Path(n).name: page_name(n) for n in names} | {n: f'example_{page_name(n)}'
                                                                  for n in examples}, symbols()
    written, extra = write_texts(names, pages, known)
    for name in [*names, *examples]:
        source = name if name in examples else f'nbs/{name}'
        nb = nbformat.read(ROOT/source, 4)
        page = convert(nb if name in examples else nbformat.read(processed/name, 4), name, exported_ids(nb), pages,
                       known)
        page['cells'] = add_sources(page['cells'], source, SITE)
        if name == 'index.ipynb':
            page['cells'].append(nbformat.v4.new_markdown_cell(contents(names, written, [pages[n] for n in examples],
                                                                        extra)))
        nbformat.write(nbformat.from_dict(page), SITE/f"{pages[name if name in examples else Path(name).name]}.ipynb")
    copy_linked()


def main() -> int:
    "Exit status of Sphinx: any warning, so any broken link, is a failure."
    write_pages(proc_nbs(n_workers=2, force=True))
    status = sphinx_build(['-q', '-E', '-W', '--keep-going', '-n', '-b', 'html', '-c', str(ROOT/'docs'), '-d',
                           str(WORK/'doctrees'), str(SITE), str(WORK/'html')])
    if status == 0:
        entries = WORK/'html'/'bibliography.html'  # docutils calls them a list, and axe-core finds no items in it
        page = entries.read_text(encoding='utf-8')
        entries.write_text(page.replace('<div role="list" class="citation-list">', '<div class="citation-list">'),
                           encoding='utf-8')
        for f in (WORK/'html').rglob('*.map'): f.unlink()  # for who works on the theme: four megabytes
        shutil.rmtree(OUT, ignore_errors=True)
        (WORK/'html').rename(OUT)
        print(f'site: {OUT.name}/index.html')
    return status


if __name__ == '__main__': sys.exit(main())
