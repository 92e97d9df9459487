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
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import v2
from torchvision.transforms.functional import erase

from common.base.cli import UsageError
from common.base.config import DATASETS, OWN, TrainConfig
from common.data import batches as batching
from common.data import fetch
from common.data.datasets import load_dataset, split_dataset
from common.data.fetch import PUBLISHED, read_dataset
from common.data.images import Dataset
from common.predict import load_model
from common.train.run import Run

DATA = Path(__file__).parent.parent / "data"  # of make data
CPU = torch.device("cpu")


def idx_bytes(array):
    code = {"uint8": 8, "int32": 12}[array.dtype.name]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 10
FOUR = [idx_bytes(part) for part in (PIXELS[:30], LABELS[:30], PIXELS[30:], LABELS[30:])]
FILES = dict(zip(PUBLISHED["mnist"]["files"], FOUR, strict=True))
PACKED = {f"{name}.gz": gzip.compress(content) for name, content in FILES.items()}
FIRST = next(iter(FILES))


def sums(files, kind=hashlib.sha256):
    return {name: kind(content).hexdigest() for name, content in files.items()}


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """A function: a data set is now these files of ours, to be had from these mirrors alone, some
    of them on the disk already. Returns: their folder."""

    def replace(name, files, mirrors=(), placed=None):
        entry = {k: v for k, v in PUBLISHED[name].items() if k != "package"}
        monkeypatch.setitem(PUBLISHED, name, entry | {"files": files, "mirrors": mirrors})
        folder = tmp_path / entry["folder"] / "raw"
        for file, content in (placed or {}).items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        return folder

    return replace


@pytest.mark.parametrize("files", [FILES, PACKED], ids=["plain", "packed"])
def test_files_in_torchvisions_layout_are_used_as_they_are(tmp_path, publish, files):
    raw = publish("mnist", sums(FILES), placed=files)
    dataset = read_dataset("mnist", tmp_path)
    assert {file.name for file in raw.iterdir()} == files.keys()
    assert np.array_equal(dataset.images[:, 0], PIXELS)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert (dataset.images.dtype, dataset.published) == (np.uint8, {"test": 10})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + b"\0",
        lambda content: gzip.compress(content)[:-9],
        lambda content: b"<html>404</html>",
        lambda content: b"\x1f\x8bgarbage",
    ],
)
def test_a_wrong_file_is_refused_with_what_to_place_where(tmp_path, publish, spoil):
    raw = publish("mnist", sums(FILES), placed=FILES | {FIRST: spoil(FILES[FIRST])})
    with pytest.raises(UsageError, match=f"no source has {FIRST} with") as error:
        read_dataset("mnist", tmp_path)
    assert str(raw) in str(error.value)


# What a mirror of some kind sends; /hang nothing for a second, any other the files.
SENT = {"forbidden": b"HTTP/1.0 403 No\r\n\r\n", "noise": b"\0\0\0\n"}
SENT["page"] = b"HTTP/1.0 200 OK\r\n\r\n<html>sign in</html>"
SENT["cut"] = b"HTTP/1.0 200 OK\r\nContent-Length: 999\r\n\r\nabc"


class Mirror(http.server.BaseHTTPRequestHandler):
    content: ClassVar[dict[str, bytes]] = {}

    def do_GET(self):
        _, kind, name = self.path.split("/")
        time.sleep(kind == "hang")
        whole = b"HTTP/1.0 200 OK\r\n\r\n" + self.content.get(name, b"")
        self.wfile.write(SENT.get(kind, whole))


@pytest.fixture
def mirror():
    """A function: the addresses of these kinds of mirrors."""
    Mirror.content = PACKED
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield lambda *kinds: [f"http://127.0.0.1:{server.server_port}/{kind}/" for kind in kinds]
        server.shutdown()
        thread.join()


