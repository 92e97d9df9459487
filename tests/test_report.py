"""A log whose truth is known, and what the report must say of it, in every form."""

import csv
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

import report
from common.base.cli import UsageError, as_dict
from common.base.config import FlopsConfig, HwInferConfig, HwTrainConfig, SvmConfig, TrainConfig
from common.base.log import append_line, dumps_strict, read_rows, run_id, save_predictions
from common.data.datasets import load_dataset
from common.judge.tables import make_table
from common.report import columns, documents
from common.report.tables import build_tables
from tests.invented import Invented, only

ROOT = Path(report.__file__).parent
MARKUP = r"a_b & 50% #1 <b>x</b> | $y$ ^~ {z} \w `c` *d* --e [f](g) → é"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"
CLASSES = ["no_shoe", "a & b", "<b>", "x | y"]
LABELS = np.arange(400) % 4
N_TEST = 14_000
WAITING = "not measured, no finished run of it in the log: make {} measures it"


class LogBuilder(Invented):
    """An invented log that is written as the scripts do."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.path = folder, folder / "log.jsonl"
        folder.mkdir(parents=True)

    def add(self, kind, config, metrics, **more):
        env = {"python": "3.13.1", "cpu_count": 2, "load_average": [0.5, 0.4, 0.3]}
        env |= dict.fromkeys(("cpu", "device"), "A_CPU & more")
        name = super().add(kind, config, metrics, env=env, **more)
        append_line(self.path, dumps_strict(self.rows[-1]))
        return name

    def train(self, test_acc, *, val_acc=0.9, train_ms=1000.0, shared_with=None, file=None, **set):
        metrics = {"val_acc": val_acc, "test_acc": test_acc, "train_ms": train_ms, "n_test": N_TEST}
        metrics |= {"precision": "bf16", "shared_with": shared_with, "predictions": file}
        return self.add("train", TrainConfig(**set), metrics)

    def predictions(self, name, wrong, label=LABELS, classes=CLASSES, seed=None):
        """A file of them: of so many images, the first, the class after the right one; with logits
        where there is a seed of them."""
        pred = (label + (np.arange(len(label)) < wrong)) % len(classes)
        arrays = {"pred": pred, "label": label, "index": np.arange(len(label)), "classes": classes}
        if seed is not None:
            noise = np.random.default_rng(seed).normal(size=(len(label), len(classes)))
            arrays["logits"] = noise + 9 * np.eye(len(classes))[pred]
        file = f"predictions/{name}.npz"
        save_predictions(self.folder / file, **arrays)
        return file

    def rewrite(self, change):
        """Put the log's lines in another form."""
        lines = change(self.path.read_text().splitlines())
        self.path.write_text("".join(f"{line}\n" for line in lines))

    def tables(self):
        """What the CSV files would hold, by table: quick, since nothing is drawn."""
        tables, *_ = build_tables(*read_rows(self.path), self.folder, "data")
        return {t.key: list(csv.DictReader(io.StringIO(documents.csv_text(t)))) for t in tables}

    def texts(self):
        """The report as Markdown and LaTeX, without figures."""
        tables, *_ = build_tables(*read_rows(self.path), self.folder, "data")
        facts = documents.gather(tables, [])
        facts |= {"n_rows": 1, "log_sha256": "0", "last": "now"}
        return [documents.render(extension, **facts) for extension in ("md", "tex")]

    def report(self, *flags):
        assert report.main(["--results-dir", str(self.folder), "--no-pdf", *flags]) == 0
        return Written(self.folder / "report")


class Written:
    """A report that was written, and the names of its files."""

    def __init__(self, folder):
        self.folder, self.address = folder, (folder / "report.html").as_uri()
        self.files = {str(file.relative_to(folder)) for file in folder.rglob("*.*")}
        forms = ("html", "md", "tex")
        self.html, self.md, tex = ((folder / f"report.{form}").read_text() for form in forms)
        self.tex = tex.replace("-{}", "-")

    def csv(self, key):
        text = (self.folder / "csv" / f"{key}.csv").read_text()
        return list(csv.DictReader(io.StringIO(text)))


