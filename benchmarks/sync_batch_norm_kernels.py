"""The five kernels of synchronised BatchNorm, which torch has for GPUs only, for tensors on the CPU.

Written after their CUDA counterparts, in the same order of operations, so that a division by zero shows here as well.
"""

from typing import Any

import torch
from torch import Tensor

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