def test_mirrors_that_forbid_lie_or_hang_are_passed_over(
    tmp_path, publish, mirror, monkeypatch, capsys
):
    """When all are, the error names each. A file that is rejected is left aside."""
    raw = publish("mnist", sums(FILES), mirror("forbidden", "page"))
    with pytest.raises(UsageError, match=r"forbidden/: .*403.*page/: .*SHA-256"):
        read_dataset("mnist", tmp_path)
    assert not list(raw.iterdir())
    mirrors = mirror("forbidden", "page", "noise", "cut", "hang", "good")
    publish("mnist", sums(FILES), mirrors, {FIRST: b"mine"})
    monkeypatch.setattr(fetch, "DOWNLOAD_TIMEOUT_S", 0.3)
    start = time.monotonic()
    assert len(read_dataset("mnist", tmp_path).labels) == 40
    assert 0.3 < time.monotonic() - start < 10
    assert "good/, checksum right" in capsys.readouterr().err
    assert (raw / f"{FIRST}.rejected").read_bytes() == b"mine"
    publish("mnist", sums(FILES))
    assert len(read_dataset("mnist", tmp_path).labels) == 40  # now from the disk


def test_processes_that_fetch_at_once_all_end_with_the_files(tmp_path, publish, mirror):
    raw = publish("mnist", sums(FILES), mirror("good"))
    fork = multiprocessing.get_context("fork")  # so that they have the small files' checksums
    workers = [fork.Process(target=read_dataset, args=("mnist", tmp_path)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert {file.name for file in raw.iterdir()} == FILES.keys()


def test_emnists_archive_is_stored_once_it_is_verified(tmp_path, publish, mirror):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in zip(PUBLISHED["emnist-digits"]["idx"], FOUR, strict=True):
            archive.writestr(f"gzip/{name}.gz", gzip.compress(content))
    whole = {"gzip.zip": packed.getvalue()}
    publish("emnist-digits", sums(whole, hashlib.md5), mirror("good"))
    Mirror.content = {"gzip.zip": packed.getvalue()[:-9]}
    with pytest.raises(UsageError, match=r"no source has gzip\.zip.*MD5 of"):
        read_dataset("emnist-digits", tmp_path)
    assert not list(tmp_path.rglob("gzip.zip"))
    for content in (whole, {}):  # from the mirror, then from the disk
        Mirror.content = content
        assert len(read_dataset("emnist-digits", tmp_path).labels) == 40


def test_relatives_are_trusted_on_torchvisions_md5_alone(tmp_path, publish):
    publish("kmnist", PUBLISHED["kmnist"]["files"], placed=PACKED)
    with pytest.raises(UsageError, match="MD5 of the content is"):
        read_dataset("kmnist", tmp_path)
    publish("kmnist", sums(PACKED, hashlib.md5))
    assert read_dataset("kmnist", tmp_path).classes[0] == "o"


def test_the_table_of_published_sets_is_torchvisions():
    assert {*PUBLISHED, "digits", *OWN} == set(DATASETS)
    for spec in PUBLISHED.values():
        theirs, first = getattr(torchvision.datasets, spec["folder"]), spec["mirrors"][0]
        md5 = {name: sum for name, sum in spec["files"].items() if len(sum) == 32}
        if spec["folder"] == "EMNIST":
            assert (theirs.url, theirs.md5) == (f"{first}gzip.zip", md5["gzip.zip"])
            continue
        listed = theirs.resources
        pairs = listed["train"] + listed["test"] if isinstance(listed, dict) else listed
        known = {url.rsplit("/", 1)[-1]: sum for url, sum in pairs}
        assert md5.items() <= known.items()
        assert {name.removesuffix(".gz") for name in spec["files"]} <= {n[:-3] for n in known}
        urls = [url for url, _ in pairs if url.startswith("http")]
        assert all(url.startswith(first) for url in urls)
        assert urls or spec["mirrors"] == theirs.mirrors


def test_digits_are_scikit_learns():
    dataset, theirs = load_dataset("digits"), load_digits()
    assert dataset.images.shape == (1797, 1, 8, 8)
    assert np.abs(dataset.images[:, 0].numpy() / 255 * 16 - theirs.images).max() < 0.04
    assert np.array_equal(dataset.labels.numpy(), theirs.target)


def pool(n, **published):
    labels = torch.zeros(n, dtype=torch.int64)
    return Dataset("pool", labels.view(n, 1, 1, 1), labels, ("a",), published)


def test_study_split_is_70_10_20_of_the_pool_and_frozen_official_keeps_the_published_test_part():
    split = split_dataset(pool(70_000, test=10_000), "study", 0)
    parts = [part.tolist() for part in vars(split).values()]
    assert [len(part) for part in parts] == [49_000, 7_000, 14_000]
    assert sorted(itertools.chain(*parts)) == list(range(70_000))
    assert split.sha256() == "c1d936b15d5a55d49aa1265530b11c23482788a2d773309b27024581278ec643"
    assert split_dataset(pool(70_000), "study", 1).sha256() != split.sha256()
    few = split_dataset(pool(70_000), "study", 0, 7)
    assert few.train.tolist() == parts[0][:7]  # a limit takes training images only
    assert [few.val.tolist(), few.test.tolist()] == parts[1:]
    split = split_dataset(pool(70_000, test=10_000), "official", 0)
    assert split.test.tolist() == list(range(60_000, 70_000))
    assert len(split.val) == 6000
    assert sorted(split.train.tolist() + split.val.tolist()) == list(range(60_000))
    with pytest.raises(UsageError, match="no published test part"):
        split_dataset(pool(1797), "official", 0)


def batches_of(images, size, std=1 / 255, name="fashion", mean=0.0):
    """Batches of some images, each of a class of its own; unless told otherwise their pixels."""
    images = torch.as_tensor(images)
    dataset = Dataset(name, images, torch.arange(len(images)), ("a",) * len(images))
    statistics = (torch.full((images.shape[1],), float(value)) for value in (mean, std))
    return batching.Batches(dataset, tuple(statistics), size, CPU)


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
    inputs, labels = batches_of(images, size, 0.2, mean=0.3).load(torch.tensor([2, 0]))
    assert inputs.shape == (2, 3, size, size)
    assert labels.tolist() == [2, 0]
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    for row, i in enumerate([2, 0]):
        image = Image.fromarray(images[i, 0].numpy().astype(np.float32))
        resized = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        for channel in inputs[row]:
            assert np.allclose(channel, (resized / 255 - 0.3) / 0.2, atol=1e-4)


def draw(order, epoch=1, sides=(28, 28), **settings):
    config = TrainConfig(**{"dataset": "fashion"} | settings)
    return batching.draw_views(order, config, epoch, sides)


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


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_every_image_is_in_one_batch_of_an_epoch_and_none_is_alone(n, size, sizes):
    orders = {(s, e): batching.epoch_order(50, s, e).tolist() for s in (0, 1) for e in (1, 2)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert batching.epoch_order(50, 1, 2).tolist() == orders[1, 2]
    batches = batching.split_batches(torch.arange(n), size)
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).tolist() == list(range(n))


def test_a_view_is_a_mirrored_crop_of_the_padded_image_and_a_patch_torchvisions():
    """Against numpy: pad by the reach, crop, flip. Some patches are of no height."""
    random, value = np.random.RandomState(0), torch.tensor([7, 8, 9], dtype=torch.uint8)
    pixels = random.randint(1, 256, (40, 3, 5, 7)).astype(np.uint8)
    moves = np.column_stack([random.randint(-9, 10, (40, 2)), random.randint(0, 2, 40)])
    corners = random.randint(0, (3, 4), (40, 2))
    patches = np.column_stack([corners, random.randint((0, 1), (3, 4), (40, 2))])
    views = torch.from_numpy(np.column_stack([np.arange(40), moves, patches]))
    whole, colour = torch.from_numpy(pixels), value.view(1, 3, 1, 1)
    moved, erased = (batching.apply_views(whole, v, colour) for v in (views[:, :4], views))
    for i, (dy, dx, flip) in enumerate(moves):
        image = pixels[i, :, :, ::-1] if flip else pixels[i]
        padded = np.pad(image, ((0, 0), (9, 9), (9, 9)))
        assert (moved[i].numpy() == padded[:, 9 - dy : 14 - dy, 9 - dx : 16 - dx]).all()
        top, left, height, width = patches[i].tolist()
        expected = erase(moved[i], top, left, height, width, value.view(3, 1, 1))
        assert torch.equal(erased[i], expected)


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


@pytest.mark.parametrize("channels", [1, 3])
def test_a_photo_is_changed_by_torchvision_from_seed_epoch_and_image_alone(channels):
    """Each by itself: here from a seed that is set as everybody sets it."""
    images = torch.randint(0, 256, (6, channels, 20, 30), dtype=torch.uint8)
    batches, index = batches_of(images, 16), torch.tensor([4, 1, 2])
    views = draw(index, 2, augment="photo")
    before = torch.get_rng_state()
    inputs, labels = batches.load(views)
    assert torch.equal(torch.get_rng_state(), before)
    assert labels.tolist() == [4, 1, 2]
    crop = v2.RandomResizedCrop(16, (0.35, 1.0))
    change = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3, 0.3)])
    for i, (image, seed) in enumerate(views.tolist()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = change(images[image]).float().expand(3, -1, -1)
        torch.testing.assert_close(inputs[i], expected)
    assert torch.equal(draw(index, 2, augment="photo"), views)
    for other in (draw(index, 3, augment="photo"), draw(index, 2, augment="photo", seed=1)):
        assert (other[:, 1] != views[:, 1]).all()


def test_a_digit_is_never_mirrored():
    """One that is white on its left stays so, whatever the crop."""
    images = torch.zeros(40, 1, 12, 12, dtype=torch.uint8)
    images[..., :3] = 255
    for name, mirrored in (("mnist", False), ("fashion", True)):
        views = draw(torch.arange(40), dataset=name, augment="photo")
        pixels = batches_of(images, 12, name=name).load(views)[0]
        right = pixels[..., 6:].mean((1, 2, 3)) > pixels[..., :6].mean((1, 2, 3))
        assert right.any() == mirrored


def test_an_erased_batch_has_the_mean_where_a_patch_is():
    batches, index = digits(8), torch.arange(4)
    whole, erased = (batches.load(i)[0] for i in (index, draw(index, 1, (8, 8), erase=1.0)))
    changed = (whole != erased).any(1)
    assert changed.flatten(1).any(1).all()
    assert erased.permute(0, 2, 3, 1)[changed].abs().max() < 0.501 * batches.scale.item()


@pytest.fixture(params=["mnist", "fashion"])
def real(request):
    """The name of a published set, where `make data` has fetched it."""
    if not (DATA / PUBLISHED[request.param]["folder"] / "raw").exists():
        pytest.skip("make data has not fetched it")
    return request.param


def test_published_pixel_statistics_and_class_counts(real):
    dataset = load_dataset(real, DATA)
    mean, std = batching.measure_pixels(dataset.images[:60_000])
    published = {"mnist": (0.1307, 0.3081), "fashion": (0.2860, 0.3530)}[real]
    assert (mean.item(), std.item()) == pytest.approx(published, abs=5e-5)
    mnist = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    counts = np.bincount(dataset.labels[60_000:]).tolist()
    assert counts == (mnist if real == "mnist" else [1000] * 10)


def test_the_committed_network_answers_as_it_did(real):
    """What a newcomer classifies with: other processors may tip an image whose logits are level."""
    reference = DATA.parent / "reference"
    run, facts = load_model(reference / "models" / f"{real}.onnx")
    dataset = load_dataset(real, DATA)
    assert facts["classes"] == list(dataset.classes)
    pixels = dataset.images[split_dataset(dataset, "study", 0).test].numpy() / np.float32(255)
    answers = [run(image.reshape(1, 28, 28)).argmax() for image in pixels]
    with np.load(reference / "predictions" / f"{facts['train_run_id']}.npz") as saved:
        assert (np.array(answers) != saved["pred"]).sum() <= 2


def test_a_short_training_learns(real):
    config = TrainConfig(dataset=real, limit=3000, image_size=32, device="cpu")
    val_acc = Run(config, str(DATA)).train_one_epoch()["val_acc"]
    assert val_acc > {"mnist": 0.85, "fashion": 0.65}[real]
