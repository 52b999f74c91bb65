"""Compute a convolution, the addition of a shortcut and ReLU in one pass.

This is for inference in bf16 on the CPU. There, a separate addition or ReLU would read the convolution's output from
memory and write it again. With fast bf16 arithmetic, that takes as long as a 1x1 convolution. oneDNN adds and applies
ReLU in float32, before it rounds once to bf16. torch.compile fuses the operators by itself.
"""

import torch
from torch import Tensor, nn

HAS_BF16 = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def can_fuse(x: Tensor, conv: nn.Conv2d) -> bool:
    """Return whether `fused_convolution` can be used: only for inference in bf16 on the CPU, without torch.compile."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu" or not HAS_BF16:
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    # No map is empty or has a single pixel, whose layout would be ambiguous: the operator adds in channels last only.
    is_map = x.numel() > x.shape[0] * x.shape[1] and x.dtype in (torch.float32, torch.bfloat16)
    return autocast and is_map and conv.groups == 1


def fused_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, shortcut: Tensor | None, relu: bool
) -> Tensor:
    """Convolve, add the shortcut and apply ReLU: [B, C_in, H, W] -> bf16 [B, C_out, H', W'], channels last.

    Args:
        weight, bias: replace those of `conv`, which gives stride, padding, dilation and groups.
        shortcut: [B, C_out, H', W'], added before ReLU; or None.
        relu: whether ReLU follows.
    """
    x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    kernel, offset, added = (None if t is None else t.to(torch.bfloat16) for t in (weight, bias, shortcut))
    settings = kernel, offset, conv.padding, conv.stride, conv.dilation, conv.groups
    convolution, after = torch.ops.mkldnn._convolution_pointwise, "relu" if relu else None
    if added is None:
        return convolution(x, *settings, after or "none", [], "")
    return convolution.binary(x, added, *settings, "add", None, after, [], None)
