"""Encode boxes as deltas relative to reference boxes, and decode them. Boxes are x1y1x2y2 in pixels.

Girshick et al., "Rich feature hierarchies" (R-CNN, arXiv:1311.2524), appendix C; Faster R-CNN (arXiv:1506.01497),
equation 2.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from network_files.on_device import upload

# A larger delta would turn a 16 px anchor into a box of more than 1000 px.
LARGEST_LOG_SCALE = math.log(1000.0 / 16)


class BoxCoder:
    """Encode boxes as deltas (dx, dy, dw, dh) and decode them. Weights scale the deltas to about unit variance."""

    def __init__(self, weights: tuple[float, float, float, float]):
        self.weights = weights

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Encode `boxes` [N, 4] as deltas [N, 4] from `references` [N, 4], which are anchors or proposals."""
        wx, wy, ww, wh = self.weights
        ref_x, ref_y, ref_w, ref_h = centre_form(references)
        x, y, w, h = centre_form(boxes)
        dx, dy = wx * (x - ref_x) / ref_w, wy * (y - ref_y) / ref_h
        dw, dh = ww * torch.log(w / ref_w), wh * torch.log(h / ref_h)
        return torch.stack((dx, dy, dw, dh), dim=1)

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Apply `deltas` [N, 4] to `references` [N, 4] -> boxes [N, 4]; the inverse of `encode`."""
        wx, wy, ww, wh = self.weights
        ref_x, ref_y, ref_w, ref_h = centre_form(references)
        dx, dy, dw, dh = deltas.unbind(dim=1)
        x = dx / wx * ref_w + ref_x
        y = dy / wy * ref_h + ref_y
        half_w = 0.5 * (torch.exp((dw / ww).clamp(max=LARGEST_LOG_SCALE)) * ref_w)
        half_h = 0.5 * (torch.exp((dh / wh).clamp(max=LARGEST_LOG_SCALE)) * ref_h)
        return torch.stack((x - half_w, y - half_h, x + half_w, y + half_h), dim=1)


def centre_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x1y1x2y2 [N, 4] -> centre x, centre y, width, height, each [N]."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes [B, N, 4] with others [B, M, 4] -> [B, N, M], equal to `torchvision.ops.box_iou` bit for bit.

    It needs a third of that operator's memory, and handles all images of a batch. B may be 1 for either argument.
    """
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=-1)
    # Contiguous rows of coordinates, which the operators read several times as fast on the CPU.
    other_x1, other_y1, other_x2, other_y2 = others.mT.contiguous()[:, :, None].unbind(dim=1)
    areas = (x2 - x1) * (y2 - y1) + (other_x2 - other_x1) * (other_y2 - other_y1)
    shared = torch.minimum(x2, other_x2).sub_(torch.maximum(x1, other_x1)).clamp_(min=0)
    shared.mul_(torch.minimum(y2, other_y2).sub_(torch.maximum(y1, other_y1)).clamp_(min=0))
    return shared.div_(areas.sub_(shared))


def clip_boxes(boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Clip boxes [B, N, 4] to images of the given heights and widths."""
    limits = upload(torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype), boxes.device)
    return torch.minimum(boxes.clamp(min=0), limits[:, None])


def padded(*columns: Tensor, counts: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Split each tensor [S, ...] into the rows of B images, and pad them with zeros to equal numbers: [B, N, ...].

    `counts` holds the number of rows of each image, and N is the largest. Also returns the counts, int64 [B]. There is
    only one upload, for all images.
    """
    numbers = torch.tensor(counts, dtype=torch.int64)[:, None]
    places = torch.arange(max(counts))
    rows = torch.where(places < numbers, numbers.cumsum(0) - numbers + places, sum(counts))
    table = upload(torch.cat((rows, numbers), dim=1), columns[0].device)
    return [F.pad(c, (0, 0) * (c.ndim - 1) + (0, 1))[table[:, :-1]] for c in columns], table[:, -1]


def size_of(image: Tensor) -> tuple[int, int]:
    """Return height and width of an image or of masks, [..., H, W]."""
    height, width = image.shape[-2:]
    return height, width


def resize_boxes(boxes: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Scale boxes [N, 4] from an image of `from_size` (height, width) to one of `to_size`."""
    # Python numbers: a tensor of ratios would have to be copied to the device.
    y_ratio, x_ratio = (
        (torch.tensor(to, dtype=torch.float32) / torch.tensor(frm, dtype=torch.float32)).item()
        for frm, to in zip(from_size, to_size)
    )
    boxes = at_least_float32(boxes)
    return torch.stack((boxes[:, 0::2] * x_ratio, boxes[:, 1::2] * y_ratio), dim=2).flatten(1)


def at_least_float32(values: Tensor) -> Tensor:
    """Convert values of lower precision to float32; float64 stays float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
