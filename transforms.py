"""Augment images together with their targets: (image, target) -> (image, target).

Images are uint8 [3, H, W], red, green, blue, or with --channels uint8 or float32 [C, H, W]; targets have boxes and
compact masks in the same frame. All random numbers come from torch's RNG, which `SeededItems` seeds per item. Only
`CopyPaste` resamples images: transforms that change the scale store a `View` in the target, and the network's own
resize carries it out.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from network_files import InstanceMasks
from network_files.boxes import resize_boxes
from network_files.image_transform import View, resize_to_view
from network_files.mask_rcnn import IMAGENET_MEAN

Transform = Callable[[Tensor, dict], tuple[Tensor, dict]]
Item = tuple[Tensor, dict]
PER_OBJECT = ("boxes", "labels", "masks", "area", "iscrowd", "has_mask")
LEAST_SHARE = 0.1  # of an object that `crop` keeps


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

    axis, columns = -1, [0, 2]  # of the image, and of the boxes
    flip_masks = InstanceMasks.flip_horizontal

    def __init__(self, prob: float = 0.5):
        self.prob = prob

    def __call__(self, image: Tensor, target: dict) -> tuple[Tensor, dict]:
        if torch.rand(1).item() >= self.prob:
            return image, target
        boxes = target["boxes"].clone()
        boxes[:, self.columns] = image.shape[self.axis] - boxes[:, self.columns[::-1]]
        return image.flip(self.axis), dict(change_masks(target, type(self).flip_masks), boxes=boxes)


class RandomVerticalFlip(RandomHorizontalFlip):
    """Flip the image, its boxes and its masks upside down with probability `prob`."""

    axis, columns = -2, [1, 3]
    flip_masks = InstanceMasks.flip_vertical


class ColorJitter:
    """Change brightness, contrast and saturation by factors between 1 - strength and 1 + strength.

    The factors mean the same as in torchvision's ColorJitter. As all three are linear in the colours, they are applied
    as one matrix, and values are rounded and clipped once, which takes a tenth of the time.

    Images other than RGB have no saturation, and their values may have any offset. The contrast of each channel changes
    around its mean, and its brightness by up to `strength` times its standard deviation.
    """

    grey = torch.tensor([[0.299, 0.587, 0.114]])  # luma of red, green, blue (ITU-R BT.601)

    def __init__(self, strength: float):
        self.strength = strength

    def __call__(self, image: Tensor, target: dict) -> tuple[Tensor, dict]:
        low = max(0.0, 1 - self.strength)
        factors = low + (1 + self.strength - low) * torch.rand(3, dtype=torch.float64)
        return self.change(image, *factors.tolist()), target

    def change(self, image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
        pixels = image.flatten(1).float()
        if not is_rgb(image):
            deviation, mean = torch.std_mean(pixels, dim=1, keepdim=True, correction=0)
            changed = (pixels - mean) * contrast + (mean + (brightness - 1) * deviation)
            changed = changed.round_().clamp_(0, 255) if image.dtype == torch.uint8 else changed
            return changed.to(image.dtype).view(image.shape)
        to_grey = self.grey.expand(3, 3)
        matrix = brightness * contrast * (saturation * torch.eye(3) + (1 - saturation) * to_grey)
        middle = brightness * (1 - contrast) * (to_grey @ pixels.mean(dim=1, keepdim=True))
        changed = torch.addmm(middle, matrix, pixels)
        return changed.round_().clamp_(0, 255).to(torch.uint8).view(image.shape)


class ScaleJitter:
    """Large-scale jitter (Ghiasi et al., arXiv:2012.07177, section 3): scale randomly, then crop or pad to a square.

    At scale 1 the image just fits into the square, of `side` pixels in the network's input. Parts outside the square
    are cropped here, in pixels of the image. Scaling and padding are left to the network's resize, by a `View` in the
    target. The scale is drawn uniformly from `scale_range`.
    """

    def __init__(self, side: int, scale_range: tuple[float, float] = (0.1, 2.0)):
        self.side, self.scale_range = side, scale_range

    def __call__(self, image: Tensor, target: dict) -> tuple[Tensor, dict]:
        low, high = self.scale_range
        scale, place = torch.rand(2, dtype=torch.float64).tolist()
        sizes = image.shape[-2:]
        ratio = self.side / max(sizes) * (low + (high - low) * scale)
        scaled = [max(1, int(length * ratio)) for length in sizes]
        fits = max(1, round(self.side / ratio))  # pixels of the image
        seen = [length if new <= self.side else min(length, fits) for length, new in zip(sizes, scaled)]
        top, left = (int((length - part) * place) for length, part in zip(sizes, seen))
        image, target = crop(image, target, top, left, *seen)
        height, width = (min(new, self.side) for new in scaled)
        masks, view = target["masks"], View(height, width, (self.side, self.side))
        sides = resize_boxes(target["boxes"], masks.size, (height, width)).reshape(-1, 2, 2).diff(dim=1)
        return image, select_objects(dict(target, view=view), (sides >= 1).flatten(1).all(1))


def crop(image: Tensor, target: dict, top: int, left: int, height: int, width: int) -> tuple[Tensor, dict]:
    """Return a window of the image, in whole pixels, and the objects in it.

    Objects of which less than a tenth remains are dropped. Objects that the window cuts get the box and area of their
    remaining mask, or of the remaining box if they have no mask.
    """
    if (top, left, height, width) == (0, 0, *image.shape[-2:]):
        return image, target
    before = areas_of(target)
    limits = torch.tensor([width, height, width, height])
    boxes = (target["boxes"] - torch.tensor([left, top, left, top])).clamp(min=0).minimum(limits)
    target = dict(change_masks(target, lambda masks: masks.window(top, left, height, width)), boxes=boxes)
    after = areas_of(target)
    image = image[:, top : top + height, left : left + width].contiguous()
    return image, select_objects(measure_cut(target, before), (after > 0) & (after >= LEAST_SHARE * before))


def change_masks(target: dict, change: Callable[[InstanceMasks], InstanceMasks]) -> dict:
    """Return a copy of the target in which `change` was applied to the masks and to any ignore regions."""
    return target | {key: change(target[key]) for key in ("masks", "ignore_regions") if key in target}


def areas_of(target: dict) -> Tensor:
    """Return the area of each object, [N]: of its mask or, without a mask, its box. int64, with `has_mask` float64."""
    areas = target["masks"].areas()
    if "has_mask" in target:
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        return torch.where(target["has_mask"], areas.double(), sides.clamp(min=0).double().prod(dim=1))
    return areas


def measure_cut(target: dict, before: Tensor) -> dict:
    """Recompute boxes and areas of objects that lost pixels to a crop or paste. `before`, [N], are the old areas."""
    areas = areas_of(target)
    cut, has_mask = areas < before, target.get("has_mask", torch.tensor(True))
    boxes = torch.where((cut & has_mask)[:, None], target["masks"].extents(), target["boxes"])
    target = dict(target, boxes=boxes)
    if "area" in target:
        target["area"] = torch.where(cut, areas.float(), target["area"])
    return target


def select_objects(target: dict, kept: Tensor) -> dict:
    """Return the target with only the objects that `kept`, bool [N], selects."""
    if bool(kept.all()):
        return target
    return {key: value[kept] if key in PER_OBJECT else value for key, value in target.items()}


class CopyPaste:
    """Paste random objects of another image into each image of a batch (Ghiasi et al., arXiv:2012.07177).

    As in torchvision's reference scripts, image i gets objects of image i - 1 of the batch: n draws with replacement
    if image i - 1 has n objects. Objects keep size and place, cover the objects there, and are not blended. The images
    must come from `ScaleJitter`. Each image is resampled once, here instead of in the network.
    """

    def __call__(self, batch: Sequence[Item]) -> tuple[tuple[Tensor, ...], tuple[dict, ...]]:
        items = [in_frame(*item) for item in batch]
        return collate_fn([paste(*item, *source) for item, source in zip(items, items[-1:] + items[:-1])])


def is_rgb(image: Tensor) -> bool:
    return image.dtype == torch.uint8 and len(image) == 3


def in_frame(image: Tensor, target: dict) -> Item:
    """Resize an image to its view, and pad it with ImageNet's mean colour, or with its own mean if it is not RGB."""
    view: View = target["view"]
    fill = torch.tensor(IMAGENET_MEAN).mul(255).round() if is_rgb(image) else image.flatten(1).float().mean(dim=1)
    frame = fill.to(image.dtype)[:, None, None].repeat(1, *view.frame)
    frame[:, : view.height, : view.width] = resize_to_view(image, view)
    boxes = resize_boxes(target["boxes"], target["masks"].size, (view.height, view.width))
    target = change_masks(target, lambda m: m.resize(view.height, view.width, view.frame).in_current_frame())
    target = dict(target, boxes=boxes, view=View(*view.frame, view.frame))
    areas = areas_of(target)
    if "area" in target:
        target["area"] = areas.float()
    return frame, select_objects(target, areas > 0)


def paste(image: Tensor, target: dict, source: Tensor, source_target: dict) -> Item:
    """Paste random objects of `source` that have a mask onto an image of the same size.

    Partly covered objects get the box and area of their visible part; fully covered ones are dropped.
    """
    if "has_mask" in source_target:
        source_target = select_objects(source_target, source_target["has_mask"])
    count = len(source_target["masks"])
    if count == 0:
        return image, target
    chosen = torch.randint(0, count, (count,)).unique()
    pasted = {key: source_target[key][chosen] for key in PER_OBJECT if key in source_target}
    covered = pasted["masks"].union()
    before = areas_of(target)
    target = measure_cut(change_masks(target, lambda masks: masks.without(covered)), before)
    target = select_objects(target, areas_of(target) > 0)
    for key, value in pasted.items():
        together = InstanceMasks.concatenated if key == "masks" else lambda *both: torch.cat(both)
        target[key] = together(target[key], value)
    return torch.where(torch.from_numpy(covered), source, image), target


def collate_fn(batch: Sequence[Item]) -> tuple[tuple[Tensor, ...], tuple[dict, ...]]:
    """Collate items to (images, targets) without stacking, as images differ in size until the network pads them."""
    images, targets = zip(*batch)
    return images, targets
