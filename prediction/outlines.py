"""Outline masks as polygons with few corners, for tools in which a person corrects them.

An outline follows the edges between pixels, and is then simplified as far as it still covers the pixels of the mask,
but for a small share.
"""

import numpy as np
from pycocotools import mask as coco_mask

from prediction.prediction import Crop

Points = list[list[float]]  # [[x, y], ...] in pixels of the image

SIMILAR = 0.95  # IoU of a simplified outline's pixels and the mask's
TOLERANCES = (2.0, 1.5, 1.0, 0.7, 0.4)  # pixels by which an outline may move, in the order of trying
# Directions of an edge between pixels, clockwise: east, south, west, north.
DX, DY = np.array([1, 0, -1, 0]), np.array([0, 1, 0, -1])


def outlines_of(crop: Crop) -> list[Points]:
    """Return a polygon per part of a mask without holes; pixels that only touch at a corner are separate parts."""
    left, top, pixels = crop
    exact = boundaries(pixels)
    for tolerance in TOLERANCES:
        simple = [simplified(corners, tolerance) for corners in exact]
        if min(map(len, simple)) >= 3 and similarity(simple, pixels) >= SIMILAR:
            break
    else:
        simple = exact
    return [(corners + (left, top)).astype(float).tolist() for corners in simple]


def has_hole(pixels: np.ndarray) -> bool:
    """Whether a mask, bool [h, w], encloses pixels that do not belong to it."""
    return any(signed_area(corners) < 0 for corners in boundaries(pixels))


def boundaries(pixels: np.ndarray) -> list[np.ndarray]:
    """Return the corners of each boundary of a mask, bool [h, w] -> int64 [P, 2] x, y each.

    The mask is on the right of each edge: boundaries around a part run clockwise, those around a hole the other way.
    """
    padded = np.pad(pixels, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    begins = np.stack((se & ~ne, sw & ~se, nw & ~sw, ne & ~nw))  # [4, h + 1, w + 1]: an edge begins at this corner
    direction, y, x = np.nonzero(begins)
    number = np.full(begins.shape, -1)
    number[direction, y, x] = np.arange(len(direction))
    end = y + DY[direction], x + DX[direction]
    # A turn to the right, where possible, keeps parts apart that only touch at a corner.
    right, onward, left = (number[((direction + turn) % 4, *end)] for turn in (1, 0, 3))
    following = np.where(right >= 0, right, np.where(onward >= 0, onward, left)).tolist()

    found, seen = [], bytearray(len(following))
    for first in range(len(following)):
        if seen[first]:
            continue
        cycle, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            cycle.append(edge)
            edge = following[edge]
        turns = direction[cycle] != direction[np.roll(cycle, 1)]
        found.append(np.stack((x[cycle], y[cycle]), axis=1)[turns])
    return found


def signed_area(corners: np.ndarray) -> float:
    """Twice the area of a polygon [P, 2], positive if it runs clockwise in an image."""
    (x, y), (next_x, next_y) = corners.T, np.roll(corners, -1, axis=0).T
    return float((x * next_y - next_x * y).sum())


def simplified(corners: np.ndarray, tolerance: float) -> np.ndarray:
    """Leave out corners of a closed polygon that lie within `tolerance` of the rest (Douglas and Peucker, 1973)."""
    far = int(((corners - corners[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate((corners, corners[:1])).astype(float)
    kept = np.zeros(len(closed), dtype=bool)
    kept[[0, far, -1]] = True
    waiting = [(0, far), (far, len(corners))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distances = distances_to(closed[first], closed[last], closed[first + 1 : last])
        farthest = int(distances.argmax())
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            waiting += [(first, middle), (middle, last)]
    return closed[:-1][kept[:-1]]


def distances_to(start: np.ndarray, end: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distances of points [P, 2] to the straight line from `start` to `end`, or to `start` if both are the same."""
    along, beside = end - start, points - start
    length = float(np.hypot(*along))
    if length == 0:
        return np.hypot(*beside.T)
    return np.abs(along[0] * beside[:, 1] - along[1] * beside[:, 0]) / length


def similarity(outlines: list[np.ndarray], pixels: np.ndarray) -> float:
    """IoU of the pixels that outlines cover and a mask, bool [h, w], in whose frame they are."""
    polygons = [corners.reshape(-1).astype(float).tolist() for corners in outlines]
    covered = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *pixels.shape))).astype(bool)
    return float((covered & pixels).sum() / (covered | pixels).sum())
