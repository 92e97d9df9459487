"""The log: nothing lost, nothing half-written, every fault named."""

import json
from pathlib import Path

import pytest
from processes import finish, start, wait_for

from common.base import log as base
from common.base.cli import UsageError
from common.base.log import Log, append_line, dumps_strict, read_rows, run_id


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path)


def test_a_row_comes_back_as_it_was_written_but_for_what_json_lacks(log):
    row = log.append("train", {"dataset": "digits", "seed": 0}, {"test_acc": 0.5, "note": "é\n"})
    assert read_rows(log.path) == ([row], [])
    assert row["run_id"] == run_id("train", {"seed": 0, "dataset": "digits"})
    others = {run_id("svm", row["config"]), run_id("train", {"seed": 1, "dataset": "digits"})}
    assert len(others - {row["run_id"]}) == 2
    assert (len(row["git"]["commit"]), type(row["git"]["dirty"])) == (40, bool)
    assert len(row["env"]["load_average"]) == 3
    text = dumps_strict({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}})
    assert text == '{"a": null, "b": [null, 1.5], "c": {"d": null}}'


def test_shards_are_read_as_one_log_but_by_who_writes_one(tmp_path):
    for shard, day in {None: "2026-01-02", "b": "2026-01-03", "a": "2026-01-01"}.items():
        log = Log(tmp_path, shard)
        row = log.append("svm", {"seed": 0}, {"day": day}) | {"time_utc": day}
        log.path.write_text(json.dumps(row) + "\nbroken\n")
    rows, problems = base.read_log(tmp_path)
    assert [row["metrics"]["day"][-1] for row in rows] == ["1", "2", "3"]
    files = [problem.split(":")[0].rsplit("/", 1)[1] for problem in problems]
    assert files == ["log.jsonl", "log.a.jsonl", "log.b.jsonl"]
    [last], [own] = Log(tmp_path).finished("svm").values(), Log(tmp_path, "a").read("svm")
    assert [row["metrics"]["day"][-1] for row in (last, own)] == ["3", "1"]


def test_the_last_successful_row_counts_and_a_line_cut_off_costs_nothing_else(log):
    first = log.append("svm", {"seed": 1}, {"n": 1})
    log.path.write_bytes(log.path.read_bytes() + log.path.read_bytes()[:40])
    second = log.append("svm", {"seed": 1}, {"n": 2})
    failed = log.append("svm", {"seed": 2}, {}, status="failed", error="it broke\nhere")
    rows, [problem] = read_rows(log.path)
    assert rows == [first, second, failed]
    assert failed["error"] == "it broke"
    assert "log.jsonl:2: skipped" in problem
    assert list(log.finished("svm").values()) == [second]


@pytest.mark.parametrize("kind", ["hw_train", "hw_infer", "train"])
def test_a_timing_of_another_machine_is_no_finished_work_here(log, kind):
    row = log.append(kind, {"seed": 1}, {})
    assert log.finished(kind).keys() == {row["run_id"]}
    for key in ("cpu", "cpu_model", "device"):  # servers of two generations may have one name
        elsewhere = row | {"run_id": "b", "env": row["env"] | {key: "another"}}
        append_line(log.path, json.dumps(elsewhere))
    assert (log.finished(kind).keys() == {row["run_id"]}) == (kind != "train")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"kind": "magic"}, "unknown kind 'magic'"),
        ({"status": ["fine"]}, "unknown status ['fine']"),
        ({"metrics": 3}, "metrics is no object"),
        ({"run_id": ["a"]}, "run_id is no string"),
        ({"config": {"lr": [0.1]}}, "lr [0.1] is no setting"),
        ({"metrics": {"epoch": [1]}}, "no integer"),
        ({"metrics": {"shared_with": ["a"]}}, "no run_id"),
        ({"metrics": {"test_acc": 1.5}}, "1.5 is no fraction"),
        ({"metrics": {"test_acc": float("nan")}}, "NaN is no JSON"),
    ],
)
def test_what_is_no_row_is_skipped_with_the_reason(log, change, why):
    row = log.append("svm", {"seed": 1}, {})
    bad = json.dumps(row | change) + "\n[1]\nnull\n\xff\n" + "[" * 100_000
    log.path.write_text(bad, encoding="latin-1")
    rows, problems = read_rows(log.path)
    assert (rows, len(problems)) == ([], 5)
    assert why in problems[0]


WRITER = """
import sys, time
from pathlib import Path
from common.base.log import append_line
path = Path(sys.argv[1])
path.with_name(f"ready {sys.argv[2]}").touch()
while not path.with_name("go").exists():
    time.sleep(0.001)
for i in range(150):
    append_line(path, f'{{"worker": {sys.argv[2]}, "i": {i}, "pad": "{"x" * 5000}"}}')
"""


def test_eight_processes_append_and_every_line_is_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    workers = [start("-c", WRITER, path, n) for n in range(8)]
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 8)
    (tmp_path / "go").touch()
    for worker in workers:
        finish(worker)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len({(line["worker"], line["i"]) for line in lines}) == 8 * 150


def test_what_cannot_be_written_is_one_line_and_what_was_there_stays(tmp_path):
    target = tmp_path / "a.bin"
    base.write_atomically(target, b"old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left"):
        base.write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(UsageError, match="--results-dir: cannot write"):
        Log(target / "results")
    with pytest.raises(UsageError, match=r"/dev/full: [Nn]o space"):
        append_line(Path("/dev/full"), "{}")
