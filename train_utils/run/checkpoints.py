"""Choose, read, write and restore checkpoints, which hold tensors and plain values only."""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision

from train_utils.classes import ClassTable
from train_utils.distributed import broadcast_from_main, is_main, report_activity, run_on_main
from train_utils.errors import InputError, warn
from train_utils.models import ModelConfig, fits, stored_fields
from train_utils.optimizer import create_momentum
from train_utils.option_parsing import START
from train_utils.options import TrainSettings, result_settings
from train_utils.run.run_folder import checkpoints
from train_utils.step_results import require_finite_weights
from train_utils.training_state import Progress, RunState, Training
from train_utils.weight_files.weights import THRESHOLDS, check_finite, load_weights, read_weight_file, state_dict_of

# The entries of a checkpoint that resuming needs, then all entries, with their types.
NEEDED: dict[str, Any] = {"epoch": int, "steps_per_epoch": int}
NEEDED |= dict.fromkeys(("model", "optimizer", "lr_scheduler", "progress", "args", "model_config"), dict)
ENTRIES = NEEDED | {"class_names": dict[int, str], "category_ids": dict[int, int], THRESHOLDS: dict[int, float]}
ENTRIES |= {"facts": dict, "computed_with": dict}
FINGERPRINT = ("number of images", "image sizes or classes", "annotations or file names", "image files")  # its parts
RESULT_FACTS = ("data", "processes")  # facts that change the result, like options with the role RESULT
# Settings that the comparison ignores besides those with the role START: they do not change a resumed run's result.
IGNORED_SETTINGS = {"output_dir", "start_epoch", "lr_step_size", "world_size", "dist_url", "held_out"}


class Checkpoint(NamedTuple):
    path: Path
    content: dict[str, Any]


def checkpoint_to_resume(settings: TrainSettings) -> Checkpoint | None:
    """Read the checkpoint of `--resume`. `auto` means the newest usable checkpoint in --output-dir, or None."""
    path = settings.resume
    if path == "auto":
        path = broadcast_from_main(run_on_main(lambda: newest_usable(Path(settings.output_dir))))
    if not path:
        return None
    if is_main():
        print(f"resuming from {path}", flush=True)
    return read_checkpoint(Path(path))


def newest_usable(folder: Path) -> Path | None:
    """Return the newest readable checkpoint of a folder. Rename newer checkpoints that are unreadable, and warn."""
    refused = []
    for path in reversed(checkpoints(folder)):
        try:
            read_checkpoint(path)
        except InputError as error:
            refused.append((path, error))
            continue
        for broken, reason in refused:
            aside = broken.with_name(broken.name + ".broken")
            broken.rename(aside)
            warn(f"{reason}; set aside as {aside.name}, resuming from {path}")
        return path
    if refused:
        names = "; ".join(str(reason) for _, reason in refused)
        raise InputError(f"--resume auto: no checkpoint in {folder} can be used ({names}); start over with --overwrite")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a run's checkpoint. InputError if the file is broken, is no checkpoint, or has non-finite weights."""
    content = read_weight_file(path)
    if missing := sorted(NEEDED.keys() - content):
        raise InputError(
            f"{path}: lacks {', '.join(missing)}, so a run cannot resume from it; "
            "to start from its weights, use --pretrain"
        )
    content |= {"args": stored_settings(content, path)}
    ModelConfig.stored_in(content, path)
    if min(content["steps_per_epoch"] - 1, content["epoch"], content["progress"].get("step", -1)) < 0:
        raise InputError(f"{path}: broken: invalid progress")
    for key in {"model", "model_ema"} & set(content):
        check_finite(state_dict_of({"model": content[key]}, path), path)
    return Checkpoint(path, content)


