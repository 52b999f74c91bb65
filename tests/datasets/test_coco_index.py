"""The index of an instances file: the same items with and without a stored one, and never one of another file."""

import json
import multiprocessing
import os
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from dataset_files import cache, coco_index
from dataset_files.cache import storage_places
from dataset_files.coco_file import unused_categories
from dataset_files.coco_index import CocoIndex, Reading, make_index, open_index, read_stored, stamp_of
from dataset_files.coco_masks import MaskColumns
from dataset_files.conversion_store import open_split_index
from dataset_files.dataset import ItemPlan
from dataset_files.problems import leaves_folder
from my_dataset_coco import CocoDetection, coco_split
from network_files.masks.rle import are_packed_codes, unpack_all

IMAGES = [{"id": i, "height": 40, "width": 50, "file_name": f"{i}.png"} for i in (30, 10, 20)]
CATEGORIES = [{"id": 1, "name": "ape"}, {"id": 2, "name": "bär"}]


def annotation(number: int, image_id: int, **changes) -> dict:
    x, y = number % 30, number % 20
    box = [x, y, x + 8, y, x + 8, y + 9, x, y + 9]
    values = {"id": number, "image_id": image_id, "category_id": 1 + number % 2, "iscrowd": 0, "area": 72.0}
    return {**values, "bbox": [x, y, 8, 9], "segmentation": [box], **changes}


