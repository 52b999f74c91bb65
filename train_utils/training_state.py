"""State of a training run (result of a step, progress, model and optimizer), and the hooks that receive it."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.optim import Optimizer

from network_files import MaskRCNN
from network_files.on_device import AsyncHostCopy
from train_utils.device import Precision
from train_utils.distributed import rank
from train_utils.errors import InputError, warn
from train_utils.model_ema import ModelEma
from train_utils.options import TrainSettings
from train_utils.run.run_folder import RunFolder

MOMENTS = ("before_train", "after_train", "before_step", "after_step")  # of hooks; the names are Detectron2's
TRY_AGAIN = 100  # steps after which a checkpoint that could not be written is retried


@dataclass
class StepResult:
    """Losses and outcome of a training step, which the device may still be computing; `read` waits for them."""

    number: int  # of the step in the run, counted from 1
    lr: float
    stop: bool  # whether any process received a signal to stop
    loading_failed: bool  # on any process; such a step is not applied
    bad_pictures: int  # images, over all processes, that could not be read and were replaced
    names: tuple[str, ...]  # "loss" and its parts
    values: AsyncHostCopy  # means of the losses over the processes, losses of this process, and whether it was applied
    error: Exception | None  # that ended loading on this process
    data_time: float  # seconds for which this process waited for its loader
    image_ids: list[int]
    losses: dict[str, float] = field(default_factory=dict)  # after `read`: "loss" and its parts, means over processes
    applied: bool = False  # after `read`: whether the weights were updated, see `optimizer_step`

    def read(self) -> "StepResult":
        """Wait for the losses and the outcome, and return self. Warn if the loss of this process is not finite."""
        *losses, applied = self.values.read().tolist()
        own = dict(zip(self.names, losses[len(self.names) :]))
        self.losses, self.applied = dict(zip(self.names, losses)), bool(applied)
        if not math.isfinite(self.losses["loss"]) and not math.isfinite(own["loss"]):
            parts = ", ".join(f"{name} {value:.4g}" for name, value in own.items() if name != "loss")
            warn(
                f"step {self.number} is not applied: the loss is {own['loss']} on process {rank()}, "
                f"images {self.image_ids}, {parts}, learning rate {self.lr:.6g}"
            )
        return self


@dataclass
class Progress:
    """Progress of a run. It is stored in every checkpoint, and is the same on every process."""

    step: int = 0  # finished steps since the first epoch began
    lr: float = 0.0  # of the last step
    epoch_loss: float = 0.0  # sum of the losses of the current epoch's applied steps, each a mean over the processes
    epoch_steps: int = 0  # applied steps in the current epoch
    not_applied: int = 0  # other steps in the current epoch
    in_a_row: int = 0  # steps that were not applied since the last applied one
    bad_pictures: int = 0  # images of the current epoch that could not be read

    def mean_loss(self) -> float:
        return self.epoch_loss / max(self.epoch_steps, 1)

    def count(self, step: StepResult) -> None:
        self.step, self.lr = step.number, step.lr
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
    """Model, optimizer and progress, which a training step updates, and the settings of the step."""

    model: MaskRCNN
    parallel: nn.Module  # the model in DistributedDataParallel; with one process, the model itself
    optimizer: Optimizer
    precision: Precision
    device: torch.device
    seed: int = 0  # of the random samples of RPN and RoI heads
    accumulate: int = 1  # batches per step, whose gradients are accumulated
    clip_grad_norm: float | None = None  # maximum norm of the gradients; None for no clipping
    progress: Progress = field(default_factory=Progress)
    ema: ModelEma | None = None  # average of the weights; None without --model-ema
    is_updating: bool = False  # whether the optimizer has begun to change the weights in the last started step
    scaler: torch.amp.GradScaler = None  # type: ignore[assignment]  # by default that of `precision`, set below

    def __post_init__(self) -> None:
        self.scaler = self.scaler or self.precision.scaler()

    def evaluation_weights(self) -> AbstractContextManager:
        """Context in which the model has the averaged weights of --model-ema, or else the trained weights."""
        return nullcontext() if self.ema is None else self.ema.swapped()


@dataclass
class RunState:
    """State of a run, which every hook receives."""

    training: Training
    settings: TrainSettings
    run: RunFolder  # `run.writes` is true on the main process only
    steps_per_epoch: int
    last_step: int  # after which the run ends
    number: int  # steps that have been started; in `before_step`, the weights are those after that many steps
    step: StepResult | None = None  # in `after_step`, the finished step; the device may already compute the next one
    stopping: bool = False  # whether a signal stops the run after this step

    def epoch_of(self, step: int) -> int:
        """Return the epoch, counted from 0, that contains a step, counted from 1."""
        return (step - 1) // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a step, counted from 1, is the last of its epoch or of the run."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.last_step)

    def checkpoint_is_due(self) -> bool:
        """Whether to write a checkpoint within the epoch, after the step that was started last."""
        every, unsaved = self.settings.checkpoint_every, self.run.unsaved_since
        due = (
            every is not None and self.number % every == 0 or unsaved is not None and self.number >= unsaved + TRY_AGAIN
        )
        return due and not self.ends_epoch(self.number)


def call_hooks(hooks: Sequence[object], moment: str, state: RunState) -> None:
    """Call each hook's function named `moment`, one of `MOMENTS`, if the hook has it. All processes call this."""
    for hook in hooks:
        if function := getattr(hook, moment, None):
            function(state)


def load_hooks(path: str | None) -> list[ModuleType]:
    """Run a user's Python file and return it as a list of one hook. InputError if it defines none of `MOMENTS`."""
    if path is None:
        return []
    if not Path(path).is_file():
        raise InputError(f"--hooks {path}: no such file")
    module = ModuleType(Path(path).stem)
    module.__file__ = path
    exec(compile(Path(path).read_bytes(), path, "exec"), vars(module))
    if not any(callable(getattr(module, moment, None)) for moment in MOMENTS):
        raise InputError(f"--hooks {path}: defines none of the functions {', '.join(MOMENTS)}")
    return [module]
