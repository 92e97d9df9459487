"""From images to batches: the order and the views of an epoch, and what a network takes in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from common.base.config import TrainConfig, may_mirror
from common.data.images import Dataset

ERASED_RATIO = 3.3  # of the sides at most, log-uniform


def measure_pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, where nothing varies) of each channel, pixels in [0, 1].
    Shapes: images (N, C, H, W) uint8 -> (C,), (C,) float32."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([plane.flatten().bincount(minlength=256) for plane in images.unbind(1)])
    share = counts / images[:, 0].numel()
    mean = (share * values).sum(1)
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    varies = counts.count_nonzero(1) > 1
    return mean.float(), torch.where(varies, std, 1).float()


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n training images: a function of seed and epoch alone, so that a run resumes,
    and a shorter run shares its first epochs with a longer one, without state."""
    return torch.from_numpy(np.random.RandomState([seed, epoch]).permutation(n))


def draw_views(order: Tensor, config: TrainConfig, epoch: int, sides: Sequence[int]) -> Tensor:
    """How each image of an epoch is seen: shifted at random, and mirrored in one epoch and not in
    the next, half of the images in each. Like the order, a function of seed and epoch alone.
    Shapes: order (N,) -> (N, 4) int64: image, rows down and columns right from -translate to
    translate, and 1 where it is mirrored. With erase, (N, 8): also top, left, height and width
    of a rectangle inside the `sides` of an image, of no height but with that probability. Of
    photos (N, 2): image, and the seed of what augment_photos draws for it.
    Source: alternating flip, cifar10-airbench (Jordan 2024, arXiv 2404.00498), section 3.6;
    Random Erasing (Zhong et al. 2017, arXiv 1708.04896), algorithm 1, sides cut to the image's."""
    n, seed, reach = len(order), config.seed, config.translate
    if config.augment == "photo":
        seeds = np.random.RandomState([seed, epoch, 4]).randint(2**62, size=n)
        return torch.column_stack([order, torch.from_numpy(seeds)])
    shifts = np.random.RandomState([seed, epoch, 1]).randint(-reach, reach + 1, (n, 2))
    first = np.random.RandomState([seed, 2]).randint(0, 2, int(order.max()) + 1)
    mirrored = (torch.from_numpy(first)[order] + epoch) % 2 * config.mirrored
    views = torch.column_stack([order, torch.from_numpy(shifts), mirrored])
    if not config.erase:
        return views
    random, (height, width) = np.random.RandomState([seed, epoch, 3]), sides
    area = random.uniform(0.02, 0.33, n) * height * width
    ratio = np.exp(random.uniform(-math.log(ERASED_RATIO), math.log(ERASED_RATIO), n))
    tall = np.sqrt(area * ratio).round().clip(1, height) * (random.rand(n) < config.erase)
    wide = np.sqrt(area / ratio).round().clip(1, width)
    top, left = (random.rand(2, n) * [height - tall + 1, width - wide + 1]) // 1
    patches = torch.from_numpy(np.stack([top, left, tall, wide], 1)).long()
    return torch.cat([views, patches], 1)


