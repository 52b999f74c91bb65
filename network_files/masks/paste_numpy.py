"""`paste.py` without torch, for exported networks: the same codes and crops, byte for byte, with NumPy alone.

torch's kernels for x86 processors multiply and add in one step, with one rounding. Here this is computed in double
precision, where the product of two float32 numbers is exact. Where torch rounds otherwise (on other processors, and in
release 2.11), a pixel whose probability equals the threshold up to the last bits may differ.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from network_files.masks.codes import Crop, encode_crops, encode_outlines

Numbers = np.ndarray | np.float32
SMALL = 128  # height + width up to which torch interpolates with the kernel that weights four pixels at once


def encode_masks(
    mask_probs: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = 0.5, continuous: bool = False
) -> list[dict]:
    """`paste.encode_masks` of float32 [N, 1, M, M] and [N, 4]."""
    if len(boxes) == 0:
        return []
    if continuous:
        return encode_crops(sampled_crops(mask_probs, boxes, size), size, threshold)
    padded, corners = frame(mask_probs, boxes)

    def crops(chosen: np.ndarray) -> Iterator[Crop]:
        return whole_pixel_crops(mask_probs[chosen], boxes[chosen], size)

    return encode_outlines(padded, corners, size, threshold, resampling, crops)


def mask_crops(
    mask_probs: np.ndarray, boxes: np.ndarray, size: tuple[int, int], continuous: bool = False
) -> Iterator[Crop]:
    """`paste.mask_crops` of float32 [N, 1, M, M] and [N, 4]."""
    return sampled_crops(mask_probs, boxes, size) if continuous else whole_pixel_crops(mask_probs, boxes, size)


def sampled_crops(mask_probs: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> Iterator[Crop]:
    """`mask_crops` by sampling each mask, zero beyond its border, at the pixel centres of the image."""
    height, width = size
    padded = np.pad(mask_probs[:, 0].astype(np.float32), ((0, 0), (2, 2), (2, 2)))
    for probs, (x1, y1, x2, y2) in zip(padded, boxes.astype(np.float32).tolist()):
        left, right, x = pixel_centres(x1, x2, width)
        top, bottom, y = pixel_centres(y1, y2, height)
        if left == right or top == bottom:
            yield left, top, np.zeros((bottom - top, right - left), dtype=np.float32)
            continue
        (columns, right_share), (rows, lower_share) = (sample_places(c, mask_probs.shape[-1]) for c in (x, y))
        yield left, top, weighted_sum(probs, rows, columns, lower_share, right_share, first=0)


def sample_places(centres: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres in -1..1 -> the first of two places in a mask padded by 2, int64, and the share of the second."""
    places = fused(centres + np.float32(1), np.float32(side / 2), np.float32(-0.5))
    low = np.floor(places)
    return low.astype(np.int64).clip(-2, side) + 2, places - low


def pixel_centres(low: float, high: float, size: int) -> tuple[int, int, np.ndarray]:
    """`paste.pixel_centres`."""
    first = min(max(math.floor(low) - 1, 0), size)
    end = max(min(math.ceil(high) + 1, size), first)
    centres = np.arange(first, end, dtype=np.float32) + np.float32(0.5)
    scaled = (centres - np.float32(low)) / np.float32(max(high - low, 1e-6))
    return first, end, scaled * np.float32(2) - np.float32(1)


def whole_pixel_crops(mask_probs: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> Iterator[Crop]:
    """`mask_crops` by resizing each mask to the whole pixels that its box touches."""
    padded, corners = frame(mask_probs, boxes)
    height, width = size
    for probs, (x1, y1, x2, y2) in zip(padded, corners.tolist()):
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        left, top = min(max(x1, 0), width), min(max(y1, 0), height)
        right, bottom = max(min(x2 + 1, width), left), max(min(y2 + 1, height), top)
        shown = slice(top - y1, bottom - y1), slice(left - x1, right - x1)
        yield left, top, resized(probs, h, w, *shown)


def frame(mask_probs: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`paste.frame`: float32 [N, M + 2, M + 2] and int64 [N, 4]."""
    padded = np.pad(mask_probs[:, 0].astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    scale = np.float32(padded.shape[-1] / mask_probs.shape[-1])
    low, high = boxes[:, :2].astype(np.float32), boxes[:, 2:].astype(np.float32)
    half, centre = (high - low) * np.float32(0.5) * scale, (high + low) * np.float32(0.5)
    return padded, np.concatenate((centre - half, centre + half), axis=1).astype(np.int64)


def resized(probs: np.ndarray, height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    """Some rows and columns of a mask [M, M] that is resized to [height, width]."""
    small = height + width <= SMALL
    (y, y_share), (x, x_share) = (interpolation(len(probs), length, small) for length in (height, width))
    y, y_share, x, x_share = y[rows], y_share[rows], x[columns], x_share[columns]
    if small:
        return weighted_sum(probs, y, x, y_share, x_share, first=1)
    below, right = np.minimum(y + 1, len(probs) - 1), np.minimum(x + 1, len(probs) - 1)
    upper, lower = (between(probs[row][:, x], probs[row][:, right], x_share) for row in (y, below))
    return between(upper, lower, y_share[:, None])


def between(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`one * (1 - share) + other * share`."""
    return fused(one, np.float32(1) - share, other * share)


def weighted_sum(
    probs: np.ndarray, y: np.ndarray, x: np.ndarray, y_share: np.ndarray, x_share: np.ndarray, first: int
) -> np.ndarray:
    """Four neighbours' values times their weights; `first` is the product that is rounded by itself."""
    below, right = np.minimum(y + 1, len(probs) - 1), np.minimum(x + 1, len(probs) - 1)
    values = [probs[row][:, column] for row in (y, below) for column in (x, right)]
    one = np.float32(1)
    weights = [h * w for h in (one - y_share[:, None], y_share[:, None]) for w in (one - x_share, x_share)]
    total = values[first] * weights[first]
    for k in (i for i in range(4) if i != first):
        total = fused(values[k], weights[k], total)
    return total


def fused(a: Numbers, b: Numbers, c: Numbers) -> np.ndarray:
    """a * b + c of float32 numbers, rounded once."""
    a, b, c = (np.asarray(each, dtype=np.float64) for each in (a, b, c))
    return (a * b + c).astype(np.float32)


@lru_cache(maxsize=4096)
def interpolation(source: int, target: int, small: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each target position, the lower source position, int64, and the weight of the upper one, float32."""
    half, scale = np.float32(0.5), np.float32(np.float32(source) / np.float32(target))
    centres = np.arange(target, dtype=np.float32) + half
    places = fused(scale, centres, -half) if small else scale * centres - half
    places = np.maximum(places, np.float32(0))
    below = np.minimum(np.floor(places).astype(np.int64), source - 1)
    return below, np.clip(places - below.astype(np.float32), 0, 1)


def resampling(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """`paste.resampling`: the interpolation of one axis alone."""
    below, share = interpolation(source, target, target + 1 <= SMALL)
    return below, np.where(below < source - 1, share, np.float32(1))
