"""Count which class is taken for which, with background as one more class."""

from dataclasses import dataclass

import numpy as np

from report.overlaps import Matching, Overlaps
from report.precision_recall import AT_50
from report.records import Scene

FITS = 0.5  # IoU


@dataclass
class Confusion:
    """Objects and detections in pairs, at IoU 0.5 and a score.

    Attributes:
        score: the lowest score of the detections that count.
        matrix: int64 [K + 1, K + 1], rows the annotated class, columns the detected one; the last row holds detections
            of nothing, the last column objects that are not found.
        rows, columns: int64 [N], the cell of each pair.
        objects, detections: int64 [N], the pair; -1 where it lacks one.
    """

    score: float
    matrix: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    objects: np.ndarray
    detections: np.ndarray


def confusion(scene: Scene, overlaps: Overlaps, matching: Matching, score: float) -> Confusion:
    """Pair detections with objects: first with those of their class, as COCO does, then with any by falling IoU.

    Crowds, and detections that lie in one of any class, are left out.
    """
    number, background = len(scene.detections), len(scene.class_names)
    kept = scene.detections.scores >= score  # matching is by falling score, so that none depends on a lower one
    partner = np.where(kept, matching.objects[AT_50], -1)
    taken = np.zeros(len(scene.objects), dtype=bool)
    taken[partner[partner >= 0]] = True
    fitting = np.flatnonzero((overlaps.ious >= FITS) & kept[overlaps.detections])
    for p in fitting[np.argsort(-overlaps.ious[fitting], kind="stable")].tolist():
        d, g = overlaps.detections[p], overlaps.objects[p]
        if not overlaps.crowds[p] and partner[d] < 0 and not taken[g]:
            partner[d], taken[g] = g, True
    in_crowd = np.zeros(number, dtype=bool)
    in_crowd[overlaps.detections[fitting[overlaps.crowds[fitting]]]] = True

    shown = np.flatnonzero(kept & ~(in_crowd & (partner < 0)))
    missed = np.flatnonzero(~taken & ~scene.objects.crowds)
    objects = np.concatenate((partner[shown], missed))
    detections = np.concatenate((shown, np.full(len(missed), -1)))
    rows = np.where(objects >= 0, scene.objects.classes[objects] if len(scene.objects) else background, background)
    columns = np.where(detections >= 0, scene.detections.classes[detections] if number else background, background)
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    np.add.at(matrix, (rows, columns), 1)
    return Confusion(score, matrix, rows, columns, objects, detections)
