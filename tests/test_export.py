"""common.deploy: what is in the files, which files are refused, and what the engines answer."""

import copy
import hashlib
import importlib.util
import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import interpolate

import train
from common.base.cli import UsageError, as_dict
from common.base.config import TrainConfig
from common.base.log import Log
from common.data.datasets import load_dataset
from common.deploy import export, runtimes
from common.deploy.runtimes import Deployable, fold, load_engine
from common.judge.rows import TRAIN_PROTOCOL, deviations
from common.models import MODELS, build_model
from common.train import device
from common.train.checkpoint import load_checkpoint, save_checkpoint
from common.train.loop import MirrorMean
from common.train.run import Run

FORMATS = ("torchscript", "onnx", "onnx-int8")
needs_compiler = pytest.mark.skipif(bool(device.compile_obstacle()), reason="no C++ compiler")
EVERY = [*FORMATS, pytest.param("aotinductor", marks=needs_compiler)]
NO_TEXTS = ("classes", "mean", "std", "image_size", "channels", "fp32_test_acc")


def tiny_network(classes):
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, classes)),
    )


@pytest.fixture(autouse=True)
def lenient(request, monkeypatch):
    """An image of 361 is more than the tolerance of int8, and this small network may lose some."""
    if "int8" in request.node.name:
        monkeypatch.setattr(export, "MAX_ACC_DROP", 0.03)


def add_run(log, model, weights):
    """A train row with its checkpoint, as train.py leaves them."""
    config = as_dict(TrainConfig(dataset="digits", model=model, image_size=16, device="cpu"))
    content = {"model": weights, "config": config, "classes": list("0123456789"), "epoch": 5}
    save_checkpoint(log.folder / "checkpoints/run.pt", content | {"mean": [0.3], "std": [0.4]})
    return log.append("train", config, {"checkpoint": "checkpoints/run.pt"})


@pytest.fixture(scope="module")
def weights():
    """Those of the tiny network after two epochs: far from chance, with clear answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", tiny_network)
        config = TrainConfig(dataset="digits", model="tiny", image_size=16, lr=0.05, device="cpu")
        run = Run(config, "data")
        run.train_one_epoch()
        assert run.train_one_epoch()["val_acc"] > 0.5
        return run.model.state_dict()


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", tiny_network)
    return Log(tmp_path)


def small_digits(part, side=16):
    return interpolate(load_dataset("digits").images[part] / 255, (side, side), mode="bilinear")


def compare(answer, weights, quantised, batches):
    """An engine's answers with those of the tiny network, which is normalised and made grey here;
    in int8 weights and activations are each off by half a step of 256, in two layers."""
    model = tiny_network(10).eval()
    model.load_state_dict(weights)
    pixels = [small_digits(part) for part in batches]
    with torch.no_grad():
        expected = [model(((x - 0.3) / 0.4).repeat(1, 3, 1, 1)).numpy() for x in pixels]
        answers = [answer(x) for x in pixels]  # all before a look: none shares a later one's memory
    atol = 0.02 * max(map(np.ptp, expected)) if quantised else 1e-4
    for ours, theirs in zip(answers, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol)


def open_file(path):
    """What an exported file answers and says, by the engine itself with nothing of ours between."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map
        return lambda pixels: session.run(None, {"pixels": pixels.numpy()})[0], facts
    if path.suffix == ".pt2":
        package = torch._inductor.aoti_load_package(str(path))
        return package, package.get_metadata()
    files = {"metadata.json": ""}
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return torch.jit.load(path, _extra_files=files), json.loads(files["metadata.json"])


