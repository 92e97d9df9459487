"""--weights and --freeze: published weights and files as people keep them, against torch itself."""

import pickle
import sys
import types
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.models
from torch import nn

import train
from common import models
from common.base.cli import UsageError
from common.base.config import TrainConfig
from common.train import check, grid, run
from common.train.checkpoint import load_checkpoint, new_model

NAME = "mobilenet_v3_small"  # whose default weights are for 224x224
HEAD = ["classifier.3.weight", "classifier.3.bias"]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The state_dict that torchvision takes for its own published one, in its place."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(5)
    state = torchvision.models.get_model(NAME).state_dict()
    state = {k: v + 0.01 if v.is_floating_point() else v for k, v in state.items()}
    url = torchvision.models.get_model_weights(NAME).DEFAULT.url
    file = tmp_path / "torch/hub/checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    models.hash_published.cache_clear()
    yield state
    models.hash_published.cache_clear()


def config_of(*flags, **settings):
    given = {"dataset": "digits", "model": NAME, "device": "cpu", "amp": False, "limit": 48}
    return grid.name_weights(TrainConfig(**given | settings))


def test_a_network_starts_from_published_weights_and_its_head_from_the_seed(published):
    config = config_of(weights="imagenet")
    assert (config.image_size, len(config.weights_sha256)) == (224, 64)
    assert config_of(weights="imagenet", image_size=64).image_size == 64
    model, head, new = new_model(config, 10)
    drawn = models.build_model(NAME, 10, config.seed).state_dict()
    assert (head, new) == (HEAD, True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, (drawn if name in HEAD else published)[name]), name
    mean, std = run.Run(config, "data").statistics
    torch.testing.assert_close(mean, torch.tensor([(0.485 + 0.456 + 0.406) / 3]))
    torch.testing.assert_close(std, torch.tensor([(0.229 + 0.224 + 0.225) / 3]))


def test_published_weights_train_are_said_and_are_part_of_the_identity(
    published, tiny, rows, capsys
):
    flags = [*tiny, "--model", NAME, "--weights", "imagenet", "--epochs", "1", "--amp", "false"]
    assert train.main([*flags, "--list-commands"]) == 0
    assert "--image-size 32 " in capsys.readouterr().out
    assert train.main(flags) == 0
    said = capsys.readouterr().out
    assert "starts from MobileNet_V3_Small_Weights.IMAGENET1K_V1 and normalises images" in said
    assert "--image-size 32 wins over their 224" in said
    assert "last layer is new, for 10 classes; the rest learns at 0.1 of --lr" in said
    models.hash_published.cache_clear()
    assert rows("train")[0]["config"]["weights_sha256"] == models.hash_published(NAME)


def test_the_body_learns_at_a_tenth(published):
    """Plain SGD's first step is the learning rate times the gradient."""
    one = run.Run(config_of(weights="imagenet", image_size=32, lr=0.1), "data")
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    run.loop.train_epoch(one.setup, one.order(1)[:1], [0.1])
    for name, p in one.model.named_parameters():
        step = p.grad * (-0.1 if name in HEAD else -0.01)
        torch.testing.assert_close(p.detach() - before[name], step, rtol=1e-2, atol=1e-7)


