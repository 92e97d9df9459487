"""common.deploy.export: what is in the files, and which files are refused."""

import copy
import hashlib
import importlib.util
import json
import sys
import warnings
from dataclasses import replace

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
from common.data.datasets import cached_dataset, load_dataset
from common.deploy import export
from common.deploy import network as deploy
from common.deploy import runtimes as engines
from common.judge.rows import TRAIN_PROTOCOL, deviations
from common.models import MODELS, build_model
from common.train import device
from common.train.checkpoint import load_checkpoint, save_checkpoint
from common.train.run import Run

FORMATS = ("torchscript", "onnx", "onnx-int8")
needs_compiler = pytest.mark.skipif(bool(device.compile_obstacle()), reason="no C++ compiler")
NO_TEXTS = ("classes", "mean", "std", "image_size", "channels", "fp32_test_acc")
EVERY = [*FORMATS, pytest.param("aotinductor", marks=needs_compiler)]


def tiny_network(classes):
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, classes)),
    )


@pytest.fixture(autouse=True)
def lenient(request, monkeypatch):
    """An image of 361 is more than the tolerance of int8, and this small network may lose some."""
    if "int8" in str(request.node.callspec.params if hasattr(request.node, "callspec") else ""):
        monkeypatch.setattr(export, "MAX_ACC_DROP", 0.03)


def add_run(log, model, weights, **metrics):
    """A train row with its checkpoint, as train.py leaves them."""
    config = as_dict(TrainConfig(dataset="digits", model=model, image_size=16, device="cpu"))
    content = {"model": weights, "config": config, "classes": list("0123456789"), "epoch": 5}
    content |= {"mean": [0.3], "std": [0.4]}
    save_checkpoint(log.folder / "checkpoints/run.pt", content)
    return log.append("train", config, {"checkpoint": "checkpoints/run.pt", **metrics})


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


