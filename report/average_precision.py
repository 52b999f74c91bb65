"""Compute AP from a matching: per class, with curves and best F1, and per group of objects.

Curves and APs of classes equal those of hotcoco and pycocotools. They are computed here because the groups, and the
repairs of error_kinds.py, need the AP of subsets of detections and objects, which neither library supports.

Objects are grouped by size, by the number of objects in the image, or by distance to the border. The matching over all
objects is kept. A matched detection belongs to its object's group, any other to the group of its own size or place.
COCO's small, medium and large repeat the matching within each range, so the numbers of equal ranges can differ in the
third decimal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from report.eval_data import EvalData
from report.matching import Matching, detection_areas

RECALLS = np.linspace(0, 1, 101)
AT_50, AT_75 = 0, 5  # indices of these thresholds in matching.IOUS
SIZE_EDGES = (0, 16, 32, 64, 96, 128, 256)  # square root of the area, in pixels; includes COCO's 32 and 96
CROWDING_EDGES = (1, 2, 4, 8, 16)  # objects in the image
BORDER_EDGES = (0, 1, 5, 15)  # distance in percent of the image's short side; the first range is "touches it"


@dataclass
class ClassResult:
    """Results of one class; numbers are NaN if the data has no object of the class.

    Attributes:
        objects: number of objects, without crowds.
        ap, ap50, ap75: COCO's AP, AP50 and AP75.
        precision, recall, f1: at IoU 0.5, for the detections that score at least `threshold`.
        threshold: the score with the best F1; NaN without correct detections.
        curves: float64 [3, 101], interpolated precision at the recalls 0, 0.01, ..., 1 at IoU 0.5, at 0.75, and as the
            mean over all IoUs. The mean of a curve is AP50, AP75 or AP.
    """

    objects: int
    ap: float
    ap50: float
    ap75: float
    precision: float
    recall: float
    f1: float
    threshold: float
    curves: np.ndarray


@dataclass
class BestScore:
    """The score threshold with the best F1, and precision, recall and F1 at that threshold."""

    threshold: float
    precision: float
    recall: float
    f1: float


NONE = BestScore(float("nan"), 0.0, 0.0, 0.0)


def class_results(data: EvalData, matching: Matching) -> list[ClassResult]:
    """Return the results of all classes, in their order."""
    counts = object_counts(data)
    by_class = detections_by_class(data)
    results = []
    for k, objects in enumerate(counts.tolist()):
        chosen = by_class[k]
        right, counted = matching.objects[:, chosen] >= 0, ~matching.ignored[:, chosen]
        if not objects:
            nan = float("nan")
            results.append(ClassResult(0, nan, nan, nan, nan, nan, nan, nan, np.full((3, 101), np.nan)))
            continue
        curve = interpolated_precision(right, counted, objects)
        curves = np.stack((curve[AT_50], curve[AT_75], curve.mean(axis=0)))
        ap50, ap75, ap = curves.mean(axis=1).tolist()
        best = best_f1(data.detections.scores[chosen], right[AT_50], counted[AT_50], objects)
        results.append(
            ClassResult(objects, ap, ap50, ap75, best.precision, best.recall, best.f1, best.threshold, curves)
        )
    return results


def mean_curves(results: list[ClassResult]) -> np.ndarray:
    """Return the mean over the classes that have objects, float64 [3, 101]; NaN if none has."""
    curves = [result.curves for result in results if result.objects]
    return np.mean(curves, axis=0) if curves else np.full((3, 101), np.nan)


def object_counts(data: EvalData) -> np.ndarray:
    """Count the objects per class, without crowds, int64 [K]."""
    return np.bincount(data.objects.classes[~data.objects.crowds], minlength=len(data.class_names))


def detections_by_class(data: EvalData, classes: np.ndarray | None = None) -> list[np.ndarray]:
    """Return the detections of each class by descending score; ties by image, as in COCO's metrics.

    Args:
        classes: int64 [D], classes to use instead of the detections' own.
    """
    classes = data.detections.classes if classes is None else classes
    order = np.lexsort((-data.detections.scores, classes))
    borders = np.searchsorted(classes[order], np.arange(len(data.class_names) + 1))
    return [order[begin:end] for begin, end in zip(borders[:-1], borders[1:])]


def interpolated_precision(right: np.ndarray, counted: np.ndarray, objects: int) -> np.ndarray:
    """Return COCO's precision at 101 recalls: the best at that recall or a higher one; 0 beyond the highest.

    Args:
        right, counted: bool [T, N], whether a detection is matched, and whether it counts (is not ignored); by
            descending score.
        objects: number of objects to find, at least 1.

    Returns:
        float64 [T, 101]; the mean of a row is the AP.
    """
    hits = np.cumsum(right & counted, axis=1)
    misses = np.cumsum(~right & counted, axis=1)
    recall = hits / objects
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate((precision, np.zeros((len(precision), 1))), axis=1)
    return np.stack([row[np.searchsorted(reached, RECALLS, side="left")] for row, reached in zip(padded, recall)])


def best_f1(scores: np.ndarray, right: np.ndarray, counted: np.ndarray, objects: int) -> BestScore:
    """Find the score threshold with the best F1 for detections [N], sorted by descending score."""
    scores, right = scores[counted], right[counted]
    if not len(scores) or not right.any():
        return NONE
    hits, found = right.cumsum(), np.arange(1, len(right) + 1)
    f1 = 2 * hits / (objects + found)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # a threshold includes all detections with equal scores
    best = int(f1.argmax())
    recall = float(hits[best] / objects)
    return BestScore(float(scores[best]), float(hits[best] / found[best]), recall, float(f1[best]))


def best_overall(data: EvalData, matching: Matching) -> BestScore:
    """Find the score threshold, common to all classes, with the best F1 at IoU 0.5."""
    order = np.argsort(-data.detections.scores, kind="stable")
    right, counted = matching.objects[AT_50, order] >= 0, ~matching.ignored[AT_50, order]
    objects = int(object_counts(data).sum())
    return best_f1(data.detections.scores[order], right, counted, objects) if objects else NONE


@dataclass
class Group:
    """Objects within one range of a property.

    Attributes:
        name: the range as text.
        objects: number of objects, without crowds.
        ap: mean over IoUs and over the classes with objects in the group; NaN without objects.
    """

    name: str
    objects: int
    ap: float


def by_size(data: EvalData, matching: Matching, kind: str) -> list[Group]:
    """Group by the square root of the area."""
    names = range_names(SIZE_EDGES)
    own = np.sqrt(detection_areas(data, kind))
    return groups(data, matching, np.sqrt(data.objects.areas), own, SIZE_EDGES, names)


def by_crowding(data: EvalData, matching: Matching) -> list[Group]:
    """Group by the number of objects in the image, including crowds."""
    counts = np.bincount(data.objects.images, minlength=len(data.image_ids))
    names = ["1", "2-3", "4-7", "8-15", "16 and more"]
    # False detections in an image without objects belong to the first group.
    found_in = np.maximum(counts[data.detections.images], 1)
    return groups(data, matching, counts[data.objects.images], found_in, CROWDING_EDGES, names)


def by_border(data: EvalData, matching: Matching) -> list[Group]:
    """Group by the distance of the box to the nearest border of the image."""
    names = ["touches it", "1-5 %", "5-15 %", "over 15 %"]
    objects = border_distance(data, data.objects.boxes, data.objects.images)
    found = border_distance(data, data.detections.boxes, data.detections.images)
    return groups(data, matching, objects, found, BORDER_EDGES, names)


def border_distance(data: EvalData, boxes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the distances of boxes [N, 4] in percent of their image's short side, float64 [N]."""
    height, width = data.sizes[images].T
    x, y, w, h = boxes.T
    gaps = np.stack((x, y, width - x - w, height - y - h))
    return 100 * np.maximum(gaps.min(axis=0, initial=np.inf), 0) / np.minimum(height, width)


