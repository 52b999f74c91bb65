"""`paste_numpy` against `paste`: the same crops within rounding, and codes that differ in no other pixel.

Where torch rounds as `paste_numpy` assumes, crops and codes are compared byte for byte.
"""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from network_files.masks import paste, paste_numpy
from network_files.masks.codes import encode_crops
from tests.helpers.drawn_masks import detections

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TARGETS = (*range(1, 400), 1000, 1333, 4999)
IMAGES = [(97, 33, 300), (60, 80, 300), (1, 50, 50), (50, 1, 50), (240, 320, 60)]
IMAGES += [pytest.param(800, 1333, 20, marks=pytest.mark.slow)]
ROUNDING = 1e-5


@cache
def rounds_alike() -> bool:
    """Whether torch rounds as `paste_numpy` assumes. On other processors, and in torch 2.11, it does not."""
    tables = (
        pair
        for target in range(1, 200)
        for pair in zip(paste_numpy.resampling(30, target), paste.resampling(30, target))
    )
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and all(np.array_equal(*p) for p in tables)


def assert_same_codes(
    probs: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float, continuous: bool
) -> None:
    """The codes equal those of the crops; from torch's they differ at most where a probability is the threshold."""
    found = paste_numpy.encode_masks(probs, boxes, size, threshold, continuous)
    assert found == encode_crops(paste_numpy.mask_crops(probs, boxes, size, continuous), size, threshold)
    tensors = torch.from_numpy(probs), torch.from_numpy(boxes)
    expected = paste.encode_masks(*tensors, size, threshold, continuous)
    if rounds_alike():
        assert found == expected
    assert len(found) == len(expected)
    crops = paste.mask_crops(*tensors, size, continuous)
    for ours, theirs, (left, top, crop) in zip(found, expected, crops, strict=True):
        if ours == theirs:
            continue
        apart = np.argwhere(coco_mask.decode(ours) != coco_mask.decode(theirs)) - (top, left)
        values = [float(crop[row, column]) for row, column in apart.tolist()]
        assert all(abs(value - threshold) < ROUNDING for value in values), values


@pytest.mark.parametrize("continuous", [False, True], ids=["whole pixels", "continuous"])
@pytest.mark.parametrize(("height", "width", "count"), IMAGES)
def test_codes_equal_those_with_torch(height, width, count, continuous):
    probs, boxes = detections(height, width, count)
    for threshold in (0.5, 0.25, 0.7):
        assert_same_codes(probs.numpy(), boxes.numpy(), (height, width), threshold, continuous)


@pytest.mark.parametrize("continuous", [False, True], ids=["whole pixels", "continuous"])
@pytest.mark.parametrize(("height", "width", "count"), IMAGES)
def test_crops_equal_those_with_torch(height, width, count, continuous):
    probs, boxes = detections(height, width, count)
    ours = paste_numpy.mask_crops(probs.numpy(), boxes.numpy(), (height, width), continuous)
    for crop, reference in zip(ours, paste.mask_crops(probs, boxes, (height, width), continuous), strict=True):
        assert crop[:2] == reference[:2]
        tolerance = 0 if rounds_alike() else ROUNDING
        np.testing.assert_allclose(crop[2], reference[2].numpy(), rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    side=st.sampled_from([28, 14, 7]),
    levels=st.sampled_from([0, 1, 2, 4, 64]),
    threshold=st.sampled_from([0.5, 0.25, 0.0]),
    continuous=st.booleans(),
)
def test_codes_equal_those_with_torch_for_any_masks_and_boxes(seed, size, side, levels, threshold, continuous):
    """Also probabilities in few steps, of which many equal the threshold, and boxes far outside of the image."""
    numbers = np.random.default_rng(seed)
    probs = numbers.random((6, 1, side, side), dtype=np.float32)
    if levels:
        probs = np.round(probs * np.float32(levels)) / np.float32(levels)
    low = numbers.uniform(-0.5, 1, (6, 2)) * size[::-1]
    high = low + numbers.uniform(0, 1, (6, 2)) ** 3 * size[::-1]
    boxes = np.concatenate((low, high), axis=1).astype(np.float32)
    assert_same_codes(probs, boxes, size, threshold, continuous)


@pytest.mark.parametrize("source", [30, 16, 9])
def test_tables_of_weights_equal_those_of_interpolate(source):
    for target in TARGETS:
        ours, reference = (module.resampling(source, target) for module in (paste_numpy, paste))
        # At the last position the upper one is the same, whatever its share.
        own, expected = (np.minimum(below + share, source - 1) for below, share in (ours, reference))
        np.testing.assert_allclose(own, expected, rtol=0, atol=ROUNDING)
        if rounds_alike():
            assert all(np.array_equal(*pair) for pair in zip(ours, reference))


def test_no_detections_make_no_codes():
    probs, boxes = np.zeros((0, 1, 28, 28), np.float32), np.zeros((0, 4), np.float32)
    assert paste_numpy.encode_masks(probs, boxes, (5, 5)) == []
