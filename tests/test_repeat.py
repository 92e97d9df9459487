"""benchmarks/repeat.py on rows made up for it: what agrees, what does not, what was refused."""

import pytest
import repeat


def hw_rows(ratio, low, high):
    """Rows of one run: the baseline, and a variant with a speed-up, or refused without one."""
    config = {"dataset": "digits", "model": "vgg5", "opt": "sgd"}
    variants = [("first", "fp32", 1.0, [1.0, 1.0]), ("second", "bf16", ratio, [low, high])]
    rows = []
    for name, label, ratio, interval in variants:
        speedup = {"ratio": ratio, "interval": interval, "baseline": "first"}
        row = {"kind": "hw_train", "run_id": name, "status": "ok" if ratio else "failed"}
        rows.append(row | {"config": config, "metrics": {"label": label, "speedup": speedup}})
    return rows


AGREES = "bf16: 1.50 (1.40 to 1.60), 1.60 (1.55 to 1.70), 1.55 (1.50 to 1.58): agrees"


@pytest.mark.parametrize(
    ("runs", "status", "printed"),
    [
        ([(1.5, 1.4, 1.6), (1.6, 1.55, 1.7), (1.55, 1.5, 1.58)], 0, AGREES),
        # each interval must meet every other one
        ([(1.5, 1.4, 1.6), (1.65, 1.55, 1.75), (1.8, 1.7, 1.9)], 1, "DIFFERS"),
        ([(1.5, 1.4, 1.6), (None, 0, 0), (1.5, 1.4, 1.6)], 1, "REFUSED 1 of 3 times"),
    ],
)
def test_intervals_of_repeated_measurements_agree_or_not(
    runs, status, printed, monkeypatch, capsys
):
    measured = iter(runs)
    monkeypatch.setattr(repeat, "measure", lambda flags, log: hw_rows(*next(measured)))
    assert repeat.main([]) == status
    out = capsys.readouterr().out
    assert printed in out
    assert "fp32:" not in out
