"""Recognise odd polygons, many at once: pairs instead of outlines, and outlines that are too thin for a pixel."""

import numpy as np

SLACK = 1.2, 2.0  # of `may_cover_no_pixel`, for outlines that are not convex and for the rounding of their corners


def are_point_pairs(lengths: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Where an object begins that has three or more "polygons", all of two numbers: [[x1, y1], [x2, y2], ...].

    Args:
        lengths: int64 [P], the count of numbers of each polygon.
        owners: int64 [P], the objects they belong to; each object's polygons are together.

    Returns:
        int64 [M], places among the polygons, one for each such object.
    """
    if np.count_nonzero(lengths == 2) < 3:
        return np.zeros(0, dtype=np.int64)
    borders = np.flatnonzero(np.diff(owners, prepend=-1))
    counts = np.diff(borders, append=len(owners))
    only_pairs = np.logical_and.reduceat(lengths == 2, borders)
    return borders[only_pairs & (counts >= 3)]


def may_cover_no_pixel(
    x: np.ndarray, y: np.ndarray, starts: np.ndarray, borders: np.ndarray, around: np.ndarray
) -> np.ndarray:
    """Which objects may cover no pixel: their polygons have little area for their width and height, bool [N].

    A convex outline that has none of a grid's points inside has an area of at most half its length (Nosarzewska's
    inequality), which is at most the width and height of the box around it. Few objects of usual data are left.

    Args:
        x, y: float64 [S], the corners of all polygons one after the other.
        starts: int64 [P], where each polygon begins among the corners.
        borders: int64 [N], where each object begins among the polygons.
        around: float64 [N, 4], x1y1x2y2 around each object.
    """
    following = np.arange(1, len(x) + 1)
    following[np.append(starts[1:], len(x)) - 1] = starts
    with np.errstate(over="ignore", invalid="ignore"):  # coordinates may be anything that a file can hold
        areas = np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts)) / 2
    sides = (around[:, 2:] - around[:, :2]).sum(axis=1)
    return np.maximum.reduceat(areas, borders) <= SLACK[0] * sides + SLACK[1]
