"""Your own images: found, hashed, divided and refused; then a comparison on them, end to end."""

import os
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torchvision.datasets import ImageFolder

import hw_bench
import report
import svm
import train
from common.base.cli import UsageError
from common.base.config import TrainConfig, name_in_log
from common.data import datasets, own
from common.data.datasets import describe_split, explain_images, load_dataset, split_dataset
from common.data.fetch import read_dataset
from common.data.images import TOLD, Dataset, Unreadable, open_image
from common.data.own import pin_dataset
from common.speed.inference import Server

PIXELS, LABELS = load_digits(return_X_y=True)
DIGITS = np.round(PIXELS * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
SAID = tomllib.loads(Path(__file__).with_name("ways.toml").read_text())
ODD = Path(__file__).with_name("odd")
DOCS = (Path(__file__).parent.parent / "docs" / "OWN_IMAGES.md").read_text()


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
    own._places.clear()


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


def test_all_files_that_cannot_be_used_are_named_at_once(tmp_path):
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
    bad = ["cut.png", "notes.txt", "gone.png: No such file", "deep.png: 16 bits a channel"]
    for name in (*bad, "float.tiff: 32 bits", "pipe.png: no regular file"):
        assert name in why


def test_links_are_followed_and_a_circle_of_them_refused(tmp_path):
    real, root = photos(tmp_path / "elsewhere"), photos(tmp_path / "photos", classes=(0,))
    (root / "class 1").symlink_to(real / "class 1")
    assert len(load(root).labels) == 20
    (root / "class 0" / "again").symlink_to(root / "class 0")
    assert "is a link to a folder that it is in" in refused(root)


def test_a_name_without_its_path_and_a_home_that_nobody_has_are_bad_usage():
    for name in ("folder:", "folder", "foldr:x", "npz"):
        with pytest.raises(UsageError, match="--dataset: unknown value"):
            TrainConfig(dataset=name)
    with pytest.raises(UsageError, match="~nobody-of-that-name/photos; is the path right"):
        pin_dataset("folder:~nobody-of-that-name/photos", "data")


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
    for label in range(4):
        photos(tmp_path / "photos/train", 1, (label,))
        photos(tmp_path / "photos/test", 3, (label,), start=20)
    with pytest.raises(UsageError, match="4 would train, 0 validate and 12 test; each part"):
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
    assert text.count("23 training, 3 validation and 5 test images, 8x8, grey") == 1
    assert "60.0% of the test images" in text
    assert "\n  warning: 5 test images know an accuracy to within 44 points" in text
    assert "\n  warning: no test image of class 2" in text
    same = ", ".join(f"test/class 0/{n}.png = train/class 0/{n}.png" for n in (0, 10, 20))
    assert "\n  warning: 3 of 31 images are test images that are, pixel for pixel" in text
    assert f"passes for skill: {same}\n" in text


def test_the_name_is_the_content(tmp_path, monkeypatch):
    root, data = photos(tmp_path / "photos"), tmp_path / "data"
    first = pin_dataset(f"folder:{root}/", data)
    assert first == pin_dataset(first, data) == f"folder:{root}@{first[-12:]}"
    logged = name_in_log(first)
    assert logged == f"folder:photos@{first[-12:]}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("photos", "./photos", "~/photos", f"../{tmp_path.name}/photos/"):
        assert name_in_log(pin_dataset(f"folder:{path}", data)) == logged
    monkeypatch.chdir("/")
    forget()  # a later command, elsewhere, that has the row alone
    assert pin_dataset(logged, data) == first
    forget()
    with pytest.raises(UsageError, match="No such file"):
        pin_dataset(logged, tmp_path / "other data")
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
        names.append(pin_dataset(f"folder:{root}", data))
    assert names[1] == first
    assert len(set(names)) == 4
    other = {"groups": r"(\d+)\.png"}, {"background": "black"}, {"background": "#010203"}
    names += [pin_dataset(f"folder:{root}", data, **settings) for settings in other]
    assert len(set(names)) == 7
    assert pin_dataset(f"folder:{root}", data, background="#FFFFFF") == names[4]  # white
    with pytest.raises(UsageError, match="have changed: they were @"):
        read_dataset(first, data, 8)


def test_decoded_images_are_kept_and_a_damaged_copy_is_not_believed(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos")
    images = load(root).images
    [file] = (tmp_path / "data" / "own").glob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(own, "open_image", lambda *args: pytest.fail("decoded again"))
        assert np.array_equal(load(root).images, images)
    for damage in (lambda c: c[:-40], lambda c: c[:300] + b"\xff" * 9 + c[309:], lambda c: b""):
        file.write_bytes(damage(file.read_bytes()))
        assert np.array_equal(load(root).images, images)
    load(root, 16)
    assert len(list(file.parent.glob("*.npz"))) == 2


def medmnist(file, colour=False, **changes):
    pixels = tinted(DIGITS, LABELS) if colour else DIGITS
    bounds = {"train": slice(400), "val": slice(400, 500), "test": slice(500, 650)}
    arrays = {f"{part}_images": pixels[where] for part, where in bounds.items()}
    arrays |= {f"{part}_labels": LABELS[where, None] for part, where in bounds.items()}
    np.savez(file, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return file


@pytest.mark.parametrize(
    "labels", [LABELS[:400, None], np.eye(10)[LABELS[:400]], np.uint64(LABELS[:400])]
)
@pytest.mark.parametrize("colour", [False, True])
def test_medmnists_layout_with_its_own_division(tmp_path, colour, labels):
    """Labels may be of any integer type, or one-hot."""
    dataset = load(medmnist(tmp_path / "m.npz", colour, train_labels=labels), None, "npz")
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


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    for content in (b"", b"<html>", b"PK\3\4" + bytes(99)):
        (tmp_path / "a.npz").write_bytes(content)
        assert "no .npz file" in refused(tmp_path / "a.npz", kind="npz")
    assert "No such file" in refused(tmp_path / "gone.npz", kind="npz")


def misfile(root, name="b.png", **options):
    """An image of class 0 once more in class 1: as it is, or saved otherwise."""
    picture = Image.fromarray(skimage.data.camera()).resize((64, 64))
    picture.save(root / "class 0" / "a.png")
    picture.save(root / "class 1" / name, **options)


def parts(root, **spelt):
    """The classes in folders of these names, from so many images on, and no more at the top."""
    shutil.rmtree(root, ignore_errors=True)
    for name, start in spelt.items():
        photos(root / name, 9, start=start)


def copies(root, *names):
    shutil.rmtree(root)
    for name in names:
        photos(root / name, 6, range(3))


def copied_whole(root):
    parts(root, train=0, test=20)
    photos(root / "chest" / "train")


def unlabelled(root):
    parts(root, train=0)
    save(root / "test" / "1.png", DIGITS[1])


def litter(root):
    save(root / "__MACOSX" / "a.png", DIGITS[0])
    for name in ("Thumbs.db", "desktop.ini"):
        (root / "class 0" / name).write_bytes(b"?")


def accents(root):
    for label, name in ((0, "\xe9"), (1, "e\u0301")):
        (root / f"class {label}").rename(root / name)


def grouped(root, lines):
    (root.parent / "groups.csv").write_text("file,group\n" + lines)
    return {"groups": str(root.parent / "groups.csv")}


def rename(root, name):
    (root / "class 1").rename(root / name)


# What is done to a folder of two classes of ten digits, and returns the settings to read it with;
# or what else is in class 0, of tests/odd/; or what arrays of an .npz file are.
WAYS = {
    "images beside the class folders": lambda root: save(root / "stray.png", DIGITS[5]),
    "an outer folder around all": lambda root: copies(root, "inner"),
    "a second copy inside a divided archive": copied_whole,
    "versions of one set (colour, grey)": lambda root: copies(root, "colour", "grey"),
    "train/ and val/ without test/": lambda root: parts(root, train=0, val=20),
    "train/, dev/ and test/": lambda root: parts(root, train=0, dev=20, test=40),
    "a flat test/ without labels": unlabelled,
    "litter of file managers": litter,
    "class names that differ in case": lambda root: rename(root, "Class 0"),
    "class names that differ in a space": lambda root: rename(root, "class 0 "),
    "class names in NFC and NFD": accents,
    "control characters in a class": lambda root: rename(root, "\x1b[2J"),
    "a line break in a class": lambda root: rename(root, "a\nb"),
    "control characters in a file name": lambda root: save(
        root / "class 0" / "\x1b[2J.png", np.full((8, 8), 7, np.uint8)
    ),
    "16-bit colour in a PNG": "deep.png",
    "16-bit colour in a PPM": "deep.ppm",
    "16-bit colour in a TIFF, plane by plane": "planes.tiff",
    "16-bit grey in a JPEG 2000": "deep.jp2",
    "transparency that carries the content": "cut_out.png",  # of a black shape
    "damaged metadata around whole pixels": "torn_text.png",
    "several pages": "pages.tiff",
    "a first page that is blank": "blank_page.tiff",
    "a scan of 95 megapixels": lambda root: Image.new("1", (10_000, 9_500)).save(
        root / "class 0" / "a.png"
    ),
    "one image under two labels": misfile,
    "one image under two labels, saved again": lambda root: misfile(root, "b.jpg", quality=60),
    "an .npz file's labels one-hot": {"train_labels": np.eye(10)[LABELS[:400]]},
    "an .npz file of several labels an image": {"train_labels": np.ones((400, 3), int)},
    "a class of three images": lambda root: photos(root, 3, (2,)),
    "groups by a pattern": lambda root: {"groups": r"(\d)\.png"},
    "a pattern without a group": lambda root: {"groups": "png"},
    "groups by a CSV file that lacks files": lambda root: grouped(root, "class 0/0.png,anna\n"),
    "one file in two groups": lambda root: grouped(root, "class 0/0.png,a\nclass 0/0.png,b\n"),
    "a cache that cannot be written": lambda root: (root.parent / "data").write_text("no folder"),
    "an empty class": lambda root: [f.unlink() for f in (root / "class 1").iterdir()],
    "a hidden class": lambda root: rename(root, ".class 1"),
    "few images": lambda root: [f.unlink() for f in sorted(root.glob("*/*"))[4:16]],
    "a folder that is gone": lambda root: root.rename(root.parent / "moved"),
    "a part twice": lambda root: parts(root, train=0, test=20, Training=40),
    "a loop of links": lambda root: (root / "class 1" / "loop").symlink_to("loop"),
    "pixels as fractions": {"train_images": DIGITS[:400] / 255},
    "pixels of 16 bits": {"train_images": DIGITS[:400].astype(np.int16)},
    "flat images": {"train_images": DIGITS[:400].reshape(400, 64)},
    "one number": {"train_images": np.uint8(7)},
    "four channels": {"train_images": np.zeros((400, 8, 8, 4), np.uint8)},
    "parts of other sizes": {"train_images": np.zeros((400, 9, 9), np.uint8)},
    "a label missing": {"train_labels": LABELS[:399]},
    "labels as fractions": {"train_labels": LABELS[:400] / 1},
    "no labels": {"train_labels": None},
    "no test images": {"test_images": None},
    "objects": {"train_labels": np.array([object()] * 400)},
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_in_which_folders_and_files_differ(tmp_path, capsys, way):
    root, change, settings = photos(tmp_path / "photos"), WAYS[way], None
    name = f"folder:{root}"
    if isinstance(change, dict):
        name = f"npz:{medmnist(root / 'm.npz', **change)}"
    elif isinstance(change, str):
        shutil.copy(ODD / change, root / "class 0")
    else:
        settings = change(root)
    settings = settings if isinstance(settings, dict) else {}
    forget()
    try:
        explain_images([TrainConfig(dataset=name, image_size=64, **settings)], tmp_path / "data")
        said = "".join(capsys.readouterr())
    except UsageError as error:
        said = str(error)
        assert "\n" not in said
    assert (SAID | SAID["more"])[way] in said
    assert "\x1b" not in said
    assert f"| {way} |" in DOCS or way in SAID["more"]


def test_transparent_images_are_laid_on_the_background(tmp_path):
    root = photos(tmp_path / "photos")
    shutil.copy(ODD / "cut_out.png", root / "class 0")  # its outline is that of digit 1
    alpha, colours = DIGITS[1].astype(int), {None: [255] * 3, "black": [0] * 3}
    for background, colour in (colours | {"#4080ff": [64, 128, 255]}).items():
        forget()
        name = pin_dataset(f"folder:{root}", tmp_path / "data", background=background)
        images = read_dataset(name, tmp_path / "data", 8).images.astype(int)
        laid = np.stack([(255 - alpha) * part / 255 for part in colour])
        assert (abs(images - laid).max((1, 2, 3)) <= 1).sum() == 1


def test_a_limit_of_pixels_is_lifted_by_its_flag(tmp_path):
    file = tmp_path / "a.png"
    save(file, DIGITS[0])
    with pytest.raises(Unreadable, match="8x8, over 6e-05 megapixels: --max-pixels 64 reads it"):
        open_image(file, max_pixels=60)
    assert open_image(file, max_pixels=64)[0].size == (8, 8)


def of_classes(labels, groups=()):
    """A data set of these labels, without images."""
    labels = torch.as_tensor(labels)
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return Dataset("folder:x", images, labels, range(int(labels.max()) + 1), groups=groups)


def test_parts_are_stratified_to_an_image_as_scikit_learns_are():
    labels = np.random.RandomState(0).choice(7, 3000, p=[0.5, 0.2, 0.1, 0.1, 0.06, 0.03, 0.01])
    split = split_dataset(of_classes(labels), "study", 0)
    parts = [part.numpy() for part in vars(split).values()]
    assert sorted(np.concatenate(parts)) == list(range(3000))
    ours = [np.bincount(labels[part], minlength=7) for part in parts]
    rest, theirs = train_test_split(np.arange(3000), test_size=600, stratify=labels)
    train, val = train_test_split(rest, test_size=300, stratify=labels[rest])
    for counts, index in zip(ours, (train, val, theirs), strict=True):
        assert abs(counts - np.bincount(labels[index], minlength=7)).max() <= 1
    again, other = (split_dataset(of_classes(labels), "study", seed) for seed in (0, 1))
    assert again.sha256() == split.sha256() != other.sha256()
    assert len(np.unique(labels[split.train[:100]])) > 4  # shuffled: --limit takes of all


@pytest.mark.parametrize(("n", "counts"), [(1, "100"), (2, "101"), (3, "111"), (10, "712")])
def test_each_class_is_in_each_part_if_it_has_enough_images(n, counts):
    labels = np.repeat([0, 1], [100, n])
    split = split_dataset(of_classes(labels), "study", 3)
    assert [int((labels[part] == 1).sum()) for part in vars(split).values()] == [*map(int, counts)]


def test_no_group_is_in_two_parts_and_classes_keep_their_shares():
    random = np.random.RandomState(0)
    sizes = random.randint(1, 12, 150)  # images of a patient, who is of one class or of two
    groups = np.repeat(np.arange(150), sizes)
    labels = np.where(random.rand(len(groups)) < 0.2, 2, groups % 2)
    split = split_dataset(of_classes(labels, tuple(map(str, groups))), "study", 0)
    parts = [part.numpy() for part in vars(split).values()]
    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    assert len(np.concatenate([np.unique(groups[part]) for part in parts])) == 150
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        shares = np.bincount(labels[part], minlength=3) / np.bincount(labels)
        assert abs(shares - share).max() < 0.05
    three = split_dataset(of_classes([0, 1] * 9, tuple("aaaaaabbbbbbcccccc")), "study", 0)
    assert [len(part) for part in vars(three).values()] == [6, 6, 6]  # none is empty, none is cut


def test_a_test_image_that_was_trained_on_and_saved_again_is_found(tmp_path):
    root, picture = tmp_path / "photos", Image.fromarray(skimage.data.astronaut())
    parts(root, train=0, test=20)
    picture.save(root / "train/class 0/a.png")
    picture.resize((300, 300)).save(root / "test/class 0/b.jpg", quality=50)
    config = TrainConfig(dataset=f"folder:{root}", image_size=64, split="official")
    dataset, split = datasets.load_split(config, tmp_path / "data")
    pairs = dict.fromkeys(TOLD, 0) | {"near_test_duplicates": 1}
    assert describe_split(dataset, split)["told"] == pairs
    pair = datasets.look(dataset, split.test)["near_test_duplicates"]
    assert pair == ["test/class 0/b.jpg = train/class 0/a.png"]


@pytest.mark.parametrize(("kind", "colour"), [("folder", False), ("npz", True)])
def test_a_comparison_on_your_own_images(tmp_path, rows, capsys, kind, colour):
    if kind == "folder":
        source, split = tmp_path / '"$a_b" \\ & <i>é #%^~', "study"
        photos(source, 26, range(10), colour)
    else:
        source, split = medmnist(tmp_path / "a_b & <i>é.npz", colour), "official"
    name, results, data = f"{kind}:{source}", tmp_path / "results", str(tmp_path / "data")
    where = ["--results-dir", str(results), "--data-dir", data, "--dataset", name, "--split", split]
    flags = "--model vgg5 --image-size 32 --batch-size 64 --epochs 1 --opt adam"
    speed = "--model vgg5 --image-size 32 --steps 2 --warmup 1 --precision fp32 --threads 1"
    speed += " --loop ours notebook --accept-noise"  # of a busy machine
    assert train.main([*flags.split(), *where]) == 0
    assert svm.main(["--samples", "150", *where]) == 0
    pinned = name_in_log(pin_dataset(name, data))
    trained, machine = rows("train") + rows("svm")
    assert trained["config"]["dataset"] == machine["config"]["dataset"] == pinned
    dataset = load_dataset(pinned, data)
    split = split_dataset(dataset, split, 0)
    x, y = dataset.images.numpy().reshape(len(dataset.labels), -1) / 255, dataset.labels
    chosen = split.train[np.random.RandomState(0).permutation(len(split.train))[:150]]
    acc = SVC(max_iter=1000).fit(x[chosen], y[chosen]).score(x[split.test], y[split.test])
    assert machine["metrics"]["test_acc"] == pytest.approx(acc)
    metrics = trained["metrics"]
    assert metrics["class_counts"]["train"] == np.bincount(y[split.train]).tolist()
    content = torch.load(results / metrics["checkpoint"])
    assert content["classes"] == list(dataset.classes)
    assert len(content["mean"]) == (3 if colour else 1)
    # Engines see the pixels that training saw, resized as bytes and not as fractions.
    server = Server("eager", results / metrics["checkpoint"], 1, trained["config"], data, True)
    kept = np.load(results / metrics["predictions"])["logits"]
    np.testing.assert_allclose(server.answer()[1], kept, rtol=1e-3, atol=1e-4)
    if kind == "folder":  # whose name is the worse; what follows is alike
        assert hw_bench.main([*speed.split(), *where]) == 0
    assert report.main(where[:2]) == 0
    written = (results / "report" / "report.md").read_text()
    assert pinned[-12:] in written
    assert dataset.classes[0] in (results / "report" / "csv" / "datasets.csv").read_text()
    assert str(tmp_path) not in written
    assert "& <i>" not in (results / "report" / "report.tex").read_text()
    train.main([*flags.split(), *where, "--dry-run"])
    assert "configurations: 1, in the log: 1;" in capsys.readouterr().out
    if kind == "folder":
        (source / "class 0" / "0.png").unlink()
    else:
        medmnist(source, colour, test_labels=LABELS[499:649])
    forget()
    train.main([*flags.split(), *where, "--dry-run"])  # changed images are other work
    assert "configurations: 1, in the log: 0;" in capsys.readouterr().out
