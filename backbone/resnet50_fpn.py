"""ResNet-50 with FPN: image batch -> the five-level pyramid that Mask R-CNN reads."""

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from backbone.feature_pyramid import FeaturePyramidNetwork, LastLevelMaxPool
from backbone.resnet import NormLayer, ResNet


def resnet50_fpn_backbone(
    pretrain_path: str | Path = "", norm_layer: NormLayer = nn.BatchNorm2d, trainable_layers: int = 3,
    returned_layers: Sequence[int] | None = None, extra_blocks: nn.Module | None = None,
    fpn_norm_layer: NormLayer | None = None, stride_in_1x1: bool = False, in_channels: int = 3,
) -> "BackboneWithFPN":  # fmt: skip
    """Build the backbone of Mask R-CNN.

    Args:
        pretrain_path: weights file of a classification ResNet-50 (its `fc` is ignored), or "".
        norm_layer: normalisation of the ResNet. Use FrozenBatchNorm2d if batches are too small for their own
            statistics (ResNet paper, appendix A).
        trainable_layers: how many of (conv1, layer1..layer4) are trained, counted from the last, 0..5.
        returned_layers: the ResNet stages that the pyramid is built on, out of 1..4; all by default.
        extra_blocks: adds further levels; `LastLevelMaxPool` by default.
        fpn_norm_layer: normalisation inside the FPN (the v2 model); none by default.
        stride_in_1x1, in_channels: see `ResNet`.
    """
    body = ResNet(norm_layer, (1, 2, 3, 4) if returned_layers is None else returned_layers, stride_in_1x1, in_channels)
    if pretrain_path:
        load_classification_weights(body, pretrain_path)
    body.freeze_all_but(trainable_layers)
    fpn = FeaturePyramidNetwork(
        body.out_channels,
        extra_blocks=LastLevelMaxPool() if extra_blocks is None else extra_blocks,
        norm_layer=fpn_norm_layer,
    )
    return BackboneWithFPN(body, fpn)


class BackboneWithFPN(nn.Module):
    """[B, C, H, W] -> OrderedDict of levels "0", "1", "2", "3", "pool", each [B, 256, H / s, W / s], s = 4..64."""

    out_channels = 256

    def __init__(self, body: ResNet, fpn: FeaturePyramidNetwork):
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        return self.fpn(self.body(images))


def load_classification_weights(body: ResNet, path: str | Path) -> None:
    """Load the state dict of a classification ResNet-50 into `body`.

    The entries of `fc`, and of stages that `body` does not have, are ignored. `extend_stem` adapts the first
    convolution to the channels of `body`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not such a state dict; the message names the entries that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (pretrain_path must be the weights of a ResNet-50)")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: cannot be read as weights ({error})") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: holds a {type(weights).__name__}, not a state dict")
    own = body.state_dict()
    unused = ("fc.", *(f"layer{stage}." for stage in range(body.returned_layers[-1] + 1, 5)))
    weights = {k: v for k, v in weights.items() if not k.startswith(unused)}
    if isinstance(weights.get("conv1.weight"), Tensor):
        weights["conv1.weight"] = extend_stem(weights["conv1.weight"], body.conv1.in_channels)
    wrong = {
        "missing": [k for k in own if k not in weights],
        "unexpected": [k for k in weights if k not in own],
        "with other shapes": [k for k in own if k in weights and own[k].shape != weights[k].shape],
    }
    names = {what: [k for k in keys if not k.endswith("num_batches_tracked")] for what, keys in wrong.items()}
    if any(names.values()):
        found = ", ".join(f"{what} {keys[:3]} ({len(keys)})" for what, keys in names.items())
        raise ValueError(f"{path}: not the weights of this ResNet-50: {found}")
    body.load_state_dict(weights, strict=False)


def extend_stem(weight: Tensor, channels: int) -> Tensor:
    """Adapt the first convolution's weight from RGB to `channels`: [C_out, 3, k, k] -> [C_out, channels, k, k].

    From three channels on, the first three are copied; all others are the mean of the three. The scale preserves the
    response to grey images.
    """
    if weight.ndim != 4 or weight.shape[1] != 3 or channels == 3:
        return weight
    mean = weight.mean(dim=1, keepdim=True)
    kept = weight if channels > 3 else weight[:, :0]
    return torch.cat((kept, mean.expand(-1, channels - kept.shape[1], -1, -1)), dim=1) * (3 / channels)
