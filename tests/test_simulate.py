"""The simulation against what can be worked out by hand."""

import math
from dataclasses import replace

import pytest
import simulate as simulation
from simulate import Grid, simulate

COSTS = dict.fromkeys(("restart_s", "dispatch_s", "store_s", "append_s", "read_s", "sigma"), 0.0)
PLAIN = Grid(epoch_s=7.0, epochs=3, rows=1, mtbf_s=math.inf, **COSTS)


def test_one_worker_takes_the_sum_of_everything():
    end = simulate(replace(PLAIN, dispatch_s=0.5, store_s=2.0, append_s=0.25, rows=4), 10, 1)
    seconds = {"scheduler": 0.5, "files": 3 * 2.0, "log": (3 + 4) * 0.25, "efficiency": 3 * 7.0}
    assert end["makespan_s"] == 10 * sum(seconds.values())
    for name, part_s in seconds.items():
        assert end[name] == pytest.approx(10 * part_s / end["makespan_s"])


@pytest.mark.parametrize(
    ("changes", "n", "workers", "makespan_s"),
    [
        # A log for every worker is no limit, and is not read.
        ({"rows": 2, "append_s": 1.0, "sharded": True}, 2000, 2000, 21 + 5),
        ({"read_s": 0.5, "sharded": True}, 10, 1, 210),
        # Before trajectory k the log has 4 k rows, read three times over.
        ({"read_s": 0.5}, 10, 1, 210 + sum(0.5 * 3 * 4 * k for k in range(10))),
        # Both finish at 7 s; one appends until 8, the other until 9; so again, now a second apart.
        ({"append_s": 1.0, "rows": 0}, 2, 2, 3 * (7 + 1) + 1),
    ],
)
def test_what_the_log_costs_by_hand(changes, n, workers, makespan_s):
    assert simulate(replace(PLAIN, **changes), n, workers)["makespan_s"] == makespan_s


@pytest.mark.parametrize(("n", "workers"), [(10, 1), (10, 3), (12, 4), (3, 10), (1, 1), (1000, 7)])
def test_workers_without_noise_work_in_rounds(n, workers):
    end = simulate(PLAIN, n, workers)
    assert end["makespan_s"] == math.ceil(n / workers) * 21
    assert end["efficiency"] == pytest.approx(n * 21 / (workers * end["makespan_s"]))
    assert end["limit"] == "workers"


@pytest.mark.parametrize(
    ("part", "cost", "times"),
    [("log", "append_s", 5), ("files", "store_s", 3), ("scheduler", "dispatch_s", 1)],
)
def test_with_many_workers_a_part_that_serves_one_at_a_time_is_the_limit(part, cost, times):
    """Then it is busy from the first request to the last: all that it serves, and a start and an
    end that the first and the last worker are alone."""
    end = simulate(replace(PLAIN, rows=2, **{cost: 1.0}), 2000, 2000)
    assert 2000 * times <= end["makespan_s"] <= 2000 * times + 21
    assert end["limit"] == part


def test_failures_cost_what_the_closed_form_says():
    """An epoch of length d, failing at rate 1/m and then losing r, takes (m + r) (e^(d/m) - 1)."""
    n, grid = 20_000, replace(PLAIN, epoch_s=10.0, epochs=1, mtbf_s=8.0, restart_s=3.0)
    expected = (8 + 3) * (math.exp(10 / 8) - 1)
    first, again, other = (simulate(replace(grid, seed=seed), n, 1) for seed in (1, 1, 2))
    # The sd of one is about its mean: the tolerance is four standard errors.
    assert first["makespan_s"] / n == pytest.approx(expected, rel=4 / math.sqrt(n))
    assert first == again != other


def test_stragglers_change_the_end_and_not_the_mean():
    n, grid = 20_000, replace(PLAIN, epoch_s=10.0, epochs=1, sigma=0.5)
    sd = math.sqrt(math.exp(0.25) - 1)
    assert simulate(grid, n, 1)["makespan_s"] == pytest.approx(10 * n, rel=4 * sd / math.sqrt(n))
    one_each = simulate(grid, n, n)
    assert one_each["makespan_s"] > 10 * math.exp(-0.125 + 0.5 * 3)  # the slowest of so many
    assert one_each["efficiency"] < 0.3


def test_the_table_has_a_line_for_every_grid_with_no_more_workers_than_trainings(capsys):
    flags = ["--trajectories", "100", "--workers", "1", "1000", "10", "--sigma", "0"]
    assert simulation.main([*flags, "--mtbf-s", "inf"]) == 0
    head, _, *lines = [line.split("|") for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [line[2].strip() for line in (head, *lines)] == ["workers", "1", "10"]
    assert [line[5].strip() for line in lines] == ["100%", "100%"]
