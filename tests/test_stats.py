"""Statistics against formulas written out, and against statsmodels and scipy's own resampling."""

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from common.stats import (
    binomial_sd,
    holm,
    mcnemar,
    median_ratio_interval,
    needed_factor,
    newcombe_interval,
    paired_interval,
    prediction_interval,
    sign_flip_test,
    t_interval,
    wilson_interval,
)


def by_hand(correct, total, z=1.959963984540054):
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)


@pytest.mark.parametrize(
    ("correct", "total"), [(13906, 14000), (12816, 14000), (1, 3), (0, 10), (10, 10), (1, 1)]
)
def test_interval_is_the_formula(correct, total):
    assert wilson_interval(correct, total) == pytest.approx(by_hand(correct, total), abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(13906, 14000), (0, 10), (10, 10)])
def test_interval_is_that_of_statsmodels(correct, total):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(correct, total, alpha=0.1, method="wilson")
    assert wilson_interval(correct, total, 0.9) == pytest.approx(expected, abs=1e-12)


def test_the_study_s_accuracies_are_as_sure_as_its_test_images_let_them_be():
    low, high = wilson_interval(13906, 14000)
    assert (high - low) / 2 == pytest.approx(0.0014, abs=5e-5)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(ValueError, match=r"\d"):
        wilson_interval(correct, total)


def sums_of(first_only, second_only, images=1000):
    sums = np.zeros(images, int)
    sums[:first_only] = 1
    sums[first_only : first_only + second_only] = -1
    return sums


COUNTS = [(0, 0), (0, 1), (5, 5), (10, 2), (0, 40), (150, 100), (7, 8)]


@pytest.mark.parametrize(("b", "c"), COUNTS)
def test_mcnemar_is_that_of_statsmodels(b, c):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    expected = tables.mcnemar([[500, b], [c, 30]], exact=True).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("b", "c"), COUNTS)
def test_the_sign_flip_test_of_one_pair_is_mcnemar(b, c):
    assert sign_flip_test(sums_of(b, c)) == pytest.approx(mcnemar(b, c), rel=1e-9)


@pytest.mark.parametrize("sums", [[3, -1, 2, 0, 1], [2, 2, -2, 4], [5], [1, -1], [3, 3, 3, -1, 2]])
def test_the_sign_flip_test_is_that_of_all_sign_patterns(sums):
    patterns = itertools.product((1, -1), repeat=len(sums))
    flipped = [abs(sum(s * v for s, v in zip(p, sums, strict=True))) for p in patterns]
    expected = statistics.fmean(value >= abs(sum(sums)) for value in flipped)
    assert sign_flip_test(np.array(sums)) == pytest.approx(expected, rel=1e-12)


def test_swapping_the_sides_changes_no_p():
    sums = np.random.default_rng(1).integers(-8, 10, 300)
    assert sign_flip_test(sums) == pytest.approx(sign_flip_test(-sums), rel=1e-12)
    assert 0 < sign_flip_test(sums) < 1


@pytest.mark.parametrize("pairs", [1, 4])
def test_the_bootstrap_is_scipy_s_on_the_images(pairs):
    rng = np.random.default_rng(2)
    sums = np.where(rng.random(800) < 0.2, rng.integers(-pairs, pairs + 1, 800), 0) + (
        rng.random(800) < 0.05
    ).astype(int)
    sums = np.clip(sums, -pairs, pairs)
    whole = np.append(sums, [pairs, -pairs]) / pairs
    expected = stats.bootstrap((whole,), np.mean, n_resamples=5000, method="percentile", rng=rng)
    found = paired_interval(sums, pairs)
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.002)
    assert found == paired_interval(sums, pairs)


@pytest.mark.parametrize(("b", "c"), [(150, 100), (40, 40), (0, 60)])
def test_the_bootstrap_of_one_pair_is_near_bonett_and_price(b, c):
    n = 14_000
    p, q = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = 1.96 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    found = paired_interval(sums_of(b, c, n), 1)
    assert found == pytest.approx((p - q - half, p - q + half), abs=half / 8)


def test_without_a_discordant_image_there_is_still_doubt():
    low, high = paired_interval(sums_of(0, 0, 1000), 1)
    assert -0.005 < low < -0.001 < 0.001 < high < 0.005
    assert sign_flip_test(sums_of(0, 0)) == 1.0


@pytest.mark.parametrize(
    "p", [[0.01], [0.04, 0.01, 0.03], [0.02, 0.02, 0.02, 0.9], [1.0, 1.0], [1e-12, 0.5]]
)
def test_holm_is_that_of_statsmodels(p):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1].tolist())
    assert holm([]) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [((13906, 14000), (6900, 7000)), ((10, 10), (10, 10)), ((0, 5), (5, 5)), ((56, 70), (48, 80))],
)
def test_the_difference_of_two_samples_is_that_of_statsmodels(first, second):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.confint_proportions_2indep(*first, *second, method="newcomb")
    assert newcombe_interval(first, second) == pytest.approx(expected, abs=1e-9)


def test_the_mean_over_seeds_is_student_s():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    values = [0.99, 0.992, 0.985, 0.991]
    expected = weightstats.DescrStatsW(values).tconfint_mean()
    assert t_interval(values) == pytest.approx(expected)
    assert t_interval([0.99]) is None
    assert t_interval([0.99, 0.99]) == (0.99, 0.99)


def test_one_more_seed_falls_where_a_regression_on_a_constant_predicts():
    regression = pytest.importorskip("statsmodels.regression.linear_model")
    values = [0.99, 0.992, 0.985, 0.991]
    fitted = regression.OLS(values, np.ones(4)).fit()
    expected = fitted.get_prediction([1.0]).conf_int(obs=True)[0]
    assert prediction_interval(values) == pytest.approx(tuple(expected))


def test_the_noise_of_test_images_is_binomial():
    drawn = np.random.default_rng(3).binomial(500, 0.9, 200_000) / 500
    assert binomial_sd(0.9, 500) == pytest.approx(drawn.std(), rel=0.01)
    assert binomial_sd(1.0, 500) == 0.0


def test_the_ratio_of_medians_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(4)

    def summary(scale):
        sample = scale * (1 + 0.05 * rng.standard_normal(20))
        low, middle, high = np.quantile(sample, [0.25, 0.5, 0.75])
        return middle, high - low, 20

    intervals = [median_ratio_interval(summary(25.0), summary(1.0)) for _ in range(2000)]
    covered = statistics.fmean(low <= 25 <= high for low, high in intervals)
    assert 0.92 < covered < 0.98


def test_as_much_data_as_is_said_has_the_power():
    rng = np.random.default_rng(5)
    effect, sd, n = 0.4, 3.0, 100
    half = 1.96 * sd / math.sqrt(n)
    factor = needed_factor(effect, (effect - half, effect + half), 0.0)
    size = math.ceil(n * factor)
    means = rng.normal(effect, sd / math.sqrt(size), 20_000)
    assert (means - 1.96 * sd / math.sqrt(size) > 0).mean() == pytest.approx(0.8, abs=0.01)
    assert needed_factor(0.1, (0.0, 0.2), 0.1) == math.inf
