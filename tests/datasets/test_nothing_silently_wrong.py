"""What once trained or scored wrongly without a word: numberings, crowds, ids, EXIF orientations, too many objects."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from my_dataset_coco import CocoDetection
from tests.helpers.coco_writers import content, write_coco_2017, write_cvat
from tests.helpers.commands import run, run_thin, succeeded
from tests.helpers.layout_writers import SAMPLES, Sample, Thing, write_image, write_json
from tools import inspect_dataset
from train_utils.classes import ClassTable
from train_utils.errors import InputError
from train_utils.metrics.coco_evaluation import coco_results, score_results
from train_utils.open_data import open_training_data
from train_utils.options import DataSettings

TRAIN = ["--data-path", "data", "--max-steps", "1", "--pretrain", "False", "--rois-per-image", "8", "--device", "cpu"]
TRAIN += ["--workers", "0", "--min-size", "32", "--max-size", "48"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


def settings(root: Path, **given) -> DataSettings:
    made = DataSettings(data_path=str(root), **given)
    made.given = {"data_path", *given}
    return made


def perfect_metrics(dataset: CocoDetection, classes: ClassTable) -> list[float]:
    """The 12 numbers for masks where a dataset's own objects are the detections, labelled as `classes` has them."""
    detections = {}
    for i in range(len(dataset)):
        target = dataset.target(i)
        from network_files.masks.rle import compress, encode_crop

        size = dataset.get_height_and_width(i)
        own = [k for k in range(len(target["labels"])) if not target["iscrowd"][k]]
        crops = target["masks"].all_crops()
        codes = [encode_crop(c.astype(bool), x, y, *size) for x, y, c in (crops[k] for k in own)]
        detections[dataset.image_id(i)] = {
            "labels": target["labels"].numpy()[own],
            "scores": np.linspace(0.9, 0.5, len(own)),
            "boxes": target["boxes"].numpy()[own],
            "codes": compress(codes),
        }
    results = coco_results(detections, classes.category_ids)
    return score_results(dataset.coco, results["segm"], "segm", classes).stats


def reverse_ids(whole: dict) -> None:
    last = len(whole["categories"]) + 1
    for category in whole["categories"]:
        category["id"] = last - category["id"]
    for annotation in whole["annotations"]:
        annotation["category_id"] = last - annotation["category_id"]


def test_splits_that_number_classes_otherwise_are_matched_by_name(tmp_path: Path):
    write_coco_2017(tmp_path, SAMPLES)
    edit(tmp_path / "annotations" / "instances_val2017.json", reverse_ids)
    train_set, val_set = open_training_data(settings(tmp_path), seed=0)
    assert val_set.class_names == train_set.class_names
    classes = ClassTable.of_dataset(train_set)
    names = {classes.names[label] for i in range(len(val_set)) for label in val_set.target(i)["labels"].tolist()}
    assert names == {"cat", "traffic light"}
    assert perfect_metrics(val_set, classes)[0] == pytest.approx(1.0)


def test_a_class_that_only_one_split_has_is_named(tmp_path: Path, capsys):
    write_coco_2017(tmp_path, SAMPLES)
    edit(tmp_path / "annotations" / "instances_val2017.json", lambda w: w["categories"][0].update(name="lynx"))
    open_training_data(settings(tmp_path), seed=0)
    assert "objects of classes that the training data lacks are left out: 'lynx'" in capsys.readouterr().err


def test_splits_without_a_common_class_stop(tmp_path: Path):
    write_coco_2017(tmp_path, SAMPLES)
    edit(
        tmp_path / "annotations" / "instances_val2017.json",
        lambda w: [c.update(name=f"{c['name']}s") for c in w["categories"]],
    )
    with pytest.raises(InputError, match="none of its classes .* is known to the training data"):
        open_training_data(settings(tmp_path), seed=0)


def test_crowds_are_counted_and_mostly_crowds_stop_with_the_option(tmp_path: Path):
    write_coco_2017(tmp_path / "data", SAMPLES)
    train_file = tmp_path / "data" / "annotations" / "instances_train2017.json"
    edit(train_file, lambda w: w["annotations"][0].update(iscrowd=1))
    some = run_thin(tmp_path, "train.py", *TRAIN, "--test-only")
    assert "1 of 5 objects are crowds and are not trained on; 1 images without objects are left out" in some.out
    edit(train_file, lambda w: [a.update(iscrowd=1) for a in w["annotations"]])
    stopped = run_thin(tmp_path, "train.py", *TRAIN)
    assert stopped.code == 2
    assert "5 of 5 objects are crowds (iscrowd: 1), which are not trained on" in stopped.said
    assert stopped.said.endswith("give --crowds-are-objects")
    assert run_thin(tmp_path, "train.py", *TRAIN, "--crowds-are-objects").code == 0


