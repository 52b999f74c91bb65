"""Open the annotations of a split: its COCO file, or the stored result of a conversion or repair.

A conversion is stored in the user's cache folder, together with its problems, and is never modified. When one of its
input files changes, a new conversion is stored beside it, so that a run keeps reading the one that it opened.
"""

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from hashlib import sha256
from pathlib import Path

import numpy as np

from dataset_files import coco_repair
from dataset_files.atomic_files import write_atomically
from dataset_files.coco_file import NoCategory
from dataset_files.coco_index import AS_WRITTEN, CocoIndex, Reading, locked, open_index, user_cache
from dataset_files.conversion import Converted, SplitFiles
from dataset_files.file_names import resolve
from dataset_files.problems import Problems

VERSION = 2  # of stored conversions
KEPT = 30 * 24 * 3600  # seconds after its last use


@dataclass(frozen=True)
class OpenedSplit:
    """The index of a split's COCO file, how it was read, and the problems of conversion, file and file names."""

    split: SplitFiles
    index: CocoIndex
    reading: Reading
    problems: Problems


def open_split_index(split: SplitFiles, reading: Reading = AS_WRITTEN, key: str = "") -> OpenedSplit:
    """Open the annotations of a split in any layout, and find the image files that they name.

    Args:
        key: the options that the conversion depends on besides the files, as text.

    Raises:
        ValueError: the annotations cannot be used; the message names the file.
    """
    index, problems = open_converted(split, reading, key) if split.convert else open_coco_file(split, reading)
    together = Problems()
    resolved = resolve(index.file_names.tolist(), split.image_folder)
    for found in (problems, index.problems, resolved.problems):
        together.update(found)
    if resolved.problems.counts:
        index = replace(index, file_names=np.array(resolved.names, dtype=np.str_))
    return OpenedSplit(split, index, reading, together)


def open_coco_file(split: SplitFiles, reading: Reading) -> tuple[CocoIndex, Problems]:
    """Index a COCO file, or its repaired copy if a repair changes anything."""
    repaired = replace(split, convert=partial(coco_repair.repair, split.source, split.image_folder))
    try:
        index = open_index(split.source, reading)
    except ValueError as error:
        if not coco_repair.worth_repairing(None, error):
            raise
        return open_converted(repaired, reading, "repair")
    if coco_repair.worth_repairing(index.problems, None):
        copy, found = open_converted(repaired, reading, "repair")
        if found.counts or copy.problems.counts != index.problems.counts:
            return copy, found
    return index, Problems()


def open_converted(split: SplitFiles, reading: Reading, key: str) -> tuple[CocoIndex, Problems]:
    """Convert a split unless its conversion is stored; return the index of the result and the conversion's problems."""
    assert split.convert is not None
    name = f"{split.source.stem}-{digest(str(split.source.resolve()), split.name, key)}"
    stamp = digest(str(VERSION), *(stamp_of(path) for path in sorted({split.source, *split.inputs()})))
    place = storage_folder() / f"{name}-{stamp}.json"
    problems = stored_problems(place)
    if problems is None:
        lock = place.with_name(f"{name}.lock")
        lock.touch()
        with locked(lock):  # one process converts; the others wait here and then read the result
            problems = stored_problems(place)
            if problems is None:
                problems = store(place, split.convert())
                remove_unused(place.parent, name)
    try:
        return open_index(place, reading), problems
    except ValueError as error:
        if problems.wrong():  # the converter's problems come first, since those of the index follow from them
            raise ValueError(f"{split.source}: {problems.summary()}") from error
        if key != "repair" and isinstance(error.__cause__, NoCategory):
            reasons = "".join(f"; {problems.in_words(kind)}" for kind in problems.harmless())
            raise ValueError(f"{split.source}: no image has an object{reasons}") from error
        raise ValueError(str(error).replace(str(place), str(split.source))) from error


def store(place: Path, converted: Converted) -> Problems:
    write_atomically(place, json.dumps(converted.content))
    about = {"size": place.stat().st_size, "problems": vars(converted.problems)}
    write_atomically(about_file(place), json.dumps(about))
    return converted.problems


def stored_problems(place: Path) -> Problems | None:
    """Return the problems of a stored conversion; None if it does not exist."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads(about_file(place).read_text(encoding="utf-8"))
        if place.stat().st_size == about["size"]:
            about_file(place).touch()
            return Problems(**about["problems"])
    return None


def remove_unused(folder: Path, name: str) -> None:
    """Delete older conversions of the same source that no run has opened for KEPT seconds."""
    for about in folder.glob(f"{escape(name)}-*.about.json"):
        with suppress(OSError):
            if about.stat().st_mtime < time.time() - KEPT:
                for file in folder.glob(escape(about.name.removesuffix(".about.json")) + ".*"):
                    file.unlink()


def about_file(place: Path) -> Path:
    return place.with_suffix(".about.json")


def storage_folder() -> Path:
    """Return the folder of stored conversions: in the user's cache, or a temporary one if the cache is not writable."""
    for folder in (user_cache() / "converted", Path(tempfile.gettempdir()) / "mask-rcnn" / "converted"):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise OSError(f"{user_cache()}: not writable, and neither is {tempfile.gettempdir()}; set XDG_CACHE_HOME")


def stamp_of(path: Path) -> str:
    """Return path, size and mtime of an input; a folder's mtime changes with the names in it."""
    try:
        status = path.stat()
    except OSError:
        return f"{path} missing"
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:24]
