"""The same six images with eight objects in every layout: equal targets, equal metrics, and the scripts run on each."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_files.conversion_store import open_split_index
from dataset_files.image_headers import check_images
from dataset_files.layouts.find import find_layout
from my_dataset_coco import CocoDetection
from tests.helpers.coco_writers import COCO_WRITERS
from tests.helpers.commands import run_thin
from tests.helpers.layout_writers import ONE_CLASS, SAMPLES, WITH_CROWDS, WRITERS, Sample, write_image
from train_utils.classes import ClassTable
from train_utils.metrics.coco_evaluation import coco_results, score_results

ALL_WRITERS = COCO_WRITERS | WRITERS
HOLDS_CROWDS = (*COCO_WRITERS, *WITH_CROWDS)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(root: Path) -> list[CocoDetection]:
    """All splits, read as for validation, which keeps every image and every crowd."""
    return [CocoDetection(open_split_index(split), "val") for split in find_layout(root).splits]


def write(layout: str, root: Path) -> Path:
    ALL_WRITERS[layout](root, SAMPLES)
    return root


@pytest.mark.parametrize("layout", ALL_WRITERS)
def test_targets_are_equal_in_every_layout(layout: str, tmp_path: Path):
    items = {}
    for dataset in opened(write(layout, tmp_path / "data")):
        assert dataset.problems.wrong() == []
        for i in range(len(dataset)):
            image, target = dataset[i]
            items[dataset.image_path(i).name] = image, target, dataset.class_names
    assert sorted(items) == sorted(sample.name for sample in SAMPLES)
    for sample in SAMPLES:
        image, target, names = items[sample.name]
        assert tuple(image.shape) == (3, *sample.size)
        found = target["masks"].dense().numpy().astype(bool)
        assert len(found) == len(sample.things)
        for thing in sample.things:
            x, y, width, height = thing.box()
            apart = np.abs(target["boxes"].numpy() - (x, y, x + width, y + height)).max(axis=1)
            (k,) = np.flatnonzero(apart < 0.01)
            assert np.array_equal(found[k], thing.mask(sample.size))
            assert names[int(target["labels"][k])] == ONE_CLASS.get(layout, thing.class_name)
            assert int(target["iscrowd"][k]) == (thing.crowd and layout in HOLDS_CROWDS)


@pytest.mark.parametrize("layout", [layout for layout in ALL_WRITERS if layout not in ONE_CLASS])
def test_metrics_are_equal_in_every_layout(layout: str, tmp_path: Path):
    """Imperfect detections, found by file name, have in each layout the metrics that they have in a COCO file."""
    datasets = opened(write(layout, tmp_path / "data"))
    expected = reference(tmp_path / "reference", layout in HOLDS_CROWDS, is_split=len(datasets) > 1)
    assert metrics(datasets) == metrics(expected)


def reference(root: Path, crowds: bool, is_split: bool) -> list[CocoDetection]:
    samples = SAMPLES if crowds else [
        Sample(s.name, s.size, [type(t)(t.class_name, t.parts, t.hole) for t in s.things]) for s in SAMPLES
    ]  # fmt: skip
    COCO_WRITERS["COCO 2017" if is_split else "CVAT COCO"](root, samples)
    return opened(root)


def metrics(datasets: list[CocoDetection]) -> list[float]:
    """The 12 numbers for boxes and masks of each split, of objects shifted by pixels, one missed and one made up."""
    numbers = []
    for dataset in sorted(datasets, key=lambda d: min(map(str, d.image_names()))):
        classes = ClassTable.of_dataset(dataset)
        labels = {name: label for label, name in classes.names.items()}
        ids = {dataset.image_path(i).name: dataset.image_id(i) for i in range(len(dataset))}
        detections = {ids[s.name]: shifted_objects(s, labels) for s in SAMPLES if s.name in ids}
        results = coco_results(detections, classes.category_ids)
        for kind in ("bbox", "segm"):
            numbers += score_results(dataset.coco, results[kind], kind, classes).stats
    return numbers


def shifted_objects(sample: Sample, labels: dict[str, int]) -> dict:
    from network_files.masks.rle import compress, encode_crop

    found = []
    for k, thing in enumerate(sample.things):
        mask = np.roll(thing.mask(sample.size), k + 1, axis=1)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        found.append((labels[thing.class_name], 0.9 - 0.1 * k, box, encode_crop(mask, 0, 0, *sample.size)))
    return {
        "labels": np.array([f[0] for f in found], dtype=np.int64),
        "scores": np.array([f[1] for f in found]),
        "boxes": np.array([f[2] for f in found], dtype=np.float32).reshape(-1, 4),
        "codes": compress([f[3] for f in found]),
    }


def test_the_reasons_of_a_reader_are_given_where_nothing_is_left(tmp_path: Path):
    """In place of those of the index, which only sees that nothing is left."""
    for content, said in (
        ({"shapes": [], "imageHeight": 9}, "annotation files without an image file (1): a.json names None"),
        ({"shapes": [{"label": "x", "shape_type": "point", "points": [[1, 1]]}], "imagePath": "b.png"},
         "no image has an object; shapes without an area (points, lines), which are left out (1): a.json, shape 1"),
    ):  # fmt: skip
        folder = tmp_path / str(len(said))
        write_image(folder / "b.png", SAMPLES[2])
        (folder / "a.json").write_text(json.dumps(content))
        with pytest.raises(ValueError) as raised:
            opened(folder)
        assert str(raised.value).startswith(f"{folder}: ") and said in str(raised.value)


def test_float_images_are_named_instead_of_read_as_black(tmp_path: Path):
    root = tmp_path / "data"
    root.mkdir()
    Image.fromarray(np.random.default_rng(0).random((40, 90), dtype=np.float32)).save(root / "a.tif")
    triangle = {"label": "x", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
    (root / "a.json").write_text(json.dumps({"shapes": [triangle], "imagePath": "a.tif"}))
    (dataset,) = opened(root)
    problems, items = check_images(dataset)
    assert (problems.counts, items) == ({"float": 1}, [0]) and problems.wrong() == ["float"]
    with pytest.raises(ValueError, match="a.tif: cannot be read as an image .*floating-point"):
        dataset[0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ALL_WRITERS)
def test_the_scripts_run_on_every_layout_without_further_options(layout: str, tmp_path: Path):
    write(layout, tmp_path / "data")
    small = ["--device", "cpu", "--workers", "0"]
    sizes = ["--min-size", "32", "--max-size", "48"]
    train = ["--data-path", "data", "--max-steps", "2", "--pretrain", "False", "--rois-per-image", "8", *small, *sizes]
    for script, words in (
        ("train.py", train),
        ("validation.py", small),
        ("predict.py", ["--device", "cpu", "--save-json"]),
    ):
        outcome = run_thin(tmp_path, script, *words)
        assert outcome.code == 0, outcome.said
        assert "Traceback" not in outcome.said
    assert (tmp_path / "predictions" / "predictions.json").is_file()
