"""Write predictions in COCO's results format, without torch or pycocotools."""

import json
from collections.abc import Sequence
from pathlib import Path

from dataset_files.atomic_files import write_atomically
from prediction.prediction import Prediction
from prediction.sources import Source


class ResultsSaver:
    """One file in COCO's results format, with box and mask of an object in one entry, and the name of its image."""

    def __init__(self, path: Path, ids: Sequence[int]):
        self.path, self.ids = path, ids
        self.entries: dict[int, list[dict]] = {}

    def add(self, number: int, source: Source, prediction: Prediction) -> None:
        entries = prediction.to_coco(self.ids[number])
        self.entries[number] = [entry | {"file_name": source.file_name} for entry in entries]

    def close(self) -> str:
        in_order = sorted(self.entries, key=lambda number: self.ids[number])
        write_atomically(self.path, json.dumps([entry for number in in_order for entry in self.entries[number]]))
        return f"detections of {len(self.entries)} images in {self.path}"
