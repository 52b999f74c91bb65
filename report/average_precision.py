"""Compute AP per class and per group of objects, precision curves, best F1 and calibration of detections.

Curves and APs of classes equal those of hotcoco and pycocotools. They are computed here because the groups, and the
repairs of error_kinds.py, need the AP of subsets of detections and objects, which neither library supports.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from report.eval_data import Detections, EvalData, Objects
from report.matching import Matching, detection_areas

RECALLS = np.linspace(0, 1, 101)  # 0.01 times 0, 1, ..., 100
AT_50, AT_75 = 0, 5  # indices of these thresholds in matching.IOUS
BINS = 10  # of the calibration, of equal width
GROUPS = {  # lower ends of the ranges, and their names
    # Square root of the area in pixels; includes COCO's 32 and 96.
    "size": ((0, 16, 32, 64, 96, 128, 256), ("under 16", "16-32", "32-64", "64-96", "96-128", "128-256", "over 256")),
    # Objects in the image, including crowds.
    "crowding": ((1, 2, 4, 8, 16), ("1", "2-3", "4-7", "8-15", "16 and more")),
    # Distance of the box to the nearest border, in percent of the image's short side.
    "border": ((0, 1, 5, 15), ("touches it", "1-5 %", "5-15 %", "over 15 %")),
}


class BestScore(NamedTuple):
    """The score threshold with the best F1, and precision, recall and F1 at that threshold."""

    precision: float
    recall: float
    f1: float
    threshold: float


NO_SCORE = BestScore(0.0, 0.0, 0.0, float("nan"))


@dataclass
class ClassResult:
    """Results of one class. Numbers are NaN if the data has no object of the class."""

    objects: int  # without crowds
    ap: float
    ap50: float
    ap75: float
    precision: float  # with recall and f1: at IoU 0.5, of the detections that score at least `threshold`
    recall: float
    f1: float
    threshold: float  # the score with the best F1; NaN without correct detections
    # float64 [3, 101], interpolated precision at the recalls 0, 0.01, ..., 1 at IoU 0.5, at 0.75, and as the mean over
    # all IoUs. The mean of a curve is AP50, AP75 or AP.
    curves: np.ndarray


def class_results(data: EvalData, matching: Matching) -> list[ClassResult]:
    results = []
    for objects, chosen in zip(object_counts(data).tolist(), detections_by_class(data)):
        if not objects:
            nan = float("nan")
            results.append(ClassResult(0, nan, nan, nan, nan, nan, nan, nan, np.full((3, 101), nan)))
            continue
        right, counted = matching.objects[:, chosen] >= 0, ~matching.ignored[:, chosen]
        curve = interpolated_precision(right, counted, objects)
        curves = np.stack((curve[AT_50], curve[AT_75], curve.mean(axis=0)))
        ap50, ap75, ap = curves.mean(axis=1).tolist()
        best = best_f1(data.detections.scores[chosen], right[AT_50], counted[AT_50], objects)
        results.append(ClassResult(objects, ap, ap50, ap75, *best, curves))
    return results


def mean_curves(results: Sequence[ClassResult]) -> np.ndarray:
    """Return the mean of `ClassResult.curves`, float64 [3, 101], over classes with objects; NaN if there are none."""
    curves = [result.curves for result in results if result.objects]
    return np.mean(curves, axis=0) if curves else np.full((3, 101), np.nan)


def object_counts(data: EvalData) -> np.ndarray:
    """Count the objects per class, without crowds, int64 [K]."""
    return np.bincount(data.objects.classes[~data.objects.crowds], minlength=len(data.class_names))


def detections_by_class(data: EvalData, classes: np.ndarray | None = None) -> list[np.ndarray]:
    """Return the indices of each class's detections by descending score; ties by image, as in COCO's metrics.

    `classes`, int64 [D], replace the detections' own.
    """
    classes = data.detections.classes if classes is None else classes
    order = np.lexsort((-data.detections.scores, classes))
    borders = np.searchsorted(classes[order], np.arange(len(data.class_names) + 1))
    return [order[begin:end] for begin, end in zip(borders[:-1], borders[1:])]


def interpolated_precision(right: np.ndarray, counted: np.ndarray, objects: int) -> np.ndarray:
    """Return COCO's precision at T IoUs and 101 recalls, float64 [T, 101]. The mean of a row is the AP at that IoU.

    COCO uses the best precision at the same or a higher recall, and 0 beyond the highest recall reached. `right` and
    `counted`, bool [T, N] by descending score, state whether a detection is matched, and whether it counts (is not
    ignored). `objects`, at least 1, is the number of objects to find.
    """
    hits = np.cumsum(right & counted, axis=1)
    misses = np.cumsum(~right & counted, axis=1)
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(precision, ((0, 0), (0, 1)))
    return np.stack([row[np.searchsorted(reached, RECALLS)] for row, reached in zip(padded, hits / objects)])


def best_f1(scores: np.ndarray, right: np.ndarray, counted: np.ndarray, objects: int) -> BestScore:
    """Find the score threshold with the best F1. Detections [N] are as in `interpolated_precision`, at one IoU."""
    scores, right = scores[counted], right[counted]
    if not objects or not right.any():
        return NO_SCORE
    hits, found = right.cumsum(), np.arange(1, len(right) + 1)
    f1 = 2 * hits / (objects + found)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # a threshold includes all detections with equal scores
    best = int(f1.argmax())
    precision, recall = float(hits[best] / found[best]), float(hits[best] / objects)
    return BestScore(precision, recall, float(f1[best]), float(scores[best]))


def best_overall(data: EvalData, matching: Matching) -> BestScore:
    """Find the score threshold, common to all classes, with the best F1 at IoU 0.5."""
    order = np.argsort(-data.detections.scores, kind="stable")
    right, counted = matching.objects[AT_50, order] >= 0, ~matching.ignored[AT_50, order]
    return best_f1(data.detections.scores[order], right, counted, int(object_counts(data).sum()))


@dataclass
class Calibration:
    """The mean score and the share of correct detections at IoU 0.5, in each of B ranges of scores.

    A calibrated score of 0.8 is right in 8 of 10 cases.
    """

    counts: np.ndarray  # int64 [B], detections
    scores: np.ndarray  # float64 [B], their mean score; NaN without detections
    right: np.ndarray  # float64 [B], the share that is right; NaN without detections
    error: float  # expected calibration error: mean |score - share| over all detections; NaN without detections


def calibration(data: EvalData, matching: Matching) -> Calibration:
    """Compute the calibration of all detections but those inside crowds, as hotcoco's `calibration` does."""
    counted = ~matching.ignored[AT_50]
    scores, right = data.detections.scores[counted], matching.objects[AT_50, counted] >= 0
    bins = np.clip(scores * BINS, 0, BINS - 1).astype(int)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means, shares = (np.bincount(bins, values, minlength=BINS) / counts for values in (scores, right))
    error = np.nansum(counts * np.abs(means - shares)) / counts.sum() if len(scores) else float("nan")
    return Calibration(counts, means, shares, float(error))


