"""Review by people: page and widget in a real browser, hostile text in every field, from click to reviewed set."""
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import sync_playwright

from conftest import BROWSER, ROOT, needs_browser
from mcft import review
from mcft.core import check_row, read_rows, write_rows


HOSTILE = {
    'image': '<img src=x onerror="window.pwned=1;alert(1)">',
    'script': '<script>window.pwned=1;alert(1)</script>',
    'fields end': '</textarea></div></article></main><script>window.pwned=1</script><textarea>',
    'attribute ends': '"><img src=x onerror=window.pwned=1> \' onmouseover=window.pwned=1 autofocus '
                      'onfocus=window.pwned=1 x=\'',
    'svg': '<svg onload=window.pwned=1><a xlink:href="javascript:window.pwned=1"><text>click</text></a></svg>',
    'links': '[click](javascript:window.pwned=1) <a href="javascript:window.pwned=1">click</a> '
             '![x](https://example.org/x.png)',
    'frames': '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe><object '
              'data="https://example.org"></object><link rel=stylesheet href=https://example.org/a.css>',
    'style': '<style>*{display:none}body{background:url(https://example.org/b.png)}</style><base '
             'href="https://example.org/">',
    'maths text': r'$\text{<img src=x onerror=window.pwned=1>}$ $\textbf{<script>window.pwned=1</script>}$ \boxed{<svg '
                  r'onload=window.pwned=1>}',
    'maths link': r'$\href{javascript:window.pwned=1}{x}$ $\style{background:url(https://example.org)}{x}$ '
                  r'$\phantom{seen}$',
    'mathml': '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 '
              'onerror=window.pwned=1&gt;"></table></mtext></math>',
    'entities': '&lt;script&gt;window.pwned=1&lt;/script&gt; &#60;img src=x onerror=window.pwned=1&#62;',
    'comment': '<!-- --> <![CDATA[ ]]> <?php ?> {{constructor.constructor("window.pwned=1")()}} ${window.pwned=1} `x`',
    'unseen': 'a\u202eb\u200b\x00\u2028c\ufeff',
}
FIELDS = ('id', 'question', 'rollout', 'critique', 'reasoning', 'answer', 'status', 'reason', 'teacher', 'gold',
          'family', 'row_hash')


def harmless(**kw) -> dict:
    "A row of `review_rows`."
    return dict(dict(id='c.1', question='What is $2+2$?', rollout='<think>\nIt is 5.\n</think>\n\\boxed{5}',
                     critique='Step 1 is wrong: $2+2=4$.', reasoning='$2+2=4$', answer='4',
                     status='kept', reason='', teacher='t', gold='4', family='sums', is_correct=False, wrong_step=1,
                     wrong_by='critique', row_hash='0'*12,
                     steps=review.steps_of(kw.get('rollout', 'It is 5.\n\\boxed{5}'))), **kw)


def hostile_rows() -> list:
    "Each attack in each field at once, and one row with all of them."
    rows = [harmless(**{k: v for k in FIELDS}) for v in HOSTILE.values()]
    return rows + [harmless(**{k: ' '.join(HOSTILE.values()) for k in FIELDS})]


@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=BROWSER)
        yield b
        b.close()


@pytest.fixture
def watched(browser):
    "A page that notes dialogs, requests to anywhere but its own file, and errors."
    context = browser.new_context(viewport=dict(width=1280, height=860), accept_downloads=True)
    page = context.new_page()
    page.seen, page.refused = [], set()
    page.on('dialog', lambda d: (page.seen.append(f'dialog {d.message}'), d.dismiss()))
    page.on('request', lambda r: page.seen.append(f'request {r.url}')
            if not r.url.startswith(('file:', 'data:,', 'blob:')) else None)
    # stopped before it left
    page.on('requestfailed', lambda r: page.refused.add(f'request {r.url}') if r.failure == 'csp' else None)
    page.on('pageerror', lambda e: page.seen.append(f'error {e}'))
    page.on('framenavigated', lambda f: page.seen.append(f'frame {f.url}') if f.parent_frame else None)
    yield page
    context.close()


def assert_nothing_ran(page):
    page.wait_for_timeout(300)
    assert page.seen == []
    assert page.evaluate('window.pwned') is None
    elements = ','.join(f'.mcft-row {e}' for e in 'img script svg iframe a style object link base'.split())
    assert page.evaluate('s => document.querySelectorAll(s).length', elements) == 0
    assert page.evaluate("[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => "
                         "n.startsWith('on'))") == []


def visible(text: str) -> str:
    "How a text should read: unseen signs by number, white space aside."
    return ''.join(review._hidden.sub(lambda m: f'U+{ord(m[0]):04X}', text).split())


