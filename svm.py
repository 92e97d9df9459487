"""Fit and test support vector machines, one or a grid of them where a flag has several values.

    python svm.py --dataset mnist fashion --kernel poly rbf
    python svm.py --preset smoke

Method: SVC on `samples` images of the training split, drawn by the seed, with pixels scaled to
[0, 1]. Fit and prediction of the test split are timed apart, features and validation outside of
both; matrix products give the answers of SVC.predict sooner. max_iter bounds the solver in each
pair of classes (in oneDAL outer steps of many updates each); scikit-learn alone reports that it was
stopped, the other engines leave `converged` null.

Writes to --results-dir: log.jsonl (kind svm) and predictions/. What is in the log is skipped.
"""

import importlib
import math
import sys
import time
import warnings
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out
from common.base.cli import UsageError, as_dict, expand_grid, need, parse_command_line, run_script
from common.base.config import GridOptions, SvmConfig, is_own
from common.base.log import Log, run_id, save_predictions

# What takes time, numpy too, is imported after the flags are read.
SHOWN = ("dataset", "kernel", "features", "engine")  # settings named even where they do not vary
IMAGES = ("dataset", "split", "split_seed", "image_size", "seed", "samples", "features")
LONG_FIT = 5000  # samples from which a fit, on one core, is worth a process of its own
# What to install for an engine, whose package has a module svm with a class SVC.
ENGINES = {"sklearn": "scikit-learn", "sklearnex": "scikit-learn-intelex", "cuml": "cuml-cu12"}


def main(argv: Sequence[str] | None = None) -> int:
    grid, options = parse_command_line(argv, __doc__, SvmConfig, GridOptions)
    from common.data.own import pin_datasets
    from common.judge.rows import print_leader
    from common.train import workers

    workers.in_worker()  # which ends with the grid that this is a piece of
    grid["dataset"] = pin_datasets(grid, options.data_dir)
    configs = {run_id("svm", as_dict(c)): c for c in expand_grid(SvmConfig, grid)}
    check_configs(list(configs.values()), options.data_dir)
    log = Log(options.results_dir, options.shard)
    done = {} if options.force else log.finished("svm")
    names = [name for name in grid if name in SHOWN or len(grid[name]) > 1]
    labels = {n: " ".join(str(getattr(c, name)) for name in names) for n, c in configs.items()}
    jobs = [(labels[name], [c]) for name, c in configs.items() if name not in done]
    if options.list_commands:
        workers.print_commands("svm", jobs, options)
        return 0
    long = any(config.samples >= LONG_FIT for config in configs.values())
    count = workers.count_workers(options, "cpu", len(jobs), math.inf if long else 0.0)
    after = partial(print_leader, log, "svm", configs.values())
    if count > 1 or options.backend != "loky":
        workers.share_out("svm", jobs, log, options, count, after)
        done = {row["run_id"]: row for row in log.read("svm")} | done
    for number, (name, config) in enumerate(configs.items(), 1):
        label = f"[{number}/{len(configs)}] {labels[name]}"
        print(f"{label}: in the log" if name in done else label, flush=True)
        if name in done:
            continue
        with log.failed_rows("svm", [as_dict(config)]) as new:
            new.append(log.append("svm", as_dict(config), measure(config, options)))
        done[name] = row = new[0]
        if row["error"]:
            print(f"{label}: failed, {row['error']}", file=sys.stderr)
        elif row["metrics"]["converged"] is False:
            why = f"--max-iter {config.max_iter} stopped the solver before it converged"
            pairs = f"in {row['metrics']['pairs_stopped']} pairs of classes"
            print(f"{label}: warning: {why}, {pairs}", file=sys.stderr)
        after(config)
    rows = [done[name] for name in configs]
    print(format_table(rows, names))
    options.print_next()
    return int(any(row["status"] != "ok" for row in rows))


def check_configs(configs: Sequence[SvmConfig], data_dir: str) -> None:
    """Look for all that is asked for: engines, libraries and images."""
    from common.data.datasets import explain_images, load_split

    for c in configs:
        need(f"{c.engine}.svm", f"--engine {c.engine}", ENGINES[c.engine])
        if c.features == "hog":
            need("skimage.feature", "--features hog", "scikit-image")
    for c in configs:
        n_train = len(load_split(c, data_dir)[1].train)
        few = f"{n_train:,} training images, fewer than {c.samples:,}"
        if is_own(c.dataset) and n_train < c.samples == SvmConfig.samples:  # nobody asked for it
            print(f"{c.dataset}: all {few}, are used")
        elif c.samples > n_train:
            why = f"{c.samples} is more than the {n_train} training images of {c.dataset}"
            raise UsageError(f"--samples: {why}; ask for at most as many")
    explain_images(configs, data_dir)


