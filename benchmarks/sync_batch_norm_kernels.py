"""Synchronised BatchNorm without a GPU: its five kernels for tensors on the CPU, and a pretended second process.

The kernels are written after their CUDA counterparts, in the same order of operations, so that a division by zero shows
here as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.modules import _functions

from train_utils import sync_batch_norm

LIBRARIES: list[torch.library.Library] = []  # an operator is forgotten with its library


def register_kernels() -> None:
    """Let the CPU run the kernels in this process; the second call does nothing."""
    if not LIBRARIES:
        library = torch.library.Library("aten", "IMPL")
        for kernel in (
            batch_norm_stats, batch_norm_gather_stats_with_counts, batch_norm_elemt, batch_norm_backward_reduce,
            batch_norm_backward_elemt,
        ):  # fmt: skip
            library.impl(kernel.__name__, kernel, "CPU")
        LIBRARIES.append(library)


@contextmanager
def two_equal_processes() -> Iterator[None]:
    """Context in which synchronised BatchNorm, ours and torch's, has a second process with the same batch."""
    register_kernels()
    group = SimpleNamespace(_get_backend_name=lambda: "gloo")
    other = SimpleNamespace(
        is_initialized=lambda: True, get_world_size=lambda *_: 2, get_rank=lambda: 0, all_reduce=add_the_other,
        all_gather=lambda rows, own, *_, **__: [row.copy_(own) for row in rows],
        ReduceOp=torch.distributed.ReduceOp, group=SimpleNamespace(WORLD=group),
    )  # fmt: skip
    with mock.patch.object(sync_batch_norm, "dist", other), mock.patch.object(_functions, "dist", other):
        with mock.patch.object(torch.distributed, "all_reduce", add_the_other):
            yield


def add_the_other(values: Tensor, *_: Any, **__: Any) -> None:
    """Sum over both processes: the other one's row of statistics is the second, its other values are the same."""
    if values.dim() == 2:
        values[1] = values[0]
    else:
        values.mul_(2)


class TorchsSyncBatchNorm(nn.BatchNorm2d):
    """torch.nn.SyncBatchNorm in training, on any device."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return _functions.SyncBatchNorm.apply(
            input, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum,
            _functions.dist.group.WORLD, 2,
        )  # fmt: skip


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
    return mean, (var + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    mean, squares, total = torch.zeros_like(means[0]), torch.zeros_like(means[0]), counts.new_zeros(())
    for m, invstd, count in zip(means, invstds, counts):
        factor = 1 / (total + count)
        deviation = 1 / invstd
        squares = squares + (deviation * deviation - eps) * count + (mean - m) ** 2 * total * count * factor
        mean = total * factor * mean + count * factor * m
        total = total + count
    if running_mean is not None and running_var is not None:
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
        running_var.copy_((1 - momentum) * running_var + momentum * squares / (total - 1))
    return mean, (squares / total + eps).rsqrt()


def batch_norm_elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    weight, bias, mean, invstd = (values[:, None, None] for values in (weight, bias, mean, invstd))
    return (weight * (x.float() - mean) * invstd + bias).to(x.dtype)


def batch_norm_backward_reduce(
    gradient: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradient = gradient.float()
    sums = gradient.sum(dim=(0, 2, 3))
    products = (gradient * (x.float() - mean[:, None, None])).sum(dim=(0, 2, 3))
    return sums, products, products * invstd, sums.clone()


def batch_norm_backward_elemt(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    sums: Tensor,
    products: Tensor,
    counts: Tensor,
) -> Tensor:
    total = counts.sum()
    scale, share = weight * invstd, products / total * invstd * invstd
    mean, sums, scale, share = (values[:, None, None] for values in (mean, sums / total, scale, share))
    return ((gradient.float() - sums - (x.float() - mean) * share) * scale).to(x.dtype)
