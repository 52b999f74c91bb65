"""Intervals and comparisons: COCO's numbers on all images, brute force on resamples, and verdicts that are known."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from report.average_precision import RECALLS
from report.bootstrap import (
    METRICS,
    MOST_OBJECTS,
    Resampled,
    draw_weights,
    interval_of,
    just_short,
    recalls_reached,
    resample,
    tail_of,
)
from report.comparison import Comparison, compare, table, write_comparison
from report.eval_data import make_eval_data
from report.matching import find_overlaps, match_areas
from tests.helpers.commands import assert_refused, run, succeeded
from tests.helpers.drawn_detectors import FEW_CLASSES, A, B, differences
from tests.helpers.official_metrics import official_evaluation
from tests.helpers.report_cases import IMAGE, draw_image, every_kind_of_error, random_truth_and_results
from tests.report.conftest import EVIL, EVIL_FILE, EVIL_NAMES


def scene(seed: int, images: int = 12) -> tuple[dict, list[dict]]:
    """Boxes of all sizes, crowds, and no equal scores, whose order in a drawn image is arbitrary."""
    truth, results = random_truth_and_results(seed, images)
    for number, annotation in enumerate(truth["annotations"]):
        if number % 3 == 0:
            scale_box(annotation, 2.0)  # some are large
            found = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
            results.append(found | {"bbox": [value * 1.05 for value in found["bbox"]]})
    scores = np.random.default_rng(seed).permutation(len(results)) / len(results)
    return truth, [entry | {"score": float(score)} for entry, score in zip(results, scores)]


def scale_box(annotation: dict, factor: float) -> None:
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x, y, factor * w, factor * h]
    annotation["area"] = factor * factor * w * h


def resampled(truth: dict, results: Sequence[dict], weights: np.ndarray) -> Resampled:
    data = make_eval_data(truth, {"bbox": results}, {})
    return resample(data, match_areas(data, find_overlaps(data, "bbox"), "bbox"), weights)


def drawn_as_copies(truth: dict, results: Sequence[dict], counts: dict[int, int]) -> tuple[dict, list[dict]]:
    """The data with each image as often as it is drawn, under ids of its own."""
    made: dict = {"images": [], "annotations": [], "categories": truth["categories"]}
    found = []
    for image, count in counts.items():
        for copied in range(count):
            new = 1000 * (copied + 1) + image
            made["images"] += [i | {"id": new} for i in truth["images"] if i["id"] == image]
            made["annotations"] += [a | {"image_id": new} for a in truth["annotations"] if a["image_id"] == image]
            found += [r | {"image_id": new} for r in results if r["image_id"] == image]
    made["annotations"] = [a | {"id": number} for number, a in enumerate(made["annotations"], start=1)]
    return made, found


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_all_images_is_cocos(seed: int):
    truth, results = random_truth_and_results(seed)  # with equal scores
    found = resampled(truth, results, draw_weights(len(truth["images"]), resamples=1))
    official = official_evaluation(truth, results, "bbox")
    stats = np.where(official.stats[:6] < 0, np.nan, official.stats[:6])
    np.testing.assert_allclose(found.values[:, -1, 0], stats, rtol=0, atol=1e-12)
    for k in range(len(truth["categories"])):
        precision = official.eval["precision"][:, :, k, :, -1]  # [IoU, recall, area]
        aps = [precision[..., 0], precision[0, :, 0], precision[5, :, 0], *(precision[..., a] for a in (1, 2, 3))]
        expected = [np.nan if (ap < 0).all() else ap.mean() for ap in aps]
        np.testing.assert_allclose(found.values[:, k, 0], expected, rtol=0, atol=1e-12)


def test_ap_of_a_resample_is_that_of_drawing_its_images():
    truth, results = scene(3)
    weights = draw_weights(len(truth["images"]), resamples=4, seed=1)
    found, exact = (resampled(truth, results, each) for each in (weights, weights.astype(np.float64)))
    ids = sorted(image["id"] for image in truth["images"])
    for r in range(1, 5):
        counts = dict(zip(ids, weights[:, r].astype(int).tolist()))
        assert max(counts.values()) > 1 and min(counts.values()) == 0
        stats = official_evaluation(*drawn_as_copies(truth, results, counts), "bbox").stats[:6]
        expected = np.where(stats < 0, np.nan, stats)
        np.testing.assert_allclose(found.values[:, -1, r], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(exact.values[:, -1, r], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_recalls_are_reached_as_cocos_rounding_has_it(dtype: type):
    for objects in (*range(1, 400), 9_999, 12_000, MOST_OBJECTS):
        hits, number = np.arange(objects + 1), np.array([float(objects)])
        reached = recalls_reached(hits[:, None].astype(dtype), number, just_short(number))
        assert np.array_equal(reached[:, 0], np.searchsorted(RECALLS, hits / objects, side="right") - 1), objects


def test_a_class_without_objects_in_a_resample_is_left_out_of_it():
    truth, results = scene(4)
    only = next(a for a in truth["annotations"] if not a["iscrowd"])
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != only["category_id"]] + [only]
    ids = sorted(image["id"] for image in truth["images"])
    weights = draw_weights(len(ids), resamples=50)
    found = resampled(truth, results, weights)
    k = [category["id"] for category in truth["categories"]].index(only["category_id"])
    assert np.array_equal(np.isnan(found.values[0, k]), weights[ids.index(only["image_id"])] == 0)
    assert not np.isnan(found.values[0, -1]).any() and np.isnan(found.values[0, k]).any()


@pytest.mark.long
def test_the_interval_of_a_difference_covers_the_truth():
    """In 500 draws of 100 images, as often as 95 % promises. Four standard errors below 95 % would be 91 %."""
    rng = np.random.default_rng(0)
    truth = differences(rng, replace(FEW_CLASSES, images=60_000), (A, B), resamples=0)[0]
    covered = 0
    for _ in range(500):
        _, (low, high) = differences(rng, FEW_CLASSES, (A, B), resamples=300)
        covered += low <= truth <= high
    assert 0.92 <= covered / 500 <= 0.98


# ------------------------------------------------------------------------------------------------------ two detectors


@pytest.fixture(scope="module")
def many() -> tuple[dict, list[dict]]:
    return scene(5, images=80)


def compared(truth: dict, a: list[dict], b: list[dict]) -> Comparison:
    return compare(truth, ("a", "b"), ({"bbox": a}, {"bbox": b}), ["bbox"], {})


def test_detections_and_themselves_do_not_differ(many: tuple[dict, list[dict]]):
    truth, results = many
    found = compared(truth, results, copy.deepcopy(results))
    for row in found.kinds[0].metrics + found.kinds[0].classes:
        assert row.difference == 0 and row.of_difference == (0, 0) and row.ahead == 0
        assert row.of_a.low <= row.a <= row.of_a.high and row.of_a.low < row.of_a.high
    assert found.kinds[0].changed_most(5) == []
    assert found.kinds[0].verdict().startswith("this data cannot tell: the AP of boxes is")


def test_a_tenth_of_the_detections_dropped_is_found(many: tuple[dict, list[dict]]):
    truth, results = many
    kept = np.random.default_rng(0).random(len(results)) > 0.1
    fewer = [entry for entry, keep in zip(results, kept) if keep]
    found = compared(truth, fewer, results)
    ap = found.kinds[0].metrics[0]
    assert ap.of_difference.low > 0 and ap.ahead > 0.97 and found.kinds[0].verdict().startswith("B is better")
    assert compared(truth, results, fewer).kinds[0].verdict().startswith("A is better")
    most = found.kinds[0].changed_most(5)
    a, b = (scores.f1 for scores in found.kinds[0].scores)
    assert len(most) == 5 and np.nanmax(np.abs(a - b)) == abs(a - b)[most[0]] > 0


def test_one_detection_more_cannot_be_told(many: tuple[dict, list[dict]]):
    truth, results = many
    assert compared(truth, results[1:], results).kinds[0].verdict().startswith("this data cannot tell")


def test_the_table_has_a_line_per_metric_and_class(many: tuple[dict, list[dict]]):
    truth, results = many
    lines = table(compared(truth, results, results)).splitlines()
    assert lines[:2] == ["A: a", "B: b"]
    assert sum(line.split("  ")[1].strip() in METRICS for line in lines if line.startswith("  ")) == len(METRICS)
    assert sum(line.startswith("  class ") for line in lines) == 3


def test_the_interval_leaves_out_resamples_without_a_value():
    assert interval_of(np.array([np.nan, *np.linspace(0, 1, 41)]), tail=0.025) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval_of(np.full(3, np.nan), tail=0.025)).all()


def test_the_fewer_images_a_class_is_in_the_wider_is_its_interval():
    """By Student's quantile times the square root of n / (n - 1): 2.776 * 1.118 standard deviations of 5 images."""
    assert tail_of(np.array([10**6])) == pytest.approx(0.025, rel=1e-3)
    assert tail_of(np.array([5])) == pytest.approx(NormalDist().cdf(-2.776 * 1.118), rel=0.25)
    assert tail_of(np.array([5] * 80)) == pytest.approx(NormalDist().cdf(-1.968 * 1.118), rel=0.02)
    assert np.isnan(tail_of(np.array([4]))) and tail_of(np.array([50, 50, 1])) < tail_of(np.array([50, 50, 50]))


