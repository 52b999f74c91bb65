"""Measure one mask in COCO's form, polygons or a run-length code, possibly invalid: the box around it, its area."""

import numpy as np
from pycocotools import mask as coco_mask

from dataset_files.coco_masks import LARGEST_COORDINATE, LARGEST_PICTURE, extents_of_runs
from network_files.masks.rle import unpack_counts


def box_of_mask(segmentation: list | dict) -> list[float] | None:
    """x, y, width, height around a mask; None if it is empty or invalid.

    Of polygons that is the box around their corners, as COCO has it; of a run-length code (counts packed or listed) the
    one around its pixels.
    """
    if isinstance(segmentation, dict):
        counts = run_lengths(segmentation)
        if counts is None or not counts[1::2].any():
            return None
        _, corners = extents_of_runs(counts, np.array([len(counts)]), np.array([segmentation["size"][0]]))
    else:
        polygons = valid_polygons(segmentation)
        if not polygons:
            return None
        points = np.concatenate(polygons).reshape(-1, 2)
        corners = np.concatenate((points.min(axis=0), points.max(axis=0)))
    x1, y1, x2, y2 = corners.reshape(4).tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def area_of_mask(segmentation: list | dict, height: int, width: int) -> float | None:
    """Pixels of a mask in an image of that size; None if it is invalid or has no outline."""
    if isinstance(segmentation, dict):
        counts = run_lengths(segmentation)
        return None if counts is None else float(counts[1::2].sum())
    polygons = valid_polygons(segmentation)
    if not polygons or not 0 < height * width <= LARGEST_PICTURE:
        return None
    codes = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    return float(coco_mask.area(coco_mask.merge(codes)))


def run_lengths(code: dict) -> np.ndarray | None:
    """The run lengths of a code, int64, zeros first; None if they are invalid or do not add up to its size."""
    try:
        height, width = code["size"]
        counts = code["counts"]
        counts = unpack_counts(counts.encode()) if isinstance(counts, str) else np.array(counts, dtype=np.int64)
        valid = counts.ndim == 1 and counts.min(initial=0) >= 0 and counts.max(initial=0) <= LARGEST_PICTURE
        return counts if valid and len(counts) and 0 < int(counts.sum()) == height * width else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def valid_polygons(polygons: list) -> list[np.ndarray]:
    """The polygons with three points or more, float64 [2 * points] each; none at all if one is invalid."""
    try:
        valid = [np.array(polygon, dtype=np.float64) for polygon in polygons if len(polygon) >= 6]
    except (TypeError, ValueError, OverflowError):
        return []
    fine = all(p.ndim == 1 and len(p) % 2 == 0 and (np.abs(p) <= LARGEST_COORDINATE).all() for p in valid)
    return valid if fine else []
