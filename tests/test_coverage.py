"""Intervals and verdicts in simulations whose truth is known; benchmarks/coverage.py has more."""

import pytest
from coverage import Design, check_design, check_number


@pytest.mark.parametrize(
    ("seeds", "noise"), [((range(3), range(3, 6)), 0), ((range(2), range(10)), 3)]
)
def test_the_interval_holds_the_truth_and_verdicts_are_seldom_wrong(seeds, noise):
    """At 80 simulations of three truths a rate of 0.95 has a standard error of 0.014."""
    rates = check_design(Design(seeds, 1, noise, images=1000), sims=80)
    assert rates["coverage"] > 0.93
    assert rates["accuracy"] > 0.9
    assert rates["told apart"] <= 0.05
    assert rates["wrong"] <= 0.05


def test_the_number_of_seeds_that_is_named_has_the_power():
    """At 150 simulations a power of 0.8 has a standard error of 0.033."""
    assert 0.74 < check_number(1, 3, 0.02, images=2000, sims=150)["power"] < 0.88
