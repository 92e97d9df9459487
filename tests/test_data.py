"""Images: decoded, verified, split and batched as independent references do it."""

import gzip
import hashlib
import http.server
import io
import itertools
import math
import multiprocessing
import struct
import threading
import time
import zipfile
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms.functional import erase

from common.base.cli import UsageError
from common.base.config import DATASETS, OWN, TrainConfig
from common.data import batches as batching
from common.data import fetch
from common.data.datasets import Dataset, load_dataset, split_dataset
from common.data.fetch import PUBLISHED, Published

CPU = torch.device("cpu")


def idx_bytes(array):
    code = {"uint8": 8, "int32": 12}[array.dtype.name]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 10
FOUR = [idx_bytes(part) for part in (PIXELS[:30], LABELS[:30], PIXELS[30:], LABELS[30:])]
FILES = dict(zip(PUBLISHED["mnist"].files, FOUR, strict=True))
FIRST = next(iter(FILES))


@pytest.fixture
def publish(monkeypatch):
    """A function: mnist is now four small files, to be had from these mirrors alone."""

    def small(*mirrors):
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
        published = Published("MNIST", tuple("0123456789"), mirrors, sums)
        monkeypatch.setitem(PUBLISHED, "mnist", published)

    small()
    return small


@pytest.fixture
def raw(tmp_path, publish):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("compressed", [False, True])
def test_files_in_torchvisions_layout_are_used_as_they_are(tmp_path, raw, compressed):
    for name, content in FILES.items():
        stored = gzip.compress(content) if compressed else content
        (raw / (f"{name}.gz" if compressed else name)).write_bytes(stored)
    before = sorted(raw.iterdir())
    dataset = load_dataset("mnist", tmp_path)
    assert sorted(raw.iterdir()) == before
    assert np.array_equal(dataset.images[:, 0], PIXELS)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert (dataset.images.dtype, dataset.published_test) == (torch.uint8, 10)


