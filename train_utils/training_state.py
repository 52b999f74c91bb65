"""State that a training step changes, and the result of one."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from network_files import MaskRCNN
from network_files.on_device import Download
from train_utils.device import Precision
from train_utils.distributed import rank
from train_utils.errors import warn


@dataclass
class StepResult:
    """The outcome of a step, the same on every process.

    Attributes:
        number: steps of the run with this one.
        losses: "loss" and its parts, means over the processes.
        lr: the learning rate.
        applied: whether the weights were changed; they are not where the loss of any process is not finite, nor where
            gradients exceed fp16, or with --clip-grad-norm their norm is not finite.
        bad_pictures: number of images, over all processes, that could not be read and were replaced.
    """

    number: int
    losses: dict[str, float]
    lr: float
    applied: bool
    bad_pictures: int


@dataclass
class PendingStep:
    """A step that the device may still be computing: what the host knows of it, and on the way what it does not.

    Attributes:
        number: steps of the run with this one.
        lr: the learning rate.
        stop: whether any process received a signal to stop.
        loading_failed: whether loading failed on any process; such a step is not applied.
        bad_pictures: number of images, over all processes, that could not be read and were replaced.
        names: "loss" and its parts.
        values: means of the losses over the processes, the losses of this process, and whether the step was applied.
        image_ids: of this process.
    """

    number: int
    lr: float
    stop: bool
    loading_failed: bool
    bad_pictures: int
    names: tuple[str, ...]
    values: Download
    image_ids: list[int]

    def read(self) -> StepResult:
        """Wait for the result; warn if the loss of this process is not finite."""
        *losses, applied = self.values.read().tolist()
        means, own = (dict(zip(self.names, part)) for part in (losses, losses[len(self.names) :]))
        if not math.isfinite(means["loss"]) and not math.isfinite(own["loss"]):
            parts = ", ".join(f"{name} {value:.4g}" for name, value in own.items() if name != "loss")
            warn(
                f"step {self.number} is not applied: the loss is {own['loss']} on process {rank()}, "
                f"images {self.image_ids}, {parts}, learning rate {self.lr:.6g}"
            )
        return StepResult(self.number, means, self.lr, bool(applied), self.bad_pictures)


@dataclass
class Progress:
    """Progress of a run; stored in every checkpoint, and the same on every process.

    Attributes:
        step: number of finished steps since the first epoch began.
        lr: learning rate of the last step.
        epoch_loss: sum of the losses of the current epoch's applied steps, each a mean over the processes.
        epoch_steps: number of applied steps in the current epoch.
        not_applied: number of steps in the current epoch whose loss, or whose gradients where they are looked at, were
            not finite.
        in_a_row: number of such steps since the last applied one.
        bad_pictures: number of images of the current epoch that could not be read.
    """

    step: int = 0
    lr: float = 0.0
    epoch_loss: float = 0.0
    epoch_steps: int = 0
    not_applied: int = 0
    in_a_row: int = 0
    bad_pictures: int = 0

    def mean_loss(self) -> float:
        return self.epoch_loss / max(self.epoch_steps, 1)

    def begin_epoch(self) -> None:
        self.epoch_loss, self.epoch_steps, self.not_applied, self.bad_pictures = 0.0, 0, 0, 0

    def count(self, step: StepResult) -> None:
        self.step = step.number
        self.lr = step.lr
        self.bad_pictures += step.bad_pictures
        if step.applied:
            self.epoch_loss += step.losses["loss"]
            self.epoch_steps += 1
            self.in_a_row = 0
        else:
            self.not_applied += 1
            self.in_a_row += 1


@dataclass
class Training:
    """State that a training step changes, and settings that it computes with.

    Attributes:
        parallel: the model as a step calls it: in DistributedDataParallel, or with one process the model itself.
        accumulate: into how many passes a step divides its batch, to add up their gradients.
        clip_grad_norm: the norm that gradients are reduced to where theirs is larger; None: they stay.
    """

    model: MaskRCNN
    parallel: nn.Module
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    progress: Progress
    precision: Precision
    device: torch.device
    seed: int
    accumulate: int = 1
    clip_grad_norm: float | None = None
