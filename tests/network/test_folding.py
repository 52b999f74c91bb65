"""Normalisations folded into convolutions give the same maps, in training with --amp and ready for inference."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from backbone import conv_norm as conv_norm_module
from backbone.conv_norm import conv_norm
from network_files import MaskRCNN
from tests.helpers.faults import thin_bodies
from tests.helpers.parity import enliven_norms
from train_utils.device import Precision
from train_utils.evaluation import ready_for_inference
from train_utils.models import ModelConfig, build_model

NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


def network(arch: str, norm: str) -> MaskRCNN:
    with thin_bodies():
        model = build_model(ModelConfig(3, arch, norm, min_size=64, max_size=96))
    enliven_norms(model)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "norm"), [("v1", "frozen"), ("v1", "batch"), ("v2", "batch")])
@torch.no_grad()
def test_the_copy_for_inference_has_no_normalisation_left_and_the_same_pyramid(arch: str, norm: str):
    model = network(arch, norm)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ready = ready_for_inference(model, Precision("cpu", None))
    assert not any(isinstance(module, NORMS) for module in ready.modules())
    images = torch.rand(2, 3, 64, 96)
    for name, level in model.backbone(images).items():
        assert level.abs().max() > 0
        torch.testing.assert_close(ready.backbone(images)[name], level, rtol=0, atol=1e-4 * level.abs().max().item())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(isinstance(module, NORMS) for module in model.modules())


@pytest.mark.slow
@torch.no_grad()
def test_the_copy_for_mixed_precision_has_its_weights_cast_and_nearly_the_same_pyramid():
    model = network("v1", "batch")
    precision = Precision("cpu", torch.bfloat16)
    ready = ready_for_inference(model, precision)
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    assert {m.weight.dtype for m in ready.modules() if isinstance(m, kinds)} == {torch.bfloat16}
    images = torch.rand(1, 3, 64, 96)
    with precision.autocast():
        found, expected = ready.backbone(images), model.backbone(images)
    exact = model.backbone(images)
    for name, level in exact.items():
        spread = (expected[name].float() - level).norm() / level.norm()
        assert 0 < (found[name].float() - level).norm() / level.norm() < 2 * spread


def test_a_frozen_normalisation_under_autocast_gives_a_map_and_gradients_of_low_precision_that_are_right():
    torch.manual_seed(3)
    conv = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    norm = FrozenBatchNorm2d(16)
    enliven_norms(nn.ModuleDict({"bn": norm}))
    x = torch.randn(2, 8, 9, 7)
    exact = norm(conv(x))
    (gradient,) = torch.autograd.grad(exact.square().sum(), conv.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = conv_norm(x, conv, norm)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, rtol=0, atol=0.02 * exact.abs().max().item())
    (found,) = torch.autograd.grad(mixed.float().square().sum(), conv.weight)
    torch.testing.assert_close(found, gradient, rtol=0, atol=0.02 * gradient.abs().max().item())


@pytest.mark.parametrize("make", [nn.BatchNorm2d, FrozenBatchNorm2d, partial(nn.BatchNorm2d, eps=0.1)])
def test_in_float32_convolution_and_normalisation_stay_apart(make):
    conv, norm = nn.Conv2d(4, 6, 1, bias=False), make(6)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(conv_norm(x, conv, norm), norm(conv(x)))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_what_is_frozen_is_computed_once_and_again_after_a_change(trained: bool, amp: bool, monkeypatch):
    conv, norm = nn.Conv2d(4, 6, 3, bias=False).requires_grad_(trained), FrozenBatchNorm2d(6)
    x, calls = torch.randn(2, 4, 9, 9), []
    compute = conv_norm_module.compute_parts
    monkeypatch.setattr(conv_norm_module, "compute_parts", lambda *a: calls.append(a) or compute(*a))

    def close() -> bool:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            found = conv_norm(x, conv, norm)
        exact = norm(conv(x))
        return torch.allclose(found.float(), exact, rtol=0, atol=0.02 * exact.abs().max().item() if amp else 0)

    with torch.inference_mode():
        assert close()
    assert close() and close() and len(calls) == 1
    enliven_norms(nn.ModuleDict({"bn": norm}))
    assert close() and close() and len(calls) == 2
    norm.load_state_dict({name: value + 1 for name, value in norm.state_dict().items()})
    assert close() and len(calls) == 3
    with torch.no_grad():
        conv.weight.mul_(3)
    assert close() and len(calls) == (4 if amp and not trained else 3)
    norm.weight = norm.weight * 2
    assert close() and close() and len(calls) == (5 if amp and not trained else 4)
    if trained:
        conv_norm(x, conv, norm).sum().backward()
        assert conv.weight.grad is not None
    assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
