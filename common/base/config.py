"""Every setting, declared once: frozen dataclasses that become flags, presets and grids.

A field carries its default, and in its metadata the help text, the choices and the bounds; flags,
help and validation are generated from it. A preset sets several fields; an explicit flag wins over
a preset, a preset over a default. Nothing heavy is imported here, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from common.base.cli import UsageError, check_name, find_name, need

DATASETS = (
    "mnist", "fashion", "digits", "kmnist", "qmnist", "emnist-letters", "emnist-digits",
    "folder:PATH", "npz:FILE",
)  # fmt: skip
OWN = DATASETS[-2:]  # your own images: one folder a class; MedMNIST's layout, or X and y
# A mirrored shoe is a shoe, a mirrored digit is none; of your own images the flag is your word.
MIRRORABLE = ("fashion", *OWN)
# common/models.py adds how to build, by the number of classes, those that are not torchvision's.
MODELS: dict[str, Callable[[int], Any] | None] = dict.fromkeys(
    ("resnet18", "resnet34", "resnet50", "vgg5", "resnet14", "timm:NAME")
)
OPTIMIZERS = ("sgd", "nesterov", "muon", "adam", "adamw")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
MAX_SEED = 2**32 - 1  # numpy's
LOOPS = ("ours", "notebook")
EXPORT_FORMATS = ("torchscript", "onnx", "onnx-int8", "aotinductor")
ENGINE_NAMES = (
    "eager", "eager-bf16", "compile", "torchscript", "aotinductor", "onnxruntime",
    "onnxruntime-int8", "openvino", "openvino-int8",
)  # fmt: skip
NOISY = 0.10  # of the interquartile range to the median of a timing: said in its row
REFUSED = 0.25  # beyond it a timing is no measurement, unless --accept-noise
NOISE = "keep timings whose interquartile range is over a quarter of their median"
NETWORK = "network; any of torchvision's that classify, too: mobilenet_v3_small, efficientnet_b0"


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Declare a field that becomes a flag.

    metadata: choices (names allowed), check (a function to call with them instead of looking among
    them), minimum and maximum (inclusive), above (exclusive), many (the flag takes one or more
    values and the field holds a tuple; in a grid class every field does), flag (False: the field
    has none, a script fills it in), positional (given without its name), silent (at its default the
    field is not in the log, nor in the run_id: it came after rows that it changes nothing in).
    """
    if isinstance(default, (list, tuple)):
        default = tuple(default)
    return field(default=default, metadata={"help": help, **metadata})


