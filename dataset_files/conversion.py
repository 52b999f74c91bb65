"""The common form of annotations in a foreign layout: one COCO content per split, and where its images are.

A reader of a layout finds the splits of a folder (`SplitFiles`) and turns the annotations of one into COCO's form
(`Converted`), which is then checked, indexed and read like any COCO file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_files.problems import Problems


@dataclass
class Converted:
    """The annotations of one split in COCO's form.

    Attributes:
        content: `images` (id from 1, file_name relative to the split's image folder with forward slashes, height,
            width), `annotations` (id from 1, image_id, category_id, bbox [x, y, width, height] in pixels, area,
            iscrowd, segmentation: polygons, or a run-length code with packed or listed counts; [] without a mask) and
            `categories` (id, name).
        problems: what was repaired, skipped or cannot be used.
    """

    content: dict[str, Any]
    problems: Problems = field(default_factory=Problems)


@dataclass
class SplitFiles:
    """Where one split of a data set is.

    Attributes:
        name: "train", "val" or "test"; "" for annotations that are not split.
        source: the file or folder that messages name: the COCO file itself, or what `convert` reads.
        image_folder: the folder that file names are relative to.
        convert: reads annotations that are no COCO file; None where `source` is one.
        inputs: the files that `convert` reads, as far as they are known without reading; a change makes the conversion
            stale. Images need not be listed.
        passed_over: annotation files of the folder that none of its splits is read from.
    """

    name: str
    source: Path
    image_folder: Path
    convert: Callable[[], Converted] | None = None
    inputs: Callable[[], list[Path]] = list
    passed_over: list[Path] = field(default_factory=list)
