"""What the report concludes: the records that the sentences of findings.j2 are made of."""

import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

from common.base.cli import expand_grid, format_time
from common.base.config import TrainConfig
from common.base.machine import machine_of
from common.judge import claims, compare, published, race, rows
from common.judge.mistakes import Mistakes, confused_pairs
from common.judge.rows import Row, get, grouped, number
from common.judge.stats import SEEDS, VERDICTS, leads
from common.judge.tables import WORDS, Table, fields, make_table, significant
from common.train.grid import group_trajectories, look_up, time_epochs

Rows = Sequence[Row]

MUCH = 10  # times cheaper: told, whatever accuracy it costs
NEAR = 0.005  # of validation accuracy: what a user may give for a cheaper training
MOST_READ = 2  # sentences on speed in a section
MOST_ENGINES = 4  # and on inference, where each network has two scenarios
ROUNDING = 0.0003  # of test accuracy: what another machine may make of the same weights
# Plain text: every form of the report escapes what it shows.
TEMPLATES = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
TEMPLATES.loader = jinja2.FileSystemLoader(Path(__file__).parent)
TEMPLATES.globals |= {"spell": rows.spell, "VERDICTS": VERDICTS}
TEMPLATES.globals |= {"SEEDS": SEEDS, "significant": significant}


def judged_tables(log: Rows, load: compare.Load, errors: Sequence[Mistakes] = ()) -> list[Table]:
    """Every table that concludes something, the sentences of the report first."""
    evidence = compare.collect(log, load)
    train, svm, timed = (rows.latest_ok(log, kind) for kind in ("train", "svm", "hw_train"))
    races = race.race_records(log)
    contrasts, ties = compare.contrast_records(evidence), compare.tie_records(evidence)
    training, inference = (list(fastest(log, f"fastest_{k}")) for k in ("training", "inference"))
    training.sort(key=lambda record: -(record["images_per_s"] or 0))
    contests = contest_records(ties)
    answers = answer_records([*train, *svm], contests)
    settings = [row["config"] for row in (*train, *svm)]
    has = {name: {c.get(name) for c in settings} for name in ("dataset", "split", "model", "opt")}
    study = not rows.STUDY_DATASETS.keys().isdisjoint(rows.datasets_of([*train, *svm, *timed]))
    results = claims.judge_claims(evidence) if study else []
    lacks = missing_records(results, log)
    factors, svms = ([r for r in contrasts if r.get("kind") == kind] for kind in ("train", "svm"))
    confused = [(m.where, (~m.right).sum(), confused_pairs(m.predictions)) for m in errors]
    lines = {
        "study": sentences("study", has),
        "answer": sentences("answers", answers),
        "missing": sentences("missing", lacks),
        "q1a": [*sentences("race", races), *sentences("cheaper", contests, NEAR)],
        "statistics": sentences("recipes", contests)
        + sentences("preferences", *preferences(factors)),
        "errors": sentences("calibration", errors) + sentences("confused", confused),
        "q1b": sentences("kinds", list(kind_records(evidence)))
        + sentences("preferences", *preferences(svms)),
        "q2": sentences("variants", training[:MOST_READ], timed),
        "infer": sentences("engines", inference[:MOST_ENGINES]),
        "log": sentences("unlike", list(unlike_records(log))),
    }
    said = [{"section": key, "finding": line} for key, own in lines.items() for line in own]
    return [
        make_table("findings", said),
        make_table("answers", answers),
        published.results_table(train, svm),
        *race.race_tables(races),
        *claims.claims_tables(results, sentences("reasons", results)),
        make_table("needed", lacks),
        *compare.comparison_tables(evidence, contrasts, ties, train),
        published.published_table(train, svm),
        make_table("fastest_training", training),
        make_table("fastest_inference", inference),
    ]


def sentences(macro: str, *values: Any) -> list[str]:
    """What a macro of findings.j2 makes of values, a line for each paragraph."""
    text = getattr(TEMPLATES.get_template("findings.j2").module, macro)(*values)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def missing_records(results: Sequence[claims.Claim], log: Rows) -> list[Row]:
    """What would decide claims, or open parts of them: of each need the claims, what is lacking in
    words, the command, and how long it takes."""
    needs: dict[str | None, list[str]] = {}
    for result in results:
        for need, parts in grouped(result.parts, lambda part: part.needs).items():
            some = " in part" if len(parts) < len(result.parts) else ""
            needs.setdefault(need, []).append(f"{result.number}{some}")
    needs.pop(None, None)
    for need in [*needs]:  # what one command trains, the longer one trains too
        longer = need.replace("make q1a ARGS", "make q1a q1b ARGS")
        if longer != need and longer in needs:
            numbers = needs[longer] + needs.pop(need)
            needs[longer] = sorted(numbers, key=lambda name: int(name.split()[0]))
    records = []
    for need, numbers in needs.items():
        head, _, last = need.rpartition(": ")
        command = last if last.startswith(("make ", "python ")) else None
        card = "a CUDA card" if command and " cuda" in command else ""
        record = {"lacks": rows.join_notes(head if command else need, card), "command": command}
        records.append(record | {"claims": ", ".join(numbers), "time": time_of(need, log)})
    return records


