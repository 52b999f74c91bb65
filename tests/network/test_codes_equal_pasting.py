"""`encode_masks` against masks that torch pastes: equal byte for byte, and without torch but where rounding decides."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from network_files.masks import encode, outline
from network_files.masks.paste import encode_masks, mask_crops, paste_masks
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


def assert_codes_of(
    planes: torch.Tensor, probs: torch.Tensor, boxes: torch.Tensor, threshold: float, continuous: bool = False
) -> None:
    """The codes are those of the planes [N, 1, H, W]; of NumPy's alone, but for pixels at the threshold."""
    size = (planes.shape[-2], planes.shape[-1])
    expected = (planes[:, 0] > threshold).numpy()
    packed = coco_mask.encode(np.asfortranarray(expected.transpose(1, 2, 0).astype(np.uint8)))
    codes = encode_masks(probs, boxes, size, threshold, continuous)
    assert [code for code, other in zip(codes, packed, strict=True) if code != other] == []
    codes = encode.encode_masks(probs.numpy(), boxes.numpy(), size, threshold, continuous)
    masks = coco_mask.decode(codes).transpose(2, 0, 1) if codes else np.zeros((0, *size), np.uint8)
    values = planes[:, 0].numpy()[masks != expected]
    assert (np.abs(values - threshold) < ROUNDING).all(), values


@pytest.mark.parametrize(("height", "width", "count"), IMAGES)
def test_codes_equal_torchvisions_pasted_masks(height, width, count):
    probs, boxes = detections(height, width, count)
    planes = paste_masks_in_image(probs, boxes, (height, width))
    assert ((planes > 0.5).flatten(1).sum(1) > 0).sum() > count / 4
    for threshold in (0.5, 0.25, 0.8):
        assert_codes_of(planes, probs, boxes, threshold)


@pytest.mark.parametrize("continuous", [False, True], ids=["whole pixels", "continuous"])
@pytest.mark.parametrize(("height", "width", "count"), IMAGES[1::2])
def test_crops_equal_those_of_torch(height, width, count, continuous):
    probs, boxes = detections(height, width, count)
    arrays, size = (probs[:, 0].numpy(), boxes.numpy()), (height, width)
    ours = encode.resized_crops(*(arrays if continuous else encode.add_border(*arrays)), size, continuous)
    for crop, reference in zip(ours, mask_crops(probs, boxes, size, continuous), strict=True):
        assert crop[:2] == reference[:2]
        np.testing.assert_allclose(crop[2], reference[2].numpy(), rtol=0, atol=ROUNDING)


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
    tensors = torch.from_numpy(probs), torch.from_numpy(boxes)
    assert_codes_of(paste_masks(*tensors, size, continuous), *tensors, threshold, continuous)


@pytest.mark.parametrize("source", [30, 16, 9])
def test_tables_of_weights_equal_those_of_interpolate(source):
    for target in TARGETS:
        ours, reference = outline.resampling(source, target), weights_of_interpolate(source, target)
        # At the last position the upper one is the same, whatever its share.
        own, expected = (np.minimum(below + share, source - 1) for below, share in (ours, reference))
        np.testing.assert_allclose(own, expected, rtol=0, atol=ROUNDING)
