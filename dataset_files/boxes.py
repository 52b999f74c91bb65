"""Areas, intersections and IoU of numpy boxes x1y1x2y2; tell what the four numbers of a file's boxes mean.

Areas, intersections and IoU broadcast over the leading dimensions: `ious(a, b)` of two [N, 4] compares pair by pair and
returns [N]; `ious(a[:, None], b)` of [N, 4] and [M, 4] compares all with all and returns [N, M].
"""

from dataclasses import dataclass

import numpy as np

MOST_OBJECTS = 4096  # looked at per file, spread over it
FEWEST_OBJECTS = 3  # below that a file is not judged as a whole
GOOD_FIT = 0.9  # median IoU of the boxes of right files and their masks is above
MUCH_BETTER = 0.2  # by which another reading's median IoU has to exceed that of x, y, width, height
FRACTION = 1.5  # no coordinate of a file of fractions is above, or below -0.5: outlines may reach a little outside


def areas(boxes: np.ndarray) -> np.ndarray:
    """Box areas, [..., 4] -> [...]."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)


def intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection areas, [..., 4] and [..., 4] -> [...]."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., 2:], others[..., 2:])
    return (high - low).clip(0).prod(axis=-1)


def ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union, [..., 4] and [..., 4] -> [...]; 0 where both boxes have no area."""
    shared = intersections(boxes, others)
    return shared / np.maximum(areas(boxes) + areas(others) - shared, 1e-9)


@dataclass
class BoxFit:
    """Median IoU of a file's boxes with the extents of their masks, by reading, and of how many objects."""

    medians: dict[str, float]
    count: int

    @property
    def expected(self) -> float:
        return self.medians["x, y, width, height"]

    def other_format(self) -> str:
        """The problem in words, if the boxes clearly are of another format; else ""."""
        reading = max(self.medians, key=self.medians.__getitem__)
        median = self.medians[reading]
        if self.count < FEWEST_OBJECTS or median <= GOOD_FIT or median <= self.expected + MUCH_BETTER:
            return ""
        return (
            f"boxes look like {reading} (median IoU with the masks {median:.2f}; as x, y, width, height "
            f"{self.expected:.2f}); convert them, or take them from the masks with --boxes-from-masks"
        )

    def loose(self) -> str:
        """The same if the boxes fit the masks badly, but no other format fits."""
        if self.count < FEWEST_OBJECTS or self.expected >= GOOD_FIT:
            return ""
        return (
            f"median IoU of boxes and masks {self.expected:.2f}, usually above {GOOD_FIT}; "
            "look at some, or take the boxes from the masks with --boxes-from-masks"
        )


def fit_of(boxes: np.ndarray, extents: np.ndarray, sizes: np.ndarray) -> BoxFit:
    """Compare boxes with the masks' extents in each reading.

    Args:
        boxes: float64 [N, 4], finite, of whatever meaning.
        extents: float64 [N, 4], x1y1x2y2.
        sizes: int64 [N, 2], height and width of the images.
    """
    chosen = np.unique(np.linspace(0, len(boxes) - 1, min(len(boxes), MOST_OBJECTS)).astype(np.int64))
    boxes, edges = boxes[chosen], sizes[chosen][:, [1, 0, 1, 0]]
    extents = extents[chosen].clip(0, edges)
    start, end = boxes[:, :2], boxes[:, 2:]
    readings = {
        "x, y, width, height": (start, start + end),
        "x1, y1, x2, y2": (start, end),
        "centre x, centre y, width, height": (start - end / 2, start + end / 2),
    }
    medians = {}
    for name, (low, high) in readings.items():
        corners = np.concatenate((low, np.maximum(low, high)), axis=1).clip(0, edges)
        medians[name] = float(np.median(ious(corners, extents))) if len(chosen) else 0.0
    return BoxFit(medians, len(chosen))


def look_like_fractions(corners: np.ndarray) -> bool:
    """Whether x1y1x2y2 [N, 4] all lie within 0..1, so that they are fractions of the image size and not pixels."""
    if len(corners) < FEWEST_OBJECTS or not corners.any():
        return False
    return bool(corners.max() <= FRACTION and corners.min() >= 1 - FRACTION)
