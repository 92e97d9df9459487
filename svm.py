"""Fit and test support vector machines, one or a grid of them where a flag has several values.

    python svm.py --dataset mnist fashion --kernel poly rbf
    python svm.py --preset smoke

Method: SVC on `samples` images of the training split, drawn by the seed, with pixels scaled to
[0, 1]. Fit and prediction of the test split are timed apart, features and validation outside of
both. max_iter bounds the solver in each pair of classes, and a machine stopped by it is marked as
not converged; scikit-learn alone reports that. The other engines leave `converged` null, and their
iterations are not scikit-learn's: max_iter bounds outer steps of many updates each in oneDAL.

Writes to --results-dir: log.jsonl (kind svm) and predictions/. A configuration that is in the log
is skipped.
"""

from __future__ import annotations

import importlib
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.base.cli import (
    UsageError,
    as_dict,
    expand_grid,
    first_line,
    need,
    parse_command_line,
    run_script,
)
from common.base.config import SVM_PRESETS, GridOptions, SvmConfig
from common.base.log import Log, run_id, save_predictions
from common.train.workers import Job, count_workers, print_commands, share_out

if TYPE_CHECKING:
    import numpy as np

SHOWN = ("dataset", "kernel", "features", "engine")  # settings named even where they do not vary
HOG_CELL = 4  # pixels a side: divides the 28 of the data sets and the 8 of the digits


@dataclass(frozen=True)
class Engine:
    """Where an SVC comes from, its package, and whether its predict may be threaded."""

    module: str
    package: str
    threaded: bool = False


# libsvm predicts without the GIL and image by image, so threads change nothing but the time. The
# other engines use all cores, or a GPU, by themselves.
ENGINES = {
    "sklearn": Engine("sklearn.svm", "scikit-learn", threaded=True),
    "sklearnex": Engine("sklearnex.svm", "scikit-learn-intelex"),
    "cuml": Engine("cuml.svm", "cuml-cu12"),
}


