"""What a checkpoint holds, made and put back: tensors and plain values only."""
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from network_files import MaskRCNN
from train_utils.classes import ClassTable
from train_utils.engine import Progress
from train_utils.errors import InputError
from train_utils.models import ModelConfig
from train_utils.run_folder import newest_checkpoint
from train_utils.weights import load_weights, read_weight_file, state_dict_of


def make_checkpoint(
    model: MaskRCNN,
    optimizer: Optimizer,
    schedule: LambdaLR,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    epoch: int,
    steps_per_epoch: int,
    args: Namespace,
    config: ModelConfig,
    classes: ClassTable,
) -> dict[str, Any]:
    """All that a resumed run, an evaluation or a prediction needs."""
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": epoch,
        "steps_per_epoch": steps_per_epoch,
        "progress": vars(progress).copy(),
        "args": vars(args).copy(),
        "model_config": config.to_plain(),
        "class_names": classes.names,
        "category_ids": classes.category_ids,
    }
    if scaler.is_enabled():
        content["scaler"] = scaler.state_dict()
    return content


def checkpoint_to_resume(args: Namespace) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that `--resume` means: a file, or with `auto` the newest in the output folder, if any.

    Raises:
        InputError: there is no such file, or it is not a checkpoint of a run.
    """
    if not args.resume:
        return None
    path = newest_checkpoint(args.output_dir) if args.resume == "auto" else Path(args.resume)
    if path is None:
        return None
    content = read_weight_file(path)
    needed = {"model", "optimizer", "lr_scheduler", "epoch", "steps_per_epoch", "progress", "model_config"}
    missing = needed - set(content)
    if missing:
        raise InputError(
            f"{path}: lacks {', '.join(sorted(missing))}, so no run can go on from it; "
            "to start from its weights use --pretrain"
        )
    return path, content


def restore(
    checkpoint: tuple[Path, dict[str, Any]],
    model: MaskRCNN,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    steps_per_epoch: int,
) -> None:
    """Put a checkpoint's state into a run's objects; rates and decay stay as the command line has them.

    Raises:
        InputError: the checkpoint's epochs have another number of steps, or its state does not fit.
    """
    path, content = checkpoint
    if content["steps_per_epoch"] != steps_per_epoch:
        raise InputError(
            f"{path}: was written in a run of {content['steps_per_epoch']} steps an epoch, this one has "
            f"{steps_per_epoch}; resume with the same data, batch size and number of processes, "
            "or start a new run from its weights with --pretrain"
        )
    load_weights(model, state_dict_of(content, path), path)
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(content["optimizer"])
        if scaler.is_enabled() and "scaler" in content:
            scaler.load_state_dict(content["scaler"])
        for name in vars(progress):
            setattr(progress, name, content["progress"][name])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its optimizer state does not fit this run ({error})") from error
    for group, own in zip(optimizer.param_groups, settings):
        group.pop("initial_lr", None)
        group.update(own)
