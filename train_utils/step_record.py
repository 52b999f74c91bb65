"""Read, count and check the result of a step, one step after it was started; then the hooks get it."""

import copy
from collections.abc import Callable
from typing import NoReturn, Protocol

import torch
from torch import nn

from train_utils.distributed import barrier, sum_over_processes
from train_utils.errors import NOT_FINITE, InputError, RunEnded
from train_utils.hooks import Hooks, RunState
from train_utils.options import TrainSettings
from train_utils.schedule import set_schedule
from train_utils.training_state import PendingStep, StepResult, Training
from train_utils.weight_files.weights import not_finite


class StepRecord:
    """The results of an epoch's steps. Progress counts the steps that have been read.

    Args:
        hooks: called after each step, once its result is known.
        guard: ends the run where it cannot continue.
    """

    def __init__(self, state: RunState, hooks: Hooks, guard: "FailureGuard"):
        self.state, self.hooks, self.guard = state, hooks, guard
        self.pending: PendingStep | None = None
        self.applied = False

    def add(self, step: PendingStep) -> None:
        """Take a started step, whose result is read later: at once only if it may be the one that ends the run.

        What is saved then must not contain a further step.
        """
        self.pending = step
        if self.state.training.progress.in_a_row + 1 >= self.state.settings.max_bad_steps or step.bad_pictures:
            self.read()

    def read(self) -> bool:
        """Read the result of the step that was added last, if it has not been read; return whether it was applied.

        Raises:
            RunEnded, InputError: see `FailureGuard`.
        """
        if self.pending is not None:
            pending, self.pending = self.pending, None
            step = pending.read()
            self.applied = step.applied
            self.state.training.progress.count(step)
            self.guard.check_step(step, self.state.epoch_of(step.number))
            self.state.step, self.state.stopping = step, pending.stop
            self.hooks.call("after_step", self.state)
        return self.applied


class FailureGuard:
    """Ends a run that cannot continue, after a checkpoint, on all processes together.

    Args:
        save_checkpoint: called by all processes; the main one writes.
    """

    def __init__(self, training: Training, settings: TrainSettings, save_checkpoint: Callable[[], None]):
        self.training, self.settings, self.save_checkpoint = training, settings, save_checkpoint
        self.last_applied = copy.copy(training.progress)

    def check_loading(self, batch: "LoadedBatch", step: PendingStep) -> None:
        """Raise the loader's error, or InputError for that of another process; all steps before must have been read."""
        if step.loading_failed:
            self.end(batch.error or InputError("another process of the run could load no more images"))

    def check_step(self, step: StepResult, epoch: int) -> None:
        """To be called once the step is counted.

        Raises:
            RunEnded: too many steps in a row were not applied, or the weights are not finite.
            InputError: too many images could not be read.
        """
        progress, settings = self.training.progress, self.settings
        if step.applied:
            self.last_applied = copy.copy(progress)
        else:
            require_finite_weights(self.training.model, progress.step)
        if progress.in_a_row >= settings.max_bad_steps:
            vars(progress).update(vars(self.last_applied))
            set_schedule(self.training.schedule, progress.step)
            message = (
                f"stopped: {settings.max_bad_steps} losses in a row were not finite; the checkpoint is from before "
                "them. Resume with a lower --lr and --force, or look at the images named above"
            )
            self.end(RunEnded(message, NOT_FINITE))
        if progress.bad_pictures > settings.max_bad_pictures:
            message = (
                f"{progress.bad_pictures} images of epoch {epoch} could not be read (named above), which is more than "
                f"--max-bad-pictures {settings.max_bad_pictures}; mend the data and continue with --resume auto"
            )
            self.end(InputError(message))

    def end(self, reason: Exception) -> NoReturn:
        self.save_checkpoint()
        barrier()  # no process leaves while the main one writes
        raise reason


class LoadedBatch(Protocol):
    @property
    def error(self) -> Exception | None: ...


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Notice weights that a step with a finite loss has made infinite; to be called by all processes together.

    Raises:
        RunEnded: a weight or running mean of any process is not finite.
    """
    bad = not_finite(model.state_dict())
    device = next(model.parameters()).device
    if sum_over_processes(torch.tensor([float(len(bad))], device=device)).item() == 0:
        return
    named = f" ({len(bad)} tensors, first {bad[0]})" if bad else ""
    raise RunEnded(
        f"stopped: after step {step} the weights are not finite{named}: the run has diverged. They are not saved, an "
        "earlier checkpoint stays. Start again with a lower --lr, or continue from that checkpoint with --resume auto, "
        "--force and a lower --lr",
        NOT_FINITE,
    )