def test_the_report_says_what_would_stop_the_training(tmp_path: Path, capsys):
    write_cvat(tmp_path, SAMPLES)
    edit(tmp_path / "annotations" / "instances_default.json", lambda w: [a.update(iscrowd=1) for a in w["annotations"]])
    with pytest.raises(InputError, match="training stops before its first step"):
        inspect_dataset.main(inspect_dataset.ReportSettings.parse(None, ["--data-path", str(tmp_path)]))
    training, validation = capsys.readouterr().out.split("validation:")
    assert "wrong (stops the training): 4 of 4 objects are crowds" in training and "nothing is wrong" not in training
    assert "nothing is wrong" in validation


def test_the_contact_sheet_replaces_no_image(tmp_path: Path, capsys):
    write_cvat(tmp_path, SAMPLES)
    (image,) = list(tmp_path.rglob(SAMPLES[0].name))
    before = image.read_bytes()
    words = ["--data-path", str(tmp_path), "--show", "2", "--output", str(image)]
    with pytest.raises(InputError, match="would be overwritten"):
        inspect_dataset.main(inspect_dataset.ReportSettings.parse(None, words))
    assert image.read_bytes() == before


def test_coco_files_that_no_split_uses_are_named(tmp_path: Path, capsys):
    write_coco_2017(tmp_path, SAMPLES)
    write_json(tmp_path / "annotations" / "instances_default.json", content(SAMPLES[:1]))
    open_training_data(settings(tmp_path), seed=0)
    assert "COCO files that are not used; " in (said := capsys.readouterr().err) and "instances_default.json" in said


def test_objects_without_a_mask_are_crowds_in_the_ground_truth(tmp_path: Path):
    write_coco_2017(tmp_path, SAMPLES)
    edit(
        tmp_path / "annotations" / "instances_val2017.json",
        lambda w: w["annotations"][0].update(segmentation=[]),
    )
    _, val_set = open_training_data(settings(tmp_path), seed=0)
    crowds = [a for a in val_set.coco_content()["annotations"] if a["iscrowd"]]
    assert len(crowds) == 2  # one by the file's own word
    assert perfect_metrics(val_set, ClassTable.of_dataset(val_set))[0] == pytest.approx(1.0)


def test_ids_from_0_and_a_missing_iscrowd_score_1(tmp_path: Path):
    write_coco_2017(tmp_path, SAMPLES)

    def from_0(whole: dict) -> None:
        for number, annotation in enumerate(whole["annotations"]):
            annotation.pop("iscrowd")
            annotation.update(id=number, image_id=annotation["image_id"] - 1)
        for image in whole["images"]:
            image["id"] -= 1

    edit(tmp_path / "annotations" / "instances_val2017.json", from_0)
    _, val_set = open_training_data(settings(tmp_path), seed=0)
    assert perfect_metrics(val_set, ClassTable.of_dataset(val_set))[0] == pytest.approx(1.0)


@pytest.mark.parametrize("flaw", [{"area": None}, {"area": "12"}, {"area": float("nan")}])
def test_flawed_areas_become_those_of_the_masks(flaw: dict, tmp_path: Path):
    write_coco_2017(tmp_path, SAMPLES)
    edit(tmp_path / "annotations" / "instances_val2017.json", lambda w: w["annotations"][0].update(flaw))
    _, val_set = open_training_data(settings(tmp_path), seed=0)
    areas = {a["id"]: a["area"] for a in val_set.coco_content()["annotations"]}
    assert areas[1] == SAMPLES[4].things[0].mask(SAMPLES[4].size).sum()


def test_an_orientation_that_the_size_does_not_confirm_is_named_and_the_option_turns(tmp_path: Path, capsys):
    write_coco_2017(tmp_path, SAMPLES)
    name = SAMPLES[0].name
    exif = Image.Exif()
    exif[0x0112] = 3
    path = tmp_path / "train2017" / name
    Image.open(path).save(path, exif=exif, quality=95)
    stored, _ = open_training_data(settings(tmp_path), seed=0)
    assert "images whose EXIF orientation their size does not confirm" in capsys.readouterr().err
    turned, _ = open_training_data(settings(tmp_path, exif="apply"), seed=0)
    assert "EXIF" not in capsys.readouterr().err
    for dataset in (stored, turned):
        dataset.transforms = None
    images = [dataset[0][0] for dataset in (stored, turned)]
    assert np.array_equal(images[0].numpy(), images[1].flip(-1, -2).numpy())