@dataclass
class Group:
    name: str  # of the range
    objects: int  # without crowds
    ap: float  # mean over IoUs and over the classes with objects in the group; NaN without objects


def all_groups(data: EvalData, matching: Matching, kind: str) -> dict[str, list[Group]]:
    """Compute the AP of objects grouped by size, by number of objects in the image, and by distance to the border.

    Detections are matched once, to all objects. A matched detection belongs to the group of its object, any other
    detection to the group of its own size, image or distance. COCO repeats the matching for small, medium and large
    objects, so its AP can differ in the third decimal.
    """
    objects, found = data.objects, data.detections
    in_image = np.bincount(objects.images, minlength=len(data.image_ids))
    values = {
        "size": (np.sqrt(objects.areas), np.sqrt(detection_areas(data, kind))),
        # False detections in an image without objects belong to the first group.
        "crowding": (in_image[objects.images], np.maximum(in_image[found.images], 1)),
        "border": (border_distance(data, objects), border_distance(data, found)),
    }
    return {name: group_aps(data, matching, *values[name], *ranges) for name, ranges in GROUPS.items()}


def border_distance(data: EvalData, of: Objects | Detections) -> np.ndarray:
    """Return each box's distance to the nearest border, in percent of the image's short side, float64 [N]."""
    height, width = data.sizes[of.images].T
    x, y, w, h = of.boxes.T
    gaps = np.stack((x, y, width - x - w, height - y - h))
    return 100 * np.maximum(gaps.min(axis=0, initial=np.inf), 0) / np.minimum(height, width)


def group_aps(
    data: EvalData, matching: Matching, of_objects: np.ndarray, of_detections: np.ndarray, edges: Sequence[float],
    names: Sequence[str],
) -> list[Group]:  # fmt: skip
    """Compute the AP of the objects in each range of a property, such as size.

    `of_objects` [G] and `of_detections` [D] are the values of the property, `edges` the lower ends of the ranges.
    """
    in_range, own_range = (np.searchsorted(edges, each, side="right") - 1 for each in (of_objects, of_detections))
    matched = matching.objects >= 0
    ranges = np.broadcast_to(own_range, matched.shape).copy()
    ranges[matched] = in_range[matching.objects[matched]]
    by_class = detections_by_class(data)
    result = []
    for number, name in enumerate(names):
        chosen_objects = ~data.objects.crowds & (in_range == number)
        counts = np.bincount(data.objects.classes[chosen_objects], minlength=len(by_class))
        counted = ~matching.ignored & (ranges == number)
        aps = [
            interpolated_precision(matched[:, chosen], counted[:, chosen], count).mean()
            for count, chosen in zip(counts.tolist(), by_class)
            if count
        ]
        result.append(Group(name, int(counts.sum()), float(np.mean(aps)) if aps else float("nan")))
    return result
