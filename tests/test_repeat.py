"""benchmarks/repeat.py on rows made up for it: what agrees, what does not, what was refused."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import repeat


def hw_rows(ratio, low, high, status="ok"):
    """Rows of one run: the baseline, and a variant with a speed-up."""
    config = {"dataset": "digits", "model": "vgg5", "opt": "sgd"}

    def row(name, label, speedup):
        metrics = {"label": label, "speedup": speedup | {"baseline": "first"}}
        return {"kind": "hw_train", "run_id": name, "status": status if name != "first" else "ok",
                "config": config, "metrics": metrics}  # fmt: skip

    return [
        row("first", "fp32", {"ratio": 1.0, "interval": [1.0, 1.0]}),
        row("second", "bf16", {"ratio": ratio, "interval": [low, high]}),
    ]


def run(monkeypatch, *runs):
    runs = iter(runs)
    monkeypatch.setattr(repeat, "measure", lambda flags, log: next(runs))
    return repeat.main([])


def test_three_overlapping_intervals_agree(monkeypatch, capsys):
    runs = [hw_rows(1.5, 1.4, 1.6), hw_rows(1.6, 1.55, 1.7), hw_rows(1.55, 1.5, 1.58)]
    assert run(monkeypatch, *runs) == 0
    said = capsys.readouterr().out
    assert "bf16: 1.50 (1.40 to 1.60), 1.60 (1.55 to 1.70), 1.55 (1.50 to 1.58): agrees" in said
    assert "fp32:" not in said


def test_each_interval_must_meet_every_other_one(monkeypatch, capsys):
    chain = [hw_rows(1.5, 1.4, 1.6), hw_rows(1.65, 1.55, 1.75), hw_rows(1.8, 1.7, 1.9)]
    assert run(monkeypatch, *chain) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_a_refused_measurement_is_no_agreement(monkeypatch, capsys):
    runs = [hw_rows(1.5, 1.4, 1.6), hw_rows(None, 0, 0, "failed"), hw_rows(1.5, 1.4, 1.6)]
    assert run(monkeypatch, *runs) == 1
    assert "REFUSED 1 of 3 times" in capsys.readouterr().out