SPOILED = [
    lambda content: content[:-1],
    lambda content: content[:-1] + b"\0",
    lambda content: gzip.compress(content)[:-9],
    lambda content: b"<html>404</html>",
    lambda content: b"\x1f\x8bgarbage",
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_wrong_file_is_refused_with_what_to_place_where(tmp_path, raw, spoil):
    for name, content in FILES.items():
        (raw / name).write_bytes(content if name != FIRST else spoil(content))
    with pytest.raises(UsageError, match=f"no source has {FIRST} with") as error:
        load_dataset("mnist", tmp_path)
    assert str(raw) in str(error.value)


class Mirror(http.server.BaseHTTPRequestHandler):
    """/forbidden answers 403, /page a page of HTML with status 200, /noise what is no HTTP, /cut
    less than it announced, /hang nothing, /good the files."""

    content: ClassVar[dict[str, bytes]] = {}

    def do_GET(self):
        _, kind, name = self.path.split("/")
        if kind == "hang":
            time.sleep(1)
        elif kind == "noise":
            self.wfile.write(b"\0\0\0\n")
        elif kind == "cut":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 999\r\n\r\nabc")
        else:
            self.send_response(403 if kind == "forbidden" else 200)
            self.end_headers()
            page = b"<html>sign in</html>"
            self.wfile.write(page if kind == "page" else self.content.get(name, b""))

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror():
    """A function: the addresses of these kinds of mirrors."""
    Mirror.content = {f"{name}.gz": gzip.compress(content) for name, content in FILES.items()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield lambda *kinds: [f"http://127.0.0.1:{server.server_port}/{kind}/" for kind in kinds]
    server.shutdown()
    thread.join()
    server.server_close()


def test_mirrors_that_forbid_lie_or_hang_are_passed_over(
    tmp_path, raw, publish, mirror, monkeypatch, capsys
):
    """And the file that was rejected is left aside."""
    (raw / FIRST).write_bytes(b"mine")
    publish(*mirror("forbidden", "page", "noise", "cut", "hang", "good"))
    monkeypatch.setattr(fetch, "DOWNLOAD_TIMEOUT_S", 0.3)
    start = time.monotonic()
    assert len(load_dataset("mnist", tmp_path).labels) == 40
    assert 0.3 < time.monotonic() - start < 10
    assert "good/, checksum right" in capsys.readouterr().err
    assert (raw / f"{FIRST}.rejected").read_bytes() == b"mine"
    publish()
    assert len(load_dataset("mnist", tmp_path).labels) == 40  # now from the disk


def test_processes_that_fetch_at_once_all_end_with_the_files(tmp_path, publish, mirror):
    publish(*mirror("good"))
    fork = multiprocessing.get_context("fork")  # so that they have the small files' checksums
    workers = [fork.Process(target=load_dataset, args=("mnist", tmp_path)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert {file.name for file in (tmp_path / "MNIST" / "raw").iterdir()} == FILES.keys()


def test_emnists_archive_is_stored_once_it_is_verified(tmp_path, mirror, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in zip(PUBLISHED["emnist-digits"].idx, FOUR, strict=True):
            archive.writestr(f"gzip/{name}.gz", gzip.compress(content))
    whole = packed.getvalue()
    sums = {"gzip.zip": hashlib.md5(whole).hexdigest()}
    for content, mirrors in ((whole[:-9], mirror("good")), (whole, mirror("good")), (b"", ())):
        Mirror.content = {"gzip.zip": content}
        spec = PUBLISHED["emnist-digits"]
        published = Published("EMNIST", spec.classes, mirrors, sums, idx=spec.idx)
        monkeypatch.setitem(PUBLISHED, "emnist-digits", published)
        if content == whole[:-9]:
            with pytest.raises(UsageError, match=r"no source has gzip\.zip.*MD5 is not"):
                load_dataset("emnist-digits", tmp_path)
            assert not list(tmp_path.rglob("gzip.zip"))
        else:
            assert len(load_dataset("emnist-digits", tmp_path).labels) == 40


def test_when_every_mirror_fails_the_error_names_each(tmp_path, publish, mirror):
    publish(*mirror("forbidden", "page"))
    with pytest.raises(UsageError, match=r"forbidden/: .*403.*page/: .*SHA-256"):
        load_dataset("mnist", tmp_path)
    assert not list(tmp_path.rglob("*ubyte*"))


def test_relatives_are_trusted_on_torchvisions_md5_alone(tmp_path, monkeypatch):
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    packed = {f"{name}.gz": gzip.compress(content) for name, content in FILES.items()}
    for name, content in packed.items():
        (raw / name).write_bytes(content)
    classes, known = PUBLISHED["kmnist"].classes, PUBLISHED["kmnist"].files
    monkeypatch.setitem(PUBLISHED, "kmnist", Published("KMNIST", classes, (), known))
    with pytest.raises(UsageError, match="only torchvision's"):
        load_dataset("kmnist", tmp_path)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in packed.items()}
    monkeypatch.setitem(PUBLISHED, "kmnist", Published("KMNIST", classes, (), md5))
    assert load_dataset("kmnist", tmp_path).classes[0] == "o"


def test_the_table_of_published_sets_is_torchvisions():
    assert {*PUBLISHED, "digits", *OWN} == set(DATASETS)
    for spec in PUBLISHED.values():
        theirs = getattr(torchvision.datasets, spec.folder)
        md5 = {name: sum for name, sum in spec.files.items() if len(sum) == 32}
        if spec.folder == "EMNIST":
            assert (theirs.url, theirs.md5) == (f"{spec.mirrors[0]}gzip.zip", md5["gzip.zip"])
            continue
        listed = theirs.resources
        pairs = listed["train"] + listed["test"] if isinstance(listed, dict) else listed
        known = {url.rsplit("/", 1)[-1]: sum for url, sum in pairs}
        assert md5.items() <= known.items()
        assert {name.removesuffix(".gz") for name in spec.files} <= {n[:-3] for n in known}
        urls = [url for url, _ in pairs if url.startswith("http")]
        assert all(url.startswith(spec.mirrors[0]) for url in urls)
        assert urls or list(spec.mirrors) == theirs.mirrors


def test_digits_are_scikit_learns():
    dataset, theirs = load_dataset("digits"), load_digits()
    assert dataset.images.shape == (1797, 1, 8, 8)
    assert np.abs(dataset.images[:, 0].numpy() / 255 * 16 - theirs.images).max() < 0.04
    assert np.array_equal(dataset.labels.numpy(), theirs.target)


def pool(n, published_test=None):
    images = torch.zeros(n, 1, 1, 1, dtype=torch.uint8)
    return Dataset("pool", images, torch.zeros(n, dtype=torch.int64), ("a",), published_test)


def test_study_split_is_70_10_20_of_the_pool_and_frozen():
    split = split_dataset(pool(70_000, 10_000), "study", 0)
    parts = [part.tolist() for part in (split.train, split.val, split.test)]
    assert [len(part) for part in parts] == [49_000, 7_000, 14_000]
    assert sorted(itertools.chain(*parts)) == list(range(70_000))
    assert split.sha256() == "c1d936b15d5a55d49aa1265530b11c23482788a2d773309b27024581278ec643"
    assert split_dataset(pool(70_000), "study", 1).sha256() != split.sha256()
    few = split_dataset(pool(70_000), "study", 0, 7)
    assert few.train.tolist() == parts[0][:7]  # a limit takes training images only
    assert (few.val.tolist(), few.test.tolist()) == (parts[1], parts[2])


def test_official_split_keeps_the_published_test_part():
    split = split_dataset(pool(70_000, 10_000), "official", 0)
    assert split.test.tolist() == list(range(60_000, 70_000))
    assert len(split.val) == 6000
    assert sorted(split.train.tolist() + split.val.tolist()) == list(range(60_000))
    with pytest.raises(UsageError, match="no published test part"):
        split_dataset(pool(1797), "official", 0)


def test_pixel_statistics_are_numpys_and_a_channel_that_never_varies_becomes_zeros():
    images = torch.randint(0, 256, (50, 3, 9, 9), dtype=torch.uint8)
    images[:, 2] = 7
    mean, std = batching.measure_pixels(images)
    scaled = images.numpy() / 255
    assert np.allclose(mean, scaled.mean((0, 2, 3)), atol=1e-7)
    assert np.allclose(std[:2], scaled.std((0, 2, 3))[:2], atol=1e-7)
    assert std[2] == 1
    dataset = Dataset("two colours", images, torch.zeros(50, dtype=torch.int64), ("a",))
    inputs, _ = batching.Batches(dataset, (mean, std), 9, CPU).load(torch.arange(4))
    assert inputs.isfinite().all()
    assert torch.allclose(inputs[:, 2], torch.zeros(()), atol=1e-6)


@pytest.mark.parametrize("size", [8, 13, 28, 64])
def test_batches_are_pillows_bilinear_resize_normalised_and_repeated(size):
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    dataset = Dataset("x", images, torch.arange(4), ("a",) * 4)
    batches = batching.Batches(dataset, (torch.tensor([0.3]), torch.tensor([0.2])), size, CPU)
    inputs, labels = batches.load(torch.tensor([2, 0]))
    assert inputs.shape == (2, 3, size, size)
    assert labels.tolist() == [2, 0]
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    for row, i in enumerate([2, 0]):
        image = Image.fromarray(images[i, 0].numpy().astype(np.float32))
        resized = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        for channel in inputs[row]:
            assert np.allclose(channel, (resized / 255 - 0.3) / 0.2, atol=1e-4)


def draw(order, epoch=1, sides=(28, 28), **settings):
    return batching.draw_views(
        order, TrainConfig(**{"dataset": "fashion"} | settings), epoch, sides
    )


def digits(size, staged=False):
    dataset = load_dataset("digits")
    batches = batching.Batches(dataset, batching.measure_pixels(dataset.images), size, CPU)
    batches.staged = staged  # as with --data-on host on an accelerator
    return batches


@pytest.mark.parametrize("staged", [False, True])
def test_a_view_that_moves_nothing_is_the_image_wherever_it_is_gathered(staged):
    index = torch.tensor([5, 900, 5])
    plain = digits(16).load(index)
    batches = digits(16, staged)
    for view in (index, draw(index)):
        assert all(torch.equal(a, b) for a, b in zip(plain, batches.load(view), strict=True))
    shifted = batches.load(draw(index, translate=3))
    assert torch.equal(shifted[1], plain[1])
    assert not torch.equal(shifted[0], plain[0])


def test_epochs_are_permutations_of_seed_and_epoch():
    orders = {(s, e): batching.epoch_order(50, s, e).tolist() for s in (0, 1) for e in (1, 2)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert batching.epoch_order(50, 1, 2).tolist() == orders[1, 2]


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_every_image_is_in_one_batch_and_none_is_alone(n, size, sizes):
    batches = batching.split_batches(torch.arange(n), size)
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).tolist() == list(range(n))


def test_a_moved_image_is_a_mirrored_crop_of_the_padded_one():
    """Against numpy: pad by the reach, crop, flip."""
    random = np.random.RandomState(0)
    pixels = torch.from_numpy(random.randint(1, 256, (40, 3, 5, 7)).astype(np.uint8))
    moves = np.column_stack([random.randint(-9, 10, (40, 2)), random.randint(0, 2, 40)])
    moved = batching.move_images(pixels, torch.from_numpy(moves)).numpy()
    for image, result, (dy, dx, flip) in zip(pixels.numpy(), moved, moves, strict=True):
        padded = np.pad(image[:, :, ::-1] if flip else image, ((0, 0), (9, 9), (9, 9)))
        assert (result == padded[:, 9 - dy : 14 - dy, 9 - dx : 16 - dx]).all()


def test_views_are_drawn_from_seed_and_epoch_and_mirror_each_image_every_other_epoch():
    order, moves = torch.arange(100, 600), {"translate": 2, "flip": True}
    first, second, third = (draw(order, epoch, **moves) for epoch in (1, 2, 3))
    assert (first[:, 0] == order).all()
    assert (first[:, 3] + second[:, 3] == 1).all()
    assert (first[:, 3] == third[:, 3]).all()
    assert 0.4 < first[:, 3].double().mean() < 0.6
    for column in (1, 2):
        assert first[:, column].unique().tolist() == [-2, -1, 0, 1, 2]
    assert not torch.equal(first[:, 1:3], third[:, 1:3])
    assert torch.equal(draw(order, **moves), first)
    assert not torch.equal(draw(order, **moves, seed=1), first)
    assert not draw(order)[:, 1:].any()
    assert not draw(order, dataset="mnist", flip=True)[:, 1:].any()
    # An image keeps its side whatever its place in the order.
    assert torch.equal(draw(order.flip(0), **moves)[:, 3], first[:, 3].flip(0))


def test_an_erased_patch_is_torchvisions():
    pixels = torch.randint(0, 256, (3, 2, 6, 8), dtype=torch.uint8)
    value = torch.tensor([7, 9], dtype=torch.uint8).view(1, 2, 1, 1)
    patches = torch.tensor([[0, 1, 3, 4], [5, 7, 1, 1], [2, 2, 0, 5]])
    erased = batching.erase_patches(pixels, patches, value)
    for image, result, patch in zip(pixels, erased, patches.tolist(), strict=True):
        assert torch.equal(result, erase(image, *patch, value[0].expand(2, *patch[2:])))
    assert torch.equal(erased[2], pixels[2])


def test_patches_are_drawn_as_random_erasing_says():
    order, sides = torch.arange(20_000), (28, 40)
    views = draw(order, 1, sides, translate=1, erase=0.3)
    assert torch.equal(views[:, :4], draw(order, translate=1))
    top, left, height, width = views[:, 4:].unbind(1)
    erased = height > 0
    assert erased.double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert min(top.min(), left.min()) == 0
    assert ((top + height).max(), (left + width).max()) == sides
    share = (height * width).double()[erased] / (28 * 40)
    assert share.mean().item() == pytest.approx((0.02 + 0.33) / 2, abs=0.01)
    ratio = (height.double() / width).log()[erased]
    assert ratio.mean().item() == pytest.approx(0, abs=0.05)
    assert ratio.quantile(0.9).item() == pytest.approx(0.8 * math.log(3.3), abs=0.1)
    assert not torch.equal(views, draw(order, 2, sides, translate=1, erase=0.3))


def test_an_erased_batch_has_the_mean_where_a_patch_is():
    batches, index = digits(8), torch.arange(4)
    whole, _ = batches.load(index)
    erased, _ = batches.load(draw(index, 1, (8, 8), erase=1.0))
    changed = (whole != erased).any(1)
    assert changed.flatten(1).any(1).all()
    assert erased.permute(0, 2, 3, 1)[changed].abs().max() < 0.501 * batches.scale.item()
