"""Read and check the results of each step after the next step has started, and end a run that cannot continue."""

import copy
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from train_utils.distributed import all_reduce, barrier, is_main, without_others
from train_utils.errors import NOT_FINITE, OUT_OF_MEMORY, InputError, RunEnded, describe_batch, first_line, warn
from train_utils.sync_batch_norm import SyncBatchNorm2d
from train_utils.training_state import RunState, StepResult, call_hooks
from train_utils.weight_files.weights import not_finite


class StepResults:
    """Read the results of an epoch's steps, count them in the run's progress, and call the hooks.

    If the run cannot continue, all processes call `save_checkpoint` together and end it.
    """

    def __init__(self, state: RunState, hooks: Sequence[object], save_checkpoint: Callable[[], None]):
        self.state, self.hooks, self.save_checkpoint = state, hooks, save_checkpoint
        self.pending: StepResult | None = None
        self.applied = False
        self.last_applied = copy.copy(state.training.progress)

    def add(self, step: StepResult) -> None:
        """Read the results of the previous step, and keep `step` for the next call.

        A step that may end the run is read immediately. Raises the errors of `check` and of loading.
        """
        self.read()
        if step.loading_failed:
            self.end(step.error or InputError("loading images failed on another process of the run"))
        self.pending = step
        if self.state.training.progress.in_a_row + 1 >= self.state.settings.max_bad_steps or step.bad_pictures:
            self.read()

    def read(self) -> bool:
        """Read the results of the last added step, if still unread. Return whether that step was applied."""
        if self.pending is not None:
            step, self.pending = self.pending, None
            self.applied = step.read().applied
            self.state.training.progress.count(step)
            self.check(step)
            self.state.step, self.state.stopping = step, step.stop
            call_hooks(self.hooks, "after_step", self.state)
        return self.applied

    def check(self, step: StepResult) -> None:
        """End the run after too many failed steps or unreadable images, or if weights are not finite."""
        training, settings = self.state.training, self.state.settings
        progress = training.progress
        if step.applied:
            self.last_applied = copy.copy(progress)
        else:
            require_finite_weights(training.model, progress.step)
        if progress.in_a_row >= settings.max_bad_steps:
            vars(progress).update(vars(self.last_applied))
            self.end(RunEnded(
                f"stopped: {settings.max_bad_steps} losses in a row were not finite; the checkpoint is from before "
                "them. Resume with a lower --lr and --force, or look at the images named above",
                NOT_FINITE,
            ))  # fmt: skip
        if progress.bad_pictures > settings.max_bad_pictures:
            self.end(InputError(
                f"{progress.bad_pictures} images of epoch {self.state.epoch_of(step.number)} could not be read (named "
                f"above), which is more than --max-bad-pictures {settings.max_bad_pictures}; fix the data and continue "
                "with --resume auto"
            ))  # fmt: skip

    def end_out_of_memory(self, error: Exception, images: Sequence[Tensor], targets: Sequence[dict]) -> NoReturn:
        """Write a checkpoint of the state before the step that ran out of memory, and raise RunEnded.

        This process writes the checkpoint alone, even if it is not the main process, unless its running statistics
        differ from the main process's. The other processes wait in the step until the watchdog ends them.
        """
        state, model, progress = self.state, self.state.training.model, self.state.training.progress
        traceback.clear_frames(error.__traceback__)  # they hold the activations
        state.training.optimizer.zero_grad(set_to_none=True)
        if state.training.device.type == "cuda":
            torch.cuda.empty_cache()
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
        own_statistics = any(not isinstance(norm, SyncBatchNorm2d) for norm in norms)
        result = "the last checkpoint stays"
        with without_others():
            self.read()
            begun = progress.step % state.steps_per_epoch and not state.training.is_updating
            if begun and (is_main() or not own_statistics):
                state.run.writes, state.run.unsaved_since = True, progress.step
                try:
                    self.save_checkpoint()
                except (OSError, RuntimeError, MemoryError) as failed:
                    warn(f"the checkpoint could not be written ({first_line(failed)})")
                if state.run.unsaved_since is None:
                    result = f"a checkpoint of step {progress.step} was written"
        objects, parts = sum(len(target["labels"]) for target in targets), state.training.accumulate
        raise RunEnded(
            f"out of memory in step {state.number}: {describe_batch(images)}, {objects} objects"
            f"{f', in {parts} parts' if parts > 1 else ''} ({first_line(error)}); {result}; continue with --resume "
            "auto --force and half the --batch-size with twice the --accumulate, or a smaller --min-size",
            OUT_OF_MEMORY,
        )

    def end(self, reason: Exception) -> NoReturn:
        self.save_checkpoint()
        barrier()  # no process exits while the main one writes
        raise reason


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Raise RunEnded if a weight or running mean of any process is not finite. All processes call this together."""
    bad = not_finite(model.state_dict())
    device = next(model.parameters()).device
    if all_reduce(torch.tensor([float(len(bad))], device=device)).item() == 0:
        return
    named = f" ({len(bad)} tensors, first {bad[0]})" if bad else ""
    raise RunEnded(
        f"stopped: after step {step} the weights are not finite{named}: the run has diverged. They are not saved, an "
        "earlier checkpoint stays. Start again with a lower --lr, or continue from that checkpoint with --resume auto, "
        "--force and a lower --lr",
        NOT_FINITE,
    )