class Validated:
    """Checks every field against its metadata on construction."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            for item in value if f.metadata.get("many") else (value,):
                _check_value(flag_of(f.name), item, f.metadata)


def _check_value(flag: str, value: Any, metadata: Any) -> None:
    if value is None:
        return
    if "choices" in metadata:
        metadata.get("check", check_name)(flag, value, tuple(metadata["choices"]))
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{flag}: {value} is not a finite number")
    if "above" in metadata and not value > metadata["above"]:
        raise UsageError(f"{flag}: {value} must be greater than {metadata['above']}")
    if "minimum" in metadata and value < metadata["minimum"]:
        raise UsageError(f"{flag}: {value} must be at least {metadata['minimum']}")
    if "maximum" in metadata and value > metadata["maximum"]:
        raise UsageError(f"{flag}: {value} must be at most {metadata['maximum']}")


def is_own(name: str) -> bool:
    """Whether these are your own images and no published set."""
    return find_name(name, DATASETS) in OWN


def may_mirror(name: str) -> bool:
    """Whether the classes of a data set outlive a mirror."""
    return find_name(name, DATASETS) in MIRRORABLE


def check_model(flag: str, name: str, known: Sequence[str]) -> None:
    """Raises: UsageError, with the nearest name, for one that is neither in `known`, nor
    torchvision's, nor, after timm:, timm's."""
    if name in known:
        return
    if find_name(name, known):
        models = need("timm", f"{flag} {name}").list_models()
        return check_name(f"{flag} timm:NAME", name.removeprefix("timm:"), models)
    import torchvision.models

    names = torchvision.models.list_models(module=torchvision.models)
    check_name(flag, name, tuple(dict.fromkeys((*known, *names))))


# --- what identifies a piece of work: all of it is hashed into the run_id -------------------------


@dataclass(frozen=True)
class DataConfig(Validated):
    """Which images, and how they are divided."""

    dataset: str = option("mnist", "data set", choices=DATASETS)
    split: str = option(
        "study",
        "study: all images pooled, 70/10/20; official: as published, or as in your train/val/test",
        choices=("study", "official"),
    )
    split_seed: int = option(
        0, "seed of the split, which stays fixed while --seed varies", minimum=0, maximum=MAX_SEED
    )
    seed: int = option(0, "seed of weights, batch order and samples", minimum=0, maximum=MAX_SEED)


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """One training run; the defaults are the study's protocol."""

    limit: int | None = option(
        None, "training images used, for quick looks (default: all)", minimum=1
    )
    image_size: int = option(64, "side in pixels that images are resized to", minimum=1)
    model: str = option("resnet18", NETWORK, choices=MODELS, check=check_model)
    weights: str | None = option(None, "state_dict file to start from, instead of from scratch")
    weights_sha256: str | None = option(None, "of that file, filled in", flag=False)
    opt: str = option(
        "sgd", "optimiser; momentum is 0.9 in sgd and nesterov, 0.75 in muon", choices=OPTIMIZERS
    )
    lr: float = option(1e-3, "learning rate; under a schedule its highest", above=0)
    schedule: str = option(
        "constant", "learning rate over the run; triangular: up for a fifth of it, then to zero",
        choices=("constant", "triangular"),
    )  # fmt: skip
    weight_decay: float | None = option(
        None,
        "weight decay (default: the optimiser's own); nesterov spares biases and BatchNorm, muon "
        "the convolutions that it orthogonalises too",
        minimum=0,
    )
    label_smoothing: float = option(
        0.0, "share of the target spread over all classes", minimum=0, maximum=1
    )
    translate: int = option(
        0, "training images are shifted by up to this many of their pixels", minimum=0
    )
    flip: bool = option(
        False,
        "training images are mirrored left to right in every other epoch: clothes, and your own "
        "images; no effect on digits and letters",
    )
    erase: float = option(
        0.0, "probability that a training image loses a rectangle of up to a third of it",
        minimum=0, maximum=1,
    )  # fmt: skip
    tta: bool = option(
        False,
        "test-time augmentation: answer with the mean logits of an image and its mirror image, at "
        "twice the cost; no effect on digits and letters",
        silent=True,
    )
    epochs: int = option(5, "passes over the training split", minimum=1)
    batch_size: int = option(16, "images a step, of all processes together", minimum=1)
    amp: bool = option(True, "automatic mixed precision, where the device has a fast 16-bit type")
    amp_dtype: str = option(
        "auto", "16-bit type; fp16 needs an accelerator", choices=("auto", "bf16", "fp16")
    )
    channels_last: bool = option(True, "NHWC memory layout")
    compile: bool = option(False, "torch.compile the network")
    data_on: str = option(
        "device", "where an accelerator's batches are gathered", choices=("device", "host")
    )
    pin_memory: bool = option(
        False, "page-locked host batches; needs --data-on host on an accelerator"
    )
    device: str = option("auto", "auto takes the accelerator if there is one", choices=DEVICES)
    sync_bn: bool = option(
        False, "BatchNorm's statistics over all of torchrun's processes; not on a CPU", silent=True
    )
    world_size: int = option(1, "of torchrun's processes, filled in", flag=False, silent=True)

    @property
    def mirrored(self) -> bool:
        """Whether training images are mirrored: asked for, and of a kind that may be."""
        return self.flip and may_mirror(self.dataset)

    def describe(self) -> str:
        """The factors of the study, in a few words."""
        pin = " pin" if self.pin_memory else ""
        return f"{self.dataset} {self.model} {self.opt} {self.lr:g}{pin}"