def section(title, md, tex):
    """What Markdown and LaTeX say in a section."""
    head = re.escape(rf"\section{{{title}}}")
    own = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", md, re.M | re.S)[1]
    return own, re.search(rf"{head}(.*?)(?=\\section|\\end{{document}})", tex, re.S)[1]


def cells_of(table):
    """A table's cells, read back from Markdown: headings first."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
    assert len({len(row) for row in rows}) == 1
    return [[re.sub(r"\\(\W|_)", r"\1", cell.strip()) for cell in row] for row in rows]


@pytest.fixture
def log(tmp_path):
    return LogBuilder(tmp_path / "results")


def fill(log):
    """Every kind of row, in both of the study's data sets and another, with markup in its text."""
    adam = {"dataset": "fashion", "opt": "adam", "pin_memory": True}
    best = log.train(0.9212, val_acc=0.93, train_ms=1.5e6, **adam)
    log.epochs(best, [0.86, 0.87], [0.8, 0.8], val_loss=None, train_ms=7e5)
    log.train(0.9012, shared_with=best, **adam | {"epochs": 3})
    log.train(0.9512, dataset="mnist", limit=10_000, image_size=32, opt="adam")
    log.train(0.95, dataset="digits", file=log.predictions("best", 20))
    for kernel, converged in (("rbf", False), ("poly", True)):
        metrics = {"test_acc": 0.8612, "val_acc": 0.86, "fit_ms": 7123.0, "predict_ms": 25_000.0}
        metrics |= {"n_support": 4321, "converged": converged, "n_test": N_TEST}
        log.add("svm", SvmConfig(dataset="fashion", kernel=kernel), metrics)
    flops = {"macs": 1_823_530_000, "flops": 3_647_060_000, "params": 11_181_642}
    thop = {"convention": "thop"}
    log.add("flops", as_dict(FlopsConfig(image_size=224)) | thop, flops | thop)
    for threads, ratio in ((1, 1.0), (2, 1.75)):
        metrics = {"images_per_s": 21.5, "step_ms": {"median": 744.0, "iqr": 5.0, "n": 10},
                   "first_step_ms": 900.0, "epoch_ms": 2.27e6, "extrapolated": True,
                   "test_acc": None, "label": f"{threads} {MARKUP}",
                   "speedup": {"ratio": ratio, "baseline_label": f"1 {MARKUP}"}}  # fmt: skip
        log.add("hw_train", HwTrainConfig(threads=threads), metrics)
    parity = {"images": N_TEST, "flips": 3, "max_abs_logit": 2.5e-5, "acc_delta": -0.0001}
    metrics = {"format": "onnx", "file": "exports/best.onnx", "size_bytes": 44_731_000}
    metrics |= {"sha256": "ab" * 32, "train_run_id": best, "parity": parity}
    log.add("export", as_dict(TrainConfig(**adam)) | {"format": "onnx"}, metrics)
    log.add(
        "hw_infer", HwInferConfig(train_run_id=best, engine="onnxruntime"),
        {"dataset": "fashion", "model": "resnet18", "engine": "onnxruntime", "scenario": "single",
         "batch_size": 1, "latency_ms": {"p50": 5.25, "p90": 6.5, "p99": 7.75, "n": 100},
         "images_per_s": 190.5, "test_acc": 0.9211, "flips": 7, "speedup_vs_eager": 2.25},
    )  # fmt: skip
    log.add("train", TrainConfig(lr=9.0), {}, status="failed", error=MARKUP)
    append_line(log.path, "{torn <b>")
    return log


def add_digits(log):
    """Real images: two runs on the digits whose mistakes are known, with logits, of classes whose
    names are markup."""
    label, names = load_dataset("digits").labels[:300].numpy(), [f"{EVIL}{c}" for c in range(10)]
    for seed in (0, 1):
        config = {"dataset": "digits", "seed": seed, "opt": "adam", "lr": 0.02}
        file = log.predictions(f"seed{seed}", 12, label, names, seed)
        run = log.train(288 / 300, val_acc=0.91, file=file, **config)
        val = [0.5 + seed / 100, 0.6 + seed / 100, 0.7 + seed / 100]
        log.epochs(run, val, [0.6, 0.7, 0.8], train_ms=7e5)
    return log


