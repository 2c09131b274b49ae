"""The built site as people meet it, in Chromium: on a desk and on a phone, light and dark, by keyboard and by search.

And where each table and figure comes from."""
import functools
import http.server
import re
import threading
from importlib.resources import files

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

import convert
from conftest import BROWSER, ROOT, needs_browser, notebooks
from test_docs import SITE, site  # noqa: F401  a fixture: the pages, built if they are missing

AXE = (files('axe_playwright_python')/'axe.min.js').read_text(encoding='utf-8')
NO_TEXT = ('search', 'genindex')  # made by Sphinx
FOUND = sorted(p.stem for p in (ROOT/'docs').glob('found*.md'))
PAGES = sorted({*map(convert.page_name, notebooks()), *(p.stem for p in (ROOT/'docs'/'pages').glob('*.md')),
                *(n.lower() for n in convert.ROOT_PAGES if (ROOT/f'{n}.md').exists()),
                *(f'example_{convert.page_name(p.name)}' for p in (ROOT/'examples').glob('[!_.]*.ipynb')), 'api',
                *FOUND, 'results', 'engineering', *NO_TEXT})
DESK, PHONE = dict(width=1280, height=900), dict(width=390, height=844)
OUTSIDE = """() => [...document.querySelectorAll('.bd-article *')].filter(e => {
    const box = e.getBoundingClientRect()
    if (!box.width || !box.height || box.right <= innerWidth + 1) return false
    for (let p = e.parentElement; p; p = p.parentElement)
        if (/auto|scroll|hidden/.test(getComputedStyle(p).overflowX)) return false
    return true}).slice(0, 3).map(e => e.outerHTML.slice(0, 120))"""
REACHED = """() => [...document.querySelectorAll('pre, .nboutput > .output_area, .cell_output > .output, \
.jp-RenderedHTMLCommon, .pst-scrollable-table-container')].every(
    e => e.tabIndex >= 0 || (e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight))"""
