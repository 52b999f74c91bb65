"""Folders as tools export them: which COCO file is which split, where its images are, and how others are named."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from dataset_files.image_files import resolve
from dataset_files.layouts import coco_layouts
from dataset_files.layouts.coco_layouts import find
from dataset_files.layouts.find import describe
from dataset_files.problems import Problems
from my_dataset_coco import CocoDetection


def write_coco(path: Path, names: list[str], padding: int = 0, **changes) -> None:
    """A COCO file; `padding` bytes in the middle make it one that is not parsed to recognise it."""
    content = {
        "info": {"description": "x"},
        "images": [{"id": i, "file_name": name, "height": 8, "width": 9} for i, name in enumerate(names, start=1)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0,
                         "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]], "note": "x" * padding}],
        "categories": [{"id": 1, "name": "ape"}],
        **changes,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8)).save(folder / name)


def found(root: Path) -> list[tuple[str, str, str]]:
    """Split, COCO file and image folder, the last two relative to the data set's folder."""
    start = root if root.is_dir() else root.parent
    return [(s.name, *(p.relative_to(start).as_posix() for p in (s.source, s.image_folder))) for s in find(root)]


# COCO files with the names in them, the images that lie there, and what is to be found.
LAYOUTS = {
    "COCO 2017": (
        {"annotations/instances_train2017.json": ["1.jpg"], "annotations/instances_val2017.json": ["1.jpg"]},
        ["train2017/1.jpg", "val2017/1.jpg"],
        [("train", "annotations/instances_train2017.json", "train2017"),
         ("val", "annotations/instances_val2017.json", "val2017")],
    ),
    "COCO, other years too": (
        {f"annotations/instances_{s}{y}.json": [f"{s}{y}.jpg"] for s in ("train", "val") for y in (2014, 2017)},
        [f"{s}{y}/{s}{y}.jpg" for s in ("train", "val") for y in (2014, 2017)],
        [("train", "annotations/instances_train2017.json", "train2017"),
         ("val", "annotations/instances_val2017.json", "val2017")],
    ),
    "COCO 2014": (
        {"annotations/instances_train2014.json": ["1.jpg"], "annotations/instances_val2014.json": ["2.jpg"]},
        ["images/train2014/1.jpg", "images/val2014/2.jpg"],
        [("train", "annotations/instances_train2014.json", "images/train2014"),
         ("val", "annotations/instances_val2014.json", "images/val2014")],
    ),
    "no year": (
        {"annotations/instances_train.json": ["1.jpg"], "annotations/instances_val.json": ["1.jpg"]},
        ["images/train/1.jpg", "images/val/1.jpg"],
        [("train", "annotations/instances_train.json", "images/train"),
         ("val", "annotations/instances_val.json", "images/val")],
    ),
    "no year, images/train2017": (
        {"annotations/instances_train.json": ["1.jpg"]}, ["images/train2017/1.jpg"],
        [("train", "annotations/instances_train.json", "images/train2017")],
    ),
    "one split alone": (
        {"annotations/instances_val2017.json": ["1.jpg"]}, ["val2017/1.jpg"],
        [("val", "annotations/instances_val2017.json", "val2017")],
    ),
    "in another folder": (
        {"coco/annotations/instances_train2017.json": ["1.jpg"]}, ["coco/images/train2017/1.jpg"],
        [("train", "coco/annotations/instances_train2017.json", "coco/images/train2017")],
    ),
    "Roboflow": (
        {f"{s}/_annotations.coco.json": ["1.jpg", "gone.jpg"] for s in ("train", "valid", "test")},
        [f"{s}/1.jpg" for s in ("train", "valid", "test")],
        [("train", "train/_annotations.coco.json", "train"), ("val", "valid/_annotations.coco.json", "valid"),
         ("test", "test/_annotations.coco.json", "test")],
    ),
    "CVAT task": (
        {"annotations/instances_default.json": ["cam/1.jpg", "cam/2.jpg"]},
        ["images/default/cam/1.jpg", "images/default/cam/2.jpg"],
        [("", "annotations/instances_default.json", "images/default")],
    ),
    "CVAT task, images alone": (
        {"annotations/instances_default.json": ["1.jpg"]}, ["images/1.jpg"],
        [("", "annotations/instances_default.json", "images")],
    ),
    "CVAT project": (
        {"annotations/instances_Train.json": ["1.jpg"], "annotations/instances_Validation.json": ["1.jpg"]},
        ["images/Train/1.jpg", "images/Validation/1.jpg"],
        [("train", "annotations/instances_Train.json", "images/Train"),
         ("val", "annotations/instances_Validation.json", "images/Validation")],
    ),
    "Label Studio": (
        {"result.json": ["images/1.jpg", "images/2.jpg"]}, ["images/1.jpg", "images/2.jpg"],
        [("", "result.json", ".")],
    ),
    "Label Studio on Windows": (
        {"result.json": ["..\\..\\label-studio\\media\\1.jpg"]}, ["images/1.jpg"], [("", "result.json", "images")],
    ),
    "images beside it": ({"my labels.json": ["1.jpg"]}, ["1.jpg"], [("", "my labels.json", ".")]),
    "a folder beside it": ({"export.json": ["1.jpg"]}, ["photos/1.jpg"], [("", "export.json", "photos")]),
    "named in file_name": ({"export.json": ["photos/1.jpg"]}, ["photos/1.jpg"], [("", "export.json", ".")]),
    "a prefix that is not there": ({"export.json": ["x/y/1.jpg"]}, ["photos/1.jpg"], [("", "export.json", "photos")]),
    "two files by name": (
        {"train.json": ["1.jpg"], "val.json": ["2.jpg"]}, ["images/1.jpg", "images/2.jpg"],
        [("train", "train.json", "images"), ("val", "val.json", "images")],
    ),
    "all of it once more": (
        {"train.json": ["1.jpg"], "val.json": ["2.jpg"], "all.json": ["1.jpg", "2.jpg"]}, ["1.jpg", "2.jpg"],
        [("train", "train.json", "."), ("val", "val.json", ".")],
    ),
    "LVIS-like": (
        {"lvis_v1_train.json": ["train2017/1.jpg"], "lvis_v1_val.json": ["val2017/1.jpg"]},
        ["train2017/1.jpg", "val2017/1.jpg"],
        [("train", "lvis_v1_train.json", "."), ("val", "lvis_v1_val.json", ".")],
    ),
    "images missing": (
        {"annotations/instances_train2017.json": ["1.jpg"]}, ["train2017/other.jpg"],
        [("train", "annotations/instances_train2017.json", "train2017")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("padding", [0, 1 << 20], ids=["small", "large"])
@pytest.mark.parametrize("files, images, expected", LAYOUTS.values(), ids=LAYOUTS)
def test_layout_is_found(tmp_path, files, images, expected, padding):
    for name, listed in files.items():
        write_coco(tmp_path / name, listed, padding)
    write_images(tmp_path, *images)
    assert found(tmp_path) == expected


def test_a_file_itself_may_be_given(tmp_path):
    write_coco(tmp_path / "annotations" / "mine.json", ["1.jpg"])
    write_images(tmp_path / "photos", "1.jpg")
    (split,) = find(tmp_path / "annotations" / "mine.json")
    assert (split.name, split.image_folder, split.convert) == ("", tmp_path / "photos", None)
    (tmp_path / "x.json").write_text("{}")
    assert find(tmp_path / "x.json") == []


def test_coco_url_in_place_of_file_names(tmp_path):
    write_coco(tmp_path / "lvis.json", [], images=[{"id": 1, "coco_url": "http://x.org/train2017/1.jpg"}])
    write_images(tmp_path / "train2017", "1.jpg")
    assert found(tmp_path) == [("", "lvis.json", "train2017")]


def test_other_encodings_and_broken_files_are_found_too(tmp_path):
    write_coco(tmp_path / "a.json", ["1.jpg"])
    text = (tmp_path / "a.json").read_text()
    for data in (text.encode("utf-16"), text.encode("utf-8-sig"), text[:-9].encode()):
        (tmp_path / "a.json").write_bytes(data)
        assert [name for name, *_ in found(tmp_path)] == [""]


def test_files_that_no_split_uses_are_known(tmp_path):
    for name in ("train.json", "val.json", "default.json"):
        write_coco(tmp_path / name, ["1.jpg"])
    splits = find(tmp_path)
    assert [path.name for split in splits for path in split.inputs] == ["default.json"]
    assert find(tmp_path / "train.json")[0].problems.counts == {}


@pytest.mark.parametrize("padding", [0, 1 << 20], ids=["small", "large"])
def test_files_of_other_tasks_are_passed_over(tmp_path, padding):
    write_coco(tmp_path / "annotations" / "instances_val2017.json", ["1.jpg"], padding)
    for name in ("captions", "person_keypoints", "panoptic", "stuff", "image_info"):
        write_coco(tmp_path / "annotations" / f"{name}_train2017.json", ["1.jpg"], padding)
    segments = [{"image_id": 1, "segments_info": [], "x": "x" * padding}]
    write_coco(tmp_path / "other.json", ["1.jpg"], annotations=segments if padding else {"segments_info": 1})
    (tmp_path / "predictions.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]))
    (tmp_path / "args.json").write_text('{"images": 3}')
    shapes = {"version": "5", "shapes": [], "imagePath": "1.jpg", "imageData": "x" * padding}
    (tmp_path / "1.json").write_text(json.dumps(shapes))
    assert [source for _, source, _ in found(tmp_path)] == ["annotations/instances_val2017.json"]


@pytest.mark.parametrize(
    "names, said",
    [
        (["a_train.json", "b_train.json"], r"several COCO files for training \(a_train.json, b_train.json\)"),
        (["instances_train2014.json", "instances_train2015.json"], "for training .*2014.json, .*2015.json"),
        (["one.json", "two.json"], r"several COCO files \(one.json, two.json\)"),
        (["some.json", "val.json"], "some.json, val.json do not say which one is for training"),
    ],
)
def test_files_among_which_to_choose_are_listed(tmp_path, names, said):
    for name in names:
        write_coco(tmp_path / name, ["1.jpg"])
    with pytest.raises(ValueError, match=f"{said}.*--train-json FILE and --val-json FILE"):
        find(tmp_path)


def test_json_files_of_single_images_are_not_read_one_by_one(tmp_path, monkeypatch):
    for number in range(60):
        (tmp_path / f"{number}.json").write_text('{"shapes": []}')
    write_images(tmp_path, *(f"{number}.png" for number in range(60)))
    write_coco(tmp_path / "all.json", ["1.png"])
    looked_at = []
    own = coco_layouts.is_coco_file
    monkeypatch.setattr(coco_layouts, "is_coco_file", lambda path: looked_at.append(path) or own(path))
    assert found(tmp_path) == [("", "all.json", ".")] and len(looked_at) == 1


def test_right_coco_folder_comes_through_untouched(data_folder):
    root = data_folder / "coco_tiny"
    splits = find(root)
    assert [split.name for split in splits] == ["train", "val"]
    for split in splits:
        dataset = CocoDetection(root, split.name)
        assert (split.source, split.image_folder, split.convert) == (dataset.source, dataset.image_folder, None)
        names = dataset.image_names()
        assert resolve(names, split.image_folder) == (names, Problems())


# --------------------------------------------------------------------------------------------------- other folders


def touch(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


@pytest.mark.parametrize(
    "files, texts, said",
    [
        ([], {}, "holds no files"),
        (["a.jpg", "b.JPG"], {}, r"found 2 \.jpg; images without annotations"),
        (["a.jpg"], {"a.json": '{"shapes": [], "imagePath": ""}'}, "keys 'shapes', 'imagePath'; closest to labelme"),
        ([], {"a.json": '{"shapes": []}'}, "closest to labelme.*without the images"),
        (["a.jpg"], {"a.json": '{"annotations": []}'}, "COCO's JSON, which lacks the list 'images' and 'categories'"),
        (["a.jpg"], {"a.json": '{"_via_settings": {}}'}, "closest to VIA"),
        (["a.jpg"], {"a.json": '{"project": {}, "config": {}, "attribute": {}, "view": {}}'}, "VIA 3"),
        (["a.jpg"], {"a.json": "[]"}, "a list.*export it as COCO"),
        (["a.jpg"], {"a.json": "{"}, "invalid JSON"),
        (["images/a.jpg", "labels/a.txt"], {}, "closest to YOLO's, without its data.yaml"),
        (["images/a.jpg", "labels/a.txt"], {"data.yaml": ""}, "closest to YOLO's, without a data.yaml"),
        (["a.jpg", "a.xml"], {}, "closest to Pascal VOC"),
        (["images/a.jpg", "Masks/a.jpg"], {}, "closest to images with masks as images.*JPEG blurs"),
        (["train/a.jpg", "train/a_mask.png", "train/_classes.csv"], {}, "semantic masks.*export instances"),
        (["a.mp4"], {}, r"found 1 \.mp4; none of the layouts"),
    ],
)
def test_folder_without_a_layout_is_described_in_one_line(tmp_path, files, texts, said):
    touch(tmp_path, files)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert find(tmp_path) == []
    line = describe(tmp_path)
    assert line.startswith(str(tmp_path)) and "\n" not in line
    assert re.search(said, line), line
