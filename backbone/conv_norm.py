"""Fold a frozen normalisation into the convolution before it.

A frozen normalisation is a fixed scale and shift per channel. The convolution's weights and bias can hold both, which
saves one pass over the feature map forward and another backward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """`norm(conv(x))`, [B, C_in, H, W] -> [B, C_out, H', W'].

    In mixed precision a frozen normalisation is folded into the weights: run by itself, it would turn the feature map
    into float32. In float32 the two stay separate, which rounds exactly as torchvision does.
    """
    frozen = isinstance(norm, FrozenBatchNorm2d) and conv.bias is None
    if not frozen or not torch.is_autocast_enabled(x.device.type):
        return norm(conv(x))
    scale, shift = scale_and_shift(norm)
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def scale_and_shift(norm: FrozenBatchNorm2d | _BatchNorm) -> tuple[Tensor, Tensor]:
    """The scale and shift per channel, [C] each, of a normalisation by running statistics."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError("a normalisation without running statistics cannot be folded into a convolution")
    scale = norm.weight * (var + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale


def bias_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The bias of a convolution that was built with one."""
    if layer.bias is None:
        raise ValueError(f"{layer} has no bias")
    return layer.bias


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Fold every normalisation into the convolution before it, in place; for evaluation only.

    A normalisation belongs to a convolution if it comes directly after it among the children of their module.
    """
    for module in network.modules():
        children = list(module.named_children())
        for (_, conv), (name, norm) in zip(children, children[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, (FrozenBatchNorm2d, _BatchNorm)):
                scale, shift = scale_and_shift(norm)
                bias = shift if conv.bias is None else shift + conv.bias * scale
                weight = conv.weight * scale[:, None, None, None]
                conv.weight = nn.Parameter(weight, requires_grad=False)
                conv.bias = nn.Parameter(bias, requires_grad=False)
                setattr(module, name, nn.Identity())
