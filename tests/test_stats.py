"""Intervals against Wilson's formula written out, and against statsmodels where it is there."""

import math

import pytest

from common.stats import wilson_interval


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