IMAGES = """() => [...document.images].filter(i => i.loading == 'lazy' ? false : !(i.complete && i.naturalWidth))
    .map(i => 'not loaded: ' + i.src)
    .concat([...document.querySelectorAll('img, [role=img]:not([aria-hidden=true])')]
        .filter(i => !(i.alt || i.getAttribute('aria-label') || i.getAttribute('aria-labelledby')
                       || i.getAttribute('title')))
        .map(i => 'no text: ' + i.outerHTML.slice(0, 120)))"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    "Serves without a word."
    def log_message(self, *_): pass


@pytest.fixture(scope='module')
def address(site):  # noqa: F811
    "The site behind a server of this machine."
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(SITE))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture(scope='module')
def context():
    "One browser for all pages."
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER)
        yield browser.new_context(viewport=DESK, color_scheme='light')
        browser.close()


@pytest.fixture
def opened(context, address):
    "A function that opens a page on a desk, light; what went wrong stands in `page.wrong`."
    pages = []
    def go(name, query=''):
        page = context.new_page()
        pages.append(page)
        page.wrong = []
        page.on('console', lambda m: page.wrong.append(f'{m.type}: {m.text}') if m.type in ('error', 'warning')
                else None)
        page.on('pageerror', lambda e: page.wrong.append(f'error: {e}'))
        page.on('request', lambda r: page.wrong.append(f'outside: {r.url}')
                if not r.url.startswith((address, 'data:', 'blob:')) else None)
        page.on('requestfailed', lambda r: page.wrong.append(f'failed: {r.url}'))
        page.on('response', lambda r: page.wrong.append(f'{r.status}: {r.url}') if r.status >= 400 else None)
        page.goto(f'{address}/{name}.html{query}', wait_until='load')
        return page
    yield go
    for page in pages: page.close()


def violations(page, code=False, **how) -> list:  # of impact serious or critical
    """What axe-core says about the page as it stands. The colours of code are the same everywhere and most of the
    work: with `code` they are looked at too."""
    page.evaluate('s => window.axe || (0, eval)(s)', AXE)
    found = page.evaluate("([not, how]) => axe.run({exclude: not}, how).then(r => r.violations.map(v => [v.id, "
                          "v.impact, v.nodes.length, v.nodes[0].html.slice(0, 160), v.nodes[0].failureSummary]))",
                          [[] if code else [['.highlight']], dict(how, resultTypes=['violations'], preload=False)])
    return [v for v in found if v[1] in ('serious', 'critical')]


def looks_well(page, width) -> list:  # what does not
    "Nothing beside the screen, every picture there and told in words."
    wide = page.evaluate('document.documentElement.scrollWidth')
    return [f'{wide} pixels wide']*(wide > width) + page.evaluate(OUTSIDE) + page.evaluate(IMAGES)


def on_a_phone_at_night(page):
    """A narrow screen and a dark theme, as the system asks for it; the theme's own script needs a moment to put what
    now scrolls into reach of the keyboard."""
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme='dark')
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    page.wait_for_function(REACHED, timeout=10_000)


def test_every_page_is_looked_at(site):  # noqa: F811
    assert {p.stem for p in site} == set(PAGES)


@needs_browser
@pytest.mark.parametrize('name', PAGES)
def test_page_in_the_browser(opened, name):
    """On a desk and on a phone, light and dark: no error, nothing missing, nothing from elsewhere, nothing cut off,
    no serious violation of axe-core."""
    page = opened(name)
    assert looks_well(page, DESK['width']) == []
    assert violations(page) == []
    on_a_phone_at_night(page)
    assert looks_well(page, PHONE['width']) == []
    assert violations(page, runOnly=['color-contrast', 'scrollable-region-focusable']) == []
    assert page.wrong == []


@needs_browser
def test_colours_of_code(opened):
    page = opened('core')
    assert violations(page, code=True, runOnly=['color-contrast']) == []
    on_a_phone_at_night(page)
    assert violations(page, code=True, runOnly=['color-contrast']) == []


@needs_browser
def test_search_finds_critique(opened):
    "By address, and as a reader does it: a shortcut, a word, Enter."
    page = opened('search', '?q=critique')
    page.wait_for_selector('#search-results li a')
    assert page.locator('#search-results li').count() >= 5
    page = opened('index')
    page.keyboard.press('Control+k')
    page.keyboard.type('critique')
    page.keyboard.press('Enter')
    page.wait_for_url('**/search.html?q=critique*')
    page.wait_for_load_state('networkidle')  # it reads each page it found, for an excerpt
    page.locator('#search-results li a').first.click()
    page.wait_for_load_state()
    assert 'critique' in page.locator('main').inner_text().lower() and page.wrong == []


@needs_browser
def test_everything_is_reached_by_tab(opened):
    "From the top of the home page each visible link and button takes the focus in turn, and shows it."
    page = opened('index')
    reach = ("e => e.matches('a[href], button, summary, input, [tabindex=\"0\"]') && e.tabIndex >= 0 "
             "&& e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length")
    want = page.evaluate(f"[...document.querySelectorAll('body *')].filter({reach}).length")
    seen = page.evaluate_handle('new Set()')
    for _ in range(want + 10):
        page.keyboard.press('Tab')
        page.evaluate("s => { const e = document.activeElement; if (e !== document.body) { s.add(e); if "
                      "(getComputedStyle(e).outlineStyle == 'none' && getComputedStyle(e).boxShadow == 'none') "
                      "e.dataset.dull = 1 } }", seen)
    missed = page.evaluate(f"s => [...document.querySelectorAll('body *')].filter({reach}).filter(e => "
                           "!s.has(e)).map(e => e.outerHTML.slice(0, 100))", seen)
    assert want > 30 and missed == []
    assert page.evaluate("[...document.querySelectorAll('[data-dull]')].map(e => e.outerHTML.slice(0, 100))") == []


@needs_browser
def test_the_switch_of_the_theme_is_kept(opened):
    page = opened('index')
    def ground(p):
        return p.evaluate("getComputedStyle(document.body).backgroundColor")
    light = ground(page)
    page.locator('button.theme-switch-button:visible').first.click()
    page.locator('button.theme-change-button[data-mode=dark]:visible').click()
    page.wait_for_function('was => getComputedStyle(document.body).backgroundColor != was', arg=light)
    page.goto(page.url.replace('index', 'stages'))
    assert page.evaluate('document.documentElement.dataset.theme') == 'dark'
    ink = page.evaluate("getComputedStyle(document.querySelector('.drawing text')).fill")
    page.evaluate('localStorage.clear()')
    assert sum(map(int, re.findall(r'\d+', ink)[:3])) > 3*128, 'the text of a drawing stays dark on a dark page'


# Where things come from.

def article(path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser').select_one('article')


def measured(table) -> bool:
    "A table whose cells hold a decimal, a percentage or a count of three digits."
    return any(re.fullmatch(r'[-−+]?(\d+\.\d+ ?%?|\d+ ?%|\d{3,})', c.get_text(strip=True))
               for c in table.find_all('td'))


@pytest.mark.parametrize('name', [p for p in PAGES if p not in NO_TEXT])
def test_every_table_and_figure_says_where_it_comes_from(site, name):  # noqa: F811
    """Each is followed, before the next heading, by rows, cell or script, command and commit. A table of words in the
    prose, such as the meaning of switches, has no rows."""
    path = SITE/f'{name}.html'
    waiting = 0
    for e in article(path).find_all(['table', 'img', 'svg', 'h1', 'h2', 'h3', 'div']):
        prose = (e.name == 'table' and name not in ('results', 'engineering', *FOUND)
                 and not e.find_parent(class_='cell_output'))
        if prose:
            assert not measured(e), f'{name}: a table in the prose holds numbers: {e.get_text(" ", strip=True)[:200]}'
        elif e.name == 'img' or e.name == 'table' or e.name == 'svg' and 'formula' not in e.get('class', []):
            waiting += 1
        elif e.name.startswith('h'):
            assert not waiting, (
                f'{name}: {waiting} tables or figures above "{e.get_text()}" do not say where they come from')
        elif 'provenance' in e.get('class', []):
            rows, text = [a['href'] for a in e.find_all('a')
                          if a['href'].endswith(('.csv', '.jsonl', '.parquet'))], ' '.join(e.get_text(' ').split())
            assert waiting and len(rows) == waiting or name in ('results', 'engineering',
                                                                'found') and len(rows) == 1, f'{name}: {text}'
            said = re.search(r'commit [0-9a-f]{7}|run at [0-9a-f]{7}|commit not recorded', text)
            assert e.find('code') and said, text
            assert any('#' in a['href'] for a in e.find_all('a')) or 'of ' not in text, text
            waiting = 0
    assert not waiting, f'{name}: {waiting} tables or figures at its end do not say where they come from'


def test_the_home_page_is_read_in_three_minutes():
    words = article(SITE/'index.html').get_text(' ').split()
    assert len(words)/230 < 3, f'{len(words)} words'
