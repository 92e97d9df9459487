"""Every setting, declared once, and the names that settings take; presets.toml has the presets.

What the names stand for is in the rooms above: --help knows them and imports nothing heavy.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.base import cli
from common.base.cli import UsageError, Validated, find_name, option

OWN = ("folder:PATH", "npz:FILE")  # one folder a class; MedMNIST's layout, or X and y
DATASETS = ("mnist", "fashion", "digits", "kmnist", "qmnist", "emnist-letters", "emnist-digits")
DATASETS += OWN
# A mirrored shoe is a shoe, a mirrored digit is none; of your own images the flag is your word.
MIRRORABLE = ("fashion", *OWN)
# common/models.py adds how to build, by the number of classes, those that are not torchvision's.
MODELS = dict.fromkeys(("resnet18", "resnet34", "resnet50", "vgg5", "resnet14", "timm:NAME"))
OPTIMIZERS = ("sgd", "nesterov", "muon", "adam", "adamw")
SCHEDULES = ("constant", "triangular")
METRICS = {"accuracy": "acc", "balanced": "balanced", "f1": "f1"}  # as a row's metrics end
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
EXPORT_FORMATS = ("torchscript", "onnx", "onnx-int8", "aotinductor")
ENGINE_NAMES = ("eager", "eager-bf16", "compile", "torchscript", "aotinductor", "onnxruntime")
ENGINE_NAMES += ("onnxruntime-int8", "openvino", "openvino-int8")
SEED = {"minimum": 0, "maximum": 2**32 - 1}  # as numpy takes them
SHARE = {"minimum": 0, "maximum": 1}
NOISY = 0.10  # of the interquartile range to the median of a timing: said in its row
REFUSED = 0.25  # beyond it a timing is no measurement, unless --accept-noise
NETWORK = "network; any of torchvision's that classify, too: mobilenet_v3_small, efficientnet_b0"
ON_CPU = "where only a CPU is measured"
PUBLISHED = "imagenet"  # of --weights: those that torchvision or timm publish for the network
WEIGHTS = f"state_dict file to start from, or {PUBLISHED}: published ones [from scratch]"
NO_MIRROR = "no effect on digits and letters"
METRIC = "of validation images, to choose by: accuracy, mean recall of the classes, or macro F1"
CLASS_WEIGHT = "balanced: each class weighs as much as another, however few its images"
AUGMENT = "photo: random crop, mirror image (not of digits) and colours, instead of the above"
NOISE = "keep timings whose interquartile range is over a quarter of their median"
DATA_ON = "where an accelerator's batches are gathered"
BUDGET = "answer within this time, such as 90s, 10m or 2h: a race between the configurations"
PAUSE = "stop after so many epochs, untested, to go on later, as a race does"
AUTO_JOBS = "one per accelerator; on a CPU one per core, where jobs take a minute or more"
PIN_MEMORY = "page-locked host batches; needs --data-on host on an accelerator"
CUDA_GRAPH = "a whole step as one CUDA graph: 4 times as fast in batches of 16 (H200)"
BACKGROUND, MAX_PIXELS = "white", 89_478_485  # Pillow's limit
COLOURS = ("white", "black", "#RRGGBB")
GROUPS = "your images of one group stay in one part: CSV file (columns file, group), or pattern"
BEHIND = f"of your images that are transparent [{BACKGROUND}]"
TOO_LARGE = f"of your images, larger ones are refused [{MAX_PIXELS}]"
PRESETS = tomllib.loads(Path(__file__).with_name("presets.toml").read_text("utf-8"))


def is_own(name: str) -> bool:
    """Whether these are your own images."""
    return find_name(name, DATASETS) in OWN


def name_in_log(dataset: str) -> str:
    """A data set's name wherever it lies: folder:/home/me/photos@3f2a is folder:photos@3f2a."""
    kind, colon, path = dataset.partition(":")
    return kind + colon + path.rsplit("/", 1)[-1] if is_own(dataset) else dataset


