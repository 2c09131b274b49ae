"""Package metadata for pip. Everything is read from settings.ini; nothing is stated here."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']


def lines(key):
    "The requirements listed under `key`, one a line."
    return [o.strip() for o in cfg.get(key, '').splitlines() if o.strip()]


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
                 f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3'],
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    python_requires=f">={cfg['min_python']}",
    install_requires=lines('requirements'),
    extras_require={'dev': lines('dev_requirements'), 'gpu': lines('gpu_requirements'), 'slurm': lines('slurm_requirements')},
    include_package_data=True,
    zip_safe=False,
)
