"""`encode_masks` against masks that torch pastes: codes that differ at most in pixels where rounding decides.

Where torch rounds as `masks/encode.py` assumes, crops and codes are compared byte for byte.
"""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from network_files.masks import encode, outline
from network_files.masks.paste import mask_crops, paste_masks
from tests.helpers.drawn_masks import detections

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
TARGETS = (*range(1, 400), 1000, 1333, 4999)
IMAGES = [(97, 33, 700), (60, 80, 700), (28, 300, 300), (1, 50, 150), (50, 1, 150), (2, 2, 100), (240, 320, 100),
          (800, 1333, 6)]  # fmt: skip
ROUNDING = 1e-5


def weights_of_interpolate(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """`outline.resampling`, read from `F.interpolate` on one-hot inputs."""
    ones = torch.eye(source)[:, None, :, None]
    weights = F.interpolate(ones, size=(target, 1), mode="bilinear", align_corners=False)[:, 0, :, 0].numpy()
    below = (weights != 0).argmax(axis=0)
    return below, weights[np.minimum(below + 1, source - 1), np.arange(target)]


@cache
def rounds_alike() -> bool:
    """Whether torch rounds as the encoder assumes. On other processors, and in torch 2.11, it does not."""
    tables = (
        pair
        for target in range(1, 200)
        for pair in zip(outline.resampling(30, target), weights_of_interpolate(30, target))
    )
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and all(np.array_equal(*p) for p in tables)


def assert_codes_of(planes: torch.Tensor, codes: list[dict], threshold: float) -> None:
    """The codes are those of the planes [N, 1, H, W], but for pixels at the threshold where torch rounds otherwise."""
    masks = coco_mask.decode(codes).transpose(2, 0, 1) if codes else np.zeros((0, *planes.shape[2:]), np.uint8)
    expected = (planes[:, 0] > threshold).numpy()
    packed = coco_mask.encode(np.asfortranarray(expected.transpose(1, 2, 0).astype(np.uint8)))
    if rounds_alike():
        assert [code for code, other in zip(codes, packed, strict=True) if code != other] == []
    values = planes[:, 0].numpy()[masks != expected]
    assert (np.abs(values - threshold) < ROUNDING).all(), values


@pytest.mark.parametrize(("height", "width", "count"), IMAGES)
def test_codes_equal_torchvisions_pasted_masks(height, width, count):
    probs, boxes = detections(height, width, count)
    planes = paste_masks_in_image(probs, boxes, (height, width))
    assert ((planes > 0.5).flatten(1).sum(1) > 0).sum() > count / 4
    for threshold in (0.5, 0.25, 0.8):
        codes = encode.encode_masks(probs.numpy(), boxes.numpy(), (height, width), threshold)
        assert_codes_of(planes, codes, threshold)


@pytest.mark.parametrize("continuous", [False, True], ids=["whole pixels", "continuous"])
@pytest.mark.parametrize(("height", "width", "count"), IMAGES[1::2])
def test_crops_equal_those_of_torch(height, width, count, continuous):
    probs, boxes = detections(height, width, count)
    arrays, size = (probs[:, 0].numpy(), boxes.numpy()), (height, width)
    if continuous:
        ours = encode.sampled_crops(*arrays, size)
    else:
        ours = encode.whole_pixel_crops(*encode.frame(*arrays), size)
    for crop, reference in zip(ours, mask_crops(probs, boxes, size, continuous), strict=True):
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
def test_codes_equal_pasted_masks_for_any_probabilities_and_boxes(seed, size, side, levels, threshold, continuous):
    """Also probabilities in few steps, of which many equal the threshold, and boxes far outside of the image."""
    numbers = np.random.default_rng(seed)
    probs = numbers.random((6, 1, side, side), dtype=np.float32)
    if levels:
        probs = np.round(probs * np.float32(levels)) / np.float32(levels)
    low = numbers.uniform(-0.5, 1, (6, 2)) * size[::-1]
    high = low + numbers.uniform(0, 1, (6, 2)) ** 3 * size[::-1]
    boxes = np.concatenate((low, high), axis=1).astype(np.float32)
    planes = paste_masks(torch.from_numpy(probs), torch.from_numpy(boxes), size, continuous)
    assert_codes_of(planes, encode.encode_masks(probs, boxes, size, threshold, continuous), threshold)


@pytest.mark.parametrize("source", [30, 16, 9])
def test_tables_of_weights_equal_those_of_interpolate(source):
    for target in TARGETS:
        ours, reference = outline.resampling(source, target), weights_of_interpolate(source, target)
        # At the last position the upper one is the same, whatever its share.
        own, expected = (np.minimum(below + share, source - 1) for below, share in (ours, reference))
        np.testing.assert_allclose(own, expected, rtol=0, atol=ROUNDING)
        if rounds_alike():
            assert all(np.array_equal(*pair) for pair in zip(ours, reference))
