"""What the statistics notebook cannot show in a cell: random cases against brute force, coverage of the intervals."""
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mcft.stats import bootstrap, compare_paired, maj_at_k, mcnemar_p, mdd_paired, paired_counts, paired_p_bounds
from mcft.stats import pass_at_k

patient = settings(deadline=None) # the first call imports the libraries
verdicts = st.integers(1, 40).flatmap(lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)]*2))


@patient
@given(verdicts)
def test_the_bounds_hold_for_every_pairing(pair):
    a, b = pair
    c = paired_counts(a, b)
    low, high = paired_p_bounds(sum(a), sum(b), len(a))
    assert low <= mcnemar_p(c['only_first'], c['only_second']) <= high


@patient
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(case):
    n, correct, k = case
    draws = list(itertools.combinations([1]*correct + [0]*(n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws))/len(draws))


@patient
@given(st.lists(st.sampled_from(['7', '7.0', '8', '9', '', None]), min_size=1, max_size=9), st.randoms())
def test_a_vote_does_not_depend_on_the_order(answers, rnd):
    pairs = [(a, a in ('7', '7.0')) for a in answers]
    mixed = rnd.sample(pairs, len(pairs))
    assert maj_at_k(*zip(*pairs)) == maj_at_k(*zip(*mixed))


@settings(max_examples=20, deadline=None)
@given(verdicts.filter(lambda p: len(p[0]) > 1))
def test_a_comparison_turned_round_changes_sign_and_nothing_else(pair):
    there, back = compare_paired(*pair), compare_paired(*pair[::-1])
    assert there['diff'] == pytest.approx(-back['diff']) and there['p'] == back['p']
    assert (there['only_first'], there['only_second']) == (back['only_second'], back['only_first'])


def covers(make, truth, repeats, **how):
    "Share of 95% intervals that hold the true mean."
    found = [bootstrap(make(np.random.default_rng(i)), n_resamples=400, seed=i, **how) for i in range(repeats)]
    return np.mean([low <= truth <= high for _, low, high in found])


def test_nested_intervals_cover_for_samples_of_one_checkpoint():
    def samples(rng): return rng.random((60, 4)) < rng.beta(2, 2, size=60)[:, None]
    assert covers(samples, 0.5, 300) > 0.93


def test_crossed_intervals_cover_for_training_seeds_where_nested_ones_do_not():
    def seeds(rng): return rng.random((200, 12)) < np.clip(0.5 + rng.normal(0, 0.1, size=12), 0, 1)[None, :]
    assert covers(seeds, 0.5, 200, seeds='crossed') > 0.87 > 0.8 > covers(seeds, 0.5, 200, seeds='nested')


def test_more_problems_or_more_discordance_move_the_detectable_difference_the_right_way():
    sizes = [mdd_paired(n) for n in (30, 60, 120, 500, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert mdd_paired(500, 0.1) < mdd_paired(500, 0.2) < mdd_paired(500, 0.4)
