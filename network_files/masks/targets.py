"""The M x M targets of the mask loss: compact masks and positive proposals -> [P, M, M].

Mask R-CNN (arXiv:1703.06870), section 3.1, "Training": the target is the intersection of the RoI and the mask of its
object. It is resampled by RoIAlign, as in torchvision.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import roi_align

from network_files.boxes import at_least_float32
from network_files.masks.instance_masks import InstanceMasks, paint
from network_files.on_device import upload

OUTSIDE = -(2**30)  # the sum of two still fits into an int32
OBJECTS_AT_ONCE = 16  # planes painted at once; one of 800x1333 takes 4 MB, and its indices as much for a moment


def mask_targets(
    masks: Sequence[InstanceMasks],
    boxes: Sequence[Tensor],
    matched: Sequence[Tensor],
    size: int,
    aligned: bool = False,
) -> Tensor:
    """`project_masks_on_boxes` for all images, [P, M, M]; the first three arguments have one entry per image."""
    if boxes[0].device.type == "cpu":
        return torch.cat([project_masks_on_boxes(m, b, i, size, aligned) for m, b, i in zip(masks, boxes, matched)])
    return targets_on_device(masks, boxes, matched, size, aligned)


def targets_on_device(
    masks: Sequence[InstanceMasks], boxes: Sequence[Tensor], matched: Sequence[Tensor], size: int, aligned: bool
) -> Tensor:
    """Paint full-size planes, some objects at a time, and read all boxes from them, without waiting for the device."""
    device = boxes[0].device
    all_boxes = at_least_float32(torch.cat(list(boxes)).detach())
    if not any(len(m.pixels) for m in masks):
        return all_boxes.new_zeros((len(all_boxes), size, size))
    planes = MaskPlanes(masks, device)
    rois = torch.cat((torch.cat(list(matched))[:, None].to(all_boxes.dtype), all_boxes), dim=1)
    targets, first = [], 0
    for image, (m, own) in enumerate(zip(masks, rois.split([len(b) for b in boxes]))):
        found = own.new_zeros((len(own), size, size))
        for start in range(0, len(m), OBJECTS_AT_ONCE):
            count = min(OBJECTS_AT_ONCE, len(m) - start)
            chunk = own
            if len(m) > OBJECTS_AT_ONCE:
                # The boxes of other objects read a single pixel, whose value is dropped.
                of_these = (own[:, :1] >= start) & (own[:, :1] < start + count)
                chunk = torch.where(of_these, torch.cat((own[:, :1] - start, own[:, 1:]), dim=1), 0.0)
            # Not torchvision.ops.roi_align: with deterministic algorithms, it would compile another implementation.
            read = torch.ops.torchvision.roi_align(
                planes.paint(image, first + start, count).to(chunk.dtype), chunk, 1.0, size, size, -1, aligned
            )[:, 0]
            found = read if chunk is own else torch.where(of_these[..., None], read, found)
        targets.append(found)
        first += len(m)
    return torch.cat(targets)


class MaskPlanes:
    """Paint dense masks of a batch's objects on a device; `masks` has the objects of each image."""

    def __init__(self, masks: Sequence[InstanceMasks], device: torch.device):
        self.sizes = [m.size for m in masks]
        crops = upload(torch.cat([m.crops for m in masks]), device)
        self.pixels = upload(torch.cat([masks[0].pixels.new_zeros(1), *(m.pixels for m in masks)]), device)
        owners = torch.arange(len(masks)).repeat_interleave(torch.tensor([len(m) for m in masks]))
        tables = zip(*(m.source_indices() for m in masks))
        rows, columns = (pad_sequence(list(table), batch_first=True)[owners] for table in tables)
        left, top, width, height = crops[..., None].unbind(dim=1)
        y, x = upload(rows, device) - top, upload(columns, device) - left
        starts = (width * height).cumsum(0) - width * height + 1  # the first pixel belongs to no object
        self.rows = torch.where((y >= 0) & (y < height), starts + y * width, OUTSIDE).int()
        self.columns = torch.where((x >= 0) & (x < width), x, OUTSIDE).int()

    def paint(self, image: int, first: int, count: int) -> Tensor:
        """Dense masks uint8 [count, 1, H, W] of objects of an image, resized by nearest neighbour.

        Args:
            first: the first of them, counted over the whole batch.
        """
        height, width = self.sizes[image]
        rows, columns = self.rows[first : first + count, :height], self.columns[first : first + count, :width]
        return self.pixels[(rows[:, :, None] + columns[:, None]).clamp_(min=0)][:, None]


