"""Compute a convolution together with the normalisation, addition and ReLU that follow it.

A frozen normalisation is a fixed scale and shift per channel. The convolution's weights and bias can absorb both, which
saves one pass over the feature map forward and another backward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

HAS_BF16 = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def conv_norm(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.Module | None = None,
    relu: nn.Module | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Compute `relu(norm(conv(x)) + shortcut)`, [B, C_in, H, W] -> [B, C_out, H', W'].

    All parts but the convolution are optional. In mixed precision a frozen normalisation is folded into the weights, as
    a separate normalisation would convert the feature map to float32. In float32 convolution and normalisation stay
    separate, to round exactly as torchvision does.
    """
    device = x.device.type
    folds = isinstance(norm, FrozenBatchNorm2d) and torch.is_autocast_enabled(device) and conv.bias is None
    weight, bias = folded_weight(conv, norm, torch.get_autocast_dtype(device)) if folds else (conv.weight, conv.bias)
    if can_fuse(x, conv) and (folds or norm is None or isinstance(norm, nn.Identity)):
        return fused_convolution(x, weight, bias, conv, shortcut, relu is not None)
    if folds:
        x = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    elif isinstance(norm, FrozenBatchNorm2d):
        scale, shift, _ = frozen_parts(conv, norm, None)
        x = conv(x) * scale + shift
    else:
        x = conv(x) if norm is None else norm(conv(x))
    if shortcut is not None:
        x += shortcut
    return x if relu is None else relu(x)


def can_fuse(x: Tensor, conv: nn.Conv2d) -> bool:
    """Return whether `fused_convolution` can be used: only for inference in bf16 on the CPU, without torch.compile."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu" or not HAS_BF16:
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    # The operator adds in channels last only. The layout of an empty map or of a single pixel would be ambiguous.
    is_map = x.numel() > x.shape[0] * x.shape[1] and x.dtype in (torch.float32, torch.bfloat16)
    return autocast and is_map and conv.groups == 1


def fused_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, shortcut: Tensor | None, relu: bool
) -> Tensor:
    """Convolve, add the shortcut and apply ReLU in one pass: [B, C_in, H, W] -> bf16 [B, C_out, H', W'], channels last.

    A separate addition or ReLU would read the convolution's output from memory and write it again. With fast bf16
    arithmetic, that takes as long as a 1x1 convolution. oneDNN adds and applies ReLU in float32, before it rounds once
    to bf16. torch.compile fuses the operators by itself.

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


def folded_weight(conv: nn.Conv2d, norm: FrozenBatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias, [C_out], of one convolution that equals `conv` followed by `norm`."""
    scale, shift, weight = frozen_parts(conv, norm, dtype)
    return conv.weight * scale[..., None] if weight is None else weight, shift.flatten()


FrozenParts = tuple[Tensor, Tensor, Tensor | None]


def frozen_parts(conv: nn.Conv2d, norm: FrozenBatchNorm2d, dtype: torch.dtype | None) -> FrozenParts:
    """Return and cache the scale and shift of `norm` and, if `conv` is frozen, the weight of `conv` times the scale.

    Args:
        dtype: the type of mixed precision; None without mixed precision.

    Returns:
        Scale and shift, [C_out, 1, 1] each; in mixed precision, the shift has type `dtype`. Third, the scaled weight
        in type `dtype`, or None if `conv` is trained or there is no mixed precision.
    """
    folds = dtype is not None and not conv.weight.requires_grad
    if torch.compiler.is_compiling():  # the check for changes would split the graph
        return compute_parts(conv, norm, dtype, folds)
    sources = [norm.weight, norm.bias, norm.running_mean, norm.running_var, *([conv.weight] if folds else [])]
    try:
        state = [dtype, *(source._version for source in sources)]
    except RuntimeError:  # tensors made in inference mode do not count their changes
        return compute_parts(conv, norm, dtype, folds)
    known = norm.__dict__.get("frozen_parts")
    if known is None or known[0] != state or any(a is not b for a, b in zip(known[1], sources)):
        with torch.inference_mode(False):  # tensors made in inference mode cannot be used in training
            known = state, sources, compute_parts(conv, norm, dtype, folds)
        norm.__dict__["frozen_parts"] = known
    return known[2]


def compute_parts(conv: nn.Conv2d, norm: FrozenBatchNorm2d, dtype: torch.dtype | None, folds: bool) -> FrozenParts:
    with torch.no_grad():
        scale, shift = (values[:, None, None] for values in scale_and_shift(norm))
        if dtype is None:
            return scale, shift, None
        return scale, shift.to(dtype), (conv.weight * scale[..., None]).to(dtype) if folds else None


def scale_and_shift(norm: FrozenBatchNorm2d | _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift, [C] each, that `norm` applies in evaluation mode."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError("a normalisation without running statistics cannot be folded into a convolution")
    scale = norm.weight * (var + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale


def bias_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """Return the bias of a convolution. ValueError if the convolution has no bias."""
    if layer.bias is None:
        raise ValueError(f"{layer} has no bias")
    return layer.bias


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Fold every normalisation into the convolution before it, in place.

    The network is then for evaluation only. A normalisation is folded if it directly follows a convolution among the
    children of the same module.
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
