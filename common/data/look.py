"""What is to be told of your own images before they are trained on: the same image twice, images
that show nothing, and how files were read."""

import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from common.data.fetch import Dataset
from common.data.images import TOLD

HASH_BITS = 6  # in which the hashes of two copies of an image may differ,
CONTRAST = 0.05  # and the share of it by which they may: unlike images, too, may have one hash
MOST_COMPARED = 30_000  # each with each other, in seconds
ROWS = 64  # compared with all others at once, for memory


@functools.cache
def look(dataset: Dataset, test: Tensor) -> dict[str, Sequence[str]]:
    """Names of your own images, or of two that are alike, that something is to be told of, by key
    of TOLD. Shapes: test (n,), the index of the test part."""
    images, labels = dataset.images.numpy(), dataset.labels.numpy()
    tested = np.isin(np.arange(len(images)), test)
    constant = (images == images[:, :, :1, :1]).all((1, 2, 3))
    known: dict[bytes, int] = {}
    twin = [known.setdefault(hashlib.sha256(x.tobytes()).digest(), i) for i, x in enumerate(images)]
    pairs: dict[str, dict[int, int]] = {"near_label_conflicts": {}, "near_test_duplicates": {}}
    pairs["label_conflicts"] = {i: j for i, j in enumerate(twin) if labels[i] != labels[j]}
    distinct = np.flatnonzero((np.array(twin) == np.arange(len(images))) & ~constant)
    for i, j in _find_near(images, distinct):
        if labels[i] != labels[j]:
            pairs["near_label_conflicts"].setdefault(j, i)
        if tested[i] != tested[j]:
            pairs["near_test_duplicates"].setdefault(*((i, j) if tested[i] else (j, i)))
    name = dataset.name_of
    told = {"constant": [name(i) for i in np.flatnonzero(constant)]}
    told |= {k: [f"{name(i)} = {name(j)}" for i, j in of.items()] for k, of in pairs.items()}
    return dict.fromkeys(TOLD, ()) | dataset.told | told  # in the order of TOLD


def _find_near(images: np.ndarray, index: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of images, the earlier first, that are one in two files: saved again, or resized.

    Source: difference hash (dHash) of 64 bits: which of two neighbours in 8x9 pixels is brighter.
    """
    if not 1 < len(index) <= MOST_COMPARED:
        return
    grey = (Image.fromarray(images[i].mean(0).round().astype(np.uint8)) for i in index)
    small = np.stack([np.float32(image.resize((9, 8), Image.Resampling.BOX)) for image in grey])
    brighter = small[:, :, :-1] > small[:, :, 1:]
    hashes = np.packbits(brighter.reshape(-1, 64), axis=1).view(np.uint64)[:, 0]
    for start in range(0, len(index), ROWS):
        bits = np.bitwise_count(hashes[start : start + ROWS, None] ^ hashes[start:])
        i, j = start + np.stack(np.nonzero(np.triu(bits <= HASH_BITS, 1)))
        apart = np.abs(small[i] - small[j]).mean((1, 2))
        close = apart <= CONTRAST * small[i].std((1, 2))
        yield from zip(index[i[close]].tolist(), index[j[close]].tolist(), strict=True)
