"""The committed results: rows that are what they say, and a README and report made of them."""

import hashlib
import re

import numpy as np
import pytest
from processes import ROOT, finish, start

import report
from common.base.cli import expand_grid
from common.base.config import TrainConfig
from common.base.log import read_log, run_id
from common.predict import load_model
from common.report.documents import readme_results
from common.train.grid import train_id

REFERENCE = ROOT / "reference"
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def rows():
    found, problems = read_log(REFERENCE)
    assert problems == []
    return found


def test_every_row_has_the_name_of_its_work_and_was_measured_at_a_commit(rows):
    for row in (*rows, *read_log(REFERENCE / "cpu")[0]):
        kind = "train" if row["kind"] == "epoch" else row["kind"]
        assert row["run_id"] == run_id(kind, row["config"])
        assert (bool(row["git"]["commit"]), row["git"]["dirty"]) == (True, False)


@pytest.mark.parametrize("folder", [REFERENCE, REFERENCE / "cpu"])
def test_every_accuracy_is_that_of_its_predictions_and_none_are_left_over(folder):
    rows, problems = read_log(folder)
    tested = [row for row in rows if row["kind"] in ("train", "svm") and row["status"] == "ok"]
    for metrics in (row["metrics"] for row in tested):
        with np.load(folder / metrics["predictions"]) as saved:
            assert (saved["pred"] == saved["label"]).mean() == metrics["test_acc"]
            assert len(saved["label"]) == metrics["n_test"]
    stored = {f"predictions/{file.name}" for file in (folder / "predictions").iterdir()}
    assert stored == {row["metrics"]["predictions"] for row in tested}
    assert problems == []


def test_the_study_s_64_configurations_have_three_seeds_each_on_one_device(rows):
    how = {"device": ["cuda"], "data_on": ["device"], "cuda_graph": [True], "seed": [0, 1, 2]}
    grid = expand_grid(TrainConfig, TrainConfig.presets["q1a"] | how)
    done = {row["run_id"]: row for row in rows if row["kind"] == "train"}
    found = [done[name] for name in {train_id(config) for config in grid}]
    assert len(found) == 3 * 64
    assert {row["env"]["device"] for row in found} == {"NVIDIA H200"}
    for metrics in (row["metrics"] for row in found):
        assert [metrics[f"n_{part}"] for part in ("train", "val", "test")] == [49_000, 7000, 14_000]
        assert all(metrics[f"{part}_acc"] > 0.8 for part in ("train", "val", "test"))


def test_the_readme_prints_the_results_and_verdicts_and_a_figure_of_the_report_that_is_small(rows):
    [printed] = re.findall(r"<!-- results -->\n\n(.*?)\n\n<!-- /results -->", README, re.S)
    command = "python report.py --results-dir reference --readme"
    assert printed == readme_results(rows, REFERENCE), command
    [figure] = re.findall(r"!\[.*?\]\((reference/.*?\.png)\)", README, re.S)
    assert (ROOT / figure).parent == REFERENCE / "report" / "figures"
    assert (ROOT / figure).stat().st_size < 150_000


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_the_committed_networks_are_files_of_the_rows_that_they_name(name, rows):
    file = REFERENCE / "models" / f"{name}.onnx"
    sums = [line.split() for line in (file.parent / "SHA256SUMS").read_text().splitlines()]
    assert [hashlib.sha256(file.read_bytes()).hexdigest(), file.name] in sums
    assert file.stat().st_size < 5e6
    facts = load_model(file)[1]
    [row] = [r for r in rows if (r["kind"], r["run_id"]) == ("train", facts["train_run_id"])]
    assert row["config"]["dataset"] == facts["dataset"] == name
    assert row["metrics"]["test_acc"] == float(facts["fp32_test_acc"])


@pytest.mark.slow
def test_their_report_has_no_problem_and_the_same_bytes_in_every_process(tmp_path):
    folders = [tmp_path / "1", tmp_path / "2"]
    command = [report.__file__, "--results-dir", REFERENCE, "--no-pdf", "--out"]
    # By name: of Python's hashes, which order its sets.
    processes = [start(*command, folder, PYTHONHASHSEED=folder.name) for folder in folders]
    for process in processes:
        assert "problems in the log" not in finish(process)[0]
    files = [{f.relative_to(own): f.read_bytes() for f in own.rglob("*.*")} for own in folders]
    assert files[0] == files[1]
    assert len(files[0]) > 30
