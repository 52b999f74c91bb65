"""The loops: one epoch of training steps, and one pass of evaluation."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from backbone.conv_norm import fold_norms
from network_files import MaskRCNN
from train_utils.classes import ClassTable
from train_utils.distributed import barrier, here, is_main, rank, sum_over_processes, world_size
from train_utils.errors import NOT_FINITE, InputError, RunEnded, warn
from train_utils.loaders import mix_seed
from train_utils.memory import keep_freed_memory
from train_utils.metrics.coco_evaluation import CocoEvaluator, Metrics
from train_utils.run.run_folder import RunFolder
from train_utils.run.signals import StopSignals
from train_utils.weight_files.weights import not_finite


@dataclass
class Precision:
    """Which floating-point type the network computes in: float32, or with --amp bf16 or fp16."""

    device_type: str
    dtype: torch.dtype | None

    @classmethod
    def choose(cls, device: torch.device, amp: bool) -> "Precision":
        """bf16 where the device does it well, else fp16 on CUDA, which wants a GradScaler; bf16 on the CPU."""
        dtype = None
        if amp:
            bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = torch.bfloat16 if bf16 else torch.float16
        return cls(device.type, dtype)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)


def learning_rate_schedule(
    optimizer: Optimizer, steps_per_epoch: int, lr_steps: Iterable[int], gamma: float
) -> LambdaLR:
    """Linear warm-up from 1/1000 over the first min(1000, one epoch) steps; times `gamma` at each of `lr_steps`."""
    warm_up = min(1000, steps_per_epoch)
    drops = [epoch * steps_per_epoch for epoch in lr_steps]

    def factor(step: int) -> float:
        warmth = min(1.0, 0.001 + 0.999 * step / warm_up)
        return warmth * gamma ** sum(step >= drop for drop in drops)

    return LambdaLR(optimizer, factor)


def set_schedule(schedule: LambdaLR, step: int) -> None:
    """Bring a schedule and its optimizer's rates to where they stand after a number of steps."""
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas)]
    for group, rate in zip(schedule.optimizer.param_groups, rates):
        group["lr"] = rate
    done = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    schedule.load_state_dict(schedule.state_dict() | done)


