"""Create, read and restore checkpoints, which hold tensors and plain values only."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision

from network_files import MaskRCNN
from train_utils.classes import ClassTable
from train_utils.distributed import broadcast_from_main, report_activity
from train_utils.errors import InputError
from train_utils.models import ModelConfig
from train_utils.optimizer import create_momentum
from train_utils.options import TrainSettings
from train_utils.step_results import require_finite_weights
from train_utils.training_state import Progress, RunState, Training
from train_utils.weight_files.weights import THRESHOLDS, check_finite, load_weights, read_weight_file, state_dict_of

NEEDED = {"model", "optimizer", "lr_scheduler", "epoch", "steps_per_epoch", "progress", "args", "model_config"}
NUMBERS = ("epoch", "steps_per_epoch")  # the other entries are dicts
TABLES: dict[str, Any] = {"class_names": str, "category_ids": int, THRESHOLDS: int | float}  # by label


class Checkpoint(NamedTuple):
    path: Path
    content: dict[str, Any]


def write_checkpoint(state: RunState, config: ModelConfig, classes: ClassTable, facts: dict[str, Any]) -> None:
    """Write a checkpoint of a run; all processes call this together.

    Args:
        facts: see `check_settings`.

    Raises:
        RunEnded: the weights are not finite.
    """
    training, run, step = state.training, state.run, state.training.progress.step
    report_activity("writing a checkpoint", step)
    require_finite_weights(training.model, step)
    if run.writes:
        content = checkpoint_of(state, config, classes, facts)
        run.save_checkpoint(content, last=step == state.last_step, keep=state.settings.keep)
    run.unsaved_since = broadcast_from_main(run.unsaved_since)  # all processes try again at the same step


def checkpoint_of(state: RunState, config: ModelConfig, classes: ClassTable, facts: dict[str, Any]) -> dict[str, Any]:
    """Collect the content of a checkpoint, from which a run resumes and a network is evaluated or predicts."""
    training, progress = state.training, state.training.progress
    content = {
        **weights_with_classes(training.model, config, classes),
        "optimizer": training.optimizer.state_dict(),
        "lr_scheduler": {"last_epoch": progress.step, "_last_lr": [progress.lr]},  # for readers; nothing here needs it
        "epoch": max(progress.step - 1, 0) // state.steps_per_epoch,
        "steps_per_epoch": state.steps_per_epoch,
        "progress": vars(progress).copy(),
        "args": state.settings.to_plain(),
        "facts": facts,
        "computed_with": arithmetic(training.device),
    }
    if training.ema is not None:
        content["model_ema"] = training.ema.state_dict()
    if training.scaler.is_enabled():
        content["scaler"] = training.scaler.state_dict()
    return content


def weights_with_classes(model: MaskRCNN, config: ModelConfig, classes: ClassTable) -> dict[str, Any]:
    """Return the part of a checkpoint that validation.py and predict.py need."""
    return {
        "model": model.state_dict(),
        "model_config": config.to_plain(),
        "class_names": classes.names,
        "category_ids": classes.category_ids,
    }


def arithmetic(device: torch.device) -> dict[str, Any]:
    """Return what affects the last bits of a sum besides the seed: threads, processor or GPU, and versions."""
    return {
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def processor_name() -> str:
    """Return the processor's model and instruction set, as far as the system reports them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a run's checkpoint.

    Raises:
        InputError: the file is broken, is not the checkpoint of a run, or has weights that are not finite.
    """
    content = read_weight_file(path)
    missing = sorted(NEEDED - set(content))
    if missing:
        raise InputError(
            f"{path}: lacks {', '.join(missing)}, so a run cannot resume from it; "
            "to start from its weights, use --pretrain"
        )
    content |= {"args": TrainSettings.stored_in(check_entries(content, path), path)}
    ModelConfig.stored_in(content, path)
    if min(content["steps_per_epoch"] - 1, content["epoch"], content["progress"].get("step", -1)) < 0:
        raise InputError(f"{path}: broken: invalid progress")
    for key in {"model", "model_ema"} & set(content):
        check_finite(state_dict_of({"model": content[key]}, path), path)
    return Checkpoint(path, content)


def check_entries(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Check the types of a checkpoint's plain entries, as far as there are any, and return its args.

    Raises:
        InputError: an entry is of another type than a run writes.
    """
    found = [key for key in (*NEEDED, "facts", "computed_with") if key in content]
    invalid = [key for key in found if not isinstance(content[key], int if key in NUMBERS else dict)]
    tables: dict[str, Any] = {name: (content.get(name, {}), int, kind) for name, kind in TABLES.items()}
    if "facts" not in invalid:
        tables["held_out"] = content.get("facts", {}).get("held_out") or {}, str, str | int
    for name, (table, key, kind) in tables.items():
        if not isinstance(table, dict) or not all(isinstance(k, key) and isinstance(table[k], kind) for k in table):
            invalid.append(name)
    if invalid:
        raise InputError(f"{path}: broken: invalid {', '.join(sorted(invalid))}")
    return content.get("args", {})


def restore(checkpoint: Checkpoint, training: Training, steps_per_epoch: int, force: bool) -> None:
    """Load a checkpoint's state into a run and free it. Learning rate and decay stay those of the command line.

    Args:
        force: if the number of steps per epoch has changed, resume at the same fraction of the epoch.

    Raises:
        InputError: the number of steps per epoch has changed and `force` is off, or the state does not fit.
    """
    path, content = checkpoint
    if content["steps_per_epoch"] != steps_per_epoch and not force:
        raise InputError(
            f"{path}: was written by a run with {content['steps_per_epoch']} steps per epoch, this one has "
            f"{steps_per_epoch}; resume with the same data, batch size and number of processes, continue with --force, "
            "or start a new run from its weights with --pretrain"
        )
    weights = content.pop("model")
    averaged = content.pop("model_ema", weights)
    if training.ema is not None:
        load_weights(training.model, state_dict_of({"model": averaged}, path), path)
        training.ema.restart()
    load_weights(training.model, state_dict_of({"model": weights}, path), path)
    optimizer, progress = training.optimizer, training.progress
    try:
        stored, own = content.pop("optimizer"), optimizer.state_dict()["param_groups"]
        groups = [now | {"params": old["params"]} for now, old in zip(own, stored["param_groups"], strict=True)]
        optimizer.load_state_dict({"state": stored["state"], "param_groups": groups})
        if training.scaler.is_enabled() and "scaler" in content:
            training.scaler.load_state_dict(content["scaler"])
        for name, default in vars(Progress()).items():
            setattr(progress, name, content["progress"].get(name, default))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its optimizer state does not fit this run ({error})") from error
    create_momentum(optimizer)
    progress.step = progress.step * steps_per_epoch // content["steps_per_epoch"]
