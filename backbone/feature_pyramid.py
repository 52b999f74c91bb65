"""Feature Pyramid Network: backbone stages -> pyramid levels with equal numbers of channels.

Lin et al., "Feature Pyramid Networks for Object Detection" (arXiv:1612.03144), section 3.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.conv_norm import bias_of, conv_norm
from backbone.resnet import NormLayer


class FeaturePyramidNetwork(nn.Module):
    """The pyramid of figure 3: lateral 1x1 convolutions, top-down nearest upsampling, and a 3x3 convolution per level.

    Args:
        in_channels: channels of each input feature map, finest first.
        out_channels: channels of every level (256 in the paper).
        extra_blocks: adds further levels, `(levels, inputs, names) -> (levels, names)`; or None.
        norm_layer: a normalisation after each convolution, which then has no bias (the v2 model); or None.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        extra_blocks: nn.Module | None = None,
        norm_layer: NormLayer | None = None,
    ):
        super().__init__()
        self.inner_blocks = nn.ModuleList(make_conv(c, out_channels, 1, norm_layer) for c in in_channels)
        self.layer_blocks = nn.ModuleList(make_conv(out_channels, out_channels, 3, norm_layer) for _ in in_channels)
        self.extra_blocks = extra_blocks

    def forward(self, stages: Sequence[Tensor]) -> "OrderedDict[str, Tensor]":
        """[B, C_i, H_i, W_i] per stage, finest first -> {"0": [B, out_channels, H_0, W_0], "1": ...}."""
        top_down = self.inner_blocks[-1](stages[-1])
        levels = [self.layer_blocks[-1](top_down)]
        for i in range(len(stages) - 2, -1, -1):
            # CUDA's autocast would upsample in float32, and everything after it would be float32 as well.
            with torch.autocast(top_down.device.type, enabled=False):
                upsampled = F.interpolate(top_down, size=stages[i].shape[-2:], mode="nearest")
            lateral = cast(nn.Sequential, self.inner_blocks[i])
            conv, norm = cast(nn.Conv2d, lateral[0]), lateral[1] if len(lateral) == 2 else None
            top_down = conv_norm(stages[i], conv, norm, shortcut=upsampled)
            levels.insert(0, self.layer_blocks[i](top_down))
        names = [str(i) for i in range(len(levels))]
        if self.extra_blocks is not None:
            levels, names = self.extra_blocks(levels, list(stages), names)
        return OrderedDict(zip(names, levels))


def make_conv(in_channels: int, out_channels: int, kernel_size: int, norm_layer: NormLayer | None) -> nn.Sequential:
    """Build a convolution that keeps height and width, with either a bias or a normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm_layer is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if norm_layer is not None:
        return nn.Sequential(conv, norm_layer(out_channels))
    nn.init.zeros_(bias_of(conv))
    return nn.Sequential(conv)


class LastLevelMaxPool(nn.Module):
    """Add level P6, for anchors of 512 px: the coarsest level, subsampled by 2 (section 4.1, footnote)."""

    def forward(self, levels: list[Tensor], inputs: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        pooled = F.max_pool2d(levels[-1], kernel_size=1, stride=2, padding=0)
        return [*levels, pooled], [*names, "pool"]