BEST = run_id("train", as_dict(TrainConfig(dataset="fashion", opt="adam", pin_memory=True)))
NO_RUN = {part: WAITING.format(part) for part in ("q1a", "q1b", "flops")}


@pytest.mark.parametrize(
    ("key", "where", "expected"),
    [
        ("q1a_fashion", {"model": "resnet18", "epochs": "5", "pin_memory": "True"},
         {"test_acc": 0.9212, "val_acc": 0.93, "train_ms": 1.5e6, "published_test_acc": 0.9154,
          "difference": 0.9212 - 0.9154}),
        ("q1a_fashion", {"epochs": "3", "pin_memory": "True"}, {"shared_with": BEST}),
        ("q1a_mnist", {"note": "reduced setup: 10000 training images, image size 32"},
         {"test_acc": 0.9512, "published_test_acc": "", "difference": ""}),
        (f"epochs_fashion_{BEST}", {"epoch": "1"}, {"val_acc": 0.86, "val_loss": ""}),
        ("q1b", {"dataset": "fashion", "kernel": "rbf"},
         {"test_acc": 0.8612, "fit_ms": 7123, "predict_ms": 25_000, "n_support": 4321,
          "published_test_acc": 0.8567, "published_fit_ms": 7558.53, "converged": "False",
          "note": "stopped by max_iter 1000"}),
        ("flops", {"convention": "thop"},
         {"macs": 1.82353e9, "published_macs": 1.824e9, "macs_difference": -470_000}),
        ("flops", {"model": "resnet50"}, {"note": NO_RUN["flops"]}),
        ("q2", {"speedup": "1.75"},
         {"images_per_s": 21.5, "step_ms": 744, "step_iqr_ms": 5, "extrapolated": "True",
          "test_acc": ""}),
        ("q2_published", {"model": "resnet50", "opt": "sgd", "device": "gpu"},
         {"published_speedup": 37.67, "epoch_ms": ""}),
        ("infer", {"engine": "onnxruntime"},
         {"p50_ms": 5.25, "p90_ms": 6.5, "p99_ms": 7.75, "flips": 7, "test_acc": 0.9211}),
        ("export", {"format": "onnx"}, {"flips": 3, "acc_delta": -0.0001, "sha256": "ab" * 32}),
        ("log", {"kind": "train"}, {"ok": 6, "failed": 1, "interrupted": 0, "superseded": 0}),
        ("commits", {"commit": "000000000000"}, {"rows": 22, "dirty": "False"}),
        ("environment", {"property": "cpu"}, {"value": "A_CPU & more", "rows": 22}),
    ],
)  # fmt: skip
def test_csv_holds_the_raw_values(whole, key, where, expected):
    row = only(whole.csv(key), **where)
    for name, value in expected.items():
        known = row[name] if isinstance(value, str) else float(row[name])
        assert known == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Which network?", ["92.12 % (91.66 to 92.56)", "91.54 %", "25.0 min"]),
        ("How good are support vector machines?", ["86.12", "85.54", "85.67", "7.12"]),
        ("What does a network cost?", ["1.8235", "1.8240", "11.18"]),
    ],
)
def test_markdown_and_latex_show_the_values(whole, title, shown):
    md, tex = section(title, whole.md, whole.tex)
    for text in shown:
        assert re.search(rf"\| +{re.escape(text)} +\|", md), text
        text = documents.escape_tex(text).replace("-{}", "-")
        assert re.search(rf"(}}|& ){re.escape(text)} (&|\\)", tex), text


def test_every_table_with_a_row_is_a_csv_file_that_markdown_and_the_page_have(whole):
    named = dict(re.findall(r"^\| (\S+)\.csv \| (\d+) \|", whole.md.replace("\\", ""), re.M))
    keys = {Path(name).stem for name in whole.files if name.startswith("csv/")}
    lengths = {key: n for key in keys if (n := len(whole.csv(key)))}
    alone = {key: n for key, n in lengths.items() if key in named}
    assert sum(map(int, named.values())) == sum(lengths.values())
    assert alone == {key: int(n) for key, n in named.items() if "*" not in key}
    others = [key for key in lengths if key not in named]
    assert all(any(fnmatch(key, pattern) for pattern in named) for key in others)
    assert set(re.findall(r'<table id="table-(\w+)"', whole.html)) == lengths.keys()


