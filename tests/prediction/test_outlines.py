"""Outlines of masks: exact where nothing is simplified, similar where it is, and holes are noticed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from network_files.masks.instance_masks import crop_to_content
from prediction import dataset_savers
from prediction.dataset_savers import SIMILAR, Points, contours, has_hole, outlines_of, signed_area, similarity
from train_utils.visual.drawing import MaskCrop

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def outlined(crop: MaskCrop) -> list[Points]:
    return outlines_of(crop, contours(crop[2]))


def holes_by_flooding(pixels: np.ndarray) -> bool:
    """Whether background, joined over sides and corners, does not reach the border."""
    free = np.pad(~pixels, 1, constant_values=True)
    reached = np.zeros_like(free)
    reached[0, 0] = True
    while True:
        spread = reached.copy()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                spread |= np.roll(reached, (dy, dx), axis=(0, 1))
        spread &= free
        if (spread == reached).all():
            return bool((free & ~reached).any())
        reached = spread


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_contours_enclose_exactly_the_mask(pixels: np.ndarray) -> None:
    assert sum(signed_area(corners) for corners in contours(pixels)) in (pixels.sum(), -pixels.sum())
    assert has_hole(contours(pixels)) == holes_by_flooding(pixels)
    if pixels.any() and not has_hole(contours(pixels)):
        assert similarity(contours(pixels), pixels) == 1


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(0, 50), st.integers(0, 50))
def test_outlines_cover_the_mask_but_for_a_small_share(pixels: np.ndarray, left: int, top: int) -> None:
    if not pixels.any() or has_hole(contours(pixels)):
        return
    polygons = [np.ravel(points).tolist() for points in outlined((left, top, pixels))]
    size = (top + pixels.shape[0], left + pixels.shape[1])
    covered = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)
    mask = np.zeros(size, dtype=bool)
    mask[top:, left:] = pixels
    assert (covered & mask).sum() / (covered | mask).sum() >= SIMILAR


def test_a_large_smooth_mask_gets_few_corners() -> None:
    y, x = np.indices((200, 300))
    disc = ((y - 100) / 90) ** 2 + ((x - 150) / 140) ** 2 < 1
    (points,) = outlined(crop_to_content(disc))
    assert 8 <= len(points) <= 40 < len(contours(disc)[0])
    assert np.min(points, axis=0) == pytest.approx([10, 10], abs=2)


def test_a_rectangle_has_four_corners() -> None:
    (points,) = outlined((3, 4, np.ones((5, 7), dtype=bool)))
    assert sorted(points) == [[3, 4], [3, 9], [10, 4], [10, 9]]


def test_pixels_that_touch_at_a_corner_are_two_parts() -> None:
    assert len(outlined((0, 0, np.eye(2, dtype=bool)))) == 2
    assert not has_hole(contours(np.eye(2, dtype=bool)))


def test_without_a_similar_simplification_the_outline_is_exact(monkeypatch) -> None:
    monkeypatch.setattr(dataset_savers, "SIMILAR", 1.1)
    stairs = np.tri(12, dtype=bool)
    (points,) = outlined((5, 7, stairs))
    assert points == (contours(stairs)[0] + (5, 7)).tolist()
