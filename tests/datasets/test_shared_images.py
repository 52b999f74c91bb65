"""Validation images that are trained on are counted: the same file, a link, or a copy; and nothing else is."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dataset_files import shared_images
from dataset_files.shared_images import HEAD
from tests.helpers.coco_writers import write_cvat
from tests.helpers.layout_writers import SAMPLES, write_yolo
from train_utils.open_data import open_training_data
from train_utils.options import DataSettings


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def warnings_of(capsys: pytest.CaptureFixture, **given: object) -> list[str]:
    settings = DataSettings(**given)
    settings.given = set(given)
    open_training_data(settings, seed=0)
    return [line for line in capsys.readouterr().err.splitlines() if "trained on" in line]


def test_files_links_and_copies_are_shared_and_files_of_equal_size_are_not(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3 * HEAD)
    files = {name: tmp_path / name for name in ("a", "b", "other head", "other tail", "shorter", "link", "copy")}
    for name in ("a", "b", "copy"):
        files[name].write_bytes(content[::-1] if name == "b" else content)
    files["other head"].write_bytes(b"xy" + content[2:])
    files["other tail"].write_bytes(content[:-2] + b"xy")
    files["shorter"].write_bytes(content[:-1])
    os.link(files["b"], files["link"])
    first = [files["a"], files["b"], tmp_path / "gone"]
    second = [*(files[name] for name in ("other head", "other tail", "shorter", "link", "copy")), tmp_path / "gone"]
    assert shared_images.shared_images(first, second) == [(files["a"], files["copy"]), (files["b"], files["link"])]
    assert shared_images.shared_images(second, second[:2]) == [(path, path) for path in second[:2]]
    assert shared_images.shared_images([], second) == shared_images.shared_images(second, []) == []


def test_few_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / str(number) for number in range(100)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(1000 + number // 2))
    read: list[Path] = []
    head_of = shared_images.head_of
    monkeypatch.setattr(shared_images, "head_of", lambda path: read.append(path) or head_of(path))
    assert len(shared_images.shared_images(paths[:51], paths[50:])) == 1 and read == []
    assert len(shared_images.shared_images(paths[1:50], [paths[50], paths[0]])) == 1
    assert sorted(read) == sorted(paths[:2])


def test_splits_of_one_folder_and_copies_are_named_with_their_number(tmp_path: Path, capsys) -> None:
    write_yolo(tmp_path, SAMPLES)
    assert warnings_of(capsys, data_path=str(tmp_path)) == []
    shutil.copy(tmp_path / "images" / "train" / "a.jpg", tmp_path / "images" / "val" / "copy.jpg")
    (line,) = warnings_of(capsys, data_path=str(tmp_path))
    assert "mine.yaml: 1 of 3 validation images are also trained on" in line and "copy.jpg is " in line
    text = (tmp_path / "mine.yaml").read_text().replace("images/val", "images/train")
    (tmp_path / "mine.yaml").write_text(text)
    (line,) = warnings_of(capsys, data_path=str(tmp_path))
    assert "3 of 4 validation images are also trained on" in line  # one has no object, and is not trained on


def test_validation_file_that_is_a_part_of_the_training_file_is_named(tmp_path: Path, capsys) -> None:
    for folder, samples in (("train", SAMPLES), ("val", SAMPLES[:2])):
        write_cvat(tmp_path / folder, samples)
        (source,) = (tmp_path / folder).rglob("*.json")
        source.rename(tmp_path / f"{folder}.json")
    images = next(path.parent for path in (tmp_path / "train").rglob("a.jpg"))
    files = {"train_json": str(tmp_path / "train.json"), "val_json": str(tmp_path / "val.json")}
    (line,) = warnings_of(capsys, **files, image_folder=str(images))
    assert "val.json: 2 of 2 validation images are also trained on" in line
