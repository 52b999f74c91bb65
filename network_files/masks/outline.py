"""Find where the columns of pasted masks cross the threshold, without computing the pasted pixels.

Bilinear interpolation is linear between two source rows, so a column crosses the threshold at most once between them,
at a position that one division gives. Only the M source rows of a column are examined instead of all its pixels.
"""

from functools import lru_cache

import numpy as np

# Bounds on the float32 rounding error of a value of at most 1. Another kernel may round the interpolation weights
# differently (by 2e-6 at 30 source rows); the position of a crossing comes from a division.
ROUNDING, MISPLACED = 3e-6, 2e-5


def column_changes(
    probs: np.ndarray, corners: np.ndarray, size: tuple[int, int], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find where the columns of all masks of an image cross the threshold.

    Args:
        probs: float32 [N, M, M], with a border of zeros.
        corners: int64 [N, 4], x1y1x2y2: first and last column and row of each mask in the image's frame.
        size: the image's height and width.
        threshold: values above it are inside the mask.

    Returns:
        positions: int64 [S], ascending within a mask: index of the first pixel after the crossing, counted down the
            columns of the image from left to right. Two equal positions cancel.
        owners: int64 [S], ascending: the mask of each position.
        unsure: bool [N], masks whose crossings depend on how the interpolation rounds; do not use their positions.
    """
    height, width = size
    knots = probs.shape[-1]
    x1, y1, x2, y2 = corners.T
    heights, widths = np.maximum(y2 - y1 + 1, 1), np.maximum(x2 - x1 + 1, 1)
    left, top = x1.clip(0, width), y1.clip(0, height)
    right, bottom = np.maximum((x2 + 1).clip(None, width), left), np.maximum((y2 + 1).clip(None, height), top)

    # Each visible column of each mask, interpolated between source columns: float32 [C, M], one value per source row.
    visible = np.where(bottom > top, right - left, 0)
    owner = np.repeat(np.arange(len(probs)), visible)
    x = ranges(left, visible)
    below, share = lookup(knots, widths, left - x1, visible)
    lines = np.ascontiguousarray(probs.transpose(0, 2, 1)).reshape(-1, knots)
    values = lines.take(owner * knots + below, axis=0)
    above = lines.take(owner * knots + np.minimum(below + 1, knots - 1), axis=0)
    above -= values
    above *= share[:, None]
    above += values
    values = above.reshape(-1)
    inside = values > threshold

    # A crossing between source rows k and k + 1 belongs to the first image row below it. Both ends of a column are
    # border, so that no crossing is found between one column and the next.
    before = np.flatnonzero(inside[1:] != inside[:-1])
    c = before // knots
    k, n = before - c * knots, owner[c]
    step = values[before + 1].astype(np.float64) - values[before]
    crossing = (k + 0.5 + (threshold - values[before]) / step) * (heights / knots)[n] - 0.5
    row = np.ceil(crossing).astype(np.int64)
    positions = x[c] * height + (y1[n] + row).clip(top[n], bottom[n])

    # Values that rounding could move across the threshold: of source rows, and of image rows next to a crossing.
    scale = max(1.0, float(np.abs(probs).max(initial=0)))
    unsure = ~np.isfinite(probs).all(axis=(1, 2))
    near = (values >= threshold - scale * ROUNDING) & (values <= threshold + scale * ROUNDING)
    unsure[owner[np.flatnonzero(near) // knots]] = True
    unsure[owner[inside[::knots] | inside[knots - 1 :: knots]]] = True
    nearest = np.rint(crossing)
    close = np.flatnonzero(np.abs((nearest - crossing) * step) * (knots / heights)[n] <= scale * MISPLACED)
    n, k, before, nearest = n[close], k[close], before[close], nearest[close].astype(np.int64)
    below, share = lookup(knots, heights, np.zeros_like(heights), heights)
    at = (heights.cumsum() - heights)[n] + nearest.clip(0, heights[n] - 1)
    value = values[before - k + below[at]] * (1.0 - share[at])
    value += values[before - k + np.minimum(below[at] + 1, knots - 1)] * share[at]
    expected = np.where(nearest < row[close], inside[before], inside[before + 1])
    clear = np.where(expected, value > threshold + scale * ROUNDING, value < threshold - scale * ROUNDING)
    unsure[n[~clear & (nearest >= 0) & (nearest < heights[n])]] = True
    return positions, owner[c], unsure


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the ranges starts[i], ..., starts[i] + lengths[i] - 1 as int64 [sum of lengths]."""
    return np.arange(lengths.sum()) + np.repeat(starts - lengths.cumsum() + lengths, lengths)


def lookup(knots: int, targets: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate `lengths[i]` entries of `resampling(knots, targets[i])`, from entry `starts[i]` on, for all i."""
    tables = [resampling(knots, target) for target in targets.tolist()]
    parts = [slice(start, start + length) for start, length in zip(starts.tolist(), lengths.tolist())]
    below, share = zip(*((b[part], s[part]) for (b, s), part in zip(tables, parts)))
    return np.concatenate(below), np.concatenate(share)


@lru_cache(maxsize=4096)
def resampling(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower source index that `F.interpolate` reads for each target index, and the next index's weight."""
    half, scale = np.float32(0.5), np.float32(source) / np.float32(target)
    places = np.maximum(scale * (np.arange(target, dtype=np.float32) + half) - half, np.float32(0))
    below = np.minimum(np.floor(places).astype(np.int64), source - 1)
    share = np.clip(places - below.astype(np.float32), 0, 1)
    return below, np.where(below < source - 1, share, np.float32(1))
