"""The M x M targets of the mask loss: compact masks and positive proposals -> [P, M, M].

Mask R-CNN (arXiv:1703.06870), section 3.1, "Training": the target is the intersection of the RoI and the mask of its
object. It is resampled by RoIAlign, as in torchvision.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from network_files.boxes import at_least_float32
from network_files.masks.instance_masks import InstanceMasks, paint

OBJECTS_AT_ONCE = 16  # painted planes; one of 800x1333 takes 4 MB, and its indices as much for a moment


def project_masks_on_boxes(
    masks: InstanceMasks, boxes: Tensor, matched: Tensor, size: int, aligned: bool = False
) -> Tensor:
    """Crop the mask of each proposal's object to the proposal and resample it, as torchvision does with dense masks.

    RoIAlign reads the same coordinates and pixels as in a dense mask, so the targets are bitwise equal.

    Args:
        masks: the objects of one image, in the frame of the boxes.
        boxes: float [P, 4], x1y1x2y2, the positive proposals.
        matched: int64 [P], the object of each proposal.
        size: M.
        aligned: where pixel centres are, see `PyramidRoIAlign`.

    Returns:
        float [P, M, M] in 0..1, in the boxes' precision and on their device.
    """
    boxes = at_least_float32(boxes.detach())
    if boxes.device.type == "cpu":
        return targets_on_cpu(masks, boxes, matched, size, aligned)
    return targets_on_device(masks.to(boxes.device, non_blocking=True), boxes, matched, size, aligned)


def targets_on_device(masks: InstanceMasks, boxes: Tensor, matched: Tensor, size: int, aligned: bool) -> Tensor:
    """Paint full-size planes of some objects at a time and read all boxes from them, without waiting for the device."""
    targets = boxes.new_zeros((len(boxes), size, size))
    if len(masks) == 0 or len(masks.pixels) == 0:
        return targets
    rows, columns = masks.source_indices(boxes.device)
    starts = masks.starts()
    for first in range(0, len(masks), OBJECTS_AT_ONCE):
        crops = masks.crops[first : first + OBJECTS_AT_ONCE]
        planes = paint_planes(masks.pixels, crops, starts[first : first + len(crops)], rows, columns)
        plane_ids = matched - first
        of_these = (plane_ids >= 0) & (plane_ids < len(crops))
        rois = torch.cat((plane_ids[:, None].to(boxes.dtype), boxes), dim=1)
        # The other boxes read a single pixel, and their values are dropped.
        rois = torch.where(of_these[:, None], rois, 0.0)
        # Not torchvision.ops.roi_align: with deterministic algorithms that would compile another one.
        read = torch.ops.torchvision.roi_align(planes.to(rois.dtype), rois, 1.0, size, size, -1, aligned)[:, 0]
        targets = torch.where(of_these[:, None, None], read, targets)
    return targets


def paint_planes(pixels: Tensor, crops: Tensor, starts: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Dense masks float32 [n, 1, H, W] of n objects, resized by nearest neighbour.

    Args:
        pixels, crops: as in `InstanceMasks`; starts: int64 [n], where each crop begins in `pixels`.
        rows, columns: int64 [H] and [W], the source row and column of each row and column of the planes.
    """
    left, top, width, height = crops[..., None].unbind(dim=1)
    y, x = rows - top, columns - left
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    at = (starts[:, None] + y * width).int()[:, :, None] + x.int()[:, None]
    return (pixels[at.clamp_(0, len(pixels) - 1)] * inside).to(torch.float32)[:, None]


def targets_on_cpu(masks: InstanceMasks, boxes: Tensor, matched: Tensor, size: int, aligned: bool) -> Tensor:
    """Paint only the parts that are read, into one plane per thread.

    A plane is reused for all objects. It holds only the part of an object that its proposals cover, and several objects
    at once if those parts do not overlap. The operator runs in one thread, so each thread gets a plane of its own.
    """
    rois = boxes
    targets = boxes.new_zeros((len(boxes), size, size))
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