@dataclass(frozen=True)
class SvmConfig(DataConfig):
    """One support vector machine; the defaults are the study's."""

    kernel: str = option("rbf", "kernel", choices=("poly", "rbf", "linear"))
    samples: int = option(10_000, "training images, chosen by --seed", minimum=2)
    features: str = option(
        "raw", "raw pixels in [0, 1], or HOG descriptors", choices=("raw", "hog")
    )
    C: float = option(1.0, "inverse regularisation strength", above=0)
    gamma: str = option("scale", "kernel coefficient", choices=("scale", "auto"))
    image_size: int | None = option(
        None, "side in pixels that images are resized to (default: as they are)", minimum=1
    )
    max_iter: int = option(1000, "solver iterations; -1 for no limit", minimum=-1)
    engine: str = option(
        "sklearn", "implementation of SVC", choices=("sklearn", "sklearnex", "cuml")
    )


@dataclass(frozen=True)
class FlopsConfig(Validated):
    """One cost count: a network at an input shape."""

    model: str = option("resnet18", NETWORK, choices=MODELS, check=check_model)
    image_size: int = option(64, "side of the input in pixels", minimum=1)
    classes: int = option(10, "outputs of the network", minimum=1)


@dataclass(frozen=True)
class HwTrainConfig(DataConfig):
    """Training speed of one network and optimiser on one device variant (the study's Q2)."""

    dataset: str = option("fashion", "data set", choices=DATASETS)
    model: str = option("resnet18", NETWORK, choices=MODELS, check=check_model)
    opt: str = option("sgd", "optimiser; sgd has momentum 0.9", choices=OPTIMIZERS)
    lr: float = option(1e-3, "learning rate, constant", above=0)
    batch_size: int = option(16, "images a step", minimum=1)
    image_size: int = option(224, "side in pixels that images are resized to", minimum=1)
    device: str = option("auto", "devices to compare", choices=DEVICES)
    threads: int | None = option(
        None, "CPU threads (default: all; 1 and all where only a CPU is measured)", minimum=1
    )
    precision: str | None = option(
        None,
        "default: the fast 16-bit type; fp32 too where only a CPU is measured",
        choices=("fp32", "bf16", "fp16"),
    )
    compile: bool | None = option(
        None, "torch.compile (default: false; both where only a CPU is measured)"
    )
    loop: str = option(
        "ours", "training loop; notebook: the one of tutorials, in fp32 too by default",
        choices=LOOPS,
    )  # fmt: skip
    data_on: str = option(
        "device", "where an accelerator's batches are gathered", choices=("device", "host")
    )
    pin_memory: bool = option(
        False, "page-locked host batches; needs --data-on host on an accelerator"
    )
    steps: int = option(20, "timed steps", minimum=2)
    warmup: int = option(2, "untimed steps before", minimum=1)
    full_epoch: bool = option(False, "train one whole epoch and test it, beside the sample")
    accept_noise: bool = option(False, NOISE)

    def describe(self) -> str:
        """The variant in a few words."""
        mode = "compiled" if self.compile else "eager" if self.loop == "ours" else "notebook loop"
        parts = [self.device, self.precision, mode]
        if self.threads:
            parts.insert(1, f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        return ", ".join(parts)


@dataclass(frozen=True)
class HwInferConfig(Validated):
    """Inference speed of one exported network in one engine."""

    train_run_id: str | None = option(
        None, "train runs whose exports are measured (default: each data set's best)"
    )
    engine: str | None = option(
        None, "default: all that are exported and installed", choices=ENGINE_NAMES
    )
    scenario: str | None = option(
        None, "batch 1 latency, or throughput; default: both", choices=("single", "offline")
    )
    batch_size: int = option(64, "images a query of the offline scenario", minimum=1)
    threads: int | None = option(None, "CPU threads of every engine (default: all)", minimum=1)
    queries: int = option(100, "timed queries, at least", minimum=10)
    seconds: float = option(10.0, "timed seconds, at least", above=0)
    launches: int = option(
        3, "fresh processes of every engine, one after the other; intervals are over them",
        minimum=1,
    )  # fmt: skip
    quick: bool = option(
        False, "a fifth of the queries, a twentieth of the time, one launch; the row says so"
    )
    accept_noise: bool = option(False, NOISE)

    def effort(self) -> tuple[int, int, float]:
        """Launches, and the least queries and seconds of timing in each of them."""
        if self.quick:
            return 1, max(10, self.queries // 5), self.seconds / 20
        return self.launches, -(-self.queries // self.launches), self.seconds / self.launches


# --- where and how a script works: never part of a run's identity ---------------------------------


@dataclass(frozen=True)
class Options(Validated):
    """Flags every script has."""

    results_dir: str = option("results", "folder of the log and of everything written")
    data_dir: str = option("data", "folder of the data sets, in torchvision's layout")
    force: bool = option(False, "do the work again, even where the log has it")


@dataclass(frozen=True)
class GridOptions(Options):
    """Flags of a script that does the work of a grid."""

    jobs: str = option("1", "how many at once, or auto: one per core or accelerator")
    backend: str = option(
        "loky", "what runs several at once: processes here, or a cluster's workers",
        choices=("loky", "dask", "ray"),
    )  # fmt: skip
    cluster: str | None = option(
        None, "address of the cluster's scheduler (default: one of --jobs workers is started here)"
    )
    threads: int | None = option(
        None, "CPU threads of each process (default: an equal share of the cores; torchrun's is 1)",
        minimum=1,
    )  # fmt: skip
    shard: str | None = option(
        None, "append to log.SHARD.jsonl, and look for finished work there alone"
    )
    list_commands: bool = option(
        False, "print a shell command for each piece of work that is not in the log, and stop"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs != "auto" and not (self.jobs.isdecimal() and int(self.jobs) > 0):
            raise UsageError(f"--jobs: {self.jobs!r} is neither a number from 1 up nor auto")
        if self.shard is not None and not self.shard.replace("-", "").replace("_", "").isalnum():
            raise UsageError(f"--shard: {self.shard!r} must be of letters, digits, - and _")
        if self.cluster and self.backend == "loky":
            raise UsageError(f"--cluster {self.cluster}: needs --backend dask or ray")


@dataclass(frozen=True)
class TrainOptions(GridOptions):
    """Other flags of train.py."""

    dry_run: bool = option(False, "print the plan and stop")
    resume: bool = option(True, "continue interrupted runs from their last epoch")
    best: bool = option(
        False,
        "train nothing: export each data set's finished configuration of highest val_acc",
    )
    export: tuple[str, ...] = option(
        (), "export the trained network", choices=EXPORT_FORMATS, many=True
    )
    deterministic: bool = option(
        False, "only algorithms that give the same bits each time, on an accelerator too; slower"
    )
    tensorboard: bool = option(False, "write event files too; needs the package tensorboard")


@dataclass(frozen=True)
class HwOptions(Options):
    """Other flags of hw_bench.py."""

    mode: str = option(
        "train", "what is timed; each mode has flags of its own", choices=("train", "infer")
    )


@dataclass(frozen=True)
class NoGrid(Validated):
    """Nothing to vary."""


@dataclass(frozen=True)
class ExportOptions(Validated):
    """What to export again, and where it is."""

    runs: tuple[str, ...] = option((), "run_id of a training, or how it starts", many=True,
                                   positional=True)  # fmt: skip
    format: tuple[str, ...] = option(
        EXPORT_FORMATS, "formats to write", choices=EXPORT_FORMATS, many=True
    )
    results_dir: str = option("results", "folder of the log and of the checkpoints")
    data_dir: str = option("data", "folder of the data sets, whose test images are the gate")


@dataclass(frozen=True)
class PredictOptions(Validated):
    """What to classify, and with what."""

    model: str = option("", "ONNX file that this project exported", positional=True)
    images: tuple[str, ...] = option((), "image files", many=True, positional=True)
    json: bool = option(False, "print JSON, with the probability of every class")


# A preset's values are lists where the flag takes several, and lists by data set where each has
# its own. The study's grids are whole; `demo` is the study at reduced scale, `smoke` the embedded
# digits in seconds.
TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    "q1a": {
        "dataset": ["mnist", "fashion"], "model": ["resnet18", "resnet50"],
        "opt": ["sgd", "adam"], "lr": [1e-3, 1e-4], "epochs": [3, 5],
        "pin_memory": [False, True], "data_on": ["host"],
    },
    "demo": {
        "dataset": ["mnist", "fashion"], "opt": ["sgd", "adam"], "epochs": [2],
        "pin_memory": [False, True], "limit": [12_000], "image_size": [32],
    },
    "smoke": {
        "dataset": ["digits"], "opt": ["sgd", "adam"], "epochs": [3, 5], "image_size": [32],
    },
    "record": {
        "dataset": ["mnist", "fashion"], "model": ["vgg5"], "image_size": [28],
        "epochs": {"mnist": [2], "fashion": [3]}, "translate": {"mnist": [1], "fashion": [0]},
        "batch_size": [512], "opt": ["muon"], "lr": [0.1], "schedule": ["triangular"],
        "weight_decay": [5e-4], "label_smoothing": [0.1], "seed": list(range(10)),
    },
    "tuned": {
        "dataset": ["mnist", "fashion"], "batch_size": [256], "opt": ["muon"], "lr": [0.03],
        "schedule": ["triangular"], "weight_decay": [5e-4], "label_smoothing": [0.1],
        "translate": [1], "flip": [True], "seed": [0, 1, 2],
    },
    "best": {
        "dataset": ["mnist", "fashion"], "split": ["official"], "model": ["resnet14"],
        "image_size": [28], "epochs": {"mnist": [20], "fashion": [55]},
        "erase": {"mnist": [0.5], "fashion": [1.0]}, "translate": [2], "flip": [True],
        "tta": [True], "batch_size": [256], "opt": ["muon"], "lr": [0.03],
        "schedule": ["triangular"], "weight_decay": [5e-4], "label_smoothing": [0.1],
    },
}  # fmt: skip
SVM_PRESETS: dict[str, dict[str, Any]] = {
    "q1b": {"dataset": ["mnist", "fashion"], "kernel": ["poly", "rbf"]},
    "demo": {"dataset": ["mnist", "fashion"], "kernel": ["poly", "rbf"], "samples": [5000]},
    "smoke": {"dataset": ["digits"], "kernel": ["poly", "rbf", "linear"], "samples": [1000]},
}
FLOPS_PRESETS: dict[str, dict[str, Any]] = {
    "study": {"model": ["resnet18", "resnet50"], "image_size": [64, 224]},
}
HW_PRESETS: dict[str, dict[str, Any]] = {
    "q2": {"model": ["resnet18", "resnet50"], "opt": ["sgd", "adam"]},
    "demo": {
        "dataset": ["mnist", "fashion"], "opt": ["sgd", "adam"], "image_size": [64],
        "compile": [False], "steps": [6], "accept_noise": [True],
    },
    "smoke": {
        "dataset": ["digits"], "image_size": [32], "compile": [False], "steps": [4],
        "threads": [1], "accept_noise": [True],
    },
}  # fmt: skip
QUICK_ENGINES = ["eager", "torchscript", "onnxruntime", "onnxruntime-int8"]
HW_INFER_PRESETS: dict[str, dict[str, Any]] = {
    "bench": {"batch_size": [16, 64, 256]},
    "demo": {"engine": QUICK_ENGINES, "quick": [True], "accept_noise": [True]},
    "smoke": {
        "engine": QUICK_ENGINES[:3],
        "batch_size": [16],
        "threads": [1],
        "quick": [True],
        "seconds": [1.0],
        "accept_noise": [True],
    },
}


# --- from a command line to configurations --------------------------------------------------------


def flag_of(name: str) -> str:
    """The flag of a field: pin_memory -> --pin-memory."""
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:  # argparse would print the whole usage first
        raise UsageError(f"{message}; see {self.prog} --help")


def _truth(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _add_flags(parser: argparse.ArgumentParser, cls: type, several: bool) -> None:
    hints = get_type_hints(cls)
    group = parser.add_argument_group(cls.__doc__.splitlines()[0].rstrip("."))
    for f in fields(cls):
        if not f.metadata.get("flag", True):
            continue
        text = f.metadata["help"].replace("%", "%%")
        if "choices" in f.metadata:
            text += f" ({', '.join(f.metadata['choices'])})"
        many = several or f.metadata.get("many", False)
        if f.default not in (None, (), ""):
            default = str(f.default).lower() if isinstance(f.default, bool) else f.default
            text += f" [{' '.join(default) if isinstance(default, tuple) else default}]"
        kind = next(t for t in (bool, int, float, str) if _mentions(hints[f.name], t))
        extra: dict[str, Any] = {"type": kind, "metavar": f.name.upper()}
        if kind is bool and not many:
            extra = {"action": argparse.BooleanOptionalAction}
        elif many:
            # A bare --pin-memory means true, as everywhere else.
            extra["nargs"] = "*" if kind is bool else "+"
            extra["type"] = _truth if kind is bool else kind
        if f.metadata.get("positional"):
            group.add_argument(f.name, help=text, **extra)
        else:
            group.add_argument(flag_of(f.name), help=text, default=argparse.SUPPRESS, **extra)


def _mentions(hint: Any, kind: type) -> bool:
    args = getattr(hint, "__args__", (hint,))
    return kind in args


def parse_command_line(
    argv: Sequence[str] | None,
    description: str,
    config_class: type,
    options_class: type = Options,
    presets: dict[str, dict[str, Any]] | None = None,
    default_preset: str | None = None,
) -> tuple[dict[str, list[Any]], Any]:
    """Parse flags into the values asked for of each field, and the options.

    Returns: ({field: [value, ...]} for every field of config_class, options).
    Raises: UsageError on an unknown flag, name or value.
    """
    parser = _Parser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    presets = presets or {}
    if presets:
        text = f"a named set of flag values ({', '.join(presets)})"
        text += f", which replace the defaults below [{default_preset}]" if default_preset else ""
        parser.add_argument("--preset", default=default_preset, help=text)
    _add_flags(parser, config_class, several=True)
    _add_flags(parser, options_class, several=False)
    given = vars(parser.parse_args(argv))
    preset = given.pop("preset", None)
    if preset is not None:
        check_name("--preset", preset, tuple(presets))
    grid = {f.name: [f.default] for f in fields(config_class)}
    grid |= presets.get(preset, {})
    chosen = {}
    for name, value in given.items():
        if name in grid:
            grid[name] = list(dict.fromkeys(value or [True]))  # a value given twice counts once
        else:
            chosen[name] = tuple(value) if isinstance(value, list) else value
    return grid, options_class(**chosen)


def expand_grid(config_class: type, grid: dict[str, list[Any]]) -> list[Any]:
    """The Cartesian product of the values, in the order of the fields, each one validated.

    Where a preset's values depend on the data set, the product is each data set's own.
    Raises: UsageError, also for a data set that such a preset has no values for.
    """
    names = [f.name for f in fields(config_class)]
    found = []
    for dataset in grid.get("dataset", [None]):
        own = {name: _values_for(dataset, grid[name]) for name in names}
        if missing := [flag_of(name) for name, values in own.items() if values is None]:
            raise UsageError(
                f"--dataset {dataset}: the preset has values for its own data sets alone; "
                f"give {' and '.join(missing)} too"
            )
        if dataset is not None:
            own["dataset"] = [dataset]
        found += [
            config_class(**dict(zip(names, values, strict=True)))
            for values in itertools.product(*own.values())
        ]
    return found


def preset_of(config: Mapping[str, Any]) -> str | None:
    """The preset of train.py that a row's configuration is one of, whatever its seed and device."""
    whole = defaults_of(TrainConfig) | config
    apart = {"seed": 0, "device": "auto"}
    return next((n for n, known in _preset_configs().items() if whole | apart in known), None)


def defaults_of(config_class: type) -> dict[str, Any]:
    """The defaults of all settings: what a row meant that is older than one."""
    return {f.name: f.default for f in fields(config_class)}


@functools.cache
def _preset_configs() -> dict[str, list[dict[str, Any]]]:
    grid = {name: [value] for name, value in defaults_of(TrainConfig).items()}
    return {
        name: [dataclasses.asdict(config) for config in expand_grid(TrainConfig, grid | preset)]
        for name, preset in TRAIN_PRESETS.items()
    }


def _values_for(dataset: str | None, values: Any) -> list[Any] | None:
    return values.get(dataset) if isinstance(values, dict) else values


def to_flags(settings: Sequence[Any], several: bool) -> list[str]:
    """The flags that give these configurations as a grid, or, not several, these options."""
    flags = []
    for f in fields(settings[0]):
        values = list(dict.fromkeys(getattr(item, f.name) for item in settings))
        if values == [f.default] or not f.metadata.get("flag", True):
            continue
        if isinstance(values[0], bool) and not several:
            flags.append(flag_of(f.name) if values[0] else flag_of(f"no_{f.name}"))
            continue
        items = values[0] if isinstance(values[0], tuple) else values
        texts = (str(v).lower() if isinstance(v, bool) else str(v) for v in items)
        flags += [flag_of(f.name), *texts]
    return flags


@dataclass(frozen=True)
class Trajectory:
    """Configurations that one training serves, shortest first; `trained` is the one trained."""

    configs: tuple[TrainConfig, ...]

    @property
    def trained(self) -> TrainConfig:
        """The first of the longest configurations."""
        return max(self.configs, key=lambda c: c.epochs)

    @property
    def milestones(self) -> list[int]:
        """The epochs at whose end a configuration is complete, ascending."""
        return sorted({c.epochs for c in self.configs})


def pin_memory_effect(config: TrainConfig) -> str | None:
    """Why pin_memory changes nothing in this configuration, or None where it is a real factor."""
    if config.device == "cpu":
        return "none: a CPU has no copy to make"
    if config.data_on == "device":
        return "none: the images live on the device"
    return None


def plainest_twin(config: TrainConfig) -> TrainConfig:
    """The same training, with every setting that changes nothing in it at its default."""
    if pin_memory_effect(config):
        config = dataclasses.replace(config, pin_memory=False, data_on="device")
    if not may_mirror(config.dataset):
        config = dataclasses.replace(config, flip=False, tta=False)
    return config


def group_trajectories(configs: Sequence[TrainConfig]) -> list[Trajectory]:
    """Group the configurations whose training is the same but for its length."""
    groups: dict[TrainConfig, list[TrainConfig]] = {}
    for config in configs:
        key = plainest_twin(config)
        if config.schedule == "constant":  # else a shorter run is no part of a longer one
            key = dataclasses.replace(key, epochs=1)
        groups.setdefault(key, []).append(config)
    return [Trajectory(tuple(sorted(g, key=lambda c: c.epochs))) for g in groups.values()]


def as_dict(config: Any) -> dict[str, Any]:
    """All fields of a configuration, as the log holds them."""
    silent = {f.name: f.default for f in fields(config) if f.metadata.get("silent")}
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in silent or value != silent[name]
    }
