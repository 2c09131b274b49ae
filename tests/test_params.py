"""Malformed parameters of every notebook: each is refused by name before anything happens.

And a parameters cell says what its classes say."""
import json, math, random, re
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Literal
import pytest
from fastcore.test import test_fail as fails
import numpy as np
from mcft import params
from mcft.core import repo_root
from mcft.params import ParameterError, _assigned, _notebook_classes, _own_fields, read_params, sync_cell

BOOKS = sorted(p for p in (repo_root()/'nbs').rglob('*.ipynb') if '"parameters"' in p.read_text())
N_CASES = 300
# What a person may write by mistake, by the type that the cell names. None of it is a value of that type.
WRONG = dict(
    bool=['false', 'no', 'True', 'abc', 0, 1, 2.5, None, [], {}],
    int=['3', 'many', '', 2.5, math.inf, math.nan, True, [3], {}, 10**12, -10**12],
    float=['1e-4', 'high', '', math.inf, -math.inf, math.nan, True, [0.5], {}, 10**15, -10**15],
    str=[123, 1.5, True, None, ['a'], {}, 'a\0b'],
    list=['chain', 3, True, None, {'a': 1}, [None], [[]], [{}]],
    dict=['{}', 3, True, None, ['a']],
)


def read(path):
    "The notebook's classes and the values of its parameters cell."
    cells = json.loads(path.read_text())['cells']
    at = next(i for i, c in enumerate(cells) if 'parameters' in c['metadata'].get('tags', []))
    exported = next(m[1] for c in cells if (m := re.match(r'#\|\s*default_exp\s+(\S+)', ''.join(c['source']))))
    module = import_module(f'mcft.{exported}')
    source = ''.join(cells[at]['source'])
    kinds = dict(re.findall(r'^(\w+): (\w+) =', source, re.M))
    values = {name: eval(text, {}) for name, text in _assigned(source).items()}  # our own committed source
    return [getattr(module, n) for n in _notebook_classes(cells[at:])], values, kinds


def cases():
    "Seeded: every parameter once, then at random until there are enough."
    rng, made = random.Random(0), []
    known = [(path, name, kind) for path in BOOKS for name, kind in read(path)[2].items() if kind in WRONG]
    for path, name, kind in known + rng.choices(known, k=max(0, N_CASES - len(known))):
        classes, values, _ = read(path)
        allowed_none = values[name] is None
        bad = rng.choice([v for v in WRONG[kind] if not (v is None and allowed_none)])
        made.append((path, name, bad))
    return made


def test_there_are_enough_cases():
    assert len(cases()) >= 250 and len({path for path, *_ in cases()}) == len(BOOKS)


@pytest.mark.parametrize('path', BOOKS, ids=lambda p: p.stem)
def test_malformed_parameters_are_refused_by_name(path):
    classes, values, kinds = read(path)
    assert set(values) == {f.name for c in classes for f in _own_fields(c)}, (
        'the classes and the parameters cell have different names')
    unclear, accepted = [], []
    for _, name, bad in (c for c in cases() if c[0] == path):
        try: read_params(*classes, scope=values | {name: bad})
        except ParameterError as e:
            if not str(e).startswith(f'{name} is') or 'expected' not in str(e): unclear.append((name, bad, str(e)))
        except Exception as e: unclear.append((name, bad, repr(e)))
        else: accepted.append((name, bad))
    assert not unclear and not accepted


@pytest.mark.parametrize('path', BOOKS, ids=lambda p: p.stem)
def test_the_values_of_the_cell_are_accepted(path):
    classes, values, _ = read(path)
    read_params(*classes, scope=values)


@pytest.mark.parametrize('path', BOOKS, ids=lambda p: p.stem)
def test_the_parameters_cell_says_what_its_classes_say(path):
    assert not sync_cell(path, write=False), (
        f'run python -m mcft.params: the parameters cell of {path.name} differs from its classes')


