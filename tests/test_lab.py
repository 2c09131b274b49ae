"""JupyterLab as `make lab` starts it, in a real browser, on a copy.

03 and 09 run by *Run All*, with the mask view and the review widget on the screen. And what
every committed notebook shows a reader: no error stream, no error, no stack of logs."""
import csv
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import sync_playwright

from conftest import BROWSER, ROOT, needs_browser, notebooks
from measure.notebooks import FIELDS, error_lines, long_outputs
from measure.notebooks import notebooks as measured_notebooks
from test_setup import copy_to

PATIENCE = 900  # seconds for a notebook, on a machine that does other things too


def set_parameter(path: Path, line: str, new: str):
    "Change one default in a notebook's parameters cell."
    text = path.read_text(encoding='utf-8')
    line, new = (f'"{words}  # ' for words in (line, new))  # as the cell has it, not the class
    assert text.count(line) == 1, f'{path.name} has no parameter {line!r}'
    path.write_text(text.replace(line, new), encoding='utf-8')


def answers(url: str) -> bool:
    "Is somebody there?"
    try: return urllib.request.urlopen(url, timeout=30).status == 200
    except OSError: return False


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A running JupyterLab on a copy, with settings of its own: (address, folder of the notebooks, token)."
    copy, own = copy_to(tmp_path_factory.mktemp('clone')), tmp_path_factory.mktemp('jupyter')
    set_parameter(copy/'nbs'/'around/02_review.ipynb', 'interactive: bool = False', 'interactive: bool = True')
    said = subprocess.run(['make', '--no-print-directory', '-n', 'lab'], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=60).stdout
    # a make that runs these tests has it say where it is
    command = [line for line in said.splitlines() if not line.startswith('make')][-1].split()
    assert command[:3] == ['.venv/bin/jupyter', 'lab', 'nbs']
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    extra = ['--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
             f'--IdentityProvider.token={token}']
    env = {k: v for k, v in os.environ.items() if k not in ('MCFT_QUIET', 'CI', 'MCFT_ROOT')}
    env |= {f'JUPYTER{k}': str(own/k.strip('_').lower())
            for k in ('_CONFIG_DIR', '_DATA_DIR', '_RUNTIME_DIR', 'LAB_SETTINGS_DIR', 'LAB_WORKSPACES_DIR')}
    with (own/'log').open('w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyter', *command[1:], *extra], cwd=copy, env=env,
                                  stdout=log, stderr=log)
        try:
            until = time.monotonic() + 120
            while not answers(f'http://127.0.0.1:{port}/api'):
                assert server.poll() is None and time.monotonic() < until, (own/'log').read_text()[-3000:]
                time.sleep(.5)
            yield f'http://127.0.0.1:{port}', copy/'nbs', token
        finally:
            server.terminate()
            server.wait(60)


@pytest.fixture(scope='module')
def page():
    "A window that notes requests to other places."
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER)
        page = browser.new_page(viewport=dict(width=1280, height=900))
        page.outside = []
        page.on('request', lambda r: page.outside.append(r.url)
                if not r.url.startswith(('http://127.0.0.1:', 'data:', 'blob:')) else None)
        yield page
        browser.close()


def saved(path: Path):
    "A notebook that a server writes to, read when it is whole."
    for _ in range(100):
        try: return nbformat.read(path, 4)
        except nbformat.reader.NotJSONError: time.sleep(.1)
    return nbformat.read(path, 4)


def run_all(page, lab, name: str):
    "Open a notebook, choose Run > Run All Cells, and wait until the saved file holds every cell's run."
    address, folder, token = lab
    page.goto(f'{address}/lab/tree/{name}?token={token}&reset', timeout=300_000)
    page.locator('#jp-main-statusbar').get_by_text(re.compile(r'^Python 3.* \| Idle$')).wait_for(timeout=300_000)
    page.locator('.lm-MenuBar-item', has_text=re.compile('^Run$')).click()
    page.locator('[data-command="runmenu:run-all"]').click()
    until = time.monotonic() + PATIENCE
    while True:
        page.wait_for_timeout(5000)
        page.keyboard.press('Control+s')
        page.wait_for_timeout(2000)
        nb = saved(folder/name)
        code = [c for c in nb.cells if c.cell_type == 'code' and c.source.strip()]
        errors = [o for c in code for o in c.outputs if o.output_type == 'error']
        assert not errors, '\n'.join(errors[0].traceback)
        if all(c.execution_count for c in code): return nb
        assert time.monotonic() < until, f'{name}: {sum(not c.execution_count for c in code)} cells were not run'


@needs_browser
def test_run_all_shows_the_mask_view(page, lab):
    nb = run_all(page, lab, '03_masking.ipynb')
    assert error_lines(nb) == [] and long_outputs(nb) == []
    masked = page.locator('.jp-OutputArea-output span[title="masked: no label"]', has_text=re.compile(r'\w'))
    masked.last.scroll_into_view_if_needed(timeout=60_000)
    assert (masked.last.is_visible()
            and 'line-through' in masked.last.evaluate('e => getComputedStyle(e).textDecorationLine'))
    assert page.locator('.jp-OutputArea-output span[title="trained on"]').count() > 0
    assert page.outside == []


@needs_browser
def test_run_all_shows_the_review_widget_and_a_click_is_kept(page, lab):
    nb = run_all(page, lab, 'around/02_review.ipynb')
    assert error_lines(nb) == []
    widget = page.locator('.jp-OutputArea-output .widget-vbox', has=page.get_by_role('button', name='Keep')).last
    widget.scroll_into_view_if_needed(timeout=60_000)
    name = widget.get_by_placeholder('your name')
    name.fill('Ada')
    name.press('Enter')
    widget.get_by_text(re.compile('0 decided')).wait_for(timeout=60_000)
    widget.get_by_role('button', name='Keep').click()
    widget.get_by_text(re.compile('1 decided')).wait_for(timeout=60_000)
    kept = [json.loads(line)
            for line in (lab[1].parent/'runs'/'smoke'/'decisions'/'reviewer.jsonl').read_text().splitlines()]
    assert [(d['reviewer'], d['decision']) for d in kept] == [('Ada', 'keep')] and page.outside == []


@pytest.mark.parametrize('name', notebooks())
def test_committed_outputs_are_quiet(name):
    nb = nbformat.read(ROOT/'nbs'/name, 4)
    assert error_lines(nb) == [], f'{name}: warnings or logs in its outputs'
    assert not [o for c in nb.cells for o in c.get('outputs', []) if o.output_type == 'error']
    assert long_outputs(nb) == [], f'{name}: a stack of logs in its outputs'


def test_committed_times_keep_their_bounds():
    "The stages and the examples at least. On the processors: the clock also counts what else the machine did."
    rows = list(csv.DictReader((ROOT/'data'/'results'/'notebook_times.csv').open(encoding='utf-8')))
    names, known = {r['notebook'] for r in rows}, {p.stem for p in measured_notebooks([])}
    first = {p.stem for d in ('nbs', 'examples') for p in (ROOT/d).glob('[01]*.ipynb') if p.stem < '09'}
    assert list(rows[0]) == FIELDS and first <= names <= known
    for r in rows:
        assert (float(r['cpu_seconds']) <= float(r['bound'].split()[1])
                and r['long_outputs'] == r['error_lines'] == '0'), r
