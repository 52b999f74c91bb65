"""A convolution and its normalisation as one: where the normalisation is a fixed scale and shift a channel, the
convolution's weights can carry both, and one pass over the map is saved forward and another one back."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """`norm(conv(x))`, [B, C_in, H, W] -> [B, C_out, H', W'].

    In mixed precision a frozen normalisation goes into the weights: by itself it would turn the map into float32. In
    float32 the two stay apart, and with them torchvision's very rounding.
    """
    frozen = isinstance(norm, FrozenBatchNorm2d) and conv.bias is None
    if not frozen or not torch.is_autocast_enabled(x.device.type):
        return norm(conv(x))
    scale, shift = scale_and_shift(norm)
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def scale_and_shift(norm: FrozenBatchNorm2d | _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a normalisation by running statistics multiplies a channel with and adds to it, [C] each."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Put every normalisation that follows a convolution into it, in place; for evaluation only.

    A normalisation follows a convolution where it stands right after it among its module's children.
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
