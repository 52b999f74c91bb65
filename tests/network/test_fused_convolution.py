"""In inference, convolution, shortcut and ReLU in one pass are as exact as torch's separate operators in bf16.

Both are compared with float64. Sums that are rounded once instead of three times are nearer to it, if anything.
"""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from backbone import conv_norm as conv_norm_module
from backbone.conv_norm import HAS_BF16, conv_norm
from backbone.feature_pyramid import FeaturePyramidNetwork
from backbone.resnet import Bottleneck
from network_files.heads import MaskRCNNHeads, RPNHead
from tests.helpers.parity import enliven_norms

pytestmark = pytest.mark.skipif(not HAS_BF16, reason="oneDNN computes no bf16 on this processor")
LAST = torch.channels_last


def distance(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@torch.no_grad()
def outcome(
    forward: Callable[..., Tensor], module: nn.Module, inputs: list[Tensor], dtype: torch.dtype, amp: bool
) -> Tensor:
    module.to(dtype)
    with torch.autocast("cpu", torch.bfloat16) if amp else nullcontext():
        return forward(module, *(x.to(dtype) for x in inputs))


@pytest.fixture
def separate(monkeypatch) -> Callable[[], None]:
    """A function that checks that the fused operators were used, and turns them off."""
    calls = []
    fused = conv_norm_module.fused_convolution
    monkeypatch.setattr(conv_norm_module, "fused_convolution", lambda *given: calls.append(given) or fused(*given))

    def turn_off() -> None:
        assert calls
        monkeypatch.setattr(conv_norm_module, "can_fuse", lambda x, conv: False)

    return turn_off


def assert_as_exact(forward: Callable[..., Tensor], module: nn.Module, inputs: list[Tensor], separate) -> None:
    module.to(memory_format=LAST)
    inputs = [x.bfloat16().float() for x in inputs]  # as maps are
    fused = outcome(forward, module, inputs, torch.float32, amp=True)
    assert fused.dtype == torch.bfloat16
    assert fused.ndim < 4 or fused.is_contiguous(memory_format=LAST)
    separate()
    plain = outcome(forward, module, inputs, torch.float32, amp=True)
    exact = outcome(forward, module, inputs, torch.float64, amp=False)
    assert plain.dtype == fused.dtype
    assert distance(fused, exact) < 1.02 * distance(plain, exact)  # each value is rounded at random


def conv(**given) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(given.pop("channels", 32), 64, **given)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize(
    "geometry",
    [{"kernel_size": 3, "padding": 1}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 3, "dilation": 2}],
)
@pytest.mark.parametrize(
    ("relu", "with_shortcut"), [(None, True), (nn.ReLU(inplace=True), False), (nn.ReLU(inplace=True), True)]
)
def test_output_of_a_convolution(layout, geometry: dict, relu, with_shortcut: bool, separate):
    module = conv(**geometry)
    x = torch.randn(2, 32, 19, 23).contiguous(memory_format=layout)
    shortcut = torch.randn(module(x).shape).contiguous(memory_format=layout)
    given = [x, shortcut] if with_shortcut else [x]

    def forward(layer: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return conv_norm(x, layer, None, relu, shortcut)

    assert_as_exact(forward, module, given, separate)


@pytest.mark.parametrize("stride", [1, 2])
def test_output_of_a_residual_block(stride: int, separate):
    torch.manual_seed(1)
    block = Bottleneck(64, 16, stride, FrozenBatchNorm2d)
    enliven_norms(block)
    x = torch.randn(2, 64, 20, 24).contiguous(memory_format=LAST)
    assert_as_exact(lambda module, x: module(x), block, [x], separate)


def test_output_of_pyramid_and_heads(separate):
    torch.manual_seed(2)
    network = nn.ModuleList([FeaturePyramidNetwork((16, 32), 32), RPNHead(32, 3, 2), MaskRCNNHeads(32, (32, 32))])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    stages = [torch.randn(2, 16, 40, 48), torch.randn(2, 32, 20, 24)]

    def forward(network: nn.Module, *stages: Tensor) -> Tensor:
        pyramid, rpn, mask = network
        levels = list(pyramid(stages).values())
        logits, deltas = rpn(levels)
        assert [x.shape[1] for x in (*logits, *deltas)] == [3, 3, 12, 12]
        return torch.cat([x.flatten() for x in (*logits, *deltas, mask(levels[1]))])

    assert_as_exact(forward, network, stages, separate)


def test_in_training_torchs_own_operators_compute():
    layer, x, shortcut = conv(kernel_size=3), torch.randn(2, 32, 9, 9), torch.randn(2, 64, 7, 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = conv_norm(x, layer, None, nn.ReLU(), shortcut), F.relu(layer(x) + shortcut)
    assert found.requires_grad and torch.equal(found, expected)


@torch.no_grad()
def test_without_mixed_precision_and_in_float64_torchs_own_operators_compute():
    layer, relu = conv(kernel_size=3), nn.ReLU()
    x, shortcut = torch.randn(2, 32, 9, 9), torch.randn(2, 64, 7, 7)
    assert torch.equal(conv_norm(x, layer, None, relu, shortcut), F.relu(layer(x) + shortcut))
    with torch.autocast("cpu", torch.bfloat16):
        exact = conv_norm(x.double(), layer.double(), None, relu, shortcut.double())
    assert torch.equal(exact, F.relu(layer(x.double()) + shortcut.double()))


@torch.no_grad()
def test_groups_are_left_to_torchs_own_operators():
    layer, x, shortcut = conv(kernel_size=3, groups=4), torch.rand(2, 32, 9, 9), torch.ones(2, 64, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_norm(x, layer, None, nn.ReLU(), shortcut), F.relu(layer(x) + shortcut.bfloat16()))


@pytest.mark.parametrize("shape", [(0, 32, 9, 9), (2, 32, 1, 1), (2, 32, 1, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@torch.no_grad()
def test_no_images_and_single_pixels(shape: tuple[int, ...], layout):
    layer, x, shortcut = conv(kernel_size=1), torch.rand(shape), torch.ones(shape[0], 64, *shape[2:])
    with torch.autocast("cpu", torch.bfloat16):
        found = conv_norm(x.contiguous(memory_format=layout), layer, None, nn.ReLU(), shortcut)
    torch.testing.assert_close(found.float(), F.relu(layer(x) + shortcut), rtol=0, atol=0.02)
