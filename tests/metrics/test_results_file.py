"""`validation.py --results-json`: COCO's official table for anyone's detections; one line for what cannot be scored."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.commands import assert_refused, run, succeeded
from train_utils.metrics.results_file import official_table

NUMBER = re.compile(r"\] = (-?\d\.\d{3})$", re.MULTILINE)
TRUTH = {
    "images": [{"id": 7, "height": 40, "width": 50}, {"id": 8, "height": 40, "width": 50}],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 40], "area": 400, "iscrowd": 0,
         "segmentation": [[0, 0, 10, 0, 10, 40, 0, 40]]},
    ],
}  # fmt: skip
BOX = {"image_id": 7, "category_id": 3, "score": 0.9, "bbox": [0, 0, 10, 40]}
MASK = {"image_id": 7, "category_id": 3, "score": 0.9, "segmentation": {"size": [40, 50], "counts": [0, 400, 1600]}}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_official_24_numbers_come_out_of_the_script(real_data_folder: Path, tmp_path: Path, iou_type: str):
    folder = real_data_folder / "cocoapi_demo"
    results = folder / f"instances_val2014_fake{iou_type}100_results.json"
    outcome = succeeded(score(tmp_path, results, folder / "instances_val2014_100.json", iou_type))
    official = (folder / "official_results.txt").read_text()
    section = official[official.index(f"type={iou_type}") :]
    assert NUMBER.findall(outcome.out) == NUMBER.findall(section)[:12]


def test_the_table_has_coco_s_own_lines():
    lines = official_table([i / 100 for i in range(12)]).splitlines()
    assert lines[0] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.000"
    assert lines[1] == " Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 0.010"
    assert lines[6] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.060"
    assert lines[11] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = 0.110"


def score(folder: Path, results: object, truth: object, iou_type: str):
    """Run the script on two files, or on what is to stand in them."""
    paths = []
    for name, content in (("results.json", results), ("truth.json", truth)):
        if not isinstance(content, Path):
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
            content = folder / name
        paths.append(content)
    files = ("--results-json", paths[0], "--annotation-file", paths[1])
    return run(folder, "validation.py", *files, "--iou-type", iou_type)


@pytest.mark.parametrize(("iou_type", "entry"), [("bbox", BOX), ("segm", MASK)])
def test_a_perfect_detection_scores_1_and_none_scores_0(tmp_path: Path, iou_type: str, entry: dict):
    assert NUMBER.findall(succeeded(score(tmp_path, [entry], TRUTH, iou_type)).out)[0] == "1.000"
    assert NUMBER.findall(succeeded(score(tmp_path, [], TRUTH, iou_type)).out)[0] == "0.000"


def test_masks_are_small_or_large_by_their_own_area_where_a_box_stands_beside_them(tmp_path: Path):
    """A false mask of 400 pixels in a box of 2,000 is small: it must not count among the medium ones."""
    truth = json.loads(json.dumps(TRUTH))
    truth["images"] = [{"id": 7, "height": 60, "width": 60}]
    big = {"id": 2, "image_id": 7, "category_id": 3, "bbox": [20, 0, 40, 60], "area": 2400, "iscrowd": 0,
           "segmentation": [[20, 0, 60, 0, 60, 60, 20, 60]]}  # fmt: skip
    truth["annotations"].append(big)
    right = {"image_id": 7, "category_id": 3, "score": 0.5,
             "segmentation": {"size": [60, 60], "counts": [1200, 2400]}}  # fmt: skip
    wrong = {"image_id": 7, "category_id": 3, "score": 0.9, "bbox": [0, 0, 50, 40],
             "segmentation": {"size": [60, 60], "counts": [800, 400, 2400]}}  # fmt: skip
    numbers = NUMBER.findall(succeeded(score(tmp_path, [wrong, right], truth, "segm")).out)
    assert numbers[4] == "1.000"  # AP medium


def test_detections_of_categories_that_the_data_lacks_are_counted_and_left_out(tmp_path: Path):
    outcome = succeeded(score(tmp_path, [BOX, BOX | {"category_id": 4, "score": 1}], TRUTH, "bbox"))
    assert "1 detections are ignored" in outcome.err
    assert NUMBER.findall(outcome.out)[0] == "1.000"


REFUSED = {
    "not JSON": ("[{", "bbox", "results.json: cannot be read as JSON"),
    "no list": ({"a": 1}, "bbox", "not a results file"),
    "no object": ([1], "bbox", "detection 0 is not an object"),
    "no score": ([{k: v for k, v in BOX.items() if k != "score"}], "bbox", "detection 0 lacks score"),
    "boxes for masks": ([BOX], "segm", "lacks segmentation; it has bbox, try --iou-type bbox"),
    "masks for boxes": ([MASK], "bbox", "lacks bbox; it has segmentation, try --iou-type segm"),
    "unknown image": (
        [BOX, BOX | {"image_id": 9}],
        "bbox",
        "detection 1 belongs to image 9, which the annotation",
    ),
    "image by name": ([BOX | {"image_id": "7"}], "bbox", "belongs to image '7'"),
    "category by name": ([BOX | {"category_id": "cat"}], "bbox", "category 'cat', which is not a whole number"),
    "score NaN": ([BOX | {"score": float("nan")}], "bbox", "the score nan"),
    "three numbers": ([BOX | {"bbox": [1, 2, 3]}], "bbox", "[1, 2, 3], which is not [x, y, width, height]"),
    "infinite box": ([BOX | {"bbox": [1, 2, 3, float("inf")]}], "bbox", "is not [x, y, width, height]"),
    "polygon": ([MASK | {"segmentation": [[0, 0, 1, 0, 1, 1]]}], "segm", "not a run-length code"),
    "another size": ([MASK | {"segmentation": {"size": [50, 40], "counts": [0, 2000]}}], "segm", "of size [50, 40]"),
    "too few runs": ([MASK | {"segmentation": {"size": [40, 50], "counts": [0, 400]}}], "segm", "do not cover"),
    "negative run": ([MASK | {"segmentation": {"size": [40, 50], "counts": [-5, 2005]}}], "segm", "do not cover"),
    "no code": ([MASK | {"segmentation": {"size": [40, 50], "counts": "\x00\x01"}}], "segm", "do not cover"),
    "code cut short": ([MASK | {"segmentation": {"size": [40, 50], "counts": "`"}}], "segm", "do not cover"),
}


@pytest.mark.parametrize(("results", "iou_type", "named"), REFUSED.values(), ids=REFUSED)
def test_a_results_file_that_cannot_be_scored_is_refused(tmp_path: Path, results, iou_type: str, named: str):
    assert_refused(score(tmp_path, results, TRUTH, iou_type), "results.json", named)


def test_a_ground_truth_that_is_none_is_refused(tmp_path: Path):
    assert_refused(score(tmp_path, [BOX], [], "bbox"), "truth.json: not a COCO annotation file")
    lacking = TRUTH | {"images": [{"id": 7}]}
    wanted = "truth.json: images[0] has a missing or invalid height, width"
    assert_refused(score(tmp_path, [BOX], lacking, "bbox"), wanted)
    assert_refused(score(tmp_path, tmp_path / "none.json", TRUTH, "bbox"), "none.json: no such file (--results-json)")


def test_the_options_go_together(tmp_path: Path):
    outcome = run(tmp_path, "validation.py", "--annotation-file", "truth.json")
    assert_refused(outcome, "--results-json and --annotation-file need each other")
