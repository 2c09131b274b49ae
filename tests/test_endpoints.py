"""Endpoints besides the box, from the run folders of a toy grid to its rows, its figure and its page."""
import json
from types import SimpleNamespace

import pandas as pd
import pytest

from mcft.ablation import KINDS, _of_endpoint
from mcft.compare import LACKING
from mcft.core import read_rows, write_rows
from mcft.endpoints import by_run, cell_of, endpoints_of, factorial_of, plain_rates, probe_means
from mcft.grid import Arm, load_yaml, models, probe_name, read_grid
from mcft.report import ReportConfig, run_report

N = 4  # problems of each benchmark


def answer(problem: dict, boxed: str, careful: bool) -> str:
    "A chain that ends in the answer, whatever is boxed."
    steps = f'1+{int(problem["answer"]) - 1}={problem["answer"]}' if careful else f'1+1-1={problem["answer"]}'
    return f'<think>\n{steps}\n</think>\n\\boxed{{{boxed}}}'


def evaluated(folder, problems: list, right: int, careful: int):
    "An evaluation whose first answers are correct, or careful."
    said = [answer(p, p['answer'] if i < right else '0', i < careful) for i, p in enumerate(problems)]
    common = [dict(benchmark=p['split'], problem_id=p['id'], sample=0, n_tok=9, finish_reason='stop') for p in problems]
    drawn = dict(model='m', backend='transformers', temperature=0., top_p=1., max_new_tokens=9, seed=0, n_prompt_tok=5,
                 prompt_hash='0')
    (folder/'responses').mkdir(parents=True)
    write_rows(folder/'responses'/'responses.jsonl', [dict(c, **drawn, id=f"{c['problem_id']}/0", text=t)
                                                      for c, t in zip(common, said)], 'responses')
    write_rows(folder/'verdicts.jsonl', [
        dict(c, id=f"{c['problem_id']}/0/v", response_id=f"{c['problem_id']}/0", gold=p['answer'],
             extracted=p['answer'] if i < right else '0', strict='not_graded', full_text='not_graded',
             symbolic='right' if i < right else 'wrong', has_critique=False)
        for i, (c, p) in enumerate(zip(common, problems))], 'verdicts')
    (folder/'run.json').write_text('{"stage": "toy"}')


@pytest.fixture
def grid(tmp_path):
    "The smoke factorial, as if it had run: the second arm is correct more often, the third is as careful as can be."
    raw = load_yaml('configs/smoke_factorial.yaml') | dict(run_dir=str(tmp_path/'runs'))
    (tmp_path/'grid.yaml').write_text(json.dumps(raw))
    cfg = read_grid(tmp_path/'grid.yaml')
    rows = read_rows(cfg['data']['problems'], 'problems')
    problems = [p for b in cfg['eval']['benchmarks'] for p in [r for r in rows if r['split'] == b][:N]]
    kinds = {'base': (2, 2), 'cft, 1e-4': (3, 4), 'mcft 0.20, 1e-4': (5, 4), 'mcft 0.20, 1e-4, over all': (5, 8)}
    run = tmp_path/'runs'
    for m in models(cfg):
        right, careful = kinds[m.arm.name]
        evaluated(run/m.score, problems, right + (m.seed == 1), careful)
        probe = run/probe_name(cfg, m)
        probe.mkdir(parents=True)
        (probe/'run.json').write_text('{"stage": "toy"}')
        probed = [dict(measure='chain_nats', set='chain', id='a', value=2., n=10),
                  dict(measure='chain_nats', set='chain', id='b', value=4., n=10)]
        pd.DataFrame(probed).to_csv(probe/'rows.csv', index=False)
        if not m.job: continue
        (run/m.job).mkdir(parents=True)
        (run/m.job/'run.json').write_text(json.dumps(dict(
            params=dict(lr=1e-4), steps=2, n_rows=16, n_loss_tokens=100, mask_share=.2, seconds=1.,
            parts=dict(loss_kept=.1, loss_masked=.2, loss_reasoning=.1))))
    return tmp_path, cfg


def test_a_run_has_a_row_for_each_endpoint(grid):
    _, cfg = grid
    d = endpoints_of(cfg).set_index(['arm', 'seed', 'endpoint', 'set'])
    assert d.value['cft, 1e-4', 0, 'right', 'chain'] == .75 and d.value['cft, 1e-4', 0, 'right', 'gcd'] == 0
    assert (d.xs('chain_right', level='endpoint').value == 1).all(), 'the chain was correct, whatever was boxed'
    assert d.value['cft, 1e-4', 0, 'right_if_careful', 'chain'] == .75
    assert ('cft, 1e-4', 0, 'right_if_careful', 'gcd') not in d.index, 'no careful chain, no accuracy'
    assert tuple(d.loc[('base', -1, 'chain_nats', 'chain')]) == (.3, 20)


