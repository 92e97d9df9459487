"""report.html, as a file and in a real browser: what it shows, what it asks for, what it can do."""

import html.parser
import re
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from common.base.cli import as_dict
from common.base.config import SvmConfig, TrainConfig
from common.base.log import save_predictions
from common.data.datasets import load_dataset
from common.judge.stats import wilson_interval
from common.judge.tables import make_table
from common.report import figures, page
from common.report.figures import Point
from common.report.tables import runs_table
from tests.test_report import MARKUP, LogBuilder, fill

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"
VOID = {"meta", "link", "img", "input", "br"}


class Checker(html.parser.HTMLParser):
    """Every element closed in order; what it would fetch; identities used once."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.fetched, self.unnamed, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.fetched += [v for k, v in attributes if k in ("src", "srcset", "action", "data")]
        self.fetched += [found["href"]] if tag == "link" else []
        if tag == "img" and not found.get("alt"):
            self.unnamed.append(tag)
        if tag == "svg" and "aria-label" not in found and found.get("aria-hidden") != "true":
            self.unnamed.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def add_digits(log, *, seeds=(0, 1), evil=False):
    """Real images: runs on the digits whose mistakes are known, with logits."""
    data = load_dataset("digits")
    label = data.labels[:300].numpy()
    for seed in seeds:
        pred = label.copy()
        pred[:12] = (label[:12] + 1) % 10
        logits = np.random.default_rng(seed).normal(size=(300, 10))
        logits[np.arange(300), pred] += 9
        file = f"predictions/seed{seed}.npz"
        classes = [f"{EVIL}{c}" for c in range(10)] if evil else data.classes
        save_predictions(
            log.folder / file, pred=pred, label=label, index=np.arange(300), classes=classes,
            logits=logits,
        )  # fmt: skip
        run = log.train(288 / 300, val_acc=0.91, dataset="digits", seed=seed, file=file, opt="adam",
                        lr=0.02)  # fmt: skip
        for epoch in (1, 2, 3):
            metrics = {"epoch": epoch, "train_loss": 1 / epoch, "train_acc": 0.5 + epoch / 10,
                       "val_loss": 1.1 / epoch, "val_acc": 0.4 + epoch / 10 + seed / 100,
                       "lr": 1e-3, "train_ms": 7e5}  # fmt: skip
            config = as_dict(TrainConfig(dataset="digits", seed=seed, opt="adam", lr=0.02))
            log.add("epoch", config, metrics, name=run)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of a log that has everything, class names with markup among it."""
    log = LogBuilder(tmp_path_factory.mktemp("page") / "results")
    add_digits(log, evil=True)
    return fill(log).report().folder / "report.html"


@pytest.fixture(scope="module")
def text(file):
    return file.read_text()


# --- the file -------------------------------------------------------------------------------------