ANNOTATIONS = [
    annotation(1, 10),
    annotation(2, 30),
    annotation(3, 10, iscrowd=1, segmentation={"size": [40, 50], "counts": [124, 6, 34, 6, 1830]}),
    annotation(4, 30),
    annotation(5, 10, segmentation=[]),
    annotation(6, 30, bbox=[60, 0, 5, 5]),
]
CONTENT = {"info": {"year": 2017}, "images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}


@pytest.fixture(autouse=True)
def _store_small_files_too(monkeypatch, tmp_path):
    monkeypatch.setattr(coco_index, "STORED_FROM", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "instances.json"
    path.write_text(json.dumps(CONTENT))
    return path


def contents(index: CocoIndex) -> tuple:
    """All that a dataset asks an index for."""
    pictures = range(len(index.image_ids))
    return (
        index.categories,
        index.image_ids.tolist(),
        index.sizes.tolist(),
        index.file_names.tolist(),
        index.usable_counts().tolist(),
        [index.annotations(p, only_usable=False) for p in pictures],
        [index.annotations(p, only_usable=True) for p in pictures],
    )


def forbid_reading(monkeypatch) -> None:
    def fail(*args):
        raise AssertionError("the file was read although its index is stored")

    monkeypatch.setattr(coco_index, "make_index", fail)


# ----------------------------------------------------------------------------------------------------- what it holds


def test_annotations_come_by_picture_in_the_order_of_the_file(file):
    index = make_index(file)
    assert index.categories == {1: "ape", 2: "bär"}
    assert index.image_ids.tolist() == [30, 10, 20]
    everything = [[a["id"] for a in index.annotations(p, only_usable=False)] for p in range(3)]
    assert everything == [[2, 4, 6], [1, 3, 5], []]
    usable = [[a["id"] for a in index.annotations(p, only_usable=True)] for p in range(3)]
    assert usable == [[2, 4], [1], []] and index.usable_counts().tolist() == [2, 1, 0]
    assert index.annotations(1, only_usable=False) == [ANNOTATIONS[i] for i in (0, 2, 4)]


@pytest.mark.parametrize(
    "write",
    [
        lambda c: json.dumps(c, separators=(",", ":")),
        lambda c: json.dumps(c, indent=2),
        lambda c: json.dumps(c, indent="\t").replace("\n", "\r\n"),
        lambda c: json.dumps(c, ensure_ascii=False),
        lambda c: json.dumps(dict(reversed(c.items())), ensure_ascii=False),
        lambda c: " " + json.dumps({"annotations": [1], **c, "nach": "ä" * 9}, ensure_ascii=False).replace("{", "{ "),
        lambda c: '{"annotations": 7, ' + json.dumps(c)[1:] + "\n",
        lambda c: json.dumps(c).replace('"image_id": 10', '"image_id": 10.0').replace('"id": 30', '"id": 30.0'),
    ],
    ids=["compact", "indented", "CRLF", "UTF-8", "annotations first", "spaces", "twice", "floats"],
)
def test_every_way_to_write_the_same_file_gives_the_same_index(file, write):
    expected = contents(make_index(file))
    extra = {"comment": 'ü "segmentation": [[1, 2]] \\'}
    plain = [{**a, **extra} for a in ANNOTATIONS]
    file.write_bytes(write({**CONTENT, "annotations": plain} if "annotations" in CONTENT else {}).encode())
    if b'"annotations": [1]' in file.read_bytes():
        file.write_bytes(file.read_bytes().replace(b'"annotations": [1], ', b""))
    *found, everything, usable = contents(make_index(file))
    assert tuple(found) == expected[:5]
    for own, reference in ((everything, expected[5]), (usable, expected[6])):
        assert own == [[{**a, **extra} for a in picture] for picture in reference]


@pytest.mark.parametrize("lists", [{"annotations": []}, {"images": [], "annotations": []}])
def test_files_without_objects_or_pictures_have_an_index(file, lists):
    file.write_text(json.dumps({**CONTENT, **lists}))
    index = open_index(file)
    assert index.usable_counts().tolist() == [0] * len(index.image_ids)
    assert all(index.annotations(p, only_usable=False) == [] for p in range(len(index.image_ids)))


TEXT = json.dumps(CONTENT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT[:-1],
        TEXT[: len(TEXT) // 2],
        TEXT + "]",
        "\ufeff" + TEXT,
        TEXT.replace('"annotations":', '"annotations"'),
        TEXT.replace("}, {", "} {"),
        TEXT.replace("[[1, 1,", "[[1,, 1,"),
        TEXT.replace("[[1, 1,", "[[01, 1,"),
        TEXT.replace("}]}", "}],}"),
        TEXT.replace("], \"categories\"", ",], \"categories\""),
    ],
)  # fmt: skip
def test_broken_json_is_named_with_its_place(file, text):
    assert text != TEXT
    file.write_text(text)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(ValueError, match="instances.json: not readable as JSON") as found:
        open_index(file)
    assert str(expected.value) in str(found.value)


@pytest.mark.parametrize("value, kind", [([], "list"), (5, "int"), ("x", "str"), (None, "NoneType")])
def test_json_that_is_no_object_is_named(file, value, kind):
    file.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=f"instances.json: holds a {kind}, not an object"):
        open_index(file)


BOX = [3, 3, 11, 3, 11, 12, 3, 12]


@pytest.mark.parametrize(
    "changes, kind, named",
    [
        ({"segmentation": [["1", "2", "3", "4", "5", "6"]]}, "annotation", r"invalid polygons: \[\['1', '2'"),
        ({"segmentation": [5, 5, 5, 5, 5, 5]}, "annotation", "invalid polygons"),
        ({"segmentation": [BOX, [3, 3, 11, None]]}, "annotation", "invalid polygons"),
        ({"segmentation": [BOX, [10**400] * 6]}, "annotation", "invalid polygons"),
        ({"segmentation": {"size": [40, 50], "counts": [10**30]}}, "annotation", "invalid run lengths"),
        ({"segmentation": None}, "annotation", "neither a list of polygons nor a run-length code"),
        ({"segmentation": {"size": [40, 50], "counts": 3}}, "annotation", "invalid counts: 3"),
        ({"segmentation": {"size": [40, 50], "counts": [2000.5]}}, "annotation", "invalid run lengths"),
        ({"segmentation": {"size": [40, 50]}}, "annotation", "lacks the key 'counts'"),
        ({"segmentation": {"size": [40], "counts": [2000]}}, "annotation", "annotation 8 of image 10"),
        ({"bbox": [1, 2, 3]}, "annotation", "bbox of 3 numbers"),
        ({"bbox": [1, 2, 3, "4"]}, "annotation", "wrong type"),
        ({"bbox": None}, "annotation", "null in place of a value for 'bbox'"),
        ({"category_id": None, "note": None}, "annotation", "null in place of a value for 'category_id'$"),
        ({"area": "9"}, "annotation", "wrong type"),
        ({"area": float("nan")}, "annotation", "the area nan"),
        ({"iscrowd": "yes"}, "annotation", "the iscrowd 'yes'"),
        ({"image_id": "10"}, "annotation", "annotation 8 of image '10'"),
        ({"image_id": 2**70}, "annotation", "annotation 8"),
        ({"image_id": 11}, "unknown image", "11"),
        ({"image_id": 2**62 + 1}, "unknown image", f"{2**62 + 1}"),
        ({"category_id": 3}, "unknown category", "3"),
        ({"id": 1}, "annotation id", "annotation 1 of image 10"),
        ({"bbox": [float("nan"), 3, 8, 9]}, "box numbers", "nan"),
        ({"bbox": [3, 3, float("inf"), 9]}, "box numbers", "inf"),
        ({"segmentation": [[*BOX, 3]]}, "odd polygon", r"\[3, 3, 11, 3"),
        ({"segmentation": [BOX, [3]]}, "odd polygon", r"\[3\]"),
        ({"segmentation": [[3, 3, float("nan"), 3, 11, 12]]}, "polygon numbers", "nan"),
        ({"segmentation": [BOX, [3, 3, -float("inf"), 3, 11, 12]]}, "polygon numbers", "-inf"),
        ({"segmentation": [[3, 3, 1e7, 3, 11, 12]]}, "polygon numbers", "10000000.0"),
        ({"segmentation": {"size": [50, 40], "counts": [124, 6, 1870]}}, "code size", r"\[50, 40\]"),
        ({"segmentation": {"size": [40, 50], "counts": [124, 6, 1871]}}, "code counts", "1871"),
        ({"segmentation": {"size": [40, 50], "counts": [124, -6, 1882]}}, "code counts", "-6"),
        ({"segmentation": {"size": [40, 50], "counts": [2**62, 2**62, 2**62, 2**62, 2000]}}, "code counts", "46"),
        ({"segmentation": {"size": [40, 50], "counts": "mP1;1Q"}}, "code counts", "mP1;1Q"),  # the last is cut off
        ({"segmentation": {"size": [40, 50], "counts": "!!"}}, "code counts", "!!"),
        ({"segmentation": {"size": [40, 50], "counts": "ÄÖ"}}, "code counts", "ÄÖ"),
        ({"segmentation": {"size": [40, 50], "counts": "o" * 30 + "0"}}, "code counts", "ooo"),
        ({"segmentation": {"size": [0, 0], "counts": "0"}}, "code size", r"\[0, 0\]"),
        ({"bbox": [30, 25, 8, 9]}, "apart", r"\[30, 25, 8, 9\].*\[3.0, 3.0, 11.0, 12.0\]"),
        ({"bbox": [3, 3, 47, 37]}, "apart", r"\[3, 3, 47, 37\]"),
        ({"segmentation": {"size": [40, 50], "counts": [1999, 1]}}, "apart", r"\[49.0, 39.0, 50.0, 40.0\]"),
    ],
)
def test_wrong_annotations_are_named_and_left_out(file, changes, kind, named):
    expected = contents(make_index(file))
    wrong = {**annotation(8, 10, segmentation=[BOX], bbox=[3, 3, 8, 9]), **changes}
    file.write_text(json.dumps({**CONTENT, "annotations": [ANNOTATIONS[0], wrong, *ANNOTATIONS[1:]]}))
    with_it = open_index(file)
    assert {k: with_it.problems.counts[k] for k in with_it.problems.wrong()} == {kind: 1}
    assert re.search(named, with_it.problems.describe(kind)), with_it.problems.describe(kind)
    assert read_stored(file, stamp_of(file)).problems == with_it.problems
    assert contents(with_it) == expected


@pytest.mark.parametrize(
    "changes, kind, usable",
    [
        ({"bbox": [3, 3, 0, 9]}, "empty box", False),
        ({"bbox": [3, 3, 8, -9]}, "empty box", False),
        ({"bbox": [51, 3, 8, 9]}, "box outside", False),
        ({"segmentation": []}, "no mask", False),
        ({"segmentation": [[]]}, "no mask", False),
        ({"segmentation": [[3, 3, 11, 12]]}, "no mask", False),
        ({"segmentation": {"size": [40, 50], "counts": [2000]}}, "no mask", False),
        ({"segmentation": {"size": [40, 50], "counts": []}}, "no mask", False),
        ({"segmentation": {"size": [40, 50], "counts": ""}}, "no mask", False),
        ({"segmentation": {"size": [40, 50], "counts": "`n1"}}, "no mask", False),
        ({"segmentation": [[3, 3, 11, 12], BOX]}, "short polygon", True),
        ({"segmentation": [[3, 3, 11, 3, 11, 12, 3, 12, -400, 12]], "bbox": [0, 3, 11, 9]}, "far outside", True),
    ],
)
def test_what_training_can_do_without_is_counted_and_kept_for_evaluation(file, changes, kind, usable):
    own = {**annotation(8, 20, segmentation=[BOX], bbox=[3, 3, 8, 9]), **changes}
    file.write_text(json.dumps({**CONTENT, "annotations": [own, annotation(9, 20)]}))
    index = open_index(file)
    assert index.problems.counts == {kind: 1} and not index.problems.wrong()
    assert "annotation 8 of image 20 (20.png)" in index.problems.describe(kind)
    assert [a["id"] for a in index.annotations(2, only_usable=False)] == [8, 9]
    assert [a["id"] for a in index.annotations(2, only_usable=True)] == ([8, 9] if usable else [9])


@pytest.mark.parametrize(
    "key, entry, kind, named",
    [
        ("images", {"id": 40, "height": 40, "width": 50}, "image", "image 40 lacks the key 'file_name'"),
        ("images", {"height": 40, "width": 50, "file_name": "a"}, "image", "image number 3 of the list lacks .*'id'"),
        ("images", {"id": 40, "height": 0, "width": 50, "file_name": "a"}, "image", "height of 0"),
        ("images", {"id": 40, "height": 2**40, "width": 2**40, "file_name": "a"}, "image", "height of 1099511627776"),
        ("images", {"id": 40, "height": "x", "width": 50, "file_name": "a"}, "image", "'x' instead of a whole number"),
        ("images", {"id": 40, "height": 40, "width": 50, "file_name": 7}, "image", "file name 7"),
        ("images", 7, "image", "image number 3 of the list is not an object"),
        ("images", {**IMAGES[0], "file_name": "other"}, "image id", "image 30, 'other'"),
        ("images", {"id": 40, "height": 40, "width": 50, "file_name": "../a.png"}, "file name", "image 40, '../a.png'"),
        ("images", {"id": 40, "height": 40, "width": 50, "file_name": "/a.png"}, "file name", "'/a.png'"),
        ("categories", {"id": 1, "name": "cow"}, "category id", "category 1, 'ape' and 'cow'"),
        ("categories", {"id": -1, "name": "cow"}, "category", "the id -1"),
        ("images", {**IMAGES[0], "id": -1}, "image", "the id -1"),
        ("categories", {"name": "cow"}, "category", "lacks the key 'id'"),
        ("categories", {"id": "1", "name": "cow"}, "category", "'1' instead of a whole number"),
    ],
)
def test_wrong_entries_of_the_other_lists_are_named_and_left_out(file, key, entry, kind, named):
    expected = contents(make_index(file))
    file.write_text(json.dumps({**CONTENT, key: [*CONTENT[key], entry]}))
    index = open_index(file)
    assert {k: index.problems.counts[k] for k in index.problems.wrong()} == {kind: 1}
    assert re.search(named, index.problems.describe(kind)), index.problems.describe(kind)
    assert contents(index) == expected


def test_pictures_that_cannot_be_used_take_their_objects_along(file):
    images = [{**IMAGES[0], "file_name": "../30.png"}, *IMAGES[1:]]
    file.write_text(json.dumps({**CONTENT, "images": images}))
    index = open_index(file)
    assert index.problems.wrong() == ["file name"] and index.image_ids.tolist() == [10, 20]
    assert [[a["id"] for a in index.annotations(p, only_usable=False)] for p in range(2)] == [[1, 3, 5], []]


@pytest.mark.parametrize(
    "name, leaves",
    [
        ("a.png", False), ("a b.png", False), ("图片/照片.png", False), ("a..png", False), ("a/..b/c", False),
        ("..", True), ("../a", True), ("a/../../b", True), ("a\\..\\..\\b", True), ("/etc/passwd", True),
        ("\\\\host\\a", True), ("C:\\a", True), ("c:/a", True), ("", True), ("a\0b", True), ("\ud800", True),
        ("a" * 5000, True),
    ],
)  # fmt: skip
def test_names_that_leave_the_folder_are_known(name, leaves):
    assert leaves_folder(name) is leaves


def test_of_many_problems_three_are_named_and_all_are_counted(file):
    bad = [annotation(i, 10, bbox=[1, 2, 3, float("nan")]) for i in range(100, 120)]
    file.write_text(json.dumps({**CONTENT, "annotations": [*bad, annotation(7, 99), *ANNOTATIONS]}))
    problems = open_index(file).problems
    assert problems.counts["box numbers"] == 20 and "and 17 more" in problems.describe("box numbers")
    assert [f"annotation {i} of" in problems.summary() for i in (100, 101, 102, 103)] == [False] * 4
    assert [f"annotation {i} of" in problems.describe("box numbers") for i in range(100, 104)] == [True] * 3 + [False]
    assert "boxes with numbers that are not finite (20)" in problems.summary()


# ------------------------------------------------------------------------------------------------- the file as a whole


def drawn(count: int = 6) -> list[dict]:
    """Annotations of the three images, each with a rectangle of its own, two of them as run-length codes."""
    annotations = []
    for i in range(count):
        x, y, w, h = 5 + 3 * i, 6 + 2 * i, 9 + i, 8 + i
        mask: list | dict = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if i % 3 == 1:
            plane = np.zeros((40, 50), dtype=np.uint8)
            plane[y : y + h, x : x + w] = 1
            code = coco_mask.encode(np.asfortranarray(plane))
            mask = {"size": [40, 50], "counts": code["counts"].decode()}
        annotations.append(annotation(i + 1, IMAGES[i % 3]["id"], bbox=[x, y, w, h], segmentation=mask, area=w * h))
    return annotations


def with_boxes(change, count: int = 6) -> list[dict]:
    return [{**a, "bbox": change(*a["bbox"])} for a in drawn(count)]


FORMATS = {
    "x1, y1, x2, y2": lambda x, y, w, h: [x, y, x + w, y + h],
    "centre x, centre y, width, height": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
}


@pytest.mark.parametrize("reading", FORMATS)
@pytest.mark.parametrize("count", [3, 6])
def test_boxes_of_another_format_stop_even_with_skip_bad(tmp_path, reading, count):
    root = coco_folder(tmp_path, with_boxes(FORMATS[reading], count))
    for skip_bad in (False, True):
        with pytest.raises(ValueError, match=rf"boxes look like {reading} \(median IoU with the masks 1.00; as x, y, "):
            CocoDetection(root, "val", plan=ItemPlan(skip_bad=skip_bad))
    dataset = CocoDetection(open_split_index(coco_split(root, "val", "2017"), Reading(boxes_from_masks=True)), "val")
    assert dataset.problems.counts == {}
    right = {a["id"]: a["bbox"] for a in drawn(count)}
    for i in range(len(dataset)):
        ids = [a["id"] for a in dataset.annotations(i, only_usable=False)]
        expected = [[x, y, x + w, y + h] for x, y, w, h in (right[key] for key in ids)]
        assert dataset.target(i)["boxes"].tolist() == expected
    assert {a["id"]: a["bbox"] for a in dataset.coco_content()["annotations"]} == right
    assert {key: a["bbox"] for key, a in dataset.coco.anns.items()} == right


def test_two_objects_are_too_few_to_tell_a_format(tmp_path):
    index = make_index(annotations_file(tmp_path, with_boxes(FORMATS["x1, y1, x2, y2"], 2)))
    assert not index.problems.blocking(skip_bad=True)


def annotations_file(folder: Path, annotations: list[dict]) -> Path:
    path = folder / "some.json"
    path.write_text(json.dumps({**CONTENT, "annotations": annotations}))
    return path


@pytest.mark.parametrize(
    "change, kinds",
    [
        (lambda x, y, w, h: [x, y, w, h], []),
        (lambda x, y, w, h: [x - 0.3, y - 0.3, w + 0.5, h + 0.5], []),
        (lambda x, y, w, h: [x - 2, y - 2, w + 4, h + 4], ["loose boxes"]),
        (lambda x, y, w, h: [x - 4, y - 4, w + 12, h + 12], ["loose boxes"]),
    ],
)
def test_boxes_that_fit_badly_are_said_and_used(tmp_path, change, kinds):
    index = make_index(annotations_file(tmp_path, with_boxes(change)))
    assert list(index.problems.counts) == kinds and index.usable_counts().sum() == 6
    if kinds:
        assert re.search("median IoU of boxes and masks 0.[2-7].*--boxes-from-masks", index.problems.describe(*kinds))


def test_single_loose_box_is_no_problem(tmp_path):
    annotations = drawn()
    annotations[0]["bbox"] = [3, 4, 17, 16]  # IoU 0.26
    index = make_index(annotations_file(tmp_path, annotations))
    assert index.problems.counts == {} and index.usable_counts().sum() == 6


def scaled(values: list[float]) -> list[float]:
    return [value / (40 if place % 2 else 50) for place, value in enumerate(values)]


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_fractions_of_the_size_stop_even_with_skip_bad(tmp_path, boxes, masks):
    annotations = [a for a in drawn() if isinstance(a["segmentation"], list)]
    for a in annotations:
        a["bbox"] = scaled(a["bbox"]) if boxes else a["bbox"]
        a["segmentation"] = [scaled(polygon) for polygon in a["segmentation"]] if masks else a["segmentation"]
    problems = make_index(annotations_file(tmp_path, annotations)).problems
    assert problems.blocking(skip_bad=True) == (["fractions"] if boxes or masks else [])
    if boxes or masks:
        named = " and ".join(["boxes"] * boxes + ["polygons"] * masks)
        with pytest.raises(ValueError, match=f"coordinates of {named} are within 0..1.*multiply x and width"):
            problems.require_none_wrong(tmp_path, skip_bad=True)


def test_masks_without_boxes_take_boxes_from_masks_and_keep_their_own_index(tmp_path):
    file = annotations_file(tmp_path, with_boxes(lambda *_: [0, 0, 0, 0]))
    assert open_index(file).usable_counts().sum() == 0
    for _ in range(2):
        assert open_index(file, Reading(boxes_from_masks=True)).usable_counts().sum() == 6
    assert open_index(file).usable_counts().sum() == 0
    assert sorted(os.listdir(tmp_path)) == ["cache", "some.json", "some.mask-rcnn.index", "some.mask-rcnn.masks.index"]


def test_boxes_from_masks_of_photos_are_those_of_the_file(data_folder):
    split = coco_split(data_folder / "coco_tiny", "val", "2017")
    own, other = (
        CocoDetection(open_split_index(split, Reading(boxes_from_masks=flag)), "val") for flag in (False, True)
    )
    assert not own.problems.counts and not other.problems.counts
    far = [(own.target(i)["boxes"] - other.target(i)["boxes"]).abs().max(dim=1)[0] for i in range(len(own))]
    assert np.quantile(torch.cat(far), 0.9) < 0.02


def test_entries_that_are_no_categories_are_never_taken_for_a_heading():
    heading = {"id": 0, "name": "a"}
    assert unused_categories([heading, {"id": 1, "name": "b", "supercategory": "a"}], [1]) == [0]
    assert unused_categories([heading, 5], []) == []
    assert unused_categories([heading, {"id": 0, "name": "b", "supercategory": "a"}], []) == []
    assert unused_categories([heading, {"id": 1, "name": "b", "supercategory": ["a"]}], [1]) == []
    assert unused_categories([{"id": 1, "name": "_background_"}], []) == []


def test_dataset_raises_what_it_is_not_told_to_leave_out(tmp_path):
    bad = annotation(8, 10, segmentation={"size": [40, 50], "counts": [100, 60]})
    root = coco_folder(tmp_path, [annotation(1, 10), bad])
    with pytest.raises(ValueError, match=r"instances_val2017.json: invalid run-length codes \(1\): annotation 8"):
        CocoDetection(root, "val")
    dataset = CocoDetection(root, "val", plan=ItemPlan(skip_bad=True))
    assert dataset.problems.counts == {"code counts": 1} and len(dataset.target(1)["labels"]) == 1
    assert len(dataset.coco.getAnnIds()) == 1 and sorted(dataset.coco.getImgIds()) == [10, 20, 30]


def test_packed_codes_are_known_by_their_characters():
    """Also where a careless reader would get the right numbers out of a wrong code."""
    plane = np.zeros((40, 50), dtype=np.uint8)
    plane[3:30, 5:20] = 1
    good = coco_mask.encode(np.asfortranarray(plane))["counts"]
    cut_off = good[:-1] + bytes([((good[-1] - 48) | 0x20) + 48])  # its last number says that it goes on
    other_letter = bytes([good[0] + 64]) + good[1:]
    too_long = good[:-1] + b"P" * 6 + b"0"
    codes = [good, cut_off, good, other_letter, too_long, good, b"", b"/", b"\xff"]
    assert are_packed_codes(codes).tolist() == [True, False, True, False, False, True, True, False, False]


def test_packed_and_loose_codes_reach_as_far_as_their_pixels(tmp_path):
    draw = np.random.default_rng(0)
    planes = [np.zeros((40, 50), dtype=np.uint8) for _ in range(40)]
    for plane in planes:
        x, y, w, h = draw.integers(0, 30, 2).tolist() + draw.integers(1, 20, 2).tolist()
        plane[y : y + min(h, 40 - y), x : x + w] = draw.random((min(h, 40 - y), w)) < 0.5
    planes[3][:], planes[4][:, 7] = 1, 1
    codes = [coco_mask.encode(np.asfortranarray(plane)) for plane in planes]
    masks = MaskColumns()
    for code in codes:
        counts = unpack_all([code["counts"]])[0].tolist()
        masks.add_code({"size": [40, 50], "counts": code["counts"].decode()})
        masks.add_code({"size": [40, 50], "counts": counts})
    masks.check_group()
    xywh = coco_mask.toBbox(codes)
    expected = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
    assert np.array_equal(masks.extents[0][::2], expected) and np.array_equal(masks.extents[0][1::2], expected)
    assert not any(masks.flaws.values())


def coco_folder(tmp_path: Path, annotations: list[dict]) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(
        json.dumps({**CONTENT, "annotations": annotations})
    )
    return tmp_path


def test_index_is_small_whatever_the_masks(file):
    polygon = np.linspace(0, 39, 400).tolist()
    many = [annotation(i, 10, segmentation=[polygon], bbox=[0, 0, 39, 39]) for i in range(1, 2001)]
    file.write_text(json.dumps({**CONTENT, "annotations": many}))
    index = open_index(file)
    assert len(pickle.dumps(index)) < 36 * len(many) < file.stat().st_size / 50


# ---------------------------------------------------------------------------------------------------- the stored index


def test_second_start_takes_the_stored_index(file, monkeypatch):
    expected = contents(open_index(file))
    assert sorted(os.listdir(file.parent)) == ["instances.json", "instances.mask-rcnn.index"]
    forbid_reading(monkeypatch)
    assert contents(open_index(file)) == expected


def test_changed_file_is_read_again(file):
    open_index(file)
    other = json.dumps(CONTENT).replace('"id": 6,', '"id": 9,')
    assert len(other) == file.stat().st_size
    file.write_text(other)
    os.utime(file, ns=(0, 5))
    assert open_index(file).annotations(0, only_usable=False)[2]["id"] == 9
    stamp = file.stat()
    file.write_text(json.dumps({**CONTENT, "annotations": ANNOTATIONS[:2]}))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert open_index(file).usable_counts().tolist() == [1, 1, 0]


def test_index_of_another_version_is_made_anew(file, monkeypatch):
    open_index(file)
    monkeypatch.setattr(coco_index, "VERSION", coco_index.VERSION + 1)
    assert read_stored(file, stamp_of(file)) is None
    open_index(file)
    assert read_stored(file, stamp_of(file)) is not None


def damage(data: bytes, kind: str) -> bytes:
    middle = len(data) // 2
    return {
        "empty": b"",
        "cut off": data[:middle],
        "one byte": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
        "zeros": data[: middle - 200] + bytes(400) + data[middle + 200 :],
        "text": b"{}",
        "pickle": pickle.dumps({"stamp": 1}),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "cut off", "one byte", "zeros", "text", "pickle"])
