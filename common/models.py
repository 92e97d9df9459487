"""The networks, by name. torchvision's need no more; one of our own has its name in MODELS of
common/base/config.py, which --help shows, and what builds it here."""

import hashlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, max_pool2d
from torchvision.models.resnet import BasicBlock, ResNet

from common.base.cli import UsageError
from common.base.config import MODELS, PUBLISHED


class MaxOverPositions(nn.Module):
    """The maximum over all positions. Shapes: (B, C, H, W) to (B, C, 1, 1)."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:  # in the form that exporters of every torch know
            return features.amax((2, 3), keepdim=True)
        if features.is_cuda:  # where the next one's gradient is not deterministic
            return max_pool2d(features, features.shape[-2:])
        return adaptive_max_pool2d(features, 1)


def _vgg5(classes: int) -> nn.Module:
    """A small VGG for images of about 28 pixels, 8 or more: 5 layers of 62,000 weights in all. It
    ends in the maximum over all positions; BatchNorm follows each convolution: no scale matters."""

    def conv(inputs: int, outputs: int, *pool: nn.Module, **shape: int) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, padding=1, bias=False, **{"kernel_size": 3} | shape)
        return [layer, *pool, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = conv(3, 16, kernel_size=4, stride=2)
    layers += [*conv(16, 32, nn.MaxPool2d(2)), *conv(32, 48, nn.MaxPool2d(2)), *conv(48, 96)]
    return nn.Sequential(*layers, MaxOverPositions(), nn.Flatten(), nn.Linear(96, classes))


def _resnet14(classes: int) -> nn.Module:
    """A ResNet for images of about 28 pixels, four times as wide as its authors': three stages of
    two blocks, of 64, 128 and 256 channels, the first at the images' own resolution; 2.8 million
    weights. Source: He et al. 2015, arXiv 1512.03385, section 4.2, n = 2."""
    model = ResNet(BasicBlock, [2, 2, 2, 1], num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = model.layer4 = nn.Identity()
    model.fc = nn.Linear(256, classes)
    return model


MODELS |= {"vgg5": _vgg5, "resnet14": _resnet14}


def build_model(name: str, classes: int, seed: int = 0, image_size: int = 224) -> nn.Module:
    """A network whose weights are drawn from `seed` alone; image_size matters to those alone that
    have a weight for each position, such as ViTs. Shapes: (B, 3, H, W) to (B, classes) logits."""
    extra = {"num_classes": classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if build := MODELS.get(name):
            return build(classes)
        if name.startswith("timm:"):
            import timm

            name = name.removeprefix("timm:")
            if timm.get_pretrained_cfg(name).fixed_input_size:
                extra["img_size"] = image_size
            return timm.create_model(name, pretrained=False, in_chans=3, **extra)
        if name in ("googlenet", "inception_v3"):  # no second output that only training has
            extra |= {"aux_logits": False, "init_weights": True}
        elif name.startswith("vit_"):
            extra["image_size"] = image_size
        elif name.startswith("maxvit_"):
            extra["input_size"] = image_size, image_size
        return torchvision.models.get_model(name, weights=None, **extra)


def build_on_meta(name: str, classes: int, image_size: int) -> nn.Module:
    """The network as shapes without values, on PyTorch's meta device."""
    try:
        with torch.device("meta"):
            return build_model(name, classes, image_size=image_size)
    except NotImplementedError:  # RegNets compute their widths with tensors
        return build_model(name, classes, image_size=image_size).to("meta")


class Published(NamedTuple):
    """Published weights: how images were prepared for them, what loads them, and what to do where
    there is no network."""

    name: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    load: Callable[[], nn.Module]
    by_hand: str


def find_published(name: str) -> Published:
    """The default weights of a network. Raises: UsageError where there are none."""
    if name.startswith("timm:"):
        import timm

        known = timm.get_pretrained_cfg(short := name.removeprefix("timm:"))
        if known.has_weights:
            images = known.input_size[-1], known.mean, known.std, known.interpolation
            load = partial(timm.create_model, short, pretrained=True)
            by_hand = f"elsewhere run hf download {known.hf_hub_id} and copy the folder HF_HOME"
            return Published(f"timm's {known.architecture}.{known.tag}", *images, load, by_hand)
    elif not MODELS.get(name):
        known = torchvision.models.get_model_weights(name).DEFAULT
        how, folder = known.transforms(), Path(torch.hub.get_dir(), "checkpoints")
        # torchvision's own networks of these two normalise once more inside.
        halves = ([0.5] * 3, [0.5] * 3) if name in ("googlenet", "inception_v3") else None
        images = how.crop_size[0], *(halves or (how.mean, how.std)), how.interpolation.value
        load = partial(torchvision.models.get_model, name, weights=known)
        return Published(str(known), *images, load, f"place {known.url} in {folder}")
    why = f"{name} has no published weights; take a network that has, such as resnet18"
    raise UsageError(f"--weights {PUBLISHED}: {why}")


def load_published(name: str) -> dict[str, Tensor]:
    """The state_dict of a network with its published weights, fetched once, checked and kept by
    torchvision (in TORCH_HOME) or timm (in HF_HOME). Raises: UsageError where out of reach."""
    published = find_published(name)
    try:
        return published.load().state_dict()
    except Exception as error:  # libraries of downloads each fail in their own way
        why = f"cannot load {published.name}; {published.by_hand}"
        raise UsageError(f"--weights {PUBLISHED}: {why}") from error


@cache
def hash_published(name: str) -> str:
    """SHA-256 of the names and values of published weights."""
    digest = hashlib.sha256()
    for key, value in load_published(name).items():
        digest.update(key.encode() + value.numpy().tobytes())
    return digest.hexdigest()
