"""Train for one epoch: forward, backward and optimizer step.

`optimizer.py` has the learning rate and the update of the weights, `step_results.py` deals with failed steps.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from network_files.on_device import AsyncHostCopy
from train_utils.distributed import AsyncAllReduce, all_reduce, exchange_gradients, rank, report_activity, world_size
from train_utils.errors import InputError, is_out_of_memory, warn
from train_utils.loaders import mix_seed
from train_utils.optimizer import RunningStatistics, backward, learning_rate, optimizer_step, set_learning_rate
from train_utils.run.signals import StopSignals
from train_utils.step_results import StepResults
from train_utils.training_state import RunState, StepResult, Training, call_hooks

ONE_VALUE = "Expected more than 1 value per channel"  # torch's message


def train_one_epoch(
    state: RunState, loader: DataLoader, hooks: Sequence[object], save_checkpoint: Callable[[], None], stop: StopSignals
) -> bool:
    """Train until the epoch ends, the run's last step is done, or a signal comes. Return whether a signal came.

    If the run cannot continue, a checkpoint is written and an error raised, see `StepResults`.
    """
    training, progress = state.training, state.training.progress
    training.parallel.train()
    epoch, done = divmod(progress.step, state.steps_per_epoch)
    steps = min(state.steps_per_epoch - done, state.last_step - progress.step)
    if not done:
        progress.epoch_loss, progress.epoch_steps, progress.not_applied, progress.bad_pictures = 0.0, 0, 0, 0
    loader.batch_sampler.start_at(epoch, done)  # type: ignore[union-attr]  # of `training_loader`
    results = StepResults(state, hooks, save_checkpoint)
    for batch in batches_of(loader, steps, progress.step):
        set_learning_rate(training.optimizer, learning_rate(state.number, state.settings, state.steps_per_epoch))
        call_hooks(hooks, "before_step", state)
        state.number += 1
        try:
            step = train_step(training, batch, state.number, bool(stop.requested))
        except Exception as error:
            if is_out_of_memory(error):
                results.end_out_of_memory(error, batch.images, batch.targets)
            if isinstance(error, ValueError) and ONE_VALUE in str(error):
                raise InputError(
                    f"step {state.number}: BatchNorm cannot be trained on a single value, which one image of at most "
                    "32 pixels leaves; give a larger --batch-size, or a larger --min-size and --max-size"
                ) from error
            raise
        results.add(step)  # reads the previous step's results while the device computes this one
        if step.stop:
            break
        if state.checkpoint_is_due() and results.read():
            save_checkpoint()
    results.read()
    return state.stopping


class Batch(NamedTuple):
    """One batch from the loader: images [C, H, W] of different sizes, and their targets."""

    images: tuple[Tensor, ...]
    targets: tuple[dict[str, Any], ...]
    error: Exception | None = None  # the one that ended loading; then this batch repeats the previous one
    data_time: float = 0.0  # seconds spent waiting for the batch

    def parts(self, number: int) -> list["Batch"]:
        """Divide the batch into parts of equal size."""
        size = -(-len(self.images) // number)
        starts = range(0, len(self.images), size)
        return [Batch(self.images[i : i + size], self.targets[i : i + size]) for i in starts]


def train_step(training: Training, batch: Batch, number: int, stop: bool = False) -> StepResult:
    """Start a training step: forward, backward, and an update of the weights if loss and gradients are finite.

    The device decides about the update, so the host need not wait, and reads the result later. The random samples
    depend only on seed, step `number` (from 1) and rank, so that a run resumed at any step continues as if it had never
    stopped. With `training.accumulate`, the batch is processed in that many parts, as if on several processes.
    """
    torch.manual_seed(mix_seed(training.seed, number - 1, rank()))
    unreadable = [] if batch.error else [message for t in batch.targets for message in t.get("unreadable", ())]
    for message in unreadable:
        warn(f"{message}; another image replaces it")
    counts = AsyncAllReduce(stop, batch.error is not None, len(unreadable))
    parts, values = batch.parts(training.accumulate), []

    training.is_updating = False
    training.optimizer.zero_grad(set_to_none=True)
    with RunningStatistics(training.model) as statistics:
        for i, part in enumerate(parts):
            with exchange_gradients(training.parallel, i == len(parts) - 1):
                images = to_device(part.images, training.device)
                report_activity("forward")
                with training.precision.autocast():
                    losses = training.parallel(images, part.targets)
                    loss = sum(losses.values())
                report_activity("backward")
                backward(loss if len(parts) == 1 else loss * (1 / len(parts)), training.scaler)
            values.append(torch.stack([loss, *losses.values()]).detach().float())

        own = torch.stack(values).mean(dim=0)
        means = all_reduce(own.clone()) / world_size()
        stopping, loading_failed, bad_pictures = counts.read()
        if loading_failed:
            applied = torch.zeros_like(means[0], dtype=torch.bool)
        else:
            finite = means[0].isfinite()
            training.is_updating = True
            applied = optimizer_step(training.optimizer, training.scaler, finite, training.clip_grad_norm)
        statistics.restore_unless(applied)
    if training.ema is not None:
        training.ema.update(number, applied)

    lr = training.optimizer.param_groups[0]["lr"]
    return StepResult(
        number, lr, bool(stopping), bool(loading_failed), bad_pictures, ("loss", *losses),
        AsyncHostCopy(torch.cat((means, own, applied[None]))), batch.error, batch.data_time,
        [target["image_id"] for target in batch.targets],
    )  # fmt: skip


def batches_of(loader: DataLoader, number: int, done: int) -> Iterator[Batch]:
    """Yield `number` batches, from step `done` on. If loading fails, yield the last batch again, with `error` set."""
    loading, batch = iter(loader), None
    for step in range(done, done + number):
        report_activity("loading images", step)
        began = time.perf_counter()
        try:
            images, targets = next(loading)
            batch = Batch(images, targets, data_time=time.perf_counter() - began)
        except Exception as error:
            if batch is None:
                raise
            batch = batch._replace(error=error)
        yield batch


def to_device(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy images to the device, asynchronously if they are in pinned memory. The network copies the targets itself."""
    return [image.to(device, non_blocking=True) for image in images]
