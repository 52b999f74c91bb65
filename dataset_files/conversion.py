"""The files of a split, and its annotations converted to COCO's form.

The reader of a layout finds the splits of a folder (`SplitFiles`) and converts the annotations of a split to COCO's
form (`Converted`). The result is checked, indexed and read like any COCO file.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_files.image_files import files_below
from dataset_files.problems import Problems


@dataclass
class Converted:
    """The annotations of one split in COCO's form.

    Attributes:
        content: `images` (id from 1, file_name relative to the split's image folder with forward slashes, height,
            width), `annotations` (id from 1, image_id, category_id, bbox [x, y, width, height] in pixels, area,
            iscrowd, segmentation: polygons, or a run-length code with packed or listed counts; [] without a mask) and
            `categories` (id, name).
        problems: entries that were repaired or skipped, or that cannot be used.
    """

    content: dict[str, Any]
    problems: Problems = field(default_factory=Problems)


@dataclass
class SplitFiles:
    """The files of one split of a dataset."""

    name: str  # "train", "val" or "test"; "" for annotations that are not split
    source: Path  # the file or folder that messages name: the COCO file itself, or the input of `convert`
    image_folder: Path  # the folder that file names are relative to
    convert: Callable[..., Converted] | None = None  # reads annotations of another layout than COCO's
    # Files and folders that decide about the result of `convert`, besides `source`. A change to any file in them makes
    # the stored conversion stale.
    inputs: Sequence[Path] = ()
    problems: Problems = field(default_factory=Problems)  # found while looking for the splits
    takes_reading: bool = False  # whether `convert` accepts a `Reading`, and then may keep more of the files

    def files(self) -> Iterator[tuple[Path, Path]]:
        """Yield `source` and each input, once per file in it; an input that is a file contains itself."""
        for path in dict.fromkeys((self.source, *self.inputs)):
            yield from ((path, file) for file in (files_below(path) if path.is_dir() else [path]))
