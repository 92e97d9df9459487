"""The training loop of tutorials and notebooks, which train.py's is measured against."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from common.base.config import HwTrainConfig, TrainConfig
from common.data.fetch import Dataset
from common.models import build_model
from common.train.device import autocast
from common.train.optim import MOMENTUM

Config = TrainConfig | HwTrainConfig
Statistics = tuple[Tensor, Tensor]  # mean and standard deviation of pixels


class PilImages(torch.utils.data.Dataset):
    """Some images of a data set, each made a PIL image and transformed when asked for."""

    def __init__(self, dataset: Dataset, index: Tensor, prepare: transforms.Compose) -> None:
        self.dataset, self.index, self.prepare = dataset, index.tolist(), prepare

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        index = self.index[item]
        pixels = self.dataset.images[index].movedim(0, -1).squeeze(-1).numpy()
        return self.prepare(Image.fromarray(pixels)), int(self.dataset.labels[index])


def notebook_loader(
    config: Config, dataset: Dataset, index: Tensor, statistics: Statistics
) -> DataLoader:
    """The study's preprocessing as torchvision's tutorials write it, on the images of `index`, in
    full batches, for a step's images are counted."""
    mean, std = (s.expand(3).tolist() for s in statistics)
    prepare = [transforms.Resize((config.image_size, config.image_size))]
    prepare += [transforms.Grayscale(3)] if dataset.images.shape[1] == 1 else []
    prepare += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    images = PilImages(dataset, index, transforms.Compose(prepare))
    return DataLoader(images, config.batch_size, shuffle=True, drop_last=True)


def notebook_steps(
    config: Config,
    dataset: Dataset,
    index: Tensor,
    statistics: Statistics,
    device: torch.device,
    precision: str,
) -> Iterator[Tensor]:
    """One training step at each turn, which gives its loss, the network being built before: NCHW,
    torch's default optimiser, loss.item() at every step, and autocast around the forward pass
    unless the precision is fp32."""
    classes, size = len(dataset.classes), config.image_size
    model = build_model(config.model, classes, config.seed, image_size=size).to(device).train()
    kinds = {"sgd": (torch.optim.SGD, {"momentum": MOMENTUM}), "adam": (torch.optim.Adam, {})}
    kind, extra = kinds[config.opt]
    optimizer = kind(model.parameters(), lr=config.lr, **extra)
    criterion = torch.nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    loader = notebook_loader(config, dataset, index, statistics)

    def steps() -> Iterator[Tensor]:
        running_loss = 0.0
        while True:
            for inputs, labels in loader:
                inputs, labels = inputs.to(device), labels.to(device)
                optimizer.zero_grad()
                with autocast(device, precision):
                    loss = criterion(model(inputs), labels)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                running_loss += loss.item()
                yield loss.detach()

    return steps()
