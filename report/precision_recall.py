"""Compute precision and recall per class from a matching: COCO's AP with its curves, and the score with the best F1."""

from dataclasses import dataclass

import numpy as np

from report.overlaps import Matching
from report.records import Scene

RECALLS = np.linspace(0, 1, 101)
AT_50, AT_75 = 0, 5  # places of these thresholds in overlaps.IOUS


@dataclass
class ClassResult:
    """Result for one class; numbers are NaN where the data has no object of it.

    Attributes:
        objects: their number, without crowds.
        ap, ap50, ap75: COCO's.
        precision, recall, f1: at IoU 0.5, of the detections that score at least `threshold`.
        threshold: the score at which F1 is best; NaN without detections.
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
    """The score with the best F1, and precision, recall and F1 of what scores at least that."""

    threshold: float
    precision: float
    recall: float
    f1: float


NONE = BestScore(float("nan"), 0.0, 0.0, 0.0)


def class_results(scene: Scene, matching: Matching) -> list[ClassResult]:
    """Results of all classes, in their order."""
    counts = object_counts(scene)
    by_class = detections_by_class(scene)
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
        best = best_f1(scene.detections.scores[chosen], right[AT_50], counted[AT_50], objects)
        results.append(
            ClassResult(objects, ap, ap50, ap75, best.precision, best.recall, best.f1, best.threshold, curves)
        )
    return results


def mean_curves(results: list[ClassResult]) -> np.ndarray:
    """The mean of all classes that have objects, float64 [3, 101]; NaN if none has."""
    curves = [result.curves for result in results if result.objects]
    return np.mean(curves, axis=0) if curves else np.full((3, 101), np.nan)


def object_counts(scene: Scene) -> np.ndarray:
    """The number of objects per class without crowds, int64 [K]."""
    return np.bincount(scene.objects.classes[~scene.objects.crowds], minlength=len(scene.class_names))


def detections_by_class(scene: Scene, classes: np.ndarray | None = None) -> list[np.ndarray]:
    """The detections of each class by falling score; ties by image, as in COCO's metrics.

    Args:
        classes: int64 [D], instead of the detections' own.
    """
    classes = scene.detections.classes if classes is None else classes
    order = np.lexsort((-scene.detections.scores, classes))
    borders = np.searchsorted(classes[order], np.arange(len(scene.class_names) + 1))
    return [order[begin:end] for begin, end in zip(borders[:-1], borders[1:])]


def interpolated_precision(right: np.ndarray, counted: np.ndarray, objects: int) -> np.ndarray:
    """COCO's precision at 101 recalls: the best that is reached at that recall or a higher one; 0 beyond the last.

    Args:
        right, counted: bool [T, N], whether a detection is matched, and whether it is not ignored; by falling score.
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
    """The score with the best F1 of detections [N], which are given by falling score."""
    scores, right = scores[counted], right[counted]
    if not len(scores) or not right.any():
        return NONE
    hits, found = right.cumsum(), np.arange(1, len(right) + 1)
    f1 = 2 * hits / (objects + found)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # a threshold takes all detections of one score
    best = int(f1.argmax())
    recall = float(hits[best] / objects)
    return BestScore(float(scores[best]), float(hits[best] / found[best]), recall, float(f1[best]))


def best_overall(scene: Scene, matching: Matching) -> BestScore:
    """The one score for all classes with the best F1 at IoU 0.5."""
    order = np.argsort(-scene.detections.scores, kind="stable")
    right, counted = matching.objects[AT_50, order] >= 0, ~matching.ignored[AT_50, order]
    objects = int(object_counts(scene).sum())
    return best_f1(scene.detections.scores[order], right, counted, objects) if objects else NONE
