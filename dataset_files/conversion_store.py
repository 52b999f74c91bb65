"""Open the annotations of a split: its COCO file, or the stored result of a conversion or repair.

A conversion is stored in the user's cache folder, together with its problems, and is never modified. When one of its
input files changes, a new conversion is stored beside it, so that a run keeps reading the one that it opened.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset_files import coco_repair
from dataset_files.atomic_files import write_atomically
from dataset_files.cache import OWN, digest, locked, writable_cache
from dataset_files.coco_file import NoCategory
from dataset_files.coco_index import AS_WRITTEN, CocoIndex, Reading, open_index
from dataset_files.image_files import file_state, files_below, resolve
from dataset_files.problems import Problems

VERSION = 4  # of stored conversions
KEEP_SECONDS = 30 * 24 * 3600  # after the last use


class Converted(NamedTuple):
    """The annotations of one split, converted to COCO's form, and the problems found.

    Attributes:
        content: `images` (id from 1, file_name relative to the split's image folder with forward slashes, height,
            width), `annotations` (id from 1, image_id, category_id, bbox [x, y, width, height] in pixels, area,
            iscrowd, segmentation: polygons, or a run-length code with packed or listed counts; [] without a mask) and
            `categories` (id, name).
        problems: entries that were repaired or skipped, or that cannot be used.
    """

    content: dict[str, Any]
    problems: Problems


@dataclass
class SplitFiles:
    name: str  # "train", "val" or "test"; "" for annotations that are not split
    source: Path  # the file or folder that messages name: the COCO file itself, or the input of `convert`
    image_folder: Path  # the folder that file names are relative to
    convert: Callable[..., Converted] | None = None  # reads annotations of another layout than COCO's
    # Files and folders that decide about the result of `convert`, besides `source`. A change to any file in them makes
    # the stored conversion stale.
    inputs: Sequence[Path] = ()
    problems: Problems = field(default_factory=Problems)  # found while looking for the splits
    takes_reading: bool = False  # whether `convert` takes a `Reading`, with which it may keep more objects

    def files(self) -> Iterator[tuple[Path, Path]]:
        """Yield (path, file) for each path in `source` and `inputs`: all files below a folder, or the file itself."""
        for path in dict.fromkeys((self.source, *self.inputs)):
            yield from ((path, file) for file in (files_below(path) if path.is_dir() else [path]))


@dataclass(frozen=True)
class OpenedSplit:
    """An opened split: its files, the index of its annotations, the `Reading` in use, and all problems found."""

    split: SplitFiles
    index: CocoIndex
    reading: Reading
    problems: Problems


def open_split_index(split: SplitFiles, reading: Reading = AS_WRITTEN, key: str = "") -> OpenedSplit:
    """Open the annotations of a split in any layout, and find the image files that they name.

    `key` lists the options that the conversion depends on, besides the files. A ValueError names the file.
    """
    if split.convert and split.takes_reading and (reading.ignore_regions or reading.boxes_without_masks):
        split, key = replace(split, convert=partial(split.convert, reading)), f"{key}{reading.suffix()}"
    index, problems = open_converted(split, reading, key) if split.convert else open_coco_file(split, reading)
    names, of_names = resolve(index.file_names.tolist(), split.image_folder)
    together = Problems.together(split.problems, problems, index.problems, of_names)
    if of_names.counts:
        index = replace(index, file_names=np.array(names, dtype=np.str_))
    return OpenedSplit(split, index, reading, together)


def open_coco_file(split: SplitFiles, reading: Reading) -> tuple[CocoIndex, Problems]:
    """Index a COCO file, or its repaired copy if a repair changes anything."""
    source, folder = split.source, split.image_folder
    repaired = replace(split, convert=lambda: Converted(*coco_repair.repair(source, folder)), inputs=[folder])
    try:
        index = open_index(source, reading)
    except ValueError as error:
        if not coco_repair.is_repairable(error):
            raise
        return open_converted(repaired, reading, "repair")
    if not coco_repair.REPAIRABLE.isdisjoint(index.problems.counts):
        copy, found = open_converted(repaired, reading, "repair")
        if found.counts or copy.problems.counts != index.problems.counts:
            return copy, found
    return index, Problems()


def open_converted(split: SplitFiles, reading: Reading, key: str) -> tuple[CocoIndex, Problems]:
    """Load the stored conversion of a split, or convert it. Return its index, and the problems of the conversion."""
    assert split.convert is not None
    identity = digest(str(split.source.resolve()), str(split.image_folder.resolve()), split.name, key)
    name = f"{split.source.stem[:60]}-{identity}"
    place = writable_cache("converted") / f"{name}-{state_of(split)}.json"
    if (problems := stored_problems(place)) is None:
        with locked(f"{identity}.lock"):  # one process converts; the others wait here and then read the result
            if (problems := stored_problems(place)) is None:
                problems = store(place, split.convert())
                remove_unused(place.parent, name)
    try:
        return open_index(place, reading), problems
    except ValueError as error:
        if problems.wrong():  # the converter's problems come first, since those of the index follow from them
            raise ValueError(f"{split.source}: {problems.summary()}") from error
        if key != "repair" and isinstance(error.__cause__, NoCategory):
            reasons = "".join(f"; {problems.describe(kind)}" for kind in problems.harmless())
            raise ValueError(f"{split.source}: no image has an object{reasons}") from error
        raise ValueError(str(error).replace(str(place), str(split.source))) from error


def store(place: Path, converted: Converted) -> Problems:
    content, problems = json.dumps(converted.content), json.dumps(vars(converted.problems))
    write_atomically(place, content)
    about = {"digest": digest(content, problems), "problems": problems}
    write_atomically(place.with_suffix(".about.json"), json.dumps(about))
    return converted.problems


def stored_problems(place: Path) -> Problems | None:
    """Return the problems of a stored conversion; None if it does not exist or is damaged."""
    file = place.with_suffix(".about.json")
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads(file.read_text(encoding="utf-8"))
        if digest(place.read_text(encoding="utf-8"), about["problems"]) == about["digest"]:
            file.touch()
            return Problems(**json.loads(about["problems"]))
    return None


def remove_unused(folder: Path, name: str) -> None:
    """Delete the stored conversions `name`-*.json in `folder` that no run has opened for KEEP_SECONDS."""
    for about in folder.glob(f"{escape(name)}-*.about.json"):
        with suppress(OSError):
            if about.stat().st_mtime < time.time() - KEEP_SECONDS:
                for file in folder.glob(escape(about.name.removesuffix(".about.json")) + ".*"):
                    file.unlink()


def state_of(split: SplitFiles) -> str:
    """Return a digest of the paths, sizes and mtimes of all files that a conversion reads."""
    parts = [str(VERSION)]
    resolved: dict[Path, Path] = {}
    for place, file in split.files():
        if OWN not in file.name:
            real = resolved[place] = resolved.get(place) or place.resolve()
            size, mtime = file_state(file)
            parts.append(f"{real}{str(file).removeprefix(str(place))} {size} {mtime}")
    return digest(*parts)
