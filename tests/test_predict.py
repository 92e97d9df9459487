"""common.predict and common.export: files are predicted as training tested them."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from processes import finish, refused, start
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from torch.nn.functional import interpolate

import train
from common import export, predict
from common.base.cli import UsageError
from common.base.config import name_in_log
from common.base.log import Log
from common.data import datasets, own
from common.data.datasets import load_dataset, split_dataset
from common.data.images import open_image, to_inputs
from common.data.own import pin_dataset
from common.deploy.export import build_pixel_loader

SIZE = 28


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Results with a run on a folder in colour of several sizes, and one on the digits, exported;
    with the row of each and its files by index into the data set."""
    folder, (pixels, labels) = tmp_path_factory.mktemp("predict"), load_digits(return_X_y=True)
    pixels = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    (folder / "digits").mkdir()
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        if i < 300:
            file = folder / "photos" / f"class {label}" / f"{i:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            colour = np.stack([image, image // 2, image // 3], -1)
            Image.fromarray(colour).resize((8, 8) if i % 2 else (70, 40)).save(file)
        Image.fromarray(image).save(folder / "digits" / f"{i}.png")
    flags = f"--model vgg5 --image-size {SIZE} --batch-size 32 --epochs 2 --opt adam --lr 0.01"
    flags = [*f"{flags} --export onnx --dataset".split(), f"folder:{folder / 'photos'}", "digits"]
    assert train.main([*flags, *flags_of(folder)]) == 0
    rows = Log(folder / "results").read("train")
    rows = {row["config"]["dataset"].split(":")[0]: row for row in rows}
    files = {"folder": sorted((folder / "photos").glob("*/*"), key=lambda f: (f.parent, f.name))}
    files["digits"] = [folder / "digits" / f"{i}.png" for i in range(1797)]
    return folder, rows, files


def flags_of(folder):
    return ["--results-dir", str(folder / "results"), "--data-dir", str(folder / "data")]


def model_of(folder, row):
    return folder / "results" / "exports" / f"{row['run_id']}.onnx"


@pytest.mark.parametrize("kind", ["folder", "digits"])
def test_files_are_predicted_as_training_tested_them(trained, kind, capsys):
    folder, rows, files = trained
    row, model = rows[kind], model_of(folder, rows[kind])
    dataset = load_dataset(row["config"]["dataset"], str(folder / "data"), SIZE)
    test = split_dataset(dataset, "study", 0).test
    images = [files[kind][i] for i in test.tolist()]
    pixels = build_pixel_loader(dataset, SIZE)(test).numpy()
    _, facts = predict.load_model(model)
    as_trained = facts["channels"], SIZE, facts["resized_as"]
    inputs = np.stack([to_inputs(open_image(file)[0], *as_trained) for file in images])
    if kind == "folder":
        assert inputs.tobytes() == pixels.tobytes()  # to the bit
    np.testing.assert_allclose(inputs, pixels, atol=1e-6)
    assert predict.main([str(model), *map(str, images), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["file"] for answer in answers] == [*map(str, images)]
    with np.load(folder / "results" / row["metrics"]["predictions"]) as saved:
        logits = torch.from_numpy(saved["logits"].astype(np.float32))  # kept as float16
        expected = [dataset.classes[i] for i in saved["pred"]]
        assert ("files" in saved) == (kind == "folder")
        if kind == "folder":
            named = [folder / "photos" / name for name in saved["files"].tolist()]
            assert named == images
    shares = [[a["probabilities"][c] for c in dataset.classes] for a in answers]
    np.testing.assert_allclose(shares, logits.softmax(1).numpy(), atol=5e-3)
    answered = np.array([a["class"] for a in answers])
    assert (answered == expected).mean() > 0.99
    labels = np.array(dataset.classes)[dataset.labels[test]]
    assert (answered == labels).mean() == pytest.approx(row["metrics"]["test_acc"], abs=1e-9)
    assert facts["classes"] == list(dataset.classes)
    assert json.loads(facts["fp32_test_acc"]) == pytest.approx(row["metrics"]["test_acc"])


@pytest.mark.parametrize("side", [5, 8, 20])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_without_torch_is_torchs(channels, side):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    ours = to_inputs(image, channels, side, "float32")
    source = torch.from_numpy(np.moveaxis(pixels[..., :channels], -1, 0).copy())[None].float()
    theirs = interpolate(source, (side, side), mode="bilinear", antialias=side < 8)[0] / 255
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_folder_gives_a_csv_and_what_was_taken_for_what(trained, tmp_path, capsys, monkeypatch):
    folder, rows, files = trained
    monkeypatch.chdir(tmp_path)
    model, photos = str(model_of(folder, rows["folder"])), folder / "photos"
    assert predict.main([model, str(photos)]) == 0
    text = capsys.readouterr().out
    with open(tmp_path / "predictions.csv", newline="") as lines:
        answers = list(csv.DictReader(lines))
    assert [answer["file"] for answer in answers] == [*map(str, files["folder"])]
    assert [answer["truth"] for answer in answers] == [f.parent.name for f in files["folder"]]
    matrix = confusion_matrix([a["truth"] for a in answers], [a["class"] for a in answers])
    assert f"{np.trace(matrix)} of 300 in folders of their class are right" in text
    shown = [re.findall(r" {2,}(\d+)", line) for line in text.splitlines() if line[:5] == "class"]
    assert np.array_equal(np.array(shown, int), matrix)
    (photos / "class 0").rename(tmp_path / "unsorted")
    try:  # in folders that no class has the name of nothing is right or wrong
        assert predict.main([model, str(tmp_path / "unsorted"), "--csv", "a.csv"]) == 0
    finally:
        (tmp_path / "unsorted").rename(photos / "class 0")
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "file,class,probability"
    assert "are right" not in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no files in it"):
        predict.main([model, str(tmp_path / "empty")])


def test_files_that_are_no_images_cost_themselves_alone(trained, tmp_path, capsys):
    folder, rows, files = trained
    (tmp_path / "notes.txt").write_text("no image")
    good = str(files["folder"][0])
    asked = [str(tmp_path / "notes.txt"), good, str(tmp_path / "gone.png")]
    assert predict.main([str(model_of(folder, rows["folder"])), *asked]) == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in err.splitlines()] == [asked[0], asked[2]]
    assert out.splitlines()[-1].startswith(good)
    assert out.splitlines()[-1].endswith("%")


