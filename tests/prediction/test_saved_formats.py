"""predict.py over a folder: each format of --save, read back by the reader that it is for.

Two images of the same name lie in different folders, one is turned by its EXIF tag, and one cannot be read.
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from my_dataset_coco import CocoDetection
from predict import Predictor
from prediction.prediction import Prediction
from tests.helpers.commands import Outcome, assert_refused, run
from tests.helpers.thin_weights import CATEGORY_IDS, NAMES, noise_image, thin_networks, write_thin_weights
from train_utils.open_data import open_training_data
from train_utils.options import TrainSettings

ALL = ["json", "coco", "csv", "masks", "crops", "labelme"]
WORDS = ["--device", "cpu", "--weights-path", "thin.pth", "--box-thresh", "0.3"]
IMAGES = ("cat.jpg", "day 1/cat.jpg", "day 1/turned.jpg", "day 2/deep/cat.png", "day 2/plain.png")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The weights and a folder of images."""
    folder = tmp_path_factory.mktemp("formats")
    for k, name in enumerate(IMAGES):
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if "turned" in name:
            exif[0x0112] = 3  # a half turn, which no size tells
        size = (90 + 4 * k, 70)
        image = Image.new("RGB", size) if "plain" in name else noise_image(k, size)
        image.save(path, quality=95, exif=exif)
    (folder / "photos" / "broken.jpg").write_text("no image")
    with thin_networks():
        write_thin_weights(folder / "thin.pth")
        yield folder


@pytest.fixture(scope="module")
def predictor(lab: Path) -> Predictor:
    return Predictor(lab / "thin.pth", device="cpu", box_thresh=0.3)


@pytest.fixture(scope="module")
def expected(lab: Path, predictor: Predictor) -> dict[str, Prediction]:
    """The predictions by file name."""
    found = {name: predictor(lab / "photos" / name) for name in IMAGES}
    assert sum(len(prediction) for prediction in found.values()) > 20
    return found


@pytest.fixture(scope="module")
def saved(lab: Path, expected: dict[str, Prediction]) -> tuple[Path, Outcome]:
    outcome = run(lab, "predict.py", *WORDS, "--img-path", "photos", "--save", *ALL, "--output-dir", "out")
    return lab / "out", outcome


def stem(name: str) -> str:
    return os.path.splitext(name)[0]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def test_the_broken_image_is_named_and_all_others_are_drawn(saved: tuple[Path, Outcome], expected) -> None:
    folder, outcome = saved
    assert_refused(outcome, "1 of 6 files could not be read", "broken.jpg")
    assert "skipped: photos/broken.jpg: cannot be read" in outcome.out
    for name, prediction in expected.items():
        drawn = Image.open(folder / f"{stem(name)}.png")
        assert drawn.tobytes() == prediction.draw().tobytes()
        assert f"{name}: {len(prediction)} found" in outcome.out
    assert not (folder / "broken.png").exists() and "5 images" in outcome.out


def test_json_holds_coco_results_with_file_names(saved: tuple[Path, Outcome], expected) -> None:
    content = json.loads((saved[0] / "predictions.json").read_text())
    for name, prediction in expected.items():
        entries = [entry for entry in content if entry["file_name"] == name]
        ids = {entry["image_id"] for entry in entries}
        assert len(ids) == (len(entries) > 0)
        assert entries == [entry | {"file_name": name} for i in ids for entry in prediction.to_coco(i)]
    assert len({entry["image_id"] for entry in content}) >= 3


def test_csv_has_a_row_per_object(saved: tuple[Path, Outcome], expected) -> None:
    with open(saved[0] / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, expected.values()))
    for name, prediction in expected.items():
        own = [row for row in rows if row["file"] == name]
        assert [row["name"] for row in own] == prediction.names
        assert [int(row["area"]) for row in own] == prediction.masks.sum((1, 2)).tolist()
        assert [int(row["instance"]) for row in own] == list(range(1, len(own) + 1))
        for row, score, box in zip(own, prediction.scores, prediction.boxes):
            assert float(row["score"]) == pytest.approx(score, abs=1e-4)
            assert [float(row[side]) for side in ("x1", "y1", "x2", "y2")] == pytest.approx(box, abs=0.01)