def check_colour(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known and not re.fullmatch("#[0-9a-fA-F]{6}", value):
        raise UsageError(f"{flag}: {value!r} is none of {', '.join(known)}")


def may_mirror(name: str) -> bool:
    return find_name(name, DATASETS) in MIRRORABLE


def check_model(flag: str, name: str, known: Sequence[str]) -> None:
    """As check_name, but that torchvision's networks and, after timm:, timm's are known too."""
    if name in known:
        return
    if find_name(name, known):
        models = cli.need("timm", f"{flag} {name}").list_models()
        cli.check_name(f"{flag} timm:NAME", name.removeprefix("timm:"), models)
    else:
        import torchvision.models  # takes seconds, for a rare name

        names = torchvision.models.list_models(module=torchvision.models)
        cli.check_name(flag, name, tuple(dict.fromkeys((*known, *names))))


class DataConfig(Validated):
    """Which images, and how they are divided."""

    dataset: str = option("mnist", "data set", DATASETS, logged=name_in_log)
    split: str = option("study", "all pooled, 70/10/20; or as published", ("study", "official"))
    split_seed: int = option(0, "seed of the split, which stays while --seed varies", **SEED)
    seed: int = option(0, "seed of weights, batch order and samples", **SEED)
    # Of your own images, in whose name in the log they are:
    groups: str | None = option(None, GROUPS, logged=None)
    background: str | None = option(None, BEHIND, COLOURS, check=check_colour, logged=None)
    max_pixels: int | None = option(None, TOO_LARGE, minimum=1, logged=None)


class TrainConfig(DataConfig):
    """One training run; the defaults are the study's settings."""

    presets = PRESETS["train"]
    limit: int | None = option(None, "training images used, for quick looks [all]", minimum=1)
    image_size: int | None = option(None, "side of images [64; published weights' own]", minimum=1)
    model: str = option("resnet18", NETWORK, MODELS, check=check_model)
    weights: str | None = option(None, WEIGHTS)
    weights_sha256: str | None = option(None, "of those, filled in", flag=False)
    freeze: bool = option(False, "train the last layer alone, on --weights", silent=True)
    opt: str = option("sgd", "momentum is 0.9 in sgd, nesterov; 0.75 in muon", OPTIMIZERS)
    lr: float = option(1e-3, "learning rate; under a schedule its highest", above=0)
    schedule: str = option("constant", "of lr; triangular: warm-up, then linear decay", SCHEDULES)
    weight_decay: float | None = option(None, "weight decay [the optimiser's own]", minimum=0)
    label_smoothing: float = option(0.0, "share of the target spread over all classes", **SHARE)
    translate: int = option(0, "random shift of training images by up to so many pixels", minimum=0)
    flip: bool = option(False, f"training images are mirrored in every other epoch; {NO_MIRROR}")
    erase: float = option(0.0, "random erasing of this share of training images", **SHARE)
    augment: str = option("none", AUGMENT, ("none", "photo"), silent=True)
    tta: bool = option(False, f"mean logits of image and mirror image; {NO_MIRROR}", silent=True)
    class_weight: str = option("none", CLASS_WEIGHT, ("none", "balanced"), silent=True)
    metric: str = option("accuracy", METRIC, METRICS, silent=True)
    epochs: int = option(5, "passes over the training split", minimum=1)
    batch_size: int = option(16, "images a step, of all processes together", minimum=1)
    amp: bool = option(True, "automatic mixed precision, where the device has a fast 16-bit type")
    amp_dtype: str = option("auto", "fp16 needs an accelerator", ("auto", "bf16", "fp16"))
    channels_last: bool = option(True, "NHWC memory layout")
    compile: bool = option(False, "torch.compile the network")
    cuda_graph: bool = option(False, CUDA_GRAPH, silent=True)
    data_on: str = option("device", DATA_ON, ("device", "host"))
    pin_memory: bool = option(False, PIN_MEMORY)
    device: str = option("auto", "auto takes the accelerator if there is one", DEVICES)
    sync_bn: bool = option(False, "BatchNorm over all of torchrun's processes", silent=True)
    world_size: int = option(1, "of torchrun's processes, filled in", flag=False, silent=True)

    def __post_init__(self) -> None:
        if self.image_size is None and self.weights != PUBLISHED:
            object.__setattr__(self, "image_size", 64)
        super().__post_init__()
        varied = [f"--{n}" for n in ("translate", "flip", "erase") if getattr(self, n)]
        if self.augment == "photo" and varied:
            raise UsageError(f"--augment photo: it crops and mirrors too; leave out {varied[0]}")
        varied += ["--tta"] * self.tta + ["--augment"] * (self.augment == "photo")
        varied += ["--opt muon"] if self.opt == "muon" else []
        if self.freeze and (varied or not self.weights):
            why = "the last layer alone is trained, on one view of each image"
            way_out = f"leave out {varied[0]}" if varied else "give --weights for what is before it"
            raise UsageError(f"--freeze: {why}; {way_out}")

    @property
    def mirrored(self) -> bool:
        return self.flip and may_mirror(self.dataset)

    def describe(self) -> str:
        pin = " pin" if self.pin_memory else ""
        return f"{name_in_log(self.dataset)} {self.model} {self.opt} {self.lr:g}{pin}"


class SvmConfig(DataConfig):
    """One support vector machine; the defaults are the study's."""

    presets = PRESETS["svm"]
    kernel: str = option("rbf", "kernel", ("poly", "rbf", "linear"))
    samples: int = option(10_000, "training images, chosen by --seed", minimum=2)
    features: str = option("raw", "pixels in [0, 1], or HOG descriptors", ("raw", "hog"))
    C: float = option(1.0, "inverse regularisation strength", above=0)
    gamma: str = option("scale", "kernel coefficient", ("scale", "auto"))
    image_size: int | None = option(None, "side to resize images to [as they are]", minimum=1)
    max_iter: int = option(1000, "solver iterations; -1 for no limit", minimum=-1)
    engine: str = option("sklearn", "implementation", ("sklearn", "sklearnex", "cuml"))
    class_weight: str = option("none", CLASS_WEIGHT, ("none", "balanced"), silent=True)
    metric: str = option("accuracy", METRIC, METRICS, silent=True)


class FlopsConfig(Validated):
    """One cost count: a network at an input shape."""

    presets = PRESETS["flops"]
    model: str = option("resnet18", NETWORK, MODELS, check=check_model)
    image_size: int = option(64, "side of the input in pixels", minimum=1)
    classes: int = option(10, "outputs of the network", minimum=1)


class HwTrainConfig(DataConfig):
    """Training speed of one network and optimiser on one device variant (the study's Q2)."""

    presets, default_preset = PRESETS["hw_train"], "q2"
    dataset: str = option("fashion", "data set", DATASETS, logged=name_in_log)
    model: str = option("resnet18", NETWORK, MODELS, check=check_model)
    opt: str = option("sgd", "optimiser; sgd has momentum 0.9", OPTIMIZERS)
    lr: float = option(1e-3, "learning rate, constant", above=0)
    batch_size: int = option(16, "images a step", minimum=1)
    image_size: int = option(224, "side in pixels that images are resized to", minimum=1)
    device: str = option("auto", "devices to compare", DEVICES)
    threads: int | None = option(None, f"CPU threads [all; 1 too {ON_CPU}]", minimum=1)
    precision: str | None = option(None, f"[fast 16-bit type; fp32 too {ON_CPU}]", PRECISIONS)
    compile: bool | None = option(None, f"torch.compile [false; true too {ON_CPU}]")
    cuda_graph: bool = option(False, CUDA_GRAPH, silent=True)
    loop: str = option("ours", "notebook: that of tutorials, in fp32 too", ("ours", "notebook"))
    data_on: str = option("device", DATA_ON, ("device", "host"))
    pin_memory: bool = option(False, PIN_MEMORY)
    steps: int = option(20, "timed steps", minimum=2)
    warmup: int = option(2, "untimed steps before", minimum=1)
    full_epoch: bool = option(False, "train one whole epoch and test it, beside the sample")
    accept_noise: bool = option(False, NOISE)

    def describe(self) -> str:
        mode = "eager" if self.loop == "ours" else "notebook loop"
        mode = "compiled" if self.compile else "CUDA graph" if self.cuda_graph else mode
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else None
        return ", ".join(filter(None, [self.device, threads, self.precision, mode]))


class HwInferConfig(Validated):
    """Inference speed of one exported network in one engine."""

    presets, default_preset = PRESETS["hw_infer"], "bench"
    train_run_id: str | None = option(None, "runs whose exports are measured [each set's best]")
    engine: str | None = option(None, "[all that are exported and installed]", ENGINE_NAMES)
    scenario: str | None = option(None, "latency, throughput [both]", ("single", "offline"))
    batch_size: int = option(64, "images a query of the offline scenario", minimum=1)
    threads: int | None = option(None, "CPU threads of every engine [all]", minimum=1)
    queries: int = option(100, "timed queries, at least", minimum=10)
    seconds: float = option(10.0, "timed seconds, at least", above=0)
    launches: int = option(3, "sets of fresh processes, which intervals are over", minimum=1)
    quick: bool = option(False, "a fifth of the queries, a twentieth of the time, one launch")
    accept_noise: bool = option(False, NOISE)

    def describe(self) -> str:
        counts = {"image": self.batch_size, "thread": self.threads}
        return ", ".join([self.engine, *(f"{n} {w}{'s' * (n > 1)}" for w, n in counts.items())])

    def effort(self) -> tuple[int, int, float]:
        """Launches, and the least queries and seconds of timing in each of them."""
        if self.quick:
            return 1, max(10, self.queries // 5), self.seconds / 20
        return self.launches, -(-self.queries // self.launches), self.seconds / self.launches


class Options(Validated):
    """Flags every script has."""

    results_dir: str = option("results", "folder of the log and of everything written")
    data_dir: str = option("data", "folder of the data sets, in torchvision's layout")
    force: bool = option(False, "do the work again, even where the log has it")

    def print_next(self, *command: str) -> None:
        """A finished command's last line: what to do next, else the report of what it wrote, unless
        make's next step is that."""
        folders = cli.to_flags([Options(self.results_dir, self.data_dir)], several=False)
        if os.environ.get("BAKEOFF_NEXT") != "no":
            own = ".venv/bin/python"  # make's, which is not activated
            make = sys.executable == os.path.abspath(own) and "VIRTUAL_ENV" not in os.environ
            python = own if make else "python"
            print("next:", shlex.join([python, *(command or ["report.py", *folders])]))


class GridOptions(Options):
    """Flags of a script that does the work of a grid."""

    jobs: str = option("auto", f"how many at once; auto: {AUTO_JOBS}")
    backend: str = option("loky", "loky: processes here; or a cluster", ("loky", "dask"))
    cluster: str | None = option(None, "address of its scheduler [one is started here]")
    threads: int | None = option(None, "CPU threads a process [its share of the cores]", minimum=1)
    shard: str | None = option(None, "append to log.SHARD.jsonl, and skip what is in there alone")
    list_commands: bool = option(False, "print a shell command for each piece of work, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs != "auto" and not (self.jobs.isdecimal() and int(self.jobs) > 0):
            raise UsageError(f"--jobs: {self.jobs!r} is neither a number from 1 up nor auto")
        if self.shard is not None and not self.shard.replace("-", "").replace("_", "").isalnum():
            raise UsageError(f"--shard: {self.shard!r} must be of letters, digits, - and _")
        if self.cluster and self.backend == "loky":
            raise UsageError(f"--cluster {self.cluster}: needs --backend dask")


class TrainOptions(GridOptions):
    """Other flags of train.py."""

    budget: str | None = option(None, BUDGET)
    pause_after: int | None = option(None, PAUSE, minimum=1)
    dry_run: bool = option(False, "print the plan and stop")
    resume: bool = option(True, "continue interrupted runs from their last epoch")
    best: bool = option(False, "train nothing: export the best of each data set on validation")
    export: tuple[str, ...] = option((), "export the trained network", EXPORT_FORMATS)
    deterministic: bool = option(False, "the same bits each time on an accelerator too; slower")
    tensorboard: bool = option(False, "write event files too; needs the package tensorboard")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget and not re.fullmatch(r"\d+(\.\d+)?[smh]", self.budget):
            raise UsageError(f"--budget: {self.budget!r} is no time such as 90s, 10m or 2h")
        without = {"--best": self.best, "--list-commands": self.list_commands}
        without |= {"--no-resume": not self.resume, "--pause-after": self.pause_after}
        for flag in (flag for flag, given in without.items() if self.budget and given):
            raise UsageError(f"--budget: a race cannot be had with {flag}; leave one of them out")

    @property
    def budget_s(self) -> float:
        return float(self.budget[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.budget[-1]]


class HwOptions(Options):
    """Other flags of hw_bench.py."""

    mode: str = option("train", "each mode has flags of its own", ("train", "infer"))


def preset_of(config: Mapping[str, Any]) -> str | None:
    """The preset of train.py that a row's configuration is one of, whatever its seed and device."""
    whole = vars(TrainConfig()) | config | {"seed": 0, "device": "auto"}
    return next((name for name in TrainConfig.presets if whole in _expand_preset(name)), None)


@functools.cache
def _expand_preset(name: str) -> list[dict[str, Any]]:
    return [vars(config) for config in cli.expand_grid(TrainConfig, TrainConfig.presets[name])]
