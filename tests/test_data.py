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
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import erase

from common.base.cli import UsageError
from common.data import datasets as data
from common.data.datasets import (
    PUBLISHED,
    Batches,
    Dataset,
    draw_views,
    epoch_order,
    erase_patches,
    load_dataset,
    measure_pixels,
    move_images,
    parse_idx,
    split_batches,
    split_dataset,
)


def idx_bytes(array):
    code = {"uint8": 8, "int32": 12}[array.dtype.name]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def four_files():
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        np.arange(30, dtype=np.uint8) % 10,
        rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        np.arange(10, dtype=np.uint8),
    ]
    return dict(zip(PUBLISHED["mnist"].files, map(idx_bytes, arrays), strict=True))


@pytest.fixture
def spec(four_files, monkeypatch):
    """mnist, its checksums those of the four small files and its only source the disk."""
    digests = tuple(hashlib.sha256(content).hexdigest() for content in four_files.values())
    small = replace(PUBLISHED["mnist"], sha256=digests, package=None)
    monkeypatch.setitem(PUBLISHED, "mnist", small)
    monkeypatch.setattr(data, "_mirrors", lambda spec: [])
    return small


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    return folder


def test_idx_round_trip_with_ranks_and_types():
    for array in (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.arange(6, dtype=np.int32)):
        assert np.array_equal(parse_idx(idx_bytes(array)), array)


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    "broken",
    [
        b"", GOOD[:3], GOOD[:9], GOOD[:-1], GOOD + b"x", b"\1" + GOOD[1:], b"<html>" + GOOD,
        GOOD[:2] + b"\x07" + GOOD[3:], GOOD[:3] + b"\x00" + GOOD[4:], GOOD[:3] + b"\x09" + GOOD[4:],
        GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:],
    ],
)  # fmt: skip
def test_idx_that_is_not_whole_is_refused(broken):
    with pytest.raises(ValueError, match=r"IDX|bytes"):
        parse_idx(broken)


@pytest.mark.parametrize("compressed", [False, True])
def test_files_in_torchvisions_layout_are_used_as_they_are(tmp_path, raw, four_files, spec,
                                                           compressed):  # fmt: skip
    for name, content in four_files.items():
        if compressed:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)
    before = sorted(raw.iterdir())
    dataset = load_dataset("mnist", tmp_path)
    assert sorted(raw.iterdir()) == before
    assert dataset.images.shape == (40, 1, 28, 28)
    assert dataset.images.dtype == torch.uint8
    assert dataset.labels.tolist() == [i % 10 for i in range(30)] + list(range(10))
    assert dataset.published_test == 10


