"""Augmentations over again, in numpy on full planes: what comes out of transforms.py must equal this, to the bit.

The oracle draws the same random numbers from torch's RNG, and shares no code with what it checks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import transforms
from network_files.image_transform import ImageTransform

SIDE = 256  # of large-scale jitter's square: small, so that a thousand draws take minutes


@dataclass
class Dense:
    """An image and its objects as full planes.

    Attributes:
        image: uint8 [3, H, W].
        masks: bool [N, H, W].
        boxes: float64 [N, 4], the extents of the masks.
        names: int [N], which objects of the item these are.
        scaled: height and width that the network resizes the image to, or None.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    names: np.ndarray
    scaled: tuple[int, int] | None = None


def extents(masks: np.ndarray) -> np.ndarray:
    """float64 [N, 4], x1y1x2y2 around the ones of bool [N, H, W]; zeros where there are none."""
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks):
        rows, columns = np.nonzero(mask)
        if len(rows):
            box[:] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return boxes


def made(image: np.ndarray, masks: np.ndarray, names: np.ndarray, kept: np.ndarray, scaled=None) -> Dense:
    return Dense(image, masks[kept], extents(masks[kept]), names[kept], scaled)


def flipped(item: Dense, axis: int) -> Dense:
    if torch.rand(1).item() >= 0.5:
        return item
    masks = np.flip(item.masks, axis)
    return Dense(np.flip(item.image, axis), masks, extents(masks), item.names, item.scaled)


def jittered(item: Dense) -> Dense:
    """Large-scale jitter: the window in pixels of the image, and the size that the network is to resize it to."""
    scale, place = torch.rand(2, dtype=torch.float64).tolist()
    height, width = item.image.shape[1:]
    ratio = min(SIDE / height, SIDE / width) * (0.1 + (2.0 - 0.1) * scale)
    new_height, new_width = max(int(height * ratio), 1), max(int(width * ratio), 1)
    seen_height = height if new_height <= SIDE else min(round(SIDE / ratio), height)
    seen_width = width if new_width <= SIDE else min(round(SIDE / ratio), width)
    top, left = int((height - seen_height) * place), int((width - seen_width) * place)
    rows, columns = slice(top, top + seen_height), slice(left, left + seen_width)
    masks = item.masks[:, rows, columns]
    scaled = (min(new_height, SIDE), min(new_width, SIDE))
    before, after = item.masks.sum((1, 2)), masks.sum((1, 2))
    boxes = extents(masks).astype(np.float32)
    factors = np.array([scaled[1] / seen_width, scaled[0] / seen_height], dtype=np.float32)
    large = ((boxes[:, 2:] * factors - boxes[:, :2] * factors) >= 1).all(1)
    kept = (after > 0) & (after >= 0.1 * before) & large
    return made(item.image[:, rows, columns], masks, item.names, kept, scaled)


def nearest(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [N, H, W] -> bool [N, *size] by nearest neighbour, as torch defines it."""
    rows, columns = (
        np.minimum(np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int), old - 1)
        for old, new in zip(masks.shape[1:], size)
    )
    return masks[:, rows][:, :, columns]


def resized(boxes: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Boxes [N, 4] of an image of `size` (height, width) in one of `new_size`."""
    return boxes * np.array([new / old for old, new in zip(size, new_size)])[[1, 0, 1, 0]]


def padded(masks: np.ndarray) -> np.ndarray:
    return np.pad(masks, ((0, 0), (0, SIDE - masks.shape[1]), (0, SIDE - masks.shape[2])))


def dense_item(image: Tensor, target: dict) -> Dense:
    masks = target["masks"].dense().numpy().astype(bool)
    return Dense(image.numpy(), masks, extents(masks), np.arange(len(masks)))


def with_extents(target: dict) -> dict:
    """The target with the masks' extents as boxes, and the objects' numbers as labels."""
    count = len(target["labels"])
    return dict(target, boxes=target["masks"].extents(), labels=torch.arange(count), iscrowd=torch.arange(count) % 2)


AUGMENTATIONS: dict[str, tuple[Callable, Callable[[Dense], Dense]]] = {
    "hflip": (transforms.RandomHorizontalFlip(), lambda item: flipped(item, 2)),
    "vflip": (transforms.RandomVerticalFlip(), lambda item: flipped(item, 1)),
    "both flips": (
        transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()]),
        lambda item: flipped(flipped(item, 2), 1),
    ),
    "lsj": (transforms.ScaleJitter(SIDE), jittered),
    "lsj and flips": (
        transforms.Compose(
            [transforms.ScaleJitter(SIDE), transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()]
        ),
        lambda item: flipped(flipped(jittered(item), 2), 1),
    ),
}


