"""Paste masks: M x M probabilities and boxes -> probabilities in the image's frame, or run-length codes.

Mask R-CNN (arXiv:1703.06870), section 3.1, "Inference": the mask is resized to the RoI's size and binarised at 0.5.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from network_files.boxes import at_least_float32
from network_files.masks import encode


def paste_masks(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int], continuous: bool = False) -> Tensor:
    """Return full-size mask probabilities, float [N, 1, H, W], zero outside the boxes; arguments as in `mask_crops`."""
    planes = at_least_float32(mask_probs.new_zeros((len(boxes), 1, *size)))
    # Not `zip(planes, ...)`: autograd refuses to write into the views that iterating gives.
    for i, (left, top, crop) in enumerate(mask_crops(mask_probs, boxes, size, continuous)):
        planes[i, 0, top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return planes


def encode_masks(
    mask_probs: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5, continuous: bool = False
) -> list[dict]:
    """Encode all masks of an image as run-length codes, equal to `paste_masks(...) > threshold` on the CPU."""
    probs, boxes = mask_probs.detach().cpu().float(), boxes.detach().cpu()

    def crops(chosen: np.ndarray) -> Iterator[encode.Crop]:
        pasted = mask_crops(probs[chosen], boxes[chosen], size, continuous)
        return ((left, top, crop.numpy()) for left, top, crop in pasted)

    return encode.encode_masks(probs.numpy(), boxes.numpy(), size, threshold, continuous, crops)


def mask_crops(
    mask_probs: Tensor, boxes: Tensor, size: tuple[int, int], continuous: bool = False
) -> Iterator[tuple[int, int, Tensor]]:
    """Resize each mask to its box, and clip it to the image.

    Args:
        mask_probs: float [N, 1, M, M].
        boxes: float [N, 4], x1y1x2y2 in the image's frame.
        size: the image's height and width.
        continuous: True keeps the fractional coordinates of boxes, as in Detectron2; False widens boxes to whole
            pixels first, as in torchvision.

    Yields:
        Left, top and float probabilities [h, w] of one mask; empty if the box is outside the image.
    """
    return sampled_crops(mask_probs, boxes, size) if continuous else whole_pixel_crops(mask_probs, boxes, size)


def sampled_crops(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the crops of `mask_crops`, sampled at the pixel centres of the image. Outside a mask, samples are zero."""
    height, width = size
    for probs, (x1, y1, x2, y2) in zip(at_least_float32(mask_probs), boxes.tolist()):
        left, right, x = pixel_centres(x1, x2, width, probs)
        top, bottom, y = pixel_centres(y1, y2, height, probs)
        if left == right or top == bottom:
            yield left, top, probs.new_zeros((bottom - top, right - left))
            continue
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        yield left, top, F.grid_sample(probs[None], grid[None], align_corners=False)[0, 0]


def pixel_centres(low: float, high: float, size: int, like: Tensor) -> tuple[int, int, Tensor]:
    """Return first, end and centres of the pixels that a box spans along an axis, with one more pixel at each end.

    The pixels are clipped to the image. Centres are scaled so that `low` is -1 and `high` is 1.
    """
    first = min(max(math.floor(low) - 1, 0), size)
    end = max(min(math.ceil(high) + 1, size), first)
    centres = torch.arange(first, end, dtype=like.dtype, device=like.device) + 0.5
    return first, end, (centres - low) / max(high - low, 1e-6) * 2 - 1


def whole_pixel_crops(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the crops of `mask_crops`, resized to the whole pixels that each box touches."""
    padded, corners = add_border(mask_probs, boxes)
    height, width = size
    for probs, (x1, y1, x2, y2) in zip(padded, corners.tolist()):
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        resized = F.interpolate(probs[None], size=(h, w), mode="bilinear", align_corners=False)[0, 0]
        left, top = min(max(x1, 0), width), min(max(y1, 0), height)
        right, bottom = max(min(x2 + 1, width), left), max(min(y2 + 1, height), top)
        yield left, top, resized[top - y1 : bottom - y1, left - x1 : right - x1]


def add_border(mask_probs: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Add a border of zeros to the masks, and enlarge the boxes by the same factor.

    Returns masks [N, 1, M + 2, M + 2] and int64 [N, 4], the first and last column and row of each mask, x1y1x2y2.
    """
    padded = F.pad(at_least_float32(mask_probs), (1, 1, 1, 1))
    low, high = boxes.view(-1, 2, 2).unbind(dim=1)
    half, centre = (high - low) * 0.5 * (padded.shape[-1] / mask_probs.shape[-1]), (high + low) * 0.5
    return padded, torch.cat((centre - half, centre + half), dim=1).to(torch.int64)