@dataclass(eq=False)
class Batches:
    """Turns lists of indices into network inputs: gather, move, resize, normalise, repeat channels.
    Images are on the accelerator, or with data_on="host" uint8 pixels are gathered on the host,
    page-locked with pin_memory, and copied asynchronously. Indices and views are best where `place`
    puts them: a step then waits for nothing."""

    dataset: Dataset
    statistics: tuple[Tensor, Tensor]
    image_size: int
    device: torch.device
    data_on: str = "device"
    pin_memory: bool = False
    channels_last: bool = True
    eval_batch_size: int | None = None  # where memory does not suffice for the usual one

    def __post_init__(self) -> None:
        self.staged = self.device.type != "cpu" and self.data_on == "host"
        self.home = torch.device("cpu") if self.staged else self.device
        self.images = self.dataset.images.to(self.home)
        self.labels = self.dataset.labels.to(self.home)
        mean, std = (s.to(self.device).view(1, -1, 1, 1) for s in self.statistics)
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.mean_pixels = (255 * mean).round().to(torch.uint8)
        self.memory_format = torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, index: Tensor) -> Tensor:
        """Indices or views where the images are, page-locked as their batches are."""
        return index.pin_memory() if self.staged and self.pin_memory else index.to(self.home)

    def load(self, index: Tensor, lap: Callable = lambda phase: None) -> tuple[Tensor, Tensor]:
        """The images of some indices, or of some views as draw_views makes them, on the device;
        `lap` is called with the name of each phase at its end.
        Shapes: (B,) or (B, 2, 4 or 8) -> inputs (B, 3, S, S) float32, labels (B,)."""
        views, index = (index, index[:, 0]) if index.ndim == 2 else (None, index)
        if self.staged:
            batch = []
            for source in (self.images, self.labels):
                # Fresh each time: the allocator knows which ones a copy still reads.
                shape = (len(index), *source.shape[1:])
                buffer = torch.empty(shape, dtype=source.dtype, pin_memory=self.pin_memory)
                batch.append(torch.index_select(source, 0, index, out=buffer))
            lap("data")
            pixels, labels = (part.to(self.device, non_blocking=True) for part in batch)
            lap("copy")
        else:
            pixels, labels = self.images[index], self.labels[index]
        size = self.image_size
        if views is not None and views.shape[1] == 2:
            pixels = augment_photos(pixels, views[:, 1], size, may_mirror(self.dataset.name))
        elif views is not None:
            views = views.to(self.device, non_blocking=True)
            pixels = apply_views(pixels, views, self.mean_pixels)
        inputs = pixels.float()
        if inputs.shape[-2:] != (size, size):
            shrinking = min(inputs.shape[-2:]) > size
            inputs = interpolate(inputs, (size, size), mode="bilinear", antialias=shrinking)
        inputs = (inputs * self.scale + self.shift).expand(-1, 3, -1, -1)
        inputs = inputs.contiguous(memory_format=self.memory_format)
        lap("data")
        return inputs, labels


def apply_views(pixels: Tensor, views: Tensor, erased: Tensor) -> Tensor:
    """Images as draw_views says: mirrored left to right or not, then shifted, so that black comes
    in, then with the value `erased` of each channel in a rectangle, if the views have one.
    Shapes: pixels (B, C, H, W) uint8; views (B, 4) or (B, 8); erased (1, C, 1, 1)."""
    count, _, height, width = pixels.shape
    image, row, column = (torch.arange(n, device=pixels.device) for n in (count, height, width))
    _, down, right, mirrored, *patch = views[:, None].unbind(-1)
    # In a frame of one black pixel, whatever lies outside is at the frame.
    rows = (row + 1 - down).clamp(0, height + 1)
    columns = (column + 1 - right).clamp(0, width + 1)
    columns = torch.where(mirrored > 0, width + 1 - columns, columns)
    framed = pad(pixels, (1, 1, 1, 1))
    moved = framed[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    if not patch:
        return moved
    top, left, tall, wide = patch
    rows = (row >= top) & (row < top + tall)
    columns = (column >= left) & (column < left + wide)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], erased, moved)


def augment_photos(pixels: Tensor, seeds: Tensor, side: int, mirror: bool) -> Tensor:
    """Images cropped at random and resized, mirrored or not, and their colours changed: one after
    the other, for of a whole batch torchvision would draw once for all its images.
    Shapes: pixels (B, C, H, W) uint8, seeds (B,) -> (B, C, side, side) uint8."""
    from torchvision.transforms import v2  # slow, and rarely needed

    crop = v2.RandomResizedCrop(side, (0.35, 1.0))  # photos mostly are of what is in their middle
    flip, colours = v2.RandomHorizontalFlip(0.5 * mirror), v2.ColorJitter(0.3, 0.3, 0.3)
    change = v2.Compose([crop, flip, colours])
    with torch.random.fork_rng([]):  # of the CPU, where all is drawn
        views = []
        for image, seed in zip(pixels, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            views.append(change(image))
    return torch.stack(views)


def split_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut an order into batches. A last one of one image joins the one before it: BatchNorm cannot
    train on a single 1x1 feature map."""
    batches = list(order.split(batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
