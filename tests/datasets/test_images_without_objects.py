"""Images without annotations: left out and counted, or with --keep-empty trained on as background."""

import re
from pathlib import Path

import pytest

from dataset_files.conversion_store import open_split_index
from dataset_files.dataset import ItemPlan
from dataset_files.layouts.find import find_layout
from my_dataset_coco import CocoDetection
from my_dataset_voc import VOCInstances
from tests.helpers.broken_data import edit, make_coco, make_voc, xml
from tests.helpers.coco_writers import COCO_WRITERS
from tests.helpers.layout_writers import SAMPLES, WRITERS
from train_utils.errors import InputError
from train_utils.open_data import open_training_data
from train_utils.options import DataSettings


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(root: Path, **given) -> DataSettings:
    made = DataSettings(data_path=str(root), **given)
    made.given = {"data_path", *given}
    return made


def without_annotations(*image_ids: int):
    def change(content: dict) -> None:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in image_ids]

    return change


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Image 1 has objects, 2 has nothing, 3 crowds alone, 4 invalid boxes alone."""
    make_coco(tmp_path / "data")
    edit(without_annotations(2))(tmp_path)
    edit(lambda c: [a.update(iscrowd=1) for a in c["annotations"] if a["image_id"] == 3])(tmp_path)
    edit(lambda c: [a.update(bbox=[1, 1, float("inf"), 4]) for a in c["annotations"] if a["image_id"] == 4])(tmp_path)
    return tmp_path / "data"


def ids(dataset: CocoDetection | VOCInstances) -> list[int]:
    return [dataset.image_id(i) for i in range(len(dataset))]


def test_only_images_without_any_annotation_are_background(coco):
    """Not those of crowds, nor those whose objects cannot be used: there is something in them."""
    plain = CocoDetection(coco, "train", plan=ItemPlan(skip_bad=True))
    assert ids(plain) == [1] and plain.counts()[3:5] == (3, 0)
    kept = CocoDetection(coco, "train", plan=ItemPlan(skip_bad=True, keep_empty=True))
    assert ids(kept) == [1, 2] and kept.counts()[3:5] == (2, 1)
    assert ids(CocoDetection(coco, "val", plan=ItemPlan(keep_empty=True))) == [5, 6]


def test_an_item_of_background_has_no_objects(coco):
    image, target = CocoDetection(coco, "train", plan=ItemPlan(skip_bad=True, keep_empty=True))[1]
    assert image.shape == (3, 64, 64) and target["image_id"] == 2
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,) and len(target["masks"]) == 0
    assert target["masks"].size == (64, 64)


def test_the_numbers_kept_and_left_out_are_printed(coco, capsys):
    open_training_data(settings(coco, skip_bad=True), seed=0)
    assert "1 images to train on" in (out := capsys.readouterr().out)
    assert "3 images without objects are left out\n" in out
    open_training_data(settings(coco, skip_bad=True, keep_empty=True), seed=0)
    assert "2 images to train on" in (out := capsys.readouterr().out)
    assert "2 images without objects are left out, 1 kept as background\n" in out


def test_background_alone_is_refused(tmp_path):
    make_coco(tmp_path / "data")
    edit(without_annotations(1, 2, 3, 4))(tmp_path)
    with pytest.raises(InputError, match="no image with a usable object to train on"):
        open_training_data(settings(tmp_path / "data", keep_empty=True), seed=0)


def test_voc_keeps_images_whose_xml_has_no_object(tmp_path):
    make_voc(tmp_path / "data")
    xml(lambda text: re.sub("<object>.*</object>", "", text, flags=re.DOTALL), "a")(tmp_path)
    xml(lambda text: text.replace("</name>", "</name><difficult>1</difficult>"), "b")(tmp_path)
    assert ids(VOCInstances(tmp_path / "data")) == [3, 4]
    kept = VOCInstances(tmp_path / "data", plan=ItemPlan(keep_empty=True))
    assert ids(kept) == [1, 3, 4] and kept.counts()[3:5] == (1, 1) and len(kept[0][1]["labels"]) == 0
    assert kept.classes_of_images()[0] == []


@pytest.mark.parametrize("layout", COCO_WRITERS | WRITERS)
def test_background_is_kept_in_every_layout(layout, tmp_path):
    (COCO_WRITERS | WRITERS)[layout](tmp_path / "data", SAMPLES)

    def names(keep_empty: bool) -> set[str]:
        splits = find_layout(tmp_path / "data").splits
        datasets = [CocoDetection(open_split_index(split), plan=ItemPlan(keep_empty=keep_empty)) for split in splits]
        return {dataset.image_path(i).name for dataset in datasets for i in range(len(dataset))}

    with_objects = {sample.name for sample in SAMPLES if sample.things}
    assert names(False) == with_objects and names(True) == with_objects | {"c c.jpg"}


def test_classes_of_training_images_are_those_of_objects_trained_on(coco):
    dataset = CocoDetection(coco, "train", plan=ItemPlan(skip_bad=True, keep_empty=True))
    assert dataset.classes_of_images() == [[1, 2], []]
    assert CocoDetection(coco, "val").classes_of_images() == [[1, 2], [1, 2]]