def groups(
    data: EvalData,
    matching: Matching,
    of_objects: np.ndarray,
    of_detections: np.ndarray,
    edges: Sequence[float],
    names: Sequence[str],
) -> list[Group]:
    """Compute the AP of each range of a property.

    Args:
        of_objects, of_detections: values of the property, [G] and [D].
        edges: lower ends of the ranges.
    """
    in_range = np.searchsorted(edges, of_objects, side="right") - 1
    own_range = np.searchsorted(edges, of_detections, side="right") - 1
    matched = matching.objects >= 0
    ranges = np.broadcast_to(own_range, matched.shape).copy()
    if len(data.objects):
        ranges[matched] = in_range[matching.objects[matched]]
    real = ~data.objects.crowds
    by_class = detections_by_class(data)
    result = []
    for number, name in enumerate(names):
        counts = np.bincount(data.objects.classes[real & (in_range == number)], minlength=len(by_class))
        counted = ~matching.ignored & (ranges == number)
        aps = [
            interpolated_precision(matched[:, chosen], counted[:, chosen], int(counts[k])).mean()
            for k, chosen in enumerate(by_class)
            if counts[k]
        ]
        result.append(Group(name, int(counts.sum()), float(np.mean(aps)) if aps else float("nan")))
    return result


def range_names(edges: Sequence[int]) -> list[str]:
    names = [f"{low}-{high}" for low, high in zip(edges[:-1], edges[1:])]
    return [f"under {edges[1]}", *names[1:], f"over {edges[-1]}"]
