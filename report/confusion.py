"""Compute the confusion matrix, with background as an extra class, and rank images by their errors."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from report.average_precision import AT_50
from report.eval_data import EvalData
from report.matching import FITS, Matching, Overlaps


@dataclass
class Confusion:
    """The confusion matrix at IoU 0.5 and a score threshold, and the N pairs that it counts.

    A pair is an object and a detection; either may be missing.
    """

    score: float  # lower detections are ignored
    # int64 [K + 1, K + 1]. Rows are annotated classes, columns detected ones; the last row counts detections on
    # background, the last column missed objects.
    matrix: np.ndarray
    rows: np.ndarray  # int64 [N], with columns: the cell of each pair
    columns: np.ndarray
    objects: np.ndarray  # int64 [N], with detections: the members of each pair; -1 for none
    detections: np.ndarray
    images: np.ndarray  # int64 [N]


def confusion(data: EvalData, overlaps: Overlaps, matching: Matching, score: float) -> Confusion:
    """Pair detections with objects: first within their class, as COCO does, then across classes by descending IoU.

    Crowds, and unmatched detections inside a crowd of any class, do not count. hotcoco's confusion matrix ignores the
    class from the start, so that it can show a detection as confused that COCO's AP counts as right (4 of 832 pairs of
    the official example differ).
    """
    background = len(data.class_names)
    kept = data.detections.scores >= score  # matches do not depend on detections with lower scores
    partner = np.where(kept, matching.objects[AT_50], -1)
    taken = np.zeros(len(data.objects), dtype=bool)
    taken[partner[partner >= 0]] = True
    fitting = np.flatnonzero((overlaps.ious >= FITS) & kept[overlaps.detections])
    for p in fitting[np.argsort(-overlaps.ious[fitting], kind="stable")].tolist():
        d, g = overlaps.detections[p], overlaps.objects[p]
        if not overlaps.crowds[p] and partner[d] < 0 and not taken[g]:
            partner[d], taken[g] = g, True
    in_crowd = np.zeros(len(kept), dtype=bool)
    in_crowd[overlaps.detections[fitting[overlaps.crowds[fitting]]]] = True

    shown = np.flatnonzero(kept & ~(in_crowd & (partner < 0)))
    missed = np.flatnonzero(~taken & ~data.objects.crowds)
    objects = np.concatenate((partner[shown], missed))
    detections = np.concatenate((shown, np.full(len(missed), -1)))
    rows = np.append(data.objects.classes, background)[objects]  # -1, for none, selects the appended one
    columns = np.append(data.detections.classes, background)[detections]
    images = np.concatenate((data.detections.images[shown], data.objects.images[missed]))
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    np.add.at(matrix, (rows, columns), 1)
    return Confusion(score, matrix, rows, columns, objects, detections, images)


@dataclass
class ImageScores:
    """Numbers of correct and wrong detections per image, at the confusion matrix's score threshold."""

    right: np.ndarray  # int64 [I], detections with an object of their class
    false: np.ndarray  # int64 [I], other detections
    missed: np.ndarray  # int64 [I], objects without a detection of their class
    f1: np.ndarray  # float64 [I], NaN if an image has neither objects nor detections

    def worst(self, number: int) -> list[int]:
        """Return up to `number` images with errors, by ascending F1. Among equals, more errors come first."""
        wrong = self.false + self.missed
        order = np.lexsort((-wrong, np.nan_to_num(self.f1, nan=2.0)))
        return [i for i in order.tolist() if wrong[i]][:number]

    def best(self, number: int) -> list[int]:
        """Return up to `number` images with correct detections, by descending F1, without those of `worst(number)`.

        Among equals, more correct detections come first.
        """
        order = np.lexsort((-self.right, -np.nan_to_num(self.f1, nan=-1.0)))
        taken = set(self.worst(number))
        return [i for i in order.tolist() if self.right[i] and i not in taken][:number]

    def sample(self, number: int) -> list[int]:
        """Return up to `number` images with objects or detections, drawn at random with a fixed seed."""
        drawn = np.random.default_rng(0).permutation(len(self.f1))
        return [i for i in drawn.tolist() if not np.isnan(self.f1[i])][:number]


def score_images(data: EvalData, pairs: Confusion) -> ImageScores:
    is_right = pairs.rows == pairs.columns
    right, false, missed = (
        np.bincount(pairs.images[chosen], minlength=len(data.image_ids))
        for chosen in (is_right, ~is_right & (pairs.detections >= 0), ~is_right & (pairs.objects >= 0))
    )
    with np.errstate(invalid="ignore"):
        f1 = 2 * right / (2 * right + false + missed)
    return ImageScores(right, false, missed, f1)


def describe_errors(data: EvalData, pairs: Confusion, image: int) -> str:
    """Describe the errors of an image, such as "dog taken for cat; missed: 2 cup; false: chair"."""
    background = len(data.class_names)
    found: dict[str, Counter[str]] = {"": Counter(), "missed: ": Counter(), "false: ": Counter()}
    for p in np.flatnonzero((pairs.images == image) & (pairs.rows != pairs.columns)).tolist():
        row, column = int(pairs.rows[p]), int(pairs.columns[p])
        if column == background:
            found["missed: "][data.class_names[row]] += 1
        elif row == background:
            found["false: "][data.class_names[column]] += 1
        else:
            found[""][f"{data.class_names[row]} taken for {data.class_names[column]}"] += 1
    parts = [
        title + ", ".join(f"{number} {name}" if number > 1 else name for name, number in names.most_common())
        for title, names in found.items()
        if names
    ]
    return "; ".join(parts) or "nothing wrong"
