"""BatchNorm over the batches of all processes, as torch.nn.SyncBatchNorm computes it, without waiting for the GPU.

torch's layer drops the statistics of empty batches by boolean indexing, and so waits three times per layer and step.
Here an empty batch counts as a tiny fraction of one value, so that the same kernels give the same bits.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from train_utils.errors import InputError

EMPTY = 1e-30  # not 0, by which the kernel would divide; no float32 count changes when it is added


def use_sync_bn(model: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm2d a SyncBatchNorm2d, with the same parameters; raise InputError on the CPU."""
    if device.type != "cuda":
        raise InputError("--sync-bn works on GPUs only; omit it on the CPU")
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that, in training, takes mean and variance over the batches of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; B may be 0, and may differ between processes."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return SyncedNormalisation.apply(
            input, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum
        )


class SyncedNormalisation(torch.autograd.Function):
    """Normalise with the statistics of all processes. The backward pass sums over all processes as well."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: float,
        momentum: float,
    ) -> Tensor:  # fmt: skip
        x, channels = dense(x), x.shape[1]
        if x.numel():
            mean, invstd = torch.batch_norm_stats(x, eps)
            count = mean.new_full((1,), x.numel() // channels)
        else:
            mean, count = weight.new_zeros(channels), weight.new_full((1,), EMPTY)
            invstd = torch.full_like(mean, eps**-0.5)
        # Gather by summing rows that are zero on the other processes: not every backend can gather tensors.
        rows = mean.new_zeros((dist.get_world_size(), 2 * channels + 1))
        rows[dist.get_rank()] = torch.cat((mean, invstd, count))
        dist.all_reduce(rows)
        means, invstds, counts = rows.split((channels, channels, 1), dim=1)
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            x, means, invstds, running_mean, running_var, momentum, eps, counts.flatten()
        )
        ctx.save_for_backward(x, weight, mean, invstd, counts.to(torch.int32))
        return torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps) if x.numel() else torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, counts = ctx.saved_tensors
        if x.numel():
            gradient = dense(gradient)
            *sums, of_weight, of_bias = torch.batch_norm_backward_reduce(
                gradient, x, mean, invstd, weight, True, True, True
            )
        else:
            of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
            sums = [torch.zeros_like(mean), torch.zeros_like(mean)]
        totals = torch.cat(sums)
        dist.all_reduce(totals)
        if x.numel():
            sum_dy, sum_dy_xmu = totals.chunk(2)
            gradient = torch.batch_norm_backward_elemt(gradient, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts)
        return gradient, of_weight, of_bias, None, None, None, None


def dense(x: Tensor) -> Tensor:
    """Make a tensor contiguous unless it is channels-last; the kernels read both formats."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
