"""Write predictions in the formats of `--save`, without torch.

A saver receives each prediction as soon as it is made, in any order and from any thread; `close` ends it. Savers
that write datasets are in dataset_savers.py.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from dataset_files.atomic_files import write_atomically, write_csv, write_image
from prediction.prediction import Classes, Prediction
from prediction.sources import Source
from train_utils.errors import InputError

MOST_INSTANCES = 65535  # highest value in a 16-bit mask
TABLE_HEAD = ("file", "name", "score", "x1", "y1", "x2", "y2", "area", "instance")


class Saver(Protocol):
    path: Path  # the file, or the folder of files, that it writes
    suffixes: tuple[str, ...] = ()  # of the files that each image gets in this folder

    def add(self, source: Source, prediction: Prediction) -> None:
        """Write or store the prediction of an image."""

    def close(self) -> str:
        """Write what was stored, and return a line for the user that names the output."""


def open_savers(formats: Sequence[str], folder: Path, sources: Sequence[Source], classes: Classes) -> list[Saver]:
    """Create one saver per format. Raise InputError if files that a user may have corrected would be overwritten."""
    makers: dict[str, Callable[[], Saver]] = {
        "json": lambda: ResultsSaver(folder / "predictions.json"),
        "csv": lambda: TableSaver(folder / "predictions.csv"),
        "masks": lambda: MaskSaver(folder / "masks"),
        "crops": lambda: CropSaver(folder / "crops"),
    }
    if not set(formats) <= set(makers):
        from prediction.dataset_savers import CocoSaver, LabelmeSaver  # need pycocotools, unlike the others

        makers["coco"] = lambda: CocoSaver(folder / "coco", classes)
        makers["labelme"] = lambda: LabelmeSaver(folder / "labelme", sources, classes)
    return [makers[name]() for name in formats]


class ResultsSaver(Saver):
    """Write one file in COCO's results format; each entry has box, mask and the name of the image."""

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[int, list[dict]] = {}  # by the image's id

    def add(self, source: Source, prediction: Prediction) -> None:
        entries = prediction.to_coco(source.id)
        self.entries[source.id] = [entry | {"file_name": source.file_name} for entry in entries]

    def close(self) -> str:
        in_order = [entry for _, entries in sorted(self.entries.items()) for entry in entries]
        write_atomically(self.path, json.dumps(in_order))
        return f"detections of {len(self.entries)} images in {self.path}"


class TableSaver(Saver):
    """Write a CSV file with the columns TABLE_HEAD and one row per object."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[int, list[tuple]] = {}

    def add(self, source: Source, prediction: Prediction) -> None:
        areas = [int(crop.sum()) for _, _, crop in prediction.crops()]
        columns = zip(prediction.names, prediction.scores.tolist(), prediction.boxes.tolist(), areas)
        self.rows[source.number] = [
            (source.file_name, name, f"{score:.4f}", *(f"{side:.2f}" for side in box), area, instance)
            for instance, (name, score, box, area) in enumerate(columns, start=1)
        ]

    def close(self) -> str:
        rows = [row for number in sorted(self.rows) for row in self.rows[number]]
        write_csv(self.path, TABLE_HEAD, rows)
        return f"{len(rows)} objects in {self.path}"


class MaskSaver(Saver):
    """Write a 16-bit PNG per image: 0 is background, k the k-th best object. Better objects cover worse ones."""

    suffixes: tuple[str, ...] = (".png",)

    def __init__(self, folder: Path):
        self.path = folder

    def add(self, source: Source, prediction: Prediction) -> None:
        if len(prediction) > MOST_INSTANCES:
            raise InputError(f"{source.path}: {len(prediction)} objects do not fit into a 16-bit mask (--save masks)")
        plane = np.zeros(prediction.size, dtype=np.uint16)
        for k, (left, top, crop) in reversed(list(enumerate(prediction.crops(), start=1))):
            plane[top : top + crop.shape[0], left : left + crop.shape[1]][crop] = k
        write_image(source.output(self.path, ".png"), Image.fromarray(plane))

    def close(self) -> str:
        return f"instance masks in {self.path}/"


class CropSaver(Saver):
    """Write each object as a transparent PNG, cut out along its mask: NAME_001_class.png. Empty masks are skipped."""

    def __init__(self, folder: Path):
        self.path = folder

    def add(self, source: Source, prediction: Prediction) -> None:
        pixels = np.asarray(prediction.image)
        for k, (name, (left, top, crop)) in enumerate(zip(prediction.names, prediction.crops()), start=1):
            if crop.any():
                colours = pixels[top : top + crop.shape[0], left : left + crop.shape[1]] * crop[..., None]
                cutout = Image.fromarray(np.dstack((colours, crop * np.uint8(255))))
                write_image(source.output(self.path, f"_{k:03d}_{in_file_name(name)}.png"), cutout)

    def close(self) -> str:
        return f"cut-out objects in {self.path}/"


def in_file_name(class_name: str) -> str:
    """Make a class name fit for the file names of `CropSaver`. "_" is replaced, as it separates number and class."""
    name = re.sub(r"[^\w.-]+|_", "-", class_name).strip("-.")
    return os.fsencode(name)[:50].decode(errors="ignore") or "object"
