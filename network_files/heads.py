"""The small networks on top of the pyramid: RPN head, box head, mask head and their predictors.

Module and parameter names are torchvision's, so that state dicts can be exchanged in both directions.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.conv_norm import bias_of, conv_norm
from backbone.resnet import NormLayer


class RPNHead(nn.Module):
    """Predict objectness and deltas of every anchor by 3x3, then 1x1 convolutions (Faster R-CNN, section 3.1).

    All levels share the weights (FPN, arXiv:1612.03144, section 4.1).

    Args:
        in_channels: channels of every pyramid level.
        num_anchors: A, the anchors per location.
        conv_depth: number of 3x3 convolutions (1; 2 in the v2 model).
    """

    def __init__(self, in_channels: int, num_anchors: int, conv_depth: int = 1):
        super().__init__()
        self.conv = nn.Sequential(*(Conv3x3ReLU(in_channels, in_channels) for _ in range(conv_depth)))
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(bias_of(module))

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """[B, C, H_i, W_i] per level -> objectness logits [B, A, H_i, W_i] and deltas [B, 4 * A, H_i, W_i]."""
        hidden = [self.conv(level) for level in levels]
        return [self.cls_logits(x) for x in hidden], [self.bbox_pred(x) for x in hidden]


class TwoMLPHead(nn.Module):
    """Two fully connected layers (FPN, section 4.2): RoI features [R, C, 7, 7] -> [R, representation_size]."""

    def __init__(self, in_channels: int, representation_size: int):
        super().__init__()
        self.fc6 = nn.Linear(in_channels, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(start_dim=1)))))


class FastRCNNConvFCHead(nn.Sequential):
    """Convolutions, then fully connected layers (the v2 model's box head): [R, C, h, w] -> [R, fc_layers[-1]].

    Args:
        input_size: channels, height and width of the RoI features.
        conv_layers: channels of each 3x3 convolution.
        fc_layers: width of each fully connected layer.
        norm_layer: normalisation after each convolution, or None.
    """

    def __init__(
        self,
        input_size: tuple[int, int, int],
        conv_layers: Sequence[int],
        fc_layers: Sequence[int],
        norm_layer: NormLayer | None = None,
    ):
        channels, height, width = input_size
        layers = conv_stack(channels, conv_layers, norm_layer)
        layers.append(nn.Flatten())
        features = (conv_layers[-1] if conv_layers else channels) * height * width
        for fc_features in fc_layers:
            layers += [nn.Linear(features, fc_features), nn.ReLU(inplace=True)]
            features = fc_features
        super().__init__(*layers)


class FastRCNNPredictor(nn.Module):
    """[R, in_channels] -> class logits [R, K] (0 is background) and class-wise deltas [R, 4 * K]."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, num_classes * 4)
        # Small, as in Fast R-CNN (arXiv:1504.08083), section 2.3: large initial deltas make training diverge.
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(start_dim=1)
        return self.cls_score(x), self.bbox_pred(x)


class MaskRCNNHeads(nn.Sequential):
    """The mask head (Mask R-CNN, arXiv:1703.06870, figure 4, right): [R, C, 14, 14] -> [R, layers[-1], 14, 14].

    Args:
        in_channels: channels of the RoI features.
        layers: channels of each 3x3 convolution.
        dilation: of the convolutions.
        norm_layer: normalisation after each convolution (the v2 model), or None.
    """

    def __init__(self, in_channels: int, layers: Sequence[int], dilation: int = 1, norm_layer: NormLayer | None = None):
        super().__init__(*conv_stack(in_channels, layers, norm_layer, dilation))


class MaskRCNNPredictor(nn.Sequential):
    """Double the resolution and predict a mask per class: [R, C, 14, 14] -> logits [R, K, 28, 28]."""

    conv5_mask: nn.ConvTranspose2d
    relu: nn.ReLU
    mask_fcn_logits: nn.Conv2d

    def __init__(self, in_channels: int, dim_reduced: int, num_classes: int):
        super().__init__(
            OrderedDict(
                conv5_mask=nn.ConvTranspose2d(in_channels, dim_reduced, kernel_size=2, stride=2),
                relu=nn.ReLU(inplace=True),
                mask_fcn_logits=nn.Conv2d(dim_reduced, num_classes, kernel_size=1),
            )
        )
        nn.init.kaiming_normal_(self.conv5_mask.weight, mode="fan_out", nonlinearity="relu")
        # Not He's: its fan-out would be the number of classes, so few classes would give initial logits in the tens.
        nn.init.normal_(self.mask_fcn_logits.weight, std=0.001)
        nn.init.zeros_(bias_of(self.mask_fcn_logits))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(self.upsample(x), self.mask_fcn_logits.weight.flatten(1), self.mask_fcn_logits.bias)
        return self.scatter_subpixels(x)

    def logits_of_classes(self, x: Tensor, classes: Tensor) -> Tensor:
        """Compute the logits of one class per RoI: [R, C, 14, 14] and int64 [R] -> [R, 28, 28].

        The loss and the detections need no other logits. With many classes, the logits of all classes would cost more
        time and memory than the rest of this module.
        """
        x = self.upsample(x)
        # The backward of weight[classes] would add up gradients in the order in which threads arrive.
        # Permuted, not flattened: then the gradient of a channels-last weight has the strides of DDP's buckets.
        weight = F.embedding(classes, self.mask_fcn_logits.weight.permute(0, 2, 3, 1).flatten(1))
        bias = F.embedding(classes, bias_of(self.mask_fcn_logits)[:, None])
        logits = torch.bmm(x.flatten(1, 4), weight[:, :, None]) + bias[:, :, None]
        return self.scatter_subpixels(logits.view(*x.shape[:-1], 1))[:, 0]

    def upsample(self, x: Tensor) -> Tensor:
        """Apply the transposed convolution as a matrix product, and ReLU: [R, C, H, W] -> [R, H, W, 2, 2, dim_reduced].

        Kernel and stride are equal, so each input pixel produces its own 2x2 outputs, and the 1x1 convolution can be
        applied before the pixel shuffle. On the CPU the backward pass is ten times as fast as the transposed
        convolution's.
        """
        rois, _, height, width = x.shape
        (k, _), weight = self.conv5_mask.kernel_size, self.conv5_mask.weight
        x = F.linear(
            x.permute(0, 2, 3, 1).flatten(0, 2),  # so that the result is no view, which ReLU in place would copy
            weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0]),
            bias_of(self.conv5_mask).repeat(k * k),
        )
        return self.relu(x).view(rois, height, width, k, k, weight.shape[1])

    @staticmethod
    def scatter_subpixels(x: Tensor) -> Tensor:
        """Apply a pixel shuffle: [R, H, W, k, k, K] -> [R, K, H * k, W * k]."""
        rois, height, width, k, _, channels = x.shape
        return x.permute(0, 5, 1, 3, 2, 4).reshape(rois, channels, height * k, width * k)


def conv_stack(
    in_channels: int, layers: Sequence[int], norm_layer: NormLayer | None, dilation: int = 1
) -> list[nn.Module]:
    """Build 3x3 convolutions with ReLU, He-initialised by fan-out (arXiv:1502.01852, section 2.2)."""
    stack: list[nn.Module] = []
    for channels in layers:
        block = Conv3x3ReLU(in_channels, channels, norm_layer, dilation)
        for layer in block:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        stack.append(block)
        in_channels = channels
    return stack


class Conv3x3ReLU(nn.Sequential):
    """A 3x3 convolution that keeps height and width, with either a bias or a normalisation, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm_layer: NormLayer | None = None, dilation: int = 1):
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size=3, padding=dilation, dilation=dilation, bias=norm_layer is None
        )
        norm = [] if norm_layer is None else [norm_layer(out_channels)]
        super().__init__(conv, *norm, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm(x, cast(nn.Conv2d, self[0]), self[1] if len(self) == 3 else None, self[-1])