def test_the_report_is_short(whole):
    lines = whole.md.splitlines()
    assert len(lines) <= 300
    prose = [line for line in lines if not line.startswith("|")]
    assert max(map(len, prose)) < 800
    titles = [line.strip("# ") for line in lines if line.startswith("#")]
    assert len(titles) == len(set(titles))


def test_a_section_shows_one_figure_and_one_brief_table(whole):
    sections = documents.WORDS["sections"]
    for key in sections.keys() - {"claims"}:  # whose verdicts begin report.md
        md, tex = section(sections[key]["title"], whole.md, whole.tex)
        for text, extension in ((md, "png"), (tex, "pdf")):
            shown = re.findall(rf"figures/\w+\.{extension}", text)
            assert len(shown) <= 1 or key == "errors"  # a gallery for each data set
            assert set(shown) <= whole.files
        tables = re.findall(r"^\|:?-.*\n((?:\|.*\n)+)", md, re.M)
        assert [table.count("\n") <= 12 for table in tables] in ([], [True])
    brief = re.findall(r'<table id="table-answer-.*?</table>', whole.html, re.S)
    assert brief
    assert all(table.count("<tr") <= 13 for table in brief)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("limit", 100, "100 training images"), ("amp", False, "no mixed precision"),
        ("split", "official", "official split"), ("weights", "w.pt", "weights w.pt"),
        ("erase", 0.5, "random erasing (share 0.5)"),
        ("schedule", "triangular", "warm-up and linear decay"),
        ("translate", 2, "random shift by up to 2 px"),
    ],
)  # fmt: skip
def test_each_part_of_the_protocol_counts_and_is_said_in_words(log, name, value, words):
    log.train(0.9, dataset="mnist", **{name: value})
    rows = log.tables()["q1a_mnist"]
    assert f"setup: {words}" in rows[0]["note"]
    waiting = [row["note"] for row in rows if row["published_test_acc"]]
    assert waiting == [WAITING.format("q1a")] * 10


def test_what_the_study_left_open_does_not(log):
    for acc, same in ((0.97, {"seed": 3}), (0.98, {"data_on": "host"}), (0.99, {"compile": True})):
        log.train(acc, dataset="mnist", **same)
    rows = [row for row in log.tables()["q1a_mnist"] if row["test_acc"]]
    assert [row["published_test_acc"] for row in rows] == ["0.9933"] * len(rows)


def test_published_rows_without_a_run_say_what_measures_them(whole):
    rows = [row for row in whole.csv("q1a_fashion") if row["note"] == NO_RUN["q1a"]]
    assert len(rows) == 9  # of the study's ten, one was run
    assert all(row["published_test_acc"] and not row["test_acc"] for row in rows)
    assert [row["note"] for row in whole.csv("q1b")].count(NO_RUN["q1b"]) == 2
    notes = [row["note"] for row in whole.csv("published") if not row["test_acc"]]
    assert set(notes) == {NO_RUN["q1a"], NO_RUN["q1b"]}
    assert len(notes) == 14 + 2  # ResNet-18 with Adam stands beside every rate and length


def test_the_same_work_timed_on_two_machines_stands_twice_with_their_names(log):
    for images_per_s in (10.0, 20.0):
        log.add("hw_train", HwTrainConfig(device="cpu"), {"images_per_s": images_per_s})
    log.rewrite(lambda lines: [*lines, *(x.replace("A_CPU & more", "another") for x in lines)])
    records = [(r["images_per_s"], r["note"]) for r in log.tables()["q2"]]
    assert records == [("20", "A_CPU & more"), ("20", "another")]


