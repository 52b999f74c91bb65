"""Savers on objects with holes, of several parts and without pixels, and on images without objects."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dataset_files.layouts.labelme_files import find
from prediction.dataset_savers import CocoSaver, LabelmeSaver
from prediction.prediction import Prediction
from prediction.savers import CropSaver, MaskSaver, TableSaver, open_savers
from prediction.sources import Source
from tests.helpers.layout_checks import mask_of
from tests.helpers.thin_weights import noise_image
from train_utils.classes import ClassTable
from train_utils.errors import InputError

CLASSES = ClassTable({1: "bolt", 2: "nut/ring"}, {1: 4, 2: 9})
SIZE = (60, 90)


def masks() -> np.ndarray:
    """A ring, a rectangle in two parts, an object of one pixel, and one without any; bool [4, H, W]."""
    y, x = np.indices(SIZE)
    ring = ((y - 30) ** 2 + (x - 30) ** 2 < 20**2) & ((y - 30) ** 2 + (x - 30) ** 2 > 10**2)
    parts = (y > 5) & (y < 20) & (((x > 55) & (x < 65)) | ((x > 70) & (x < 88)))
    return np.stack((ring, parts, (y == 59) & (x == 0), np.zeros(SIZE, dtype=bool)))


def prediction(planes: np.ndarray) -> Prediction:
    codes = [coco_mask.encode(np.asfortranarray(plane)) for plane in planes]
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in map(coco_mask.toBbox, codes)], dtype=np.float32)
    number = len(codes)
    labels = np.array([2, 1, 1, 1][:number])
    return Prediction(
        noise_image(1, SIZE[::-1]),
        boxes.reshape(-1, 4),
        labels,
        [CLASSES.names[label] for label in labels.tolist()],
        np.linspace(0.9, 0.6, number, dtype=np.float32),
        codes,
        [CLASSES.category_ids[label] for label in labels.tolist()],
    )


@pytest.fixture
def source(tmp_path: Path) -> Source:
    noise_image(1, SIZE[::-1]).save(tmp_path / "a.jpg")
    return Source(tmp_path / "a.jpg", "sub/a.jpg", "sub/a", id=7)


def read_back(folder: Path) -> dict:
    (split,) = find(folder)
    converted = split.convert()
    assert not converted.problems.counts
    return converted.content


def test_labelme_gets_holes_as_masks_and_parts_as_a_group(tmp_path: Path, source: Source) -> None:
    folder = tmp_path / "labelme"
    saver = LabelmeSaver(folder, [source], CLASSES)
    saver.add(source, prediction(masks()))
    assert "labelme" in saver.close()
    written = json.loads((folder / "sub" / "a.json").read_text())
    assert {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"} == set(written)
    kinds = [(shape["label"], shape["shape_type"], shape["group_id"]) for shape in written["shapes"]]
    ring, pair, pixel = ("nut/ring", "mask", None), ("bolt", "polygon", 2), ("bolt", "polygon", None)
    assert kinds == [ring, pair, pair, pixel]
    assert written["shapes"][0]["points"] == [[11.0, 11.0], [49.0, 49.0]]  # first and last pixel, as labelme has it
    content = read_back(folder)
    assert [category["name"] for category in content["categories"]] == ["bolt", "nut/ring"]
    found = [mask_of(annotation["segmentation"], SIZE) for annotation in content["annotations"]]
    assert len(found) == 3 and all(np.array_equal(one, other) for one, other in zip(found, masks()))
    assert [image["file_name"] for image in content["images"]] == ["sub/a.jpg"]


def test_images_without_objects_are_part_of_both_datasets(tmp_path: Path, source: Source) -> None:
    nothing = prediction(masks()[:0])
    for saver in (LabelmeSaver(tmp_path / "l", [source], CLASSES), CocoSaver(tmp_path / "c", CLASSES)):
        saver.add(source, nothing)
        saver.close()
    assert len(read_back(tmp_path / "l")["images"]) == 1
    content = json.loads((tmp_path / "c" / "annotations.json").read_text())
    assert content["images"] == [{"id": 7, "file_name": "sub/a.jpg", "height": 60, "width": 90}]
    assert content["annotations"] == [] and [c["id"] for c in content["categories"]] == [4, 9]


def test_objects_without_pixels_are_rows_of_the_table_but_no_crops(tmp_path: Path, source: Source) -> None:
    table, crops, plane = TableSaver(tmp_path / "t.csv"), CropSaver(tmp_path), MaskSaver(tmp_path)
    for saver in (table, crops, plane):
        saver.add(source, prediction(masks()))
        saver.close()
    assert [row.split(",")[-2] for row in (tmp_path / "t.csv").read_text().splitlines()[1:]][-2:] == ["1", "0"]
    assert sorted(path.name for path in (tmp_path / "sub").glob("a_*.png")) == [
        "a_001_nut-ring.png", "a_002_bolt.png", "a_003_bolt.png"
    ]  # fmt: skip
    assert sorted(np.unique(np.array(Image.open(tmp_path / "sub" / "a.png"))).tolist()) == [0, 1, 2, 3]


def test_no_two_objects_are_cut_out_into_one_file(tmp_path: Path, source: Source) -> None:
    saver, found = CropSaver(tmp_path / "crops"), prediction(masks()[:2])
    for name, class_name in (("a", "001_bolt"), ("a_001", "bolt"), ("b", "\u6f22" * 90), ("c", "..")):
        found.names = [class_name] * 2
        saver.add(Source(source.path, f"{name}.jpg", name), found)
    assert len(list((tmp_path / "crops").iterdir())) == 8


def test_corrected_labelme_files_are_not_overwritten(tmp_path: Path, source: Source) -> None:
    (tmp_path / "labelme" / "sub").mkdir(parents=True)
    (tmp_path / "labelme" / "sub" / "a.json").write_text("corrected")
    with pytest.raises(InputError, match="a.json: exists already, perhaps corrected by hand"):
        open_savers(["labelme"], tmp_path, [source], CLASSES)
    assert (tmp_path / "labelme" / "sub" / "a.json").read_text() == "corrected"


def test_images_in_datasets_are_links_to_the_files(tmp_path: Path, source: Source) -> None:
    saver = CocoSaver(tmp_path / "coco", CLASSES)
    saver.add(source, prediction(masks()))
    placed = tmp_path / "coco" / "images" / "sub" / "a.jpg"
    assert placed.read_bytes() == source.path.read_bytes() and os.path.samefile(placed, source.path)


def test_an_image_under_a_foreign_suffix_is_written_under_its_own(tmp_path: Path, source: Source) -> None:
    foreign = Source(source.path.rename(tmp_path / "a.dat"), "a.dat", "a")
    saver = CocoSaver(tmp_path / "coco", CLASSES)
    saver.add(foreign, prediction(masks()))
    saver.close()
    (placed,) = (tmp_path / "coco" / "images").iterdir()
    assert placed.name in json.loads((tmp_path / "coco" / "annotations.json").read_text())["images"][0]["file_name"]
    assert placed.suffix == ".jpg"  # it holds a JPEG
