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
from train_utils.distributed import HostSums, is_main, rank, report_activity, sum_over_processes, world_size
from train_utils.errors import InputError, warn
from train_utils.loaders import TrainingLoader, mix_seed
from train_utils.metrics.coco_evaluation import CocoEvaluator, Metrics, PendingDetections
from train_utils.options import TrainSettings
from train_utils.run.run_folder import RunFolder
from train_utils.run.signals import StopSignals
from train_utils.schedule import set_schedule
from train_utils.step_record import FailureGuard, StepRecord
from train_utils.training_state import PendingStep, Training


def train_one_epoch(
    training: Training,
    loader: TrainingLoader,
    epoch: int,
    last_step: int,
    settings: TrainSettings,
    run: RunFolder,
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
    training.parallel.train()
    progress = training.progress
    begin = epoch * len(loader)
    end = min(begin + len(loader), last_step)
    if progress.step == begin:
        progress.begin_epoch()
    loader.batch_sampler.start_at(epoch, progress.step - begin)
    guard = FailureGuard(training, settings, save_checkpoint)
    record = StepRecord(training, settings, run, guard, epoch, len(loader), end)
    stopped = False
    for number, batch in enumerate(batches_of(loader, end - progress.step, progress.step), start=progress.step + 1):
        step = train_step(training, batch, stop, number)
        record.read()  # the step before, while the device computes this one
        guard.check_loading(batch, step)
        set_schedule(training.schedule, number)
        record.add(step)
        due = settings.checkpoint_every and number % settings.checkpoint_every == 0
        if (due or run.retry_is_due(number)) and not step.stop and number < end and record.read():
            save_checkpoint()
        if step.stop:
            stopped = True
            break
    record.close()
    return stopped


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
    it need not wait.
    """
    optimizer = training.optimizer
    torch.manual_seed(mix_seed(training.seed, number - 1, rank()))
    unreadable = [] if batch.error else [m for target in batch.targets for m in target.get("unreadable", ())]
    for message in unreadable:
        warn(f"{message}; another image replaces it")
    host_sums = HostSums(bool(stop.requested), batch.error is not None, len(unreadable))
    statistics = RunningStatistics(training.model)

    images = to_device(batch.images, training.device)
    report_activity("forward")
    with training.precision.autocast():
        losses = training.parallel(images, batch.targets)
        loss = sum(losses.values())
    report_activity("backward")
    optimizer.zero_grad(set_to_none=True)
    backward(loss, training.scaler)

    own = torch.stack([loss, *losses.values()]).detach().float()
    means = sum_over_processes(own.clone()) / world_size()
    stopping, loading_failed, bad_pictures = host_sums.read()
    lr = optimizer.param_groups[0]["lr"]
    applied = means[0].isfinite()
    if loading_failed:
        applied = torch.zeros_like(applied)
    else:
        applied = apply_gradients(optimizer, training.scaler, applied)
    statistics.restore_unless(applied)
    values = Download(torch.cat((means, own, applied[None])))
    ids = [target["image_id"] for target in batch.targets]
    return PendingStep(number, lr, bool(stopping), bool(loading_failed), bad_pictures, ("loss", *losses), values, ids)


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
