"""Timings: their summaries, ratios and noise; the device's peaks; energy counters."""

import inspect
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.base.config import HwTrainConfig
from common.models import build_model
from common.speed import peaks as roofline
from common.speed import timing
from common.speed.peaks import Peaks, count_layers, measure_peaks, train_bound_ms
from common.speed.samples import Side, ratio_interval

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("small_peaks")


def judged(*rounds, accept_noise=False):
    side = Side(HwTrainConfig(device="cpu", accept_noise=accept_noise))
    for number, round_ms in enumerate(rounds):
        side.add(list(round_ms), 0.5 * number or None, 10)
    side.judge()
    return side


def test_a_side_by_hand():
    side = judged([1, 4, 2], [100, 3], accept_noise=True)
    assert side.summary == {"median": 3, "iqr": 2, "n": 5}
    measured = side.measured("group", "step")
    assert measured["rounds"] == {"group": "group", "step_ms": [2, 51.5]}
    assert measured["energy_per_image_j"] == 0.5 / 10  # of the round that was metered
    assert measured["peak_memory_bytes"] is None


@pytest.mark.parametrize(
    ("noise", "refused"), [(0.0, False), (0.249, False), (0.251, True), (3.0, True)]
)
def test_noise_is_iqr_over_median_and_refused_beyond_a_quarter(noise, refused):
    samples = [10 - 5 * noise, 10.0, 10 + 5 * noise] * 3  # quartiles at the ends
    side, accepted = judged(samples), judged(samples, accept_noise=True)
    assert side.noise == accepted.noise == pytest.approx(noise)
    assert ((side.error is not None), accepted.error) == (refused, None)
    over = accepted.over(side, "hw_train")
    assert (over["ratio"], over["interval"]) == ((None if refused else 1.0), None)
    assert over["baseline_label"] == "cpu, eager"
    assert set(side.over(None, "hw_train").values()) == {None}


def test_a_ratio_is_the_geometric_mean_and_its_interval_students_of_blocks_or_launches():
    assert ratio_interval([3.0], [1.0]) == (pytest.approx(3), None)
    launched = [2.0, 8.0, 3.0, 3.0, 6.0, 6.0]  # two blocks in each of three launches
    for baseline, launches, means in (([2.0, 8.0], 1, [2, 8]), (launched, 3, [4, 3, 6])):
        ratio, interval = ratio_interval(baseline, [1.0] * len(baseline), launches)
        logs = np.log(means)
        student = stats.t.interval(0.95, len(logs) - 1, loc=logs.mean(), scale=stats.sem(logs))
        assert (ratio, *interval) == pytest.approx((np.exp(logs.mean()), *np.exp(student)))


def test_a_drift_that_both_sides_meet_is_in_no_interval():
    drift = np.linspace(1, 5, 10)
    noise = np.random.default_rng(0).normal(1, 0.01, (2, 10))
    ratio, (low, high) = ratio_interval(3 * drift * noise[0], drift * noise[1])
    assert low < 3 < high < low + 0.1
    assert ratio == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(("blocks", "launches"), [(2, 1), (3, 1), (10, 1), (30, 3)])
