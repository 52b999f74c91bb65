"""Encode predicted masks as COCO run-length codes, directly from their M x M probabilities.

Needs NumPy alone; `paste.encode_masks` is the same with torch's own pasting where the last bit decides. torch's kernels
for x86 processors multiply and add in one step, with one rounding. Here this is computed in double precision, where the
product of two float32 numbers is exact. Where torch rounds otherwise (on other processors, and in some releases), a
pixel whose probability equals the threshold up to the last bits may differ.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from network_files.masks.outline import SMALL, column_changes, fused, interpolation
from network_files.masks.rle import compress, encode_crop, pack_counts

Crop = tuple[int, int, np.ndarray]  # left, top and the probabilities [h, w] of a mask clipped to the image


def encode_masks(
    mask_probs: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
    threshold: float = 0.5,
    continuous: bool = False,
    crops: Callable[[np.ndarray], Iterable[Crop]] | None = None,
) -> list[dict]:
    """Encode all masks of an image.

    The outlines of all masks are computed together; only a mask whose outline depends on the last bit of an
    interpolated value is resized.

    Args:
        mask_probs, boxes, size, continuous: as for `mask_crops` in `paste.py`, with arrays in place of tensors.
        threshold: values above it are inside the mask.
        crops: resizes the masks with the given indices, int64 [n], instead of this file's functions.

    Returns:
        A list of {"size": [H, W], "counts": bytes}.
    """
    if len(boxes) == 0:
        return []
    mask_probs, boxes = mask_probs[:, 0].astype(np.float32), boxes.astype(np.float32)
    if continuous:
        sampled = crops(np.arange(len(boxes))) if crops else sampled_crops(mask_probs, boxes, size)
        return encode_crops(sampled, size, threshold)
    padded, corners = frame(mask_probs, boxes)
    positions, owners, unsure = column_changes(padded, corners, size, threshold)
    counts = pack_counts(*run_lengths(positions, owners, len(padded), size[0] * size[1]))
    codes = [{"size": list(size), "counts": packed} for packed in counts]
    again = np.flatnonzero(unsure)
    resized = crops(again) if crops else whole_pixel_crops(padded[again], corners[again], size)
    for i, code in zip(again.tolist(), encode_crops(resized, size, threshold)):
        codes[i] = code
    return codes


def encode_crops(crops: Iterable[Crop], size: tuple[int, int], threshold: float) -> list[dict]:
    return compress([encode_crop(crop > threshold, left, top, *size) for left, top, crop in crops])


def run_lengths(positions: np.ndarray, owners: np.ndarray, masks: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Crossings from `column_changes` -> the concatenated run lengths of all masks, and their number per mask."""
    first = np.ones(len(positions), dtype=bool)
    first[1:] = (np.diff(positions) != 0) | (np.diff(owners) != 0)
    starts = np.flatnonzero(first)
    kept = starts[(np.diff(starts, append=len(positions)) % 2 == 1) & (positions[starts] < pixels)]
    positions, owners = positions[kept], owners[kept]
    lengths = np.bincount(owners, minlength=masks) + 1
    ends = np.full(len(positions) + masks, pixels)
    ends[np.arange(len(positions)) + owners] = positions
    counts = np.diff(ends, prepend=0)
    starts = lengths.cumsum() - lengths
    counts[starts] = ends[starts]
    return counts, lengths


def frame(mask_probs: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`paste.frame` of [N, M, M] and [N, 4]: float32 [N, M + 2, M + 2] and int64 [N, 4]."""
    padded = np.pad(mask_probs, ((0, 0), (1, 1), (1, 1)))
    scale = np.float32(padded.shape[-1] / mask_probs.shape[-1])
    low, high = boxes[:, :2], boxes[:, 2:]
    half, centre = (high - low) * np.float32(0.5) * scale, (high + low) * np.float32(0.5)
    return padded, np.concatenate((centre - half, centre + half), axis=1).astype(np.int64)


def whole_pixel_crops(padded: np.ndarray, corners: np.ndarray, size: tuple[int, int]) -> Iterator[Crop]:
    """`paste.whole_pixel_crops`, from the result of `frame`."""
    height, width = size
    for probs, (x1, y1, x2, y2) in zip(padded, corners.tolist()):
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        left, top = min(max(x1, 0), width), min(max(y1, 0), height)
        right, bottom = max(min(x2 + 1, width), left), max(min(y2 + 1, height), top)
        yield left, top, resized(probs, h, w, slice(top - y1, bottom - y1), slice(left - x1, right - x1))


def resized(probs: np.ndarray, height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    """Some rows and columns of a mask [M, M] resized to [height, width]."""
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


def sampled_crops(mask_probs: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> Iterator[Crop]:
    """`paste.sampled_crops` of [N, M, M] and [N, 4]."""
    height, width = size
    padded = np.pad(mask_probs, ((0, 0), (2, 2), (2, 2)))
    for probs, (x1, y1, x2, y2) in zip(padded, boxes.tolist()):
        left, right, x = pixel_centres(x1, x2, width)
        top, bottom, y = pixel_centres(y1, y2, height)
        if left == right or top == bottom:
            yield left, top, np.zeros((bottom - top, right - left), dtype=np.float32)
            continue
        (columns, right_share), (rows, lower_share) = (sample_places(c, mask_probs.shape[-1]) for c in (x, y))
        yield left, top, weighted_sum(probs, rows, columns, lower_share, right_share, first=0)


def pixel_centres(low: float, high: float, size: int) -> tuple[int, int, np.ndarray]:
    """`paste.pixel_centres`."""
    first = min(max(math.floor(low) - 1, 0), size)
    end = max(min(math.ceil(high) + 1, size), first)
    centres = np.arange(first, end, dtype=np.float32) + np.float32(0.5)
    scaled = (centres - np.float32(low)) / np.float32(max(high - low, 1e-6))
    return first, end, scaled * np.float32(2) - np.float32(1)


def sample_places(centres: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres in -1..1 -> the first of two places in a mask padded by 2, int64, and the share of the second."""
    places = fused(centres + np.float32(1), np.float32(side / 2), np.float32(-0.5))
    low = np.floor(places)
    return low.astype(np.int64).clip(-2, side) + 2, places - low


def weighted_sum(
    probs: np.ndarray, y: np.ndarray, x: np.ndarray, y_share: np.ndarray, x_share: np.ndarray, first: int
) -> np.ndarray:
    """Four neighbours' values times their weights; `first` is the product that is rounded separately."""
    below, right = np.minimum(y + 1, len(probs) - 1), np.minimum(x + 1, len(probs) - 1)
    values = [probs[row][:, column] for row in (y, below) for column in (x, right)]
    one = np.float32(1)
    weights = [h * w for h in (one - y_share[:, None], y_share[:, None]) for w in (one - x_share, x_share)]
    total = values[first] * weights[first]
    for k in (i for i in range(4) if i != first):
        total = fused(values[k], weights[k], total)
    return total
