"""Append lines to a run's files and read them back safely, mark its sheets as its own, and continue on a full disk."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataset_files.atomic_files import link_atomically, write_image
from train_utils.errors import warn

SHEET_MARK = "Mask R-CNN sheet of predictions"  # key of a text in the PNG file
TILE, EDGE, GREY = 320, 4, 32  # of unmarked sheets of earlier versions: two or four tiles in a row, with grey edges


class LineFile:
    """Append complete lines to a text file. Lines that did not fit on a full disk are written with the next one."""

    def __init__(self, path: Path):
        self.path = path
        self.waiting = b""

    def add(self, line: str) -> None:
        """Append a line; raise OSError if it could not be written yet."""
        self.waiting += line.encode("utf-8") + b"\n"
        self.write_waiting()

    def write_waiting(self) -> None:
        if not self.waiting:
            return
        with open(self.path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                written = file.write(self.waiting)
                if written < len(self.waiting):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(end)
                raise
        self.waiting = b""

    def sync(self) -> None:
        """Sync the file to disk, so that the lines of all steps before a checkpoint are there when it is."""
        self.write_waiting()
        if self.path.is_file():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())


def valid_lines(path: Path) -> list[str]:
    """Return the complete lines of a results file or a log; if other lines are invalid, keep the file and warn.

    A power failure may leave a partial line or zeros, and an editor anything.
    """
    content = path.read_bytes() if path.is_file() else b""
    lines = content[: content.rfind(b"\n") + 1].decode("utf-8", "replace").split("\n")[:-1]
    invalid = [number for number, line in enumerate(lines, 1) if not is_valid(line)]
    if invalid:
        aside = path.with_name(path.name + ".broken")
        link_atomically(path, aside)
        warn(f"{path}: dropped {len(invalid)} lines that no run writes, first line {invalid[0]}; see {aside.name}")
    return [line for number, line in enumerate(lines, 1) if number not in invalid]


def is_valid(line: str) -> bool:
    """Whether a line is valid: a log entry, which has epoch and step, or the results of an epoch."""
    try:
        if line.startswith("{"):
            entry = json.loads(line)
            return all(isinstance(entry.get(name), int) for name in ("epoch", "step"))
        first, *numbers = line.split()
        return first.startswith("epoch:") and int(first[6:]) >= 0 and len([float(number) for number in numbers]) > 1
    except ValueError:
        return False


def write_sheet(path: Path, sheet: Image.Image) -> None:
    """Write a sheet of predictions and mark it, so that runs delete only their own sheets."""
    marks = PngInfo()
    marks.add_text(SHEET_MARK, "")
    write_image(path, sheet, pnginfo=marks)


def is_sheet(path: Path) -> bool:
    """Whether a run drew an image: it is marked, or has the form of the sheets that earlier versions drew."""
    try:
        with Image.open(path) as image:
            columns, rows = image.width // TILE, image.height // TILE
            if SHEET_MARK in image.info:
                return True
            if image.mode != "RGB" or image.size != (columns * TILE, rows * TILE) or columns not in (2, 4) or rows > 4:
                return False
            tiles = np.asarray(image).reshape(rows, TILE, columns, TILE, 3).transpose(1, 3, 0, 2, 4)
    except (OSError, SyntaxError, Image.DecompressionBombError):  # not an image
        return False
    is_edge = np.ones((TILE, TILE), dtype=bool)
    is_edge[EDGE:-EDGE, EDGE:-EDGE] = False
    return bool((tiles[is_edge] == GREY).all())


def is_run_settings(path: Path) -> bool:
    """Whether a file holds the settings of a run, which always include --rois-per-image."""
    try:
        return "rois_per_image" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


@contextmanager
def trying_again_later(path: Path) -> Iterator[None]:
    """Context for files that the run can do without for now: on a full disk, warn and continue."""
    try:
        yield
    except OSError as error:
        warn(f"{path} could not be written ({error.strerror}); the run continues and will try again")
