"""RoIAlign on a pyramid: boxes in, a feature map of fixed size for each out, read from the level that fits its size.

Mask R-CNN (arXiv:1703.06870), section 3, "RoIAlign"; the level by equation 1 of FPN (arXiv:1612.03144).
"""
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

CANONICAL_SIZE = 224  # a box of this size reads level 4, the stage that classifies ImageNet's 224 px crops
CANONICAL_LEVEL = 4


class PyramidRoIAlign(nn.Module):
    """Takes the same arguments as `torchvision.ops.MultiScaleRoIAlign`, which may stand in its place.

    Args:
        featmap_names: the pyramid levels that boxes are read from.
        output_size: height and width of each box's features.
        sampling_ratio: samples a bin and side; 0 adapts them to the box.
        aligned: whether pixel centres lie at half-integers (Detectron2's ROIAlignV2) or at integers (torchvision).
    """

    def __init__(
        self,
        featmap_names: Sequence[str] = ("0", "1", "2", "3"),
        output_size: int | tuple[int, int] = 7,
        sampling_ratio: int = 2,
        aligned: bool = False,
    ):
        super().__init__()
        self.featmap_names = tuple(featmap_names)
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Read the boxes' features.

        Args:
            features: level name -> [B, C, H_i, W_i].
            boxes: for each image float [R_b, 4], x1y1x2y2 in pixels of the resized image.
            image_sizes: height and width of each resized image; with the levels' sizes they tell the strides.

        Returns:
            [sum of R_b, C, output_size] in the features' dtype, the first image's boxes first.
        """
        levels = [features[name] for name in self.featmap_names if name in features]
        batch_height = max(height for height, _ in image_sizes)
        strides = [2 ** round(math.log2(batch_height / level.shape[-2])) for level in levels]
        image_ids = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        rois = torch.cat((image_ids, torch.cat(list(boxes))), dim=1)
        if len(levels) == 1:
            return self.read(levels[0], rois, strides[0])
        level_ids = assign_levels(rois[:, 1:], round(math.log2(strides[0])), round(math.log2(strides[-1])))
        output = levels[0].new_zeros((len(rois), levels[0].shape[1], *self.output_size))
        for i, (level, stride) in enumerate(zip(levels, strides)):
            chosen = torch.where(level_ids == i)[0]
            output[chosen] = self.read(level, rois[chosen], stride).to(output.dtype)
        return output

    def read(self, level: Tensor, rois: Tensor, stride: int) -> Tensor:
        return roi_align(level, rois, self.output_size, 1.0 / stride, self.sampling_ratio, self.aligned)


def assign_levels(boxes: Tensor, finest: int, coarsest: int) -> Tensor:
    """Equation 1 of the FPN paper: int64 [R], counted from the finest level that is there (log2 of its stride)."""
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(size / CANONICAL_SIZE) + 1e-6)
    return level.clamp(finest, coarsest).to(torch.int64) - finest