OURS = {"classes": '["a"]', "image_size": "2", "channels": "3", "resized_as": "uint8"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict.fromkeys(OURS), "does not say its classes"),
        ({"resized_as": None}, "does not say its resized_as"),
        ({"image_size": "[2"}, "does not say its image_size"),
        ({"classes": '"abc"'}, "does not say its classes"),
        ({"channels": "4"}, "preprocessing is not known"),
        ({"resized_as": "cubic"}, "preprocessing is not known"),
    ],
)
def test_a_model_that_does_not_say_how_it_was_trained_is_refused(tmp_path, changes, message):
    """An ONNX file of another make: the identity of (1, 3, 2, 2) pixels."""
    model = onnx.load(Path(__file__).parent / "odd/identity.onnx")
    facts = {k: v for k, v in (OURS | changes).items() if v is not None}
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=message):
        predict.main([str(tmp_path / "model.onnx"), "x.png"])


def test_no_torch_is_needed_and_no_model_is_bad_usage(trained, tmp_path):
    folder, rows, files = trained
    code = "import sys; from common import predict; sys.modules['torch'] = None\n"
    code += "sys.exit(predict.main(sys.argv[1:]))"
    model = model_of(folder, rows["folder"])
    assert finish(start("-c", code, model, files["folder"][0]))[1] == ""
    (tmp_path / "page.onnx").write_text("<html>")
    for file, message, cause in (
        ("page.onnx", "is no ONNX model", "InvalidProtobuf: "),
        ("gone.onnx", "no such file", ""),
    ):
        process = start("-m", "common.predict", tmp_path / file, "x.png")
        assert message in refused(process, cause)[1]


def test_a_run_is_exported_again_by_how_its_name_starts_unless_its_images_have_changed(
    trained, capsys
):
    folder, rows, files = trained
    run, file, where = rows["digits"]["run_id"], model_of(folder, rows["digits"]), flags_of(folder)
    before = file.read_bytes()
    file.unlink()
    assert export.main([run[:8], "--format", "onnx", *where]) == 0
    assert str(file) in capsys.readouterr().out
    assert len(file.read_bytes()) == len(before)
    for name, message in (("xyz", "no finished trainings"), ("", "2 finished trainings")):
        with pytest.raises(UsageError, match=message):
            export.main([name, *where])
    with pytest.raises(UsageError, match=r"has no log\.jsonl"):
        export.main([run, "--results-dir", str(folder / "nowhere")])
    assert not (folder / "nowhere").exists()
    content = files["folder"][0].read_bytes()
    try:
        files["folder"][0].unlink()
        for function in (own.find_images, datasets._load_once):
            function.cache_clear()
        changed = pin_dataset(f"folder:{folder / 'photos'}", folder / "data")
        assert name_in_log(changed) != rows["folder"]["config"]["dataset"]
        with pytest.raises(UsageError, match="have changed"):
            export.main([rows["folder"]["run_id"], *where])
    finally:
        files["folder"][0].write_bytes(content)
        own.find_images.cache_clear()
