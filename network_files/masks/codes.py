"""Run-length codes of predicted masks, from outlines or from crops: the part of `paste.py` that needs no torch."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from network_files.masks.outline import Resampling, column_changes
from network_files.masks.rle import compress, encode_crop, pack_counts

Crop = tuple[int, int, np.ndarray]  # left, top and the probabilities [h, w] of a mask clipped to the image


def encode_outlines(
    padded: np.ndarray,
    corners: np.ndarray,
    size: tuple[int, int],
    threshold: float,
    resampling: Resampling,
    crops: Callable[[np.ndarray], Iterator[Crop]],
) -> list[dict]:
    """Encode all masks of an image from their outlines; only those that depend on rounding are pasted.

    Args:
        padded: float32 [N, M, M], masks with a border of zeros, N at least 1.
        corners: int64 [N, 4], first and last column and row of each, x1y1x2y2 in the image's frame.
        size: the image's height and width.
        threshold: values above it are inside the mask.
        resampling: the weights of the interpolation, see `column_changes`.
        crops: pastes the masks with the given indices, int64 [n].

    Returns:
        A list of {"size": [H, W], "counts": bytes}.
    """
    positions, owners, unsure = column_changes(padded, corners, size, threshold, resampling)
    counts = pack_counts(*run_lengths(positions, owners, len(padded), size[0] * size[1]))
    codes = [{"size": list(size), "counts": packed} for packed in counts]
    again = np.flatnonzero(unsure)
    for i, code in zip(again.tolist(), encode_crops(crops(again), size, threshold)):
        codes[i] = code
    return codes


def encode_crops(crops: Iterable[Crop], size: tuple[int, int], threshold: float) -> list[dict]:
    """Encode crops."""
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
