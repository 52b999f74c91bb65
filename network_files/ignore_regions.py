"""Exclude anchors and proposals inside ignore regions, such as crowds, from the background samples."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from network_files.masks.instance_masks import InstanceMasks
from network_files.on_device import upload

LEAST_SHARE = 0.5  # of a box's own area
ROUNDING = 1e-6  # far above the rounding error of the sums, and far below a pixel's share of any box


def integral_image(regions: InstanceMasks, device: torch.device) -> Tensor:
    """Return the integral image of the union of the regions, float64 [H + 1, W + 1]."""
    plane = upload(torch.from_numpy(regions.in_current_frame().union()), device)
    sums = plane.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)  # deterministic on CUDA, unlike floats
    return F.pad(sums, (1, 0, 1, 0)).double()


def share_inside(sums: Tensor, boxes: Tensor) -> Tensor:
    """Return the share of each box's area that regions cover, float64 [N]. It is NaN for boxes without area.

    `sums` is the regions' `integral_image`, and boxes are x1y1x2y2 [N, 4]. The share is also exact for fractions of
    pixels, as the integral of an image is bilinear within each pixel. Outside the frame there are no regions.
    """
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    x1, y1, x2, y2 = boxes.double().unbind(dim=1)
    x, y = torch.stack((x1, x2, x1, x2), dim=1), torch.stack((y1, y1, y2, y2), dim=1)
    grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), dim=2)
    found = F.grid_sample(sums[None, None], grid[None], padding_mode="border", align_corners=True)
    upper_left, upper_right, lower_left, lower_right = found[0, 0].unbind(dim=1)
    return (lower_right - lower_left - upper_right + upper_left) / ((x2 - x1) * (y2 - y1))


def spare_regions(labels: Tensor, candidates: Tensor, regions: Sequence[Tensor | None]) -> Tensor:
    """Relabel background candidates as ignored if at least half of their area is inside the regions of their image.

    Candidates that match an object stay positive, as COCO's evaluation also matches objects before crowds.

    Args:
        labels: [B, A]; 0 is background, below 0 ignored.
        candidates: [B, A, 4], or [1, A, 4] if all images have the same.
        regions: per image an `integral_image` or None; may be empty.
    """
    if not any(sums is not None for sums in regions):
        return labels
    inside = torch.zeros_like(labels, dtype=torch.bool)
    for i, sums in enumerate(regions):
        if sums is not None:
            inside[i] = share_inside(sums, candidates[min(i, len(candidates) - 1)]) >= LEAST_SHARE - ROUNDING
    return labels.masked_fill((labels == 0) & inside, -1)
