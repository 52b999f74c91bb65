"""Boundary AP: exact against dense masks, and against faster-coco-eval."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from report.analysis import boundary_metrics
from report.eval_data import make_eval_data
from report.matching import boundary_codes
from tests.helpers.report_cases import random_truth_and_results


def dense_boundary(mask: np.ndarray) -> np.ndarray:
    """The mask without what is left after eroding it step by step in the whole image."""
    steps = max(round(0.02 * float(np.hypot(*mask.shape))), 1)
    inside = mask.astype(bool)
    for _ in range(steps):
        around = np.pad(inside, 1)
        shifted = [around[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)]
        inside = np.logical_and.reduce(shifted)
    return mask.astype(bool) & ~inside


def blobs(seed: int, height: int, width: int, number: int = 12) -> list[np.ndarray]:
    """Masks with holes, parts and every size, some of which touch the border; one is full and one empty."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    masks = [np.ones((height, width), bool), np.zeros((height, width), bool)]
    for _ in range(number):
        mask = np.zeros((height, width), bool)
        for sign in (True, True, False):
            y, x, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(1, max(height, width) / 2)
            mask[(rows - y) ** 2 / rng.uniform(0.3, 3) + (columns - x) ** 2 < r * r / (1 if sign else 8)] = sign
        masks.append(mask)
    return masks


def code_of(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.mark.parametrize("size", [(120, 200), (333, 250), (30, 20), (1, 40)], ids=str)
def test_boundaries_of_compact_masks_are_those_of_dense_ones(size: tuple[int, int]):
    masks = blobs(sum(size), *size)
    for mask, code in zip(masks, boundary_codes([code_of(mask) for mask in masks]), strict=True):
        np.testing.assert_array_equal(coco_mask.decode(code).astype(bool), dense_boundary(mask))


def masked_scene(seed: int, size: int = 200) -> tuple[dict, list[dict]]:
    """Objects that are ellipses, detections that are moved ones, and crowds."""
    truth, results = random_truth_and_results(seed, images=8)
    rows, columns = np.mgrid[:size, :size]

    def ellipse(box: list[float], grown: float = 1.0) -> dict:
        x, y, w, h = box
        radii = np.maximum([grown * w / 2, grown * h / 2], 1)
        return code_of(((columns - x - w / 2) / radii[0]) ** 2 + ((rows - y - h / 2) / radii[1]) ** 2 <= 1)

    rng = np.random.default_rng(seed)
    for annotation in truth["annotations"]:
        annotation["segmentation"] = ellipse(annotation["bbox"])
        annotation["area"] = float(coco_mask.area(annotation["segmentation"]))
    results += [{k: a[k] for k in ("image_id", "category_id", "bbox")} for a in truth["annotations"]]
    found = []
    for entry, score in zip(results, rng.permutation(len(results)) / len(results)):
        code = ellipse(entry["bbox"], rng.uniform(0.85, 1.15))
        found.append(
            {"image_id": entry["image_id"], "category_id": entry["category_id"], "score": float(score)}
            | {"segmentation": code | {"counts": code["counts"].decode()}}
        )
    for annotation in truth["annotations"]:
        annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"].decode()
    return truth, found


def faster_coco_evals(truth: dict, results: list[dict]) -> np.ndarray:
    """The 12 numbers of faster-coco-eval."""
    faster = pytest.importorskip("faster_coco_eval")
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = faster.COCO(truth)
        evaluation = faster.COCOeval_faster(ground_truth, ground_truth.loadRes(results), "boundary", print_function=str)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:12]


@pytest.mark.parametrize("seed", range(3))
def test_boundary_metrics_equal_faster_coco_evals(seed: int):
    truth, results = masked_scene(seed)
    found = boundary_metrics(make_eval_data(truth, {"segm": results}, {})).stats
    np.testing.assert_allclose(found, faster_coco_evals(truth, results), rtol=0, atol=1e-9)
    assert 0.05 < found[0] < 0.95 and found[3] > 0 and found[4] > 0


@pytest.mark.slow
def test_boundary_metrics_of_the_official_example(real_data_folder: Path):
    folder = real_data_folder / "cocoapi_demo"
    truth, results = (
        json.loads((folder / name).read_text())
        for name in ("instances_val2014_100.json", "instances_val2014_fakesegm100_results.json")
    )
    found = boundary_metrics(make_eval_data(truth, {"segm": results}, {})).stats
    np.testing.assert_allclose(found, faster_coco_evals(truth, results), rtol=0, atol=1e-9)
    assert found[0] < 0.32  # mask AP
