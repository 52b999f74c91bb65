"""Normalise, resize and pad: images and targets of a dataset -> one batch.

The short side becomes `min_size`, unless the long side would exceed `max_size` (800 px: Mask R-CNN, arXiv:1703.06870,
section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network_files.boxes import resize_boxes, size_of
from network_files.masks.instance_masks import InstanceMasks


class View(NamedTuple):
    """Size that an augmentation chose for an image, used instead of the network's own sizes."""

    height: int  # of the resized image
    width: int
    # Height and width of the frame whose upper left the image fills; the padding counts as part of the image.
    frame: tuple[int, int]


@dataclass
class ImageBatch:
    """Images of different sizes, padded with zeros at the right and bottom."""

    tensors: Tensor  # float32 [B, C, H, W], H and W multiples of `size_divisible`
    image_sizes: list[tuple[int, int]]  # height and width of each image without the padding


class ImageTransform(nn.Module):
    """Normalise, resize and pad images of any size into one batch, and resize their targets.

    Args:
        min_size: the short side to resize to; of several, training draws one per image, evaluation uses the last.
        max_size: the largest long side.
        image_mean, image_std: one value per channel (red, green, blue), for images in 0..1 or in the images' own units.
        size_divisible: the batch's height and width are multiples of this.
        fixed_size: width and height of every resized image, whatever its shape; or None.
        antialias: True resizes with Pillow's bilinear filter and rounds sizes to the nearest pixel, as in Detectron2;
            False uses no antialiasing filter and rounds sizes down, as in torchvision.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, min_size: int | Sequence[int], max_size: int, image_mean: Sequence[float], image_std: Sequence[float],
        size_divisible: int = 32, fixed_size: tuple[int, int] | None = None, antialias: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.min_size = (min_size,) if isinstance(min_size, int) else tuple(min_size)
        self.max_size = max_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        # Buffers move to the device with the network; they are not stored, as torchvision's state dict lacks them.
        for name, values in (("pixel_mean", image_mean), ("pixel_std", image_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)
        self.size_divisible, self.fixed_size, self.antialias = size_divisible, fixed_size, antialias

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict] | None = None
    ) -> tuple[ImageBatch, list[dict] | None]:
        """Return a batch of the images, and copies of the targets that are resized with the images.

        Args:
            images: [C, H, W] each, uint8, which becomes 0..1, or float, in the units of `image_mean`.
            targets: None, or per image `boxes` float [N, 4] in pixels of the image and `masks`, InstanceMasks or a
                uint8 or bool tensor [N, H, W]; also `view`, a View, if an augmentation chose the size.
        """
        views = [target.get("view") for target in targets or [{}] * len(images)]
        resized = [self.resize(self.normalize(image), view) for image, view in zip(images, views)]
        sizes = [view.frame if view else size_of(image) for image, view in zip(resized, views)]
        if targets is not None:
            targets = [
                resize_target(target, size_of(image), size_of(new), size)
                for target, image, new, size in zip(targets, images, resized, sizes)
            ]
        return ImageBatch(self.pad(resized, sizes), sizes), targets

    def normalize(self, image: Tensor) -> Tensor:
        if image.ndim != 3:
            raise ValueError(f"an image must be [C, H, W], got {list(image.shape)}")
        if image.dtype == torch.uint8:
            image = image.to(torch.float32) / 255
        if not image.is_floating_point():
            raise TypeError(f"an image must be float or uint8, got {image.dtype}")
        mean, std = self.pixel_mean.to(image.dtype), self.pixel_std.to(image.dtype)
        if image.dtype == torch.float64:  # the buffers have only float32's digits
            mean, std = (image.new_tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return (image - mean) / std

    def resize(self, image: Tensor, view: View | None = None) -> Tensor:
        """Resize [C, H, W] to [C, H', W'], the size of the view. Without a view, the settings give the size."""
        if view is not None:
            return resize_to_view(image, view)
        side = self.min_size[-1]
        if self.training:  # a draw even from a single size keeps the RNG in step with torchvision's
            side = self.min_size[int(torch.empty(1).uniform_(0.0, float(len(self.min_size))).item())]
        if self.fixed_size is not None:
            return interpolate(image, self.fixed_size[::-1], self.antialias)
        shape = image.shape[-2:]
        scale = min(side / min(shape), self.max_size / max(shape))
        if self.antialias or min(shape) * scale < 1:  # rounding down would leave nothing of a narrow strip
            rounding = 0.5 if self.antialias else 0.0
            height, width = (max(int(length * scale + rounding), 1) for length in shape)
            return interpolate(image, (height, width), self.antialias)
        # The scale recomputed from the sizes in whole pixels maps corners onto corners.
        return F.interpolate(
            image[None], scale_factor=scale, mode="bilinear", recompute_scale_factor=True, align_corners=False
        )[0]

    def pad(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Pad images [C, H_b, W_b] with zeros to one batch [B, C, H, W] that is large enough for all `sizes`."""
        height, width = (-(-max(lengths) // self.size_divisible) * self.size_divisible for lengths in zip(*sizes))
        batch = images[0].new_zeros((len(images), images[0].shape[0], height, width))
        # Not `zip(batch, images)`: autograd refuses to write into the views that iterating gives.
        for i, image in enumerate(images):
            batch[i, :, : image.shape[-2], : image.shape[-1]] = image
        return batch


def resize_to_view(image: Tensor, view: View) -> Tensor:
    """Resize [C, H, W], float or uint8, to the size of the view, with an antialiasing filter if a side shrinks."""
    size, own = (view.height, view.width), image.shape[-2:]
    return image if size == own else interpolate(image, size, antialias=size[0] < own[0] or size[1] < own[1])


def interpolate(image: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    if antialias and image.shape[-1] == size[1] == 1:
        # torch's antialiasing filter repeats the first row of an image that stays one pixel wide.
        return interpolate(image.transpose(1, 2), size[::-1], antialias).transpose(1, 2)
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=antialias)[0]


def resize_target(
    target: dict, from_size: tuple[int, int], to_size: tuple[int, int], frame: tuple[int, int] | None = None
) -> dict:
    """Return a copy of a target with boxes, masks and ignore regions resized, and masks padded to `frame` if given."""
    target = dict(target, boxes=resize_boxes(target["boxes"], from_size, to_size))
    for key in ("masks", "ignore_regions"):
        if key in target:
            masks = target[key]
            if isinstance(masks, Tensor):
                masks = InstanceMasks.from_dense(masks)
            target[key] = masks.resize(*to_size, frame)
    return target