def time_of(need: str, log: Rows) -> str | None:
    """How long the study's trainings take that a need asks for and the log lacks, one after the
    other, as far as the log has times of their like."""
    done = {row["run_id"]: row for row in rows.latest_ok(log, "train")}
    if "make q1a" not in need or not done:
        return None
    seeds = [int(seed) for seed in re.findall(r"\d+", need.partition("--seed")[2])] or [0]
    device = statistics.mode(row["config"].get("device") for row in done.values())
    grid = TrainConfig.presets["q1a"] | {"seed": seeds, "device": [device]}
    todo = group_trajectories(look_up(expand_grid(TrainConfig, grid), done)[1])
    times_ms = time_epochs({t.trained: t.trained.epochs for t in todo}, log)
    least = "more than" if len(times_ms) < len(todo) else "about"
    return f"{least} {format_time(sum(times_ms) / 1e3)}" if times_ms else None


def answer_records(runs: Rows, contests: Rows) -> list[Row]:
    """Of each data set and split what validation chooses, the cheapest that is as good, and by how
    much its validation accuracy surely overstates its test accuracy."""
    order, records = rows.datasets_of(runs), []
    known = {contest["chosen"]["run_id"]: contest for contest in contests}
    for same in grouped(runs, lambda row: rows.division(row["config"])).values():
        if not (group := rows.best_of(rows.configurations(same))):
            continue
        record = rows.choice_record(group) | {"dataset": group.config["dataset"]}
        contest = known.get(record["run_id"], {"n": 0, "open": ()})
        record |= {"where": rows.split_name(group.config), "cheaper": None, "bargain": None}
        record |= {"rivals": contest["n"], "open": len(contest["open"])}
        gap = compare.validation_gap(group) if group.kind == "train" else None
        if gap and gap["low"] > 0:
            record |= {"optimism": gap["optimism"], "optimism_low": gap["low"]}
            record["optimism_high"] = gap["high"]
        if (bargain := contest.get("bargain")) and bargain["ratio"] >= MUCH:
            less = f"{100 * bargain['test_acc']:.2f} %, {-100 * bargain['difference']:+.2f} points"
            record["much_cheaper"] = f"{bargain['setting']}: {bargain['cost']}, {less}"
            record["bargain"] = bargain
        if (best := contest.get("cheapest_tied")) and best["ratio"] > 1:
            record |= {"cheaper": best["setting"], "times_cheaper": best["ratio"]}
            record["rival"] = [best[k] for k in ("difference", "low", "high")]
        if figure := published.best_published(group):
            record |= published.beside(figure, group)
        records.append(record)
    return sorted(records, key=lambda record: order.index(record["dataset"]))


def contest_records(ties: Rows) -> list[Row]:
    """By split the chosen network, its rivals, and the cheapest tied with or near it."""
    contests = []
    for same in grouped(ties, lambda record: rows.division(record["group"].config)).values():
        chosen, *rivals = [record | rows.choice_record(record["group"]) for record in same]
        rivals = [r for r in rivals if "difference" in r]  # tested on images in common
        # No advice rests on Holm's adjustment alone.
        equal = [r for r in rivals if r["tied"] and not leads((r["low"], r["high"]))]
        for rival in (r for r in rivals if r["tied"]):  # a pair that cannot say more than the test
            ends = rival["estimate"].interval(compare.ALPHA / len(rivals))
            rival |= zip(("low", "high"), ends, strict=True)
        least = chosen["group"].val() - NEAR
        near = [r for r in rivals if (r["group"].val() or 0.0) >= least]
        contest = {"name": rows.split_name(chosen["group"].config), "chosen": chosen}
        contest |= {"metric": chosen["chosen_by"] or "accuracy", "n": len(rivals)}
        states = {"tied": True, "told": False, "open": None}
        contest |= {k: [r for r in rivals if r["tied"] is state] for k, state in states.items()}
        costs = {"cheapest_tied": cheapest(chosen, equal), "cheapest_near": cheapest(chosen, near)}
        worse = [r for r in contest["told"] if r["difference"] > 0]
        plain = (r for r in rivals if chosen["protocol"] and not r["protocol"])
        if best := next(plain, None):  # they are in order of validation
            figure = published.best_published(best["group"])
            best["beside"] = published.beside(figure, best["group"]) if figure else {}
        contest["study"] = best
        contests.append(contest | costs | {"bargain": cheapest(chosen, worse, anywhere=True)})
    return contests