def stored_settings(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings stored in a checkpoint. InputError names the checkpoint's entries that have a wrong type."""
    invalid = [name for name, kind in ENTRIES.items() if name in content and not fits(content[name], kind)]
    if not invalid and not fits(content.get("facts", {}).get("held_out"), dict[str, str | int] | None):
        invalid.append("held_out")
    if invalid:
        raise InputError(f"{path}: broken: invalid {', '.join(sorted(invalid))}")
    return stored_fields(TrainSettings, content, "args", path)


def write_checkpoint(state: RunState, config: ModelConfig, classes: ClassTable, facts: dict[str, Any]) -> None:
    """Write a checkpoint, for resuming and evaluation. All processes call this. Non-finite weights raise RunEnded."""
    training, run, progress = state.training, state.run, state.training.progress
    report_activity("writing a checkpoint", progress.step)
    require_finite_weights(training.model, progress.step)
    if run.writes:
        content = {
            "model": training.model.state_dict(),
            "model_config": config.to_plain(),
            "class_names": classes.names,
            "category_ids": classes.category_ids,
            "optimizer": training.optimizer.state_dict(),
            "lr_scheduler": {"last_epoch": progress.step, "_last_lr": [progress.lr]},  # for readers only
            "epoch": max(progress.step - 1, 0) // state.steps_per_epoch,
            "steps_per_epoch": state.steps_per_epoch,
            "progress": vars(progress).copy(),
            "args": state.settings.to_plain(),
            "facts": facts,
            "computed_with": computing_environment(training.device),
        }
        if training.ema is not None:
            content["model_ema"] = training.ema.state_dict()
        if training.scaler.is_enabled():
            content["scaler"] = training.scaler.state_dict()
        run.save_checkpoint(content, last=progress.step == state.last_step, keep=state.settings.keep)
    run.unsaved_since = broadcast_from_main(run.unsaved_since)  # all processes try again at the same step


def computing_environment(device: torch.device) -> dict[str, Any]:
    """Return the number of threads, processor or GPU, and library versions, which affect the last bits of results."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        name = re.search(r"^model name\s*:(.*)", cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else "", re.M)
        processor = name[1].strip() if name else platform.processor() or platform.machine()
        processor += f", {torch.backends.cpu.get_cpu_capability()}"
    return {
        "threads": torch.get_num_threads(),
        "processor": processor,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def resume(
    checkpoint: Checkpoint, training: Training, settings: TrainSettings, facts: dict[str, Any], steps_per_epoch: int
) -> None:
    """Load a checkpoint's state into a run. Learning rate and weight decay are taken from the settings instead.

    The loaded entries are removed from the checkpoint, to free memory. With --force, a run whose number of steps per
    epoch has changed resumes at the same fraction of the epoch. InputError as in `check_settings`, or if the state does
    not fit.
    """
    path, content = checkpoint
    if not settings.test_only:
        check_settings(checkpoint, settings, facts, training.device)
    if content["steps_per_epoch"] != steps_per_epoch and not (settings.force or settings.test_only):
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


def check_settings(
    checkpoint: Checkpoint, settings: TrainSettings, facts: dict[str, Any], device: torch.device
) -> None:
    """Print changed settings, and warn of other hardware. InputError if a change affects results, unless --force."""
    path, content = checkpoint
    before = content["args"] | content.get("facts", {})
    opt = before.get("opt", "sgd")
    if settings.opt != opt:
        raise InputError(
            f"{path}: was trained with --opt {opt}, which a resumed run cannot change; leave --opt out, or start a new "
            "run from its weights with --pretrain"
        )
    now = settings.to_plain() | facts
    ignored = IGNORED_SETTINGS | {each.name for each in settings.options() if each.metadata["role"] == START}
    compared = [name for name in now if name in before and name not in ignored]
    changed = [name for name in compared if not are_alike(name, before[name], now[name])]
    differences = {name: describe_change(name, before[name], now[name]) for name in changed}
    serious = [differences[name] for name in changed if name in {*result_settings(settings), *RESULT_FACTS}]
    if serious and not settings.force:
        raise InputError(
            f"{path}: was written with other settings, which change the result: {', '.join(serious)}; "
            "leave these options out, or continue with --force"
        )
    if differences and is_main():
        print(f"{path}: continuing with other settings: {', '.join(differences.values())}", flush=True)
    machine = content.get("computed_with", {})
    here = computing_environment(device)
    others = [f"{name} {machine[name]} -> {here[name]}" for name in here if machine.get(name, here[name]) != here[name]]
    if others and is_main():
        warn(
            f"{path}: was computed with {', '.join(others)}; the run continues, but its results may differ in the last "
            "bits from those of an uninterrupted run"
        )


def describe_change(name: str, before: Any, now: Any) -> str:
    if name not in ("data", "validation"):
        return f"{name} {before} -> {now}"
    changed = [part for part, a, b in zip(FINGERPRINT, before.split(", "), now.split(", ")) if a != b]
    return f"{'training' if name == 'data' else 'validation'} data (changed: {', '.join(changed)})"


def are_alike(name: str, before: Any, now: Any) -> bool:
    """Whether a setting has kept its value. A device's index is ignored, and older runs may lack parts of `data`."""
    if name == "device":
        return before.partition(":")[0] == now.partition(":")[0]
    return now.startswith(before) if name == "data" else before == now
