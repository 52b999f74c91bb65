"""Work on a device without waiting for it: uploads, positions of true entries, NMS per group.

A host that reads a size or a value from a GPU waits until the GPU has computed it, and the GPU then waits for the host.
So everything that a step has to know on the host is read for the whole batch at once, and everything else stays there.
"""

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

if TYPE_CHECKING:
    from network_files.masks.instance_masks import InstanceMasks

Movable = TypeVar("Movable", Tensor, "InstanceMasks")


def upload(values: Movable, device: torch.device) -> Movable:
    """Move to the device without waiting; to CUDA from pinned memory, else the copy would wait."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class AsyncHostCopy:
    """A copy of values to the host: starting it does not wait, only `read` waits until they have arrived."""

    def __init__(self, values: Tensor):
        self.values = values.detach().to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(values.device))  # that of the copy

    def read(self) -> Tensor:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values


def running_counts(masks: Tensor) -> tuple[Tensor, list[int]]:
    """Count the true entries of all rows of bool [R, n], with one wait.

    Returns:
        int64 [R, n], the number of true entries of a row up to and including each; and the R totals on the host.
    """
    return masks.cumsum(dim=1), masks.sum(dim=1).tolist()


def true_indices(masks: Tensor) -> list[Tensor]:
    """`torch.where(row)[0]` for each row of bool [R, n], with one wait for all of them."""
    running, totals = running_counts(masks)
    every = torch.arange(1, max(totals, default=0) + 1, device=masks.device)
    # The k-th true entry is the first at which the running count reaches k.
    return [torch.searchsorted(row, every[:total]) for row, total in zip(running, totals)]


def nms_per_group(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Suppress boxes [n, 4] with an IoU above `threshold` with a better one of the same group, int64 [n].

    Returns:
        Indices of the boxes that are kept, best first; on a device with one wait.
    """
    if boxes.device.type == "cpu" or len(boxes) == 0:
        return batched_nms(boxes, scores, groups, threshold)
    # Each group in an area of its own: `batched_nms` computes the same on a GPU, but with further waits.
    shift = groups.to(boxes.dtype) * (boxes.max() + 1)
    return nms(boxes + shift[:, None], scores, threshold)