def kind_records(evidence: compare.Evidence) -> Iterator[Row]:
    """Of each split the best network minus the best SVM, of whatever setup."""
    for same in grouped(evidence.groups, lambda group: rows.division(group.config)).values():
        sides = ([group for group in same if group.kind == kind] for kind in ("train", "svm"))
        pair = network, svm = tuple(map(rows.best_of, sides))
        if all(pair) and (effect := compare.measure_effect([pair])):
            names = {"where": rows.split_name(network.config), "svm": svm.name()}
            accs = {"network_acc": network.mean("test_acc"), "svm_acc": svm.mean("test_acc")}
            yield effect | names | accs


def cheapest(chosen: Row, rivals: Rows, anywhere: bool = False) -> Row | None:
    """The rival of least cost on the chosen one's machine, or on any with such a device, and how
    many times cheaper it is; of a CPU all threads count."""

    def cost(record: Row) -> float:  # 0: not known
        return (record["cost_ms"] or 0.0) * (record["threads"] or 1)

    def place(record: Row) -> Any:
        kind = rows.accelerator_of(record["group"].config)
        return (kind and record["device"]) if anywhere else record["machine"]

    alike = [r for r in rivals if cost(r) and place(r) == place(chosen)]
    best = min(alike, key=cost, default=None)
    return best and best | {"ratio": cost(chosen) / cost(best)}


def preferences(contrasts: Rows) -> tuple[list[Row], list[Row]]:
    """Contrasts that tell two levels apart, or surely depend on another factor; and the others."""
    told, open = [], []
    for record in (r for r in contrasts if "apart" in r and "p" in r):
        depends = [text for text, surely in record["apart"].items() if surely]
        sides = better, worse = record["sides"]
        effect = value, low, high = [record[k] for k in ("difference", "low", "high")]
        ahead, enough = leads((low, high)), record["seeds"] >= SEEDS
        if value < 0:
            better, worse, effect = worse, better, [-value, -high, -low]
        sure = ahead and not record["apart"] and record["p_holm"] <= compare.ALPHA
        why = "" if ahead else "there are too few seeds to say which is better"
        if enough:  # what may depend on something has a sentence of its own
            why = "" if record["apart"] else "no difference above 0.1 points is significant"
        record = record | {"name": rows.display(str(record["dataset"])), "depends": depends}
        record |= {"better": better, "worse": worse, "effect": effect, "why": why}
        record |= {"choice": " or ".join(sides), "leads": ahead and not record["apart"]}
        (told if enough and (depends or sure) else open).append(record)
    return told, open


def fastest(log: Rows, table: str) -> Iterator[Row]:
    """Of each work the fastest variant or engine that surely beats the first, and what is near."""
    words = WORDS[table]

    def values(row: Row, key: str) -> tuple[Any, ...]:
        return tuple(get(row, *path.split(".")) for path in words[key].split())

    whole = [r for r in rows.latest_ok(log, words["kind"]) if not get(r, "metrics", "quick")]
    every = [row["metrics"] for row in whole]
    ends = [m.get("speedup_interval") or get(m, "speedup", "interval") or [0.0, 0.0] for m in every]
    whole = [row | {"interval": pair} for row, pair in zip(whole, ends, strict=True)]
    for group in grouped(whole, lambda r: (machine_of(r["env"]), values(r, "work"))).values():
        if not (sure := [row for row in group if row["interval"][0] > 1]):
            continue
        best = max(sure, key=lambda row: number(row, "metrics", "images_per_s") or 0.0)
        alike = [row for row in group if values(row, "first") == values(best, "first")]
        near = [r for r in alike if r["interval"][1] >= best["interval"][0]]
        names = dict.fromkeys(get(row, "metrics", words["variant"]) for row in (best, *near))
        eager = [row["metrics"] for row in alike if get(row, "metrics", "engine") == "eager"]
        more = {"near": "; ".join([*names][1:]) or None, "note": rows.noise_note(best) or None}
        more["over"] = get(best, "metrics", "speedup", "baseline_label") or words["over"]
        more["eager"] = eager[0] if eager else None
        yield best["config"] | best["metrics"] | fields(best, table) | more


def unlike_records(log: Rows) -> Iterator[Row]:
    """Runs of one name that have several test accuracies: trained on two machines, say, of which
    inference was measured with the weights that are not in the row that counts."""
    eager = [r for r in rows.latest_ok(log, "hw_infer") if get(r, "metrics", "engine") == "eager"]
    tested = [r for r in log if r["kind"] in rows.DEFAULTS and r["status"] == "ok"]
    tested = [r for r in (*tested, *eager) if number(r, "metrics", "test_acc") is not None]
    runs = grouped(tested, lambda r: r["config"].get("train_run_id") or r["run_id"])
    for name, same in runs.items():
        accuracies = {row["metrics"]["test_acc"]: row for row in same[::-1]}  # of one the first
        if max(accuracies) - min(accuracies) > ROUNDING:
            yield {"run_id": name, "rows": list(accuracies.values())[::-1]}