def test_intervals_hold_the_truth_as_often_as_they_say_over_launches(blocks, launches):
    """At 300 simulations a rate of 0.95 has a standard error of 0.013. Processes differ by more
    than their blocks do."""
    random, covered = np.random.default_rng(1), []
    for _ in range(300):
        process = random.normal(0, 0.05 if launches > 1 else 0, (2, launches))
        logs = random.normal(np.repeat(process, blocks // launches, axis=1), 0.01)
        intervals = [ratio_interval(*np.exp(logs), n)[1] for n in (launches, 1)]
        covered.append([low <= 1 <= high for low, high in intervals])
    over_launches, over_blocks = np.mean(covered, axis=0)
    assert over_launches == pytest.approx(0.95, abs=3 * 0.013)
    assert (over_blocks < 0.7) == (launches > 1)


def test_laps_add_up_what_comes_again(monkeypatch):
    clock = iter([0.0, 3.0, 4.0, 9.0])
    monkeypatch.setattr(timing, "now_ms", lambda device: next(clock))
    laps = timing.Laps(CPU)
    for phase in ("data", "copy", "data"):
        laps(phase)
    assert laps.ms == {"data": 8.0, "copy": 1.0}


def test_peak_memory_sees_what_was_freed_and_forgets_at_a_reset():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this kernel keeps no peak")
    timing.reset_peak_memory(CPU)
    before = timing.peak_memory_bytes(CPU)
    with mmap.mmap(-1, 2**27) as block:  # which no allocator keeps
        for page in range(0, 2**27, mmap.PAGESIZE):
            block[page] = 1
    seen = timing.peak_memory_bytes(CPU) - before
    timing.reset_peak_memory(CPU)
    assert 100 < seen / 2**20 < 160
    assert (timing.peak_memory_bytes(CPU) - before) / 2**20 < 64


def test_a_bound_is_the_slower_of_arithmetic_and_memory_layer_by_layer():
    convolution = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    costs = count_layers(model, 2, 8)
    passes = costs.train_step_macs / costs.macs
    conv_flops, linear_flops = 2 * 2 * 64 * 4 * 27, 2 * 2 * 256 * 10
    conv_moved = 2 * 3 * 64 + 2 * 4 * 64 + 108
    linear_moved = 2 * 256 + 2 * 10 + 2570
    for precision, peaks, seconds in (
        ("fp32", Peaks(1e6, 1e15), (conv_flops + linear_flops) / 1e6),
        ("bf16", Peaks(1e15, 1e6), 2 * (conv_moved + linear_moved) / 1e6),
        # 27,648 FLOPs against 4,016 bytes; 10,240 against 12,408
        ("fp32", Peaks(1e6, 1e6), (conv_flops + 4 * linear_moved) / 1e6),
    ):
        assert train_bound_ms(costs, peaks, precision) == pytest.approx(passes * seconds * 1e3)
    # which a network that multiplies outside of its layers has not
    assert count_layers(build_model("vit_b_16", 10, image_size=32), 1, 32) is None


def test_a_peak_is_that_of_the_fastest_work(monkeypatch):
    clock = iter([0.0, 4.0, 4.0, 6.0, 6.0, 7.0])  # ms: a product, a convolution, a copy
    monkeypatch.setattr(roofline, "now_ms", lambda device: next(clock))
    peaks = measure_peaks("cpu", "bf16", 1)
    product, convolution = 2 * 64**3 / 4e-3, 2 * 2 * 6**2 * 9 * 16**2 / 2e-3
    assert peaks.flops_per_s == pytest.approx(max(product, convolution))
    assert peaks.bytes_per_s == pytest.approx(2 * 2**16 / 1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_the_work_behind_a_peak_is_done_and_counted_on_data_that_differ(precision):
    kind = roofline.DTYPES[precision]
    (flops, product), *others = roofline.dense_works(64, kind, CPU)
    given = inspect.getclosurevars(product).nonlocals
    expected = given["a"].double() @ given["b"].double()
    torch.testing.assert_close(product().double(), expected, rtol=0.02, atol=0.2)
    assert (flops, len(others)) == (2 * 64**3, precision != "int8")
    for flops, convolution in others:
        with FlopCounterMode(display=False) as counter:
            convolution()
        assert flops == counter.get_total_flops()
    first, second = (roofline.random_values((64, 64), kind, CPU) for _ in range(2))
    assert torch.equal(first, second)  # the same each time
    assert len(first.unique()) > 200
    assert first.float().mean().abs() < first.float().std() * 2


def test_energy_is_the_sum_of_packages_through_a_wrap_and_what_cannot_be_read_is_no_zero(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(timing, "RAPL", tmp_path)
    assert timing.open_meter(CPU)() is None
    counters = [tmp_path / f"intel-rapl:{number}" / "energy_uj" for number in (0, 1)]
    for counter, start in zip(counters, ("secret", "500"), strict=True):
        counter.parent.mkdir()
        counter.write_text(f"{start}\n")
        counter.with_name("max_energy_range_uj").write_text("1000000\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0: not counted twice
    assert timing.open_meter(CPU)() is None
    counters[0].write_text("999000\n")
    meter = timing.open_meter(CPU)
    assert meter() == 0
    counters[0].write_text("1000\n")  # through its end
    counters[1].write_text("1500\n")
    for _ in range(2):
        assert meter() == pytest.approx((2000 + 1000) / 1e6)
    counters[1].unlink()  # it goes away
    assert meter() is None
