"""Trained networks as files that run without this project, each kept only if it predicts alike.
An exported graph takes float32 pixels in [0, 1], already resized, and returns logits; what a user
needs to know is in the file: ONNX metadata_props, TorchScript's extra file metadata.json. Before a
file gets its name, the engine that it is for answers the whole test split with it. Beside each is a
model card, whose words are in card.md.j2."""

import hashlib
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from common import cost
from common.base.cli import UsageError, first_line, print_more
from common.base.config import TrainConfig, TrainOptions, is_own
from common.base.log import Log, Row, locate, run_id, write_together
from common.base.machine import describe_machine, git_state
from common.data.batches import Batches
from common.data.datasets import load_dataset, render, split_dataset
from common.data.images import Dataset
from common.data.scores import baseline
from common.deploy import runtimes
from common.train.device import compile_obstacle
from common.train.grid import train_id
from common.train.loop import EVAL_BATCH_SIZE, evaluate, score

# Of fp32 against fp32: the order of additions alone moves these networks' logits by about 1e-5.
MAX_ABS_LOGIT = 1e-3
NEAR_TIE = 1e-4  # a class may change only where eager's best two logits are this close
MAX_ACC_DROP = 0.002  # of bf16 and int8, whose logits do move; or one image, where that is more
CALIBRATION_IMAGES = 1024  # of the validation part
CALIBRATION_BATCH = 16  # images whose least and greatest values are averaged with other batches'

Images = Iterable[Tensor]  # batches of pixels
Facts = dict[str, Any]  # a file's metadata; image_size and channels give the input's shape


def build_pixel_loader(dataset: Dataset, image_size: int) -> Callable[[Tensor], Tensor]:
    """From indices to an exported graph's input. Shapes: (B,) -> (B, C, S, S) in [0, 1]."""
    channels = dataset.images.shape[1]
    unchanged = torch.zeros(channels), torch.ones(channels)
    batches = Batches(dataset, unchanged, image_size, torch.device("cpu"), channels_last=False)
    return lambda index: batches.load(index)[0][:, :channels].contiguous()


def predict(engine: runtimes.Run, load_pixels: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
    """Shapes: (N,) -> (N, classes), the engine's logits."""
    return torch.cat([engine(load_pixels(part)) for part in index.split(EVAL_BATCH_SIZE)])


def measure_parity(
    logits: Tensor, reference: Tensor, labels: Tensor, precision: str = "fp32"
) -> tuple[dict[str, Any], str | None]:
    """How far predictions are from those of eager in fp32, and what is beyond the tolerance of the
    precision, or None. mcnemar_p is the exact p of the difference in accuracy.
    Shapes: logits, reference (N, classes); labels (N,)."""
    answers, before = logits.argmax(1), reference.argmax(1)
    flipped, right, right_before = answers != before, answers == labels, before == labels
    lost, won = int((right_before & ~right).sum()), int((right & ~right_before).sum())
    distance, fault = (logits.double() - reference.double()).abs().max().item(), None
    parity = {
        "images": len(labels),
        "flips": int(flipped.sum()),
        "right": int(right.sum()),
        "max_abs_logit": distance,
        "acc_delta": score(logits, labels)[1] - score(reference, labels)[1],
        "mcnemar_p": float(binomtest(won, won + lost).pvalue) if won + lost else 1.0,
    }
    if precision == "fp32":
        best, second = reference.topk(2).values.unbind(1)
        wrong = int((flipped & ~(best - second <= NEAR_TIE)).sum())
        if wrong or not distance <= MAX_ABS_LOGIT:  # so that NaN is a fault
            fault = f"{wrong} of {len(labels)} classes differ beyond a near tie, logits by up to "
            fault += f"{distance:.3g} (tolerance {MAX_ABS_LOGIT:g})"
    elif not logits.isfinite().all():
        fault = "logits are not finite"
    elif lost - won > max(1, MAX_ACC_DROP * len(labels)):
        drop = (lost - won) / len(labels)
        fault = f"accuracy falls by {drop:.2%} (tolerance {MAX_ACC_DROP:.1%})"
    return parity, fault


def _write_torchscript(network: nn.Module, file: Path, facts: Facts, images: Images) -> None:
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=FutureWarning):
        # check_trace would compare a handful of outputs; the gate compares thousands.
        traced = torch.jit.trace(network, _example(facts), check_trace=False)
        extra = {"metadata.json": json.dumps(facts)}
        torch.jit.save(torch.jit.freeze(traced), file, _extra_files=extra)
    remove_traces(file)


def _write_onnx(network: nn.Module, file: Path, facts: Facts, images: Images) -> None:
    # Channels last, an average over all positions would become eleven operations.
    network.to(memory_format=torch.contiguous_format)
    how = {"input_names": ["pixels"], "output_names": ["logits"], "verbose": False}
    how |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False}
    program = torch.onnx.export(network, (_example(facts),), dynamo=True, **how)
    save_onnx(program.model_proto, file, facts)