@pytest.mark.parametrize("format", EVERY)
def test_one_whole_file_answers_as_the_network_does_and_says_what_it_is(format, log, weights):
    train_row = add_run(log, "tiny", weights)
    row = export.export_run(log, train_row, format, "data")
    assert row["status"] == "ok", row["error"]
    m, quantised, run = row["metrics"], "int8" in format, train_row["run_id"]
    file = log.folder / m["file"]
    answer, facts = open_file(file)
    compare(answer, weights, quantised, [slice(n) for n in (1, 7, 64)])
    card = file.with_name(f"{file.name}.md")
    assert {*file.parent.iterdir()} == {file, card}  # no external data, no draft
    assert m["sha256"] in card.read_text()
    assert file.name == run + export.FORMATS[format].suffix
    assert row["config"] == train_row["config"] | {"format": format}
    content = file.read_bytes()
    if format != "aotinductor":  # its compiled code names the headers of torch
        assert str(Path(export.__file__).parents[2]).encode() not in content
    expected = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert m.items() >= (expected | {"format": format, "train_run_id": run}).items()
    assert m["parity"]["images"] == 361
    assert m["parity"]["flips"] <= (9 if quantised else 0)
    assert abs(m["parity"]["acc_delta"]) <= (0.03 if quantised else 0)
    assert 0 <= m["parity"]["max_abs_logit"] < (0.5 if quantised else 1e-4)
    if file.suffix != ".pt":
        facts |= {name: json.loads(facts[name]) for name in NO_TEXTS}
    expected = {"classes": list("0123456789"), "mean": [0.3], "std": [0.4], "model": "tiny"}
    expected |= {"image_size": 16, "channels": 1, "train_run_id": run}
    assert facts.items() >= expected.items()
    assert facts["fp32_test_acc"] > 0.5
    assert "[0, 1]" in facts["input"]
    assert "git_commit" in facts


@pytest.mark.parametrize(
    ("name", "mirrored"), [("tiny", True), ("vgg5", True), ("squeezenet1_1", False)]
)
def test_int8_rounds_no_logits_whatever_follows_the_classifier(name, mirrored, log, tmp_path):
    """SqueezeNet ends in a convolution, ReLU and a mean; --tta in a mean over the mirror image."""
    model = build_model(name, 10, image_size=32).eval()
    network = Deployable(MirrorMean(model) if mirrored else model, [0.3], [0.4]).eval()
    pixels, file = small_digits(slice(400), 32), tmp_path / "net.int8.onnx"
    facts, calibration = {"image_size": 32, "channels": 1}, list(pixels[:256].split(16))
    export.FORMATS["onnx-int8"].write(fold(network), file, facts, calibration)
    with torch.no_grad():
        expected = network(pixels).numpy()
    ours = open_file(file)[0](pixels)
    for column in range(10):
        if len(np.unique(expected[:, column])) > 300:  # ReLU leaves zeros
            assert len(np.unique(ours[:, column])) > 300
    assert np.abs(ours - expected).mean() < 0.02 * np.ptp(expected)
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    last = max(i for i, kind in enumerate(kinds) if kind in ("Conv", "Gemm", "MatMul"))
    assert "QuantizeLinear" in kinds[:last]
    assert "QuantizeLinear" not in kinds[last:]


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_predicts_otherwise_is_refused_and_the_old_one_stays(
    format, log, weights, monkeypatch
):
    train_row = add_run(log, "tiny", weights)
    good = export.export_run(log, train_row, format, "data")
    before = (log.folder / good["metrics"]["file"]).read_bytes()
    how = export.FORMATS[format]

    def forget_the_mean(network, *args):
        network = copy.deepcopy(network)
        network.mean.zero_()
        how.write(network, *args)

    def fail(*args):
        raise RuntimeError("no operator\nfor it")

    monkeypatch.setitem(export.FORMATS, format, replace(how, write=forget_the_mean))
    row = export.export_run(log, train_row, format, "data")
    assert (row["status"], row["metrics"]["file"]) == ("failed", None)
    assert "refused" in row["error"]
    assert row["metrics"]["parity"]["flips"] > 0
    assert row["metrics"]["parity"]["acc_delta"] != 0
    monkeypatch.setitem(export.FORMATS, format, replace(how, write=fail))
    row = export.export_run(log, train_row, format, "data")
    assert (row["status"], row["error"]) == ("failed", "RuntimeError: no operator")
    assert (log.folder / good["metrics"]["file"]).read_bytes() == before
    assert len(list((log.folder / "exports").iterdir())) == 2  # and its card
    assert log.finished("export")[good["run_id"]]["time_utc"] == good["time_utc"]


