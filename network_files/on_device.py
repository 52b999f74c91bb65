"""Work on a device without waiting for it: uploads, copies to the host, positions of true entries.

A host that reads a size or a value from a GPU waits until the GPU has computed it, and the GPU then waits for the host.
So a step reads all that the host needs of a batch at once, and leaves everything else on the device.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to the device without waiting. CUDA copies without a wait only from pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class AsyncHostCopy:
    """A copy of values to the host that runs in the background; only `read` waits for it."""

    def __init__(self, values: Tensor):
        self.values = values.detach().to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(values.device))  # the stream of the copy

    def read(self) -> Tensor:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values


def true_indices(mask: Tensor, lengths: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Return the indices of the true entries of `mask`, bool [n], and the number of true entries in each part.

    The parts are consecutive and have the given `lengths`. The host waits only once for the device.
    """
    running = F.pad(mask.cumsum(0), (1, 0))
    ends = upload(torch.tensor([0, *accumulate(lengths)]), mask.device)
    before = running[ends].tolist()
    # The k-th true entry is the first at which the running count reaches k.
    numbers = torch.arange(1, before[-1] + 1, device=mask.device)
    return torch.searchsorted(running[1:], numbers), [b - a for a, b in pairwise(before)]
