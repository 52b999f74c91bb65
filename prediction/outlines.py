"""Outline masks as polygons with few corners, for manual correction in labelling tools.

An outline follows the edges between pixels, and is then simplified as long as it still covers most of the mask's pixels
and few others.
"""

from typing import Any

import contourpy
import numpy as np
from pycocotools import mask as coco_mask

from prediction.prediction import Crop

Points = list[list[float]]  # [[x, y], ...] in pixels of the image

SIMILAR = 0.95  # minimum IoU of a simplified outline's pixels and the mask's
TOLERANCES = (2.0, 1.5, 1.0, 0.7, 0.4)  # pixels by which an outline may move, tried in this order
LEVEL = 0.501  # between a mask's values 0 and 1; above a half, so that parts that only touch at a corner stay apart


def outlines_of(crop: Crop) -> list[Points]:
    """Return a polygon per part of a mask without holes; pixels that only touch at a corner are separate parts."""
    left, top, pixels = crop
    exact = contours(pixels)
    for tolerance in TOLERANCES:
        simple = [simplified(corners, tolerance) for corners in exact]
        if min(map(len, simple)) >= 3 and similarity(simple, pixels) >= SIMILAR:
            break
    else:
        simple = exact
    return [(corners + (left, top)).tolist() for corners in simple]


def has_hole(pixels: np.ndarray) -> bool:
    """Whether a mask, bool [h, w], encloses pixels that do not belong to it."""
    areas = [signed_area(corners) for corners in contours(pixels)]
    return min(areas, default=0) < 0 < max(areas, default=0)


def contours(pixels: np.ndarray) -> list[np.ndarray]:
    """Return the corners of each contour of a mask, bool [h, w] -> float64 [P, 2] x, y each, along the pixels' edges.

    Contours around holes run in the opposite direction to those around parts.
    """
    values = np.pad(pixels, 1).repeat(2, axis=0).repeat(2, axis=1).astype(np.float64)
    lines: Any = contourpy.contour_generator(z=values, line_type="Separate").lines(LEVEL)
    found = []
    for line in lines:
        corners = np.rint((line - 1.5) / 2)  # contourpy cuts the corners, by less than half of a doubled pixel
        corners = corners[1:][(np.diff(corners, axis=0) != 0).any(axis=1)]
        steps = corners - np.roll(corners, 1, axis=0)
        found.append(corners[(steps != np.roll(steps, -1, axis=0)).any(axis=1)])
    return found


def signed_area(corners: np.ndarray) -> float:
    """Return the area of a polygon [P, 2], positive if it runs clockwise in an image."""
    (x, y), (next_x, next_y) = corners.T, np.roll(corners, -1, axis=0).T
    return float((x * next_y - next_x * y).sum() / 2)


def simplified(corners: np.ndarray, tolerance: float) -> np.ndarray:
    """Remove corners of a closed polygon that lie within `tolerance` of the rest (Douglas and Peucker, 1973)."""
    far = int(((corners - corners[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate((corners, corners[:1]))
    kept = np.zeros(len(closed), dtype=bool)
    kept[[0, far, -1]] = True
    waiting = [(0, far), (far, len(corners))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        (x, y), beside = closed[last] - closed[first], closed[first + 1 : last] - closed[first]
        length = float(np.hypot(x, y))  # 0 if both are the same corner
        distances = np.abs(x * beside[:, 1] - y * beside[:, 0]) / length if length else np.hypot(*beside.T)
        farthest = int(distances.argmax())
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            waiting += [(first, middle), (middle, last)]
    return closed[:-1][kept[:-1]]


def similarity(outlines: list[np.ndarray], pixels: np.ndarray) -> float:
    """Return the IoU of a mask, bool [h, w], and the pixels that outlines in its frame cover."""
    polygons = [corners.reshape(-1).tolist() for corners in outlines]
    covered = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *pixels.shape))).astype(bool)
    return float((covered & pixels).sum() / (covered | pixels).sum())
