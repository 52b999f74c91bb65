"""Compute AP of groups of objects: by size, by how crowded the image is, by distance to the border.

Objects keep the match that they have among all. A detection that is matched belongs to its object's group, any other
to the group that it would be in as an object itself. COCO's small, medium and large match anew within each range, so
that the numbers of equal ranges may differ in the third decimal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from report.overlaps import Matching
from report.precision_recall import detections_by_class, interpolated_precision
from report.records import Scene

SIZE_EDGES = (0, 16, 32, 64, 96, 128, 256)  # square root of the area, in pixels; COCO's 32 and 96 among them
CROWDING_EDGES = (1, 2, 4, 8, 16)  # objects in the image
BORDER_EDGES = (0, 1, 5, 15)  # distance in percent of the image's short side, of which the first is "touches it"


@dataclass
class Group:
    """Objects that share a range.

    Attributes:
        name: the range in words.
        objects: their number, without crowds.
        ap: mean over IoUs and the classes that have objects in the group; NaN without objects.
    """

    name: str
    objects: int
    ap: float


def by_size(scene: Scene, matching: Matching, kind: str) -> list[Group]:
    """Groups by the square root of the area."""
    own = scene.detections.boxes[:, 2] * scene.detections.boxes[:, 3]
    if kind == "segm":  # one by one: of a list pycocotools 2.0.11 returns no areas above 255 with numpy 2
        own = np.array([coco_mask.area(code) for code in scene.detections.codes], dtype=np.float64)
    names = range_names(SIZE_EDGES)
    return groups(scene, matching, np.sqrt(scene.objects.areas), np.sqrt(own), SIZE_EDGES, names)


def by_crowding(scene: Scene, matching: Matching) -> list[Group]:
    """Groups by the number of objects in the image, crowds included."""
    counts = np.bincount(scene.objects.images, minlength=len(scene.image_ids))
    names = ["1", "2-3", "4-7", "8-15", "16 and more"]
    # An image without objects has only false detections; they belong to the first group.
    found_in = np.maximum(counts[scene.detections.images], 1)
    return groups(scene, matching, counts[scene.objects.images], found_in, CROWDING_EDGES, names)


def by_border(scene: Scene, matching: Matching) -> list[Group]:
    """Groups by the distance of the box to the nearest border of the image."""
    names = ["touches it", "1-5 %", "5-15 %", "over 15 %"]
    objects = border_distance(scene, scene.objects.boxes, scene.objects.images)
    found = border_distance(scene, scene.detections.boxes, scene.detections.images)
    return groups(scene, matching, objects, found, BORDER_EDGES, names)


def border_distance(scene: Scene, boxes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The distance of boxes [N, 4] in percent of their image's short side, float64 [N]."""
    height, width = scene.sizes[images].T
    x, y, w, h = boxes.T
    gaps = np.stack((x, y, width - x - w, height - y - h))
    return 100 * np.maximum(gaps.min(axis=0, initial=np.inf), 0) / np.minimum(height, width)


def groups(
    scene: Scene,
    matching: Matching,
    of_objects: np.ndarray,
    of_detections: np.ndarray,
    edges: Sequence[float],
    names: Sequence[str],
) -> list[Group]:
    """AP of each range of a property.

    Args:
        of_objects, of_detections: the property, [G] and [D].
        edges: lower ends of the ranges.
    """
    in_range = np.searchsorted(edges, of_objects, side="right") - 1
    own_range = np.searchsorted(edges, of_detections, side="right") - 1
    matched = matching.objects >= 0
    ranges = np.broadcast_to(own_range, matched.shape).copy()
    if len(scene.objects):
        ranges[matched] = in_range[matching.objects[matched]]
    real = ~scene.objects.crowds
    by_class = detections_by_class(scene)
    result = []
    for number, name in enumerate(names):
        counts = np.bincount(scene.objects.classes[real & (in_range == number)], minlength=len(by_class))
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