def measure(config: SvmConfig, options: GridOptions) -> dict[str, Any]:
    """Fit an SVC, test it, and save the predictions. Returns: the metrics of the row."""
    import numpy as np
    from joblib import cpu_count
    from sklearn.exceptions import ConvergenceWarning

    from common.data.scores import score_part

    of_images = SvmConfig(**{name: getattr(config, name) for name in IMAGES})
    x, y, facts, kept = prepare_parts(of_images, options.data_dir)
    svc = importlib.import_module(f"{config.engine}.svm").SVC
    how = {name: getattr(config, name) for name in ("kernel", "C", "gamma", "max_iter")}
    model = svc(**how, class_weight="balanced" if config.class_weight == "balanced" else None)
    jobs, classify = options.threads or cpu_count(), partial(predict, model)
    if config.engine == "cuml":  # on a GPU, by itself
        jobs, classify = 1, lambda x, jobs: model.predict(x)
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # its row tells
        model.fit(x["train"], y["train"])
    fitted = time.perf_counter()
    pred = classify(x["test"], jobs)
    predicted = time.perf_counter()
    val_pred = classify(x["val"], jobs)
    metrics = {}
    for part, answers in (("test", pred), ("val", val_pred)):
        metrics[f"{part}_acc"] = float((answers == y[part]).mean())
        metrics |= score_part(y[part], answers, len(kept["classes"]), part)
    metrics |= {"fit_ms": (fitted - start) * 1e3, "predict_ms": (predicted - fitted) * 1e3}
    metrics |= {"predict_jobs": jobs, "n_support": int(np.sum(model.n_support_))}
    metrics |= convergence(model, config)
    file = f"predictions/{run_id('svm', as_dict(config))}.npz"
    save_predictions(Path(options.results_dir) / file, pred=pred, label=y["test"], **kept)
    return metrics | {"engine": config.engine, "predictions": file} | facts


def convergence(model: Any, config: SvmConfig) -> dict[str, Any]:
    """Whether the solver came to its end, where the engine tells. Raises: RuntimeError where
    scikit-learn-intelex did not do it: no setting forbids that, and it says so in its log alone."""
    if config.engine == "sklearnex" and not hasattr(model, "_onedal_estimator"):
        raise RuntimeError("scikit-learn-intelex fell back to scikit-learn; use --engine sklearn")
    if config.engine != "sklearn":
        return dict.fromkeys(("converged", "n_iter_max", "pairs_stopped"))
    converged, used = bool(model.fit_status_ == 0), model.n_iter_
    stopped = 0 if converged else int((used >= config.max_iter).sum())
    return {"converged": converged, "n_iter_max": int(used.max()), "pairs_stopped": stopped}


@lru_cache(maxsize=2)  # raw and hog, shared by the kernels of a grid; more would cost memory
def prepare_parts(config: SvmConfig, data_dir: str) -> tuple[dict[str, Any], ...]:
    """Choose the training images and compute all features: pixels in [0, 1], or their HOG
    descriptors, at each pixel of the colour channel of the strongest gradient. Returns: features
    (N, D) and labels by part; metrics; what predictions are kept with."""
    import numpy as np

    from common.data.datasets import describe_split, load_split
    from common.data.own import resize_pixels

    pool, split = load_split(config, data_dir)
    images = resize_pixels(pool.images.numpy(), config.image_size)
    parts = {name: index.numpy() for name, index in vars(split).items()}
    # RandomState's stream is frozen by numpy's compatibility policy, Generator's is not.
    chosen = np.random.RandomState(config.seed).permutation(len(split.train))[: config.samples]
    parts["train"] = parts["train"][chosen]
    start = time.perf_counter()
    if config.features == "raw":
        x = {name: (images[i] / 255).reshape(len(i), -1) for name, i in parts.items()}
    else:
        from skimage.feature import hog

        cells = {"pixels_per_cell": (4, 4), "cells_per_block": (2, 2)}  # 4 divides 28, and 8
        describe = partial(hog, orientations=9, channel_axis=0, **cells)
        x = {name: np.stack([describe(p / 255) for p in images[i]]) for name, i in parts.items()}
    facts = {"features_ms": (time.perf_counter() - start) * 1e3, "split_sha256": split.sha256()}
    facts |= {f"n_{name}": len(own) for name, own in parts.items()} | describe_split(pool, split)
    y = {name: pool.labels.numpy()[index] for name, index in parts.items()}
    kept = {"index": split.test, "classes": pool.classes}
    kept |= {"files": [pool.files[i] for i in split.test]} if pool.files else {}
    return x, y, facts, kept