@needs_browser
def test_hostile_text_is_shown_in_the_page_and_does_not_run(watched, tmp_path):
    rows = hostile_rows()
    path = review.review_page(rows, tmp_path/'review.html', title=HOSTILE['script'])
    watched.goto(path.as_uri())
    assert watched.locator('article').count() == len(rows)
    for i, row in enumerate(rows):
        watched.locator('.index button').nth(i).click()
        shown = watched.locator('article').nth(i)
        assert shown.is_visible()
        squeezed = ''.join(shown.locator('.mcft-row').inner_text().split())
        if '$' not in row['critique'] and 'boxed' not in row['critique']:
            assert squeezed.count(visible(row['critique'])) >= 5, row['critique']
        assert shown.get_attribute('data-id') == row['id'].replace('\x00', '\ufffd')
        field = shown.locator('textarea[name=critique]').evaluate('e => e.value')
        assert field == row['critique'].replace('\x00', '\ufffd')
    watched.evaluate("document.querySelectorAll('*').forEach(e => ['mouseover', 'focus', 'load', 'error'].forEach(n => "
                     "e.dispatchEvent(new Event(n))))")
    assert_nothing_ran(watched)


@needs_browser
def test_the_browser_itself_would_refuse_markup_that_slipped_through(watched, tmp_path):
    "The second wall: the policy, with the escaping taken away."
    path = review.review_page([harmless(critique='HERE')], tmp_path/'review.html')
    path.write_text(path.read_text().replace('HERE', HOSTILE['script'] + HOSTILE['image'] + HOSTILE['style']
                                             + HOSTILE['frames']))
    watched.goto(path.as_uri())
    watched.wait_for_timeout(300)
    assert watched.evaluate('window.pwned') is None
    assert watched.refused and [s for s in watched.seen if s.startswith(('dialog', 'request'))
                                and s not in watched.refused] == []


@needs_browser
def test_hostile_text_is_shown_in_the_widget_and_does_not_run(watched, tmp_path):
    "The widget's HTML goes into a page without any policy, as a notebook is one."
    import ipywidgets
    rows = hostile_rows()
    widget = review.ReviewWidget(rows, tmp_path/'decisions.jsonl', HOSTILE['image'])
    def kinds(w):
        return [w, *(k for c in getattr(w, 'children', ()) for k in kinds(c))]
    raw = [w for w in kinds(widget.box) if isinstance(w, ipywidgets.HTML)]
    assert raw == [widget.view] and not any(getattr(w, 'description_allow_html', False) for w in kinds(widget.box))
    watched.set_content('<body></body>')
    for i in range(len(rows)):
        watched.evaluate('h => { const d = document.createElement("div"); document.body.append(d); d.innerHTML = h; }',
                         widget.view.value)
        widget.buttons['next'].click()
    watched.evaluate("document.querySelectorAll('body > div > style').forEach(e => e.remove())")
    assert watched.locator('.mcft-row').count() == len(rows)
    text = ''.join(watched.locator('.mcft-row').nth(1).inner_text().split())
    assert text.count(visible(HOSTILE['script'])) >= 5
    assert_nothing_ran(watched)


@needs_browser
def test_hostile_text_is_shown_in_the_docs_and_does_not_run(watched, tmp_path):
    "A page of the site with model text as printed, as a table and as a row to review."
    import pandas as pd
    row = hostile_rows()[-1]
    def html(text):
        return nbformat.v4.new_output('execute_result', data={'text/html': text, 'text/plain': ''})
    critiques = pd.DataFrame([row])[['id', 'critique']]
    nb = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell('# Page'),
        nbformat.v4.new_code_cell('print(critique)',
                                  outputs=[nbformat.v4.new_output('stream', name='stdout', text=row['critique'])]),
        nbformat.v4.new_code_cell('table', outputs=[html(critiques.to_html())]),
        nbformat.v4.new_code_cell('row', outputs=[html(f'<style>{review.STYLE}</style>{review.row_html(row)}')])])
    (tmp_path/'site').mkdir()
    nbformat.write(nb, tmp_path/'site'/'index.ipynb')
    command = [sys.executable, '-m', 'sphinx', '-q', '-b', 'html', '-c', str(ROOT/'docs'), str(tmp_path/'site'),
               str(tmp_path/'out')]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    watched.goto((tmp_path/'out'/'index.html').as_uri())
    text = ''.join(watched.locator('article.bd-article').inner_text().split())
    assert text.count(''.join(HOSTILE['script'].split())) >= 3
    watched.wait_for_timeout(300)
    assert watched.evaluate('window.pwned') is None
    assert [s for s in watched.seen if s.startswith(('dialog', 'request'))] == []


