"""The loops: one epoch of training steps, and one pass of evaluation."""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from backbone.conv_norm import fold_norms
from network_files import MaskRCNN
from network_files.boxes import size_of
from network_files.on_device import Download
from train_utils.applying import RunningStatistics, apply_gradients, backward
from train_utils.classes import ClassTable
from train_utils.device import Precision
from train_utils.distributed import (
    HostSums,
    is_main,
    rank,
    report_activity,
    sum_over_processes,
    without_exchange,
    world_size,
)
from train_utils.errors import InputError, warn
from train_utils.hooks import Hooks, RunState
from train_utils.loaders import TrainingLoader, mix_seed
from train_utils.metrics.coco_evaluation import CocoEvaluator, Metrics, PendingDetections
from train_utils.run.signals import StopSignals
from train_utils.schedule import set_schedule
from train_utils.step_record import FailureGuard, StepRecord
from train_utils.training_state import PendingStep, Training


def train_one_epoch(
    state: RunState,
    loader: TrainingLoader,
    hooks: Hooks,
    save_checkpoint: Callable[[], None],
    stop: StopSignals,
) -> bool:
    """Train to the end of the epoch, or to the run's last step if that comes first.

    Each step's draws (the samples inside RPN and RoI heads) come from seed, step and rank alone, so that a run that is
    resumed at any step continues as if it had never stopped.

    Returns:
        Whether a signal asked for a stop; the epoch is then left after the step.

    Raises:
        RunEnded, InputError: see `FailureGuard`; a checkpoint was written first.
    """
    training, settings = state.training, state.settings
    training.parallel.train()
    progress = training.progress
    epoch, done = divmod(progress.step, state.steps_per_epoch)
    steps = min(state.steps_per_epoch - done, state.last_step - progress.step)
    if not done:
        progress.begin_epoch()
    loader.batch_sampler.start_at(epoch, done)
    guard = FailureGuard(training, settings, save_checkpoint)
    record = StepRecord(state, hooks, guard)
    for batch in batches_of(loader, steps, progress.step):
        hooks.call("before_step", state)
        state.number += 1
        step = train_step(training, batch, stop, state.number)
        record.read()  # the step before, while the device computes this one
        guard.check_loading(batch, step)
        set_schedule(training.schedule, state.number)
        record.add(step)
        due = settings.checkpoint_every and state.number % settings.checkpoint_every == 0
        within = not (step.stop or state.ends_epoch(state.number))
        if (due or state.run.retry_is_due(state.number)) and within and record.read():
            save_checkpoint()
        if step.stop:
            break
    record.read()
    return state.stopping


class Batch(NamedTuple):
    """A batch of the loader.

    Attributes:
        error: why no more could be loaded; images and targets are then those of the batch before.
    """

    images: tuple[Tensor, ...]
    targets: tuple[dict[str, Any], ...]
    error: Exception | None = None


def batches_of(loader: DataLoader, number: int, done: int) -> Iterator[Batch]:
    """That many batches, after `done` steps. One that cannot be loaded is the last one again, with its error.

    The other processes wait in the step, so that this one has to take part in it.
    """
    loading, batch = iter(loader), None
    for step in range(done, done + number):
        report_activity("loading images", step)
        try:
            batch = Batch(*next(loading))
        except Exception as error:
            if batch is None:
                raise
            batch = batch._replace(error=error)
        yield batch


def train_step(training: Training, batch: Batch, stop: StopSignals, number: int) -> PendingStep:
    """Start one step of all processes, the run's `number`-th; none applies it where the loss of any is not finite.

    The device decides by itself whether it applies the step. What the host is to know of that is read later, so that
    it need not wait. With `training.accumulate`, the batch goes through the network in that many parts, as if each part
    had a process of its own.
    """
    optimizer = training.optimizer
    torch.manual_seed(mix_seed(training.seed, number - 1, rank()))
    unreadable = [] if batch.error else [m for target in batch.targets for m in target.get("unreadable", ())]
    for message in unreadable:
        warn(f"{message}; another image replaces it")
    host_sums = HostSums(bool(stop.requested), batch.error is not None, len(unreadable))
    statistics = RunningStatistics(training.model)

    optimizer.zero_grad(set_to_none=True)
    *parts, last = parts_of(batch, training.accumulate)
    with without_exchange(training.parallel):
        found = [add_gradients(training, part, 1 / (len(parts) + 1)) for part in parts]
    found.append(add_gradients(training, last, 1 / (len(parts) + 1)))
    names = found[0].names
    own = torch.stack([losses.values for losses in found]).mean(dim=0)
    means = sum_over_processes(own.clone()) / world_size()
    stopping, loading_failed, bad_pictures = host_sums.read()
    lr = optimizer.param_groups[0]["lr"]
    applied = means[0].isfinite()
    if loading_failed:
        applied = torch.zeros_like(applied)
    else:
        applied = apply_gradients(optimizer, training.scaler, applied, training.clip_grad_norm)
    statistics.restore_unless(applied)
    values = Download(torch.cat((means, own, applied[None])))
    ids = [target["image_id"] for target in batch.targets]
    return PendingStep(number, lr, bool(stopping), bool(loading_failed), bad_pictures, names, values, ids)


