"""List annotations that are probably wrong or missing, judged by a network's detections.

The list is sorted by a confidence between 0 and 1. It is not a probability: a network that is confidently wrong puts
correct annotations on the list, so a person has to decide.
"""

from dataclasses import dataclass

import numpy as np

from dataset_files.boxes import ious
from report.error_kinds import BACKGROUND, BOTH, CLASS, LOCATION, RIGHT, Errors
from report.eval_data import EvalData
from report.matching import LEAST_OVERLAP, Overlaps

WRONG_CLASS, MISSING, OUTLINE, NOTHING_THERE, DOUBLED = "wrong class", "missing", "outline", "nothing there", "doubled"
MEANING = {
    WRONG_CLASS: "the network detects another class here",
    MISSING: "the network detects an object without an annotation",
    OUTLINE: "the network detects this class here, but with a different outline",
    NOTHING_THERE: "the network usually finds objects of this class and size, but none here",
    DOUBLED: "another annotation covers the same object",
}
SAME_OBJECT = 0.85  # two annotations with at least this IoU are one object annotated twice
LEAST_CONFIDENCE = 0.3
MOST = 1000  # suspects listed at most


@dataclass
class Suspect:
    """An annotation that is probably wrong, or an object that is probably missing."""

    kind: str
    confidence: float
    image: int  # index
    object: int  # index of the annotation; -1 if it is missing
    detection: int  # index of the detection that contradicts it; -1 if there is none


def find_suspects(data: EvalData, overlaps: Overlaps, errors: Errors) -> list[Suspect]:
    """Return the suspects by descending confidence, at most one per annotation and one per detection."""
    candidates = contradicted(data, errors) + never_found(data, overlaps) + annotated_twice(data)
    candidates.sort(key=lambda suspect: -suspect.confidence)
    suspects, objects, detections = [], set(), set()
    for s in candidates:
        if s.confidence < LEAST_CONFIDENCE or s.object in objects or s.detection in detections:
            continue
        suspects.append(s)
        objects |= {s.object} - {-1}
        detections |= {s.detection} - {-1}
    return suspects[:MOST]


def contradicted(data: EvalData, errors: Errors) -> list[Suspect]:
    """Return a suspect for each false detection that contradicts the annotations.

    The confidence is the detection's score, reduced if another detection or the overlap supports the annotation.
    """
    agreeing = np.zeros(len(data.objects))  # score of the detection that is matched to each object
    right = np.flatnonzero(errors.kinds == RIGHT)
    agreeing[errors.targets[right]] = data.detections.scores[right]
    suspects = []
    for d in np.flatnonzero(np.isin(errors.kinds, (CLASS, LOCATION, BOTH, BACKGROUND))).tolist():
        kind, g, score = errors.kinds[d], int(errors.targets[d]), float(data.detections.scores[d])
        image, iou = int(data.detections.images[d]), float(errors.ious[d])
        if kind == CLASS:
            suspects.append(Suspect(WRONG_CLASS, score * (1 - float(agreeing[g])), image, g, d))
        elif kind == LOCATION and not errors.found[g]:
            suspects.append(Suspect(OUTLINE, score * (1 - iou), image, g, d))
        else:
            suspects.append(Suspect(MISSING, score * (1 - iou), image, -1, d))
    return suspects


def never_found(data: EvalData, overlaps: Overlaps) -> list[Suspect]:
    """Return annotated objects that no detection overlaps.

    The confidence is the share of similar objects that a detection overlaps. Similar objects are those of the
    same class and of the same third of the class by area.
    """
    objects = data.objects
    touched = np.zeros(len(objects), dtype=bool)
    touched[overlaps.objects[overlaps.ious >= LEAST_OVERLAP]] = True
    suspects = []
    for k in np.unique(objects.classes).tolist():
        of_class = np.flatnonzero((objects.classes == k) & ~objects.crowds)
        thirds = np.array_split(of_class[np.argsort(objects.areas[of_class], kind="stable")], 3)
        for third in thirds:
            share = float(touched[third].mean()) if len(third) else 0.0
            alone = third[~touched[third]].tolist()
            suspects += [Suspect(NOTHING_THERE, share, int(objects.images[g]), g, -1) for g in alone]
    return suspects


def annotated_twice(data: EvalData) -> list[Suspect]:
    """Return the second of each pair of annotations with nearly equal boxes. The confidence is the IoU of the boxes."""
    objects = data.objects
    corners = np.concatenate((objects.boxes[:, :2], objects.boxes[:, :2] + objects.boxes[:, 2:]), axis=1)
    borders = np.searchsorted(objects.images, np.arange(len(data.image_ids) + 1))
    suspects = []
    for image in np.flatnonzero(np.diff(borders) > 1).tolist():
        of_image = np.arange(borders[image], borders[image + 1])
        of_image = of_image[~objects.crowds[of_image]]
        overlap = ious(corners[of_image][:, None], corners[of_image])
        for first, second in np.argwhere(np.triu(overlap, 1) >= SAME_OBJECT).tolist():
            suspects.append(Suspect(DOUBLED, float(overlap[first, second]), image, int(of_image[second]), -1))
    return suspects
