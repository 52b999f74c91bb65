"""A step is applied as a whole or not at all, and the host need not know which."""

import copy

import pytest
import torch
from torch import Tensor, nn

from train_utils.optimizer import RunningStatistics, backward, create_momentum, optimizer_step


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)).square().mean() + self.linear.weight.square().sum()


def step(model: nn.Module, optimizer, scaler, x: Tensor, factor: float = 1.0) -> bool:
    statistics = RunningStatistics(model)
    optimizer.zero_grad(set_to_none=True)
    loss = model(x) * factor
    backward(loss, scaler)
    applied = optimizer_step(optimizer, scaler, loss.detach().isfinite())
    statistics.restore_unless(applied)
    return bool(applied)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def scaler(request: pytest.FixtureRequest) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**24, enabled=request.param)


@pytest.mark.parametrize("scaler", [False, True], indirect=True)
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_everything_as_it_was(scaler, factor):
    model, x = Small(), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    create_momentum(optimizer)
    assert step(model, optimizer, scaler, x)
    before, momentum = state_of(model), copy.deepcopy(optimizer.state_dict()["state"])
    assert not step(model, optimizer, scaler, x, factor)
    assert same(state_of(model), before)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i]["momentum_buffer"], momentum[i]["momentum_buffer"]) for i in momentum)
    assert step(model, optimizer, scaler, x) and not same(state_of(model), before)
    assert model.norm.num_batches_tracked == 2


def test_a_first_step_beyond_fp16_is_skipped_and_leaves_zeros_as_momentum():
    """The fused optimizer alone would leave its buffers uninitialised, and use them in the next step."""
    model, x = Small(), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    create_momentum(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = state_of(model)
    assert not step(model, optimizer, scaler, x * 100)
    assert same(state_of(model), before) and scaler.get_scale() == 2.0**126
    assert all(not optimizer.state[p]["momentum_buffer"].any() for p in model.parameters())
    scaler.update(2.0**8)
    assert step(model, optimizer, scaler, x)
    assert all(value.isfinite().all() for value in state_of(model).values())


def test_zeros_as_momentum_give_the_steps_that_none_gives():
    models, x = [Small()], torch.randn(8, 4)
    models.append(copy.deepcopy(models[0]))
    for model, created in zip(models, (False, True)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)
        if created:
            create_momentum(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).backward()
            optimizer.step()
    assert same(state_of(models[0]), state_of(models[1]))


def test_a_resumed_runs_momentum_stays():
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).backward()
    optimizer.step()
    kept = copy.deepcopy(optimizer.state_dict())
    create_momentum(optimizer)
    for i, state in kept["state"].items():
        assert torch.equal(optimizer.state_dict()["state"][i]["momentum_buffer"], state["momentum_buffer"])


def test_without_momentum_or_normalisation_there_is_nothing_to_keep():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0)
    create_momentum(optimizer)
    assert not optimizer.state
    RunningStatistics(model).restore_unless(torch.tensor(False))


@pytest.mark.parametrize("scaler", [False, True], indirect=True)
def test_gradients_are_clipped_after_they_are_unscaled_as_torchvision_does(scaler):
    model, x = Small(), torch.randn(8, 4)
    scaler.scale(torch.zeros(1))  # makes its factor exist, 2**24
    reference = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, fused=True) for m in (model, reference)]
    reference(x).backward()
    norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
    assert norm > 0.01
    optimizers[1].step()
    backward(model(x), scaler)
    assert optimizer_step(optimizers[0], scaler, torch.tensor(True), clip_grad_norm=0.01)
    assert all(torch.allclose(p, q, atol=1e-7) for p, q in zip(model.parameters(), reference.parameters()))


@pytest.mark.parametrize("scaler", [False, True], indirect=True)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("opt", [torch.optim.SGD, torch.optim.AdamW])
def test_gradients_whose_norm_is_not_finite_are_not_clipped_but_not_applied(scaler, bad, opt):
    model, x = Small(), torch.randn(8, 4)
    optimizer = opt(model.parameters(), lr=0.1, fused=True)
    before = state_of(model)
    model.linear.weight.register_hook(lambda grad: grad * bad)
    backward(model(x), scaler)
    assert not optimizer_step(optimizer, scaler, torch.tensor(True), clip_grad_norm=1.0)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], before[name]) for name in parameters)