def parts_of(batch: Batch, number: int) -> list[Batch]:
    """Divide a batch into parts of equal size."""
    size = -(-len(batch.images) // number)
    starts = range(0, len(batch.images), size)
    return [batch._replace(images=batch.images[i : i + size], targets=batch.targets[i : i + size]) for i in starts]


class Losses(NamedTuple):
    """The names "loss" and its parts, and their values, float [6]."""

    names: tuple[str, ...]
    values: Tensor


def add_gradients(training: Training, part: Batch, share: float) -> Losses:
    """Add the gradients of a part's loss, times its share of the step."""
    images = to_device(part.images, training.device)
    report_activity("forward")
    with training.precision.autocast():
        losses = training.parallel(images, part.targets)
        loss = sum(losses.values())
    report_activity("backward")
    backward(loss * share if share < 1 else loss, training.scaler)
    return Losses(("loss", *losses), torch.stack([loss, *losses.values()]).detach().float())


def to_device(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Images on the device, without a wait from pinned memory; the network moves what it needs of the targets."""
    return [image.to(device, non_blocking=True) for image in images]


def evaluate(
    model: MaskRCNN,
    loader: DataLoader,
    ground_truth: Any,
    classes: ClassTable,
    device: torch.device,
    precision: Precision,
    unreadable: list[str] | None = None,
) -> dict[str, Metrics] | None:
    """Evaluate the model; return COCO metrics by IoU type on the main process, None on the others; see `detect_all`."""
    return detect_all(model, loader, ground_truth, classes, device, precision, unreadable).metrics()


@torch.inference_mode()
def detect_all(
    model: MaskRCNN,
    loader: DataLoader,
    ground_truth: Any,
    classes: ClassTable,
    device: torch.device,
    precision: Precision,
    unreadable: list[str] | None = None,
) -> CocoEvaluator:
    """Detect in all images of this process; the evaluator holds the detections.

    Args:
        loader: this process's share of the images.
        ground_truth: COCO object of the whole dataset; only the main process needs it.
        unreadable: list to which messages about unreadable images are added; these count as images without detections.
            If None, they raise InputError.
    """
    network = ready_for_inference(model, precision)
    evaluator = CocoEvaluator(ground_truth, classes, model.continuous_paste)
    with ThreadPoolExecutor(max_workers=1) as coder:
        coding: Future | None = None
        for images, targets in tqdm(loader, desc="evaluation", unit="batch", disable=None if is_main() else True):
            report_activity("evaluating")
            for message in [message for target in targets for message in target.get("unreadable", ())]:
                if unreadable is None:
                    raise InputError(message)
                unreadable.append(message)
                warn(f"{message}; it counts as an image without detections")
            images = [image for image in images if image is not None]
            ids = [target["image_id"] for target in targets if "unreadable" not in target]
            if not images:
                continue
            with precision.autocast():
                found = PendingDetections(network.detect(to_device(images, device)))
            if coding is not None:
                coding.result()  # at most one batch of detections waits
            coding = coder.submit(evaluator.update_batch, ids, [size_of(image) for image in images], found)
        if coding is not None:
            coding.result()
    report_activity("gathering")
    return evaluator


def ready_for_inference(model: MaskRCNN, precision: Precision) -> MaskRCNN:
    """Copy the model in evaluation mode, with normalisation folded into convolutions and weights cast once."""
    network = copy.deepcopy(model).eval()
    fold_norms(network)
    if precision.dtype is not None:
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                module.to(precision.dtype)
    return network
