"""Your own images: found, hashed, divided and refused; then a comparison on them, end to end."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torchvision.datasets import ImageFolder

import hw_bench
import report
import svm
import train
from common.base.cli import UsageError
from common.base.config import TrainConfig
from common.data import own
from common.data.datasets import explain_images, load_dataset, split_dataset
from common.data.fetch import read_dataset
from common.data.own import pin_dataset
from common.speed.inference import Server

PIXELS, LABELS = load_digits(return_X_y=True)
DIGITS = np.round(PIXELS * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def tinted(pixels, labels):
    """Grey images in a colour of their class: (N, H, W) -> (N, H, W, 3)."""
    colours = np.random.default_rng(0).integers(80, 256, (10, 3))
    return (pixels[..., None] / 255 * colours[labels][:, None, None]).astype(np.uint8)


def photos(root, n=10, classes=(0, 1), colour=False, start=0):
    """A folder of some digits, the first ten of two classes unless told otherwise."""
    for label in classes:
        chosen = np.flatnonzero(label == LABELS)[start : start + n]
        images = tinted(DIGITS[chosen], LABELS[chosen]) if colour else DIGITS[chosen]
        for i, image in zip(chosen, images, strict=True):
            save(root / f"class {label}" / f"{i}.png", image)
    return root


def forget():
    """What this process has hashed: it then looks again, as another one."""
    own.find_images.cache_clear()


def load(path, side=8, kind="folder"):
    forget()
    return read_dataset(f"{kind}:{path}", path.parent / "data", side)


def refused(path, side=8, kind="folder"):
    with pytest.raises(UsageError) as error:
        load(path, side, kind)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("colour", [False, True])
def test_a_folder_is_what_torchvisions_image_folder_reads(tmp_path, colour):
    root, planes = photos(tmp_path / "photos", colour=colour), 3 if colour else 1
    (root / "class 0" / ".DS_Store").write_bytes(b"hidden")
    (root / "README.txt").write_text("beside the classes")
    dataset = load(root)
    expected = ImageFolder(root, is_valid_file=lambda name: name.endswith(".png"))
    assert dataset.classes == tuple(expected.classes)
    assert dataset.images.shape == (20, planes, 8, 8)
    ours = zip(dataset.labels.tolist(), dataset.images, strict=True)
    theirs = [(y, np.moveaxis(np.asarray(x), -1, 0)[:planes].tobytes()) for x, y in expected]
    assert sorted((y, x.tobytes()) for y, x in ours) == sorted(theirs)


def test_sizes_formats_colours_and_cameras_become_one_square_by_pillows_bilinear(tmp_path):
    root = photos(tmp_path / "photos")
    wide = np.random.default_rng(0).integers(0, 256, (40, 90), dtype=np.uint8)
    for name in ("0.bmp", "0.tiff", "0.pgm"):
        save(root / "class 0" / name, wide)
    images = load(root, 16).images
    assert images.shape == (23, 1, 16, 16)
    expected = np.asarray(Image.fromarray(wide).resize((16, 16), Image.Resampling.BILINEAR))
    assert (images[:, 0] == expected).all((1, 2)).sum() == 3
    assert "2 sizes, 8x8 to 90x40: give --image-size" in refused(root, None)
    exif, upright = Image.Exif(), np.repeat(np.array([255, 0], np.uint8), 32).reshape(8, 8)
    exif[0x0112] = 3  # upside down
    save(root / "class 0" / "turned.png", upright[::-1], exif=exif)
    save(root / "class 1" / "red.png", np.full((8, 8, 3), (255, 0, 0), np.uint8))
    images = load(root).images
    assert images.shape[1] == 3  # one image in colour makes all so
    assert (images == images[:, :1]).all((1, 2, 3)).sum() == 24
    assert (images[:, 0] == upright).all((1, 2)).sum() == 1


def test_all_files_that_cannot_be_used_are_named_at_once(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos")
    whole = (root / "class 0" / "0.png").read_bytes()
    (root / "class 0" / "cut.png").write_bytes(whole[:-30])
    (root / "class 0" / "notes.txt").write_text("no image")
    (root / "class 1" / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "class 1" / "pipe.png")
    save(root / "class 1" / "deep.png", np.full((8, 8), 40_000, np.uint16))
    save(root / "class 1" / "float.tiff", np.full((8, 8), 0.5, np.float32))
    why = refused(root)
    assert "6 of 26 files cannot be used" in why
    bad = ["cut.png", "notes.txt", "gone.png: No such file", "deep.png: mode I;16"]
    for name in (*bad, "float.tiff: mode F", "pipe.png: no regular file"):
        assert name in why
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # a decompression bomb is not unpacked
    assert "DecompressionBombWarning" in refused(root)


def test_links_are_followed_and_a_circle_of_them_refused(tmp_path):
    real, root = photos(tmp_path / "elsewhere"), photos(tmp_path / "photos", classes=(0,))
    (root / "class 1").symlink_to(real / "class 1")
    assert len(load(root).labels) == 20
    (root / "class 0" / "again").symlink_to(root / "class 0")
    assert "is a link to a folder that it is in" in refused(root)


def divide(root, *parts):
    """Put the two classes into folders of these parts."""
    for part in parts:
        (root / part).mkdir()
    for label in (0, 1):
        (root / f"class {label}").rename(root / parts[label] / "class")


SPOILED = {
    "no files in class 1": lambda root: [f.unlink() for f in (root / "class 1").iterdir()],
    "only one class": lambda root: (root / "class 1").rename(root / ".class 1"),
    "8 images; at least 10": lambda root: [f.unlink() for f in sorted(root.glob("*/*"))[4:16]],
    "No such file or directory": lambda root: root.rename(root.parent / "moved"),
    "would not print": lambda root: (root / "class 1").rename(root / "a\nb"),
    "needs train/ and test/": lambda root: divide(root, "train", "val"),
    "each once": lambda root: divide(root, "train", "test", "Training"),
    "symbolic links": lambda root: (root / "class 1" / "loop").symlink_to("loop"),
}


@pytest.mark.parametrize("why", SPOILED)
def test_what_is_no_set_of_classes_is_refused(tmp_path, why):
    root = photos(tmp_path / "photos")
    SPOILED[why](root)
    assert why in refused(root)


def test_a_name_without_its_path_and_a_home_that_nobody_has_are_bad_usage():
    for name in ("folder:", "folder", "foldr:x", "npz"):
        with pytest.raises(UsageError, match="--dataset: unknown value"):
            TrainConfig(dataset=name)
    with pytest.raises(UsageError, match="home directory"):
        pin_dataset("folder:~nobody-of-that-name/photos")


@pytest.mark.parametrize("spelt", [("train", "val", "test"), ("Training", "valid", "TEST")])
def test_a_division_into_folders_is_the_official_split(tmp_path, spelt, capsys):
    pieces, root = [(0, 9), (20, 3), (30, 4)], tmp_path / "photos"
    for part, (start, n) in zip(spelt, pieces, strict=True):
        photos(root / part, n, start=start)
    dataset = load(root)
    split = split_dataset(dataset, "official", 0)
    for part, (start, n) in zip(vars(split).values(), pieces, strict=True):
        chosen = [np.flatnonzero(c == LABELS)[start:][:n] for c in (0, 1)]
        expected = sorted(image.tobytes() for image in DIGITS[np.concatenate(chosen)])
        assert sorted(x.tobytes() for x in dataset.images[part]) == expected
    assert split.train.tolist() != sorted(split.train.tolist())  # --limit takes of every class
    explain_images([TrainConfig(dataset=f"folder:{root}", image_size=8)], tmp_path / "data")
    assert "--split official" in capsys.readouterr().out
    save(root / spelt[2] / "class 9" / "9.png", DIGITS[9])
    assert f"{spelt[0]}/ has no class class 9" in refused(root)


def test_an_official_split_without_an_image_to_validate_on_is_refused(tmp_path):
    photos(tmp_path / "photos/train", 4)
    photos(tmp_path / "photos/test", 3, start=20)
    with pytest.raises(UsageError, match="8 would train, 0 validate and 6 test; each part"):
        split_dataset(load(tmp_path / "photos"), "official", 0)


def test_imbalance_lacking_classes_and_leaks_are_said(tmp_path, capsys):
    root = tmp_path / "photos"
    photos(root / "train", 12)
    photos(root / "train", 2, (2,))
    photos(root / "test", 3, (0,))  # the first three of train once more
    photos(root / "test", 2, (1,), start=50)
    config = TrainConfig(dataset=f"folder:{root}", image_size=8, split="official")
    explain_images([config, replace(config, lr=0.1)], tmp_path / "data")
    text = capsys.readouterr().out
    assert text.count("24 training, 2 validation and 5 test images, 8x8, grey") == 1
    assert "60.0% of the test images" in text
    assert "\n  warning: 5 test images know an accuracy to within 44 points" in text
    assert "\n  warning: no test image of class 2" in text
    assert "\n  warning: 3 of 5 test images are, pixel for pixel" in text


def test_the_name_is_the_content(tmp_path):
    root = photos(tmp_path / "photos")
    first = pin_dataset(f"folder:{root}/")
    assert first == pin_dataset(f"folder:{root}") == pin_dataset(first)
    zero, one = (root / f"class {label}" / "0.png" for label in (0, 1))
    names = [first]
    for change in (
        lambda: os.utime(zero, (1, 1)),  # times are no content
        lambda: save(zero, DIGITS[0] ^ 1),
        lambda: zero.rename(one),
        lambda: one.unlink(),
    ):
        change()
        forget()
        names.append(pin_dataset(f"folder:{root}"))
    assert names[1] == first
    assert len(set(names)) == 4
    with pytest.raises(UsageError, match="have changed: they were @"):
        read_dataset(first, tmp_path / "data", 8)


def test_decoded_images_are_kept_and_a_damaged_copy_is_not_believed(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos")
    images = load(root).images
    [file] = (tmp_path / "data" / "own").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(own, "open_image", lambda *args: pytest.fail("decoded again"))
        assert np.array_equal(load(root).images, images)
    for damage in (lambda c: c[:-40], lambda c: c[:300] + b"\xff" * 9 + c[309:], lambda c: b""):
        file.write_bytes(damage(file.read_bytes()))
        assert np.array_equal(load(root).images, images)
    load(root, 16)
    assert len(list(file.parent.iterdir())) == 2


def medmnist(file, colour=False, **changes):
    pixels = tinted(DIGITS, LABELS) if colour else DIGITS
    bounds = {"train": slice(400), "val": slice(400, 500), "test": slice(500, 650)}
    arrays = {f"{part}_images": pixels[where] for part, where in bounds.items()}
    arrays |= {f"{part}_labels": LABELS[where, None] for part, where in bounds.items()}
    np.savez(file, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return file


@pytest.mark.parametrize("colour", [False, True])
def test_medmnists_layout_with_its_own_division(tmp_path, colour):
    dataset = load(medmnist(tmp_path / "m.npz", colour), None, "npz")
    split = split_dataset(dataset, "official", 0)
    assert dataset.classes == tuple("0123456789")
    assert sorted(split.train.tolist()) == list(range(400))
    assert split.val.tolist() == list(range(400, 500))
    assert split.test.tolist() == list(range(500, 650))
    pixels = tinted(DIGITS, LABELS)[:650] if colour else DIGITS[:650, ..., None]
    assert np.array_equal(dataset.images, pixels.transpose(0, 3, 1, 2))
    assert np.array_equal(dataset.labels, LABELS[:650])


def test_x_and_y_with_names_for_labels(tmp_path):
    names, few = np.array(["zero", "one", "two"]), LABELS < 3
    images = tinted(DIGITS, LABELS)[few].transpose(0, 3, 1, 2)
    np.savez(tmp_path / "x.npz", X=images, y=names[LABELS[few]])
    dataset = load(tmp_path / "x.npz", None, "npz")
    assert dataset.classes == ("one", "two", "zero")
    assert [dataset.classes[i] for i in dataset.labels] == names[LABELS[few]].tolist()
    assert np.array_equal(dataset.images, images)
    with pytest.raises(UsageError, match="no published test part"):
        split_dataset(dataset, "official", 0)


REFUSED = [
    ({"train_images": DIGITS[:400] / 255}, "train_images is float64; save it as uint8"),
    ({"train_images": DIGITS[:400].astype(np.int16)}, "int16; save it as uint8"),
    ({"train_images": DIGITS[:400].reshape(400, 64)}, "has shape (400, 64)"),
    ({"train_images": np.uint8(7)}, "has shape ()"),
    ({"train_images": np.zeros((400, 8, 8, 4), np.uint8)}, "has shape (400, 8, 8, 4)"),
    ({"train_images": np.zeros((400, 9, 9), np.uint8)}, "images of different shapes"),
    ({"train_labels": np.eye(10, dtype=np.uint8)[LABELS[:400]]}, "10 labels an image"),
    ({"train_labels": LABELS[:399]}, "has shape (399,) for 400 images"),
    ({"train_labels": LABELS[:400] / 1}, "whole numbers or text"),
    ({"train_labels": None}, "lacks train_labels"),
    ({"test_images": None}, "train_ and test_ are needed"),
    ({"train_labels": np.array([object()] * 400)}, "no .npz file of plain arrays"),
]


@pytest.mark.parametrize(("changes", "why"), REFUSED)
def test_arrays_that_are_no_images_and_classes_are_refused(tmp_path, changes, why):
    assert why in refused(medmnist(tmp_path / "m.npz", **changes), kind="npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    for content in (b"", b"<html>", b"PK\3\4" + bytes(99)):
        (tmp_path / "a.npz").write_bytes(content)
        assert "no .npz file" in refused(tmp_path / "a.npz", kind="npz")
    assert "No such file" in refused(tmp_path / "gone.npz", kind="npz")


@pytest.mark.parametrize(("kind", "colour"), [("folder", False), ("npz", True)])
def test_a_comparison_on_your_own_images(tmp_path, rows, capsys, kind, colour):
    if kind == "folder":
        source, split = tmp_path / '"$a_b" \\ & <i>é #%^~', "study"
        photos(source, 26, range(10), colour)
    else:
        source, split = medmnist(tmp_path / "a_b & <i>é.npz", colour), "official"
    name, results, data = f"{kind}:{source}", tmp_path / "results", str(tmp_path / "data")
    where = ["--results-dir", str(results), "--data-dir", data, "--dataset", name, "--split", split]
    flags = "--model vgg5 shufflenet_v2_x0_5 --image-size 32 --batch-size 64 --epochs 1 --opt adam"
    speed = "--model vgg5 --image-size 32 --steps 2 --warmup 1 --precision fp32 --threads 1"
    speed += " --loop ours notebook --accept-noise"  # of a busy machine
    assert train.main([*flags.split(), *where]) == 0
    assert svm.main(["--samples", "150", *where]) == 0
    assert hw_bench.main([*speed.split(), *where]) == 0
    assert report.main(where[:2]) == 0
    pinned = pin_dataset(name)
    [*trained, machine] = rows("train") + rows("svm")
    assert {row["config"]["dataset"] for row in (*trained, machine)} == {pinned}
    dataset = load_dataset(pinned, data)
    parts = split_dataset(dataset, split, 0)
    x, y = dataset.images.numpy().reshape(len(dataset.labels), -1) / 255, dataset.labels
    chosen = parts.train[np.random.RandomState(0).permutation(len(parts.train))[:150]]
    acc = SVC(max_iter=1000).fit(x[chosen], y[chosen]).score(x[parts.test], y[parts.test])
    assert machine["metrics"]["test_acc"] == pytest.approx(acc)
    metrics = trained[0]["metrics"]
    assert metrics["class_counts"]["train"] == np.bincount(y[parts.train]).tolist()
    content = torch.load(results / metrics["checkpoint"])
    assert content["classes"] == list(dataset.classes)
    assert len(content["mean"]) == (3 if colour else 1)
    # Engines see the pixels that training saw, resized as bytes and not as fractions.
    server = Server("eager", results / metrics["checkpoint"], 1, trained[0]["config"], data, True)
    kept = np.load(results / metrics["predictions"])["logits"]
    np.testing.assert_allclose(server.answer()[1], kept, rtol=1e-3, atol=1e-4)
    written = (results / "report" / "report.md").read_text()
    assert pinned[-12:] in written
    assert dataset.classes[0] in (results / "report" / "csv" / "datasets.csv").read_text()
    assert str(tmp_path) not in written
    assert "& <i>" not in (results / "report" / "report.tex").read_text()
    plan = [*flags.split(), *where, "--dry-run"]
    train.main(plan)
    assert "configurations: 2, in the log: 2;" in capsys.readouterr().out
    if kind == "folder":
        (source / "class 0" / "0.png").unlink()
    else:
        medmnist(source, colour, test_labels=LABELS[499:649])
    forget()
    train.main(plan)  # changed images are other work
    assert "configurations: 2, in the log: 0;" in capsys.readouterr().out