@needs_browser
def test_decisions_from_the_keyboard_to_the_reviewed_set(watched, tmp_path):
    rows = [harmless(id=f'c.{i}', row_hash='') for i in range(4)]
    critiques = [dict(r, rollout_id='r', problem_id='p', prompt='none', answer_match=True) for r in rows]
    rows = [dict(r, row_hash=review.row_hash(c)) for r, c in zip(rows, critiques)]
    path = review.review_page(rows, tmp_path/'review.html')
    watched.goto(path.as_uri())
    watched.keyboard.press('k')
    assert 'Your name first' in watched.locator('.says').inner_text()
    assert watched.locator('.count').inner_text() == '0 of 4 decided'
    watched.keyboard.type('Ada Ké')
    watched.keyboard.press('Escape')
    watched.keyboard.press('k')
    watched.keyboard.press('d')
    watched.keyboard.press('e')
    field = watched.locator('article:not([hidden]) textarea[name=critique]')
    assert field.input_value() == rows[2]['critique']
    field.fill('Two and two is "four" — não cinco.\nkd')
    watched.locator('[data-do=edit]').click()
    assert watched.locator('.count').inner_text() == '3 of 4 decided'
    watched.keyboard.press('k')
    watched.keyboard.press('ArrowLeft')
    watched.keyboard.press('k')
    watched.reload()
    assert watched.locator('.count').inner_text() == '4 of 4 decided'
    assert watched.locator('#who').input_value() == 'Ada Ké'
    with watched.expect_download() as caught: watched.keyboard.press('s')
    caught.value.save_as(tmp_path/'decisions.jsonl')
    decisions = read_rows(tmp_path/'decisions.jsonl', 'decisions')
    assert [(d['row_id'], d['decision']) for d in decisions] == [('c.0', 'keep'), ('c.1', 'drop'), ('c.2', 'edit'),
                                                                 ('c.3', 'keep'), ('c.2', 'keep')]
    assert {d['reviewer'] for d in decisions} == {'Ada Ké'}
    assert decisions[2]['critique'] == 'Two and two is "four" — não cinco.\nkd'
    after = review.apply_decisions(critiques, decisions[:-1], [dict(id='p', answer='4')])
    assert [c['status'] for c in after] == ['kept', 'dropped', 'kept',
                                            'kept'] and after[2]['critique'] == decisions[2]['critique']
    assert after[2]['teacher'] == 't, edited'
    assert watched.seen == []


@needs_browser
def test_two_reviewers_share_a_browser_but_not_their_decisions(watched, tmp_path):
    watched.goto(review.review_page([harmless(id='c.0'), harmless(id='c.1')], tmp_path/'review.html').as_uri())
    for name, key in (('Ada', 'k'), ('Bob', 'd')):
        watched.locator('#who').fill(name)
        watched.keyboard.press('Escape')
        watched.locator('.index button').first.click()
        watched.keyboard.press(key)
        assert watched.locator('.count').inner_text() == '1 of 2 decided'
    with watched.expect_download() as caught: watched.locator('[data-do=download]').click()
    lines = [check_row(json.loads(s), 'decisions') for s in Path(caught.value.path()).read_text().splitlines()]
    assert review.agreement(lines)[['first', 'second', 'rows', 'same']].values.tolist() == [['Ada', 'Bob', 1, 0]]


@needs_browser
def test_an_edit_that_cannot_be_a_target_is_not_taken(watched, tmp_path):
    watched.goto(review.review_page([harmless()], tmp_path/'review.html').as_uri())
    watched.locator('#who').fill('Ada')
    field = watched.locator('textarea[name=critique]')
    for text, says in ((' ', 'No part may be empty'), ('so </critique>', 'No part may hold a tag')):
        watched.locator('[data-do=edit]').click()
        field.fill(text)
        watched.locator('[data-do=edit]').click()
        assert says in watched.locator('.says').inner_text()
        field.press('Escape')
    assert watched.locator('.count').inner_text() == '0 of 1 decided'


@needs_browser
@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (390, 'light'), (390, 'dark')])
def test_nothing_is_wider_than_the_window(browser, tmp_path, width, scheme):
    long = harmless(id='c.' + 'x'*200, critique='$' + '+'.join(f'x_{{{i}}}' for i in range(60)) + '$ ' + 'y'*500)
    context = browser.new_context(viewport=dict(width=width, height=844), color_scheme=scheme)
    page = context.new_page()
    page.goto(review.review_page([long]*30, tmp_path/'review.html').as_uri())
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    colour = page.evaluate("getComputedStyle(document.querySelector('article')).backgroundColor")
    assert (sum(map(int, colour[4:-1].split(','))) < 300) == (scheme == 'dark')
    if width == 1280:
        assert len({b.bounding_box()['y'] for b in page.locator('article:not([hidden]) .parts section').all()}) == 1
    context.close()


