"""Run folder (--output-dir): checkpoints, results files with one line per epoch, log and curves.

A run may be killed at any moment. When it is resumed, `open` rolls the folder back to its state at the checkpoint, so
that nothing is lost or written twice. No run overwrites another.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataset_files.atomic_files import TEMPORARY, link_atomically, replacing, write_atomically, write_image
from train_utils.distributed import broadcast_from_main
from train_utils.errors import InputError, reading_input
from train_utils.metrics.coco_evaluation import Metrics, best_thresholds
from train_utils.options import TrainSettings
from train_utils.run.safe_files import LineFile, lock_folder, trying_again_later, valid_lines
from train_utils.visual.curves import plot_loss_and_lr, plot_map
from train_utils.weight_files.weights import read_weight_file, write_thresholds

RESULTS = {"bbox": "det_results.txt", "segm": "seg_results.txt"}
LOG, SETTINGS = "log.jsonl", "args.json"
LOSS = "loss"  # key of training steps in the log; lines of the validation loss have other keys
EVENTS = "tensorboard"  # TensorBoard's folder
LOSS_CURVE, MAP_CURVE = "loss_and_lr.png", "mAP.png"
PREDICTIONS = re.compile(r"predictions_(\d+)\.png$")
SHEET_MARK = "Mask R-CNN sheet of predictions"  # key of a text in these PNG files, so that runs delete only their own
BEST = "model_best.pth"
# model_7.pth: written at the end of epoch 7, or where the run ended within it.
# model_7_step1234.pth: written within epoch 7, after 1234 steps in total.
CHECKPOINT = re.compile(r"model_(\d+)(?:_step(\d+))?\.pth$")
INSIDE_KEPT = 2  # how many checkpoints within an epoch to keep until the one at its end is written

Resumed = tuple[Path, dict[str, Any]] | None


class RunFolder:
    """Read and write the files of one run. Only the main process writes; elsewhere the writing methods do nothing."""

    def __init__(self, path: str | Path, writes: bool = True, lock: TextIO | None = None):
        self.path, self.writes, self.lock = Path(path), writes, lock  # the lock is held while this object lives
        self.path.mkdir(parents=True, exist_ok=True)
        self.log_file = LineFile(self.path / LOG)
        self.results: dict[str, list[str]] = {kind: [] for kind in RESULTS}  # the lines of the results files
        self.unsaved_since: int | None = None  # the step whose checkpoint could not be written

    @classmethod
    def open(cls, settings: TrainSettings, resumed: Resumed, continues: bool, lock: TextIO | None) -> "RunFolder":
        """Open the folder of `--output-dir`, on the main process, for a new run or a resumed one.

        InputError if the folder holds a run, and neither --resume nor --overwrite was given. `continues`: whether the
        run has steps left to do. `lock`: the lock on the folder, if it is locked already.
        """
        folder = cls(settings.output_dir, lock=lock or lock_folder(Path(settings.output_dir)))
        for file in folder.path.iterdir():
            if TEMPORARY.fullmatch(file.name):
                file.unlink(missing_ok=True)  # a killed run left it behind
        names, patterns = (*RESULTS.values(), LOG, SETTINGS, LOSS_CURVE, MAP_CURVE, BEST), (CHECKPOINT, PREDICTIONS)
        files = sorted(folder.path.iterdir())
        others = [f for f in files if f.name in names or any(pattern.match(f.name) for pattern in patterns)]
        inside = folder.own_path(resumed[0]) if resumed is not None else None
        # With auto and no checkpoint, log and settings come from a run stopped before its first checkpoint.
        never_began = settings.resume == "auto" and all(f.name in (LOG, SETTINGS) for f in others)
        if resumed is not None and inside is not None:
            folder.roll_back_to(inside, resumed[1], continues, settings.overwrite)
        elif others and (settings.overwrite or never_began):
            folder.require_own(others)
            for file in [*others, *(folder.path / EVENTS).glob("events.out.tfevents.*")]:
                file.unlink()
        elif others:
            found, remedy = f"holds a run ({others[0].name})", "--resume auto"
            if settings.resume == "auto":
                found, remedy = "holds results, but no checkpoint of an epoch", f"--resume FILE, such as {BEST}"
            raise InputError(
                f"{folder.path} {found}: continue it with {remedy}, choose another --output-dir, or start over "
                "with --overwrite"
            )
        plain = json.dumps(settings.to_plain(), indent=2, ensure_ascii=False)
        write_atomically(folder.path / SETTINGS, plain + "\n")
        folder.results = {kind: folder.lines(name) for kind, name in RESULTS.items()}
        if all(folder.results.values()):
            folder.draw_curves()  # a killed run may not have drawn its last epoch
        return folder

    def require_own(self, files: Sequence[Path]) -> None:
        """Raise InputError if any of the files was not written by a run; --overwrite must not delete such files."""
        is_run, is_drawn = False, all(self.lines(name) for name in RESULTS.values())
        with suppress(OSError, ValueError, TypeError, RecursionError):
            is_run = "rois_per_image" in json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        for file in files:
            is_own = is_drawn if file.name in (LOSS_CURVE, MAP_CURVE) else is_run
            if not is_own or PREDICTIONS.match(file.name) and not is_sheet(file):
                raise InputError(f"{file}: was not written by a run, so --overwrite does not delete it; move it away")

    def own_path(self, checkpoint: Path) -> Path | None:
        """Return the path of a checkpoint inside this folder, after following links; None if it lies elsewhere."""
        paths = checkpoint, checkpoint.resolve()
        return next((self.path / p.name for p in paths if p.parent.resolve() == self.path.resolve()), None)

    def sheets(self) -> dict[int, Path]:
        """Map epochs, in ascending order, to their sheets of predictions. Files that no run wrote are left out."""
        matches = [(PREDICTIONS.match(file.name), file) for file in self.path.iterdir()]
        return dict(sorted((int(match[1]), file) for match, file in matches if match and is_sheet(file)))

    def lines(self, name: str) -> list[str]:
        return valid_lines(self.path / name)

    def roll_back_to(self, path: Path, content: Mapping[str, Any], continues: bool, overwrite: bool) -> None:
        """Delete everything written after a checkpoint. InputError if newer checkpoints exist, unless `overwrite`."""
        step, epoch = content["progress"]["step"], content["epoch"]
        print_freq = content["args"].get("print_freq") or 1
        inside = continues and step % content["steps_per_epoch"] != 0
        own = self.path / (f"model_{epoch}_step{step}.pth" if inside else f"model_{epoch}.pth")
        newer = [file for file in checkpoints(self.path) if age(file) > age(own) and file != path]
        if newer and not overwrite:
            names = ", ".join(file.name for file in newer)
            raise InputError(
                f"--resume {path}: is of step {step}; {self.path} holds newer checkpoints ({names}), which would be "
                "deleted; use --resume auto (which goes by names), another --output-dir, or --overwrite"
            )
        if not CHECKPOINT.match(path.name):
            link_atomically(path, own)
        elif inside:
            path.rename(own)
        for file in newer:
            file.unlink()

        evaluated = epoch + (not inside)  # epochs before this one keep their results
        complete = set(range(evaluated))  # epochs with lines in both files: a killed run may have written only one
        for name in RESULTS.values():
            kept = [line for line in self.lines(name) if epoch_of(line) < evaluated]
            complete &= set(map(epoch_of, kept))
            self.rewrite(name, kept)
        for drawn, file in self.sheets().items():
            if drawn >= evaluated:
                file.unlink()
        logged = [(json.loads(line), line) for line in self.lines(LOG)]
        stays = step if inside and step % print_freq else step + 1  # drop a step logged only because a run ended there
        logged = [(entry, line) for entry, line in logged if LOSS in entry or entry["epoch"] in complete]
        self.rewrite(LOG, [line for entry, line in logged if entry["step"] < stays])

        best, best_file, stored = best_epoch(self.lines(RESULTS["segm"])), self.path / BEST, None
        if best_file.exists():
            with suppress(InputError):  # broken
                stored = read_weight_file(best_file).get("epoch")
            if stored != best:
                best_file.unlink()
                self.mark_best(best)

    def rewrite(self, name: str, lines: Sequence[str]) -> None:
        if lines or (self.path / name).is_file():
            write_atomically(self.path / name, "".join(line + "\n" for line in lines))

    def log(self, entry: Mapping[str, Any]) -> None:
        if self.writes:
            with trying_again_later(self.log_file.path):
                self.log_file.write(json.dumps(dict(entry)))

    def has_stalled(self, epochs: int | None) -> bool:
        """Whether mask AP has not improved for `epochs` epochs (None: never). All processes get the same answer."""
        lines = self.results["segm"]
        best = best_epoch(lines)
        return epochs is not None and broadcast_from_main(best is not None and epoch_of(lines[-1]) - best >= epochs)

    def lacks_results(self, epoch: int) -> bool:
        """Whether an epoch's line is missing in a results file. All processes get the same answer."""
        return broadcast_from_main(any(epoch not in map(epoch_of, lines) for lines in self.results.values()))

    def write_results(self, epoch: int, metrics: Mapping[str, Metrics], mean_loss: float, lr: float) -> None:
        """Write an epoch's line into both results files, and keep the best epoch's checkpoint as model_best.pth."""
        if not self.writes:
            return
        for kind, lines in self.results.items():
            numbers = [f"{value:.4f}" for value in [*metrics[kind].stats, mean_loss]] + [f"{lr:.6f}"]
            others = [line for line in lines if epoch_of(line) != epoch]
            lines[:] = [*others, "  ".join([f"epoch:{epoch}", *numbers])]
        # Before the results files: a resumed run takes a line there to mean that the link exists.
        if best_epoch(self.results["segm"]) == epoch:
            self.mark_best(epoch, best_thresholds(metrics))
        for kind, name in RESULTS.items():
            with trying_again_later(self.path / name):
                self.rewrite(name, self.results[kind])

    def write_predictions(self, epoch: int, draw: Callable[[], Image.Image | None]) -> None:
        """Draw and write an epoch's sheet of predictions, if the epoch has results and no sheet yet."""
        path = self.path / f"predictions_{epoch}.png"
        if not self.writes or path.exists() or epoch not in map(epoch_of, self.results["segm"]):
            return
        with trying_again_later(path):
            if (sheet := draw()) is not None:
                mark = PngInfo()
                mark.add_text(SHEET_MARK, "")
                write_image(path, sheet, pnginfo=mark)

    def mark_best(self, epoch: int | None, thresholds: Mapping[int, float] = {}) -> None:
        if of_epoch := [file for file in checkpoints(self.path) if age(file)[0] == epoch]:
            with trying_again_later(self.path / BEST):
                write_thresholds(of_epoch[-1], thresholds, self.path / BEST)

    def draw_curves(self) -> None:
        if not self.writes:
            return
        entries = [json.loads(line) for line in self.lines(LOG)]
        steps = [entry for entry in entries if LOSS in entry]
        validation = {entry["step"]: entry["val_loss"] for entry in entries if "val_loss" in entry}
        box, mask = ({epoch_of(line): line.split() for line in lines} for lines in self.results.values())
        epochs = [epoch for epoch in box if epoch in mask]  # a killed run may have written only one file's line
        ends = {s["epoch"]: s["step"] for s in steps if s["epoch"] in epochs}
        losses, rates, numbers = ([s[name] for s in steps] for name in ("loss", "lr", "step"))
        with trying_again_later(self.path / LOSS_CURVE):
            plot_loss_and_lr(losses, rates, self.path / LOSS_CURVE, numbers, ends, validation)
            ap, ap50 = ([[float(found[epoch][i]) for epoch in epochs] for found in (box, mask)] for i in (1, 2))
            plot_map(epochs, ap[0], ap[1], self.path / MAP_CURVE, ap50[0], ap50[1])

    def require_saved(self) -> None:
        """Raise InputError on all processes if the last checkpoint could not be written."""
        if (step := broadcast_from_main(self.unsaved_since)) is not None:
            raise InputError(
                f"{self.path}: the checkpoint of step {step} could not be written; free some disk space and continue "
                "from the one before it with --resume auto"
            )

    def save_checkpoint(self, content: Mapping[str, Any], last: bool, keep: int | None) -> None:
        """Write model_{epoch}.pth, or within an epoch model_{epoch}_step{step}.pth, and delete old checkpoints.

        On a full disk, keep the old checkpoints and store the step as `unsaved_since`. `last`: the run ends here, which
        counts as the end of the epoch. `keep`: the number of checkpoints to keep; None keeps one per finished epoch.
        """
        step, epoch = content["progress"]["step"], content["epoch"]
        finished = last or step % content["steps_per_epoch"] == 0
        path = self.path / (f"model_{epoch}.pth" if finished else f"model_{epoch}_step{step}.pth")
        self.unsaved_since = step
        with trying_again_later(path):
            self.log_file.write(sync=True)  # the log must reach at least as far as the checkpoint
            with replacing(path) as file:
                torch.save(dict(content), file)
            self.unsaved_since = None
            self.drop_old_checkpoints(keep)

    def drop_old_checkpoints(self, keep: int | None) -> None:
        files = checkpoints(self.path)
        inside = [file for file in files if age(file)[1] < math.inf]
        done = max([age(file) for file in files if file not in inside], default=(-1, 0))
        old = [file for file in inside if age(file) < done] + inside[:-INSIDE_KEPT]
        old += files[:-keep] if keep else []
        for file in set(old):
            file.unlink(missing_ok=True)  # several processes that ran out of memory may do this at once

    def finish(self, patience: int | None = None) -> None:
        """Write what a full disk delayed, and print what to do next. `patience` is None unless it ended the run."""
        self.require_saved()
        if not self.writes:
            return
        with reading_input():
            self.log_file.write()
            for kind, name in RESULTS.items():
                self.rewrite(name, self.results[kind])
        if patience is not None:
            print(f"ended before its last epoch: mask AP has not risen for {patience} epochs (--patience)")
        checkpoint = next(reversed(checkpoints(self.path)), None)
        box, mask, ap, loss = (self.path / name for name in (*RESULTS.values(), MAP_CURVE, LOSS_CURVE))
        print(
            f"done: results in {box} and {mask}, curves in {ap} and {loss}, weights in {checkpoint}\n"
            f"next: python validation.py --weights-path {checkpoint}\n"
            f"      python predict.py --weights-path {checkpoint} --img-path photo.jpg",
            flush=True,
        )


def is_sheet(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return SHEET_MARK in image.info
    except (OSError, SyntaxError, Image.DecompressionBombError):  # not an image
        return False


def checkpoints(folder: str | Path) -> list[Path]:
    """List a run's checkpoints, oldest first."""
    folder = Path(folder)
    files = [f for f in folder.iterdir() if CHECKPOINT.match(f.name)] if folder.is_dir() else []
    return sorted(files, key=age)


def age(path: Path) -> tuple[int, float]:
    """Return a checkpoint's epoch and step, by which checkpoints are sorted; at an epoch's end, step is infinity."""
    epoch, *step = map(int, re.findall(r"\d+", path.name))
    return epoch, step[0] if step else math.inf


def epoch_of(line: str) -> int:
    return int(line.split()[0].removeprefix("epoch:"))


def best_epoch(mask_results: Sequence[str]) -> int | None:
    """Return the epoch with the highest mask AP in the lines of a results file; the earliest one in a tie."""
    return epoch_of(max(mask_results, key=lambda line: float(line.split()[1]))) if mask_results else None
