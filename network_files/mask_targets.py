"""Compact masks and positive proposals in, the M x M targets of the mask loss out.

Mask R-CNN (arXiv:1703.06870), section 3: the target is the intersection of the RoI and its object's mask,
resampled by RoIAlign.
"""
import math

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from network_files.instance_masks import InstanceMasks, paint


def project_masks_on_boxes(masks: InstanceMasks, boxes: Tensor, matched: Tensor, size: int) -> Tensor:
    """Cut each proposal's piece out of its object's mask and resample it.

    One plane is reused for all objects and holds, of the object at hand, only what its proposals cover. RoIAlign
    sees the coordinates that it would see in a dense mask, so the targets are the same to the last bit.

    Args:
        masks: the objects of one image, in the frame of the boxes.
        boxes: float [P, 4], x1y1x2y2, the positive proposals.
        matched: int64 [P], each proposal's object.
        size: M.

    Returns:
        float32 [P, M, M] in 0..1, on the boxes' device.
    """
    host_boxes, host_matched = boxes.detach().float().cpu(), matched.cpu()
    targets = torch.zeros((len(boxes), size, size))
    height, width = masks.size
    plane = np.zeros(height * width, dtype=np.float32)
    rows, columns = masks.source_pixels()
    for i in host_matched.unique().tolist():
        chosen = torch.where(host_matched == i)[0]
        rois = host_boxes[chosen]
        x1, y1 = rois[:, :2].amin(dim=0).tolist()
        x2, y2 = torch.maximum(rois[:, 2:], rois[:, :2] + 1).amax(dim=0).tolist()  # RoIAlign reads at least a pixel
        # Bilinear sampling reads one pixel past the last coordinate; cut there, no sample meets a false border.
        bottom, right = clamp(math.floor(y2) + 2, 1, height), clamp(math.floor(x2) + 2, 1, width)
        top, left = clamp(math.floor(y1), 0, height - 1), clamp(math.floor(x1), 0, width - 1)
        view = plane[: bottom * right].reshape(bottom, right)
        view[top:, left:] = 0
        paint(view, masks.crop(i), rows, columns, (top, left, bottom, right))
        rois = torch.cat((torch.zeros(len(rois), 1), rois), dim=1)
        targets[chosen] = roi_align(torch.from_numpy(view)[None, None], rois, (size, size))[:, 0]
    return targets.to(boxes.device)


def clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