def test_published_speeds_stand_beside_ours_or_what_would_measure_them(log):
    sampled = {"label": "all threads", "epoch_ms": 8e5, "extrapolated": True}
    whole = {"label": "whole", "epoch_ms": 9e5, "extrapolated": False, "test_acc": 0.8664}
    for device, work in (("cpu", {}), ("cuda", {"model": "resnet50"}), ("auto", {"opt": "adam"})):
        log.add("hw_train", HwTrainConfig(device=device, **work), sampled)
    log.add("hw_train", HwTrainConfig(device="cpu", compile=True, full_epoch=True), whole)
    log.add("hw_train", HwTrainConfig(device="cpu", opt="adam", image_size=64), sampled)
    needs_gpu = "not measured, needs a GPU: make q2 ARGS='--device cpu cuda' measures it"
    whole_cpu = {"label": "whole", "epoch_ms": "900000", "published_epoch_ms": "3269881"}
    whole_cpu |= {"test_acc": "0.8664", "published_test_acc": "0.8656", "note": ""}
    sampled_gpu = {"label": "all threads", "epoch_ms": "800000", "test_acc": ""}
    sampled_gpu["note"] = "no whole epoch was run: hw_bench.py --full-epoch does"
    for model, opt, device, expected in (
        ("resnet18", "sgd", "cpu", whole_cpu),
        ("resnet50", "sgd", "gpu", sampled_gpu),
        ("resnet18", "adam", "cpu", {"note": WAITING.format("q2")}),
        ("resnet18", "adam", "gpu", {"note": needs_gpu}),
    ):
        row = only(log.tables()["q2_published"], model=model, opt=opt, device=device)
        assert expected.items() <= row.items()


MEASURED_BY = {
    "Which network?": ("make q1a", ["train", "svm"]),
    "How good are support vector machines?": ("make q1b", ["svm"]),
    "How fast does it train?": ("make q2", ["hw_train"]),
    "What does a network cost?": ("make flops", ["flops"]),
    "How fast does it answer?": ("make best bench", ["hw_infer", "export"]),
}


@pytest.mark.parametrize("kept", [None, "train", "svm", "hw_train", "flops", "hw_infer", "export"])
def test_a_missing_part_is_named_with_the_command_that_measures_it(log, kept):
    known = f'"kind": "{kept}"', '"status": "failed"'
    fill(log).rewrite(lambda lines: [line for line in lines if any(k in line for k in known)])
    texts = log.texts()
    for title, (command, kinds) in MEASURED_BY.items():
        md, tex = section(title, *texts)
        missing = kept not in kinds
        assert (f"Not measured. `{command}` measures it." in md) is missing
        assert (rf"Not measured. \texttt{{{command}}}" in tex) is missing
        assert (f"- {title} Not measured: {command}\n" in texts[0]) is missing


def test_seeds_are_shown_as_mean_and_spread_never_as_the_best(log):
    accuracies = [0.9901, 0.9925, 0.9940]
    for seed, accuracy in enumerate(accuracies):
        log.train(accuracy, val_acc=0.99 + seed / 1000, train_ms=1000 + seed, seed=seed)
    row = only(log.tables()["q1a_mnist"], seeds="3")
    assert float(row["test_acc"]) == pytest.approx(statistics.fmean(accuracies))
    assert float(row["test_acc_sd"]) == pytest.approx(np.std(accuracies, ddof=1))
    assert (row["val_acc"], row["train_ms"]) == ("0.991", "1001")


def test_a_busy_machine_is_flagged(log):
    log.train(0.9215, dataset="fashion")
    log.rewrite(lambda lines: [line.replace("[0.5,", "[6.25,") for line in lines])
    row = only(log.tables()["q1a_fashion"], test_acc="0.9215")
    assert row["note"].startswith("busy machine: load 6.2, 2 of it its own; ")


def test_of_the_same_work_the_last_row_that_is_ok_counts(log):
    log.train(0.11)
    name = log.train(0.22)
    log.add("train", TrainConfig(), {}, status="failed", error="late", name=name)
    tables = log.tables()
    assert [r["test_acc"] for r in tables["q1a_mnist"] if r["test_acc"]] == ["0.22"]
    assert only(tables["log"], kind="train")["superseded"] == "1"
    assert only(tables["failed"], error="late")["retried"] == "done"


