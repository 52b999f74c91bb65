"""Compute areas, intersections and IoU of numpy boxes, x1y1x2y2, and recognise the box format of a file.

Areas, intersections and IoU broadcast over the leading dimensions. For a and b [N, 4], `ious(a, b)` compares pairwise
and returns [N]. For a [N, 4] and b [M, 4], `ious(a[:, None], b)` compares all pairs and returns [N, M].
"""

import numpy as np

MOST_OBJECTS = 4096  # sampled per file, at regular intervals
FEWEST_OBJECTS = 3  # with fewer, the format of a file is not judged
GOOD_FIT = 0.9  # the median IoU of boxes and masks in a correct file is above this
MUCH_BETTER = 0.2  # another format's median IoU must exceed that of x, y, width, height by this


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes from x, y, width, height to x1y1x2y2, [N, 4] -> [N, 4]."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def clip(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Clip boxes [N, 4] to images of `sizes` [N, 2] or [2], height and width."""
    return boxes.clip(0, sizes[..., [1, 0, 1, 0]])


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


def judge_format(boxes: np.ndarray, extents: np.ndarray, sizes: np.ndarray) -> tuple[str, str]:
    """Compare the boxes of a file with their masks. Return one message for a wrong box format, one for a bad fit.

    A message is "" if that fault is absent; the right format is xywh. `boxes`, float64 [N, 4], are finite;
    `extents`, x1y1x2y2 [N, 4], are those of their masks; `sizes`, int64 [N, 2], are the heights and widths of images.
    """
    if len(boxes) < FEWEST_OBJECTS:
        return "", ""
    chosen = np.unique(np.linspace(0, len(boxes) - 1, min(len(boxes), MOST_OBJECTS)).astype(np.int64))
    boxes, sizes = boxes[chosen], sizes[chosen]
    extents = clip(extents[chosen], sizes)
    start, end = boxes[:, :2], boxes[:, 2:]
    formats = {
        "x, y, width, height": (start, start + end),
        "x1, y1, x2, y2": (start, end),
        "centre x, centre y, width, height": (start - end / 2, start + end / 2),
    }
    medians = {}
    for name, (low, high) in formats.items():
        corners = clip(np.concatenate((low, np.maximum(low, high)), axis=1), sizes)
        medians[name] = float(np.median(ious(corners, extents)))
    expected, best = medians["x, y, width, height"], max(medians, key=medians.__getitem__)
    if medians[best] > GOOD_FIT and medians[best] > expected + MUCH_BETTER:
        return (
            f"boxes look like {best} (median IoU with the masks {medians[best]:.2f}; as x, y, width, height "
            f"{expected:.2f}); convert them, or take them from the masks with --boxes-from-masks"
        ), ""
    if expected >= GOOD_FIT:
        return "", ""
    return "", (
        f"median IoU of boxes and masks {expected:.2f}, usually above {GOOD_FIT}; "
        "check some of them, or take the boxes from the masks with --boxes-from-masks"
    )
