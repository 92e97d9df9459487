"""The training loop against plain torch, and what it does when numbers go wrong."""

import copy
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from common.base.cli import UsageError
from common.base.config import TrainConfig
from common.data.batches import Batches, draw_views, measure_pixels, split_batches
from common.data.datasets import load_dataset
from common.models import build_model
from common.train import device, loop, optim
from common.train.run import Run

CPU = torch.device("cpu")
PLAIN = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


@pytest.fixture(scope="module")
def batches():
    dataset = load_dataset("digits")
    return Batches(dataset, measure_pixels(dataset.images), 8, CPU)


def small_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10))


def is_unchanged(model, before):
    return all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="older torch shares code that fits both")
def test_a_compiled_network_is_not_given_the_code_of_another(monkeypatch):
    """Or else the second of two would be compiled for nothing, or for any size of batch."""
    compiled = []

    def compile_to_nothing(graph, inputs):
        compiled.append([len(x) for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 4])
        assert not any(isinstance(x, torch.SymInt) for x in inputs)
        return graph.forward

    inductor, backend = torch.compile, {"backend": compile_to_nothing}
    monkeypatch.setattr(torch, "compile", lambda m, mode, **kw: inductor(m, **kw, **backend))
    for seed in (0, 1):
        forward = loop.Compiled(small_net(seed))
        forward(torch.zeros(6, 3, 8, 8))
        assert forward(torch.ones(5, 3, 8, 8)).equal(small_net(seed)(torch.ones(5, 3, 8, 8)))
    assert compiled == [[6]] * 2  # and a smaller batch, the last of an epoch, for nothing


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_eager_step_does_not_wait_for_torchs_compiler_to_be_imported(kind):
    code = (
        "import sys, torch; from common.train import loop, optim; torch.set_default_device('KIND');"
        "net = torch.nn.Linear(3, 2);"
        "setup = loop.Setup(net, optim.build_optimizer(net, 'sgd', 0.1, None), None);"
        "loop.train_step(setup, torch.zeros(4, 3), torch.zeros(4, dtype=torch.long));"
        "sys.exit('torch._inductor.compile_fx' in sys.modules)"
    ).replace("KIND", kind)
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def graphs(monkeypatch):
    """CUDA's on a CPU, where the step that is called while one is recorded is taken whenever it is
    launched, and overwrites what it returned then. Returns: those recorded so far."""
    made, recording, take = [], [], loop.train_step

    class Graph:
        def replay(self):
            for output, value in zip(self.outputs, take(*self.call), strict=True):
                output.copy_(value)

    def step(*call):
        for graph in recording:
            graph.call, graph.outputs = call, (torch.zeros(()), torch.zeros(len(call[2]), 10))
            return graph.outputs
        return take(*call)

    @contextmanager
    def record(graph):
        made.append(graph)
        recording.append(graph)
        yield
        recording.clear()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"CUDAGraph": Graph, "graph": record, "stream": nullcontext}
    for name, fake in (fakes | dict.fromkeys(("Stream", "current_stream"), lambda: stream)).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(loop, "train_step", step)
    return made


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("opt", ["sgd", "adam", "muon"])
def test_steps_of_a_cuda_graph_are_those_without(opt, resumed, graphs):
    """1,257 are 157 times 8, and one that joins them: that batch has no graph. A state that is
    loaded has a graph of its own."""
    settings = {"image_size": 8, "batch_size": 157, "amp": False, "device": "cpu", "epochs": 3}
    settings |= {"model": "vgg5", "opt": opt, "schedule": "triangular", "lr": 1e-3}
    runs = [Run(TrainConfig("digits", **settings, cuda_graph=graph), "") for graph in (False, True)]
    if resumed:
        for run in runs:
            run.train_steps(1)
            run.restore(copy.deepcopy(run.state()))
    losses = [run.train_steps(epoch) for epoch in (2, 3) for run in runs]
    for plain, graphed in zip(losses[::2], losses[1::2], strict=True):
        assert graphed["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
        assert graphed["lr"] == plain["lr"]
    assert len(graphs) == 1 + resumed
    for a, b in zip(*(run.model.state_dict().values() for run in runs), strict=True):
        assert (a - b).float().norm() <= 1e-2 * a.float().norm() + 1e-4


WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.5, 1.0, 1.0, 2.0, 0.1, 1.0, 1.0])


