"""M x M mask probabilities and boxes in, masks in the picture's frame out: as crops, run-length codes or planes.

Mask R-CNN (arXiv:1703.06870), section 3.1, "Inference": the mask is resized to the RoI's size and binarised at 0.5.
"""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from network_files.rle import compress, encode_crop


def mask_crops(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """Each mask resized to its box and clipped to the picture.

    Args:
        mask_probs: float [N, 1, M, M].
        boxes: float [N, 4], x1y1x2y2 in the picture's frame.
        size: the picture's height and width.

    Yields:
        Left, top and float probabilities [h, w] of one mask; empty where the box lies outside.
    """
    # A border of zeros lets the mask fall off to 0 at its rim; the box grows by the same share.
    padded = F.pad(mask_probs.float(), (1, 1, 1, 1))
    corners = expand_boxes(boxes, padded.shape[-1] / mask_probs.shape[-1]).to(torch.int64).tolist()
    height, width = size
    for probs, (x1, y1, x2, y2) in zip(padded, corners):
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        resized = F.interpolate(probs[None], size=(h, w), mode="bilinear", align_corners=False)[0, 0]
        left, top = min(max(x1, 0), width), min(max(y1, 0), height)
        right, bottom = max(min(x2 + 1, width), left), max(min(y2 + 1, height), top)
        yield left, top, resized[top - y1 : bottom - y1, left - x1 : right - x1]


def expand_boxes(boxes: Tensor, scale: float) -> Tensor:
    """Boxes [N, 4] grown about their centres by `scale`."""
    half_w = (boxes[:, 2] - boxes[:, 0]) * 0.5
    half_h = (boxes[:, 3] - boxes[:, 1]) * 0.5
    x = (boxes[:, 2] + boxes[:, 0]) * 0.5
    y = (boxes[:, 3] + boxes[:, 1]) * 0.5
    half_w, half_h = half_w * scale, half_h * scale
    return torch.stack((x - half_w, y - half_h, x + half_w, y + half_h), dim=1)


def paste_masks(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Full-size mask probabilities, float [N, 1, H, W], zero outside the boxes; arguments as for `mask_crops`."""
    planes = torch.zeros((len(boxes), 1, *size), dtype=torch.float32, device=mask_probs.device)
    for plane, (left, top, crop) in zip(planes, mask_crops(mask_probs, boxes, size)):
        plane[0, top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return planes


def encode_masks(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> list[dict]:
    """COCO run-length codes of the masks, straight from the crops; arguments as for `mask_crops`.

    Byte for byte what encoding `paste_masks(...) > threshold` gives.

    Returns:
        A list of {"size": [H, W], "counts": bytes}.
    """
    crops = mask_crops(mask_probs.cpu(), boxes.cpu(), size)
    return compress([encode_crop((crop > threshold).numpy(), left, top, *size) for left, top, crop in crops])
