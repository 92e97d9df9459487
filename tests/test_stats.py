"""Statistics against formulas written out, and against statsmodels and scipy's own resampling."""

import itertools
import math
import statistics

import numpy as np
import pytest
import scipy.stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import DescrStatsW

from common.judge import stats


def sums_of(first_only, second_only, images=1000):
    sums = np.zeros(images, int)
    sums[:first_only] = 1
    sums[first_only : first_only + second_only] = -1
    return sums


def estimate_of(mean, half_image, *samples):
    """An estimate whose seeds are these samples, and its half width over images alone."""
    spreads = sum(map(stats.sample_spread, samples), ())
    return stats.Estimate(mean, (mean - half_image, mean + half_image), spreads)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(ValueError, match=r"\d"):
        stats.wilson_interval(correct, total)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (5, 5), (10, 2), (0, 40), (150, 100), (7, 8)])
def test_the_sign_flip_test_of_one_pair_is_mcnemar_s(b, c):
    expected = mcnemar([[500, b], [c, 30]], exact=True).pvalue if b + c else 1.0
    assert stats.sign_flip_test(sums_of(b, c)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sums", [[3, -1, 2, 0, 1], [2, 2, -2, 4], [5], [1, -1], [3, 3, 3, -1, 2]])
def test_the_sign_flip_test_is_that_of_all_sign_patterns_whichever_side_is_first(sums):
    patterns = itertools.product((1, -1), repeat=len(sums))
    flipped = [abs(sum(s * v for s, v in zip(p, sums, strict=True))) for p in patterns]
    expected = statistics.fmean(value >= abs(sum(sums)) for value in flipped)
    for sign in (1, -1):
        assert stats.sign_flip_test(sign * np.array(sums)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pairs", [1, 4])
def test_the_bootstrap_is_scipy_s_on_the_images(pairs):
    rng = np.random.default_rng(2)
    sums = np.where(rng.random(800) < 0.2, rng.integers(-pairs, pairs + 1, 800), 0)
    sums = np.clip(sums + (rng.random(800) < 0.05), -pairs, pairs)
    whole = np.append(sums, [pairs, -pairs]) / pairs
    how = {"n_resamples": 5000, "method": "percentile", "rng": rng}
    expected = scipy.stats.bootstrap((whole,), np.mean, **how)
    found = stats.paired_interval(sums, pairs)
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.002)
    assert found == stats.paired_interval(sums, pairs)
    low, high = stats.paired_interval(sums_of(0, 0), 1)  # no discordant image: still doubt
    assert -0.005 < low < -0.001 < 0.001 < high < 0.005


def test_the_bootstrap_of_many_distinct_sums_is_that_of_each(monkeypatch):
    """Binned, they cost no more than few; the interval moves less than by another draw."""
    sums = np.random.default_rng(3).integers(-27_720, 27_721, 2000) + 300
    found = stats.paired_interval(sums, 27_720)
    monkeypatch.setattr(stats, "MOST_SUMS", 10**9)
    exact = stats.paired_interval(sums, 27_720)
    assert found == pytest.approx(exact, abs=(exact[1] - exact[0]) / 30)
    assert sum(found) / 2 == pytest.approx(sums.mean() / 27_720, abs=0.001)


def test_holm_is_that_of_statsmodels():
    for p in [0.01], [0.04, 0.01, 0.03], [0.02, 0.02, 0.02, 0.9], [1.0, 1.0], [1e-12, 0.5]:
        assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert stats.holm([]) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [((13906, 14000), (6900, 7000)), ((10, 10), (10, 10)), ((0, 5), (5, 5)), ((56, 70), (48, 80))],
)
def test_the_difference_of_two_samples_is_that_of_statsmodels(first, second):
    expected = confint_proportions_2indep(*first, *second, method="newcomb")
    assert stats.newcombe_interval(first, second) == pytest.approx(expected, abs=1e-9)


def test_the_ratio_of_medians_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(4)

    def summary(scale):
        sample = scale * (1 + 0.05 * rng.standard_normal(20))
        low, middle, high = np.quantile(sample, [0.25, 0.5, 0.75])
        return middle, high - low, 20

    intervals = [stats.median_ratio_interval(summary(25.0), summary(1.0)) for _ in range(2000)]
    covered = statistics.fmean(low <= 25 <= high for low, high in intervals)
    assert 0.92 < covered < 0.98


def test_the_mean_over_seeds_is_student_s():
    values = [0.99, 0.992, 0.985, 0.991]
    expected = DescrStatsW(values).tconfint_mean()
    assert estimate_of(np.mean(values), 0.0, values).interval() == pytest.approx(expected)
    assert estimate_of(0.99, 0.0, [0.99, 0.99]).interval() == (0.99, 0.99)


