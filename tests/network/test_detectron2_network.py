"""The arguments by which the network becomes Detectron2's, each against Pillow, torchvision or a loop written out."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.ops import roi_align

from network_files import InstanceMasks, roi_heads
from network_files.anchors import AnchorGenerator
from network_files.image_transform import ImageTransform
from network_files.masks.paste import mask_crops
from network_files.masks.targets import mask_targets
from tests.helpers.detectron2_rows import as_tensor
from train_utils.models import ModelConfig, build_model


def test_anchors_lie_at_the_levels_strides_unless_rounded():
    """800 px end as 13 cells: 64 px apart, where torchvision has 61."""
    levels = [torch.zeros(1, 1, math.ceil(800 / stride), math.ceil(1088 / stride)) for stride in (4, 8, 16, 32, 64)]
    for level, stride, anchors in zip(levels, (4, 8, 16, 32, 64), AnchorGenerator(rounded=False)((800, 1088), levels)):
        centres = (anchors[:, :2] + anchors[:, 2:]).view(*level.shape[-2:], 3, 2) / 2
        assert torch.allclose(centres[1:] - centres[:-1], torch.tensor([0.0, stride]), atol=1e-3)
        assert torch.allclose(centres[:, 1:] - centres[:, :-1], torch.tensor([stride, 0.0]), atol=1e-3)


@pytest.mark.parametrize("size", [(333, 500), (1333, 2000), (97, 61)])
def test_photos_are_resized_as_pillow_does(size):
    """Up to the rounding to 8 bits, which Pillow does after each direction; sizes to the nearest pixel."""
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    scale = min(200 / min(size), 333 / max(size))
    reference = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    transform = ImageTransform(200, 333, [0.0] * 3, [1.0] * 3, antialias=True).eval()
    own = transform.resize(as_tensor(Image.fromarray(pixels)) / 255) * 255
    assert own.shape == as_tensor(reference).shape
    assert (own - as_tensor(reference)).abs().max() < 1.6


def test_masks_are_pasted_where_their_boxes_lie():
    """Against bilinear sampling written out, for boxes within, on the rim of and beyond the picture."""
    height, width, side = 30, 40, 7
    boxes = [[3.3, 4.7, 21.9, 17.2], [0.0, 0.0, 40.0, 30.0], [35.5, -3.2, 46.1, 9.8], [9.1, 9.2, 9.6, 9.4]]
    boxes = torch.tensor(boxes)
    probs = torch.rand(len(boxes), 1, side, side)
    crops = list(mask_crops(probs, boxes, (height, width), continuous=True))
    assert len(crops) == len(boxes)
    for (left, top, crop), (values,), (x1, y1, x2, y2) in zip(crops, probs, boxes.tolist()):
        plane = torch.zeros(height, width)
        plane[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        padded = F.pad(values, (1, 1, 1, 1)).double().numpy()
        for row in range(max(math.floor(y1), 0), min(math.ceil(y2), height)):
            for column in range(max(math.floor(x1), 0), min(math.ceil(x2), width)):
                v = (row + 0.5 - y1) / (y2 - y1) * side + 0.5  # of the padded mask, whose pixels' centres are whole
                u = (column + 0.5 - x1) / (x2 - x1) * side + 0.5
                expected = 0.0
                for i in (math.floor(v), math.floor(v) + 1):
                    for j in (math.floor(u), math.floor(u) + 1):
                        if 0 <= i < side + 2 and 0 <= j < side + 2:
                            expected += padded[i, j] * (1 - abs(v - i)) * (1 - abs(u - j))
                assert abs(plane[row, column].item() - expected) < 1e-4
    (beyond,) = mask_crops(probs[:1], boxes[:1] + 100, (height, width), continuous=True)
    assert beyond[2].numel() == 0


def test_mask_targets_are_cut_out_as_the_features_are():
    """With `aligned` half a pixel further, and pasted they are the mask again."""
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    discs = (20, 30, 9), (40, 50, 17), (3, 2, 9)
    dense = torch.stack([(rows - y) ** 2 + (columns - x) ** 2 < radius**2 for y, x, radius in discs])
    masks = InstanceMasks.from_dense(dense)
    boxes = [[21.2, 11.4, 39.6, 29.3], [33.0, 23.0, 68.0, 58.0], [0.0, 0.0, 11.5, 12.5], [30.2, 20.9, 33.1, 80.0]]
    boxes = torch.tensor(boxes)
    matched = torch.tensor([0, 1, 2, 1])
    rois = torch.cat((matched[:, None], boxes), dim=1)
    for aligned in (True, False):
        expected = roi_align(dense[:, None].float(), rois, (28, 28), aligned=aligned)[:, 0]
        assert torch.equal(mask_targets([masks], [boxes], [matched], 28, aligned), expected)
    targets = mask_targets([masks], [boxes[:2]], [matched[:2]], 28, aligned=True)
    for (left, top, crop), mask in zip(mask_crops(targets[:, None], boxes[:2], (60, 80), continuous=True), dense):
        plane = torch.zeros(60, 80, dtype=torch.bool)
        plane[top : top + crop.shape[0], left : left + crop.shape[1]] = crop > 0.5
        assert (plane & mask).sum() / (plane | mask).sum() > 0.97


@pytest.mark.parametrize("arch", ["v1", "detectron2"])
def test_the_mask_loss_cuts_its_targets_out_as_the_network_is_built(arch, monkeypatch):
    seen = []
    monkeypatch.setattr(roi_heads, "mask_targets", lambda *a: seen.append(a[4]) or mask_targets(*a))
    network = build_model(ModelConfig(3, arch, "frozen", min_size=64, max_size=64)).train()
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 10:50, 10:50] = 1
    target = {"boxes": torch.tensor([[10.0, 10.0, 50.0, 50.0]]), "labels": torch.tensor([1]), "masks": masks}
    network([torch.rand(3, 64, 64)], [target])
    assert seen == [arch == "detectron2"]
