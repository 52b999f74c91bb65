"""The loops: one epoch of training steps, and one pass of evaluation."""

import copy
import math
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from backbone.conv_norm import fold_norms
from network_files import MaskRCNN
from train_utils.classes import ClassTable
from train_utils.coco_evaluation import CocoEvaluator, Metrics
from train_utils.data import mix_seed
from train_utils.distributed import is_main, rank
from train_utils.errors import InputError
from train_utils.run_folder import RunFolder


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
    optimizer: Optimizer, steps_per_epoch: int, lr_steps: Iterable[int], gamma: float, first_step: int = 0
) -> LambdaLR:
    """Linear warm-up from 1/1000 over the first min(1000, one epoch) steps; times `gamma` at each of `lr_steps`."""
    warm_up = min(1000, steps_per_epoch)
    drops = [epoch * steps_per_epoch for epoch in lr_steps]

    def factor(step: int) -> float:
        warmth = min(1.0, 0.001 + 0.999 * step / warm_up)
        return warmth * gamma ** sum(step >= drop for drop in drops)

    schedule = LambdaLR(optimizer, factor)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor(first_step)
    rates = [group["lr"] for group in optimizer.param_groups]
    done = {"last_epoch": first_step, "_step_count": first_step + 1, "_last_lr": rates}
    schedule.load_state_dict(schedule.state_dict() | done)
    return schedule


@dataclass
class Progress:
    """How far a run is; part of every checkpoint.

    Attributes:
        step: optimizer steps done since the first epoch began.
        lr: learning rate of the last step.
        epoch_loss: sum of the losses of the current epoch's steps.
        epoch_steps: their number.
    """

    step: int = 0
    lr: float = 0.0
    epoch_loss: float = 0.0
    epoch_steps: int = 0

    def mean_loss(self) -> float:
        return self.epoch_loss / max(self.epoch_steps, 1)

    def begin_epoch(self) -> None:
        self.epoch_loss, self.epoch_steps = 0.0, 0


def train_one_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LambdaLR,
    scaler: torch.amp.GradScaler,
    loader: DataLoader,
    device: torch.device,
    precision: Precision,
    epoch: int,
    progress: Progress,
    run: RunFolder | None,
    print_freq: int,
    seed: int,
    last_step: int,
) -> None:
    """Train to the end of the epoch, or to the run's last step if that comes first; `progress` is kept up to date.

    Each step's draws (the samples inside RPN and RoI heads) come from seed, step and rank alone, so that a run
    that is resumed at any step goes on as if it had never stopped.
    """
    model.train()
    steps_per_epoch = len(loader)
    done = progress.step - epoch * steps_per_epoch
    if done == 0:
        progress.begin_epoch()
    loader.batch_sampler.start_at(epoch, done)
    bar = tqdm(
        total=steps_per_epoch, initial=done, desc=f"epoch {epoch}", unit="step", disable=None if is_main() else True
    )
    started, steps_here = time.perf_counter(), 0
    for images, targets in loader:
        torch.manual_seed(mix_seed(seed, progress.step, rank()))
        images = [image.to(device, non_blocking=True) for image in images]
        targets = [to_device(target, device) for target in targets]
        with precision.autocast():
            losses = model(images, targets)
            loss = sum(losses.values())
        loss_value = loss.item()
        if not math.isfinite(loss_value):
            ids = [target["image_id"] for target in targets]
            values = {name: round(value.item(), 4) for name, value in losses.items()}
            raise InputError(
                f"the loss became {loss_value} at step {progress.step}, images {ids}: {values}, learning rate "
                f"{optimizer.param_groups[0]['lr']:.6f}; try a lower --lr, or look at these images"
            )
        lr = optimizer.param_groups[0]["lr"]
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()

        progress.step += 1
        progress.lr = lr
        progress.epoch_steps += 1
        progress.epoch_loss += loss_value
        steps_here += 1
        bar.update()
        bar.set_postfix(loss=f"{loss_value:.4f}", lr=f"{lr:.6f}", refresh=False)
        in_epoch = progress.step - epoch * steps_per_epoch
        last = in_epoch == steps_per_epoch or progress.step == last_step
        if run is not None and (progress.step % print_freq == 0 or last):
            entry = {"epoch": epoch, "step": progress.step, "lr": lr, "loss": loss_value}
            entry |= {name: value.item() for name, value in losses.items()}
            run.log({name: round(v, 7) if isinstance(v, float) else v for name, v in entry.items()})
            if bar.disable:
                seconds = (time.perf_counter() - started) / steps_here
                left = time.strftime("%H:%M:%S", time.gmtime(seconds * (steps_per_epoch - in_epoch)))
                parts = "  ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
                print(
                    f"epoch {epoch}  step {in_epoch}/{steps_per_epoch}  loss {loss_value:.4f}  {parts}  "
                    f"lr {lr:.6f}  {seconds:.2f} s a step  {left} left",
                    flush=True,
                )
        if progress.step == last_step:
            break
    bar.close()


def to_device(target: dict, device: torch.device) -> dict:
    """A target with its tensors on the device; compact masks stay, their targets are made where they are."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in target.items()
    }


@torch.inference_mode()
def evaluate(
    model: MaskRCNN, loader: DataLoader, ground_truth, classes: ClassTable, device: torch.device, precision: Precision
) -> dict[str, Metrics] | None:
    """COCO metrics by IoU type, on the main process; None on the others.

    Args:
        loader: this process's share of the pictures.
        ground_truth: the whole data's COCO object; only the main process needs it.
    """
    network = ready_for_inference(model, precision)
    evaluator = CocoEvaluator(ground_truth, classes, model.continuous_paste)
    for images, targets in tqdm(loader, desc="evaluation", unit="batch", disable=None if is_main() else True):
        with precision.autocast():
            detections = network.detect([image.to(device, non_blocking=True) for image in images])
        for image, target, detection in zip(images, targets, detections):
            evaluator.update(target["image_id"], tuple(image.shape[-2:]), detection)
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
    """The device that is asked for, or the CPU with a warning where there is no CUDA."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        if is_main():
            print(f"warning: no CUDA device here, --device {name} becomes cpu", file=sys.stderr, flush=True)
        name = "cpu"
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: no such device; give cuda, cuda:N or cpu") from None