def save_onnx(model: Any, file: Path, facts: Facts) -> None:
    """Save a ModelProto that says these facts and, of where it was made, nothing: the exporter
    notes at every node which line of which folder's file it comes from."""
    import onnx

    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output, *graph.initializer)
    for part in (graph, *graph.node, *values):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(model, _as_text(facts))
    onnx.save(model, file)
    onnx.checker.check_model(file, full_check=True)


def _write_onnx_int8(network: nn.Module, file: Path, facts: Facts, images: Images) -> None:
    """Static quantisation: int8 weights with a scale for each output channel, uint8 activations
    with the mean of the batches' ranges: that of all images, which a few outliers widen, cost a
    ResNet-50 0.3 points."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain = file.with_suffix(".fp32.onnx")
    _write_onnx(network, plain, facts, images)
    quant_pre_process(plain, plain, skip_symbolic_shape=True)
    inputs = ({"pixels": pixels.numpy()} for pixels in images)
    reader = SimpleNamespace(get_next=lambda: next(inputs, None))
    how = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    how |= {"per_channel": True, "extra_options": {"CalibMovingAverage": True}}
    kept = _classifier(onnx.load(plain).graph)
    quantize_static(plain, file, reader, nodes_to_exclude=kept, **how)
    save_onnx(onnx.load(file), file, facts)


def _classifier(graph: Any) -> list[str]:
    """The last nodes with weights and all that follow, which in int8 would round logits to a few
    values: a convolution may be last, or a mean over images follow."""
    weights = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    names, pending = set(), [output.name for output in graph.output]
    while pending:
        node = makers.get(pending.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            if node.op_type not in ("Conv", "Gemm", "MatMul") or weights.isdisjoint(node.input):
                pending += node.input
    return sorted(names)


def _write_aotinductor(network: nn.Module, file: Path, facts: Facts, images: Images) -> None:
    # Not with inductor's freezing: in torch 2.14 a package made so answers wrongly. Without
    # dynamic_threads the count of threads here would be in it.
    settings = {"aot_inductor.metadata": _as_text(facts), "cpp.dynamic_threads": True}
    if hasattr(torch._inductor.config.aot_inductor, "enable_line_tables"):
        settings["aot_inductor.enable_line_tables"] = False  # folders, for debuggers
    how = {"package_path": str(file), "inductor_configs": settings}
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    with torch.no_grad():
        program = torch.export.export(network, (_example(facts),), dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(program, **how)
    # The kernels' source, with the commands that compiled it. What is compiled still names the
    # folder of torch's headers.
    remove_traces(file)


def remove_traces(file: Path) -> None:
    """Remove from a zip file what only debuggers read and says where it was made, and its hash."""
    with zipfile.ZipFile(file) as old:
        parts = [(part, old.read(part)) for part in old.infolist()]
    with zipfile.ZipFile(file, "w") as new:
        for part, content in parts:
            if part.filename.endswith(".cpp"):  # by whose name torch before 2.14 finds others
                new.writestr(part, b"")
            elif not part.filename.endswith((".debug_pkl", "serialization_id")):
                new.writestr(part, content)


def _example(facts: Facts) -> Tensor:  # two images: a dimension of 1 would be taken for a constant
    return torch.zeros(2, facts["channels"], facts["image_size"], facts["image_size"])


def _as_text(facts: Facts) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}


@dataclass(frozen=True)
class Format:
    """How a file is named and written, the engine that checks it, and what it needs."""

    suffix: str
    engine: str
    write: Callable[[nn.Module, Path, Facts, Images], None]  # Images: to quantise by, none tested
    packages: tuple[str, ...] = ()


ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "torchscript": Format(".ts.pt", "torchscript", _write_torchscript),
    "onnx": Format(".onnx", "onnxruntime", _write_onnx, ONNX),
    "onnx-int8": Format(".int8.onnx", "onnxruntime-int8", _write_onnx_int8, ONNX),
    "aotinductor": Format(".pt2", "aotinductor", _write_aotinductor),
}


def check_format(format: str) -> None:
    """Raises: UsageError when an export needs what is not installed."""
    runtimes.check_packages(format, FORMATS[format].packages)
    if format == "aotinductor" and (obstacle := compile_obstacle()):
        raise UsageError(f"aotinductor: {obstacle}")


def export_all(configs: list[TrainConfig], log: Log, options: TrainOptions) -> int:
    """Export every finished configuration in each format asked for. Returns: failures."""
    rows, exported, failures = log.finished("train"), log.finished("export"), 0
    names = [name for name in dict.fromkeys(map(train_id, configs)) if name in rows]
    for row, format in product([rows[name] for name in names], options.export):
        done = exported.get(run_id("export", row["config"] | {"format": format}))
        if options.force or not (done and (log.folder / done["metrics"]["file"]).exists()):
            failures += export_run(log, row, format, options.data_dir)["status"] != "ok"
    return failures


def export_run(log: Log, row: Row, format: str, data_dir: str) -> Row:
    """Export the network of a train row. Returns: the `export` row, a failed one, and the file that
    was there stays, unless the new one could be made and predicts as the network does."""
    check_format(format)
    config, file = row["config"] | {"format": format}, row["run_id"] + FORMATS[format].suffix
    metrics = {"format": format, "train_run_id": row["run_id"], "file": None, "parity": None}
    network, checkpoint = runtimes.load_deployable(locate(log.folder, row["metrics"]["checkpoint"]))
    path, failed = log.folder / "exports" / file, {}
    dataset = load_dataset(config["dataset"], data_dir, config["image_size"])
    try:
        content, metrics["parity"], fault = write_draft(network, checkpoint, dataset, row, format)
        if fault:
            raise RuntimeError(f"{file} refused: {fault}")
        digest = hashlib.sha256(content).hexdigest()
        metrics |= {"file": f"exports/{file}", "size_bytes": len(content), "sha256": digest}
        rows = [row, *log.finished("train").values()]
        card = write_card(rows, metrics, checkpoint, network.model).encode()
        write_together({path: content, path.with_name(f"{file}.md"): card})
    except UsageError:
        raise
    except Exception as error:  # exporters fail in many ways; none of them ends a grid
        print_more(error)
        failed = {"status": "failed", "error": first_line(error)}
    done = log.append("export", config, metrics, env=describe_machine(), **failed)
    print(f"{row['run_id']} {format}: {failed.get('error', path)}")
    return done


def write_draft(
    network: runtimes.Deployable, checkpoint: Facts, dataset: Dataset, row: Row, format: str
) -> tuple[bytes, dict[str, Any], str | None]:
    """A network as one file, and measure_parity of what is in the file."""
    config, size, channels = row["config"], row["config"]["image_size"], dataset.images.shape[1]
    split = split_dataset(dataset, config["split"], config["split_seed"])
    labels, load_pixels = dataset.labels[split.test], build_pixel_loader(dataset, size)
    # The reference comes the way that training took, with nothing of the exported graph in it.
    statistics = network.mean.flatten(), network.std.flatten()
    batches = Batches(dataset, statistics, size, torch.device("cpu"))
    reference = evaluate(network.model, batches, split.test)
    shape = f"(batch, {channels}, {size}, {size})"
    facts = {
        "input": f"float32 pixels in [0, 1], shape {shape}, resized with bilinear interpolation",
        "output": "logits, one for each class",
        "classes": list(checkpoint["classes"]),
        **{name: config[name] for name in ("dataset", "model", "image_size")},
        "channels": channels,
        "background": dataset.background,
        "resized_as": "uint8" if is_own(config["dataset"]) else "float32",
        **{name: list(checkpoint[name]) for name in ("mean", "std")},
        "fp32_test_acc": score(reference, labels)[1],
        "train_run_id": row["run_id"],
        "git_commit": git_state()["commit"],
    }
    how, calibration = FORMATS[format], split.val[:CALIBRATION_IMAGES]
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"draft{how.suffix}"
        images = map(load_pixels, calibration.split(CALIBRATION_BATCH))
        how.write(runtimes.fold(network), draft, facts, images)
        engine = runtimes.load_engine(how.engine, draft, torch.get_num_threads())
        logits = predict(engine, load_pixels, split.test)
        precision = runtimes.ENGINES[how.engine].precision
        return draft.read_bytes(), *measure_parity(logits, reference, labels, precision)


def write_card(rows: Sequence[Row], metrics: Row, checkpoint: Row, network: nn.Module) -> str:
    """What is known of a file, in Markdown, by the metrics of its export; the first of the rows is
    its training, of the others those of the same settings but seed and device are told too."""
    row, parity, size = rows[0], metrics["parity"], rows[0]["config"]["image_size"]
    facts: Row = {"row": row, "export": metrics, "checkpoint": checkpoint, "macs": None}
    facts["baseline"] = baseline(row["metrics"])
    with suppress(Exception):  # a layer that cannot run on the meta device
        facts["macs"] = cost.count_costs(network, (1, 3, size, size), "torch").macs
    facts["interval"] = binomtest(parity["right"], parity["images"]).proportion_ci(method="wilson")
    recipes = [r["config"] | {"seed": None, "device": None} for r in rows]
    others = [r for r, recipe in zip(rows, recipes, strict=True) if recipe == recipes[0]]
    others = [r for r in others if r["run_id"] != row["run_id"]]
    facts["seeds"] = {r["config"].get("seed"): r["metrics"]["test_acc"] for r in others}
    filters = {"md": lambda text: re.sub(r"[\\`*_\[\]<>|#]", r"\\\g<0>", str(text))}
    filters["percent"] = lambda share: f"{100 * share:.1f} %"
    return render(Path(__file__).with_name("card.md.j2"), facts, **filters)
