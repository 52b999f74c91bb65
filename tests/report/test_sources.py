"""What a report is made of: the training split beside the validation split, and the statistics of both."""

import json
from pathlib import Path

import pytest

from report.data_statistics import statistics_of, statistics_of_dataset
from report.eval_data import make_eval_data
from train_utils.demo_dataset import make_demo_dataset
from train_utils.open_data import open_held_out, open_training_beside
from train_utils.options import DataSettings

IMAGES = 12


def coco_content(dataset) -> dict:
    truth = dataset.coco
    return {
        "images": truth.loadImgs(truth.getImgIds()),
        "annotations": truth.loadAnns(truth.getAnnIds()),
        "categories": truth.loadCats(truth.getCatIds()),
    }


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    make_demo_dataset(tmp_path / "data", num_train=IMAGES, num_val=4)
    return tmp_path / "data"


def test_the_training_split_stands_beside_the_validation_split(drawn: Path):
    settings = DataSettings(data_path=str(drawn))
    held_out = open_held_out(settings, {})
    training = open_training_beside(settings, held_out)
    assert len(held_out) == 4 and len(training) == IMAGES and training.training
    content = json.loads((drawn / "annotations" / "instances_train2017.json").read_text())
    statistics = statistics_of_dataset(training, [1, 2, 3])
    counts = [sum(a["category_id"] == k for a in content["annotations"]) for k in (1, 2, 3)]
    assert statistics.class_counts.tolist() == counts and statistics.images == IMAGES
    areas = sorted(a["area"] ** 0.5 for a in content["annotations"])
    assert sorted(statistics.sizes) == pytest.approx(areas, rel=1e-4)


def test_of_data_that_are_not_split_training_is_what_was_not_held_out(drawn: Path, tmp_path: Path):
    whole = tmp_path / "whole"
    whole.mkdir()
    (drawn / "train2017").rename(whole / "images")
    (drawn / "annotations" / "instances_train2017.json").rename(whole / "result.json")
    trained_with = {"data_path": str(whole), "val_fraction": 0.25, "seed": 0}
    settings = DataSettings(data_path=str(whole))
    settings.given = {"data_path"}
    held_out = open_held_out(settings, trained_with)
    training = open_training_beside(settings, held_out)
    names = [set(held_out.image_names()), set(training.image_names())]
    assert all(names) and not names[0] & names[1] and len(names[0] | names[1]) == IMAGES


def test_without_a_training_split_there_is_none(drawn: Path):
    settings = DataSettings(val_json=str(drawn / "annotations" / "instances_val2017.json"))
    settings.given = {"val_json"}
    held_out = open_held_out(settings, {})
    assert len(held_out) == 4 and open_training_beside(settings, held_out) is None


def test_pascal_voc_has_both_splits(data_folder: Path):
    settings = DataSettings(data_path=str(data_folder / "voc_tiny" / "VOCdevkit"))
    held_out = open_held_out(settings, {})
    training = open_training_beside(settings, held_out)
    assert "train" in str(training.source) and len(training) > 5
    category_ids = sorted(held_out.category_ids.values())
    by_dataset = statistics_of_dataset(held_out, category_ids)
    by_scene = statistics_of(make_eval_data(coco_content(held_out), {"segm": []}, {}))
    assert by_dataset.class_counts.tolist() == by_scene.class_counts.tolist()
    assert (by_dataset.together == by_scene.together).all()
    assert sorted(by_dataset.sizes) == pytest.approx(sorted(by_scene.sizes), rel=1e-5)
