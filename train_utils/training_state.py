"""State of a training run: model and optimizer, progress, and the state that is passed to hooks."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from network_files import MaskRCNN
from train_utils.device import Precision
from train_utils.model_ema import ModelEma
from train_utils.options import TrainSettings
from train_utils.run.run_folder import RunFolder


@dataclass
class StepResult:
    """The outcome of a step, the same on every process except for `data_time`.

    Attributes:
        number: the step's number in the run, counted from 1.
        lr: the learning rate.
        bad_pictures: number of images, over all processes, that could not be read and were replaced.
        data_time: seconds for which this process waited for its loader.
        losses: "loss" and its parts, means over the processes.
        applied: whether the weights were updated. They are not if the loss of any process is not finite, if gradients
            overflow fp16, or, with --clip-grad-norm, if the gradient norm is not finite.
    """

    number: int
    lr: float
    bad_pictures: int = 0
    data_time: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    applied: bool = False


@dataclass
class Progress:
    """Progress of a run; stored in every checkpoint, and the same on every process.

    Attributes:
        step: number of finished steps since the first epoch began.
        lr: learning rate of the last step.
        epoch_loss: sum of the losses of the current epoch's applied steps, each a mean over the processes.
        epoch_steps: number of applied steps in the current epoch.
        not_applied: number of steps of the current epoch that were not applied.
        in_a_row: number of steps that were not applied since the last applied one.
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
    """State that a training step updates, and the settings that it uses.

    Attributes:
        parallel: the model wrapped in DistributedDataParallel, or with one process the model itself.
        scaler: GradScaler; by default that of `precision`.
        seed: seed of the random samples of RPN and RoI heads.
        accumulate: number of batches per step whose gradients are accumulated.
        clip_grad_norm: maximum norm of the gradients; None for no clipping.
        ema: average of the weights; None without --model-ema.
        is_updating: whether the optimizer has begun to change the weights in the last started step.
    """

    model: MaskRCNN
    parallel: nn.Module
    optimizer: Optimizer
    precision: Precision
    device: torch.device
    seed: int = 0
    accumulate: int = 1
    clip_grad_norm: float | None = None
    progress: Progress = field(default_factory=Progress)
    ema: ModelEma | None = None
    is_updating: bool = False
    scaler: torch.amp.GradScaler = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        self.scaler = self.scaler or self.precision.scaler()

    def evaluated(self) -> AbstractContextManager:
        """Context in which the model has the weights to evaluate: the averaged ones, if there are any."""
        return nullcontext() if self.ema is None else self.ema.swapped()


@dataclass
class RunState:
    """State of a run that is passed to hooks.

    Attributes:
        training: model, optimizer, progress and so on.
        settings: the options.
        run: the run folder; `run.writes` is true on the main process only.
        steps_per_epoch: number of steps in a full epoch.
        last_step: the step after which the run ends.
        number: number of steps that have been started. In `before_step`, the weights are those after that many steps.
        step: in `after_step`, the finished step and its losses. The device may already be computing the next step.
        stopping: whether a signal stops the run after this step.
    """

    training: Training
    settings: TrainSettings
    run: RunFolder
    steps_per_epoch: int
    last_step: int
    number: int
    step: StepResult | None = None
    stopping: bool = False

    def epoch_of(self, step: int) -> int:
        """Return the epoch of a step, counted from 1."""
        return (step - 1) // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a step, counted from 1, is the last of its epoch or of the run."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.last_step)

    def checkpoint_is_due(self) -> bool:
        """Whether to write a checkpoint within the epoch, after the step that was started last."""
        every = self.settings.checkpoint_every
        due = every is not None and self.number % every == 0
        return (due or self.run.retry_is_due(self.number)) and not self.ends_epoch(self.number)
