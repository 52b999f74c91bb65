"""ResNet-50 without its classifier: image batch -> feature maps of the requested stages.

He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), table 1. By default the stride of a
stage is in the 3x3 convolution of its first block ("ResNet v1.5").
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from backbone.conv_norm import conv_norm

NormLayer = Callable[[int], nn.Module]
STAGE_BLOCKS = (3, 4, 6, 3)
STAGE_WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """The stem and stages of ResNet-50, up to the last requested stage.

    Args:
        norm_layer: builds a normalisation from a number of channels (`nn.BatchNorm2d`, `FrozenBatchNorm2d`, ...).
        returned_layers: the stages whose outputs are returned, out of 1..4 (C2..C5 of the FPN paper), ascending.
        stride_in_1x1: whether the stride of a stage is in the first 1x1 convolution of its first block (the paper,
            Detectron2) or in the 3x3 convolution (torchvision).
        in_channels: channels of the images.
    """

    def __init__(
        self,
        norm_layer: NormLayer = nn.BatchNorm2d,
        returned_layers: Sequence[int] = (1, 2, 3, 4),
        stride_in_1x1: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        returned_layers = sorted(returned_layers)
        if not returned_layers or returned_layers[0] < 1 or returned_layers[-1] > 4:
            raise ValueError(f"returned_layers must name stages out of 1..4, got {list(returned_layers)}")
        self.returned_layers = returned_layers
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        width_before = 64
        for stage in range(1, returned_layers[-1] + 1):
            width = STAGE_WIDTHS[stage - 1]
            stride = 1 if stage == 1 else 2
            layer = make_stage(width_before, width, STAGE_BLOCKS[stage - 1], stride, norm_layer, stride_in_1x1)
            self.add_module(f"layer{stage}", layer)
            width_before = width * Bottleneck.expansion
        self.reset_parameters()

    @property
    def out_channels(self) -> list[int]:
        """Return the number of channels of each returned stage."""
        return [STAGE_WIDTHS[stage - 1] * Bottleneck.expansion for stage in self.returned_layers]

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, in_channels, H, W] -> [B, C_i, H / 2^(i+1), W / 2^(i+1)] per returned stage i, finest first."""
        x = self.maxpool(conv_norm(images, self.conv1, self.bn1, self.relu))
        outputs = []
        for stage in range(1, self.returned_layers[-1] + 1):
            x = getattr(self, f"layer{stage}")(x)
            if stage in self.returned_layers:
                outputs.append(x)
        return outputs

    def reset_parameters(self) -> None:
        """Initialise the convolutions as He et al. do (arXiv:1502.01852, section 2.2), with the fan-out.

        If the last normalisation of a block is trainable, its scale starts at 0, so that the block starts as its
        shortcut: this makes training from scratch more stable (Goyal et al., arXiv:1706.02677, section 5.1).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck) and isinstance(module.bn3.weight, nn.Parameter):
                nn.init.zeros_(module.bn3.weight)

    def freeze_all_but(self, trainable_layers: int) -> None:
        """Keep the last `trainable_layers` of (conv1, layer1, ..., layer4) trainable and freeze the others.

        The stem's normalisation is trainable only with 5, where nothing is frozen. Frozen BatchNorm2d layers still
        update their running statistics in training mode, as in torchvision; FrozenBatchNorm2d keeps them fixed.
        """
        if not 0 <= trainable_layers <= 5:
            raise ValueError(f"trainable_layers must be within 0..5, got {trainable_layers}")
        trainable = ("layer4", "layer3", "layer2", "layer1", "conv1")[:trainable_layers]
        if trainable_layers == 5:
            trainable += ("bn1",)
        for name, parameter in self.named_parameters():
            if not name.startswith(trainable):
                parameter.requires_grad_(False)


def make_stage(
    in_channels: int, width: int, blocks: int, stride: int, norm_layer: NormLayer, stride_in_1x1: bool
) -> nn.Sequential:
    """Build one stage: the first block changes resolution and channels, the others keep both."""
    first = Bottleneck(in_channels, width, stride, norm_layer, stride_in_1x1)
    rest = (Bottleneck(width * Bottleneck.expansion, width, 1, norm_layer) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions (figure 5, right). The 3x3 or the first 1x1 has the stride."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm_layer: NormLayer, stride_in_1x1: bool = False):
        super().__init__()
        out_channels = width * self.expansion
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, stride=stride_1x1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride_3x3, padding=1, bias=False)
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                norm_layer(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, 4 * width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else conv_norm(x, *self.downsample)
        x = conv_norm(x, self.conv1, self.bn1, self.relu)
        x = conv_norm(x, self.conv2, self.bn2, self.relu)
        return conv_norm(x, self.conv3, self.bn3, self.relu, shortcut)
