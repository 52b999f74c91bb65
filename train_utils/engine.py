"""The loops: one epoch of training steps, and one pass of evaluation."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from tqdm import tqdm

from backbone.conv_norm import fold_norms
from network_files import MaskRCNN
from train_utils.classes import ClassTable
from train_utils.device import Precision
from train_utils.distributed import barrier, is_main, rank, report_activity, sum_over_processes, world_size
from train_utils.errors import NOT_FINITE, InputError, RunEnded, warn
from train_utils.loaders import mix_seed
from train_utils.metrics.coco_evaluation import CocoEvaluator, Metrics
from train_utils.options import TrainSettings
from train_utils.run.run_folder import RunFolder
from train_utils.run.signals import StopSignals
from train_utils.schedule import set_schedule
from train_utils.step_printer import StepPrinter
from train_utils.training_state import StepResult, Training
from train_utils.weight_files.weights import not_finite


def train_one_epoch(
    training: Training,
    loader: DataLoader,
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
    printer = StepPrinter(epoch, progress.step - begin, len(loader))
    stopped = False
    for batch in batches_of(loader, end - progress.step, training):
        step = train_step(training, batch, stop)
        guard.check_loading(batch, step)
        progress.count(step)
        set_schedule(training.schedule, progress.step)
        guard.check_step(step, epoch)
        is_last = progress.step == end or step.stop
        printed = progress.step % settings.print_freq == 0 or progress.step == end
        printer.step(step, progress.step - begin, printed)
        if printed:
            values = {name: round(v, 7) if math.isfinite(v) else None for name, v in step.losses.items()}
            run.log({"epoch": epoch, "step": progress.step, "lr": round(step.lr, 7)} | values)
        due = settings.checkpoint_every and progress.step % settings.checkpoint_every == 0
        if (due or run.retry_is_due(progress.step)) and step.applied and not is_last:
            save_checkpoint()
        if step.stop:
            stopped = True
            break
    printer.close(progress)
    return stopped


class Batch(NamedTuple):
    """A batch of the loader.

    Attributes:
        error: why no more could be loaded; images and targets are then those of the batch before.
    """

    images: tuple[Tensor, ...]
    targets: tuple[dict[str, Any], ...]
    error: Exception | None = None


def batches_of(loader: DataLoader, number: int, training: Training) -> Iterator[Batch]:
    """That many batches. One that cannot be loaded is the last one again, with its error.

    The other processes wait in the step, so that this one has to take part in it.
    """
    loading, batch = iter(loader), None
    for _ in range(number):
        report_activity("loading images", training.progress.step)
        try:
            batch = Batch(*next(loading))
        except Exception as error:
            if batch is None:
                raise
            batch = batch._replace(error=error)
        yield batch


class FailureGuard:
    """Ends a run that cannot continue, after a checkpoint, on all processes together.

    Args:
        save_checkpoint: called by all processes; the main one writes.
    """

    def __init__(self, training: Training, settings: TrainSettings, save_checkpoint: Callable[[], None]):
        self.training, self.settings, self.save_checkpoint = training, settings, save_checkpoint
        self.last_applied = copy.copy(training.progress)

    def check_loading(self, batch: Batch, step: StepResult) -> None:
        """Raise the loader's error, or InputError for that of another process."""
        if step.loading_failed:
            self.end(batch.error or InputError("another process of the run could load no more images"))

    def check_step(self, step: StepResult, epoch: int) -> None:
        """To be called once the step is counted.

        Raises:
            RunEnded: too many losses in a row were not finite, or the weights are not.
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

    def end(self, reason: Exception) -> None:
        self.save_checkpoint()
        barrier()  # no process leaves while the main one writes
        raise reason


def train_step(training: Training, batch: Batch, stop: StopSignals) -> StepResult:
    """One step of all processes together; none of them applies it where the loss of any is not finite."""
    device, optimizer, scaler = training.device, training.optimizer, training.scaler
    torch.manual_seed(mix_seed(training.seed, training.progress.step, rank()))
    unreadable = [] if batch.error else [m for target in batch.targets for m in target.get("unreadable", ())]
    for message in unreadable:
        warn(f"{message}; another image replaces it")
    statistics = running_statistics(training.model)
    kept = [buffer.clone() for buffer in statistics]

    images = [image.to(device, non_blocking=True) for image in batch.images]
    targets = [to_device(target, device) for target in batch.targets]
    report_activity("forward")
    with training.precision.autocast():
        losses = training.parallel(images, targets)
        loss = sum(losses.values())
    report_activity("backward")
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()

    own = torch.stack([loss, *losses.values()]).detach().float()
    counts = own.new_tensor([bool(stop.requested), batch.error is not None, len(unreadable)])
    sums = sum_over_processes(torch.cat((own, counts)))
    means, (stopping, loading_failed, bad_pictures) = [s / world_size() for s in sums[:-3]], sums[-3:]
    lr = optimizer.param_groups[0]["lr"]
    applied = math.isfinite(means[0]) and not loading_failed
    if applied:
        scaler.step(optimizer)
        scaler.update()
    else:
        for buffer, value in zip(statistics, kept):
            buffer.copy_(value)
    if not math.isfinite(means[0]) and not math.isfinite(loss.item()):
        ids = [target["image_id"] for target in targets]
        parts = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        warn(
            f"step {training.progress.step + 1} is not applied: the loss is {loss.item()} on process {rank()}, "
            f"images {ids}, {parts}, learning rate {lr:.6g}"
        )
    named_means = dict(zip(("loss", *losses), means))
    return StepResult(named_means, lr, applied, bool(stopping), bool(loading_failed), int(bad_pictures))


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Notice weights that a step with a finite loss has made infinite; to be called by all processes together.

    Raises:
        RunEnded: a weight or running mean of any process is not finite.
    """
    bad = not_finite(model.state_dict())
    if sum_over_processes(torch.tensor([float(len(bad))], device=next(model.parameters()).device))[0] == 0:
        return
    named = f" ({len(bad)} tensors, first {bad[0]})" if bad else ""
    raise RunEnded(
        f"stopped: after step {step} the weights are not finite{named}: the run has diverged. They are not saved, an "
        "earlier checkpoint stays. Start again with a lower --lr, or continue from that checkpoint with --resume auto, "
        "--force and a lower --lr",
        NOT_FINITE,
    )


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass in training changes."""
    normalisations = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    return [buffer for m in normalisations for buffer in m.buffers()]


def to_device(target: dict, device: torch.device) -> dict:
    """A target with its tensors on the device; compact masks stay, their targets are made where they are."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in target.items()
    }


def evaluate(
    model: MaskRCNN,
    loader: DataLoader,
    ground_truth,
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
    ground_truth,
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
    for images, targets in tqdm(loader, desc="evaluation", unit="batch", disable=None if is_main() else True):
        report_activity("evaluating")
        for message in [message for target in targets for message in target.get("unreadable", ())]:
            if unreadable is None:
                raise InputError(message)
            unreadable.append(message)
            warn(f"{message}; it counts as an image without detections")
        images = [image for image in images if image is not None]
        targets = [target for target in targets if "unreadable" not in target]
        if not images:
            continue
        with precision.autocast():
            detections = network.detect([image.to(device, non_blocking=True) for image in images])
        for image, target, detection in zip(images, targets, detections):
            evaluator.update(target["image_id"], tuple(image.shape[-2:]), detection)
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