def project_masks_on_boxes(
    masks: InstanceMasks, boxes: Tensor, matched: Tensor, size: int, aligned: bool = False
) -> Tensor:
    """Crop the mask of each proposal's object to the proposal and resample it, as torchvision does with dense masks.

    RoIAlign reads the same coordinates and pixels as in a dense mask, so the targets are bitwise equal. Only the parts
    that it reads are painted, into one plane per thread, since the operator runs in one thread. A plane holds several
    objects at once if these parts do not overlap.

    Args:
        masks: the objects of one image, in the frame of the boxes.
        boxes: float [P, 4], x1y1x2y2, the positive proposals, on the CPU.
        matched: int64 [P], the object of each proposal.
        size: M.
        aligned: where pixel centres are, see `PyramidRoIAlign`.

    Returns:
        float [P, M, M] in 0..1, in the boxes' precision.
    """
    rois = at_least_float32(boxes.detach())
    targets = rois.new_zeros((len(rois), size, size))
    objects, owner = np.unique(matched.numpy(), return_inverse=True)
    windows = covered_windows(rois.numpy() - (0.5 if aligned else 0.0), owner, len(objects), masks.size)
    rois = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1)
    crops, (rows, columns) = masks.all_crops(), masks.source_pixels()

    def fill_targets(groups: list[list[int]]) -> None:
        plane = rois.new_zeros((1, 1, *masks.size))
        pixels = plane[0, 0].numpy()
        for group in groups:
            for k in group:
                paint(pixels, crops[objects[k]], rows, columns, windows[k])
            chosen = torch.from_numpy(np.flatnonzero(np.isin(owner, group)))
            targets[chosen] = roi_align(plane, rois[chosen], (size, size), aligned=aligned)[:, 0]
            for top, left, bottom, right in windows[group].tolist():
                pixels[top:bottom, left:right] = 0

    groups = groups_apart(windows)
    threads = max(1, min(torch.get_num_threads(), len(groups)))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill_targets, [groups[i::threads] for i in range(threads)]))
    return targets


def covered_windows(boxes: np.ndarray, owner: np.ndarray, objects: int, size: tuple[int, int]) -> np.ndarray:
    """The part of each object's mask that RoIAlign reads for its boxes: int64 [objects, 4], top, left, bottom, right.

    Args:
        boxes: float32 [P, 4], x1y1x2y2 in the masks' frame, with pixel centres at integers.
        owner: int64 [P], the object of each box.
        objects: number of objects.
        size: height and width of the masks' frame.
    """
    if not np.isfinite(boxes).all():
        raise ValueError("proposals must be finite")
    low, high = np.full((objects, 2), np.inf), np.full((objects, 2), -np.inf)
    np.minimum.at(low, owner, boxes[:, 1::-1])
    np.maximum.at(high, owner, np.maximum(boxes[:, 3:1:-1], boxes[:, 1::-1] + 1))  # RoIs are at least 1 px
    # Bilinear sampling reads one pixel past the last coordinate.
    low = np.floor(low).clip(0, np.array(size) - 1)
    high = (np.floor(high) + 2).clip(1, size)
    return np.concatenate((low, high), axis=1).astype(np.int64)


def groups_apart(windows: np.ndarray) -> list[list[int]]:
    """Group the indices of windows [K, 4] (top, left, bottom, right) so that no two of a group overlap."""
    (top, left, bottom, right), waiting = windows.T, np.ones(len(windows), dtype=bool)
    apart = (top[:, None] >= bottom) | (left[:, None] >= right)
    apart |= apart.T
    groups = []
    while waiting.any():
        group, free = [], waiting.copy()
        while free.any():
            group.append(int(free.argmax()))
            free &= apart[group[-1]]
        waiting[group] = False
        groups.append(group)
    return groups