def compare(name: str, image: Tensor, target: dict, seed: int) -> list[str]:
    """What differs between an augmented item and the oracle's; nothing, if all bits are equal.

    Compared are pixels, masks, boxes, labels and crowd flags as the transform leaves them, and boxes and masks as the
    network resizes them.
    """
    augment, oracle = AUGMENTATIONS[name]
    target = with_extents(target)
    torch.manual_seed(seed)
    own_image, own = augment(image, dict(target))
    torch.manual_seed(seed)
    wanted = oracle(dense_item(image, target))
    names = torch.from_numpy(wanted.names)
    checks = {
        "pixels": np.array_equal(own_image.numpy(), wanted.image),
        "labels": torch.equal(own["labels"], names),
        "crowds": torch.equal(own["iscrowd"], names % 2),
        "number": len(own["area"]) == len(names),
        "masks": np.array_equal(own["masks"].dense().numpy().astype(bool), wanted.masks),
        "boxes": np.array_equal(own["boxes"].double().numpy(), wanted.boxes),
    }
    _, (seen,) = ImageTransform(SIDE, 2 * SIDE, [0.0] * 3, [1.0] * 3).eval()([own_image], [own])
    masks = nearest(wanted.masks, wanted.scaled or seen["masks"].size)
    masks = padded(masks) if wanted.scaled else masks
    checks["masks for the network"] = np.array_equal(seen["masks"].dense().numpy().astype(bool), masks)
    boxes = resized(wanted.boxes, wanted.image.shape[1:], wanted.scaled or seen["masks"].size)
    checks["boxes for the network"] = np.allclose(seen["boxes"].numpy(), boxes, rtol=0, atol=1e-3)
    return [what for what, same in checks.items() if not same]


# ------------------------------------------------------------------------------------------------------- copy-paste


def framed(item: Dense) -> Dense:
    """The item in the frame of the network; boxes are scaled, not measured again."""
    masks = padded(nearest(item.masks, item.scaled))
    kept = masks.any((1, 2))
    boxes = resized(item.boxes, item.image.shape[1:], item.scaled)
    return Dense(item.image, masks[kept], boxes[kept], item.names[kept])


def pasted(item: Dense, other: Dense) -> tuple[Dense, np.ndarray]:
    """Copy-paste on full planes: the objects afterwards, and where `other` covers the image, bool [H, W].

    Objects that lose pixels get the extents of what is left.
    """
    count = len(other.masks)
    chosen = np.unique(torch.randint(0, count, (count,)).numpy()) if count else np.zeros(0, dtype=int)
    covered = other.masks[chosen].any(0) if count else np.zeros((SIDE, SIDE), dtype=bool)
    left = item.masks & ~covered
    kept, cut = left.any((1, 2)), (left != item.masks).any((1, 2))
    boxes = np.where(cut[:, None], extents(left), item.boxes)
    parts = [(left[kept], other.masks[chosen]), (boxes[kept], other.boxes[chosen])]
    masks, boxes, names = map(np.concatenate, (*parts, (item.names[kept], other.names[chosen])))
    return Dense(item.image, masks, boxes, names), covered


def compare_copy_paste(batch: Sequence[tuple[Tensor, dict]], seed: int) -> list[str]:
    """What differs between a batch of copy-paste and the oracle's; nothing, if all bits are equal."""
    jitter = transforms.ScaleJitter(SIDE)
    torch.manual_seed(seed)
    items = [jitter(image, with_extents(target)) for image, target in batch]
    images, targets = transforms.CopyPaste()(items)
    plain = [transforms.in_frame(*item)[0].numpy() for item in items]
    torch.manual_seed(seed)
    dense = [framed(jittered(dense_item(image, with_extents(target)))) for image, target in batch]
    found = []
    for i, (image, target) in enumerate(zip(images, targets)):
        wanted, covered = pasted(dense[i], dense[i - 1])
        masks = target["masks"].dense().numpy().astype(bool)
        checks = {
            "pixels": np.array_equal(image.numpy(), np.where(covered, plain[i - 1], plain[i])),
            "labels": np.array_equal(target["labels"].numpy(), wanted.names),
            "crowds": np.array_equal(target["iscrowd"].numpy(), wanted.names % 2),
            "masks": np.array_equal(masks, wanted.masks),
            "areas": np.array_equal(target["area"].numpy(), wanted.masks.sum((1, 2))),
            "boxes": np.allclose(target["boxes"].numpy(), wanted.boxes, rtol=0, atol=1e-3),
        }
        found += [what for what, same in checks.items() if not same]
    return found
