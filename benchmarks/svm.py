"""An SVM's answers by matrix products (svm.py) against SVC.predict of scikit-learn and, where it is
installed, of scikit-learn-intelex.

Every SVC is fitted once; then both ways answer all test images, in turns. The last line is JSON.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from functools import partial
from typing import Any

from joblib import cpu_count
from shared import ROOT, print_json, print_machine, print_table, with_range

from common.base.cli import Validated, option, parse_command_line, run_script
from common.base.config import SvmConfig

spec = importlib.util.spec_from_file_location("svm_script", ROOT / "svm.py")
svm = importlib.util.module_from_spec(spec)  # not by its name, which is this file's too
spec.loader.exec_module(svm)


class Options(Validated):
    """What is fitted, and how often it answers."""

    dataset: tuple[str, ...] = option(("mnist", "fashion"), "data sets")
    kernel: tuple[str, ...] = option(("poly", "rbf", "linear"), "kernels")
    samples: int = option(10_000, "training images", minimum=2)
    rounds: int = option(2, "answers of each way", minimum=1)
    threads: int = option(cpu_count(), "threads of our way", minimum=1)
    data_dir: str = option("data", "folder of the data sets")


def measure(engine: str, config: SvmConfig, options: Options) -> dict[str, Any]:
    """A row of the table: seconds, the median and range of the rounds."""
    x, y, *_ = svm.prepare_parts(config, options.data_dir)
    model = importlib.import_module(svm.ENGINES[engine][0]).SVC(kernel=config.kernel, max_iter=1000)
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):  # of max_iter
        model.fit(x["train"], y["train"])
    fit_s = time.perf_counter() - start
    ways = {"its own": model.predict, "ours": partial(svm.predict, model, jobs=options.threads)}
    seconds, answers = {name: [] for name in ways}, {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            answers[name] = way(x["test"])
            seconds[name].append(time.perf_counter() - start)
    equal = int((answers["its own"] == answers["ours"]).sum())
    row = {"data set": config.dataset, "kernel": config.kernel, "engine": engine}
    row |= {"fit s": f"{fit_s:.1f}"} | {f"{n}, s": with_range(s, 2) for n, s in seconds.items()}
    return row | {"equal answers": f"{equal} of {len(x['test'])}"}


def main(argv: list[str] | None = None) -> int:
    _, options = parse_command_line(argv, __doc__, options_class=Options)
    print_machine()
    engines = [e for e in ("sklearn", "sklearnex") if importlib.util.find_spec(e)]
    rows = []
    for dataset in options.dataset:
        for kernel in options.kernel:
            config = SvmConfig(dataset=dataset, kernel=kernel, samples=options.samples)
            rows += [measure(engine, config, options) for engine in engines]
    print_table(rows)
    print_json(results=rows)
    return 0


if __name__ == "__main__":
    run_script(main)
