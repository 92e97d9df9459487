"""The training loop of tutorials and notebooks, which train.py's is measured against."""

from collections.abc import Iterator
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common.models import build_model
from common.train.device import autocast
from common.train.optim import MOMENTUM
from common.train.run import Run


class PilImages(Dataset):
    """A run's training images as torchvision's tutorials prepare each when it is asked for."""

    def __init__(self, run: Run) -> None:
        self.images, self.labels = run.dataset.images, run.dataset.labels
        self.index, mean_std = run.split.train.tolist(), (s.expand(3) for s in run.statistics)
        prepare = [transforms.Resize((run.config.image_size, run.config.image_size))]
        prepare += [transforms.Grayscale(3)] if self.images.shape[1] == 1 else []
        prepare += [transforms.ToTensor(), transforms.Normalize(*map(Tensor.tolist, mean_std))]
        self.prepare = transforms.Compose(prepare)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        index = self.index[item]
        pixels = self.images[index].movedim(0, -1).squeeze(-1).numpy()
        return self.prepare(Image.fromarray(pixels)), int(self.labels[index])


def notebook_steps(run: Run, precision: str) -> Iterator[Tensor]:
    """One training step of a run at each turn, which gives its loss: NCHW, torch's own optimiser,
    loss.item() at every step, autocast around the forward pass. The network is built before."""
    config, device, classes = run.config, run.device, len(run.dataset.classes)
    model = build_model(config.model, classes, config.seed, config.image_size).to(device).train()
    kinds = {"sgd": partial(torch.optim.SGD, momentum=MOMENTUM), "adam": torch.optim.Adam}
    optimizer = kinds[config.opt](model.parameters(), lr=config.lr)
    criterion = torch.nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    loader = DataLoader(PilImages(run), config.batch_size, shuffle=True, drop_last=True)

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