@dataclass(frozen=True)
class Parts:
    """Features and labels of what one machine is fitted on and judged by.

    Shapes: x (n, D) float64; y (n,) int64; test_index (n_test,) int64 into the pool.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    test_index: np.ndarray
    features_ms: float


@cache
def load_split(
    dataset: str, split: str, split_seed: int, image_size: int | None, data_dir: str
) -> tuple[Any, Any]:
    """A data set, its images resized where that is asked for, and its split."""
    import torch

    from common.data.datasets import cached_dataset, split_dataset
    from common.data.own import resize_pixels

    loaded = cached_dataset(dataset, data_dir, image_size)
    images = torch.from_numpy(resize_pixels(loaded.images.numpy(), image_size))
    return replace(loaded, images=images), split_dataset(loaded, split, split_seed)


def check_configs(configs: Sequence[SvmConfig], data_dir: str) -> None:
    """Look for every engine, library and image that is asked for, before any work.

    Raises: UsageError.
    """
    for name in dict.fromkeys(c.engine for c in configs):
        need(ENGINES[name].module, f"--engine {name}", ENGINES[name].package)
    if any(c.features == "hog" for c in configs):
        need("skimage.feature", "--features hog", "scikit-image")
    for c in configs:
        _, split = load_split(c.dataset, c.split, c.split_seed, c.image_size, data_dir)
        if c.samples > len(split.train):
            raise UsageError(
                f"--samples: {c.samples} is more than the {len(split.train)} training images of "
                f"{c.dataset}; ask for at most as many"
            )


def compute_features(images: np.ndarray, kind: str) -> np.ndarray:
    """Pixels in [0, 1], or HOG descriptors of them (9 directions, blocks of 2 x 2 cells), at each
    pixel of the colour channel of the strongest gradient.

    Shapes: images (N, C, H, W) uint8 -> (N, D) float64.
    """
    import numpy as np

    pixels = images / 255
    if kind == "raw":
        return pixels.reshape(len(images), -1)
    from skimage.feature import hog

    cell = (HOG_CELL, HOG_CELL)
    return np.stack([hog(p, 9, cell, cells_per_block=(2, 2), channel_axis=0) for p in pixels])


@lru_cache(maxsize=2)  # raw and hog, shared by the kernels of a grid; more would cost memory
def prepare_parts(
    dataset: str, split: str, split_seed: int, image_size: int | None, seed: int, samples: int,
    features: str, data_dir: str,
) -> Parts:  # fmt: skip
    """Choose the training images and compute all features."""
    import numpy as np

    pool, parts = load_split(dataset, split, split_seed, image_size, data_dir)
    # RandomState's stream is frozen by numpy's compatibility policy, Generator's is not.
    chosen = np.random.RandomState(seed).permutation(len(parts.train))[:samples]
    index = [parts.train.numpy()[chosen], parts.val.numpy(), parts.test.numpy()]
    images, labels = pool.images.numpy(), pool.labels.numpy()
    start = time.perf_counter()
    x_train, x_val, x_test = (compute_features(images[i], features) for i in index)
    features_ms = (time.perf_counter() - start) * 1e3
    y_train, y_val, y_test = (labels[i] for i in index)
    return Parts(x_train, y_train, x_val, y_val, x_test, y_test, index[2], features_ms)


def fit(config: SvmConfig, x: np.ndarray, y: np.ndarray) -> Any:
    """Fit an SVC of the configuration's engine and of no other.

    Raises: RuntimeError when scikit-learn-intelex leaves the work to scikit-learn.
    """
    from sklearn.exceptions import ConvergenceWarning

    svc = importlib.import_module(ENGINES[config.engine].module).SVC
    model = svc(kernel=config.kernel, C=config.C, gamma=config.gamma, max_iter=config.max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # main says it in one line
        model.fit(x, y)
    # It has no setting that forbids this, and says so only to its own log.
    if config.engine == "sklearnex" and not hasattr(model, "_onedal_estimator"):
        raise RuntimeError("scikit-learn-intelex fell back to scikit-learn; use --engine sklearn")
    return model


def predict(model: Any, x: np.ndarray, jobs: int) -> np.ndarray:
    """Predict in as many threads as jobs. Shapes: (N, D) -> (N,)."""
    import numpy as np
    from joblib import Parallel, delayed

    if jobs == 1:
        return np.asarray(model.predict(x))
    parts = np.array_split(x, jobs)
    return np.concatenate(
        Parallel(jobs, prefer="threads")(delayed(model.predict)(p) for p in parts)
    )


def read_convergence(config: SvmConfig, model: Any) -> dict[str, Any]:
    """Whether the solver converged, its most iterations in a pair of classes, and how many pairs
    max_iter stopped; nulls where the engine does not tell."""
    if config.engine != "sklearn":
        return {"converged": None, "n_iter_max": None, "pairs_stopped": None}
    converged = bool(model.fit_status_ == 0)
    return {
        "converged": converged, "n_iter_max": int(model.n_iter_.max()),
        "pairs_stopped": 0 if converged else int((model.n_iter_ >= config.max_iter).sum()),
    }  # fmt: skip


def measure(config: SvmConfig, options: GridOptions) -> dict[str, Any]:
    """Fit, test, and save the predictions. Returns: the metrics of the row."""
    import numpy as np
    from joblib import cpu_count

    from common.data.datasets import describe_split

    images = (config.dataset, config.split, config.split_seed, config.image_size)
    pool, split = load_split(*images, options.data_dir)
    parts = prepare_parts(*images, config.seed, config.samples, config.features, options.data_dir)
    jobs = (options.threads or cpu_count()) if ENGINES[config.engine].threaded else 1
    start = time.perf_counter()
    model = fit(config, parts.x_train, parts.y_train)
    fitted = time.perf_counter()
    pred = predict(model, parts.x_test, jobs)
    predicted = time.perf_counter()
    val_acc = float((predict(model, parts.x_val, jobs) == parts.y_val).mean())
    predictions = f"predictions/{run_id('svm', as_dict(config))}.npz"
    save_predictions(
        Path(options.results_dir) / predictions, pred=pred, label=parts.y_test,
        index=parts.test_index, classes=pool.classes,
    )  # fmt: skip
    return {
        "test_acc": float((pred == parts.y_test).mean()), "val_acc": val_acc,
        "fit_ms": (fitted - start) * 1e3, "predict_ms": (predicted - fitted) * 1e3,
        "predict_jobs": jobs, "features_ms": parts.features_ms,
        "n_support": int(np.sum(model.n_support_)), **read_convergence(config, model),
        "engine": config.engine, "n_train": len(parts.y_train), "n_val": len(parts.y_val),
        "n_test": len(parts.y_test), "split_sha256": split.sha256(), "predictions": predictions,
        **describe_split(pool, split),
    }  # fmt: skip


def fit_or_fail(config: SvmConfig, options: GridOptions, log: Log, label: str) -> dict[str, Any]:
    """Measure one configuration and log it, as failed if it does. Returns: the row."""
    settings = as_dict(config)
    try:
        metrics = measure(config, options)
    except UsageError:
        raise
    except Exception as error:  # whatever one machine fails of, the rest go on
        row = log.append("svm", settings, {}, status="failed", error=first_line(error))
        print(f"{label}: failed, {row['error']}", file=sys.stderr)
        return row
    if metrics["converged"] is False:
        print(
            f"{label}: warning: --max-iter {config.max_iter} stopped the solver before it "
            f"converged, in {metrics['pairs_stopped']} pairs of classes",
            file=sys.stderr,
        )
    return log.append("svm", settings, metrics)


def format_table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A table of the rows, led by the settings of those names."""
    from tabulate import tabulate

    lines = []
    for row in rows:
        settings, m = [row["config"][name] for name in names], row["metrics"]
        if row["status"] != "ok":
            lines.append([*settings, "failed", "", "", "", ""])
            continue
        # A digit is shown while it stands for at least an image or so.
        acc = f"{m['test_acc']:.{2 if m['n_test'] >= 5000 else 1}%}"
        times = [f"{m[name] / 1e3:.2f}" for name in ("fit_ms", "predict_ms")]
        converged = {True: "yes", False: "no", None: "unknown"}[m["converged"]]
        lines.append([*settings, acc, *times, m["n_support"], converged])
    headers = [*names, "test acc", "fit s", "predict s", "support vectors", "converged"]
    aligned = ["left"] * len(names) + ["right"] * 4 + ["left"]
    return tabulate(lines, headers, colalign=aligned, disable_numparse=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit every configuration that the log does not have, and print them all."""
    grid, options = parse_command_line(argv, __doc__, SvmConfig, GridOptions, SVM_PRESETS)
    expand_grid(SvmConfig, grid)  # a bad value is said before any image is read
    from common.data.datasets import explain_images, pin_dataset, print_once

    grid["dataset"] = list(dict.fromkeys(map(pin_dataset, grid["dataset"])))
    configs = expand_grid(SvmConfig, grid)
    check_configs(configs, options.data_dir)
    print_once(
        explain_images(c.dataset, options.data_dir, c.image_size, c.split, c.split_seed)
        for c in configs
    )
    log = Log(options.results_dir, options.shard)
    done = {} if options.force else log.finished("svm")
    names = [name for name in grid if name in SHOWN or len(grid[name]) > 1]
    labels = {config: " ".join(str(as_dict(config)[name]) for name in names) for config in configs}
    todo = [config for config in configs if run_id("svm", as_dict(config)) not in done]
    jobs = [Job((config,), config, labels[config]) for config in todo]
    if options.list_commands:
        print_commands("svm", jobs, options)
        return 0
    workers = count_workers(options)
    if workers > 1 or options.backend != "loky":
        share_out("svm", "svm", jobs, log, options, workers)
        asked = {run_id("svm", as_dict(config)) for config in todo}
        done |= {row["run_id"]: row for row in log.read("svm") if row["run_id"] in asked}
    rows = []
    for number, config in enumerate(configs, 1):
        label = f"[{number}/{len(configs)}] {labels[config]}"
        row = done.get(run_id("svm", as_dict(config)))
        print(f"{label}: in the log" if row else label, flush=True)
        rows.append(row or fit_or_fail(config, options, log, label))
    print(format_table(rows, names))
    return int(any(row["status"] != "ok" for row in rows))


if __name__ == "__main__":
    run_script(main)
