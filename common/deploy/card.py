"""A model card for an exported file; card.md.j2 has the words."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import jinja2
from scipy.stats import binomtest
from torch import nn

from common import cost
from common.base.log import Row
from common.data.scores import baseline


def write_card(rows: Sequence[Row], metrics: Row, checkpoint: Row, network: nn.Module) -> str:
    """What is known of a file, in Markdown, by the metrics of its export; the first of the rows is
    its training, of the others those of the same settings but seed and device are told too."""
    row, parity, size = rows[0], metrics["parity"], rows[0]["config"]["image_size"]
    facts: Row = {"row": row, "export": metrics, "checkpoint": checkpoint, "macs": None}
    with suppress(Exception):  # a layer that cannot run on the meta device
        facts["macs"] = cost.count_costs(network, (1, 3, size, size), "torch").macs
    facts["interval"] = binomtest(parity["right"], parity["images"]).proportion_ci(method="wilson")
    facts["baseline"] = baseline(row["metrics"])

    def recipe(row: Row) -> Row:
        return row["config"] | {"seed": None, "device": None}

    alike = [r for r in rows if r["run_id"] != row["run_id"] and recipe(r) == recipe(row)]
    facts["seeds"] = {r["config"].get("seed"): r["metrics"]["test_acc"] for r in alike}
    engine = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    engine.filters["md"] = lambda text: re.sub(r"[\\`*_\[\]<>|#]", r"\\\g<0>", str(text))
    engine.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    text = Path(__file__).with_name("card.md.j2").read_text("utf-8")
    return engine.from_string(text).render(facts)
