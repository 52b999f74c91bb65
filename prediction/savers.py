"""Write predictions in the formats of `--save`, each for the tool that reads it.

A saver gets every image's prediction as soon as it is there, in any order and from any thread, and `close` at the end.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from dataset_files.atomic_files import write_atomically
from prediction.dataset_savers import CocoSaver, LabelmeSaver
from prediction.prediction import Prediction
from prediction.results_saver import ResultsSaver
from prediction.sources import Source
from train_utils.classes import ClassTable
from train_utils.errors import InputError

MOST_INSTANCES = 65535  # values of a 16-bit mask


class Saver(Protocol):
    def add(self, number: int, source: Source, prediction: Prediction) -> None:
        """Write or keep the prediction of image `number`, counted from 0."""

    def close(self) -> str:
        """Write what was kept, and return a line that says what is where."""


def open_savers(
    formats: Sequence[str], folder: Path, sources: Sequence[Source], ids: Sequence[int], classes: ClassTable
) -> list[Saver]:
    """Create the savers of some formats for the images `sources`, whose ids in written results are `ids`.

    Raises:
        InputError: files that may hold corrections by hand would be overwritten.
    """
    savers: dict[str, Saver] = {}
    for name in dict.fromkeys(formats):
        if name == "json":
            savers[name] = ResultsSaver(folder / "predictions.json", ids)
        elif name == "csv":
            savers[name] = TableSaver(folder / "predictions.csv")
        elif name == "masks":
            savers[name] = MaskSaver(folder / "masks")
        elif name == "crops":
            savers[name] = CropSaver(folder / "crops")
        elif name == "coco":
            savers[name] = CocoSaver(folder / "coco", ids, classes)
        elif name == "labelme":
            savers[name] = LabelmeSaver(folder / "labelme", sources, classes)
        else:
            raise InputError(f"--save {name}: not one of the formats")
    return list(savers.values())


class TableSaver:
    """A CSV file with a row per object; its columns are COLUMNS."""

    COLUMNS = ("file", "name", "score", "x1", "y1", "x2", "y2", "area", "instance")

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[int, list[tuple]] = {}

    def add(self, number: int, source: Source, prediction: Prediction) -> None:
        areas = [int(crop.sum()) for _, _, crop in prediction.crops()]
        columns = zip(prediction.names, prediction.scores.tolist(), prediction.boxes.tolist(), areas)
        self.rows[number] = [
            (source.file_name, name, f"{score:.4f}", *(f"{side:.2f}" for side in box), area, instance)
            for instance, (name, score, box, area) in enumerate(columns, start=1)
        ]

    def close(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.COLUMNS)
        rows = [row for number in sorted(self.rows) for row in self.rows[number]]
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue())
        return f"{len(rows)} objects in {self.path}"


class MaskSaver:
    """A 16-bit PNG per image: 0 is the background, k the k-th best object, which covers those after it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, number: int, source: Source, prediction: Prediction) -> None:
        if len(prediction) > MOST_INSTANCES:
            raise InputError(f"{source.path}: {len(prediction)} objects do not fit into a 16-bit mask (--save masks)")
        plane = np.zeros(prediction.size, dtype=np.uint16)
        crops = prediction.crops()
        for k in range(len(crops), 0, -1):
            left, top, crop = crops[k - 1]
            plane[top : top + crop.shape[0], left : left + crop.shape[1]][crop] = k
        Image.fromarray(plane).save(below(self.folder, f"{source.name}.png"))

    def close(self) -> str:
        return f"instance masks in {self.folder}/"


class CropSaver:
    """A transparent PNG per object, cut out along its mask: NAME_001_class.png, ..."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, number: int, source: Source, prediction: Prediction) -> None:
        pixels = np.asarray(prediction.image)
        for k, (name, cutout) in enumerate(zip(prediction.names, cutouts(pixels, prediction)), start=1):
            if cutout is not None:
                cutout.save(below(self.folder, f"{source.name}_{k:03d}_{in_file_name(name)}.png"))

    def close(self) -> str:
        return f"cut-out objects in {self.folder}/"


def cutouts(pixels: np.ndarray, prediction: Prediction) -> Iterator[Image.Image | None]:
    """Each object's smallest rectangle of `pixels`, uint8 [H, W, 3], in RGBA; None for an empty mask."""
    for left, top, crop in prediction.crops():
        if not crop.any():
            yield None
            continue
        rgba = np.zeros((*crop.shape, 4), dtype=np.uint8)
        rgba[crop, :3] = pixels[top : top + crop.shape[0], left : left + crop.shape[1]][crop]
        rgba[crop, 3] = 255
        yield Image.fromarray(rgba)


def in_file_name(class_name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", class_name)[:50].strip("._") or "object"


def below(folder: Path, name: str) -> Path:
    """The path of `name` below a folder, whose sub-folder is made."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