def test_damaged_index_is_made_anew(file, kind):
    expected = contents(open_index(file))
    stored = storage_places(file, ".index")[0]
    whole = stored.read_bytes()
    for _ in range(2):
        stored.write_bytes(damage(whole, kind))
        assert contents(open_index(file)) == expected
        assert contents(read_stored(file, stamp_of(file))) == expected


def test_every_single_damaged_byte_is_noticed(file):
    open_index(file)
    stored = storage_places(file, ".index")[0]
    whole = stored.read_bytes()
    for place in range(0, len(whole), 7):
        stored.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert read_stored(file, stamp_of(file)) is None, place


def test_folder_that_cannot_be_written_sends_the_index_to_the_cache(file, monkeypatch):
    beside, cached = storage_places(file, ".index")
    (beside / "in the way").mkdir(parents=True)
    expected = contents(open_index(file))
    assert cached.is_file() and sorted(os.listdir(cached.parent)) == [cached.name, "locks"]
    assert sorted(os.listdir(file.parent)) == [file.name, beside.name]  # no draft is left
    forbid_reading(monkeypatch)
    assert contents(open_index(file)) == expected


def test_files_of_the_same_name_have_their_own_places_in_the_cache(file, tmp_path):
    other = tmp_path / "other" / file.name
    assert storage_places(file, ".index")[1] != storage_places(other, ".index")[1]


