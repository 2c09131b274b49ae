"""Every command of the essay and of the how-to pages, as written, page by page in a clean copy of the repository."""
import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack

import pytest

from conftest import ROOT
from fault_server import FaultServer
from mcft.core import read_rows
from test_setup import copy_to

PAGES = sorted(p.stem for p in (ROOT/'docs'/'pages').glob('*.md')
               if re.search('^```(bash|python)', p.read_text(encoding='utf-8'), re.M))
LEAVES = dict(  # page -> what must be there afterwards
    stages=['runs/essay/eval/run.json'], howto_model=['runs/mine/eval/run.json', 'runs/mine/train/model.safetensors'],
    howto_teacher=['runs/mine/critique/run.json'],
    howto_continue=['runs/next/eval-grpo/run.json', 'runs/next/mid-mcft/model.safetensors'],
    howto_arm=['runs/mine/grid/06_ablation/run.json', 'runs/mine/grid/04_train/mcft-0.20-spans-s0/model.safetensors'],
    howto_mask_unit=[],
    howto_benchmark=['runs/mine/benchmark/verdicts.jsonl', 'runs/mine/overlap/overlap.csv'],
    howto_cluster=['runs/array/results/pocket_runs.csv', 'runs/array/pair/run.json'])


def blocks(page: str) -> list:  # (language, code)
    "The code of a page; the script for another model is run by tests/test_masking.py."
    text = (ROOT/'docs'/'pages'/f'{page}.md').read_text(encoding='utf-8')
    found = [(lang, code) for lang, code in re.findall(r'^```(bash|python)\n(.*?)^```', text, re.S | re.M)
             if 'your/model' not in code]
    # Python alone is one program
    return found if any(lang == 'bash' for lang, _ in found) else [('python', '\n'.join(code for _, code in found))]


def run_page(page: str, folder) -> list:  # (code, exit status, output) of each block, up to the first that fails
    "A copy of the working tree, and in it one block after the other."
    copy_to(folder)
    out = []
    with ExitStack() as stack:
        env = dict(os.environ, PYTHONPATH=str(folder), MCFT_ROOT=str(folder))
        if page == 'howto_teacher': env |= dict(TEACHER_URL=stack.enter_context(FaultServer()).url, MY_KEY='any')
        for lang, code in blocks(page):
            command = ['bash', '-euo', 'pipefail', '-c', code] if lang == 'bash' else [sys.executable, '-c', code]
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
            out.append((code, done.returncode, done.stdout + done.stderr))
    return out


def test_pages_with_commands_are_listed():
    "A page is run once somebody has looked at what its commands do: they act on the environment of the tests."
    assert set(LEAVES) == set(PAGES)
    assert not [page for page in PAGES for _, code in blocks(page) if 'pip install' in code]


@pytest.mark.parametrize('page', LEAVES)
def test_commands_run_as_written(page, tmp_path):
    for i, (code, status, said) in enumerate(run_page(page, tmp_path)):
        # the estimate, before anything is paid
        if page == 'howto_teacher' and i == 0: assert status != 0 and 'nothing was sent' in said, said[-2000:]
        else: assert status == 0, f'{code}\n{said[-3000:]}'
    for f in LEAVES[page]: assert (tmp_path/f).exists(), f'{page}: no {f}'
    if page == 'howto_teacher':
        assert {r['teacher'] for r in read_rows(tmp_path/'runs/mine/critique/critiques.jsonl',
                                                'critiques')} == {'openai:my-model'}
    if page == 'stages':
        assert json.loads((tmp_path/'runs/essay/train/run.json').read_text())['params']['mask_rate'] == 0.2
