"""The prose of notebooks and pages: spelled as a dictionary or docs/words.txt has it; the home page is short."""
import re

import nbformat
import pytest
from spellchecker import SpellChecker

from conftest import ROOT, notebooks

PAGES = [p.relative_to(ROOT).as_posix() for d in ('docs/pages/*.md', 'examples/*.ipynb') for p in sorted(ROOT.glob(d))]
MADE = ['docs/results.md', 'docs/engineering.md', *(f'docs/{p.name}' for p in sorted((ROOT/'docs').glob('found*.md')))]
TEXTS = [*(f'nbs/{n}' for n in notebooks()), *PAGES, *MADE, 'CHANGELOG.md', 'CONTRIBUTING.md']
BLOCKS, INLINE = r'```.*?```|~~~.*?~~~|\$\$.*?\$\$', r'`[^`\n]*`|\$[^$\n]*\$|<[^>\n]*>|\]\([^)\n]*\)|https?://\S+|\\\w+|^Rows:.*$'


@pytest.fixture(scope='module')
def words() -> set:
    "What is spelled right: an English dictionary and the project's own list."
    return (set(SpellChecker(language='en').word_frequency.keys())
            | set((ROOT/'docs'/'words.txt').read_text(encoding='utf-8').split()))


def prose(name: str) -> str:
    "A file's text without code, formulas and addresses; of the results without its tables."
    path = ROOT/name
    text = '\n\n'.join(c.source for c in nbformat.read(path, 4).cells if c.cell_type
                       == 'markdown') if path.suffix == '.ipynb' else path.read_text(encoding='utf-8')
    if name in MADE:
        text = re.sub(r'^\|.*$', '', text, flags=re.M)
    return re.sub(INLINE, ' ', re.sub(BLOCKS, ' ', text, flags=re.S), flags=re.M)


def unknown(text: str, known: set) -> set:
    "Words that nobody knows; names with capitals inside, digits or underscores are no words."
    found = re.findall(r"(?<![\w.@/-])[A-Za-z]+(?:['’][a-z]+)?(?![\w@/]|\.\w)", text.replace('-', ' '))
    plain = {re.sub(r"['’]s?$|['’]s$", '', w) for w in found if not re.search(r'.[A-Z]', w)}
    return {w for w in plain if len(w) > 1 and w.lower() not in known and w.lower().replace('’', "'") not in known}


@pytest.mark.parametrize('name', TEXTS)
def test_spelling(name, words):
    assert not (bad := unknown(prose(name),
                               words)), f'{name}: {sorted(bad)} is neither in the dictionary nor in docs/words.txt'
