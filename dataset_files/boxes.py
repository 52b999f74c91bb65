"""Areas, intersections and IoU of numpy boxes x1y1x2y2.

All functions broadcast over the leading dimensions: `ious(a, b)` of two [N, 4] compares pair by pair and returns [N];
`ious(a[:, None], b)` of [N, 4] and [M, 4] compares all with all and returns [N, M].
"""

import numpy as np


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