# --------------------------------------------------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the hand-made image, b.json without one of them, and the truth."""
    folder = tmp_path_factory.mktemp("files")
    truth, results = every_kind_of_error(EVIL_NAMES, EVIL_FILE)
    entries = [box | mask for box, mask in zip(results["bbox"], results["segm"])]
    truth, entries = drawn_as_copies(truth, entries, {IMAGE: 6})
    (folder / "images").mkdir()
    draw_image(folder / "images" / "7.jpg")
    truth["images"][0]["file_name"] = "7.jpg"
    boxes = [entry | {"image_id": 1007} for entry in results["bbox"]]
    worse = [entry for entry in entries if entry["score"] != 0.9]
    for name, content in (
        ("truth", truth),
        ("a", worse),
        ("b", entries),
        ("boxes", boxes),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_script_compares_two_results_files(files: Path):
    given = ("--compare", "a.json", "b.json", "--annotation-file", "truth.json")
    outcome = succeeded(
        run(files, "validation.py", *given, "--boundary", "--image-folder", "images", "--report", "out")
    )
    lines = outcome.out.splitlines()
    assert lines[:3] == ["data: truth.json, 6 images", "A: a.json", "B: b.json"]
    assert [line for line in lines if line in ("masks", "boxes", "boundaries")] == ["masks", "boxes", "boundaries"]
    assert lines[-2].startswith("B is better: AP of masks")
    report = json.loads((files / "out" / "report.json").read_text(encoding="utf-8"))
    ap = report["segm"]["metrics"][0]
    assert ap["b"] > ap["a"] and ap["difference"] == pytest.approx(ap["b"] - ap["a"])
    assert ap["of_difference"][0] <= ap["difference"] <= ap["of_difference"][1]
    page = (files / "out" / "report.html").read_text(encoding="utf-8")
    assert EVIL not in page and page.count("</script") == 2 and page.count('class="shot pair triple"') == 6
    assert lines[-2].rstrip(".") in page
    assert len((files / "out" / "comparison.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3 * (6 + 3)


def test_files_of_one_name_are_told_apart_in_the_title(tmp_path: Path, many: tuple[dict, list[dict]]):
    truth, results = many
    for names, expected in (
        (("runs/a/model_4.pth", "runs/b/model_4.pth"), "A: a/model_4.pth and B: b/model_4.pth"),
        (("runs/a/model_4.pth", "runs/a/model_9.pth"), "A: model_4.pth and B: model_9.pth"),
        (("runs/a/model_4.pth", "runs/a/model_4.pth"), "A: model_4.pth and B: model_4.pth"),
    ):
        found = compare(truth, names, [{"bbox": results}] * 2, ["bbox"], {})
        page = write_comparison(tmp_path, found, {}).read_text(encoding="utf-8")
        assert f"<h1>{expected}</h1>" in page


def test_what_both_have_is_compared(files: Path):
    outcome = succeeded(
        run(files, "validation.py", "--compare", "a.json", "boxes.json", "--annotation-file", "truth.json")
    )
    assert "boxes" in outcome.out.splitlines() and "masks" not in outcome.out.splitlines()


def test_wrong_use_of_compare_is_refused(files: Path):
    assert_refused(run(files, "validation.py", "--compare", "a.json", "b.json"), "needs --annotation-file")
    assert_refused(run(files, "validation.py", "--compare", "a.json"), "--compare takes two files")
    given = ("--compare", "a.json", "b.json", "--annotation-file", "truth.json", "--save-thresholds")
    assert_refused(run(files, "validation.py", *given), "--save-thresholds is for one network's masks or boxes")
    given = ("--compare", "none.json", "b.json", "--annotation-file", "truth.json")
    assert_refused(run(files, "validation.py", *given), "none.json: no such file (--compare)")
    given = ("--compare", "a.json", "weights.pth", "--annotation-file", "truth.json")
    assert_refused(run(files, "validation.py", *given), "--annotation-file belongs to two results files")
    given = ("--compare", "a.json", "boxes.json", "--annotation-file", "truth.json", "--iou-type", "segm")
    assert_refused(run(files, "validation.py", *given), "boxes.json: detection 0 lacks segmentation")