@dataclass
class Progress:
    """How far a run is; part of every checkpoint, and the same on every process.

    Attributes:
        step: steps done since the first epoch began.
        lr: learning rate of the last step.
        epoch_loss: sum of the losses of the current epoch's applied steps, each a mean over the processes.
        epoch_steps: their number.
        not_applied: steps of the current epoch whose loss was not finite.
        in_a_row: how many of those came last without an applied one.
        bad_pictures: pictures of the current epoch that could not be read.
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

    def count(self, step: "Step") -> None:
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
    """All that a training step changes, and how it computes.

    Attributes:
        parallel: the model as the step calls it, where there are several processes: its DistributedDataParallel.
    """

    model: MaskRCNN
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    progress: Progress
    precision: Precision
    device: torch.device
    seed: int
    parallel: nn.Module | None = None


@dataclass
class Step:
    """What came out of a step, the same on every process.

    Attributes:
        losses: "loss" and its parts, means over the processes.
        lr: the learning rate.
        applied: whether the weights were changed; they are not where the loss of any process is not finite.
        stop: whether a signal asked any process to stop.
        no_pictures: whether any process could load no more pictures; such a step is not applied either.
        bad_pictures: pictures that could not be read.
    """

    losses: dict[str, float]
    lr: float
    applied: bool
    stop: bool
    no_pictures: bool
    bad_pictures: int


def train_one_epoch(
    training: Training,
    loader: DataLoader,
    epoch: int,
    last_step: int,
    run: RunFolder | None,
    save_checkpoint: Callable[[], None],
    stop: StopSignals,
    max_bad_steps: int,
    max_bad_pictures: int,
    checkpoint_every: int | None,
    print_freq: int,
) -> bool:
    """Train to the end of the epoch, or to the run's last step if that comes first; `progress` is kept up to date.

    Each step's draws (the samples inside RPN and RoI heads) come from seed, step and rank alone, so that a run
    that is resumed at any step goes on as if it had never stopped.

    Returns:
        Whether a signal asked for a stop; the epoch is then left after the step.

    Raises:
        RunEnded: too many losses in a row were not finite.
        InputError: too many pictures could not be read. In both cases a checkpoint was written first.
    """
    training.parallel.train()
    progress = training.progress
    steps_per_epoch = len(loader)
    begin, end = epoch * steps_per_epoch, min((epoch + 1) * steps_per_epoch, last_step)
    if progress.step == begin:
        progress.begin_epoch()
    loader.batch_sampler.start_at(epoch, progress.step - begin)
    printer = StepPrinter(epoch, progress.step - begin, steps_per_epoch)
    before = copy.copy(progress)  # as of the last applied step
    batches, batch = iter(loader), None
    step = None
    while progress.step < end and not (step and step.stop):
        trouble = None
        here("loading pictures", progress.step)
        try:
            batch = next(batches)
        except Exception as error:
            if batch is None:
                raise
            # The others wait in this step, so it is taken with the batch of the last one, and not applied.
            trouble = error
        step = train_step(training, *batch, stop, trouble is not None)
        if step.no_pictures:
            save_checkpoint()
            barrier()
            raise trouble or InputError("another process of the run could load no more pictures")
        progress.count(step)
        set_schedule(training.schedule, progress.step)
        if step.applied:
            before = copy.copy(progress)
        elif progress.in_a_row >= max_bad_steps or not math.isfinite(step.losses["loss"]):
            require_finite_weights(training.model, progress.step)
        if progress.in_a_row >= max_bad_steps:
            vars(progress).update(vars(before))
            set_schedule(training.schedule, progress.step)
            save_checkpoint()
            barrier()
            raise RunEnded(
                f"stopped: {max_bad_steps} losses in a row were not finite; the checkpoint is from before them. "
                "Go on with a lower --lr and --force, or look at the images named above",
                NOT_FINITE,
            )
        if progress.bad_pictures > max_bad_pictures:
            save_checkpoint()
            barrier()
            raise InputError(
                f"{progress.bad_pictures} pictures of epoch {epoch} could not be read (named above), which is more "
                f"than --max-bad-pictures {max_bad_pictures}; mend the data and go on with --resume auto"
            )
        last = progress.step == end
        printed = progress.step % print_freq == 0 or last
        printer.step(step, progress.step - begin, printed)
        if run is not None and printed:
            values = {name: round(v, 7) if math.isfinite(v) else None for name, v in step.losses.items()}
            run.log({"epoch": epoch, "step": progress.step, "lr": round(step.lr, 7)} | values)
        due = checkpoint_every and progress.step % checkpoint_every == 0
        if (due or run and run.tries_again(progress.step)) and step.applied and not (last or step.stop):
            save_checkpoint()
    printer.close(progress)
    return bool(step and step.stop)


def train_step(training: Training, images: tuple, targets: tuple, stop: StopSignals, no_pictures: bool) -> Step:
    """One step of all processes together; none of them applies it where the loss of any is not finite.

    Args:
        no_pictures: whether this process could load no more; the batch is then an old one.
    """
    device, optimizer, scaler = training.device, training.optimizer, training.scaler
    torch.manual_seed(mix_seed(training.seed, training.progress.step, rank()))
    unreadable = [message for target in targets for message in target.get("unreadable", ()) if not no_pictures]
    for message in unreadable:
        warn(f"{message}; another picture takes its place")
    statistics = running_statistics(training.model)
    kept = [buffer.clone() for buffer in statistics]

    images = [image.to(device, non_blocking=True) for image in images]
    targets = [to_device(target, device) for target in targets]
    here("forward")
    with training.precision.autocast():
        losses = training.parallel(images, targets)
        loss = sum(losses.values())
    here("backward")
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()

    mine = torch.stack([loss, *losses.values()]).detach().float()
    counts = mine.new_tensor([bool(stop.requested), no_pictures, len(unreadable)])
    sums = sum_over_processes(torch.cat((mine, counts)))
    means, (stopping, no_pictures, bad_pictures) = [s / world_size() for s in sums[:-3]], sums[-3:]
    lr = optimizer.param_groups[0]["lr"]
    applied = math.isfinite(means[0]) and not no_pictures
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
    return Step(dict(zip(("loss", *losses), means)), lr, applied, bool(stopping), bool(no_pictures), int(bad_pictures))


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


class StepPrinter:
    """Tells the main process's terminal, or log file, how an epoch goes on."""

    def __init__(self, epoch: int, done: int, steps_per_epoch: int):
        self.epoch, self.done, self.steps_per_epoch = epoch, done, steps_per_epoch
        self.started = time.perf_counter()
        self.bar = tqdm(
            total=steps_per_epoch, initial=done, desc=f"epoch {epoch}", unit="step", disable=None if is_main() else True
        )

    def step(self, step: Step, in_epoch: int, printed: bool) -> None:
        """Show a step; as a line, if `printed` and there is no terminal for a bar."""
        self.bar.update()
        self.bar.set_postfix(loss=f"{step.losses['loss']:.4f}", lr=f"{step.lr:.6f}", refresh=False)
        if printed and self.bar.disable and is_main():
            seconds = (time.perf_counter() - self.started) / (in_epoch - self.done)
            left = time.strftime("%H:%M:%S", time.gmtime(seconds * (self.steps_per_epoch - in_epoch)))
            losses = "  ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
            print(
                f"epoch {self.epoch}  step {in_epoch}/{self.steps_per_epoch}  {losses}  lr {step.lr:.6f}  "
                f"{seconds:.2f} s a step  {left} left",
                flush=True,
            )

    def close(self, progress: Progress) -> None:
        self.bar.close()
        if is_main() and progress.bad_pictures:
            warn(f"epoch {self.epoch}: {progress.bad_pictures} pictures could not be read, others took their place")
        if is_main() and progress.not_applied:
            warn(f"epoch {self.epoch}: {progress.not_applied} steps were not applied, as their loss was not finite")


