"""Anchors: the reference boxes, tiled over every pyramid level, that the RPN scores and refines.

Ren et al., "Faster R-CNN" (arXiv:1506.01497), section 3.1.1; one size a level as in the FPN paper, section 4.1.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Makes the anchors of a batch: the same for every image, as they depend on the batch's shape only.

    Args:
        sizes: for each level the square roots of the anchors' areas, in pixels of the network's input.
        aspect_ratios: for each level the anchors' height over width.
        rounded: whether corners are rounded to whole pixels before tiling, and the strides down to whole quotients
            of the sizes (61 where 800 px have become 13, for 64), as in torchvision; or left as they are, as in
            Detectron2.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[int]] = ((32,), (64,), (128,), (256,), (512,)),
        aspect_ratios: Sequence[Sequence[float]] = ((0.5, 1.0, 2.0),) * 5,
        rounded: bool = True,
    ):
        super().__init__()
        if len(sizes) != len(aspect_ratios):
            raise ValueError(f"{len(sizes)} levels of sizes, but {len(aspect_ratios)} of aspect_ratios")
        self.sizes = tuple(tuple(s) for s in sizes)
        self.aspect_ratios = tuple(tuple(r) for r in aspect_ratios)
        self.rounded = rounded
        cells = [cell_anchors(s, r) for s, r in zip(self.sizes, self.aspect_ratios)]
        self.cell_anchors = [cell.round() if rounded else cell for cell in cells]

    def num_anchors_per_location(self) -> list[int]:
        return [len(cell) for cell in self.cell_anchors]

    def forward(self, batch_size: tuple[int, int], levels: Sequence[Tensor]) -> list[Tensor]:
        """Tile the cell anchors over the levels.

        Args:
            batch_size: height and width of the padded batch, in pixels.
            levels: one [B, C, H_i, W_i] a level; shape and device are used.

        Returns:
            For each level float32 [H_i * W_i * A, 4], x1y1x2y2 in pixels of the batch, ordered by row, column, anchor.
        """
        if len(levels) != len(self.cell_anchors):
            raise ValueError(f"anchors are defined for {len(self.cell_anchors)} levels, the pyramid has {len(levels)}")
        anchors = []
        for level, cell in zip(levels, self.cell_anchors):
            height, width = level.shape[-2:]
            y = torch.arange(height, device=level.device) * self.stride(batch_size[0], height)
            x = torch.arange(width, device=level.device) * self.stride(batch_size[1], width)
            y, x = (grid.reshape(-1) for grid in torch.meshgrid(y, x, indexing="ij"))
            shifts = torch.stack((x, y, x, y), dim=1)
            anchors.append((shifts[:, None] + cell.to(level.device)).reshape(-1, 4))
        return anchors

    def stride(self, batch_side: int, level_side: int) -> int:
        """Pixels of the batch between two neighbours of a level, by the lengths of one side of both."""
        return batch_side // level_side if self.rounded else 2 ** round(math.log2(batch_side / level_side))


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Anchors centred on the origin: [len(aspect_ratios) * len(sizes), 4], x1y1x2y2, ratio by ratio."""
    sizes = torch.tensor(sizes, dtype=torch.float32)
    height_ratios = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()
    widths = ((1 / height_ratios)[:, None] * sizes).flatten()
    heights = (height_ratios[:, None] * sizes).flatten()
    return torch.stack((-widths, -heights, widths, heights), dim=1) / 2