def predict(model: Any, x: Any, jobs: int) -> Any:
    """What model.predict answers, by blocks in so many threads. Shapes: (N, D) -> (N,)."""
    import numpy as np
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    blocks = np.array_split(x, -(-len(x) // 256))  # images whose kernel is in memory at once
    with threadpool_limits(1):  # of each product
        parts = Parallel(jobs, prefer="threads")(delayed(answer)(model, block) for block in blocks)
    return np.concatenate(parts)


def answer(model: Any, x: Any) -> Any:
    """The answers of libsvm, which takes image by image and vector by vector. In each pair of
    classes one gets a vote; of those with most votes the first wins. Shapes: (B, D) -> (B,).
    Source: svm_predict_values in libsvm's svm.cpp."""
    import numpy as np
    from sklearn.metrics.pairwise import pairwise_kernels

    vectors, coef, intercept = model.support_vectors_, model._dual_coef_, model._intercept_
    how = {"gamma": model._gamma, "degree": model.degree, "coef0": model.coef0}
    kernel = pairwise_kernels(x, vectors, model.kernel, filter_params=True, **how)
    ends = model.n_support_.cumsum()[:-1]  # of each class's support vectors
    parts = zip(np.split(kernel, ends, 1), np.split(coef, ends, 1), strict=True)
    sums = np.stack([part @ own.T for part, own in parts])  # of a class against each other one
    first, second = np.triu_indices(len(sums), 1)
    values = sums[first, :, second - 1] + sums[second, :, first] + intercept[:, None]
    winners = np.where(values > 0, first[:, None], second[:, None])
    votes = np.stack([(winners == number).sum(0) for number in range(len(sums))])
    answers = model.classes_[votes.argmax(0)]
    # libsvm adds in another order. Where that could move a value across zero, it is asked itself:
    # n additions are off by at most n eps times the sum of the absolute values, in the dot products
    # too, whose error a kernel multiplies by its slope.
    norm = max(np.square(array).sum(1).max() for array in (x, vectors))
    scaled = model._gamma * norm + abs(model.coef0)
    most = {"linear": norm, "poly": model.degree * scaled**model.degree, "rbf": 1 + 4 * scaled}
    most = most.get(model.kernel, np.inf) * np.abs(coef).sum() + np.abs(intercept).max()
    rounding = 4 * np.finfo(float).eps * sum(vectors.shape) * most
    near = ~(np.abs(values) > rounding).all(0)
    if near.any():
        answers[near] = model.predict(x[near])
    return answers


def format_table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    from common.data.scores import cells, to_beat

    records = []
    for row in rows:
        m, config = row["metrics"], vars(SvmConfig()) | row["config"]
        record = {name: config[name] for name in names} | {"test acc": "failed"}
        if row["status"] == "ok":
            # A digit is shown while it stands for at least an image or so.
            record["test acc"] = f"{m['test_acc']:.{2 if m['n_test'] >= 5000 else 1}%}"
            record |= cells(m, config["metric"])
            record |= {f"{k} s": f"{m[f'{k}_ms'] / 1e3:.2f}" for k in ("fit", "predict")}
            record["support vectors"] = m["n_support"]
            record["converged"] = {True: "yes", False: "no", None: "unknown"}[m["converged"]]
        records.append(record)
    heads = dict.fromkeys(key for record in records for key in record)
    aligned = ["left" if key in (*names, "converged") else "right" for key in heads]
    return tabulate(records, "keys", colalign=aligned, disable_numparse=True) + to_beat(rows)


if __name__ == "__main__":
    run_script(main)
