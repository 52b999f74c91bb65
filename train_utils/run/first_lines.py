"""Print the first lines of a run: code and versions, device, network, data and schedule."""

import platform
import subprocess
from pathlib import Path

import torch
import torchvision

from dataset_files.dataset import InstanceDataset
from train_utils.distributed import world_size
from train_utils.sampled_images import anchor_fit
from train_utils.training_state import RunState

PROJECT = Path(__file__).resolve().parents[2]


def print_first_lines(state: RunState, train_set: InstanceDataset, val_images: int) -> None:
    if not state.run.writes:
        return
    training, settings = state.training, state.settings
    parameters = list(training.model.parameters())
    total, trained = (sum(p.numel() for p in parameters if p.requires_grad or of_all) for of_all in (True, False))
    per_step = settings.images_per_step() * world_size()
    device = f"{torch.get_num_threads()} threads"
    if training.device.type == "cuda":
        device = torch.cuda.get_device_name(training.device)
    dtype = str(training.precision.dtype or torch.float32).removeprefix("torch.")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    transform, anchors = training.model.transform, training.model.rpn.anchor_generator
    fit = anchor_fit(train_set, anchors, transform.min_size[-1], transform.max_size)
    pixels = "".join(
        f"\nchannel {c}: mean {mean:.6g}, standard deviation {std:.6g}"
        for c, (mean, std) in enumerate(zip(transform.image_mean, transform.image_std))
        if settings.channels
    )
    averaged = "" if training.ema is None else f"\n{training.ema.describe()}"
    print(
        f"code: {code_version()}; {versions}\n"
        f"device: {training.device} ({device}), processes: {world_size()}, {dtype}\n"
        f"network: {trained / 1e6:.1f} million of {total / 1e6:.1f} million parameters are trained\n"
        f"images: {len(train_set)}, for validation {val_images}; {per_step} per step, {state.steps_per_epoch} "
        f"steps per epoch, epochs: {settings.epochs}; {settings.opt}, learning rate {settings.lr:g}\n"
        f"anchors: {anchors.describe()}; {fit or 'no objects'}{pixels}{averaged}",
        flush=True,
    )


def code_version() -> str:
    """Return the commit of the code, with ", changed" after it if files differ; "unknown" outside a git checkout."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=, changed"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
