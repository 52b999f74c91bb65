"""Optimizers, weight decays and learning rates are those of torchvision's reference scripts."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR
from torchvision.ops._utils import split_normalization_params

from train_utils.models import ModelConfig, build_model
from train_utils.optimizer import build_optimizer, learning_rate, parameter_groups
from train_utils.options import TrainSettings


def settings_of(*words: str) -> TrainSettings:
    settings = TrainSettings.parse("", ["--data-path", "data", *words])
    settings.resolve(processes=1)
    return settings


# ------------------------------------------------------------------------------------------------------------ schedules

EPOCHS, STEPS = 7, 1200  # more steps than the warm-up's 1000, which torchvision's is one shorter of otherwise
SCHEDULERS = {
    "multisteplr": lambda optimizer: MultiStepLR(optimizer, [2, 5], 0.3),
    "cosineannealinglr": lambda optimizer: CosineAnnealingLR(optimizer, T_max=EPOCHS),
}


def rates_of_torchvision(scheduler: str) -> list[float]:
    """The rate of each step, from torch's own schedulers, called as torchvision's scripts call them."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    main: LRScheduler = SCHEDULERS[scheduler](optimizer)
    rates = []
    for epoch in range(EPOCHS):
        warm_up = LinearLR(optimizer, start_factor=0.001, total_iters=min(1000, STEPS - 1)) if epoch == 0 else None
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if warm_up is not None:
                warm_up.step()
        main.step()
    return rates


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_learning_rates_equal_those_of_torchvisions_scripts(scheduler: str) -> None:
    words = ["--lr-scheduler", scheduler, "--epochs", str(EPOCHS), "--lr-steps", "2", "5", "--lr-gamma", "0.3"]
    settings = settings_of("--lr", "0.02", *words)
    rates = [learning_rate(step, settings, STEPS) for step in range(EPOCHS * STEPS)]
    assert torch.allclose(torch.tensor(rates), torch.tensor(rates_of_torchvision(scheduler)), rtol=1e-6, atol=1e-12)
    assert rates[0] == pytest.approx(2e-5) and rates[1000] == 0.02


def test_cosine_is_full_in_the_first_epoch_half_in_the_middle_and_ends_at_zero() -> None:
    settings = settings_of("--lr", "1", "--lr-scheduler", "CosineAnnealingLR", "--epochs", "10")
    rates = [learning_rate(step, settings, steps_per_epoch=2000) for step in (1000, 1999, 10_000, 20_000)]
    assert rates == pytest.approx([1, 1, 0.5, 0], abs=1e-15)


# ------------------------------------------------------------------------------------------------ groups and optimizers


class Mixed(nn.Module):
    """Layers of all kinds, one of them frozen, and a parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        norms = (nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True))
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), *norms)
        self.frozen = nn.BatchNorm2d(4).requires_grad_(False)
        self.head = nn.Sequential(nn.SyncBatchNorm(4), nn.Linear(4, 2), nn.LayerNorm(2))


@pytest.mark.parametrize("network", ["mixed", pytest.param("v2", marks=pytest.mark.slow)])
def test_groups_with_norm_weight_decay_are_torchvisions(network: str) -> None:
    model = Mixed() if network == "mixed" else build_model(ModelConfig(3, "v2"))
    groups = parameter_groups(model, 0.1, 0.0)
    theirs = [{id(p) for p in part} for part in split_normalization_params(model)]
    assert [{id(p) for p in group["params"]} for group in groups] == theirs
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]


def test_one_group_of_all_trained_parameters_without_norm_weight_decay() -> None:
    model = Mixed()
    (group,) = parameter_groups(model, 0.1)
    assert len(group["params"]) == len([p for p in model.parameters() if p.requires_grad]) == 15


def test_no_group_is_empty_where_all_normalisation_is_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).requires_grad_(False))
    assert [len(group["params"]) for group in parameter_groups(model, 0.1, 0.0)] == [2]


PLAIN = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.8, weight_decay=0.1),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1),
}


@pytest.mark.parametrize("opt", PLAIN)
def test_optimizer_steps_as_torchvisions_does(opt: str) -> None:
    torch.manual_seed(0)
    ours, theirs = Mixed(), Mixed()
    theirs.load_state_dict(ours.state_dict())
    words = ["--lr", "0.05", "--momentum", "0.8", "--wd", "0.1", "--norm-weight-decay", "0.02"]
    settings = settings_of("--opt", opt, *words)
    parts = zip(split_normalization_params(theirs), (0.02, 0.1))
    optimizers = [build_optimizer(ours, settings), PLAIN[opt]([{"params": p, "weight_decay": w} for p, w in parts])]
    assert optimizers[0].defaults["fused"]
    for _ in range(5):
        for p, q in zip(ours.parameters(), theirs.parameters()):
            if p.requires_grad:
                p.grad = torch.randn_like(p)
                q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-6), name


def test_default_rate_is_per_image_with_sgd_and_fixed_with_adamw() -> None:
    assert settings_of("--batch-size", "8").lr == pytest.approx(0.008)
    assert settings_of("--batch-size", "8", "--opt", "adamw").lr == 1e-4
    assert settings_of("--opt", "adamw", "--lr", "0.3").lr == 0.3
    assert math.isclose(settings_of("--opt", "SGD").lr, 0.004)
