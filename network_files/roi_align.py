"""RoIAlign on a pyramid: boxes -> features of fixed size, each read from the level that fits the size of its box.

Mask R-CNN (arXiv:1703.06870), section 3, "RoIAlign"; the level by equation 1 of FPN (arXiv:1612.03144).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from network_files.boxes import at_least_float32
from network_files.on_device import upload

OUTSIDE = -1e5  # pixels; the operator reads nothing there
CANONICAL_SIZE = 224  # FPN, section 4.2: a box of ImageNet's crop size reads P4, as single-scale Faster R-CNN reads C4
CANONICAL_LEVEL = 4


class RoIPool(Protocol):
    """A module: levels, boxes [R_b, 4] and size of each image -> RoI features [sum of R_b, C, *output_size]."""

    @property
    def output_size(self) -> Sequence[int]: ...

    def __call__(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]], /
    ) -> Tensor: ...


class PyramidRoIAlign(nn.Module):
    """RoIAlign on a pyramid. Takes the arguments of `torchvision.ops.MultiScaleRoIAlign`, and also `aligned`.

    Args:
        featmap_names: the pyramid levels that features are read from.
        output_size: height and width of the features of a box.
        sampling_ratio: samples per bin along each side; 0 adapts them to the box.
        aligned: whether pixel centres are at half-integers (Detectron2's ROIAlignV2) or at integers (torchvision).
    """

    def __init__(
        self, featmap_names: Sequence[str] = ("0", "1", "2", "3"), output_size: int | tuple[int, int] = 7,
        sampling_ratio: int = 2, aligned: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.featmap_names = tuple(featmap_names)
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Pool the features of boxes: levels [B, C, H_i, W_i] by name -> [sum of R_b, C, *output_size], same dtype.

        The boxes of each image are float [R_b, 4], x1y1x2y2 in pixels of the resized image. The strides follow from
        `image_sizes`, the height and width of each resized image, and the sizes of the levels.
        """
        names = [name for name in self.featmap_names if name in features]
        if self.sampling_ratio == 0 and boxes[0].is_cuda and torch.are_deterministic_algorithms_enabled():
            # There the operator adds up gradients in the order in which they arrive.
            on_cpu = {name: features[name].cpu() for name in names}
            return self(on_cpu, [b.cpu() for b in boxes], image_sizes).to(boxes[0].device)
        strides = [stride_of(features[name], image_sizes) for name in names]
        rois = torch.cat(list(boxes))
        image_ids = torch.arange(len(boxes), dtype=rois.dtype).repeat_interleave(torch.tensor([len(b) for b in boxes]))
        rois = torch.cat((upload(image_ids[:, None], rois.device), rois), dim=1)
        level_ids = assign_levels(rois[:, 1:], round(math.log2(strides[0])), round(math.log2(strides[-1])))
        read = self.read_by_level if rois.device.type == "cpu" else self.read_at_once
        return read(SharedPyramid.of(features), names, strides, rois, level_ids).to(features[names[0]].dtype)

    def read_by_level(
        self, pyramid: "SharedPyramid", names: Sequence[str], strides: Sequence[int], rois: Tensor, level_ids: Tensor
    ) -> Tensor:
        """Read the RoIs level by level. On the CPU, this saves copying the levels into one table."""
        first = pyramid[names[0]]
        output = at_least_float32(first.new_zeros((len(rois), first.shape[1], *self.output_size)))
        for i, (name, stride) in enumerate(zip(names, strides)):
            chosen = torch.where(level_ids == i)[0]
            if self.sampling_ratio == 0:
                output[chosen] = self.operate(pyramid[name], rois[chosen], stride).to(output.dtype)
            else:
                grid = grid_of(pyramid[name], stride, start=0)
                output[chosen] = self.weighted_gather(pyramid.table((name,)), rois[chosen], grid[None])
        return output

    def read_at_once(
        self, pyramid: "SharedPyramid", names: Sequence[str], strides: Sequence[int], rois: Tensor, level_ids: Tensor
    ) -> Tensor:
        """Read the RoIs of all levels together. On a GPU, this saves waiting for the number of RoIs of each level."""
        levels = [pyramid[name] for name in names]
        if self.sampling_ratio == 0:
            parts = []
            for i, (level, stride) in enumerate(zip(levels, strides)):
                # The boxes of other levels are moved outside, where the operator reads nothing and returns zeros.
                own = torch.where((level_ids == i)[:, None], rois[:, 1:], OUTSIDE)
                parts.append(self.operate(level, torch.cat((rois[:, :1], own), dim=1), stride))
            return torch.stack(parts).sum(dim=0)
        starts = accumulate((level[:, 0].numel() for level in levels), initial=0)
        grids = torch.stack([grid_of(*each) for each in zip(levels, strides, starts)])
        return self.weighted_gather(pyramid.table(tuple(names)), rois, upload(grids, rois.device)[level_ids])

    def weighted_gather(self, table: Tensor, rois: Tensor, grids: Tensor) -> Tensor:
        """Compute RoIAlign as a weighted embedding_bag, 20 times as fast on the CPU as torchvision's operator.

        The backward pass is 10 times as fast. Each bin reads 4 * sampling_ratio^2 pixels, which are rows of the table.
        The operator works channel by channel, backward in a single thread, and in any order on a GPU.

        Args:
            table: float32 [S, C], the pixels of one level or several, image by image, row by row.
            rois: float [R, 5], image and x1y1x2y2 in pixels of the resized images.
            grids: `grid_of` each RoI's level, [R, 4], or [1, 4] if all read the same level.

        Returns:
            float32 [R, C, *output_size], channels last in memory.
        """
        if len(rois) == 0 and table.device.type != "cpu":
            return table.new_zeros((0, table.shape[1], *self.output_size))
        start, level_height, level_width = grids[:, :3].long().unbind(dim=1)
        x1, y1, x2, y2 = (rois[:, 1:] * grids[:, 3:].float() - (0.5 if self.aligned else 0.0)).unbind(dim=1)
        roi_width, roi_height = x2 - x1, y2 - y1
        if not self.aligned:
            roi_width, roi_height = roi_width.clamp(min=1), roi_height.clamp(min=1)
        (bins_y, bins_x), samples = self.output_size, self.sampling_ratio
        rows, row_weights = bilinear_taps(y1, roi_height, level_height, bins_y, samples)
        columns, column_weights = bilinear_taps(x1, roi_width, level_width, bins_x, samples)
        first = start + rois[:, 0].to(torch.int64) * level_height * level_width
        rows = rows * level_width[:, None, None] + first[:, None, None]
        pixels = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        taps = pixels.shape[-2] * pixels.shape[-1]
        bins = F.embedding_bag(pixels.view(-1, taps), table, per_sample_weights=weights.view(-1, taps), mode="sum")
        return bins.view(len(rois), bins_y, bins_x, table.shape[1]).permute(0, 3, 1, 2)

    def operate(self, level: Tensor, rois: Tensor, stride: int) -> Tensor:
        """Pool with torchvision's operator, which adapts the number of samples to each box."""
        # The operator requires one dtype for both; on the CPU, nothing casts them inside CUDA's autocast.
        read = roi_align(level.to(rois.dtype), rois, self.output_size, 1 / stride, self.sampling_ratio, self.aligned)
        return read.to(level.dtype)


def stride_of(level: Tensor, image_sizes: Sequence[tuple[int, int]]) -> int:
    """Return the stride of a level [B, C, H, W], a power of 2, given the height and width of each resized image."""
    sides = [max(sizes) for sizes in zip(*image_sizes)]
    # Padding makes levels larger than their images, relatively most along a short side: the larger quotient is right.
    return 2 ** round(math.log2(max(pixels / cells for pixels, cells in zip(sides, level.shape[-2:]))))


class SharedPyramid(dict[str, Tensor]):
    """A pyramid, level name -> [B, C, H, W], that caches its tables of pixels for the box head and the mask head."""

    def __init__(self, features: Mapping[str, Tensor]):
        super().__init__(features)
        self.tables: dict[tuple[str, ...], Tensor] = {}

    @classmethod
    def of(cls, features: Mapping[str, Tensor]) -> "SharedPyramid":
        return features if isinstance(features, cls) else cls(features)

    def table(self, names: tuple[str, ...]) -> Tensor:
        """Return the features of all pixels of some levels, one pixel per row: float32 [sum of B * H_i * W_i, C]."""
        if names not in self.tables:
            rows = [self[name].permute(0, 2, 3, 1).reshape(-1, self[name].shape[1]) for name in names]
            self.tables[names] = at_least_float32(rows[0] if len(rows) == 1 else torch.cat(rows))
        return self.tables[names]


def grid_of(level: Tensor, stride: int, start: int) -> Tensor:
    """Return start, H, W and 1 / stride of a level, float64 [4]. `start` is the level's first row in a table."""
    return torch.tensor((start, *level.shape[-2:], 1 / stride), dtype=torch.float64)


def bilinear_taps(start: Tensor, length: Tensor, size: Tensor, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return the pixels that each bin reads along one axis, and their weights (Mask R-CNN, figure 3).

    Args:
        start, length: of each RoI along the axis, in pixels of the level, [r].
        size: of each RoI's level along the axis, [r] or [1].
        bins, samples: bins per RoI, and samples per bin.

    Returns:
        Indices int64 and weights float32, both [r, bins, 2 * samples].
    """
    bin_size = (length / bins)[:, None, None]
    bin_ids = torch.arange(bins, device=start.device)[:, None]
    sample_ids = torch.arange(samples, device=start.device)
    position = start[:, None, None] + bin_ids * bin_size + (sample_ids + 0.5) * bin_size / samples
    end = size[:, None, None].to(position.dtype)
    inside = (position >= -1) & (position <= end)
    position = torch.minimum(position.clamp(min=0), end - 1)
    low = position.floor()
    high_weight = position - low
    indices = torch.stack((low, torch.minimum(low + 1, end - 1)), dim=-1).to(torch.int64)
    weights = torch.stack((1 - high_weight, high_weight), dim=-1) * inside[..., None] / samples
    return indices.flatten(2), weights.flatten(2)


def assign_levels(boxes: Tensor, finest: int, coarsest: int) -> Tensor:
    """Assign boxes [R, 4] to levels (FPN, equation 1): int64 [R], 0 for the finest level.

    `finest` and `coarsest` are the base-2 logarithms of the strides of the finest and the coarsest level.
    """
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(size / CANONICAL_SIZE) + 1e-6)
    return level.clamp(finest, coarsest).to(torch.int64) - finest