def test_frozen_features_are_computed_once_and_train_the_last_layer_alone(published, monkeypatch):
    config = config_of(weights="imagenet", image_size=32, freeze=True, lr=0.1, epochs=2)
    start, seen = new_model(config, 10)[0].eval(), []
    monkeypatch.setattr(run, "FEATURES", {})
    one = run.Run(config, "data")
    body = one.batches.body
    body.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    _, metrics = one.train_one_epoch(), one.train_one_epoch()
    assert sum(seen) == len(one.split.train) + len(one.split.val)
    # By hand: the start's own features, a linear layer and SGD.
    batches = run.Batches(one.dataset, one.statistics, 32, one.device)
    layer = start.classifier[3]
    start.classifier[3] = nn.Identity()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for index in (*one.order(1), *one.order(2)):
        inputs, labels = batches.load(index)
        with torch.no_grad():
            features = start(inputs)
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(features), labels).backward()
        optimizer.step()
    for value, expected in zip(one.trained.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(value, expected)
    for name, value in one.model.state_dict().items():
        assert name in HEAD or torch.equal(value, published[name]), name
    whole = run.loop.evaluate(one.model, batches, one.split.val)
    assert run.loop.score(whole, one.dataset.labels[one.split.val])[1] == metrics["val_acc"]
    run.Run(replace(config, seed=1), "data").train_one_epoch()
    assert sum(seen) == len(one.split.train) + len(one.split.val)  # of another seed too


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "keep",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": prefixed("module.", state)},
        lambda state: {"model_state_dict": prefixed("_orig_mod.", state)},
        lambda state: {"state_dict": prefixed("model.", state), "hyper_parameters": {"lr": 1}},
        lambda state: prefixed("module._orig_mod.", state),
        lambda state: prefixed("model.module.", state),
    ],
)
@pytest.mark.parametrize("classes", [10, 3])
def test_a_state_dict_is_read_as_people_keep_it(tmp_path, keep, classes):
    theirs = models.build_model("vgg5", classes, seed=9).state_dict()
    torch.save(keep(theirs), tmp_path / "w.pt")
    config = config_of(model="vgg5", weights=str(tmp_path / "w.pt"))
    model, head, new = new_model(config, 10)
    assert head == [name for name in theirs if name.startswith("16.")]
    assert new == (classes == 3)
    drawn = models.build_model("vgg5", 10).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, (drawn if new and name in head else theirs)[name]), name


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_do_not_fit_are_refused_unexecuted_in_our_words(tmp_path, capsys):
    file, parts = tmp_path / "some.pt", []
    names = "resnet14", "squeezenet1_1"
    other, convolution = (models.build_model(name, 10).state_dict() for name in names)
    for content in ({"model": Malicious()}, nn.Linear(3, 3), {"model": other}):
        torch.save(content, file)
        parts.append(file.read_bytes())
    malicious, network, whole = parts
    parts = [whole[:size] for size in (0, 10, len(whole) // 2, len(whole) - 1)]
    parts += [malicious, pickle.dumps(Malicious(), protocol=2), b"hello world"]
    refused = dict.fromkeys(parts, "cannot load")
    refused |= {b"version https://git-lfs.github.com/spec/v1\noid sha256:00": "git lfs pull"}
    refused |= {network: r"torch.save\(model.state_dict\(\)"}
    for content, why in refused.items():
        file.write_bytes(content)
        with pytest.raises(UsageError, match=why):
            load_checkpoint(file)
    assert "executed" not in capsys.readouterr().out
    for content in (other, {"model": 1}):
        torch.save(content, file)
        with pytest.raises(UsageError, match="does not fit the network"):
            new_model(config_of(model="vgg5", weights=str(file)), 10)
    torch.save(convolution, file)
    with pytest.raises(UsageError, match="squeezenet1_1 does not end in one linear layer"):
        new_model(config_of(model="squeezenet1_1", weights=str(file), freeze=True), 10)


def test_a_last_layer_of_a_class_of_its_own_may_be_trained_alone(tmp_path, monkeypatch):
    """As those of timm's MobileNets: a subclass of nn.Linear."""
    kind = type("Linear", (nn.Linear,), {})

    def build(classes):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), kind(3, classes))

    monkeypatch.setitem(models.MODELS, "kind", build)
    file = tmp_path / "weights.pt"
    torch.save(build(3).state_dict(), file)
    _, head, new = new_model(config_of(model="kind", weights=str(file), freeze=True), 10)
    assert (head, new) == (["2.weight", "2.bias"], True)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--freeze", "--freeze: .* give --weights"),
        ("--freeze --weights imagenet --flip", "--freeze: .* leave out --flip"),
        ("--freeze --weights imagenet --opt muon", "leave out --opt muon"),
        ("--weights imagenet --model vgg5", "vgg5 has no published weights"),
        ("--weights imagenet --model resnet34", "place https://.*/resnet34-.* in .*checkpoints"),
    ],
)
def test_what_cannot_be_had_is_one_line_before_any_work(
    published, tiny, tmp_path, monkeypatch, flags, said
):
    def unreachable(*args, **settings):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UsageError, match=said) as caught:
        train.main([*tiny, *flags.split()])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results/checkpoints").exists()


def test_timm_is_asked_for_its_pretrained_network(monkeypatch):
    """Of timm's names alone; timm itself finds, checks and keeps the file."""
    whole, facts = nn.Sequential(nn.Linear(4, 1000)), {"architecture": "tiny", "tag": "in1k"}
    facts |= {"has_weights": True, "input_size": (3, 96, 96), "hf_hub_id": "timm/tiny.in1k"}
    facts |= {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic"}
    fake, asked = types.ModuleType("timm"), []
    fake.list_models = lambda: ["tiny"]
    fake.get_pretrained_cfg = lambda name: types.SimpleNamespace(**facts)
    fake.create_model = lambda name, **how: asked.append((name, how)) or whole
    monkeypatch.setitem(sys.modules, "timm", fake)
    state = models.load_published("timm:tiny")
    assert asked == [("tiny", {"pretrained": True})]
    assert torch.equal(state["0.weight"], whole[0].weight)
    published = models.find_published("timm:tiny")
    assert published[:5] == ("timm's tiny.in1k", 96, (0.5,) * 3, (0.25,) * 3, "bicubic")

    def offline(name, **how):
        raise ConnectionError("offline")

    fake.create_model = offline
    with pytest.raises(UsageError, match=r"timm's tiny\.in1k; .*hf download timm/tiny"):
        models.load_published("timm:tiny")
    facts["has_weights"] = False
    with pytest.raises(UsageError, match="timm:tiny has no published weights"):
        models.load_published("timm:tiny")


def test_a_frozen_bodys_pass_is_priced_once_and_not_in_every_epoch(published, monkeypatch):
    """The first steps, and a first look at images, ask it for each; what comes later does not."""
    step_ms, clock = iter([30.0, 3.0] * 2), iter([0.0, 358.0, 1000.0, 1179.0] * 2)

    def train_epoch(setup, order):
        return {"train_ms": next(step_ms) * len(order)}

    monkeypatch.setattr(check, "TIMED_S", 0)  # two looks, at 179 images in 358 ms and in 179
    monkeypatch.setattr(check, "now_ms", lambda device: next(clock))
    monkeypatch.setattr(check.loop, "train_epoch", train_epoch)
    same = {"weights": "imagenet", "image_size": 32, "limit": None, "epochs": 4}
    frozen, whole = (config_of(**same, freeze=freeze) for freeze in (True, False))
    priced_ms = check.estimate_ms([frozen, whole], "data")
    first, later = np.array([30.0 * 1257 / 16, 358.0]), np.array([3.0 * 1257 / 16, 179.0])
    np.testing.assert_allclose(4 * priced_ms[frozen][:2], first + 3 * later)
    np.testing.assert_allclose(priced_ms[whole][:2], later)
    # Tested are 361 images that it was never asked for, and 179 training images.
    assert (priced_ms[frozen][2], priced_ms[whole][2]) == (2 * 361 + 179, 361 + 179)