@pytest.mark.parametrize(("smoothing", "weights"), [(0.0, None), (0.2, None), (0.2, WEIGHTS)])
@pytest.mark.parametrize("opt", PLAIN)
def test_an_epoch_is_the_plain_loop_of_the_tutorials(batches, opt, smoothing, weights):
    """At each step's rate. With smoothed labels, or class weights, its loss is the plain one all
    the same, so that it can be compared with validation's."""
    order = split_batches(torch.arange(100), 16)
    lrs = [0.002 * (7 - step) for step in range(7)]
    ours, reference = small_net(), small_net()
    optimizer = optim.build_optimizer(ours, opt, 9.0, None)
    how = {"label_smoothing": smoothing, "class_weights": weights}
    setup = loop.Setup(ours, optimizer, batches, **how)
    result = loop.train_epoch(setup, order, lrs)
    kind, settings = PLAIN[opt]
    plain = kind(reference.parameters(), lr=9.0, **settings)
    losses, right = [], 0
    for index, lr in zip(order, lrs, strict=True):
        inputs, labels = batches.load(index)
        target = (1 - smoothing) * torch.eye(10)[labels] + smoothing / 10
        target = target * (1 if weights is None else weights)
        logits = reference(inputs)
        plain.param_groups[0]["lr"] = lr
        plain.zero_grad()
        (-(target * logits.log_softmax(1)).sum(1).mean()).backward()
        plain.step()
        losses += [cross_entropy(logits, labels).item()] * len(index)
        right += (logits.argmax(1) == labels).sum().item()
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert result["train_loss"] == pytest.approx(sum(losses) / 100, rel=1e-4)
    assert result["train_acc"] == right / 100
    assert result["train_ms"] > 0


@pytest.mark.parametrize("scale", [None, 1 / 16])
def test_a_smoothed_loss_that_is_not_finite_is_seen_where_the_plain_one_is(scale):
    """An infinite logit of a wrong class is all that tells them apart."""
    model = nn.Linear(1, 3)
    model.weight.data.zero_()
    model.bias.data = torch.tensor([0.0, 0.0, float("-inf")])
    setup = loop.Setup(model, torch.optim.SGD(model.parameters(), 0.0), None, label_smoothing=0.1)
    inputs, labels = torch.ones(16, 1), torch.zeros(16, dtype=torch.long)
    assert not loop.train_step(setup, inputs, labels, scale)[0].isfinite()


def test_an_epoch_on_an_accelerator_waits_for_nothing_before_its_end(monkeypatch):
    """On the meta device, which has shapes and no values: whatever looks at one raises."""
    monkeypatch.setattr(loop, "now_ms", lambda device: 0.0)
    monkeypatch.setattr(loop, "CHECK_EVERY", 1)
    dataset, steps = load_dataset("digits"), []
    batches = Batches(dataset, measure_pixels(dataset.images), 16, torch.device("meta"))
    model = build_model("vgg5", 10).to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    moved = TrainConfig(dataset="fashion", translate=2, flip=True)
    views = draw_views(torch.arange(96), moved, 1, (28, 28))
    order = split_batches(views.to(batches.home), 32)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        loop.train_epoch(loop.Setup(model, optimizer, batches), order, [0.1, 0.2, 0.3])
    assert len(steps) == 3


def test_a_loss_that_is_not_finite_stops_with_its_step_and_the_last_finite_value(batches):
    model, calls = small_net(), []

    def poison(layer, inputs, output):
        calls.append(1)
        return output * (float("nan") if len(calls) >= 120 else 1)

    model.register_forward_hook(poison)
    setup = loop.Setup(model, torch.optim.SGD(model.parameters()), batches)
    with pytest.raises(loop.NonFiniteLoss) as error:
        loop.train_epoch(setup, split_batches(torch.arange(1000), 2))
    assert error.value.metrics["step"] == 120
    assert 0 < error.value.metrics["last_finite_loss"] < 10
    assert len(calls) == 200  # the next look after it, not the end of the epoch