def relabel(path):
    with np.load(path) as saved:
        arrays = dict(saved)
    np.savez_compressed(path, **arrays | {"classes": arrays["classes"][:2]})


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("predictions/gone.npz", None, "cannot be used"),
        ("predictions/torn.npz", lambda p: p.write_bytes(p.read_bytes()[:300]), "cannot be used"),
        ("predictions/text.npz", lambda p: p.write_text("no zip"), "cannot be used"),
        ("../outside.npz", None, "outside the results folder"),
        (None, None, "names no predictions"),
        ("predictions/alien.npz", relabel, "its classes are not those of its images"),
        ("predictions/other.npz", lambda p: None, "has accuracy 0.900000, the row 0.95"),
    ],
)
def test_predictions_that_cannot_be_trusted_are_a_problem_not_a_crash(log, file, damage, reason):
    if damage:
        damage(log.folder / log.predictions(Path(file).stem, 40))
    name = log.train(0.95, dataset="digits", file=file)
    tables = log.tables()
    [problem] = (row["problem"] for row in tables["problems"])
    assert problem.startswith(f"run {name}: ")
    assert reason in problem
    assert f"classes_digits_{name}" not in tables


def test_lines_that_cannot_be_used_are_counted_by_reason_shown_and_said(log, capsys):
    log.train(0.9933)
    line = log.path.read_text().strip()
    newer, other = line.replace('"schema": 1', '"schema": 2'), line.replace('"train"', '"magic"', 1)
    log.rewrite(lambda lines: [*lines, *[newer] * 150, *[other] * 100, "{torn"])
    written = log.report()
    skipped = {row["problem"]: int(row["rows"]) for row in written.csv("skipped")}
    assert skipped["schema 2, this version reads 1"] == 150
    assert skipped["unknown kind 'magic'"] == 100
    assert sum(skipped.values()) == 251
    problems = written.csv("problems")
    assert "log.jsonl:2: skipped, schema 2" in problems[0]["problem"]
    assert len(problems) == 200
    listed = "252 problems, of which at most 200 are listed."  # predictions are the 252nd
    assert listed in written.html
    lines = capsys.readouterr().out.splitlines()
    answer = "99.33 % on test images (99.18 to 99.45; one seed, whose noise is not in it). "
    answer += "Training: 1 s."
    answer = f"MNIST, the study's split: ResNet-18, SGD, learning rate 0.001, 5 epochs: {answer}"
    assert " ".join(lines[:2]) == answer
    assert "missing: claim 6: make q1b" in lines
    assert len(lines) <= 25
    assert lines[-2].startswith("problems in the log: 252, the first: ")
    assert lines[-1] == f"report: {log.folder / 'report' / 'report.html'}"


@pytest.mark.parametrize("nulls", [False, True])
def test_rows_without_metrics_are_reported_all_the_same(log, nulls):
    rows = map(json.loads, fill(log).path.read_text().splitlines()[:-1])
    empty = [row | {"metrics": dict.fromkeys(row["metrics"] if nulls else ())} for row in rows]
    log.rewrite(lambda lines: map(dumps_strict, empty))
    written = log.report()
    assert not any(row["test_acc"] for row in written.csv("q1a_fashion"))
    assert only(written.csv("log"), kind="hw_infer")["ok"] == "1"


@pytest.mark.parametrize("content", [None, "", "{torn\n"])
def test_without_a_row_it_says_so(tmp_path, content):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(UsageError, match=r"^--results-dir: .*log.jsonl is no log to report on: "):
        report.main(["--results-dir", str(tmp_path)])
    assert not (tmp_path / "report").exists()


def test_a_folder_that_cannot_be_written_is_said_before_any_work(log):
    log.train(0.9)
    (log.folder / "report").write_text("a file")
    with pytest.raises(UsageError, match=r"--out: cannot write to .*report"):
        report.main(["--results-dir", str(log.folder)])


def test_the_readme_s_table_is_printed_and_nothing_written_or_drawn(log):
    flags = ["--results-dir", str(log.folder), "--readme"]
    log.add("train", TrainConfig(), {}, status="failed", error="early")
    with pytest.raises(UsageError, match="--readme: the log holds no accuracy yet"):
        report.main(flags)
    log.train(0.9212, dataset="fashion", opt="adam")
    before = set(log.folder.iterdir())
    code = f"import report, sys; report.main({flags}); assert 'matplotlib' not in sys.modules"
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    heads, _, line, *notes = printed.splitlines()
    cells = dict(zip(*cells_of(f"{heads}\n{line}"), strict=True))
    assert cells["Configuration"].startswith("FashionMNIST: ResNet-18, Adam, 5 epochs")
    assert cells["Test accuracy (95 % interval)"] == "92.12 % (91.66 to 92.56)"
    assert cells["The study's best"] == "91.54 %"
    assert "92.12 % of FashionMNIST's test images right" in notes[1]
    assert notes[-1].startswith("Of the study's 11 claims 11 are not measured: (1), (2), (3), ")
    assert set(log.folder.iterdir()) == before


