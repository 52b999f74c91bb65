"""What a training step changes, and what comes out of one."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from network_files import MaskRCNN
from train_utils.device import Precision


@dataclass
class StepResult:
    """The outcome of a step, the same on every process.

    Attributes:
        losses: "loss" and its parts, means over the processes.
        lr: the learning rate.
        applied: whether the weights were changed; they are not where the loss of any process is not finite.
        stop: whether a signal asked any process to stop.
        loading_failed: whether any process could load no more images; such a step is not applied either.
        bad_pictures: images of all processes that could not be read and were replaced.
    """

    losses: dict[str, float]
    lr: float
    applied: bool
    stop: bool
    loading_failed: bool
    bad_pictures: int


@dataclass
class Progress:
    """How far a run is; part of every checkpoint, and the same on every process.

    Attributes:
        step: steps done since the first epoch began.
        lr: learning rate of the last step.
        epoch_loss: sum of the losses of the current epoch's applied steps, each a mean over the processes.
        epoch_steps: their number.
        not_applied: steps of the current epoch whose loss was not finite.
        in_a_row: how many of those were the last steps, without an applied one in between.
        bad_pictures: images of the current epoch that could not be read.
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
        self.step += 1
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
    """What a training step changes, and how it computes.

    Attributes:
        parallel: the model as a step calls it: its DistributedDataParallel, or with one process the model itself.
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