def test_no_place_to_store_an_index_is_no_error(file, tmp_path, monkeypatch):
    (storage_places(file, ".index")[0] / "in the way").mkdir(parents=True)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert contents(open_index(file)) == contents(make_index(file))
    assert read_stored(file, stamp_of(file)) is None


def test_small_files_leave_nothing_behind(file, monkeypatch):
    monkeypatch.setattr(coco_index, "STORED_FROM", 1 << 20)
    assert contents(open_index(file)) == contents(make_index(file))
    assert os.listdir(file.parent) == [file.name]


def test_file_that_changes_under_a_run_is_named(file):
    index = open_index(file)
    file.write_text(json.dumps({**CONTENT, "annotations": ANNOTATIONS[:3]}))
    with pytest.raises(ValueError, match="instances.json: has changed since it was opened"):
        index.annotations(0, only_usable=True)


def start(file: Path, made: Path, results) -> None:
    """One process of several: notes that it read the file, slowly."""
    read = coco_index.make_index

    def slow(*args):
        (made / str(os.getpid())).touch()
        time.sleep(0.3)
        return read(*args)

    coco_index.make_index = slow
    results.put(contents(open_index(file)))


@pytest.mark.skipif(cache.fcntl is None, reason="no file locks on this system")
def test_of_several_processes_that_start_together_one_reads_the_file(file, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=start, args=(file, made, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert found == [contents(make_index(file))] * 4
    assert len(os.listdir(made)) == 1
    assert sorted(os.listdir(file.parent)) == ["instances.json", "instances.mask-rcnn.index"]


def test_systems_without_locks_come_to_the_same_index(file, monkeypatch):
    monkeypatch.setattr(cache, "fcntl", None)
    assert contents(open_index(file)) == contents(open_index(file)) == contents(make_index(file))


@pytest.mark.parametrize("split", ["train", "val"])
def test_items_of_photos_are_the_same_from_the_stored_index(data_folder, tmp_path, split, monkeypatch):
    source = data_folder / "coco_tiny"
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / f"{split}2017").symlink_to(source / f"{split}2017")
    name = f"annotations/instances_{split}2017.json"
    (root / name).write_bytes((source / name).read_bytes())
    fresh = CocoDetection(root, split)
    forbid_reading(monkeypatch)
    stored = CocoDetection(root, split)
    assert len(fresh) == len(stored) > 20 and fresh.class_names == stored.class_names
    for i in range(len(fresh)):
        one, other = fresh.target(i), stored.target(i)
        assert one["image_id"] == other["image_id"] and fresh.image_path(i) == stored.image_path(i)
        for key in ("boxes", "labels", "area", "iscrowd"):
            assert torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype
        assert torch.equal(one["masks"].pixels, other["masks"].pixels)
        assert torch.equal(one["masks"].crops, other["masks"].crops)
