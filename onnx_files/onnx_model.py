"""Open an exported network, and read its description from the metadata of the file. Needs no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_files.runtimes import fastest_runtime, open_session
from train_utils.errors import InputError

FORMAT = 1


@dataclass
class Description:
    """Facts about an exported network that its graph does not contain, stored as metadata of the file."""

    names: dict[int, str]  # label -> class name
    category_ids: dict[int, int]  # label -> category id in written results
    # The network's ModelConfig: `arch`, `num_classes`, `min_size`, `max_size` and so on; with --channels also
    # `channels`, their type of `values`, `image_mean` and `image_std`.
    network: dict[str, Any]
    # `score` and `mask`: probabilities to exceed; `nms`: an IoU; `detections`: the most per image.
    thresholds: dict[str, float]
    continuous_paste: bool  # how masks are pasted, see `mask_crops`
    exif: str  # whether training images were turned by their EXIF tag: "apply" or "ignore"
    # Label -> the score with the best F1 in validation; {} if unknown, as in older files.
    class_thresholds: dict[int, float] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata to store: each attribute as JSON, and the version of the format."""
        return {"format": str(FORMAT)} | {name: json.dumps(value) for name, value in vars(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Description":
        """Invert `to_metadata`. ValueError for metadata of other programs or of another format version."""
        if metadata.get("format") != str(FORMAT):
            raise ValueError("has no metadata of tools/export_onnx.py, or those of a newer version")
        try:
            known = {"class_thresholds": "{}"} | dict(metadata)
            values = {name: json.loads(known[name]) for name in cls.__dataclass_fields__}
            for name in ("names", "category_ids", "class_thresholds"):
                values[name] = {int(label): value for label, value in values[name].items()}
        except (KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"has invalid metadata ({error})") from error
        return cls(**values)


class OnnxModel:
    """A network that tools/export_onnx.py exported. `detect` finds the objects in an image, as in `Session`.

    Threads, runtime and precision are as for `open_session`. The default is the fastest runtime. InputError if the
    runtime or the file is missing, or if tools/export_onnx.py did not write the file.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, runtime: str | None = None, precision: str = "fp32"
    ):
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        try:
            self.session = open_session(str(path), runtime or fastest_runtime(), threads, precision)
            self.description = Description.from_metadata(self.session.metadata)
        except ValueError as error:
            raise InputError(f"{path}: {error}; write it with tools/export_onnx.py") from error
        if self.session.batch and self.session.batch > 1:
            raise InputError(
                f"{path}: takes {self.session.batch} images at a time; export it without --batch to run it here"
            )
        self.detect = self.session.detect