def test_a_run_is_one_row_of_the_factorial(grid):
    _, cfg = grid
    d = factorial_of(cfg).set_index(['arm', 'seed'])
    assert len(d) == 6 and 'base' not in d.index
    assert d.loss_over['cft, 1e-4', 0] == 'either'
    cell = ['mask_rate', 'lr', 'loss_over', 'content', 'right', 'careful']
    assert tuple(d.loc[('mcft 0.20, 1e-4, over all', 1)][cell]) == (.2, 1e-4, 'target', 'own', .75, 1.)
    assert d.right_if_careful['mcft 0.20, 1e-4, over all', 0] == .625 and d.chain_nats['cft, 1e-4', 1] == .3


def test_the_page_is_made_from_the_run_folders(grid):
    folder, cfg = grid
    report = ReportConfig(config=str(folder/'grid.yaml'), rows=str(folder/'rows'), figures=str(folder/'figures'),
                          out_dir=str(folder/'page'), collect=str(folder/'runs'))
    run_report(report, '06_ablation', KINDS)
    page = (folder/'page'/'found_factorial.md').read_text()
    assert '| mcft 0.20, 1e-4, over all | 2 | 68.8% | 100.0% | 100.0% | 68.8% | 100.0% |' in page
    by = pd.read_csv(folder/'page'/'factorial_benchmarks.csv').set_index(['contrast', 'benchmark'])
    name = 'mcft 0.20, 1e-4, over all − cft, 1e-4'
    assert by['diff'][name, 'all'] == pytest.approx(.25)
    drawn = pd.read_csv(folder/'figures'/'factorial.csv')
    assert len(drawn) == 4 and set(drawn.loss_over) == {'trained', 'target'}
    both = pd.read_csv(folder/'page'/'factorial_endpoints.csv').set_index(['contrast', 'endpoint'])
    assert both['diff'][name, 'careful'] == pytest.approx(.5)


def test_an_endpoint_in_running_text():
    "Pooled, the benchmark with more answers counts more; or each counts the same."
    cells = [('chain', .5, .7, 30), ('gcd', .4, .4, 10)]
    rows = pd.DataFrame([dict(arm=arm, seed=seed, endpoint='careful', set=b, value=v + .02*seed*(arm == 'mcft'), n=n)
                         for b, low, high, n in cells for seed in (0, 1) for arm, v in (('cft', low), ('mcft', high))])
    e = SimpleNamespace(has=lambda kind: True, collected=lambda kind: rows)
    assert _of_endpoint(e, 'mcft', 'cft', 'careful').startswith('+16.0 points (')
    assert _of_endpoint(e, 'mcft', 'cft', 'careful', each=True).startswith('+11.0 points (')
    assert _of_endpoint(e, 'mcft', 'sft', 'careful') == LACKING == _of_endpoint(e, 'mcft', 'cft', 'chain_nats')


def test_a_run_that_has_not_ended_is_left_out_or_named(grid):
    folder, cfg = grid
    last = next(m for m in models(cfg) if m.run == 'cft-1e-4-s1')
    (folder/'runs'/last.score/'run.json').unlink()
    there = endpoints_of(cfg, partial=True).query("arm == 'cft, 1e-4' and endpoint == 'right'")
    assert set(there.seed) == {0}
    with pytest.raises(FileNotFoundError, match='no finished evaluation in .*cft-1e-4-s1'): endpoints_of(cfg)


@pytest.mark.parametrize('params, masking, usual, says', [
    (dict(method='cft', lr=1e-4, loss_over='target'), {}, {},
     dict(mask_rate=0., lr=1e-4, loss_over='either', content='own', mix_question_only=0.)),
    (dict(method='mcft', mask_rate=.5), {}, dict(lr=3e-5), dict(mask_rate=.5, lr=3e-5, loss_over='trained')),
    (dict(method='cft'), dict(control='verdict'), {}, dict(content='verdict')),
    (dict(method='sft'), {}, {}, None),
    (dict(method='mcft', mask_target='reasoning'), {}, {}, None)])
def test_where_an_arm_stands_in_a_factorial(params, masking, usual, says):
    cell = cell_of(Arm('a', params=params, masking=masking), usual)
    assert cell is None if says is None else cell.items() >= says.items()


def test_a_slope_has_the_arms_without_question_only_rows():
    plain, mixed = dict(method='cft'), dict(method='mcft', mask_rate=.2, mix_question_only=.3)
    assert plain_rates(dict(a=Arm('a', params=plain), b=Arm('b', params=mixed))) == {0.: 'a'}


def test_probes_are_averaged_over_tokens():
    probes = pd.DataFrame([dict(arm=a, seed=0, measure=m, set='x', id=i, value=2., n=n) for a in ('base', 'cft')
                           for m, n in (('chain_nats', 8), ('verdict', 1)) for i in 'pq'])
    assert by_run(probe_means(probes)).chain_nats.tolist() == [.25, .25]
