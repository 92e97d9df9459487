"""Networks by name: torchvision's and timm's train, are counted, and are refused in one line."""

import copy
import importlib.util
import sys
import types

import pytest
import torch
import torchvision.models

import train
from common import models
from common.base.cli import UsageError
from common.base.config import TrainConfig
from common.cost import count_costs
from common.models import MODELS, build_model, build_on_meta
from common.train import loop, optim
from common.train.check import check_network
from common.train.conv import use_matmul

# Depthwise convolutions, channel shuffles, two outputs in training, LayerNorm, attention.
CLASSIFYING = torchvision.models.list_models(module=torchvision.models)
SMALL = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "swin_t")


@pytest.mark.parametrize("name", ["vgg5", "resnet14", "resnet18", *SMALL])
def test_a_network_is_drawn_from_its_seed_alone_and_torchvisions_as_torchvision_does(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ours, other = (build_model(name, 7, seed, image_size=32) for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    if MODELS.get(name):
        theirs = MODELS[name](7)
    else:
        extra = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
        theirs = torchvision.models.get_model(name, weights=None, num_classes=7, **extra)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert not torch.equal(next(ours.parameters()), next(other.parameters()))
    assert ours.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SMALL)
def test_a_step_trains_every_weight(name, precision):
    model = build_model(name, 10, image_size=64).to(memory_format=torch.channels_last).train()
    before = copy.deepcopy(list(model.parameters()))
    use_matmul(model)
    optimizer = optim.build_optimizer(model, "adam", 1e-3, None)
    inputs = torch.randn(3, 3, 64, 64).to(memory_format=torch.channels_last)
    setup = loop.Setup(model, optimizer, None, precision)
    loss, logits = loop.train_step(setup, inputs, torch.tensor([0, 5, 9]))
    assert (loss.isfinite().item(), logits.shape) == (True, (3, 10))
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(p.isfinite().all() for p in model.parameters())
    assert sum(moved) > 0.9 * len(moved)


def test_resnet14_is_the_resnet_of_small_images_four_times_as_wide():
    """Weights and MACs by hand: He et al.'s n = 2 has stages of 16, 32 and 64 channels."""
    model = build_model("resnet14", 10)
    convs = 3 * 64 * 9 + 4 * 64 * 64 * 9
    macs = (3 * 64 + 4 * 64 * 64) * 9 * 28 * 28
    for inputs, outputs, side in ((64, 128, 14), (128, 256, 7)):
        stage = inputs * outputs * 9 + 3 * outputs * outputs * 9 + inputs * outputs
        convs, macs = convs + stage, macs + stage * side * side
    vectors = 2 * (5 * 64 + 5 * 128 + 5 * 256)  # BatchNorm's; the shortcuts have one too
    costs = count_costs(model, (1, 3, 28, 28), "conv_linear")
    assert (costs.params, costs.macs) == (convs + vectors + 257 * 10, macs + 256 * 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenet_v3_smal", r"did you mean 'mobilenet_v3_small'\?"),
        ("vit_b16", r"did you mean 'vit_b_16'\?"),
        ("fcn_resnet50", "did you mean"),  # it segments
        ("resnet", "did you mean 'resnet"),
        ("timm:", "unknown value"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest(name, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(model=name)
    assert all(TrainConfig(model=known) for known in CLASSIFYING)


@pytest.mark.parametrize(
    ("name", "size", "opt", "message"),
    [
        ("alexnet", 32, "sgd", "Output size is too small"),
        ("inception_v3", 64, "sgd", "input size per channel"),
        ("vit_b_16", 28, "sgd", "indivisible by patch size"),
        ("maxvit_t", 64, "sgd", "not divisible by partition size"),
        ("vit_b_16", 32, "muon", "no convolution after its first"),
    ],
)
def test_what_a_network_cannot_do_is_said_before_training(name, size, opt, message):
    with pytest.raises(UsageError, match=name) as error:
        check_network(name, size, opt)
    assert message in str(error.value.__cause__ or error.value)  # what torch says follows ours
    assert "\n" not in str(error.value)
    check_network("resnet18", 32, "muon")


def test_a_last_batch_of_one_image_trains(tiny, rows):
    flags = [*tiny, "--model", "shufflenet_v2_x0_5", "--epochs", "1", "--batch-size", "16"]
    assert train.main([*flags, "--limit", "33"]) == 0
    assert [row["metrics"]["n_train"] for row in rows("train")] == [33]


@pytest.mark.parametrize("name", ["googlenet", "convnext_tiny", "regnet_y_400mf"])
def test_layers_and_operators_count_the_same(name):
    model, shape = build_on_meta(name, 10, 64), (1, 3, 64, 64)
    by_layer, by_operator = (count_costs(model, shape, c) for c in ("conv_linear", "torch"))
    assert by_layer.macs == by_operator.macs > 0


def test_a_vits_attention_is_counted_by_hand_and_refused_by_layer():
    tokens, width, mlp, layers = 2 * 2 + 1, 768, 3072, 12
    patches = 4 * 16 * 16 * 3 * width
    block = tokens * width * (3 * width + width + 2 * mlp) + 2 * tokens * tokens * width
    macs = patches + layers * block + width * 10
    vit, shape = build_on_meta("vit_b_16", 10, 32), (1, 3, 32, 32)
    costs = count_costs(vit, shape, "torch")
    # The pixels need no gradient.
    assert (costs.macs, costs.train_step_macs) == (macs, 3 * macs - patches)
    for convention in ("thop", "conv_linear"):
        with pytest.raises(ValueError, match=r"encoder_layer_0\.self_attention \(MultiheadAtt"):
            count_costs(vit, shape, convention)


def test_timm_is_asked_for_an_untrained_network_of_three_channels(monkeypatch):
    calls = []
    fake = types.ModuleType("timm")
    fake.list_models = lambda: ["vit_tiny", "resnet10t"]
    fake.get_pretrained_cfg = lambda name: types.SimpleNamespace(fixed_input_size="vit" in name)
    fake.create_model = lambda *args, **kwargs: calls.append((args, kwargs)) or torch.nn.Identity()
    monkeypatch.setitem(sys.modules, "timm", fake)
    plain = {"pretrained": False, "num_classes": 5, "in_chans": 3}
    for name, extra in (("resnet10t", {}), ("vit_tiny", {"img_size": 64})):
        assert TrainConfig(model=f"timm:{name}")
        build_model(f"timm:{name}", 5, image_size=64)
        assert calls.pop() == ((name,), plain | extra)
    with pytest.raises(UsageError, match="did you mean 'resnet10t'"):
        TrainConfig(model="timm:resnet10")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"--model timm:resnet10t: .*pip install timm"):
        TrainConfig(model="timm:resnet10t")


@pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="timm")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_a_network_of_timm_trains(tiny, rows, name):
    assert train.main([*tiny, "--model", name, "--epochs", "1"]) == 0
    assert rows("train")[0]["config"]["model"] == name


@pytest.mark.parametrize("sides", [(1, 1), (3, 3), (4, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form_of_the_maximum_is_the_same_to_the_bit(monkeypatch, dtype, layout, sides):
    drawn = torch.randn(8, 96, *sides, dtype=dtype).relu().to(memory_format=layout)
    ours, theirs = (drawn.clone().requires_grad_() for _ in "ab")
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "is_cuda", True)
        outputs = models.MaxOverPositions().train()(ours)
    expected = torch.nn.AdaptiveMaxPool2d(1)(theirs)
    weights = torch.randn(8, 96, 1, 1, dtype=dtype)
    outputs.backward(weights)
    expected.backward(weights)
    assert torch.equal(outputs, expected)
    assert torch.equal(ours.grad, theirs.grad)
    assert type(outputs.grad_fn).__name__ != type(expected.grad_fn).__name__
    assert torch.equal(models.MaxOverPositions().eval()(ours), expected)
