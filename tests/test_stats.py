"""What the statistics notebook cannot show in a cell: random cases against brute force, coverage of the intervals."""
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mcft.stats import _mcnemar_power, bootstrap, compare_counts, compare_paired, maj_at_k, mcnemar_p, mdd_mean
from mcft.stats import mdd_paired, mdd_unpaired, paired_counts, paired_p_bounds, pass_at_k

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


def test_counts_are_compared_as_the_audit_quotes_them():
    def shown(*counts):  # points to one decimal, p-values to the digits they are quoted with
        c = compare_counts(*counts)
        fisher = f"{c['fisher_p']:.2g}" if c['fisher_p'] < .01 else f"{c['fisher_p']:.3f}"
        return [*(round(100*c[k], 1) for k in ('diff', 'low', 'high')), fisher, round(c['z'], 2)]
    assert shown(302, 500, 362, 500) == [12.0, 6.2, 17.7, '7.6e-05', 4.02]  # MATH-500, base and fine-tuned
    assert f"{compare_counts(302, 500, 362, 500)['z_p']:.1e}" == '5.9e-05'
    assert shown(268, 675, 265, 675) == [-0.4, -5.6, 4.8, '0.911', -0.17]  # OlympiadBench, the same
    assert round(compare_counts(268, 675, 265, 675)['z_p'], 3) == 0.867
    assert shown(348, 500, 362, 500)[3] == '0.365'  # MATH-500, R1 and fine-tuned
    assert shown(199, 675, 265, 675)[3] == '0.00019'  # OlympiadBench, the same
    assert compare_counts(0, 4, 0, 4)['z_p'] == 1.0


def test_pass_and_majority_by_hand():
    assert pass_at_k(16, [0, 1, 16], 4) == pytest.approx([0, 0.25, 1])
    assert pass_at_k(5, 3, 1) == pytest.approx(0.6)
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    assert maj_at_k(['7', '7.0', '8'], [1, 1, 0]) == 1.0
    assert maj_at_k(['8', '8', '7', '', None], [0, 0, 1, 0, 0]) == 0.0
    assert maj_at_k([None, ' '], [0, 0]) == 0.0
    with pytest.raises(ValueError, match='5 right of 4 samples'): pass_at_k(4, 5, 2)
    with pytest.raises(ValueError, match='1 answers but 0 verdicts'): maj_at_k(['1'], [])


@pytest.fixture
def samples():
    "Of 30 problems of different difficulty: their skill, and 16 samples of each."
    draw = np.random.default_rng(7)
    skill = draw.beta(2, 2, size=30)[:, None]
    return skill, draw.random((30, 16)) < skill


def test_equal_arguments_give_equal_intervals(samples):
    _, x = samples
    assert bootstrap(x) == bootstrap(x) != bootstrap(x, seed=1)
    assert bootstrap(np.ones((5, 2))) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize('scores, says', [([1.0], 'one problem'), ([[1, float('nan')]], 'a score is NaN')])
def test_scores_that_say_nothing_are_refused(scores, says):
    with pytest.raises(ValueError, match=says): bootstrap(scores)


def test_several_samples_are_compared_by_sign_flips(samples):
    skill, x = samples
    better = compare_paired(x, np.random.default_rng(1).random((30, 16)) < np.clip(skill + .15, 0, 1))
    assert better['test'] == 'sign flips' and better['p'] < 0.01 and better['low'] > 0
    assert better['mdd'] < mdd_paired(30)


def test_one_sample_each_has_the_detectable_difference_of_its_discordance():
    one, two = np.array([1]*3 + [0]*37), np.array([0]*3 + [1]*9 + [0]*28)
    assert compare_paired(one, two)['mdd'] == mdd_paired(40, 0.3)
    assert compare_paired(one, one)['p'] == 1.0


@pytest.mark.parametrize('mdd, args', [(mdd_paired, (30, 0.0)), (mdd_mean, (10, 0.0))])
def test_without_discordance_or_spread_nothing_is_detectable(mdd, args):
    assert np.isnan(mdd(*args))


@pytest.mark.parametrize('difference, power', [(1.0, 1.0), (0.0, 2/64)])  # without one: the level that is really used
def test_power_of_six_discordant_problems(difference, power):
    assert _mcnemar_power(difference, 6, 1.0, 0.05) == pytest.approx(power)


def test_an_unpaired_difference_is_seen_in_four_of_five_repetitions():
    gain = mdd_unpaired(500)
    counts = np.random.default_rng(0).binomial(500, [0.5, 0.5 + gain], size=(500, 2))
    seen = np.mean([abs(compare_counts(a, 500, b, 500)['z']) > 1.96 for a, b in counts])
    assert seen == pytest.approx(0.8, abs=0.06)
    with pytest.raises(ValueError, match='share is 1.0'): mdd_unpaired(30, 1.0)
