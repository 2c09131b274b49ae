"""Package metadata for pip. Everything is read from settings.ini; nothing is stated here."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']


def lines(key):
    "The requirements listed under `key`, one a line."
    return [o.strip() for o in cfg.get(key, '').splitlines() if o.strip()]


def extras():
    """An extra for each `X_requirements`; `dev` holds its own and all others but gpu and slurm, which not every
    machine can use; `gpu` holds those of train, for what it brings asks for less narrow versions of them."""
    found = {k.removesuffix('_requirements'): lines(k) for k in cfg if k.endswith('_requirements')}
    dev = [r for k in found if k not in ('gpu', 'slurm') for r in found[k]]
    return {**found, 'dev': dev, 'gpu': found['train'] + found['gpu']}


class WithFiles(build_py):
    """The small files that the library reads travel with it, in mcft/repo/; a clone, also an editable one, has them
    in their places."""
    def run(self):
        super().run()
        if self.editable_mode: return
        for folder in 'configs', 'data/paper':
            self.copy_tree(str(here/folder), f"{self.build_lib}/{cfg['lib_path']}/repo/{folder}")


def long_description():
    "README.md where it is there: a source tree without it still installs."
    readme = here/'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else cfg['description']


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=long_description(),
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    license='Apache-2.0',
    classifiers=['Development Status :: 3 - Alpha', f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", 'Operating System :: POSIX',
                 *(f'Programming Language :: Python :: {v}' for v in ('3.11', '3.12', '3.13'))],
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    python_requires=f">={cfg['min_python']}",
    install_requires=lines('requirements'),
    extras_require=extras(),
    package_data={cfg['lib_path']: ['py.typed', '*.css', '*.js']},
    cmdclass={'build_py': WithFiles},
    zip_safe=False,
)