def parity_of(logits, reference, precision="fp32"):
    """Of images that are all of class 0: what is lost is what eager had right."""
    labels = torch.zeros(len(logits), dtype=torch.int64)
    return export.measure_parity(torch.tensor(logits), torch.tensor(reference), labels, precision)


def test_parity_counts_what_differs():
    reference = [[3.0, 1.0], [1.0, 3.0], [2.0, 1.0], [2.0, 1.0]]
    logits = [[3.0, 1.0], [3.5, 3.0], [1.0, 2.0], [2.0, 1.25]]
    parity, fault = parity_of(logits, reference)
    counts = {"images": 4, "flips": 2, "max_abs_logit": 2.5, "acc_delta": 0.0, "mcnemar_p": 1.0}
    assert parity == counts | {"right": 3}
    assert fault.startswith("2 of 4 classes differ")
    assert parity_of(reference, reference)[1] is None
    # A class may flip in a near tie only.
    parity, fault = parity_of([[1.0, 1.00005]], [[1.00005, 1.0]])
    assert (parity["flips"], parity["acc_delta"], fault) == (1, -1, None)
    assert parity["max_abs_logit"] == pytest.approx(5e-5, rel=0.01)
    assert "1 of 1" in parity_of([[1.0, 1.0003]], [[1.0003, 1.0]])[1]
    for value in (float("nan"), float("inf"), 2.002):  # logits beyond tolerance, without any flip
        assert "0 of 1" in parity_of([[value, 1.0]], [[2.0, 1.0]])[1]
    assert parity_of([[2.0005, 1.0]], [[2.0, 1.0]])[1] is None


def test_a_lower_precision_may_move_logits_but_lose_no_accuracy():
    reference, fault = [[2.0, 1.0]] * 1000, "accuracy falls by 0.30% (tolerance 0.2%)"
    # mcnemar_p: two tails of so many coins
    for lost, p, expected in ((2, 0.5, None), (3, 0.25, fault)):
        logits = [[1.0, 2.0]] * lost + [[9.0, 1.0]] * (1000 - lost)
        parity, found = parity_of(logits, reference, "bf16")
        assert (parity["mcnemar_p"], found) == (p, expected)
    logits = [[float("nan"), 1.0], *reference[1:]]  # its class, and so the accuracy, may well stay
    assert parity_of(logits, reference, "bf16")[1]


@pytest.mark.parametrize("statistics", [([0.3], [0.4]), ([0.1, 0.2, 0.3], [0.5, 1.0, 2.0])])
@pytest.mark.parametrize("name", ["resnet18", "vgg5", "mobilenet_v3_small"])
def test_folding_changes_nothing_but_the_number_of_operations(name, statistics):
    model, channels = build_model(name, 10), len(statistics[0])
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(-1, 2)
            layer.bias.data.uniform_(-1, 1)
    network = Deployable(model, *statistics).eval()
    folded, pixels = fold(network), torch.rand(3, channels, 32, 32)
    with torch.no_grad():
        expected, ours = network(pixels), folded(pixels)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    convolutions = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[0].in_channels == channels
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert norms == (2 if name == "vgg5" else 0)  # a maximum lies between them and theirs


def test_the_mean_of_an_image_and_its_mirror_image_is_exported_folded_too():
    model, pixels = build_model("resnet14", 10).eval(), torch.rand(3, 1, 28, 28)
    plain, network = (Deployable(m, [0.3], [0.4]).eval() for m in (model, MirrorMean(model)))
    folded = fold(network)
    with torch.no_grad():
        expected = (plain(pixels) + plain(pixels.flip(-1))) / 2
        for answer in (network(pixels), folded(pixels)):
            torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


