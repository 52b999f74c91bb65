"""Average the weights over the training steps (--model-ema); evaluation and prediction use the average."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from train_utils.optimizer import warm_up_steps
from train_utils.options import TrainSettings

SPANS = 25  # the average covers this part of the run: torchvision's decay, 0.99998, on ImageNet's 1.28 million images


class ModelEma:
    """Exponential moving average of the trained weights and of BatchNorm's running statistics.

    As in torchvision's classification scripts, the average is a copy of the weights during the first `warm_up` steps.
    After that, each step keeps the share `decay` of the average.
    """

    def __init__(self, model: nn.Module, decay: float, warm_up: int):
        self.model, self.decay, self.warm_up = model, decay, warm_up
        self.values: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                buffers = module.named_buffers(prefix=name, recurse=False)
                self.values |= {key: buffer for key, buffer in buffers if buffer.is_floating_point()}
        self.averages = [value.detach().clone() for value in self.values.values()]

    @classmethod
    def of_run(cls, model: nn.Module, settings: TrainSettings, steps_per_epoch: int) -> "ModelEma | None":
        decay = settings.model_ema
        if decay is True:
            decay = 1 - min(1.0, SPANS / (settings.epochs * steps_per_epoch))
        return None if decay is False else cls(model, decay, warm_up_steps(steps_per_epoch))

    @torch.no_grad()
    def update(self, number: int, applied: Tensor) -> None:
        """Update the average after step `number` (from 1).

        `applied` is a bool scalar on the device, whether the step changed the weights.
        """
        share = applied.float() * (1.0 if number <= self.warm_up else 1 - self.decay)
        added = torch._foreach_mul(list(self.values.values()), share)
        torch._foreach_mul_(self.averages, 1 - share)
        torch._foreach_add_(self.averages, added)

    @torch.no_grad()
    def restart(self) -> None:
        """Make the average a copy of the weights."""
        torch._foreach_copy_(self.averages, list(self.values.values()))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Context in which the model has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        for value, average in zip(self.values.values(), self.averages):
            value.data, average.data = average.data, value.data

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's state dict, with averages in place of the trained weights and running statistics."""
        return self.model.state_dict() | dict(zip(self.values, self.averages))

    def describe(self) -> str:
        return (
            f"--model-ema: the weights are averaged, with decay {self.decay:.6g} per step after a warm-up of "
            f"{self.warm_up} steps; evaluation and prediction use the average"
        )