def test_formulas_are_bounded_in_time_and_never_raise():
    import random
    import time
    rng, t0 = random.Random(0), time.time()
    pieces = ['<b>', '\\text{', '$', '\\href{', '\\sqrt[', ']', '\x00', '\\color{red}', '{', '}', '\\frac', '^', '_',
              '\\left(', '\\right)', '&', '\\\\', '\\begin{matrix}', '\\end{matrix}', 'x']
    for _ in range(1500):
        out = review.formula(''.join(rng.choice(pieces) for _ in range(rng.randint(1, 60))))
        assert '<b>' not in out.split('>', 1)[1]
    for bomb in ('{'*1900, '\\sqrt{'*300 + '}'*300, 'x^'*900, '\\frac'*380, '\\left('*300): review.formula(bomb)
    review.prose('$'*20000 + '\\boxed{'*5000 + '{'*20000)
    assert time.time() - t0 < 30


def test_the_stage_from_files_to_the_reviewed_set(tmp_path):
    cfg = review.ReviewConfig(n_rows=10, out_dir=tmp_path/'run')
    sample, problems = review.sample_of(cfg), read_rows(cfg.problems, 'problems')
    for name, drops in (('ada', 2), ('bob', 3)):
        said = [review.decision_row(r, name, 'drop' if i < drops else 'keep') for i, r in enumerate(sample)]
        write_rows(tmp_path/f'{name}.jsonl', said, 'decisions')
    cfg = replace(cfg, decisions=(str(tmp_path/'ada.jsonl'), str(tmp_path/'bob.jsonl')))
    table = review.run_review(cfg)
    counts = dict(zip(table.step, table.rows))
    assert (counts['reviewed'], counts['kept before'] - counts['kept after'], counts['dropped by review']) == (10, 3, 3)
    reviewed = read_rows(tmp_path/'run'/'critiques.jsonl', 'critiques')
    assert {c['id'] for c in reviewed if c['reason'] == 'review: dropped'} == {r['id'] for r in sample[:3]}
    assert 'ada,bob,10,9' in (tmp_path/'run'/'agreement.csv').read_text()
    assert table.equals(review.run_review(cfg)) and len(problems) > 0


def test_decisions_become_the_reviewed_set():
    chain = '<think>\n(a)47+38=75\n(b)75*3=225\n</think>\n\\boxed{225}'
    texts = dict(critique='47+38 is 85.', reasoning='(a)47+38=85\n(b)85*3=255', answer='255')
    made = dict(problem_id='p', question='q', teacher='t', status='kept', reason='', prompt='none', answer_match=True)
    critiques = [dict(made, id='c0', rollout_id='r0', rollout=chain, **texts),
                 dict(made, id='c1', rollout_id='r1', rollout='\\boxed{255}', status='dropped',
                      reason='rollout cut off', critique='', reasoning='', answer='')]
    rollouts = [dict(id='r0', is_correct=False), dict(id='r1', is_correct=True)]
    problems = [dict(id='p', answer='255', family='chain')]
    shown = review.review_rows(critiques, rollouts, problems)

    def said(who, what, when='1', row=0, **kw):
        return dict(review.decision_row(shown[row], who, what, *([texts | kw] if what == 'edit' else [])), time=when)

    def outcome(*decisions):
        first = review.apply_decisions(critiques, decisions, problems)[0]
        return first['status'], first['reason']
    assert outcome() == ('kept', '')
    assert outcome(said('Ada', 'keep')) == ('kept', '')
    assert outcome(said('Ada', 'drop'), said('Ada', 'edit', '2')) == ('kept', '')
    assert outcome(said('Ada', 'drop'), said('Bob', 'edit', '2')) == ('dropped', 'review: dropped')
    two = [said('Ada', 'edit'), said('Bob', 'edit', '2', critique='Line 1 has a slip: 85.')]
    assert review.apply_decisions(critiques, two, problems)[0]['critique'] == 'Line 1 has a slip: 85.'
    for change, fault in ((dict(answer='225'), 'wrong answer'), (dict(critique=' '), 'empty critique'),
                          (dict(critique='a <critique> in it'), 'critique holds the tag <critique>')):
        assert outcome(said('Ada', 'edit', **change)) == ('dropped', f'review: edit has a fault: {fault}')
    nothing = review.apply_decisions(critiques, [said('Ada', 'keep', row=1)], problems)
    assert nothing[1]['status'] == 'dropped'
    for change, why in ((dict(row_id='c9'), "decided on 'c9', which is not among"),
                        (dict(row_hash='0'), "decided on another text of 'c0'")):
        with pytest.raises(ValueError, match=why):
            review.apply_decisions(critiques, [dict(said('Ada', 'keep'), **change)], problems)