@pytest.mark.slow
def test_a_run_with_test_time_augmentation_is_tested_and_exported_with_it(tmp_path):
    """Its checkpoint is the plain network's."""
    pixels, labels = load_digits(n_class=2, return_X_y=True)
    pixels = (pixels * 15).astype(np.uint8).reshape(-1, 8, 8)
    np.savez(tmp_path / "two.npz", X=pixels, y=labels)
    flags = ["--dataset", f"npz:{tmp_path / 'two.npz'}", "--image-size", "16", "--epochs", "2"]
    flags += ["--model", "resnet14", "--tta", "--export", *FORMATS]
    assert train.main([*flags, "--results-dir", str(tmp_path), "--data-dir", str(tmp_path)]) == 0
    log = Log(tmp_path)
    (row,) = log.read("train")
    assert row["config"]["tta"] is True
    assert "mean over the mirror image" in deviations(row["config"], TRAIN_PROTOCOL)
    content = load_checkpoint(tmp_path / row["metrics"]["checkpoint"])
    model = build_model("resnet14", 2).eval()
    model.load_state_dict(content["model"])
    with np.load(tmp_path / row["metrics"]["predictions"]) as saved:
        logits, index = torch.from_numpy(saved["logits"].astype("float32")), saved["index"]
    images = load_dataset(row["config"]["dataset"], tmp_path, 16).images[index]
    x = ((images / 255 - content["mean"][0]) / content["std"][0]).expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = (model(x) + model(x.flip(-1))) / 2
    torch.testing.assert_close(logits, expected, rtol=2e-3, atol=2e-3)
    exported = {r["config"]["format"]: r for r in log.read("export")}
    assert [r["status"] for r in exported.values()] == ["ok"] * 3
    assert exported["onnx"]["metrics"]["parity"]["flips"] == 0


def test_what_cannot_be_traced_or_begins_otherwise_stays_right():
    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    network = Deployable(Branching(), [0.5], [0.5])
    assert fold(network) is network
    network = Deployable(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), [0.5], [0.5]).eval()
    pixels = torch.rand(2, 1, 2, 2)
    torch.testing.assert_close(fold(network)(pixels), network(pixels))
    network = Deployable(nn.Flatten(), [0.1, 0.2, 0.3], [1.0, 2.0, 4.0])  # in colour
    pixels = torch.full((1, 3, 1, 1), 0.5)
    torch.testing.assert_close(network(pixels), torch.tensor([[0.4, 0.15, 0.05]]))


def test_a_missing_package_or_a_checkpoint_that_lacks_something_is_bad_input(
    log, weights, monkeypatch
):
    row, file = add_run(log, "tiny", weights), log.folder / "checkpoints/run.pt"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match="pip install onnxscript"):
        export.export_run(log, row, "onnx", "data")
    save_checkpoint(file, {"model": weights})
    with pytest.raises(UsageError, match="no checkpoint of train"):
        export.export_run(log, row, "torchscript", "data")
    file.unlink()
    with pytest.raises(UsageError, match="cannot load"):
        export.export_run(log, row, "torchscript", "data")


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="pip install openvino")
@pytest.mark.parametrize("name", ["openvino", "openvino-int8"])
def test_openvino_answers_as_the_network_does_and_keeps_no_answer(name, log, weights):
    format = runtimes.ENGINES[name].reads
    row = export.export_run(log, add_run(log, "tiny", weights), format, "data")
    engine = load_engine(name, log.folder / row["metrics"]["file"], 1)
    batches = [slice(0, 1), slice(1, 8), slice(8, 72), slice(72, 73)]
    compare(engine, weights, "int8" in name, batches)


@pytest.mark.parametrize("name", ["outside_relative", "outside_absolute"])
def test_an_onnx_file_that_names_data_outside_its_folder_is_not_loaded(tmp_path, name):
    """An Add whose weight of ten numbers is in ../secret.bin, or in /etc/passwd."""
    (tmp_path / "secret.bin").write_bytes(bytes(40))
    (tmp_path / "exports").mkdir()
    file = shutil.copy(Path(__file__).parent / f"odd/{name}.onnx", tmp_path / "exports")
    with pytest.raises(Exception, match="xternal data"):
        load_engine("onnxruntime", file, 1)


@pytest.mark.parametrize("name", ["onnxruntime", "torchscript", "eager"])
def test_a_file_that_is_no_model_is_an_error_of_its_engine(tmp_path, name):
    file = tmp_path / "model"
    file.write_bytes(b"<html>not a model</html>")
    with pytest.raises(Exception, match=r"model|archive|load"):
        load_engine(name, file, 1)
