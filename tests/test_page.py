"""report.html, as a file and in a real browser: what it shows, what it asks for, what it can do."""

import html.parser
import re
import shutil

import numpy as np
import pytest

from common.base.cli import as_dict
from common.base.config import TrainConfig
from common.base.log import save_predictions
from common.data.datasets import load_dataset
from common.judge.stats import wilson_interval
from common.report import figures, page
from common.report.tables import runs_table
from tests.invented import Invented
from tests.test_report import MARKUP, LogBuilder, fill

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"
VOID = {"meta", "link", "img", "input", "br"}


class Checker(html.parser.HTMLParser):
    """Every element closed in order; what it would fetch; identities used once."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.fetched, self.unnamed, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        self.open += [tag] if tag not in VOID else []

    def handle_startendtag(self, tag, attributes):
        known = dict(attributes)
        self.ids += [known["id"]] if "id" in known else []
        self.fetched += [v for k, v in attributes if k in ("src", "srcset", "action", "data")]
        self.fetched += [known["href"]] if tag == "link" else []
        named = "aria-label" in known or known.get("aria-hidden") == "true"
        if (tag == "img" and not known.get("alt")) or (tag == "svg" and not named):
            self.unnamed.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def add_digits(log):
    """Real images: two runs on the digits whose mistakes are known, with logits, of classes whose
    names are markup."""
    label = load_dataset("digits").labels[:300].numpy()
    for seed in (0, 1):
        pred = label.copy()
        pred[:12] = (label[:12] + 1) % 10
        logits = np.random.default_rng(seed).normal(size=(300, 10))
        logits[np.arange(300), pred] += 9
        arrays = {"pred": pred, "label": label, "index": np.arange(300), "logits": logits}
        file = f"predictions/seed{seed}.npz"
        save_predictions(log.folder / file, classes=[f"{EVIL}{c}" for c in range(10)], **arrays)
        config = {"dataset": "digits", "seed": seed, "opt": "adam", "lr": 0.02}
        run = log.train(288 / 300, val_acc=0.91, file=file, **config)
        for epoch in (1, 2, 3):
            metrics = {"epoch": epoch, "train_loss": 1 / epoch, "train_acc": 0.5 + epoch / 10,
                       "val_loss": 1.1 / epoch, "val_acc": 0.4 + epoch / 10 + seed / 100,
                       "lr": 1e-3, "train_ms": 7e5}  # fmt: skip
            log.add("epoch", as_dict(TrainConfig(**config)), metrics, name=run)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of a log that has everything, class names with markup among it."""
    log = LogBuilder(tmp_path_factory.mktemp("page") / "results")
    add_digits(log)
    return fill(log).report().folder / "report.html"


@pytest.fixture(scope="module")
def text(file):
    return file.read_text()


def test_it_is_well_formed_and_asks_for_nothing(text):
    checker = Checker(text)
    assert checker.open == checker.unnamed == []
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.fetched
    assert all(address.startswith("data:") for address in checker.fetched)
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert not re.search(r"url\(|@import", style)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(checker.ids)


def test_markup_in_the_log_is_text(file, text):
    assert text.count("<script") == 1
    assert "onerror=alert" not in re.sub(r"&#34;|&lt;.*?&gt;", "", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text
    shown = Checker(text).text
    assert EVIL in shown
    assert MARKUP in shown
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
    log = Invented()
    for kind, add in (("train", log.train), ("svm", log.svm)):
        val_acc, test_acc = (0.95, 0.90) if kind == better else (0.94, 0.99)
        add(0, {"val_acc": val_acc, "test_acc": test_acc, "fit_ms": 1e3})
    log.train(0, split="official")  # its test images are others
    [answer, official] = page.build_answers(log.rows)
    assert answer["choice"]["test_acc"] == 0.90
    assert [other["test_acc"] for other in answer["others"]] == [0.99]
    assert [point["chosen"] for point in answer["points"]] == [better == "train", better == "svm"]
    assert [point["test_acc"] for point in official["points"]] == [1.0]


def test_the_gallery_shows_the_images_or_says_why_not(text, tmp_path):
    assert text.count("<title>Test image ") == 12 + 12  # surest mistakes, missed by both
    log = LogBuilder(tmp_path / "results")
    nowhere = "--data-dir", str(tmp_path / "nowhere")
    name = log.train(0.95, dataset="mnist", file=log.predictions("mnist", 0.95))
    absent = (log.report(*nowhere).folder / "report.html").read_text()
    assert name in absent
    assert "Confidence not stored" in absent
    assert "<title>Test image " not in absent
    log.train(0.95, dataset="mnist", file=log.predictions("mnist", 0.95), lr=0.5)
    out = log.report(*nowhere).folder
    for suffix in ("html", "md", "tex"):
        written = (out / f"report.{suffix}").read_text().replace("\\allowbreak{}", "")
        assert "The images are not shown: no source has" in written


def test_a_report_of_320_runs_is_small():
    runs, epochs = [], []
    for i in range(320):
        config = as_dict(TrainConfig(lr=0.001 * (i // 5 + 1), seed=i % 5))
        base = {"run_id": f"run{i}", "config": config, "status": "ok", "error": None, "env": {}}
        metrics = {"val_acc": 0.9, "test_acc": 0.9 + i / 5000, "n_test": 14_000, "train_ms": 1e3}
        runs.append(base | {"kind": "train", "time_utc": "", "metrics": metrics})
        curve = {"train_acc": 0.5, "val_acc": 0.6, "train_loss": 1.0}
        curves = ({"epoch": e, "val_loss": 2 / e} | curve for e in range(1, 301))
        epochs += [base | {"metrics": metrics} for metrics in curves]
    facts = {"title": "t", "sections": [], "n_rows": 1, "log_sha256": "0", "last": "now"}
    text = page.render_page(runs, figures.curves_of(epochs), runs_table(runs), facts)
    assert text.count('type="checkbox"') == 320
    assert len(text.encode()) < 3e6


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


def test_nothing_overflows_the_window_and_it_is_as_light_as_the_reader_likes(view):
    wide, window = view.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window
    dark = view.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    red = view.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(red) < 60) is dark


def test_a_table_sorts_both_ways_by_mouse_and_keyboard_and_filters(view):
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
    rows, field = len(column(view, "runs", 1)), view.locator("[data-filter=table-runs]")
    field.fill("fashion SVM")
    assert column(view, "runs", 1) == ["fashion", "fashion"]
    assert view.locator("#runs output").inner_text() == f"2 of {rows} rows"
    field.fill("")
    assert len(column(view, "runs", 1)) == rows


def test_a_curve_toggles(view):
    panel = view.locator(".curves").filter(has_text="digits")
    box = panel.locator("input[type=checkbox]").first
    curves = panel.locator(f'.curve[data-name="{box.get_attribute("value")}"]')
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
