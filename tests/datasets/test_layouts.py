"""Foreign layouts: the same images and objects arrive from every one, and each reader claims its own layout only."""

import json
from pathlib import Path

import numpy as np
import pytest

from dataset_files.layouts import (
    cvat_files,
    labelme_files,
    mask_folders,
    via_files,
    voc_variants,
    yolo_files,
)
from dataset_files.layouts.find import find_layout
from tests.helpers.layout_checks import ISAT, check_same, mask_of
from tests.helpers.layout_writers import SAMPLES, SPLIT, WRITERS

MODULES = {
    "labelme": labelme_files, "labelme in split folders": labelme_files, "ISAT": ISAT,
    "CVAT for images": cvat_files, "YOLO": yolo_files,
    "YOLO by Roboflow": yolo_files, "VIA 1": via_files, "VIA 2": via_files, "labelme2voc": voc_variants,
    "CVAT segmentation mask": voc_variants, "VOC with own classes": voc_variants, "Penn-Fudan": mask_folders,
    "masks per class": mask_folders, "masks per object": mask_folders, "Data Science Bowl 2018": mask_folders,
}  # fmt: skip
# pycocotools' decoder and numpy 2 do not yet agree on what __array__ takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_holds_the_same_images_and_objects(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, SAMPLES)
    splits = MODULES[layout].find(tmp_path)
    assert [split.name for split in splits] == (["train", "val"] if layout in SPLIT else [""])
    parts = [SAMPLES[:4], SAMPLES[4:]] if layout in SPLIT else [SAMPLES]
    for split, samples in zip(splits, parts):
        check_same(split.convert(), split.image_folder, samples, layout)
        assert split.source.exists() and all(path.exists() for path in split.inputs)


@pytest.mark.parametrize("layout", WRITERS)
def test_no_other_reader_claims_a_layout(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, SAMPLES)
    for module in set(MODULES.values()) - {MODULES[layout]}:
        assert module.find(tmp_path) == []


def test_no_reader_claims_coco_or_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    coco = tmp_path / "coco"
    for folder in ("train2017", "val2017", "annotations"):
        (coco / folder).mkdir(parents=True)
    images = [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}]
    content = {"images": images, "annotations": [], "categories": []}
    roboflow = tmp_path / "roboflow" / "train"
    roboflow.mkdir(parents=True)
    for path in (coco / "annotations" / "instances_train2017.json", roboflow / "_annotations.coco.json"):
        path.write_text(json.dumps(content))
    for module in set(MODULES.values()):
        for folder in ("empty", "coco", "roboflow", "missing"):
            assert module.find(tmp_path / folder) == []


def test_data_in_a_folder_inside_are_pointed_to(tmp_path: Path) -> None:
    WRITERS["YOLO"](tmp_path / "inside", SAMPLES)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError) as raised:
        find_layout(tmp_path)
    assert str(raised.value).endswith(f"; give --data-path the folder inside: {tmp_path / 'inside'} (YOLO)")


def test_outlines_cover_the_same_pixels_as_masks() -> None:
    """The writers' own claim: the outline with corridors covers the same pixels."""
    things = [(thing, sample.size) for sample in SAMPLES for thing in sample.things]
    assert len(things) == 8
    for thing, size in things:
        flat = [float(v) for point in thing.outline() for v in point]
        assert np.array_equal(mask_of([flat], size), thing.mask(size))