def test_more_objects_than_can_be_found_are_named(tmp_path: Path, capsys):
    many = [Thing("cat", [(x, y, x + 3, y + 3)]) for x in range(0, 60, 5) for y in range(0, 55, 5)]
    samples = [Sample("a.png", (60, 60), many), *SAMPLES[1:]]
    write_coco_2017(tmp_path, samples)
    open_training_data(settings(tmp_path), seed=0)
    assert f"up to {len(many)} objects in an image" in capsys.readouterr().err


def test_predictions_take_ids_from_an_annotation_file_by_name(tmp_path: Path):
    write_cvat(tmp_path / "data", SAMPLES)
    train = [*TRAIN, "--val-fraction", "0.4"]
    assert run_thin(tmp_path, "train.py", *train).code == 0
    file = tmp_path / "data" / "annotations" / "instances_default.json"
    words = ["--device", "cpu", "--save-json", "--box-thresh", "0", "--img-path", "data/images/default"]
    outcome = run_thin(tmp_path, "predict.py", *words, "--annotation-file", str(file))
    assert outcome.code == 0, outcome.said
    ids = {image["file_name"]: image["id"] for image in json.loads(file.read_text())["images"]}
    found = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert found and all(ids[entry["file_name"]] == entry["image_id"] for entry in found)
    edit(file, lambda w: w["images"].pop(0))
    outcome = run_thin(tmp_path, "predict.py", *words, "--annotation-file", str(file))
    assert outcome.code == 2 and "is not in" in outcome.said


def test_data_without_a_split_are_divided_by_name_the_same_way_for_all(tmp_path: Path):
    samples = [Sample(f"{k}_jpg.rf.{k:04x}{c}.jpg", (40, 40), [Thing("cat" if k % 3 else "dog", [(5, 5, 30, 30)])])
               for k in range(30) for c in "ab"]  # fmt: skip
    for sample in samples:
        write_image(tmp_path / "images" / sample.name, sample)
    write_json(tmp_path / "all.json", content(samples))
    train_set, val_set = open_training_data(settings(tmp_path), seed=0)
    train, val = set(train_set.image_names()), set(val_set.image_names())
    assert train.isdisjoint(val) and len(train | val) == 60 and 4 <= len(val) <= 24
    originals = [{name.split("_jpg.rf.")[0] for name in side} for side in (train, val)]
    assert originals[0].isdisjoint(originals[1])  # copies of an image stay together
    extra = Sample("new.jpg", (40, 40), [Thing("cat", [(5, 5, 30, 30)])])
    write_image(tmp_path / "images" / extra.name, extra)
    write_json(tmp_path / "all.json", content([extra, *samples]))
    _, again = open_training_data(settings(tmp_path), seed=0)
    assert set(again.image_names()) - {"new.jpg"} == val  # no image changes sides
    _, other = open_training_data(settings(tmp_path), seed=1)
    assert set(other.image_names()) - {"new.jpg"} != val


def test_the_report_shows_a_folder_before_training(tmp_path: Path):
    write_cvat(tmp_path / "data", SAMPLES)
    done = succeeded(run(tmp_path, "tools/inspect_dataset.py", "data", "--show", "4"))
    assert "layout: COCO, 3 classes: cat, dog, traffic light" in done.out
    assert "objects are crowds and are not trained on" in done.out and "nothing is wrong" in done.out
    assert Image.open(tmp_path / "data_sheet.png").size[0] > 300


def test_named_files_are_scored_whole_and_remembered(tmp_path: Path):
    write_coco_2017(tmp_path / "data", SAMPLES)
    files = {name: str(tmp_path / "data" / "annotations" / f"instances_{name}2017.json") for name in ("train", "val")}
    words = [*TRAIN[2:], "--train-json", files["train"], "--val-json", files["val"]]
    assert run_thin(tmp_path, "train.py", *words).code == 0
    for given in ([], ["--val-json", files["val"]]):
        outcome = run_thin(tmp_path, "validation.py", "--device", "cpu", "--workers", "0", *given)
        assert outcome.code == 0, outcome.said
        assert "2 images" in (tmp_path / "save_weights" / "record_mAP.txt").read_text()
    assert run_thin(tmp_path, "predict.py", "--device", "cpu").code == 0