def to_device(target: dict, device: torch.device) -> dict:
    """A target with its tensors on the device; compact masks stay, their targets are made where they are."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in target.items()
    }


@torch.inference_mode()
def evaluate(
    model: MaskRCNN,
    loader: DataLoader,
    ground_truth,
    classes: ClassTable,
    device: torch.device,
    precision: Precision,
    unreadable: list[str] | None = None,
) -> dict[str, Metrics] | None:
    """COCO metrics by IoU type, on the main process; None on the others.

    Args:
        loader: this process's share of the pictures.
        ground_truth: the whole data's COCO object; only the main process needs it.
        unreadable: pictures that cannot be read are named in here, and count as if nothing were found in them;
            without it they raise InputError.
    """
    network = ready_for_inference(model, precision)
    evaluator = CocoEvaluator(ground_truth, classes, model.continuous_paste)
    for images, targets in tqdm(loader, desc="evaluation", unit="batch", disable=None if is_main() else True):
        here("evaluating")
        for message in [message for target in targets for message in target.get("unreadable", ())]:
            if unreadable is None:
                raise InputError(message)
            unreadable.append(message)
            warn(f"{message}; it counts as if nothing were found in it")
        images = [image for image in images if image is not None]
        targets = [target for target in targets if "unreadable" not in target]
        if not images:
            continue
        with precision.autocast():
            detections = network.detect([image.to(device, non_blocking=True) for image in images])
        for image, target, detection in zip(images, targets, detections):
            evaluator.update(target["image_id"], tuple(image.shape[-2:]), detection)
    here("gathering")
    return evaluator.metrics()


def ready_for_inference(model: MaskRCNN, precision: Precision) -> MaskRCNN:
    """A copy in evaluation mode, its normalisations folded into convolutions, its weights cast once for all images."""
    network = copy.deepcopy(model).eval()
    fold_norms(network)
    if precision.dtype is not None:
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                module.to(precision.dtype)
    return network


def choose_device(name: str) -> torch.device:
    """The device that is asked for, or the CPU with a warning where there is no CUDA; see `keep_freed_memory` there."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        if is_main():
            warn(f"no CUDA device here, --device {name} becomes cpu")
        name = "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: no such device; give cuda, cuda:N or cpu") from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


def use_deterministic_algorithms() -> None:
    """The same bits in every run on CUDA too; to be called before the first use of the device."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