def test_evaluation_is_fp32_in_eval_mode_and_changes_nothing(batches):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Dropout(0.5), nn.Linear(192, 10))
    before, index = copy.deepcopy(model.train().state_dict()), torch.arange(600)
    logits = loop.evaluate(model, batches, index)
    assert (logits.dtype, is_unchanged(model, before)) == (torch.float32, True)
    inputs, labels = batches.load(index)
    with torch.no_grad():
        assert torch.allclose(logits, model.eval()(inputs), atol=1e-5)
    right = sum(a == b for a, b in zip(logits.argmax(1), labels, strict=True)).item()
    expected = cross_entropy(logits, labels).item(), right / 600
    assert loop.score(logits, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("words", [None, "DefaultCPUAllocator: can't allocate memory: 9 bytes"])
def test_where_memory_runs_out_less_is_evaluated_at_once_which_is_said_once(words, capsys):
    """Logits are those of the usual batches, and statistics of as many images."""
    dataset = load_dataset("digits")
    small = Batches(dataset, measure_pixels(dataset.images), 8, CPU)
    error = RuntimeError(words) if words else torch.OutOfMemoryError("CUDA out of memory")

    def refuse(layer, inputs):
        if len(inputs[0]) > most:
            raise error

    model, most, index = lagging_net(0.01), 600, torch.arange(600)
    expected = loop.evaluate(model, small, index)
    model.register_forward_pre_hook(refuse)
    most = 100
    for _ in range(2):
        assert torch.allclose(loop.evaluate(model, small, index), expected, atol=1e-5)
    assert loop.refresh_statistics(model, small, index, 10) == 600
    line = "out of memory: {} images at once are evaluated from now on"
    said = [text.strip() for text in capsys.readouterr().out.splitlines()]
    assert said == [line.format(128), line.format(64)]
    most = 0
    with pytest.raises(type(error)):
        loop.evaluate(model, small, index)


def lagging_net(momentum):
    kept = {"momentum": momentum}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, **kept), nn.ReLU()]
        layers += [nn.InstanceNorm2d(4, track_running_stats=True, **kept), nn.Flatten()]
        return nn.Sequential(*layers, nn.BatchNorm1d(144, **kept), nn.Linear(144, 10))


@pytest.mark.parametrize("momentum", [0.01, None])
def test_statistics_that_lag_are_taken_again_as_torch_does(batches, momentum):
    ours, reference = lagging_net(momentum), lagging_net(momentum)
    for layer in (ours[1], ours[3], ours[5]):
        layer.running_mean.fill_(float("nan"))  # of the old ones nothing may stay
    assert loop.refresh_statistics(ours, batches, torch.arange(512), 395) == 512
    parts = [batches.load(part)[0] for part in torch.arange(512).split(256)]
    torch.optim.swa_utils.update_bn(parts, reference)
    for layer in (1, 5):
        for name in ("running_mean", "running_var"):
            expected = getattr(reference[layer], name)
            assert torch.allclose(getattr(ours[layer], name), expected, atol=1e-6)
    # torch's InstanceNorm has no average over all: its statistics are here of two equal batches.
    means = torch.stack([reference[:3](x).mean((0, 2, 3)) for x in parts]).mean(0)
    assert torch.allclose(ours[3].running_mean, means, atol=1e-6)
    assert [layer.momentum for layer in (ours[1], ours[3], ours[5])] == [momentum] * 3


def test_statistics_that_keep_up_stay_as_they_are(batches):
    for momentum, steps in ((0.1, 1), (0.2, 3), (0.01, 10_000), (0.05, 2000), (None, 1)):
        model = small_net() if momentum is None else lagging_net(momentum)
        before = copy.deepcopy(model.state_dict())
        assert loop.refresh_statistics(model, batches, torch.arange(300), steps) is None
        assert is_unchanged(model, before)


def test_taking_statistics_draws_nothing_trains_nothing_and_takes_any_number_of_images(batches):
    """1,025 images: a batch of one would be too few for the last layer."""
    layers = nn.Dropout(0.5), nn.Flatten(), nn.BatchNorm1d(192, momentum=0.01), nn.Dropout(0.5)
    model = nn.Sequential(*layers, nn.Linear(192, 10)).train()
    before, rng = copy.deepcopy(list(model.parameters())), torch.get_rng_state()
    assert loop.refresh_statistics(model, batches, torch.arange(1025), 100) == 1025
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    mean = batches.load(torch.arange(1025))[0].flatten(1).mean(0)  # undisturbed by dropout
    assert torch.allclose(model[2].running_mean, mean, atol=1e-5)
    index = torch.arange(1797).repeat(2)
    assert loop.refresh_statistics(model, batches, index, 100) == loop.STATISTICS_IMAGES


def test_precision_says_what_it_will_really_use(monkeypatch):
    for fast, auto in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda fast=fast: fast)
        cases = (True, "auto"), (True, "bf16"), (False, "auto")
        assert [device.resolve_precision(*c, CPU) for c in cases] == [auto, "bf16", "fp32"]
    with pytest.raises(UsageError, match="fp16"):
        device.resolve_precision(True, "fp16", CPU)
    seen, layer = [], nn.Linear(4, 4)
    layer.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    for precision in ("bf16", "fp32"):
        setup = loop.Setup(layer, torch.optim.SGD(layer.parameters()), None, precision)
        loss, logits = loop.train_step(setup, torch.randn(2, 4), torch.tensor([0, 1]))
        assert loss.dtype == logits.dtype == torch.float32
    assert seen == [torch.bfloat16, torch.float32]