@pytest.mark.parametrize('path', BOOKS, ids=lambda p: p.stem)
def test_a_misspelt_name_is_refused(path):
    classes, values, _ = read(path)
    name = next(iter(values))
    fails(lambda: read_params(*classes, scope=values | {'In': ['', f'# Parameters\n{name}s = 3\n']}),
          contains=f"did you mean {name!r}?")


KINDS = [(params.Texts, ['a', 'a']), (params.Texts, ['']), (params.Texts, [' ']), (params.Texts, {'a'}),
         (params.Names, []), (params.Names, ['a', 'b', 'a']), (params.Sizes, [2, 2]), (params.Sizes, {1}),
         (params.Sizes, [True]), (params.Steps, 0), (params.Steps, -2), (params.Temperature, 5e-324),
         (params.Temperature, 1e-4), (params.Temperature, -0.1), (params.Fraction, np.True_),
         (params.Count, np.False_), (params.Seed, np.int64(1)), (params.Number, 10**400)]


@pytest.mark.parametrize('kind, bad', KINDS, ids=lambda x: repr(x)[:30])
def test_a_value_no_run_could_mean_is_refused(kind, bad):
    class One:
        x: kind
    with pytest.raises(ParameterError, match=r'^x is .*expected (0|a)'): params.parameters(One)(x=bad)


OPTIONS = [{'timeout': True}, {'timeout': 'long'}, {'concurrency': 0}, {'max_retries': 1.5}, {'tempo': 1}, {1: 2},
           {'extra_body': {'stream': True}}, {'extra_body': {'n': 4}}, {'extra_body': {'a': math.nan}},
           {'extra_body': {'a': {1, 2}}}, {'request_names': {'seed': 3}}, {'dtype': 'int8'}, {'model': 'x'},
           {'key_env': 'not a name'}, {'end_counted': 'no'}, {'engine': {'trust_remote_code': True}}]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('stage', ['01_data', '05_eval'])
def test_options_of_a_back_end_are_checked_with_the_other_parameters(stage, options):
    classes, values, _ = read(next(p for p in BOOKS if p.stem == stage))
    with pytest.raises(ParameterError, match='backend_options|' + str(next(iter(options)))):
        read_params(*classes, scope=values | dict(backend_options=options))


@params.parameters
class Toy:
    "A toy run."
    model_dir: params.Name
    method: Literal['sft', 'cft'] = 'cft'
    lr: params.LearningRate = 5e-5
    n_rows: params.Size | None = None
    confirm: bool = False
    benchmarks: params.Texts = ()

    def __post_init__(self):
        if self.method == 'sft' and self.confirm: raise ParameterError('leave confirm out')


SLIPS = [({'confirm': 'false'}, "confirm is 'false', expected True or False; write it as True or False"),
         ({'lr': '1e-4'}, 'in YAML write 1.0e-4'), ({'n_rows': 2.0}, 'without a decimal point'),
         ({'model_dir': ' '}, 'text that is not empty'), ({'benchmarks': 'chain'}, 'a list of texts'),
         ({'method': 'dpo'}, "method is 'dpo', expected one of sft, cft"), ({'n_row': 3}, "did you mean 'n_rows'?"),
         ({'lr': math.nan}, 'lr is nan'), ({'method': 'sft', 'confirm': True}, 'leave confirm out')]


@pytest.mark.parametrize('given, said', SLIPS, ids=str)
def test_a_slip_is_told_with_what_is_expected(given, said):
    fails(lambda: Toy(**({'model_dir': 'x'} | given)), contains=said)


def test_what_a_class_of_parameters_takes():
    assert asdict(replace(Toy('x'), n_rows=3))['n_rows'] == 3
    assert Toy('x', benchmarks=['chain', 'gcd']).benchmarks == ('chain', 'gcd')
    assert Toy(Path('a')/'b').model_dir == 'a/b'
    fails(lambda: Toy(), contains='model_dir is missing')
