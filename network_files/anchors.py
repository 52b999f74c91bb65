"""Anchors: reference boxes, tiled over every pyramid level, that the RPN scores and refines.

Ren et al., "Faster R-CNN" (arXiv:1506.01497), section 3.1.1; one size per level as in FPN (arXiv:1612.03144),
section 4.1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from network_files.boxes import pairwise_iou

MOST_SHAPES = 16  # shapes of batches whose anchors are cached; those of 800x1333 take 4 MB


class AnchorGenerator(nn.Module):
    """Generate the anchors of a batch. All images of the batch share the same anchors.

    Args:
        sizes: per level, the square roots of the anchors' areas, in pixels of the network's input.
        aspect_ratios: per level, the anchors' height over width.
        rounded: True rounds corners to whole pixels before tiling and takes the integer quotient of the sizes as
            the stride (61 instead of 64 for a level of 13 cells and 800 px), as in torchvision; False uses exact
            corners and power-of-two strides, as in Detectron2.
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
        self.cache: dict[tuple, list[Tensor]] = {}
        for i, (level_sizes, level_ratios) in enumerate(zip(self.sizes, self.aspect_ratios)):
            cell = cell_anchors(level_sizes, level_ratios)
            # A buffer, so that it moves to the device with the network and not at every step.
            self.register_buffer(f"cell_{i}", cell.round() if rounded else cell, persistent=False)

    @property
    def cell_anchors(self) -> list[Tensor]:
        """Return per level the anchors of a cell centred on the origin: float32 [A, 4], x1y1x2y2."""
        return [self.get_buffer(f"cell_{i}") for i in range(len(self.sizes))]

    def describe(self) -> str:
        """Return a line of text with the sizes of all levels and the aspect ratios of the first level."""
        sizes = " ".join(f"{size:g}" for level in self.sizes for size in level)
        return f"sides {sizes} px, height over width {' '.join(f'{ratio:g}' for ratio in self.aspect_ratios[0])}"

    def num_anchors_per_location(self) -> list[int]:
        return [len(cell) for cell in self.cell_anchors]

    def forward(self, padded_size: tuple[int, int], levels: Sequence[Tensor]) -> list[Tensor]:
        """Tile the cell anchors over the levels [B, C, H_i, W_i]. `padded_size` is the height and width of the batch.

        Returns per level float32 [H_i * W_i * A, 4], x1y1x2y2 in pixels of the batch, ordered by row, column, anchor.
        """
        if len(levels) != len(self.sizes):
            raise ValueError(f"anchors are defined for {len(self.sizes)} levels, the pyramid has {len(levels)}")
        cells, sizes = self.cell_anchors, [(level.shape[-2], level.shape[-1]) for level in levels]
        key = (*padded_size, *sizes, cells[0].dtype, cells[0].device)
        if key not in self.cache:
            if len(self.cache) == MOST_SHAPES:
                self.cache.clear()
            with torch.inference_mode(False):  # tensors made in inference mode cannot be used in training
                self.cache[key] = [self.tile(cell, size, padded_size) for cell, size in zip(cells, sizes)]
        return self.cache[key]

    def tile(self, cell: Tensor, size: tuple[int, int], padded_size: tuple[int, int]) -> Tensor:
        """Repeat the anchors of a cell over a level of `size` cells (height, width): [A, 4] -> [H * W * A, 4]."""
        height, width = size
        y, x = (
            torch.arange(cells, device=cell.device) * self.stride(padded, cells)
            for padded, cells in zip(padded_size, size)
        )
        corners_y = (y[:, None, None] + cell[:, 1::2])[:, None].expand(-1, width, -1, -1)  # [H, W, A, 2]
        corners_x = (x[:, None, None] + cell[:, 0::2])[None].expand(height, -1, -1, -1)
        return torch.stack((corners_x, corners_y), dim=-1).view(-1, 4)

    def stride(self, padded_side: int, level_side: int) -> int:
        """Return a level's stride in pixels, given one side of the padded batch and the same side of the level."""
        return padded_side // level_side if self.rounded else 2 ** round(math.log2(padded_side / level_side))


def best_anchor_ious(boxes: Tensor, size: tuple[int, int], generator: AnchorGenerator) -> Tensor:
    """Return each box's highest IoU with any anchor, [N]. Boxes [N, 4] are in pixels of a resized image of `size`.

    Among anchors of one shape, the one nearest to the box's centre fits best, so only that anchor is compared.
    """
    padded_size = [-(-length // 32) * 32 for length in size]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    best = boxes.new_zeros(len(boxes))
    for i, cell in enumerate(generator.cell_anchors):
        cells = [-(-length // 2 ** (i + 2)) for length in padded_size]  # of levels with strides 4, 8, 16, ...
        strides = [generator.stride(*each) for each in zip(padded_size, cells)]
        stride, last = (boxes.new_tensor(values[::-1]) for values in (strides, [count - 1 for count in cells]))
        nearest = (centres / stride).round().clamp(min=boxes.new_zeros(2), max=last) * stride
        ious = pairwise_iou(boxes[:, None], nearest.repeat(1, 2)[:, None] + cell.to(boxes))
        best = torch.maximum(best, ious.amax(dim=(1, 2)))
    return best


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Return anchors centred on the origin, x1y1x2y2 [ratios * sizes, 4], ordered by aspect ratio, then by size."""
    lengths = torch.tensor(sizes, dtype=torch.float32)
    height_ratios = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()
    widths = ((1 / height_ratios)[:, None] * lengths).flatten()
    heights = (height_ratios[:, None] * lengths).flatten()
    return torch.stack((-widths, -heights, widths, heights), dim=1) / 2
