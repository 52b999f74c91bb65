"""Which checkpoint a run goes on from, and whether it goes on as the same run."""
import platform
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torchvision

from train_utils.distributed import from_main, is_main, on_main
from train_utils.errors import InputError, warn
from train_utils.run.checkpoints import Checkpoint, read_checkpoint
from train_utils.run.run_folder import checkpoints

# What decides the weights that a run ends with; "data" and "processes" are facts, not options.
MEANING = (
    "data", "processes", "batch_size", "lr", "momentum", "weight_decay", "lr_steps", "lr_gamma", "seed", "amp",
    "min_size", "max_size", "rois_per_image", "proposals", "aspect_ratio_group_factor", "sync_bn",
)  # fmt: skip
# Not worth a word: what a resumed run is asked for, and what only the start of a new one looks at.
UNSAID = ("resume", "force", "overwrite", "output_dir", "start_epoch", "lr_step_size", "world_size", "dist_url")


def checkpoint_to_resume(args: Namespace) -> Checkpoint | None:
    """The checkpoint that `--resume` means: a file, or with `auto` the newest usable one in the output folder, if any.

    Raises:
        InputError: there is no such file, it is not a checkpoint of a run, or `auto` finds only unusable ones.
    """
    if not args.resume:
        return None
    path = args.resume if args.resume != "auto" else from_main(on_main(lambda: newest_usable(Path(args.output_dir))))
    if path is None:
        return None
    if is_main():
        print(f"going on from {path}", flush=True)
    return read_checkpoint(Path(path))


def newest_usable(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; newer ones that cannot are named and set aside."""
    refused = []
    for path in reversed(checkpoints(folder)):
        try:
            read_checkpoint(path)
        except InputError as error:
            refused.append((path, error))
            continue
        for broken, error in refused:
            aside = broken.with_name(broken.name + ".broken")
            broken.rename(aside)
            warn(f"{error}; set aside as {aside.name}, going on from {path}")
        return path
    if refused:
        names = "; ".join(str(error) for _, error in refused)
        raise InputError(f"--resume auto: no checkpoint in {folder} can be used ({names}); start anew with --overwrite")
    return None


def check_settings(checkpoint: Checkpoint, args: Namespace, facts: dict[str, Any]) -> None:
    """List the settings that are not the checkpoint's.

    Args:
        facts: `data`, what the training set holds, and `processes`, their number.

    Raises:
        InputError: a difference changes what the run means, and nobody said `--force`.
    """
    path, content = checkpoint
    before = content["args"] | content.get("facts", {})
    now = vars(args) | facts
    differences = {
        name: f"{name} {before[name]} -> {now[name]}"
        for name in now
        if name in before and plain(name, before[name]) != plain(name, now[name]) and name not in UNSAID
    }
    serious = [text for name, text in differences.items() if name in MEANING]
    if serious and not args.force:
        raise InputError(
            f"{path}: was written with other settings: {', '.join(serious)}; that is another run: "
            "leave these options out, or go on with --force"
        )
    if differences and is_main():
        print(f"{path}: going on with other settings: {', '.join(differences.values())}", flush=True)
    machine, computed_with = content.get("computed_with", {}), arithmetic(now["device"])
    others = [f"{name} {machine[name]} -> {value}" for name, value in computed_with.items()
              if name in machine and machine[name] != value]  # fmt: skip
    if others and is_main():
        warn(
            f"{path}: was computed with {', '.join(others)}; the run goes on, but its bits may differ from those of "
            "a run that was never stopped"
        )


def arithmetic(device: str) -> dict[str, Any]:
    """What decides the last bits of a sum besides the seed: threads, processor or GPU, and versions."""
    on_gpu = device.startswith("cuda")
    return {
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name() if on_gpu else processor_name(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def processor_name() -> str:
    """Model and instruction set, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def plain(name: str, value: Any) -> Any:
    """A value without what differs between the processes of one run."""
    return value.partition(":")[0] if name == "device" else value
