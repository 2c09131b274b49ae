"""Probes and readings: what the reader makes of the teacher's words, a killed probe, three ways to read an answer."""
import re

import pytest
import yaml

from conftest import ROOT
from mcft.core import read_rows
from mcft.format import last_result
from mcft.generate import BackendConfig, Prompt, Sampling, make_backend, rendered
from mcft.grid import check_grid, encoding_of, jobs, models, probed, read_grid, arms_of
from mcft.pocket import teach
from mcft.probe import CHECKERS, ERROR_KINDS, ProbeConfig, blamed_step, error_kind, error_rows, held_out, probe
from mcft.probe import says_wrong

CRITIQUES = read_rows('data/pocket/critiques.jsonl')


@pytest.mark.parametrize('seed', range(3))
def test_the_reader_understands_the_teacher(seed):
    check = CHECKERS['pocket']
    for row in CRITIQUES:
        fault = check(row['question'], row['rollout'])
        said = teach(row['question'], row['rollout'], seed)['critique']
        box = re.search(r'\\boxed\{([^{}]*)\}', row['rollout'])
        if box: assert says_wrong(said, box[1]) == (box[1] != row['answer']), said
        if fault.step and fault.kind != 'missing': assert blamed_step(said, fault.steps) == fault.step, said


def test_every_fault_of_a_world_has_a_kind():
    faults = {CHECKERS['pocket'](r['question'], r['rollout']).kind for r in CRITIQUES}
    assert {error_kind(f) for f in faults} <= set(ERROR_KINDS)
    assert {'none', 'slip', 'operation'} <= {error_kind(f) for f in faults}


def test_an_answer_has_one_kind_of_error():
    row = CRITIQUES[0]
    asked = dict.fromkeys(('p', 'q'), row['question'])
    rows = error_rows({'p': row['rollout'], 'q': 'no chain at all'}, asked, CHECKERS['pocket'])
    assert len(rows) == 2*len(ERROR_KINDS)
    assert sum(r['value'] for r in rows) == 2


def test_a_rollout_without_its_problem_is_refused(tmp_path):
    (tmp_path/'problems.jsonl').write_text('')
    with pytest.raises(ValueError, match='holds an answer to'):
        held_out(ProbeConfig(problems=tmp_path/'problems.jsonl', measures=('tokens',)))


@pytest.mark.parametrize('text, result', [
    ('5 - 3 = 2', '2'), ('= 1,234.5 dollars.', '1234.5'), ('a = -3\nb = $7.', '7'), ('x = 1/2', '1/2'),
    ('2 + 2', None), ('', None)])
def test_last_result(text, result): assert last_result(text) == result


def test_an_answer_is_opened_and_cut():
    back = make_backend(BackendConfig('data/pocket/base'))
    prompt = Prompt('Solve 10x+32=4x+56.', opening='<think>\n')
    how = Sampling(64, stop_at='</think>')
    (row,), = back.generate([prompt], how)
    assert row['text'].startswith('<think>\n') and row['text'].endswith('</think>')
    assert row['text'].count('</think>') == 1
    assert row['finish_reason'] == 'stop'
    (whole,), = back.generate([prompt], Sampling(64))
    assert whole['text'].startswith(row['text'])
    assert whole['n_prompt_tok'] == len(back.tok(rendered(back.tok, prompt), add_special_tokens=False)['input_ids'])


def test_bfloat16_is_within_a_percent(tmp_path):
    cfg = ProbeConfig(out_dir=tmp_path/'p', measures=('tokens',), n_rollouts=8, dtype='bfloat16')
    assert probe(cfg)['bf16_ratio'] == pytest.approx(1, abs=.01)


def raw(name): return yaml.safe_load((ROOT/'configs'/f'{name}.yaml').read_text())


def test_the_school_grid_probes_every_model_once():
    cfg = read_grid('configs/school.yaml')
    todo = jobs(cfg)
    assert {name for name in todo if name.startswith('probe/')} == set(probed(cfg))
    assert len(probed(cfg)) == len({m.folder for m in models(cfg)})
    assert todo['probe/cft-s0'].params['rollouts'] == 'runs/school/held_out/rollouts.jsonl'
    assert set(todo['probe/cft-s0'].needs) >= {'runs/school/04_train/cft-s0/run.json', 'runs/school/held_out/run.json'}


def test_an_arm_has_seeds_and_critiques_of_its_own():
    cfg = read_grid('configs/school.yaml')
    todo = jobs(cfg)
    assert [s for s in range(8) if f'04_train/mcft-0.50-s{s}' in todo] == [0, 1, 2, 3, 4]
    fault = arms_of(cfg)['cft, fault alone']
    assert encoding_of(fault) == '03_masking-school-fault'
    assert todo['03_masking-school-fault'].params['critiques'] == 'runs/school/02_critique-school-fault/critiques.jsonl'
    assert todo['02_critique-school-fault'].params['world'] == 'school_fault'
    assert todo['02_critique'].params['world'] == 'school'


def test_the_search_asks_in_its_own_way():
    cfg = read_grid('configs/school_more.yaml')
    searched = {m.score: m.params for m in models(cfg, 'lr')}
    assert all(p['benchmarks'] == ['dev'] and p['opening'] == '<think>\n' for p in searched.values())
    assert all(name.endswith('@opened') for name in searched)


@pytest.mark.parametrize('change, says', [
    (dict(probe=dict(n_rollouts=4)), 'probe has no rollouts'),
    (dict(prompts=dict(a=dict(openin='x'))), "did you mean 'opening'"),
    (dict(search=dict(prompts=dict(a=dict(stop='x')))), "'stop' is no parameter"),
    (dict(probe=dict(n_rollout=4)), 'n_rollouts')])
def test_a_slip_in_a_probe_or_prompt_is_refused(change, says):
    with pytest.raises(ValueError, match=re.escape(says)): check_grid({**raw('pocket'), **change})
