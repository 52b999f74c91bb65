"""What a run leaves in --output-dir: checkpoints, results a line an epoch, a log, curves; never over another run's."""
import json
import os
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from train_utils.coco_evaluation import Metrics
from train_utils.curves import plot_loss_and_lr, plot_map
from train_utils.errors import InputError, reading_input

RESULTS = {"bbox": "det_results.txt", "segm": "seg_results.txt"}
LOG, ARGUMENTS = "log.jsonl", "args.json"
LOSS_CURVE, MAP_CURVE = "loss_and_lr.png", "mAP.png"
CHECKPOINT = re.compile(r"model_(\d+)\.pth$")


class RunFolder:
    """The files of one run; `open` makes or reopens it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def open(cls, args: Namespace, resumed: tuple[Path, dict[str, Any]] | None) -> "RunFolder":
        """The folder of `--output-dir`, for a new run or a resumed one.

        Raises:
            InputError: the folder holds a run and nobody said what to do with it.
        """
        with reading_input():
            folder = cls(args.output_dir)
        others = folder.files_of_a_run()
        goes_on = resumed is not None and resumed[0].resolve().parent == folder.path.resolve()
        # With auto and no checkpoint, log and arguments are those of a run that was stopped before its first one.
        never_began = args.resume == "auto" and all(f.name in (LOG, ARGUMENTS) for f in others)
        if goes_on:
            folder.forget_after(resumed[1]["progress"]["step"], resumed[1]["epoch"])
        elif args.overwrite or never_began:
            for file in others:
                file.unlink()
        elif others:
            raise InputError(
                f"{folder.path} holds a run ({others[0].name}): go on with --resume auto, choose another "
                "--output-dir, or start anew with --overwrite"
            )
        folder.write_arguments(args)
        return folder

    def files_of_a_run(self) -> list[Path]:
        names = [*RESULTS.values(), LOG, ARGUMENTS, LOSS_CURVE, MAP_CURVE]
        return [f for f in sorted(self.path.iterdir()) if f.name in names or CHECKPOINT.match(f.name)]

    def forget_after(self, step: int, epoch: int) -> None:
        """Drop log lines after a step, results and checkpoints after an epoch: the resumed run makes them again."""
        self.rewrite(LOG, lambda line: json.loads(line)["step"] <= step)
        for name in RESULTS.values():
            self.rewrite(name, lambda line: epoch_of(line) <= epoch)
        for file in checkpoints(self.path):
            if epoch_of_checkpoint(file) > epoch:
                file.unlink()

    def rewrite(self, name: str, keep) -> None:
        file = self.path / name
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            write_atomically(file, "".join(line for line in lines if line.endswith("\n") and keep(line)))

    def write_arguments(self, args: Namespace) -> None:
        write_atomically(self.path / ARGUMENTS, json.dumps(vars(args), indent=2, ensure_ascii=False) + "\n")

    def log(self, entry: Mapping[str, Any]) -> None:
        """Add a printed step to the log, as a JSON line."""
        with open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(entry)) + "\n")

    def has_results(self, epoch: int) -> bool:
        return all(epoch in [epoch_of(line) for line in self.result_lines(kind)] for kind in RESULTS)

    def write_results(self, epoch: int, metrics: Mapping[str, Metrics], mean_loss: float, lr: float) -> None:
        """Add an epoch's line to both results files; takes the place of one that is there already."""
        for kind, name in RESULTS.items():
            self.rewrite(name, lambda line: epoch_of(line) != epoch)
            numbers = [f"{value:.4f}" for value in [*metrics[kind].stats, mean_loss]] + [f"{lr:.6f}"]
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write("  ".join([f"epoch:{epoch}", *numbers]) + "\n")

    def result_lines(self, kind: str) -> list[str]:
        file = self.path / RESULTS[kind]
        return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []

    def draw_curves(self) -> None:
        log = self.path / LOG
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        steps = [json.loads(line) for line in lines]
        plot_loss_and_lr([s["loss"] for s in steps], [s["lr"] for s in steps], self.path / LOSS_CURVE)
        box, mask = ([line.split() for line in self.result_lines(kind)] for kind in RESULTS)
        plot_map(
            [epoch_of(columns[0]) for columns in box],
            [float(columns[1]) for columns in box],
            [float(columns[1]) for columns in mask],
            self.path / MAP_CURVE,
            [float(columns[2]) for columns in box],
            [float(columns[2]) for columns in mask],
        )

    def say_what_next(self) -> None:
        checkpoint = newest_checkpoint(self.path)
        print(
            f"done: results in {self.path / RESULTS['bbox']} and {self.path / RESULTS['segm']}, "
            f"curves in {self.path / MAP_CURVE} and {self.path / LOSS_CURVE}, weights in {checkpoint}\n"
            f"next: python validation.py --weights-path {checkpoint}\n"
            f"      python predict.py --weights-path {checkpoint} --img-path PICTURE",
            flush=True,
        )

    def save_checkpoint(self, epoch: int, content: Mapping[str, Any], keep: int | None) -> None:
        """Write model_{epoch}.pth so that a crash leaves either the old file or the new one; then drop the oldest.

        Args:
            keep: how many checkpoints stay; None for all.
        """
        path = self.path / f"model_{epoch}.pth"
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for old in checkpoints(self.path)[:-keep] if keep else []:
            old.unlink()


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the highest epoch in a run's folder; None if there is none."""
    return (checkpoints(folder) or [None])[-1]


def checkpoints(folder: str | Path) -> list[Path]:
    """A run's checkpoints, by epoch."""
    folder = Path(folder)
    files = [f for f in folder.iterdir() if CHECKPOINT.match(f.name)] if folder.is_dir() else []
    return sorted(files, key=epoch_of_checkpoint)


def epoch_of_checkpoint(path: Path) -> int:
    return int(CHECKPOINT.match(path.name).group(1))


def epoch_of(line: str) -> int:
    """The epoch of a results line."""
    return int(line.split()[0].removeprefix("epoch:"))


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
