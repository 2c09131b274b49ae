"""What the tests share: where the repository is, its settings, its notebooks; which tests are slow, and their order."""
import os
import shutil
import signal
import sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT/'docs'), str(ROOT)]
# The tests of a notebook start kernels and processes: let all of them be polite, offline and quiet.
os.environ |= dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', GOMP_SPINCOUNT='0', TOKENIZERS_PARALLELISM='false',
                   HF_HUB_OFFLINE='1', MCFT_QUIET='1')

# The same examples in every run, so that a red run says something of the change; `pytest --hypothesis-profile default`
# searches anew.
settings.register_profile('fixed', derandomize=True)
settings.load_profile('fixed')

# A shell that starts the tests in its background has them ignore Ctrl-C, and their processes with them: the tests of
# Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chromium-browser'))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason='no Chromium: apt-get install chromium, or on macOS brew '
                                   'install --cask chromium')
needs_files = pytest.mark.skipif(not os.environ.get('MCFT_DATA_DIR'), reason='the released files are not '
                                 'committed: set MCFT_DATA_DIR to a folder that has them')
# What `make test` leaves to `make test-all`: files, or beginnings of the names of tests. Each group is a marker, and
# `slow` marks all of them. The group `browser` is what `needs_browser` stands above.
GROUPS = dict(
    commands='test_howto.py::test_commands test_commands.py::test_commands test_commands.py::test_small '
             'test_commands.py::test_publish test_examples.py::test_its test_examples.py::test_run_all',
    notebooks='test_notebooks.py::test_runs',
    workflow='test_workflow.py test_cluster.py test_techniques.py::test_a_small test_rehearsal.py::test_the_rehearsal '
             'test_language_model.py::test_the_whole test_language_model.py::test_dpo',
    packaging='test_packaging.py::test_wheel test_packaging.py::test_the_ test_packaging.py::test_every_module '
              'test_packaging.py::test_types test_packaging.py::test_grading',
    kills='test_train.py::test_kill test_midtrain.py::test_kill test_preference.py::test_kill test_rl.py::test_kill '
          'test_eval.py::test_kills test_data.py::test_killed test_teacher.py::test_a_fifth '
          'test_grading.py::test_killed test_devices.py',
    servers='test_generate.py::test_a_server test_generate.py::test_a_second test_generate.py::test_a_model_that '
            'test_teacher.py::test_transformers',
    fuzz='test_grading.py::test_every_adversarial',
    benches='test_train.py::test_rows_of_bench test_grading.py::test_benchmarks test_teacher.py::test_bench '
            'test_masking.py::test_bench test_generate.py::test_benchmark')
# Tests of these need nothing of each other, and go to whichever worker is free; other files are a worker's as a whole.
ALONE = tuple(f'tests/{name}' for group in ('commands', 'notebooks') for name in GROUPS[group].split())
# The longest first: what begins last should be short.
FIRST = ('test_workflow test_site test_howto.py test_notebooks.py::test_runs_from_the_root[09_rl test_lab test_train '
         'test_teacher test_grading test_masking').split()


def notebooks(glob='[!_.]*.ipynb') -> list:
    "Notebooks by their path below nbs/, in order."
    return sorted(p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').rglob(glob)
                  if '.ipynb_checkpoints' not in p.parts)


def stages() -> list:
    "The notebooks of the paper's six stages."
    return sorted(p.name for p in (ROOT/'nbs').glob('0[1-6]_*.ipynb'))


def cells(name: str):
    "The cells of a notebook."
    return nbformat.read(ROOT/'nbs'/name, 4).cells


@pytest.fixture(scope='session')
def settings():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


# Which tests run, in what order, and where.

def pytest_configure(config):
    for name in ('slow', 'browser', *GROUPS): config.addinivalue_line('markers', f'{name}: left out by `make test`')


def pytest_itemcollected(item):
    name = item.nodeid.removeprefix('tests/')
    groups = [group for group, names in GROUPS.items() if name.startswith(tuple(names.split()))]
    if needs_browser.mark in item.own_markers: groups.append('browser')
    for group in groups and ['slow', *groups]: item.add_marker(group)


def pytest_collection_modifyitems(items):
    def place(item): return next((i for i, name in enumerate(FIRST) if name in item.nodeid), len(FIRST))
    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Spread(LoadScopeScheduling):
        def _split_scope(self, nodeid): return nodeid if nodeid.startswith(ALONE) else nodeid.split('::')[0]

    config.option.loadscopereorder = False
    return Spread(config, log)


def pytest_terminal_summary(terminalreporter):
    "What was left out, and what it wants: a line a reason."
    reasons = Counter(r.longrepr[2].removeprefix('Skipped: ') for r in terminalreporter.stats.get('skipped', []))
    for reason, n in reasons.items(): terminalreporter.write_line(f'{n} skipped: {reason}')
