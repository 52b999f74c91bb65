"""Make the M x M targets of the mask loss: compact masks and positive proposals -> [P, M, M].

Mask R-CNN (arXiv:1703.06870), section 3.1, "Training": the target is the intersection of the RoI and the mask of its
object. It is resampled by RoIAlign, as in torchvision.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import roi_align

from network_files.boxes import at_least_float32
from network_files.masks.instance_masks import InstanceMasks
from network_files.on_device import upload

OUTSIDE = -(2**30)  # the sum of two still fits into an int32
OBJECTS_AT_ONCE = 16  # planes painted at once; one of 800x1333 takes 4 MB, and its indices as much for a moment


def mask_targets(
    masks: Sequence[InstanceMasks], boxes: Sequence[Tensor], matched: Sequence[Tensor], size: int, aligned: bool = False
) -> Tensor:
    """Crop the mask of each proposal's object to the proposal, and resample it to `size` as torchvision does.

    Args:
        masks: the objects of each image, in the frame of its boxes.
        boxes, matched: per image the positive proposals, float [P_b, 4], x1y1x2y2, and their objects, int64 [P_b].
        aligned: where pixel centres are, see `PyramidRoIAlign`.

    Returns:
        float [P, size, size] in 0..1, in the boxes' precision, image by image.
    """
    if boxes[0].device.type == "cpu":
        return torch.cat([targets_of_image(m, b, i, size, aligned) for m, b, i in zip(masks, boxes, matched)])
    return targets_on_device(masks, boxes, matched, size, aligned)


def targets_of_image(masks: InstanceMasks, boxes: Tensor, matched: Tensor, size: int, aligned: bool) -> Tensor:
    """Return the mask targets of an image's boxes on the CPU.

    Each object is painted alone onto a plane, from which the targets of the boxes matched to it are sampled.
    """
    rois = at_least_float32(boxes.detach())
    if not bool(rois.isfinite().all()):
        raise ValueError("proposals must be finite")  # others would crash the operator
    targets, plane = rois.new_zeros((len(rois), size, size)), rois.new_zeros((1, 1, *masks.size))
    rois = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1)
    crops, pixels = masks.resampled_crops(), plane[0, 0].numpy()
    for k in matched.unique().tolist():
        left, top, crop = crops[k]
        covered = pixels[top : top + crop.shape[0], left : left + crop.shape[1]]
        covered[:] = crop
        chosen = torch.where(matched == k)[0]
        targets[chosen] = roi_align(plane, rois[chosen], (size, size), aligned=aligned)[:, 0]
        covered[:] = 0
    return targets


def targets_on_device(
    masks: Sequence[InstanceMasks], boxes: Sequence[Tensor], matched: Sequence[Tensor], size: int, aligned: bool
) -> Tensor:
    """Return the mask targets of all boxes without waiting for the device.

    The masks are painted at full size, a few objects at a time, and each box is sampled from these planes.
    """
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
    """Paint dense masks of a batch's objects on a device; `masks` holds the objects of each image."""

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
        """Return the dense masks, uint8 [count, 1, H, W], of `count` objects of an image.

        `first` is the number of the first object, counted over the batch.
        """
        height, width = self.sizes[image]
        rows, columns = self.rows[first : first + count, :height], self.columns[first : first + count, :width]
        return self.pixels[(rows[:, :, None] + columns[:, None]).clamp_(min=0)][:, None]
