"""report.html, as a file and in a real browser: what it shows, what it asks for, what it can do."""

import csv
import html.parser
import io
import re
import shutil

import pytest

from common.base.cli import as_dict
from common.base.config import TrainConfig
from common.judge.findings import judged_tables
from common.judge.stats import wilson_interval
from common.judge.tables import make_table
from common.report import documents, figures
from common.report.tables import build_tables
from tests.invented import Invented
from tests.test_report import EVIL, MARKUP, LogBuilder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
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


def test_it_is_well_formed_and_asks_for_nothing(whole):
    text, checker = whole.html, Checker(whole.html)
    assert checker.open == checker.unnamed == []
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.fetched
    assert all(address.startswith("data:") for address in checker.fetched)
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert not re.search(r"url\(|@import", style)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(checker.ids)


def test_markup_in_the_log_is_text(whole):
    text = whole.html
    assert text.count("<script") == 1
    assert "onerror=alert" not in re.sub(r"&#34;|&lt;.*?&gt;", "", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text
    shown = Checker(text).text
    assert EVIL in shown
    assert MARKUP in shown
    table = make_table("failed", [{"error": EVIL}])
    assert not re.search(r"(?<!\\)<(script|img)", documents.markdown_table(table))


def plain(text, start, end):
    words = re.search(f"{start}(.*?){end}", text, re.S)[1]
    return " ".join(re.sub(r"<[^>]+>", " ", words).split())


def test_every_number_of_the_answer_is_there(whole):
    words = plain(whole.html, '<div id="answer">', "</main>")
    low, high = (100 * end for end in wilson_interval(round(0.9212 * 14_000), 14_000))
    for answer in (
        "FashionMNIST, the study&#39;s split 92.12 % of the test images right ResNet-18, Adam, "
        f"learning rate 0.001, 5 epochs How sure {low:.2f} to {high:.2f} (95 %); 14,000 test "
        "images, one seed: how far another training would differ is not in it Training 25.0 min "
        "on A_CPU &amp; more Published 91.54 %; this is +0.58 points Setup the study&#39;s Runs "
        "seed 0",
        "(reduced setup: 10000 training images, image size 32) How sure",
        "Runs seed 0 , 1",
    ):
        assert answer in words
    assert "claim 6: make q1b" in plain(whole.html, '<section id="missing">', "</section>")


@pytest.mark.parametrize("better", ["train", "svm"])
def test_the_answer_is_the_best_on_validation_of_any_kind_whatever_its_test_accuracy(better):
    log = Invented()
    for kind, add in (("train", log.train), ("svm", log.svm)):
        val_acc, test_acc = (0.95, 0.90) if kind == better else (0.94, 0.99)
        add(0, {"val_acc": val_acc, "test_acc": test_acc, "fit_ms": 1e3})
    log.train(0, split="official")  # its test images are others
    tables = judged_tables(log.rows, lambda row: (None, "none"))
    [known] = (table.records for table in tables if table.key == "answers")
    accuracy = {record["where"]: record["test_acc"] for record in known}
    assert accuracy == {"MNIST, the study's split": 0.90, "MNIST, official split": 1.0}


def test_the_gallery_shows_the_images_or_says_why_not(whole, tmp_path):
    assert whole.html.count("<title>Test image ") == 12 + 12  # surest mistakes, missed by both
    log = LogBuilder(tmp_path / "results")
    nowhere = "--data-dir", str(tmp_path / "nowhere")
    name = log.train(0.95, dataset="mnist", file=log.predictions("mnist", 20))
    absent = log.report(*nowhere).html
    assert name in absent
    assert "Confidence is empty where a predictions file holds labels alone." in absent
    assert "<title>Test image " not in absent
    file = log.predictions("logits", 20, seed=0)
    log.train(0.95, val_acc=0.99, dataset="mnist", file=file, lr=0.5)
    assert "The images are not shown: no source has" in log.report(*nowhere).html


def test_a_report_of_320_runs_is_small(tmp_path):
    runs, epochs = [], []
    for i in range(320):
        config = as_dict(TrainConfig(lr=0.001 * (i // 5 + 1), seed=i % 5))
        base = {"run_id": f"run{i}", "config": config, "status": "ok", "error": None, "env": {}}
        metrics = {"val_acc": 0.9, "test_acc": 0.9 + i / 5000, "n_test": 14_000, "train_ms": 1e3}
        runs.append(base | {"kind": "train", "time_utc": "", "metrics": metrics})
        curve = {"train_acc": 0.5, "val_acc": 0.6, "train_loss": 1.0}
        curves = ({"epoch": e, "val_loss": 2 / e} | curve for e in range(1, 301))
        epochs += [base | {"metrics": metrics} for metrics in curves]
    facts = documents.gather(build_tables(runs, [], tmp_path, "data")[0], [])
    facts |= {"n_rows": 1, "log_sha256": "0", "last": "now"}
    text = documents.render_page(figures.build_panels(figures.curves_of(epochs)), 8, facts)
    assert text.count('type="checkbox"') == 320
    assert len(text.encode()) < 3e6


def test_labels_hold_only_what_tells_the_runs_apart():
    same = {"dataset": "mnist", "model": "resnet18", "opt": "sgd", "lr": 0.1, "weight_decay": 0.0}
    configs = [same | {"seed": 0}, same | {"seed": 1}, same | {"opt": "adam", "weight_decay": 0.1}]
    assert figures.short_labels([c | {"seed": c.get("seed", 0)} for c in configs]) == [
        "ResNet-18, SGD, seed 0", "ResNet-18, SGD, seed 1", "ResNet-18, Adam, seed 0",
    ]  # fmt: skip
    assert figures.short_labels(configs[:1]) == ["ResNet-18"]


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
def view(request, browser, whole):
    """The page in a window; at the end it must have been silent and asked for nothing else."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    view = context.new_page()
    said, asked = [], []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("dialog", lambda dialog: said.append(dialog.message))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(whole.address)
    yield view
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [whole.address]


def column(view, table, place):
    return view.locator(f"#table-{table} tbody tr:visible td:nth-child({place})").all_inner_texts()


def unfold(view):
    view.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")


def overflow(view):
    return view.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_nothing_overflows_window_or_box_and_it_is_as_light_as_the_reader_likes(view):
    assert overflow(view) <= 0
    unfold(view)
    assert overflow(view) <= 0
    heights = """[...document.querySelectorAll('.box')].map(box => [
        box.querySelectorAll('tbody tr').length, box.scrollHeight - box.clientHeight])"""
    assert all(rows > 30 or more <= 1 for rows, more in view.evaluate(heights))
    dark = view.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    red = view.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(red) < 60) is dark
    filters = """selector => [...document.querySelectorAll(selector)].map(
        element => getComputedStyle(element).filter !== 'none')"""
    for drawn in ("svg.drawn", ".photographs image"):
        assert set(view.evaluate(filters, drawn)) == {dark}
    assert not any(view.evaluate(filters, ".drawn:not(.photographs) image"))


def test_verdicts_have_a_sign_and_a_link_that_unfolds_the_row_behind_them(view):
    first = view.locator(".claims li").first
    sign = first.evaluate("item => getComputedStyle(item, '::before').content")
    assert sign == '"–"'  # not measured
    row = view.locator("#claim_parts-1")
    assert not row.is_visible()
    first.get_by_role("link").press("Enter")
    assert row.is_visible()
    assert row.locator("td").first.inner_text() == "1"
    run = view.locator("article a").first
    target = view.locator(run.get_attribute("href"))
    view.evaluate("document.getElementById('runs').closest('details').open = true")
    view.locator("[data-filter=table-runs]").fill("no such run")
    assert not target.is_visible()
    run.click()
    assert target.is_visible()


def test_a_table_sorts_both_ways_by_mouse_and_keyboard_and_filters(view):
    unfold(view)
    head = view.locator("#table-runs th[data-name=test_acc]")
    place = 1 + head.evaluate("head => head.cellIndex")

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
    assert column(view, "runs", 1) == ["FashionMNIST", "FashionMNIST"]
    assert view.locator("#runs output").inner_text() == f"2 of {rows} rows"
    field.fill("mnist, resnet-18")  # words as the page writes them, each from its beginning
    assert set(column(view, "runs", 1)) == {"MNIST"}
    field.fill("")
    assert len(column(view, "runs", 1)) == rows


@pytest.mark.parametrize("allowed", [True, False], ids=["clipboard", "selection"])
def test_a_table_is_copied_as_its_csv_file_has_it(view, whole, allowed):
    unfold(view)
    if not allowed:
        view.evaluate("void (navigator.clipboard.writeText = () => Promise.reject())")
    for key, words in (("runs", ""), ("runs", "SVM"), ("failed", "")):
        if words:
            view.locator(f"[data-filter=table-{key}]").fill(words)
        view.locator(f"[data-copy=table-{key}]").press("Enter")
        view.locator(f"#{key} output", has_text="copied").wait_for()
        text = view.evaluate("navigator.clipboard.readText()")
        copied = list(csv.DictReader(io.StringIO(text.replace("\r", ""))))
        raw = [row for row in whole.csv(key) if words in "".join(row.values())]
        for mine, record in zip(copied, raw, strict=True):
            assert len(mine) > 3
            for name, value in mine.items():
                same = value == record[name]
                assert same or float(value) == pytest.approx(float(record[name]), rel=1e-9)
    assert view.locator("textarea").count() == 0


def test_where_nothing_may_copy_the_text_is_there_selected(view):
    view.evaluate("void (navigator.clipboard.writeText = () => Promise.reject())")
    view.evaluate("void (document.execCommand = () => false)")
    view.locator("[data-copy=table-answer-results]").click()
    view.locator("#answer-results output", has_text="press Ctrl+C to copy").wait_for()
    assert view.evaluate("getSelection().toString()").startswith("what,test_accuracy,published,")


def test_a_curve_toggles(view):
    view.get_by_text("Learning curves of every run").click()
    panel = view.locator(".curves").filter(has_text="digits")
    assert panel.locator("h3").inner_text() == "digits, random split"
    assert "ResNet-18, seed 0" in panel.locator(".choices").inner_text()
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
    view.get_by_text("Learning curves of every run").press("Enter")
    assert view.locator("#curves fieldset").first.is_visible()
    unfold(view)
    view.evaluate("new Promise(requestAnimationFrame)")  # until it is known what scrolls
    wanted = "a, input, button, summary, th[tabindex], .tall"
    missed = """wanted => [...document.querySelectorAll(wanted)].filter(element => {
        element.focus(); return document.activeElement !== element }).length"""
    assert view.evaluate(missed, wanted) == 0
    view.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    kinds = set()
    for _ in range(60):
        view.keyboard.press("Tab")
        kinds.add(view.evaluate("document.activeElement.tagName"))
    assert {"A", "INPUT", "TH", "SUMMARY", "BUTTON"} <= kinds
    outline = view.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_on_paper_there_are_no_controls_nothing_is_cut_and_what_is_folded_stays_so(browser, whole):
    view = browser.new_page(viewport={"width": 680, "height": 1000})  # A4 and its margins
    view.goto(whole.address)
    view.emulate_media(media="print")
    assert view.locator("nav:visible, .controls:visible, details:visible").count() == 0
    assert view.locator("table:visible").count() >= 6
    cut = view.evaluate("""[...document.querySelectorAll('.box')].filter(box =>
        box.scrollHeight > box.clientHeight + 1 || box.scrollWidth > box.clientWidth).length""")
    assert cut == 0
    pages = view.pdf(prefer_css_page_size=True)
    assert pages.startswith(b"%PDF")
    assert max(map(int, re.findall(rb"/Count (\d+)", pages))) <= 10
    view.close()
