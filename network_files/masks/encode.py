"""Encode predicted masks as COCO run-length codes, directly from their M x M probabilities.

Needs only NumPy. A pixel whose probability equals the threshold up to the last bits may differ from torch's pasting;
`paste.encode_masks` uses that pasting for masks with such pixels.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from network_files.masks.outline import column_changes
from network_files.masks.rle import compress, encode_crop, pack_counts

Crop = tuple[int, int, np.ndarray]  # left, top and the probabilities [h, w] of a mask clipped to the image


def encode_masks(
    mask_probs: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = 0.5,
    continuous: bool = False, crops: Callable[[np.ndarray], Iterable[Crop]] | None = None,
) -> list[dict]:  # fmt: skip
    """Encode all masks of an image as {"size": [H, W], "counts": bytes}.

    The outlines of all masks are computed together; only a mask whose outline depends on the last bit of an
    interpolated value is resized.

    Args:
        mask_probs, boxes, size, continuous: as for `mask_crops` in `paste.py`, with arrays in place of tensors.
        threshold: values above it are inside the mask.
        crops: a function to use instead of `resized_crops`, given the indices of masks, int64 [n].
    """
    if len(boxes) == 0:
        return []
    probs, places = mask_probs[:, 0].astype(np.float32), boxes.astype(np.float32)
    again, codes = np.arange(len(boxes)), [dict[str, Any]()] * len(boxes)
    if not continuous:
        probs, places = add_border(probs, places)
        positions, owners, unsure = column_changes(probs, places, size, threshold)
        counts = pack_counts(*run_lengths(positions, owners, len(probs), size[0] * size[1]))
        again, codes = np.flatnonzero(unsure), [{"size": list(size), "counts": packed} for packed in counts]
    resized = crops(again) if crops else resized_crops(probs[again], places[again], size, continuous)
    exact = compress([encode_crop(crop > threshold, left, top, *size) for left, top, crop in resized])
    for i, code in zip(again.tolist(), exact):
        codes[i] = code
    return codes


def run_lengths(positions: np.ndarray, owners: np.ndarray, masks: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Convert crossings (see `column_changes`) to concatenated run lengths, int64 [S], and runs per mask, [N]."""
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


def add_border(mask_probs: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add a border as `paste.add_border` does: [N, M, M], [N, 4] -> float32 [N, M + 2, M + 2], int64 [N, 4]."""
    padded = np.pad(mask_probs, ((0, 0), (1, 1), (1, 1)))
    scale = np.float32(padded.shape[-1] / mask_probs.shape[-1])
    low, high = boxes[:, :2], boxes[:, 2:]
    half, centre = (high - low) * np.float32(0.5) * scale, (high + low) * np.float32(0.5)
    return padded, np.concatenate((centre - half, centre + half), axis=1).astype(np.int64)


def resized_crops(mask_probs: np.ndarray, boxes: np.ndarray, size: tuple[int, int], continuous: bool) -> Iterator[Crop]:
    """Resize masks [N, M, M] as `paste.mask_crops` does, up to rounding. Unless `continuous`, they need a border."""
    (height, width), side = size, mask_probs.shape[-1]
    for probs, (x1, y1, x2, y2) in zip(mask_probs, boxes.tolist()):
        left, columns = axis_weights(x1, x2, width, side, continuous)
        top, rows = axis_weights(y1, y2, height, side, continuous)
        yield left, top, rows @ probs @ columns.T


def axis_weights(low: float, high: float, length: int, side: int, continuous: bool) -> tuple[int, np.ndarray]:
    """Return the first pixel of a resized mask along one axis, and the resampling matrix, float64 [pixels, side]."""
    margin, beyond = (1, 0) if continuous else (0, 1)  # else `high` is the last whole pixel
    first = min(max(math.floor(low) - margin, 0), length)
    end = max(min(math.ceil(high) + 1, length), first)
    places = (np.arange(first, end) + 0.5 - low) * (side / max(high - low + beyond, 1e-6 if continuous else 1)) - 0.5
    if not continuous:
        places = places.clip(0, side - 1)
    return first, np.maximum(1 - np.abs(places[:, None] - np.arange(side)), 0)