@pytest.mark.parametrize(
    "spoil",
    [lambda c: c[:-1], lambda c: c[:-1] + b"\0", lambda c: gzip.compress(c)[:-9],
     lambda c: b"<html>404</html>"],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_what_to_place_where(tmp_path, raw, four_files, spec, spoil):
    for name, content in four_files.items():
        (raw / name).write_bytes(content)
    bad = raw / spec.files[2]
    bad.write_bytes(spoil(bad.read_bytes()))
    with pytest.raises(UsageError, match="t10k-images-idx3-ubyte") as error:
        load_dataset("mnist", tmp_path)
    assert str(raw) in str(error.value)
    assert "train-images" not in str(error.value)


class Mirror(http.server.BaseHTTPRequestHandler):
    """/forbidden answers 403, /page a page of HTML with status 200, /noise what is no HTTP, /cut
    less than it announced, /hang nothing, /good the files."""

    content: ClassVar[dict[str, bytes]] = {}

    def do_GET(self):
        _, kind, name = self.path.split("/")
        if kind == "hang":
            time.sleep(1)
            return
        if kind == "noise":
            self.wfile.write(b"\0\0\0\n")
            return
        if kind == "cut":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 999\r\n\r\nabc")
            return
        body = b"<html>sign in</html>" if kind == "page" else self.content.get(name, b"")
        self.send_response(403 if kind == "forbidden" else 200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(four_files):
    Mirror.content = {f"{name}.gz": gzip.compress(c) for name, c in four_files.items()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_mirrors_that_forbid_or_lie_are_passed_over(tmp_path, spec, mirror, monkeypatch, capsys):
    kinds = [f"{mirror}{kind}/" for kind in ("forbidden", "page", "noise", "cut", "good")]
    monkeypatch.setattr(data, "_mirrors", lambda spec: kinds)
    assert len(load_dataset("mnist", tmp_path).labels) == 40
    assert "good/, checksum right" in capsys.readouterr().err
    monkeypatch.setattr(data, "_mirrors", lambda spec: [])
    assert len(load_dataset("mnist", tmp_path).labels) == 40  # now from the disk


def test_one_damaged_file_on_disk_is_the_only_one_missing(tmp_path, raw, four_files, spec):
    for name, content in four_files.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    (raw / f"{spec.files[0]}.gz").write_bytes(b"\x1f\x8bgarbage")
    with pytest.raises(UsageError, match="no source has train-images-idx3-ubyte with"):
        load_dataset("mnist", tmp_path)


def test_processes_that_fetch_at_once_all_end_with_the_files(tmp_path, spec, mirror, monkeypatch):
    monkeypatch.setattr(data, "_mirrors", lambda spec: [f"{mirror}good/"])
    fork = multiprocessing.get_context("fork")  # so that they have the small files' checksums
    workers = [fork.Process(target=load_dataset, args=("mnist", tmp_path)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    folder = tmp_path / "MNIST" / "raw"
    assert sorted(file.name for file in folder.iterdir()) == sorted(spec.files)


def test_a_mirror_that_hangs_costs_its_time_and_no_more(tmp_path, spec, mirror, monkeypatch):
    monkeypatch.setattr(data, "_mirrors", lambda spec: [f"{mirror}hang/", f"{mirror}good/"])
    monkeypatch.setattr(data, "DOWNLOAD_TIMEOUT_S", 0.3)
    start = time.monotonic()
    assert len(load_dataset("mnist", tmp_path).labels) == 40
    assert 0.3 < time.monotonic() - start < 10


def test_emnists_archive_is_stored_once_it_is_verified(tmp_path, four_files, mirror, monkeypatch):
    names = PUBLISHED["emnist-digits"].files
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in zip(names, four_files.values(), strict=True):
            archive.writestr(f"gzip/{name}.gz", gzip.compress(content))
    whole = packed.getvalue()
    monkeypatch.setattr(
        "torchvision.datasets.EMNIST.md5", hashlib.md5(whole).hexdigest(), raising=True
    )
    target = tmp_path / "EMNIST" / "raw" / "gzip.zip"
    for content, fine in ((whole[:-9], False), (whole, True)):
        Mirror.content = {"gzip.zip": content}
        monkeypatch.setattr(data, "_mirrors", lambda spec: [f"{mirror}good/gzip.zip"])
        if fine:
            assert len(load_dataset("emnist-digits", tmp_path).labels) == 40
        else:
            with pytest.raises(UsageError, match="MD5 of the archive"):
                load_dataset("emnist-digits", tmp_path)
        assert target.exists() == fine
    monkeypatch.setattr(data, "_mirrors", lambda spec: [])
    assert len(load_dataset("emnist-digits", tmp_path).labels) == 40


def test_when_every_mirror_fails_the_error_names_each(tmp_path, spec, mirror, monkeypatch):
    kinds = [f"{mirror}{kind}/" for kind in ("forbidden", "page")]
    monkeypatch.setattr(data, "_mirrors", lambda spec: kinds)
    with pytest.raises(UsageError) as error:
        load_dataset("mnist", tmp_path)
    assert "403" in str(error.value)
    assert "SHA-256" in str(error.value)
    assert not list(tmp_path.rglob("*ubyte*"))


def test_a_refetched_file_leaves_the_rejected_one_aside(tmp_path, raw, spec, mirror, monkeypatch):
    (raw / spec.files[0]).write_bytes(b"mine")
    monkeypatch.setattr(data, "_mirrors", lambda spec: [f"{mirror}good/"])
    load_dataset("mnist", tmp_path)
    assert (raw / f"{spec.files[0]}.rejected").read_bytes() == b"mine"


def test_relatives_are_trusted_on_torchvisions_md5_alone(tmp_path, four_files, monkeypatch):
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    monkeypatch.setattr(data, "_mirrors", lambda spec: [])
    packed = {name: gzip.compress(content) for name, content in four_files.items()}
    for name, content in packed.items():
        (raw / f"{name}.gz").write_bytes(content)
    with pytest.raises(UsageError, match="only torchvision's"):
        load_dataset("kmnist", tmp_path)
    md5 = {f"{name}.gz": hashlib.md5(content).hexdigest() for name, content in packed.items()}
    monkeypatch.setattr(data, "_torchvision_md5", lambda spec: md5)
    assert load_dataset("kmnist", tmp_path).classes[0] == "o"


@pytest.mark.parametrize("name", ["kmnist", "qmnist"])
def test_torchvision_knows_a_checksum_and_a_mirror_for_every_file(name):
    known = data._torchvision_md5(PUBLISHED[name])
    assert {f"{file}.gz" for file in PUBLISHED[name].files} <= known.keys()
    assert all(url.startswith("http") and url.endswith("/") for url in
               data._mirrors(PUBLISHED[name]))  # fmt: skip


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert dataset.images.shape == (1797, 1, 8, 8)
    pixels = load_digits().images
    assert np.abs(dataset.images[:, 0].numpy() / 255 * 16 - pixels).max() < 0.04
    assert np.array_equal(dataset.labels.numpy(), load_digits().target)


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


def test_official_split_keeps_the_published_test_part():
    split = split_dataset(pool(70_000, 10_000), "official", 0)
    assert split.test.tolist() == list(range(60_000, 70_000))
    assert len(split.val) == 6000
    assert sorted(split.train.tolist() + split.val.tolist()) == list(range(60_000))
    with pytest.raises(UsageError, match="no published test part"):
        split_dataset(pool(1797), "official", 0)


def test_limit_takes_training_images_only():
    whole, few = (split_dataset(pool(100), "study", 3, limit) for limit in (None, 7))
    assert few.train.tolist() == whole.train[:7].tolist()
    assert few.test.tolist() == whole.test.tolist()


def test_a_channel_that_never_varies_becomes_zeros():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    images[:, 2] = 7
    dataset = Dataset("two colours", images, torch.zeros(4, dtype=torch.int64), ("a",), None)
    mean, std = measure_pixels(images)
    assert std[2] == 1
    inputs, _ = Batches(dataset, (mean, std), 8, torch.device("cpu")).load(torch.arange(4))
    assert inputs.isfinite().all()
    assert torch.allclose(inputs[:, 2], torch.zeros(()), atol=1e-6)


def test_pixel_statistics_are_numpys():
    images = torch.randint(0, 256, (50, 3, 9, 9), dtype=torch.uint8)
    mean, std = measure_pixels(images)
    scaled = images.numpy() / 255
    assert np.allclose(mean, scaled.mean((0, 2, 3)), atol=1e-7)
    assert np.allclose(std, scaled.std((0, 2, 3)), atol=1e-7)


@pytest.mark.parametrize("size", [8, 13, 28, 64])
def test_batches_are_pillows_bilinear_resize_normalised_and_repeated(size):
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    dataset = Dataset("x", images, torch.arange(4), ("a",) * 4, None)
    mean, std = torch.tensor([0.3]), torch.tensor([0.2])
    batches = Batches(dataset, (mean, std), size, torch.device("cpu"))
    inputs, labels = batches.load(torch.tensor([2, 0]))
    assert inputs.shape == (2, 3, size, size)
    assert labels.tolist() == [2, 0]
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    for row, i in enumerate([2, 0]):
        image = Image.fromarray(images[i, 0].numpy().astype(np.float32))
        resized = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        for channel in inputs[row]:
            assert np.allclose(channel, (resized / 255 - 0.3) / 0.2, atol=1e-4)


def test_batches_gathered_on_the_host_are_the_same():
    dataset = load_dataset("digits")
    statistics = measure_pixels(dataset.images)
    batches = Batches(dataset, statistics, 16, torch.device("cpu"))
    index = torch.tensor([5, 900, 5])
    direct = batches.load(index)
    batches.staged = True
    staged = batches.load(index)
    assert torch.equal(direct[0], staged[0])
    assert torch.equal(direct[1], staged[1])


def test_epochs_are_permutations_of_seed_and_epoch():
    orders = {(s, e): epoch_order(50, s, e).tolist() for s in (0, 1) for e in (1, 2)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert epoch_order(50, 1, 2).tolist() == orders[1, 2]


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_every_image_is_in_one_batch_and_none_is_alone(n, size, sizes):
    batches = split_batches(torch.arange(n), size)
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).tolist() == list(range(n))


def test_a_moved_image_is_a_mirrored_crop_of_the_padded_one():
    """Against numpy: pad by the reach, crop, flip."""
    random = np.random.RandomState(0)
    pixels = torch.from_numpy(random.randint(1, 256, (40, 3, 5, 7)).astype(np.uint8))
    down, right = (torch.from_numpy(random.randint(-9, 10, 40)) for _ in range(2))
    mirrored = torch.from_numpy(random.randint(0, 2, 40))
    moved = move_images(pixels, down, right, mirrored).numpy()
    for image, result, dy, dx, flip in zip(pixels.numpy(), moved, down, right, mirrored,
                                           strict=True):  # fmt: skip
        image = image[:, :, ::-1] if flip else image
        padded = np.pad(image, ((0, 0), (9, 9), (9, 9)))
        assert (result == padded[:, 9 - dy : 14 - dy, 9 - dx : 16 - dx]).all()


def test_views_are_drawn_from_seed_and_epoch_and_mirror_each_image_every_other_epoch():
    order = torch.arange(100, 600)
    first, second, third = (draw_views(order, 2, True, 0, epoch) for epoch in (1, 2, 3))
    assert (first[:, 0] == order).all()
    assert (first[:, 3] + second[:, 3] == 1).all()
    assert (first[:, 3] == third[:, 3]).all()
    assert 0.4 < first[:, 3].double().mean() < 0.6
    for column in (1, 2):
        assert first[:, column].unique().tolist() == [-2, -1, 0, 1, 2]
    assert not torch.equal(first[:, 1:3], third[:, 1:3])
    assert torch.equal(draw_views(order, 2, True, 0, 1), first)
    assert not torch.equal(draw_views(order, 2, True, 1, 1), first)
    still = draw_views(order, 0, False, 0, 1)
    assert not still[:, 1:].any()
    # An image keeps its side whatever its place in the order.
    assert torch.equal(draw_views(order.flip(0), 2, True, 0, 1)[:, 3], first[:, 3].flip(0))


def test_an_erased_patch_is_torchvisions():
    pixels = torch.randint(0, 256, (3, 2, 6, 8), dtype=torch.uint8)
    value = torch.tensor([7, 9], dtype=torch.uint8).view(1, 2, 1, 1)
    patches = torch.tensor([[0, 1, 3, 4], [5, 7, 1, 1], [2, 2, 0, 5]])
    erased = erase_patches(pixels, *patches.unbind(1), value)
    for image, result, patch in zip(pixels, erased, patches.tolist(), strict=True):
        assert torch.equal(result, erase(image, *patch, value[0].expand(2, *patch[2:])))
    assert torch.equal(erased[2], pixels[2])


def test_patches_are_drawn_as_random_erasing_says():
    order, sides = torch.arange(20_000), (28, 40)
    views = draw_views(order, 1, False, 0, 1, 0.3, sides)
    assert torch.equal(views[:, :4], draw_views(order, 1, False, 0, 1))
    top, left, height, width = views[:, 4:].unbind(1)
    erased = height > 0
    assert erased.double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == sides[0]
    assert (left + width).max() == sides[1]
    share = (height * width).double()[erased] / (28 * 40)
    assert share.mean().item() == pytest.approx((0.02 + 0.33) / 2, abs=0.01)
    ratio = (height.double() / width).log()[erased]
    assert ratio.mean().item() == pytest.approx(0, abs=0.05)
    assert ratio.quantile(0.9).item() == pytest.approx(0.8 * math.log(3.3), abs=0.1)
    assert not torch.equal(views, draw_views(order, 1, False, 0, 2, 0.3, sides))


def test_an_erased_batch_has_the_mean_where_a_patch_is():
    dataset = load_dataset("digits")
    batches = Batches(dataset, measure_pixels(dataset.images), 8, torch.device("cpu"))
    index = torch.arange(4)
    whole, _ = batches.load(index)
    erased, _ = batches.load(draw_views(index, 0, False, 0, 1, 1.0, (8, 8)))
    changed = (whole != erased).any(1)
    assert changed.flatten(1).any(1).all()
    assert erased.permute(0, 2, 3, 1)[changed].abs().max() < 0.501 * batches.scale.item()


@pytest.mark.parametrize("data_on", ["device", "host"])
def test_a_view_that_moves_nothing_is_the_image(data_on):
    dataset = load_dataset("digits")
    batches = Batches(dataset, measure_pixels(dataset.images), 16, torch.device("cpu"),
                      data_on=data_on)  # fmt: skip
    batches.staged = data_on == "host"  # as on an accelerator
    index = torch.tensor([5, 3, 8])
    plain = batches.load(index)
    view = batches.load(draw_views(index, 0, False, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(plain, view, strict=True))
    shifted = batches.load(draw_views(index, 3, False, 0, 1))
    assert torch.equal(shifted[1], plain[1])
    assert not torch.equal(shifted[0], plain[0])
