"""(image, target) -> (image, target): what happens to a picture between its file and the batch.

Images are uint8 [3, H, W], red, green, blue; targets hold boxes and compact masks in the same frame.
"""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Transform = Callable[[Tensor, dict], tuple[Tensor, dict]]


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = list(transforms)

    def __call__(self, image: Tensor, target: dict) -> tuple[Tensor, dict]:
        for transform in self.transforms:
            image, target = transform(image, target)
        return image, target


class RandomHorizontalFlip:
    """Mirrors the picture, its boxes and its masks with probability `prob`, drawn from torch's RNG."""

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
    """Items -> (images, targets): pictures of different sizes stay apart until the network pads them."""
    images, targets = zip(*batch)
    return images, targets
