"""What the tests share: where the repository is, its settings, its notebooks."""
import os
import signal
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT/'docs'), str(ROOT)]
# The tests of a notebook start kernels and processes: let all of them be polite, offline and quiet.
os.environ |= dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', GOMP_SPINCOUNT='0', TOKENIZERS_PARALLELISM='false',
                   HF_HUB_OFFLINE='1', MCFT_QUIET='1')

# A shell that starts the tests in its background has them ignore Ctrl-C, and their processes with them: the tests of
# Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