def test_markup_in_the_log_is_text_in_markdown(whole):
    table = documents.markdown_table(make_table("failed", whole.csv("failed")))
    heads, _, row = cells_of(table)
    assert row[heads.index("Error")] == MARKUP
    assert not re.search(r"(?<!\\)<b>", table + whole.md)
    tables = re.findall(r"^(?:\|.*\n)+", whole.md, re.M)
    assert len(tables) >= 5
    for table in tables:  # each with as many cells in every row
        assert len(cells_of(table)) > 2


def test_latex_special_characters_are_escaped(whole):
    assert documents.escape_tex("50% & #1_$") == r"50\% \& \#1\_\allowbreak{}\$"
    assert documents.escape_tex("\\end{x} --flag") == r"\textbackslash{}end\{x\} -{}-{}flag"
    assert documents.escape_tex("éÿÅß→\x07") == "éÿ[U+00C5][U+00DF][U+2192][U+0007]"
    packages = re.findall(r"\\usepackage(?:\[.*?\])?{(.*?)}", whole.tex)  # of a plain LaTeX
    assert set(packages) <= {"booktabs", "graphicx", "geometry", "longtable", "hyperref"}


@pytest.mark.skipif(
    not any(map(shutil.which, documents.WORDS["tex"])),
    reason="no TeX here: apt-get install texlive-latex-base",
)
def test_the_pdf_is_compiled_aside_and_twice_the_same(log, tmp_path):
    report = fill(log).report()  # class names here are no longer than a line
    out, written = report.folder, []
    for _ in range(2):
        assert documents.write_pdf(out).startswith("report.pdf: by ")
        written.append((out / "report.pdf").read_bytes())
    if shutil.which("pdflatex"):
        flags = ["-interaction=nonstopmode", f"-output-directory={tmp_path}"]
        subprocess.run(["pdflatex", *flags, "report.tex"], cwd=out, capture_output=True, check=True)
        warned = (tmp_path / "report.log").read_text(errors="replace")
        assert not re.findall("Overfull|Missing character", warned)
    assert written[0] == written[1]
    assert written[0].startswith(b"%PDF")
    assert Written(out).files == report.files | {"report.pdf"}
    (out / "report.tex").write_text(r"\documentclass{article}\begin{document}\nonsense")
    assert re.search(r"^no report.pdf: \w+ failed, .*", documents.write_pdf(out))
    assert not (out / "report.pdf").exists()  # not an older one either


def test_without_tex_it_says_so_and_leaves_no_older_pdf(tmp_path, monkeypatch):
    (tmp_path / "report.pdf").write_text("older")
    monkeypatch.setenv("PATH", str(tmp_path))
    said = documents.write_pdf(tmp_path)
    assert said == "no report.pdf: neither pdflatex nor tectonic is installed"
    assert not (tmp_path / "report.pdf").exists()


@pytest.mark.parametrize(
    ("name", "column", "value", "text"),
    [
        ("contrasts", "low", -0.00004, "+0.00"), ("claim_parts", "low", -0.25, "-0.25"),
        ("contrasts", "p_holm", 0.0004, "< 0.001"), ("contrasts", "p_holm", 0.25, "0.250"),
        ("runs", "train_ms", 2500.0, "2.50"), ("q2", "step_ms", 2500.0, "2,500"),
        ("flops", "macs", 1.8e9, "1.8000"), ("q2", "speedup", 2.0, "2.00x"),
        ("runs", "seed", 12345, "12,345"), ("runs", "lr", 0.001, "0.001"),
        ("runs", "pin_memory", True, "yes"), ("runs", "note", None, "-"),
    ],
)  # fmt: skip
def test_a_value_is_shown_in_the_unit_of_its_heading(name, column, value, text):
    table = make_table(name, [{column: value, "kind": "a"}, {column: 1}], key="any")
    shown, rows = columns.shown(table)
    assert rows[0][[c.name for c in shown].index(column)] == text
