"""The M x M targets of the mask loss: compact masks and positive proposals -> [P, M, M].

Mask R-CNN (arXiv:1703.06870), section 3.1, "Training": the target is the intersection of the RoI and the mask of its
object. It is resampled by RoIAlign, as in torchvision.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from network_files.instance_masks import InstanceMasks, paint


def project_masks_on_boxes(
    masks: InstanceMasks, boxes: Tensor, matched: Tensor, size: int, aligned: bool = False
) -> Tensor:
    """Crop the mask of each proposal's object to the proposal and resample it.

    One full-size plane is reused for all objects. It holds only the part of an object that its proposals cover, and
    several objects at once if those parts do not overlap. RoIAlign reads the same coordinates and pixels as in a dense
    mask, so the targets are bitwise equal. The operator runs in one thread, so each thread gets a plane of its own.

    Args:
        masks: the objects of one image, in the frame of the boxes.
        boxes: float [P, 4], x1y1x2y2, the positive proposals.
        matched: int64 [P], the object of each proposal.
        size: M.
        aligned: where pixel centres are, see `PyramidRoIAlign`.

    Returns:
        float32 [P, M, M] in 0..1, on the boxes' device.
    """
    rois = boxes.detach().float().cpu()
    targets = torch.zeros((len(boxes), size, size))
    objects, owner = np.unique(matched.cpu().numpy(), return_inverse=True)
    windows = covered_windows(rois.numpy() - (0.5 if aligned else 0.0), owner, len(objects), masks.size)
    rois = torch.cat((torch.zeros(len(rois), 1), rois), dim=1)
    crops, (rows, columns) = masks.all_crops(), masks.source_pixels()

    def fill_targets(groups: list[list[int]]) -> None:
        plane = torch.zeros((1, 1, *masks.size))
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
    return targets.to(boxes.device)


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
