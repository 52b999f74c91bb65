"""Classify the errors of detections, and compute how much AP each kind of error costs.

The six kinds and their repairs are those of TIDE (Bolya et al., ECCV 2020), at IoU 0.5 and with 0.1 as the limit of
background. The cost of a kind is how much AP50 rises if all errors of that kind are repaired.

hotcoco has the same kinds (`tide_errors`), but returns only sums; the page and the suspects need the kind of each
detection. Its counts differ for crowds and ties (in most of 40 random scenes), and if all objects of a class are
missed, its repair leaves the AP of the class at 0.
"""

from dataclasses import dataclass

import numpy as np

from report.average_precision import AT_50, detections_by_class, interpolated_precision, object_counts
from report.eval_data import EvalData
from report.matching import FITS, LEAST_OVERLAP, Matching, Overlaps

RIGHT, CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(7)
KINDS = {CLASS: "class", LOCATION: "location", BOTH: "both", DUPLICATE: "duplicate", BACKGROUND: "background"}
MISSED = "missed"
MEANINGS = {
    "class": "the box or mask fits an object of another class",
    "location": "the class is right, the overlap with the object is between 0.1 and 0.5",
    "both": "another class, and an overlap between 0.1 and 0.5",
    "duplicate": "a second detection of an object that already has one",
    "background": "nothing is annotated there",
    "missed": "an object without a matching detection",
}


@dataclass
class Errors:
    """The errors of D detections and G objects."""

    kinds: np.ndarray  # int64 [D], RIGHT, CLASS, ... or IGNORED
    targets: np.ndarray  # int64 [D], the object that a detection is matched to or confused with; -1 if there is none
    ious: np.ndarray  # float64 [D], the IoU with that object; 0 if there is none
    found: np.ndarray  # bool [G], objects with a matched detection
    missed: np.ndarray  # bool [G], objects without a match and without an error of class or location
    ap50: float  # mean over the classes that have objects
    costs: dict[str, float]  # kind -> how much AP50 rises if its errors are repaired

    def counts(self) -> dict[str, int]:
        counts = {name: int((self.kinds == kind).sum()) for kind, name in KINDS.items()}
        return counts | {MISSED: int(self.missed.sum())}


def find_errors(data: EvalData, overlaps: Overlaps, matching: Matching) -> Errors:
    """Classify all detections and missed objects, and compute the cost of each kind of error."""
    matched, ignored = matching.objects[AT_50], matching.ignored[AT_50]
    number, real = len(matched), ~overlaps.crowds
    same_iou, same = best_pairs(overlaps, real & overlaps.same_class, number)
    other_iou, other = best_pairs(overlaps, real & ~overlaps.same_class, number)
    match_iou, _ = best_pairs(overlaps, matched[overlaps.detections] == overlaps.objects, number)

    kinds = np.full(number, BACKGROUND)
    kinds[np.maximum(same_iou, other_iou) >= LEAST_OVERLAP] = BOTH
    kinds[same_iou >= FITS] = DUPLICATE
    kinds[other_iou >= FITS] = CLASS
    kinds[(same_iou >= LEAST_OVERLAP) & (same_iou < FITS)] = LOCATION
    of_same = np.isin(kinds, (LOCATION, DUPLICATE)) | (kinds == BOTH) & (same_iou > other_iou)
    targets, ious = np.where(of_same, same, other), np.where(of_same, same_iou, other_iou)
    right = matched >= 0
    kinds[right], targets[right], ious[right] = RIGHT, matched[right], match_iou[right]
    kinds[ignored] = IGNORED
    nowhere = np.isin(kinds, (BACKGROUND, IGNORED))
    targets[nowhere], ious[nowhere] = -1, 0

    found = np.zeros(len(data.objects), dtype=bool)
    found[matched[right]] = True
    missed = ~found & ~data.objects.crowds
    missed[targets[np.isin(kinds, (CLASS, LOCATION))]] = False
    ap50, costs = cost_of_each(data, kinds, targets, found, missed)
    return Errors(kinds, targets, ious, found, missed, ap50, costs)


def best_pairs(overlaps: Overlaps, chosen: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each detection's highest IoU in the chosen pairs, and the object of that pair; 0 and -1 without a pair."""
    places = np.flatnonzero(chosen)
    places = places[np.argsort(overlaps.ious[places], kind="stable")]
    best, objects = np.zeros(number), np.full(number, -1, dtype=np.int64)
    best[overlaps.detections[places]] = overlaps.ious[places]  # the last value, which is the highest, stays
    objects[overlaps.detections[places]] = overlaps.objects[places]
    return best, objects


def cost_of_each(
    data: EvalData, kinds: np.ndarray, targets: np.ndarray, found: np.ndarray, missed: np.ndarray
) -> tuple[float, dict[str, float]]:
    """Return AP50, and for each kind of error how much AP50 rises if all errors of the kind are repaired.

    An error of class or location becomes a correct detection of its object, unless the object already has a match or
    another such error has a higher score; then it is removed. Errors of other kinds are removed. Missed objects are
    subtracted from the number of objects to find.
    """
    counts = object_counts(data)

    def ap50(classes: np.ndarray, right: np.ndarray, counted: np.ndarray, to_find: np.ndarray) -> float:
        """Return mean AP50. A class with no objects left to find has AP 1, or 0 if it has a false detection."""
        aps = []
        for k, chosen in enumerate(detections_by_class(data, classes)):
            if counts[k] and to_find[k]:
                curve = interpolated_precision(right[None, chosen], counted[None, chosen], int(to_find[k]))
                aps.append(float(curve.mean()))
            elif counts[k]:
                aps.append(float(not (counted[chosen] & ~right[chosen]).any()))
        return float(np.mean(aps)) if aps else 0.0

    own, right, counted = data.detections.classes, kinds == RIGHT, kinds != IGNORED
    base = ap50(own, right, counted, counts)
    costs = {}
    for kind, name in KINDS.items():
        repaired = np.zeros(len(kinds), dtype=bool)
        if kind in (CLASS, LOCATION):
            errors = np.flatnonzero(kinds == kind)
            errors = errors[~found[targets[errors]]]
            by_score = errors[np.argsort(-data.detections.scores[errors], kind="stable")]
            repaired[by_score[np.unique(targets[by_score], return_index=True)[1]]] = True
        classes = own.copy()
        classes[repaired] = data.objects.classes[targets[repaired]]
        costs[name] = ap50(classes, right | repaired, counted & ((kinds != kind) | repaired), counts) - base
    left = counts - np.bincount(data.objects.classes[missed], minlength=len(counts))
    costs[MISSED] = ap50(own, right, counted, left) - base
    return base, costs
