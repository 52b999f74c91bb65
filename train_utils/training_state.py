"""State that a training step changes, and the result of one."""

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
        stop: whether any process received a signal to stop.
        loading_failed: whether loading failed on any process; such a step is not applied either.
        bad_pictures: number of images, over all processes, that could not be read and were replaced.
    """

    losses: dict[str, float]
    lr: float
    applied: bool
    stop: bool
    loading_failed: bool
    bad_pictures: int


@dataclass
class Progress:
    """Progress of a run; stored in every checkpoint, and the same on every process.

    Attributes:
        step: number of finished steps since the first epoch began.
        lr: learning rate of the last step.
        epoch_loss: sum of the losses of the current epoch's applied steps, each a mean over the processes.
        epoch_steps: number of applied steps in the current epoch.
        not_applied: number of steps in the current epoch whose loss was not finite.
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
    """State that a training step changes, and settings that it computes with.

    Attributes:
        parallel: the model as a step calls it: in DistributedDataParallel, or with one process the model itself.
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
