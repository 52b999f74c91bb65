"""Compute a convolution, the addition of a shortcut and ReLU in one pass, in bf16 on the CPU.

Alone, addition and ReLU would each read the convolution's output from memory and write it again. With fast bf16
arithmetic, that takes as long as a 1x1 convolution. oneDNN applies both to its sums in float32 before it rounds them
once to bf16.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

HAS_BF16 = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def can_fuse(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `fused_convolution` computes what separate operators would; torch.compile fuses by itself."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not HAS_BF16 or conv.groups > 1:
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    # No map is empty or has a single pixel, whose layout would be ambiguous: the operator adds in channels last only.
    return autocast and x.dtype in (torch.float32, torch.bfloat16) and x.numel() > x.shape[0] * x.shape[1]


def fused_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, shortcut: Tensor | None, relu: bool
) -> Tensor:
    """Convolve, add, rectify: [B, C_in, H, W] -> bf16 [B, C_out, H', W'], channels last.

    Args:
        weight, bias: used in place of those of `conv`, from which the stride and the like are.
        shortcut: [B, C_out, H', W'], added before ReLU; or None.
        relu: whether ReLU follows.
    """
    x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    given = (None if t is None else t.to(torch.bfloat16) for t in (weight, bias, shortcut))
    return FusedConvolution.apply(x, *given, (conv.stride, conv.padding, conv.dilation), relu)


class FusedConvolution(torch.autograd.Function):
    """`fused_convolution` with its gradients; the backward pass uses the separate operators of ReLU and convolution."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None,
        geometry: Sequence[Sequence[int]], relu: bool,
    ) -> Tensor:  # fmt: skip
        stride, padding, dilation = geometry
        convolution = torch.ops.mkldnn._convolution_pointwise
        after = "relu" if relu else None
        settings = weight, bias, padding, stride, dilation, 1
        if shortcut is None:
            output = convolution(x, *settings, after or "none", [], "")
        else:
            output = convolution.binary(x, shortcut, *settings, "add", None, after, [], None)
        ctx.save_for_backward(x, weight, output if relu else None)
        ctx.settings = None if bias is None else list(bias.shape), stride, padding, dilation, False, [0, 0], 1
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, output = ctx.saved_tensors
        if output is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        needed = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.convolution_backward(gradient, x, weight, *ctx.settings, needed)
        return *found, gradient if ctx.needs_input_grad[3] else None, None, None
