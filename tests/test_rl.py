"""What 09_rl promises beyond its own examples: properties of the remedies, what is sampled and lost in a real run,
and a kill -9."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st

from conftest import ROOT
from mcft.core import check_params, read_rows, run_info, sha256_file, write_rows
from mcft.models import load_tokenizer
from mcft.rl import (REWARD_FAULTS, CurveConfig, RewardRow, RLConfig, curve_rows, even_prompts, group_advantages,
                     guarded, has_signal, kept_samples, length_cv, load_policy, load_prompts, make_trainer,
                     measure_curves, prompt_order, rebalance, temperature_at, train_rl)
from mcft.trainer import quiet

few = settings(max_examples=60, deadline=None)
bools = st.lists(st.booleans(), min_size=1, max_size=24)
SMALL = RLConfig('set me', rollouts='data/pocket/rollouts.jsonl', n_steps=2, prompts_per_step=4, num_generations=8,
                 batch_size=32, max_new_tokens=48, warmup=0.0, device='cpu')


# The remedies.


@few
@given(bools, st.integers(0, 99), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_rebalance_keeps_all_right_and_as_many_wrong(right, seed, easy):
    keep, right = rebalance(right, seed, easy), np.array(right)
    if right.mean() > easy or not right.any():
        assert not keep.any()
    else:
        assert keep[right].all() and (keep & ~right).sum() == min(right.sum(), (~right).sum())


def test_rebalance_draws_every_wrong_sample_alike():
    n = np.sum([rebalance([1, 0, 0, 0, 0], s) for s in range(2000)], axis=0)
    assert n[0] == 2000 and (abs(n[1:] - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5).all()


@few
@given(bools)
def test_dapo_keeps_a_group_whole_or_not_at_all(right):
    assert has_signal(right).tolist() == [0 < sum(right) < len(right)] * len(right)


@few
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from('abc')), min_size=1, max_size=30),
    st.sampled_from(['none', 'rebalance', 'dapo']),
)
def test_a_lost_sample_never_stays_and_groups_do_not_touch(rows, how):
    right, lost, groups = map(np.array, zip(*rows))
    keep = kept_samples(right, lost, groups, how, 3)
    assert not (keep & lost).any()
    if how == 'none':
        assert (keep == ~lost).all()
    if how == 'dapo':
        for g in 'abc':
            alone = kept_samples(right[groups == g], lost[groups == g], groups[groups == g], how, 3)
            assert (alone == keep[groups == g]).all()


@few
@given(st.lists(st.tuples(st.floats(-3, 3), st.booleans(), st.sampled_from('ab')), min_size=1, max_size=20))
def test_advantages_sum_to_zero_over_what_stays(rows):
    rewards, keep, groups = map(np.array, zip(*rows))
    for scale in (True, False):
        a = group_advantages(rewards, groups, keep, scale)
        assert (a[~keep] == 0).all() and all(abs(a[groups == g].sum()) < 1e-9 for g in 'ab')
    moved = group_advantages(np.where(keep, rewards, 99), groups, keep)
    assert np.allclose(moved, group_advantages(rewards, groups, keep))  # what does not stay has no say


@few
@given(st.integers(1, 200), st.floats(0.1, 1), st.floats(0.05, 1))
def test_temperature_falls_and_stays(n, share, end):
    t = [temperature_at(s, n, 1.0, end, share) for s in range(n + 1)]
    assert t[0] == pytest.approx(1.0) and t[-1] == pytest.approx(end) and all(a >= b - 1e-12 for a, b in zip(t, t[1:]))
    assert all(x == pytest.approx(end) for s, x in enumerate(t) if s >= share * n)


@few
@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 8), st.integers(0, 5), st.integers(1, 3))
def test_order_asks_everyone_and_the_hard_more_often(n, per_step, steps, seed, times):
    ids = [str(i) for i in range(n)]
    times = min(times, per_step)
    order = prompt_order(ids, steps * per_step, per_step, seed, {'0'}, times)
    assert len(order) == steps * per_step and order == prompt_order(ids, steps * per_step, per_step, seed, {'0'}, times)
    longer = prompt_order(ids, 2 * steps * per_step, per_step, seed, {'0'}, times)
    assert longer[: len(order)] == order  # a longer run begins like a shorter one
    plain = Counter(prompt_order(ids, 7 * n, 1, seed))
    assert set(plain.values()) == {7}


def test_even_prompts_by_hand():
    rows = [dict(problem_id=p, n_tok=n) for p, ns in dict(a=(8, 12), b=(1, 99), c=(7,)).items() for n in ns]
    assert (
        length_cv((8, 12)) == pytest.approx(8**0.5 / 10)
        and math.isnan(length_cv(()))
        and even_prompts(rows, 0.3) == {'a'}
        and even_prompts(rows, 2) == {'a', 'b'}
    )


# Rewards that fail.


def bad(text, gold):
    "By its first letter: raises, hangs, spins, ends, is no number."
    kind = text[:1]
    if kind == 'h':
        time.sleep(600)
    while kind == 's':
        pass
    if kind == 'k':
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == 'e':
        sys.exit(1)
    if kind == 'm':
        raise MemoryError
    return dict(n=float('nan'), i=float('inf'), t='no number', c=1j).get(kind, 0.5)


def test_each_failure_costs_one_sample():
    got = guarded(bad, ['a', 'h', 'k', 's', 'e', 'm', 'n', 'i', 't', 'c', 'a'], [''] * 11, 0.5)
    assert [w for _, w in got] == ['', 'timeout', 'died', 'timeout', 'error', 'error', 'nan', 'nan', 'error', 'error',
                                   '']
    assert (
        [v for v, w in got if not w] == [0.5, 0.5]
        and all(v is None for v, w in got if w)
        and {w for _, w in got if w} == set(REWARD_FAULTS)
    )


def seldom(text, gold):
    "Fails on some of the texts, in three ways; else rewards nothing."
    n = len(text) % 7
    if n == 1:
        raise RuntimeError('no')
    if n == 2:
        os._exit(1)
    return float('nan') if n == 3 else 0.0


def test_a_run_outlives_its_reward(tmp_path):
    info = train_rl(replace(SMALL, out_dir=str(tmp_path / 'a'), reward_seconds=0.5), dict(seldom=(seldom, 1.0)))
    log = read_rows(tmp_path / 'a/train_log.jsonl')
    lost = sum(info['lost'].values())
    assert 0 < lost < 64 and info['steps'] == 2 and sum(sum(r[f'lost_{k}'] for k in REWARD_FAULTS) for r in log) == lost
    assert all(r['kept'] == pytest.approx(1 - sum(r[f'lost_{k}'] for k in REWARD_FAULTS) / 32) for r in log)
    assert all(
        torch.isfinite(w).all()
        for w in load_policy(replace(SMALL, model_dir=str(tmp_path / 'a')), load_tokenizer(tmp_path / 'a')).parameters()
    )


def test_nothing_moves_when_every_sample_is_lost(tmp_path):
    other = train_rl(replace(SMALL, out_dir=str(tmp_path / 'b')), dict(never=(lambda t, g: float('nan'), 1.0)))
    assert other['lost'] == dict(timeout=0, error=0, nan=64, died=0) and other['right_first'] is None
    start = load_policy(SMALL, load_tokenizer(SMALL.model_dir)).state_dict()
    end = load_policy(replace(SMALL, model_dir=str(tmp_path / 'b')), load_tokenizer(tmp_path / 'b')).state_dict()
    assert all(torch.equal(start[k], end[k]) for k in start)


# What is sampled.


def trained(cfg, tmp_path, **kw):
    "A trainer after its updates."
    cfg = replace(cfg, out_dir=str(tmp_path))
    with quiet(1):
        tok = load_tokenizer(cfg.model_dir, padding_side='left')
        trainer = make_trainer(cfg, load_prompts(cfg)[0], load_policy(cfg, tok), RewardRow(cfg, tok), **kw)
        trainer.train()
    return trainer


def test_temperature_reaches_the_sampler(tmp_path):
    "The second update samples at 0.001: all completions of a prompt are the same; the first, at 2.0, they are not."
    distinct = []
    cfg = replace(SMALL, temperature=2.0, temperature_end=0.001, anneal_share=0.5,
                  beta=0.0)  # at 0.001 a KL term overflows
    one = trained(replace(cfg, n_steps=1, temperature_end=0.0), tmp_path)
    two = trained(cfg, tmp_path)
    for t in (one, two):
        texts = list(t._logs['completion'])
        distinct.append([len(set(texts[i : i + 8])) for i in range(0, 32, 8)])
    assert max(distinct[0]) > 1 and distinct[1] == [1] * 4, distinct
    assert [r['temperature'] for r in two.state.log_history if 'loss' in r] == [2.0, 0.001]


def test_accumulation_changes_nothing_but_rounding(tmp_path):
    whole, parts = (
        trained(replace(SMALL, n_steps=1, batch_size=b, filter='dapo', beta=0.01), tmp_path / str(b)).model.state_dict()
        for b in (32, 8)
    )
    start = load_policy(SMALL, load_tokenizer(SMALL.model_dir)).state_dict()
    moved = max((whole[k] - start[k]).abs().max().item() for k in start)
    assert moved > 0
    mean = np.mean([(whole[k] - parts[k]).abs().mean().item() for k in start])
    assert mean < 0.1 * moved, (mean, moved)


def test_several_updates_on_the_same_completions(tmp_path):
    log = [
        r
        for r in trained(
            replace(SMALL, n_steps=4, num_iterations=2, filter='rebalance', temperature_end=0.5), tmp_path
        ).state.log_history
        if 'loss' in r
    ]
    assert len(log) == 4 and all(math.isfinite(r['loss']) and math.isfinite(r['grad_norm']) for r in log)
    assert [round(r['temperature'], 3) for r in log if r.get('temperature')] == [
        1.0,
        0.5,
    ]  # set when completions are drawn, not between


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(filter='dpo'), "filter is 'dpo', expected one of none, rebalance, dapo"),
        (dict(num_generations=1), 'num_generations is 1'),
        (dict(batch_size=48), 'batch_size=48 does not divide: choose a divisor of 64'),
        (dict(temperature=0.0), 'temperature is 0.0'),
        (dict(temperature_end=1.2), 'temperature_end=1.2 is above temperature=1.0'),
        (dict(max_length_cv=0.3), 'name a file that 01_data wrote'),
        (dict(layout='critique'), "layout='critique' looks at rollouts"),
        (dict(oversample=9, rollouts='r'), 'do not fit prompts_per_step=8'),
        (dict(num_iterations=3), 'n_steps=40 is no multiple of num_iterations=3'),
        (dict(easy_above=1.5), 'easy_above is 1.5'),
        (dict(lr=3.0), 'lr is 3.0'),
        (dict(revision='v1'), "revision is 'v1', but model_dir='data/pocket/base' is a folder"),
        (dict(engine='server'), 'a server has an address'),
        (dict(engine='vllm'), "engine is 'vllm'"),
        (dict(beta=-1.0), 'beta is -1.0'),
        (dict(correct_weight=0.0), 'correct_weight is 0.0'),
        (dict(n_steps=2.5), 'n_steps is 2.5'),
        (dict(max_length_cv=float('nan')), 'max_length_cv is nan'),
        (dict(scale_rewards='no'), "scale_rewards is 'no'"),
    ],
)
def test_a_bad_parameter_is_named(bad, says):
    with pytest.raises(ValueError, match=says):
        RLConfig('toy/out', **bad)


# Going on.

KILLED = '''
import json, os, signal, sys
from transformers import TrainerCallback
from mcft.rl import RLConfig, train_rl
class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kw):
        if state.global_step == 2: os.kill(os.getpid(), signal.SIGKILL)
train_rl(RLConfig(**json.loads(sys.argv[1])), callbacks=[Kill()])
'''


def test_kill_9_and_on(tmp_path):
    cfg = replace(SMALL, n_steps=3, save_steps=1, filter='rebalance', temperature_end=0.5, oversample=2,
                  out_dir=str(tmp_path / 'cut'))
    done = subprocess.run(
        [sys.executable, '-c', KILLED, json.dumps(asdict(cfg))], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert run_info(tmp_path / 'cut') is None and (tmp_path / 'cut/steps/checkpoint-2').exists()
    again, whole = train_rl(cfg), train_rl(replace(cfg, out_dir=str(tmp_path / 'whole'), save_steps=0))
    assert (again['resumed_at'], whole['resumed_at'], again['key']) == (2, None, whole['key'])
    assert sha256_file(tmp_path / 'cut/model.safetensors') == sha256_file(tmp_path / 'whole/model.safetensors')
    log = read_rows(tmp_path / 'whole/train_log.jsonl')
    assert read_rows(tmp_path / 'cut/train_log.jsonl') == log and all(
        r['grad_norm'] > 0 for r in log[:2]
    )  # there was something to learn before the kill
    assert not (tmp_path / 'cut/steps').exists()


# Bad input, configurations.


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(model_dir='runs/none/x'), 'no model in .*runs/none/x'),
        (dict(problems='none.jsonl'), 'none.jsonl'),
        (dict(rollouts='none.jsonl'), 'none.jsonl'),
        (dict(max_new_tokens=100000), 'max_new_tokens=100000, but data/pocket/base has'),
        (dict(split='nope'), "no problem of split 'nope'"),
        (dict(n_prompts=5000), "n_prompts is 5000, but split 'train' has"),
    ],
)
def test_bad_input_names_value_and_fix(tmp_path, change, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        train_rl(replace(SMALL, out_dir=str(tmp_path / 'x'), **change))
    assert run_info(tmp_path / 'x') is None


def test_a_filter_that_keeps_nothing_says_so(tmp_path):
    rows = [dict(r, n_tok=10 + 50 * r['sample']) for r in read_rows(ROOT / 'data/pocket/rollouts.jsonl', 'rollouts')]
    write_rows(tmp_path / 'r.jsonl', rows, 'rollouts')
    with pytest.raises(ValueError, match='max_length_cv=0.01 keeps none of 600 prompts: raise it'):
        load_prompts(replace(SMALL, rollouts=str(tmp_path / 'r.jsonl'), max_length_cv=0.01))


def test_curves_of_an_untrained_copy_do_not_differ(tmp_path):
    cfg = replace(SMALL, out_dir=str(tmp_path), max_new_tokens=24)
    rows = measure_curves(cfg, CurveConfig(('dev_chain',), eval_problems=4, eval_samples=4), 'data/pocket/base')
    assert (rows[rows.model == 'difference'].value == 0).all() and set(rows.n_problems) == {4}
    assert (tmp_path / 'curves/pass_and_cons.svg').exists()
    same = read_rows(tmp_path / 'curves/before/verdicts.jsonl', 'verdicts')
    with pytest.raises(ValueError, match='other problems or samples'):
        curve_rows(same, same[1:])


@pytest.mark.parametrize('section, notebook', [('data', '01_data'), ('preference', '08_preference'), ('rl', '09_rl')])
def test_the_gpu_configuration_names_parameters(section, notebook):
    given_ = yaml.safe_load((ROOT / 'configs/beyond_paper.yaml').read_text())[section]
    if notebook == '08_preference' and not (ROOT / 'nbs/08_preference.ipynb').exists():
        pytest.skip('08_preference is not here yet')
    assert check_params(ROOT / f'nbs/{notebook}.ipynb', given_)
    if section == 'rl':
        assert RLConfig(**{k: v for k, v in given_.items() if not k.startswith('eval_')}).engine == 'colocate'
        with pytest.raises(ValueError, match="is no parameter of 09_rl"):
            check_params(ROOT / 'nbs/09_rl.ipynb', dict(given_, temprature=1))


def test_the_gpu_configuration_fits_its_gpu():
    "By the formulas of the costs page: states in float32, a pair or a completion with its prompt, vLLM's share."
    from mcft.costs import ARCHS, DEVICES, activation_bytes, n_parameters, state_bytes

    given_ = yaml.safe_load((ROOT / 'configs/beyond_paper.yaml').read_text())
    a, (room, _), gib = ARCHS['1.5B'], DEVICES['A100'], 2**30
    states, pair = state_bytes(a, 'fp32', 'adamw_torch') / gib, 2 * given_['preference']['max_length']
    assert states + activation_bytes(a, pair, pair) / gib < 0.95 * room
    assert given_['data']['max_new_tokens'] + 1024 <= given_['preference']['max_length']
    rl = given_['rl']
    shared = states + 4 * n_parameters(a) / gib + rl['engine_memory'] * room  # with the reference model of beta
    assert shared + activation_bytes(a, rl['max_new_tokens'] + 1024, rl['max_new_tokens']) / gib < 0.95 * room
    assert shared + activation_bytes(a, 16384 + 1024, 16384) / gib > room
    assert rl['max_new_tokens'] + 1024 <= rl['engine_length']
