"""Transform an image and its target between file and batch: (image, target) -> (image, target).

Images are uint8 [3, H, W], red, green, blue; targets have boxes and compact masks in the same frame.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Transform = Callable[[Tensor, dict], tuple[Tensor, dict]]


class Compose:
    """Apply transforms one after another."""

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = list(transforms)

    def __call__(self, image: Tensor, target: dict) -> tuple[Tensor, dict]:
        for transform in self.transforms:
            image, target = transform(image, target)
        return image, target


class RandomHorizontalFlip:
    """Mirror the image, its boxes and its masks with probability `prob`, drawn from torch's RNG."""

    def __init__(self, prob: float = 0.5):
        self.prob = prob

    def __call__(self, image: Tensor, target: dict) -> tuple[Tensor, dict]:
        if torch.rand(1).item() >= self.prob:
            return image, target
        width = image.shape[-1]
        boxes = target["boxes"].clone()
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        return image.flip(-1), dict(target, boxes=boxes, masks=target["masks"].flip_horizontal())


def collate_fn(batch: Sequence[tuple[Tensor, dict]]) -> tuple[tuple[Tensor, ...], tuple[dict, ...]]:
    """Collate items to (images, targets): images of different sizes are not stacked until the network pads them."""
    images, targets = zip(*batch)
    return images, targets