def test_without_noise_of_images_the_interval_of_two_samples_is_welch_s():
    one, other = [0.91, 0.93, 0.925, 0.9], [0.915, 0.92, 0.91]
    welch = scipy.stats.ttest_ind(one, other, equal_var=False)
    found = estimate_of(np.mean(one) - np.mean(other), 0.0, one, other)
    assert found.degrees == pytest.approx(welch.df)
    assert found.interval() == pytest.approx(tuple(welch.confidence_interval()))
    assert found.p() == pytest.approx(welch.pvalue, rel=1e-6)
    p = 2 * scipy.stats.norm.sf(0.1 / 0.02 * 1.959964)
    for samples in (), ([0.5, 0.5], [0.4, 0.4, 0.4]):  # and without noise of seeds that of images
        estimate = estimate_of(0.1, 0.02, *samples)
        assert estimate.interval() == pytest.approx((0.08, 0.12))
        assert estimate.p() == pytest.approx(p, rel=1e-4)


def test_two_seeds_that_agree_by_chance_do_not_borrow_the_other_side_s_degrees_of_freedom():
    """Welch's degrees of freedom are then the other side's, 9, and the interval far too short."""
    agree, other = [0.9, 0.9001], np.random.default_rng(0).normal(0.9, 0.005, 10)
    assert scipy.stats.ttest_ind(agree, other, equal_var=False).df > 8.5
    assert estimate_of(0.0, 0.0, agree, other).degrees == pytest.approx(0.6**2 / (0.25 + 0.01 / 9))


def test_the_p_is_the_level_at_which_the_interval_ends_at_zero():
    for mean in (0.01, -0.01):
        estimate = estimate_of(mean, 0.008, [0.9, 0.91, 0.905], [0.9, 0.902])
        low, high = estimate.interval(estimate.p())
        assert (low if mean > 0 else high) == pytest.approx(0, abs=1e-9)
    assert estimate_of(0.0, 0.008, [0.9, 0.91]).p() == 1
    assert estimate_of(5.0, 0.001).p() == 0  # beyond floating point
    assert 0 < estimate_of(0.3, 0.001, [0.9, 0.91]).p() < 1


def test_both_noises_add_as_squares_on_each_side_and_one_seed_is_taken_to_vary_as_others_do():
    first, second = [0.92, 0.93, 0.91], [0.9]
    found = stats.difference_of(first, second, (1000, 1000))
    half = scipy.stats.t.isf(0.025, 2) * 0.01 * math.sqrt(1 + 1 / 3)
    images = low, high = stats.newcombe_interval((920, 1000), (900, 1000))
    expected = 0.02 - math.hypot(0.02 - low, half), 0.02 + math.hypot(high - 0.02, half)
    assert (found.degrees, found.interval()) == (2, pytest.approx(expected))
    found = stats.difference_of([0.92], second, (1000, 1000))
    assert found.interval() == pytest.approx(images)
    fitted = OLS(first, np.ones(3)).fit()  # where one more seed would fall
    expected = fitted.get_prediction([1.0]).conf_int(obs=True)[0]
    spreads = stats.lend(stats.sample_spread(first), [1.0])
    assert stats.Estimate(0.92, (0.92, 0.92), spreads).interval() == pytest.approx(tuple(expected))


def test_more_seeds_shrink_their_noise_alone():
    spreads = stats.Spread(0.04, 1 / 4, 4), stats.Spread(0.02, 1 / 10, 10)
    estimate = stats.Estimate(0.1, (0.08, 0.12), spreads)
    more = estimate.at(8)
    assert more.spreads == (stats.Spread(0.02, 1 / 8, 8), spreads[1])
    assert more.image == estimate.image
    assert estimate.at(3) == estimate


@pytest.mark.parametrize(("error", "sd", "n"), [(0.0, 1.0, 6), (0.4, 1.0, 12), (0.5, 0.0, 3)])
def test_the_power_is_that_of_simulated_samples(error, sd, n):
    rng, value, edge = np.random.default_rng(6), 1.2, 0.1
    image = value - 1.959964 * error, value + 1.959964 * error
    estimate = stats.Estimate(value, image, (stats.Spread(sd * sd / n, 1 / n, n),))
    means = rng.normal(value, error, 20_000)[:, None] + rng.normal(0, sd, (20_000, n))
    half = scipy.stats.t.isf(0.025, n - 1) * means.std(1, ddof=1) / math.sqrt(n)
    lows = means.mean(1) - np.hypot(1.959964 * error, half)
    assert estimate.power(edge, math.inf) == pytest.approx((lows > edge).mean(), abs=0.012)


def test_an_estimate_without_noise_is_certain():
    """As that of images is where what the seeds vary by holds all of it."""
    estimate = stats.Estimate(0.2, (0.2, 0.2))
    assert (estimate.power(0.1, math.inf), estimate.power(0.3, math.inf)) == (1, 0)


def test_images_that_nobody_has_are_not_named_as_what_would_decide():
    """At half the distance from the edge four times as many, and at most a hundred times."""
    needed = []
    for value in (0.002, 0.0015, 0.00101):
        estimate = stats.Estimate(value, (value - 0.002, value + 0.002))
        needed.append(stats.more_data((0.001, math.inf), estimate, 3, 14_000))
    assert needed.pop() == "too near the criterion's edge to decide"
    far, near = (float(text.split("about ")[1].split()[0].replace(",", "")) for text in needed)
    assert 3.5 < near / far < 4.5