def run_file(path, pixels):
    """An exported file's logits, by the engine itself with nothing of ours in between."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {"pixels": pixels.numpy()})[0]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)
        load = torch._inductor.aoti_load_package if path.suffix == ".pt2" else torch.jit.load
        return load(str(path))(pixels).numpy()


def read_metadata(path):
    if path.suffix == ".onnx":
        return {p.key: p.value for p in onnx.load(path).metadata_props}
    if path.suffix == ".pt2":
        return torch._inductor.aoti_load_package(str(path)).get_metadata()
    files = {"metadata.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.load(path, _extra_files=files)
    return json.loads(files["metadata.json"])


@pytest.mark.parametrize("format", EVERY)
def test_one_whole_file_answers_as_the_network_does_and_says_what_it_is(format, log, weights):
    train_row = add_run(log, "tiny", weights)
    row = export.export_run(log, train_row, format, "data")
    assert row["status"] == "ok", row["error"]
    m, quantised = row["metrics"], "int8" in format
    file = log.folder / m["file"]
    model = tiny_network(10).eval()
    model.load_state_dict(weights)
    images = cached_dataset("digits", "data").images / 255
    for batch_size in (1, 7, 64):
        pixels = interpolate(images[:batch_size], (16, 16), mode="bilinear")
        with torch.no_grad():
            expected = model(((pixels - 0.3) / 0.4).repeat(1, 3, 1, 1)).numpy()
        # int8: of weights and activations each by half a step of 256, in a network of two layers
        atol = 0.02 * np.ptp(expected) if quantised else 1e-4
        np.testing.assert_allclose(run_file(file, pixels), expected, atol=atol)
    assert list(file.parent.iterdir()) == [file]  # no external data, no draft
    assert file.name == train_row["run_id"] + export.FORMATS[format].suffix
    assert row["config"] == train_row["config"] | {"format": format}
    assert m["size_bytes"] == file.stat().st_size
    assert m["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (m["format"], m["train_run_id"]) == (format, train_row["run_id"])
    assert m["parity"]["images"] == 361
    assert m["parity"]["flips"] <= (9 if quantised else 0)
    assert abs(m["parity"]["acc_delta"]) <= (0.03 if quantised else 0)
    assert 0 <= m["parity"]["max_abs_logit"] < (0.5 if quantised else 1e-4)
    facts = read_metadata(file)
    if file.suffix != ".pt":
        facts |= {name: json.loads(facts[name]) for name in NO_TEXTS}
    assert facts["classes"] == list("0123456789")
    assert (facts["mean"], facts["std"]) == ([0.3], [0.4])
    assert (facts["model"], facts["image_size"], facts["channels"]) == ("tiny", 16, 1)
    assert facts["train_run_id"] == train_row["run_id"]
    assert facts["fp32_test_acc"] > 0.5
    assert "[0, 1]" in facts["input"]
    assert "git_commit" in facts


@pytest.mark.parametrize(
    ("name", "mirrored"), [("tiny", True), ("vgg5", True), ("squeezenet1_1", False)]
)
def test_int8_rounds_no_logits_whatever_follows_the_classifier(name, mirrored, log, tmp_path):
    """SqueezeNet ends in a convolution, ReLU and a mean; --tta in a mean over the mirror image."""
    model = build_model(name, 10, image_size=32).eval()
    model = deploy.MirrorMean(model) if mirrored else model
    network = deploy.Deployable(model, [0.3], [0.4]).eval()
    pixels = interpolate(cached_dataset("digits", "data").images[:400] / 255, (32, 32))
    file = tmp_path / "net.int8.onnx"
    draft = {"image_size": 32, "channels": 1}
    folded = deploy.fold(network)
    export._write_onnx_int8(folded, file, draft, list(pixels[:256].split(16)))
    with torch.no_grad():
        expected = network(pixels).numpy()
    ours = run_file(file, pixels)
    for column in range(10):
        if len(np.unique(expected[:, column])) > 300:  # ReLU leaves zeros
            assert len(np.unique(ours[:, column])) > 300
    assert np.abs(ours - expected).mean() < 0.02 * np.ptp(expected)
    nodes = onnx.load(file).graph.node
    kinds = [node.op_type for node in nodes]
    last = max(i for i, kind in enumerate(kinds) if kind in ("Conv", "Gemm", "MatMul"))
    assert "QuantizeLinear" in kinds[:last]
    assert "QuantizeLinear" not in kinds[last:]


def test_resnet18_exports_in_both_formats(log):
    row = add_run(log, "resnet18", build_model("resnet18", 10, seed=1).state_dict())
    for format in ("torchscript", "onnx"):
        done = export.export_run(log, row, format, "data")
        assert done["status"] == "ok", done["error"]
        assert done["metrics"]["parity"]["max_abs_logit"] < export.MAX_ABS_LOGIT


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_predicts_otherwise_is_refused_and_the_old_one_stays(
    format, log, weights, monkeypatch
):
    train_row = add_run(log, "tiny", weights)
    good = export.export_run(log, train_row, format, "data")
    before = (log.folder / good["metrics"]["file"]).read_bytes()
    write = export.FORMATS[format].write

    def write_forgetting_the_mean(network, file, metadata, images):
        network = copy.deepcopy(network)
        network.mean.zero_()
        write(network, file, metadata, images)

    forgetful = replace(export.FORMATS[format], write=write_forgetting_the_mean)
    monkeypatch.setitem(export.FORMATS, format, forgetful)
    row = export.export_run(log, train_row, format, "data")
    assert row["status"] == "failed"
    assert "refused" in row["error"]
    assert row["metrics"]["file"] is None
    assert row["metrics"]["parity"]["flips"] > 0
    assert row["metrics"]["parity"]["acc_delta"] != 0
    assert (log.folder / good["metrics"]["file"]).read_bytes() == before
    assert len(list((log.folder / "exports").iterdir())) == 1
    assert log.finished("export")[good["run_id"]]["time_utc"] == good["time_utc"]

    def breaks(*args):
        raise RuntimeError("no operator\nfor it")

    monkeypatch.setitem(export.FORMATS, format, replace(forgetful, write=breaks))
    row = export.export_run(log, train_row, format, "data")
    assert (row["status"], row["error"]) == ("failed", "RuntimeError: no operator")


def parity_of(logits, reference):
    labels = torch.zeros(len(logits), dtype=torch.int64)
    return export.measure_parity(torch.tensor(logits), torch.tensor(reference), labels)


def test_parity_counts_what_differs():
    reference = [[3.0, 1.0], [1.0, 3.0], [2.0, 1.0], [2.0, 1.0]]
    logits = [[3.0, 1.0], [3.5, 3.0], [1.0, 2.0], [2.0, 1.25]]
    parity, fault = parity_of(logits, reference)
    counts = {"images": 4, "flips": 2, "max_abs_logit": 2.5, "acc_delta": 0.0, "mcnemar_p": 1.0}
    assert parity == counts
    assert fault.startswith("2 of 4 classes differ")
    assert parity_of(reference, reference)[1] is None


def test_a_class_may_flip_in_a_near_tie_only():
    parity, fault = parity_of([[1.0, 1.00005]], [[1.00005, 1.0]])
    assert (parity["flips"], parity["acc_delta"], fault) == (1, -1, None)
    assert parity["max_abs_logit"] == pytest.approx(5e-5, rel=0.01)
    assert "1 of 1" in parity_of([[1.0, 1.0003]], [[1.0003, 1.0]])[1]
    for value in (float("nan"), float("inf"), 2.002):  # logits beyond tolerance, without any flip
        assert "0 of 1" in parity_of([[value, 1.0]], [[2.0, 1.0]])[1]
    assert parity_of([[2.0005, 1.0]], [[2.0, 1.0]])[1] is None


@pytest.mark.parametrize("precision", ["bf16", "8 bits"])
def test_a_lower_precision_may_move_logits_but_lose_no_accuracy(precision):
    """Labels are all 0: what is lost is what eager had right."""
    right, wrong = [2.0, 1.0], [1.0, 2.0]
    reference = torch.tensor([right] * 1000)
    labels = torch.zeros(1000, dtype=torch.int64)

    def verdict(lost):
        logits = torch.tensor([wrong] * lost + [[9.0, 1.0]] * (1000 - lost))
        return export.measure_parity(logits, reference, labels, precision)

    parity, fault = verdict(2)
    assert fault is None
    assert parity["mcnemar_p"] == 0.5  # two tails of two coins
    parity, fault = verdict(3)
    assert fault == "accuracy falls by 0.30% (tolerance 0.2%)"
    assert parity["mcnemar_p"] == 0.25
    logits = reference.clone()
    logits[0, 0] = float("nan")  # its class, and so the accuracy, may well stay
    assert export.measure_parity(logits, reference, labels, precision)[1]


@pytest.mark.parametrize("statistics", [([0.3], [0.4]), ([0.1, 0.2, 0.3], [0.5, 1.0, 2.0])])
@pytest.mark.parametrize("name", ["resnet18", "vgg5", "mobilenet_v3_small"])
def test_folding_changes_nothing_but_the_number_of_operations(name, statistics):
    model = build_model(name, 10)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(-1, 2)
            layer.bias.data.uniform_(-1, 1)
    network = deploy.Deployable(model, *statistics).eval()
    folded = deploy.fold(network)
    channels = len(statistics[0])
    pixels = torch.rand(3, channels, 32, 32)
    with torch.no_grad():
        expected, ours = network(pixels), folded(pixels)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    convolutions = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[0].in_channels == channels
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert norms == (2 if name == "vgg5" else 0)  # a maximum lies between them and theirs


def test_the_mean_of_an_image_and_its_mirror_image_is_exported_folded_too():
    model = build_model("resnet14", 10).eval()
    pixels = torch.rand(3, 1, 28, 28)
    network = deploy.Deployable(deploy.MirrorMean(model), [0.3], [0.4]).eval()
    plain = deploy.Deployable(model, [0.3], [0.4]).eval()
    folded = deploy.fold(network)
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
    flags += ["--model", "resnet14", "--tta", "--export", "onnx", "onnx-int8", "torchscript"]
    assert train.main([*flags, "--results-dir", str(tmp_path), "--data-dir", str(tmp_path)]) == 0
    log = Log(tmp_path)
    (row,) = log.read("train")
    assert row["config"]["tta"] is True
    assert "tta true" in deviations(row["config"], TRAIN_PROTOCOL)
    content = load_checkpoint(tmp_path / row["metrics"]["checkpoint"])
    model = build_model("resnet14", 2).eval()
    model.load_state_dict(content["model"])
    with np.load(tmp_path / row["metrics"]["predictions"]) as held:
        logits, index = torch.from_numpy(held["logits"].astype("float32")), held["index"]
    images = load_dataset(row["config"]["dataset"], tmp_path, 16).images[index]
    x = (images / 255 - content["mean"][0]) / content["std"][0]
    with torch.no_grad():
        x = x.expand(-1, 3, -1, -1)
        expected = (model(x) + model(x.flip(-1))) / 2
    torch.testing.assert_close(logits, expected, rtol=2e-3, atol=2e-3)
    assert [r["status"] for r in log.read("export")] == ["ok"] * 3
    assert log.read("export")[0]["metrics"]["parity"]["flips"] == 0


def test_what_cannot_be_traced_or_begins_otherwise_stays_right():
    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    network = deploy.Deployable(Branching(), [0.5], [0.5])
    assert deploy.fold(network) is network
    network = deploy.Deployable(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), [0.5], [0.5]).eval()
    pixels = torch.rand(2, 1, 2, 2)
    torch.testing.assert_close(deploy.fold(network)(pixels), network(pixels))
    network = deploy.Deployable(nn.Flatten(), [0.1, 0.2, 0.3], [1.0, 2.0, 4.0])  # in colour
    pixels = torch.full((1, 3, 1, 1), 0.5)
    torch.testing.assert_close(network(pixels), torch.tensor([[0.4, 0.15, 0.05]]))


def test_pixels_are_the_images_resized_and_scaled():
    dataset, index = cached_dataset("digits", "data"), torch.tensor([5, 0, 1796])
    pixels = export.build_pixel_loader(dataset, 16)(index)
    assert pixels.is_contiguous()
    expected = interpolate(dataset.images[index] / 255, (16, 16), mode="bilinear")
    torch.testing.assert_close(pixels, expected)


def test_a_missing_package_or_a_checkpoint_that_lacks_something_is_bad_input(
    log, weights, monkeypatch
):
    row = add_run(log, "tiny", weights)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match="pip install onnxscript"):
        export.export_run(log, row, "onnx", "data")
    save_checkpoint(log.folder / "checkpoints/run.pt", {"model": weights})
    with pytest.raises(UsageError, match="no checkpoint of train"):
        export.export_run(log, row, "torchscript", "data")
    (log.folder / "checkpoints/run.pt").unlink()
    with pytest.raises(UsageError, match="cannot load"):
        export.export_run(log, row, "torchscript", "data")


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="pip install openvino")
@pytest.mark.parametrize("name", ["openvino", "openvino-int8"])
def test_openvino_answers_as_the_network_does_and_keeps_no_answer(name, log, weights):
    format = engines.ENGINES[name].reads
    row = export.export_run(log, add_run(log, "tiny", weights), format, "data")
    engine = engines.load_engine(name, log.folder / row["metrics"]["file"], 1)
    model = tiny_network(10).eval()
    model.load_state_dict(weights)
    images = cached_dataset("digits", "data").images / 255
    answers = []
    for first, batch_size in ((0, 1), (1, 7), (8, 64), (72, 1)):
        pixels = interpolate(images[first : first + batch_size], (16, 16), mode="bilinear")
        with torch.no_grad():
            expected = model(((pixels - 0.3) / 0.4).repeat(1, 3, 1, 1)).numpy()
        answers.append((engine(pixels), expected))
    for found, expected in answers:  # after the last query, which shares memory with none before
        atol = 0.02 * np.ptp(answers[2][1]) if "int8" in name else 1e-4
        np.testing.assert_allclose(found.numpy(), expected, atol=atol)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd"])
def test_an_onnx_file_that_names_data_outside_its_folder_is_not_loaded(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(40))
    weight = onnx.TensorProto(name="weight", data_type=onnx.TensorProto.FLOAT, dims=[10])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    one = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [10])
    out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [10])
    node = onnx.helper.make_node("Add", ["pixels", "weight"], ["logits"])
    graph = onnx.helper.make_graph([node], "g", [one], [out], [weight])
    file = tmp_path / "exports" / "run.onnx"
    file.parent.mkdir()
    file.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(Exception, match="xternal data"):
        engines.load_engine("onnxruntime", file, 1)


@pytest.mark.parametrize("name", ["onnxruntime", "torchscript", "eager"])
def test_a_file_that_is_no_model_is_an_error_of_its_engine(tmp_path, name):
    file = tmp_path / "model"
    file.write_bytes(b"<html>not a model</html>")
    with pytest.raises(Exception, match=r"model|archive|load"):
        engines.load_engine(name, file, 1)
