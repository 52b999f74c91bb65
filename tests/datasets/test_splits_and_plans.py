"""Which images belong to which split: divided data, what a checkpoint held out, and images that are on both sides."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from train_utils.open_data import held_out_images, open_held_out, open_training_data
from train_utils.options import DataSettings

IMAGES = 20


def make_unsplit(folder: Path, images: int = IMAGES) -> Path:
    """One COCO file beside its images, each with one object; files differ in size in bytes."""
    folder.mkdir()
    content: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    for k in range(1, images + 1):
        Image.new("RGB", (32 + k, 32), (9 * k % 256, k, 0)).save(folder / f"{k}.png")
        content["images"].append({"id": k, "file_name": f"{k}.png", "height": 32, "width": 32 + k})
        polygon = [4, 4, 20, 4, 20, 20, 4, 20]
        content["annotations"].append(
            {"id": k, "image_id": k, "category_id": 1 + k % 2, "bbox": [4, 4, 16, 16], "area": 256, "iscrowd": 0,
             "segmentation": [polygon]}
        )  # fmt: skip
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def given(**values: object) -> DataSettings:
    settings = DataSettings(**values)
    settings.given = set(values)
    return settings


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, dict, dict[str, int]]:
    """A folder, the settings of a run on it, and the images that the run held out."""
    folder = make_unsplit(tmp_path / "mine")
    train_set, val_set = open_training_data(given(data_path=str(folder)), seed=0)
    held_out = held_out_images(train_set, val_set)
    assert len(held_out) == len(val_set) and not set(held_out) & set(train_set.image_names())
    return folder, {"data_path": str(folder), "val_fraction": 0.2, "seed": 0}, held_out


@pytest.mark.parametrize("form", ["same", "slash", "relative", "moved", "option"])
def test_held_out_images_are_found_whatever_the_path(trained, form, tmp_path, monkeypatch):
    folder, trained_with, held_out = trained
    path = str(folder)
    if form == "moved":
        shutil.copytree(folder, tmp_path / "elsewhere")
        path = str(tmp_path / "elsewhere")
    if form == "relative":
        monkeypatch.chdir(tmp_path)
        path = "mine"
    settings = given(data_path=path + "/" * (form == "slash"), **({"val_fraction": 0.5} if form == "option" else {}))
    assert set(open_held_out(settings, trained_with, held_out).image_names()) == set(held_out)


@pytest.mark.parametrize("path", ["mine", "mine/", "./mine"])
def test_older_checkpoints_divide_the_data_again_whatever_the_path(trained, path, tmp_path, monkeypatch):
    _, trained_with, held_out = trained
    monkeypatch.chdir(tmp_path)
    assert set(open_held_out(given(data_path=path), trained_with).image_names()) == set(held_out)


def test_held_out_images_that_are_missing_are_named_and_other_data_are_taken_whole(trained, tmp_path, capsys):
    folder, trained_with, held_out = trained
    first, *others = sorted(held_out)
    (folder / first).write_bytes(b"another image")
    dataset = open_held_out(given(data_path=str(folder)), trained_with, held_out)
    assert set(dataset.image_names()) == set(others)
    assert f"1 of {len(held_out)} images that the training held out" in (err := capsys.readouterr().err)
    assert f"'{first}'" in err
    other = make_unsplit(tmp_path / "other", 5)
    for file in other.glob("*.png"):
        Image.new("RGB", Image.open(file).size).save(file, compress_level=0)
    assert len(open_held_out(given(data_path=str(other)), trained_with, held_out)) == 5
    assert "images that the training held out" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_held_out_images(trained):
    folder, _, held_out = trained
    settings = given(data_path=str(folder), val_fraction=0.7)
    train_set, val_set = open_training_data(settings, seed=5, held_out=held_out)
    assert set(val_set.image_names()) == set(held_out) and len(train_set) == IMAGES - len(held_out)