def test_it_is_well_formed_and_asks_for_nothing(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.unnamed == []
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.fetched
    assert all(address.startswith("data:") for address in checker.fetched)
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert not re.search(r"url\(|@import", style)
    links = set(re.findall(r'href="#([^"]+)"', text))
    assert links <= set(checker.ids)


def test_markup_in_the_log_is_text(text):
    assert text.count("<script") == 1
    assert "onerror=alert" not in re.sub(r"&#34;|&lt;.*?&gt;", "", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text
    checker = Checker()
    checker.feed(text)
    whole = "".join(checker.text)
    assert EVIL in whole
    assert MARKUP in whole


def test_markup_in_class_names_is_text_in_tex_and_markdown(file):
    tex, md = (file.with_suffix(suffix).read_text() for suffix in (".tex", ".md"))
    assert r"\textless{}script\textgreater{}alert(1)" in tex
    assert "<script>" not in tex
    assert not re.search(r"(?<!\\)<(script|img)", md)


def test_every_number_of_the_answer_is_there(text):
    answer = re.search(r'<div id="answer">(.*?)<nav', text, re.S)[1]
    words = " ".join(re.sub(r"<[^>]+>", " ", answer).split())
    assert "FashionMNIST resnet18, adam, rate 0.001, epochs 5 92.12 % on test" in words
    low, high = wilson_interval(round(0.9212 * 14_000), 14_000)
    interval = f"{100 * low:.2f} to {100 * high:.2f}"
    assert f"95 % interval {interval}, on 14,000 test images; one seed" in words
    assert "25 min of training on A_CPU &amp; more" in words
    assert "91.54 %, +0.58 points from it" in words
    assert "SVM, poly 86.12" in words  # of two alike the first by name


@pytest.mark.parametrize("better", ["train", "svm"])
def test_the_answer_is_the_best_on_validation_of_any_kind_whatever_its_test_accuracy(better):
    def row(kind, config):
        val_acc, test_acc = (0.95, 0.90) if kind == better else (0.94, 0.99)
        metrics = {"val_acc": val_acc, "test_acc": test_acc, "n_test": 1000, "train_ms": 1e3,
                   "fit_ms": 1e3}  # fmt: skip
        return {"kind": kind, "run_id": kind, "config": as_dict(config), "metrics": metrics}

    train, svm = row("train", TrainConfig()), row("svm", SvmConfig())
    (answer,) = page.build_answers([train], [svm])
    assert (answer["choice"]["run_id"], answer["choice"]["test_acc"]) == (better, 0.90)
    assert [other["test_acc"] for other in answer["others"]] == [0.99]
    assert [point.chosen for point in answer["points"]] == [better == "train", better == "svm"]


def test_the_gallery_shows_the_images_or_says_why_not(text, tmp_path):
    assert text.count("<title>Test image ") == 12 + 12  # surest mistakes, missed by both
    log = LogBuilder(tmp_path / "results")
    name = log.train(0.95, dataset="mnist", file=log.predictions("mnist", 0.95))
    out = log.report("--data-dir", str(tmp_path / "nowhere")).folder
    absent = (out / "report.html").read_text()
    assert "Confidence not stored" in absent
    log.train(0.95, dataset="mnist", file=log.predictions("mnist", 0.95), lr=0.5)
    out = log.report("--data-dir", str(tmp_path / "nowhere")).folder
    for suffix in ("html", "md", "tex"):
        said = (out / f"report.{suffix}").read_text().replace("\\allowbreak{}", "")
        assert "The images are not shown: no source has" in said
    assert "<title>Test image " not in absent
    assert name in absent


def test_a_report_of_320_runs_is_small(tmp_path):
    log = LogBuilder(tmp_path / "results")
    log.seconds = iter(lambda: 0, 1)
    facts = {"title": "t", "sections": [], "log_sha256": "0", "last": "now"}
    rows = []
    for seed in range(5):
        for i in range(64):
            config = as_dict(TrainConfig(lr=0.001 * (i + 1), seed=seed))
            base = {"run_id": f"{seed}-{i}", "config": config, "status": "ok", "error": None,
                    "env": {}, "time_utc": ""}  # fmt: skip
            rows.append(base | {"kind": "train", "metrics": {
                "val_acc": 0.9, "test_acc": 0.9 + i / 1000, "n_test": 14_000, "train_ms": 1e3 + i,
            }})  # fmt: skip
            rows += [base | {"kind": "epoch", "metrics": {
                "epoch": e, "train_acc": 0.5, "val_acc": 0.6, "train_loss": 1.0, "val_loss": 2 / e,
            }} for e in range(1, 301)]  # fmt: skip
    text = page.render_page(rows, runs_table(rows), **facts)
    assert text.count('type="checkbox"') == 320
    assert len(text.encode()) < 5e6


# --- charts ---------------------------------------------------------------------------------------


def test_pareto_front():
    def point(ms, accuracy):
        return Point("", ms, accuracy, (accuracy, accuracy))

    points = [point(1, 0.8), point(2, 0.7), point(2, 0.9), point(2, 0.85), point(3, 0.9),
              point(9, 0.95)]  # fmt: skip
    front = [(p.train_ms, p.test_acc) for p in figures.pareto_front(points)]
    assert front == [(1, 0.8), (2, 0.9), (9, 0.95)]


def placed(accuracies):
    """The height of each accuracy, in per cent, between 0 and 1 of the axes, and of the ticks."""
    axes = Figure().subplots()
    figures.scale_accuracy(axes, accuracies)
    to_axes = axes.transData + axes.transAxes.inverted()
    return [
        to_axes.transform([(0, value) for value in values])[:, 1].tolist()
        for values in (accuracies, axes.get_yticks())
    ]


@pytest.mark.parametrize("accuracies", [[100], [0], [10, 99, 100], [50, 50]])
def test_accuracies_stand_inside_the_axes_in_their_order(accuracies):
    places, ticks = placed(accuracies)
    assert places == sorted(places)
    assert all(0 <= y <= 1 for y in [*places, *ticks])


def test_a_tenth_of_the_error_is_as_far_anywhere():
    low, middle, high = placed([90, 99, 99.9])[0]
    assert middle - low == pytest.approx(high - middle)


@pytest.mark.parametrize("low", [0.0004, 1, 700])
@pytest.mark.parametrize("ratio", [1.5, 2, 7, 30, 900, 1e6])
def test_a_logarithmic_axis_has_ticks_but_not_too_many(low, ratio):
    ticks = list(figures.log_ticks(low, low * ratio))
    assert 1 <= len(ticks) <= 14
    assert ticks == sorted(ticks)
    assert len(ticks) >= 3 or ratio < 2


def test_speeds_of_one_label_are_bars_of_their_own():
    work = {"dataset": "fashion", "model": "resnet18", "opt": "sgd", "image_size": 224,
            "batch_size": 16, "label": "cpu", "test_acc": None}  # fmt: skip
    table = make_table("q2", [work | {"speedup": ratio} for ratio in (1.0, 3.1, None)])
    [figure] = figures.speedup_figure(table)
    [axes] = figure.draw().axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 3.1]


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(params=[(1280, "light"), (360, "dark")], ids=["wide", "narrow"])
def view(request, browser, file):
    """The page in a window; at the end it must have been silent and asked for nothing else."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    view = context.new_page()
    said, asked = [], []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("dialog", lambda dialog: said.append(dialog.message))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(file.as_uri())
    yield view
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]


def column(view, table, place):
    return view.locator(f"#table-{table} tbody tr:visible td:nth-child({place})").all_inner_texts()


def test_nothing_overflows_the_window(view):
    wide, window = view.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window


def test_a_table_sorts_both_ways_by_mouse_and_keyboard(view):
    head = view.locator("#table-runs th", has_text="Test").first
    place = view.locator("#table-runs th").all_inner_texts().index(head.inner_text()) + 1

    def shown():
        return [float(t) for t in column(view, "runs", place) if t != "-"]

    before = shown()
    head.click()
    assert shown() == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.press("Enter")
    assert shown() == sorted(before, reverse=True)
    assert before != shown()


def test_a_table_filters(view):
    rows = len(column(view, "runs", 1))
    field = view.locator("[data-filter=table-runs]")
    field.fill("fashion SVM")
    assert column(view, "runs", 1) == ["fashion", "fashion"]
    assert view.locator("#runs output").inner_text() == f"2 of {rows} rows"
    field.fill("")
    assert len(column(view, "runs", 1)) == rows


def test_a_curve_toggles(view):
    panel = view.locator(".curves").filter(has_text="digits")
    box = panel.locator("input[type=checkbox]").first
    run = box.get_attribute("value")
    curves = panel.locator(f'.curve[data-name="{run}"]')
    assert curves.count() == 4  # accuracy and loss, of validation and training images
    shown = panel.locator(".curve:visible").count()
    box.focus()
    view.keyboard.press("Space")
    assert panel.locator(".curve:visible").count() == shown - 4
    panel.get_by_role("button", name="Hide all").click()
    assert panel.locator(".curve:visible").count() == 0
    panel.get_by_role("button", name="Show all").press("Enter")
    assert panel.locator(".curve:visible").count() == shown


def test_the_keyboard_reaches_every_control(view):
    wanted = "a, input, button, summary, th[tabindex], .box"
    missed = """wanted => [...document.querySelectorAll(wanted)].filter(element => {
        element.focus(); return document.activeElement !== element }).length"""
    assert view.evaluate(missed, wanted) == 0
    view.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    kinds = set()
    for _ in range(40):
        view.keyboard.press("Tab")
        kinds.add(view.evaluate("document.activeElement.tagName"))
    assert {"A", "INPUT", "TH", "SUMMARY"} <= kinds
    outline = view.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_it_is_light_or_dark_as_the_reader_is(view):
    dark = view.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    red = view.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(red) < 60) is dark


def test_on_paper_there_are_no_controls_and_nothing_is_cut(browser, file):
    view = browser.new_page(viewport={"width": 1040, "height": 700})  # A4 landscape
    view.goto(file.as_uri())
    view.emulate_media(media="print")
    assert view.locator("nav:visible, .controls:visible").count() == 0
    cut = view.evaluate("""[...document.querySelectorAll('.box')].filter(
        box => box.scrollHeight > box.clientHeight + 1).length""")
    assert cut == 0
    assert view.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    view.close()