def test_masks_are_16_bit_images_in_which_the_best_object_covers_the_others(saved, expected) -> None:
    for name, prediction in expected.items():
        path = saved[0] / "masks" / f"{stem(name)}.png"
        assert path.read_bytes()[24] == 16  # bits, in PNG's header
        with Image.open(path) as image:
            values = np.array(image).astype(np.int64)
        assert np.array_equal(values != 0, prediction.masks.any(axis=0))
        for k, mask in enumerate(prediction.masks, start=1):
            assert (values[mask] <= k).all() and not (values[~mask] == k).any()


def test_crops_are_transparent_outside_of_the_mask(saved, expected) -> None:
    paths = {path.relative_to(saved[0] / "crops").as_posix() for path in (saved[0] / "crops").rglob("*.png")}
    wanted = set()
    for name, prediction in expected.items():
        pixels = np.array(prediction.image)
        for k, (class_name, mask) in enumerate(zip(prediction.names, prediction.masks), start=1):
            if not mask.any():
                continue
            wanted.add(f"{stem(name)}_{k:03d}_{class_name.replace(' ', '-')}.png")
            with Image.open(saved[0] / "crops" / f"{stem(name)}_{k:03d}_{class_name.replace(' ', '-')}.png") as image:
                assert image.mode == "RGBA"
                cutout = np.array(image)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            assert np.array_equal(cutout[..., 3] == 255, mask[window]) and set(np.unique(cutout[..., 3])) <= {0, 255}
            assert np.array_equal(cutout[mask[window]][:, :3], pixels[window][mask[window]])
    assert paths == wanted


def test_pycocotools_opens_the_coco_dataset(saved, expected) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(saved[0] / "coco" / "annotations.json"))
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == {CATEGORY_IDS[k]: NAMES[k] for k in NAMES}
    images = {image["file_name"]: image for image in coco.loadImgs(coco.getImgIds())}
    assert len(images) == len(IMAGES)
    for name, prediction in expected.items():
        image = images[name]
        assert (image["height"], image["width"]) == prediction.size
        objects = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        masks = [mask for mask in prediction.masks if mask.any()]
        assert len(objects) == len(masks)
        for thing, mask in zip(objects, masks):
            assert np.array_equal(coco.annToMask(thing), mask) and thing["area"] == mask.sum()
            code = coco_mask.encode(np.asfortranarray(mask))
            assert thing["bbox"] == coco_mask.toBbox(code).tolist() and thing["iscrowd"] == 0


def opened(path: Path) -> tuple[list, CocoDetection, CocoDetection]:
    """All items of a dataset, and both its splits, as train.py opens the folder that --data-path names."""
    settings = TrainSettings(data_path=str(path), val_fraction=0.4)
    train, val = open_training_data(settings, seed=0)
    train.transforms = val.transforms = None
    return [train[i] for i in range(len(train))] + [val[i] for i in range(len(val))], train, val


def test_train_py_opens_the_coco_dataset_with_its_images(saved, expected, predictor) -> None:
    items, train, val = opened(saved[0] / "coco")
    assert sorted(train.class_names.values()) == sorted(NAMES.values())
    names = [*train.image_names(), *val.image_names()]
    check_items(dict(zip(names, items)), expected, exact=True)


def test_train_py_opens_the_labelme_folder_with_its_images(saved, expected) -> None:
    shapes = [
        shape for path in (saved[0] / "labelme").rglob("*.json") for shape in json.loads(path.read_text())["shapes"]
    ]
    assert {shape["shape_type"] for shape in shapes} == {"mask", "polygon"}
    assert any(shape["group_id"] for shape in shapes) and any(shape["group_id"] is None for shape in shapes)
    items, train, val = opened(saved[0] / "labelme")
    assert list(train.class_names.values()) == list(NAMES.values())
    names = [*train.image_names(), *val.image_names()]
    check_items(dict(zip(names, items)), expected, exact=False)


def check_items(items: dict, expected: dict[str, Prediction], exact: bool) -> None:
    """Training and validation items together hold every image with an object, as it was predicted, and its masks."""
    assert set(items) == {name for name, prediction in expected.items() if len(prediction)}
    for name, (image, target) in items.items():
        prediction = expected[name]
        difference = np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.array(prediction.image).astype(int))
        assert difference.mean() < (2 if "turned" in name else 0.01), name  # that one is written as JPEG again
        masks = [mask for mask in prediction.masks if mask.any()]
        dense = target["masks"].dense().numpy().astype(bool)
        assert len(dense) == len(masks)
        for mask, other in zip(masks, dense):
            assert np.array_equal(mask, other) if exact else iou(mask, other) >= 0.95
