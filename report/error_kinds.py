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
from report.matching import LEAST_OVERLAP, Matching, Overlaps

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
FITS = 0.5  # IoU


@dataclass
class Errors:
    """The errors of D detections and G objects.

    Attributes:
        kinds: int64 [D], RIGHT, CLASS, ... or IGNORED.
        targets: int64 [D], the object that a detection is matched to or confused with; -1 if there is none.
        ious: float64 [D], the IoU with that object; 0 if there is none.
        found: bool [G], objects with a matched detection.
        missed: bool [G], objects without a match and without an error of class or location.
        ap50: AP at IoU 0.5, mean over the classes that have objects.
        costs: kind -> how much AP50 rises if its errors are repaired.
    """

    kinds: np.ndarray
    targets: np.ndarray
    ious: np.ndarray
    found: np.ndarray
    missed: np.ndarray
    ap50: float
    costs: dict[str, float]

    def counts(self) -> dict[str, int]:
        """Count the errors of each kind."""
        counts = {name: int((self.kinds == kind).sum()) for kind, name in KINDS.items()}
        return counts | {MISSED: int(self.missed.sum())}


def find_errors(data: EvalData, overlaps: Overlaps, matching: Matching) -> Errors:
    """Classify all detections and missed objects, and compute the costs."""
    matched, ignored = matching.objects[AT_50], matching.ignored[AT_50]
    wrong = (matched < 0) & ~ignored
    number = len(data.detections)
    real = ~overlaps.crowds
    same_iou, same = best_pairs(overlaps, real & overlaps.same_class, number)
    other_iou, other = best_pairs(overlaps, real & ~overlaps.same_class, number)

    kinds = np.full(number, BACKGROUND)
    kinds[np.maximum(same_iou, other_iou) >= LEAST_OVERLAP] = BOTH
    kinds[same_iou >= FITS] = DUPLICATE
    kinds[other_iou >= FITS] = CLASS
    kinds[(same_iou >= LEAST_OVERLAP) & (same_iou < FITS)] = LOCATION
    targets = np.where(np.isin(kinds, (LOCATION, DUPLICATE)), same, other)
    targets[(kinds == BOTH) & (same_iou > other_iou)] = same[(kinds == BOTH) & (same_iou > other_iou)]
    kinds[~wrong] = np.where(ignored[~wrong], IGNORED, RIGHT)
    targets[kinds == BACKGROUND] = -1
    targets[~wrong] = matched[~wrong]
    ious = np.where(targets == same, same_iou, other_iou)
    ious[matched >= 0] = iou_of_pairs(overlaps, matched)[matched >= 0]
    ious[targets < 0] = 0

    found = np.zeros(len(data.objects), dtype=bool)
    found[matched[matched >= 0]] = True
    explained = targets[np.isin(kinds, (CLASS, LOCATION))]
    missed = ~found & ~data.objects.crowds
    missed[explained] = False
    ap50, costs = cost_of_each(data, kinds, targets, found, missed)
    return Errors(kinds, targets, ious, found, missed, ap50, costs)


def best_pairs(overlaps: Overlaps, chosen: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest IoU of each detection among the chosen pairs, and its object; 0 and -1 if there is none."""
    places = np.flatnonzero(chosen)
    places = places[np.argsort(overlaps.ious[places], kind="stable")]
    best, objects = np.zeros(number), np.full(number, -1, dtype=np.int64)
    best[overlaps.detections[places]] = overlaps.ious[places]  # the last value of an index stays: the highest
    objects[overlaps.detections[places]] = overlaps.objects[places]
    return best, objects


def iou_of_pairs(overlaps: Overlaps, objects: np.ndarray) -> np.ndarray:
    """Return the IoU of each detection with its object in `objects`, float64 [D]; 0 if that is -1."""
    values = np.zeros(len(objects))
    chosen = objects[overlaps.detections] == overlaps.objects
    values[overlaps.detections[chosen]] = overlaps.ious[chosen]
    return values


def cost_of_each(
    data: EvalData, kinds: np.ndarray, targets: np.ndarray, found: np.ndarray, missed: np.ndarray
) -> tuple[float, dict[str, float]]:
    """Return AP50, and how much each repair raises it.

    An error of class or location becomes a correct detection of its object, unless the object already has a match or
    another such error has a higher score; then it is removed. Errors of other kinds are removed. Missed objects are
    subtracted from the number of objects to find.
    """
    classes, counts = data.detections.classes, object_counts(data)
    right = kinds == RIGHT
    counted = kinds != IGNORED
    base = mean_ap50(data, classes, right, counted, counts, counts)
    costs = {}
    for kind, name in KINDS.items():
        repaired = np.zeros(len(kinds), dtype=bool)
        errors = np.flatnonzero(kinds == kind)
        if kind in (CLASS, LOCATION):
            errors_free = errors[~found[targets[errors]]]
            by_score = errors_free[np.argsort(-data.detections.scores[errors_free], kind="stable")]
            _, first = np.unique(targets[by_score], return_index=True)
            repaired[by_score[first]] = True
        new_classes = classes.copy()
        new_classes[repaired] = data.objects.classes[targets[repaired]]
        kept = counted & ~((kinds == kind) & ~repaired)
        costs[name] = mean_ap50(data, new_classes, right | repaired, kept, counts, counts) - base
    left = counts - np.bincount(data.objects.classes[missed], minlength=len(counts))
    costs[MISSED] = mean_ap50(data, classes, right, counted, left, counts) - base
    return base, costs


def mean_ap50(
    data: EvalData,
    classes: np.ndarray,
    right: np.ndarray,
    counted: np.ndarray,
    to_find: np.ndarray,
    counts: np.ndarray,
) -> float:
    """Return the mean AP50 over the classes that have objects in `counts` [K]; 0 if none has.

    If no object of a class is left to find, its AP is 1 without a false detection and 0 with one.
    """
    aps = []
    groups = detections_by_class(data, classes)
    for k in np.flatnonzero(counts).tolist():
        chosen = groups[k]
        if to_find[k] == 0:
            aps.append(float(not (counted[chosen] & ~right[chosen]).any()))
            continue
        curve = interpolated_precision(right[None, chosen], counted[None, chosen], int(to_find[k]))
        aps.append(float(curve.mean()))
    return float(np.mean(aps)) if aps else 0.0
