"""Choose the checkpoint that a run resumes from, and check that it continues as the same run."""

from pathlib import Path
from typing import Any

from train_utils.device import choose_device
from train_utils.distributed import broadcast_from_main, is_main, run_on_main
from train_utils.errors import InputError, warn
from train_utils.option_parsing import START
from train_utils.options import TrainSettings, result_settings
from train_utils.run.checkpoints import Checkpoint, arithmetic, read_checkpoint, restore
from train_utils.run.run_folder import checkpoints
from train_utils.training_state import Training

RESULT_FACTS = ("data", "processes")  # they change the result too, but are not options
# Ignored besides the options of one start: they matter only at the start of a run, or not to its result.
IGNORED_SETTINGS = {"output_dir", "start_epoch", "lr_step_size", "world_size", "dist_url", "held_out"}


def checkpoint_to_resume(settings: TrainSettings) -> Checkpoint | None:
    """Read the checkpoint that `--resume` names, or for `auto` the newest usable one in the output folder, if any.

    Raises:
        InputError: the file is missing or is not the checkpoint of a run, or `auto` finds only unusable ones.
    """
    if not settings.resume:
        return None
    path: str | Path | None = settings.resume
    if settings.resume == "auto":
        path = broadcast_from_main(run_on_main(lambda: newest_usable(Path(settings.output_dir))))
    if path is None:
        return None
    if is_main():
        print(f"resuming from {path}", flush=True)
    return read_checkpoint(Path(path))


def newest_usable(folder: Path) -> Path | None:
    """Return the newest readable checkpoint. Rename unreadable newer ones, with a warning."""
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


def resume(
    checkpoint: Checkpoint, training: Training, settings: TrainSettings, facts: dict[str, Any], steps_per_epoch: int
) -> None:
    """Check that the settings match the checkpoint's (see `check_settings`), and restore its state."""
    if not settings.test_only:
        check_settings(checkpoint, settings, facts)
    restore(checkpoint, training, steps_per_epoch, settings.force or settings.test_only)


def check_settings(checkpoint: Checkpoint, settings: TrainSettings, facts: dict[str, Any]) -> None:
    """Print the settings that differ from the checkpoint's, and warn if hardware or versions differ.

    Args:
        facts: `data`, the fingerprint of the training set, and `processes`, the number of processes.

    Raises:
        InputError: the optimizer differs, or another setting that changes the result does and `--force` is not given.
    """
    path, content = checkpoint
    before = content["args"] | content.get("facts", {})
    opt = before.get("opt", "sgd")
    if settings.opt != opt:
        raise InputError(
            f"{path}: was trained with --opt {opt}, which a resumed run cannot change; leave --opt out, or start a new "
            "run from its weights with --pretrain"
        )
    now = settings.to_plain() | facts
    ignored = IGNORED_SETTINGS | {each.name for each in settings.options() if each.metadata["option"].role == START}
    differences = {
        name: f"{name} {before[name]} -> {now[name]}"
        for name in now
        if name in before and name not in ignored and not are_alike(name, before[name], now[name])
    }
    changing_result = {*result_settings(settings), *RESULT_FACTS}
    serious = [text for name, text in differences.items() if name in changing_result]
    if serious and not settings.force:
        raise InputError(
            f"{path}: was written with other settings, which change the result: {', '.join(serious)}; "
            "leave these options out, or continue with --force"
        )
    if differences and is_main():
        print(f"{path}: continuing with other settings: {', '.join(differences.values())}", flush=True)
    machine = content.get("computed_with", {})
    others = [
        f"{name} {machine[name]} -> {value}"
        for name, value in arithmetic(choose_device(settings.device)).items()
        if machine.get(name, value) != value
    ]
    if others and is_main():
        warn(
            f"{path}: was computed with {', '.join(others)}; the run continues, but its results may differ in the last "
            "bits from those of an uninterrupted run"
        )


def are_alike(name: str, before: Any, now: Any) -> bool:
    """Compare a setting, ignoring the device index and the parts of the data fingerprint that older runs lack."""
    if name == "device":
        return before.partition(":")[0] == now.partition(":")[0]
    return now.startswith(before) if name == "data" else before == now
