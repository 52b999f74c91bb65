"""Everything that is computed from one comparison, of boxes or of masks."""

from dataclasses import dataclass

import numpy as np

from report.confusion import Confusion, confusion
from report.error_kinds import Errors, find_errors
from report.groups import Group, by_border, by_crowding, by_size
from report.overlaps import Overlaps, find_overlaps, match
from report.precision_recall import BestScore, ClassResult, best_overall, class_results, mean_curves
from report.records import Scene


@dataclass
class Analysis:
    """Results of one comparison.

    Attributes:
        kind: "bbox" or "segm".
        curves: float64 [3, 101], the mean of the classes' curves.
        best: the one score for all classes with the best F1.
        pairs: objects and detections in pairs, at that score.
        groups: "size", "crowding" and "border" -> AP of groups.
    """

    kind: str
    overlaps: Overlaps
    classes: list[ClassResult]
    curves: np.ndarray
    best: BestScore
    errors: Errors
    pairs: Confusion
    groups: dict[str, list[Group]]


def analyse(scene: Scene, kind: str) -> Analysis:
    """Compare boxes ("bbox") or masks ("segm")."""
    overlaps = find_overlaps(scene, kind)
    matching = match(scene, overlaps)
    classes = class_results(scene, matching)
    best = best_overall(scene, matching)
    lowest = best.threshold if best.threshold == best.threshold else float("inf")  # NaN: no detection is right
    return Analysis(
        kind,
        overlaps,
        classes,
        mean_curves(classes),
        best,
        find_errors(scene, overlaps, matching),
        confusion(scene, overlaps, matching, lowest),
        {
            "size": by_size(scene, matching, kind),
            "crowding": by_crowding(scene, matching),
            "border": by_border(scene, matching),
        },
    )
