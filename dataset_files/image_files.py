"""List the image files of a dataset and their states, recognise splits by name, and read sizes from headers."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from dataset_files.stored_images import open_image, orientation_of, stored_header

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .webp .tif .tiff .gif .ppm .pgm .pbm .pnm .jp2 .avif".split()
)
# Names of sub-folders, lists and keys in lower case -> split.
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLIT_ORDER = ("train", "val", "test")
SPLIT_WORD = re.compile(r"(?<![a-z])(?:(train|training)|(val|valid|validation)|(test|testing))(?![a-z])")

# Used instead of a file's size: the path does not exist, or is not a regular file.
MISSING, NO_FILE = -1, -2


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the sub-folders of `folder` that are named like a split: "train", "val" or "test" -> folder."""
    found: dict[str, Path] = {}
    for name in sorted(names_in(folder)):
        split = SPLIT_NAMES.get(name.lower())
        if split and (folder / name).is_dir():
            found.setdefault(split, folder / name)
    return {split: found[split] for split in SPLIT_ORDER if split in found}


def split_in(name: str) -> str:
    """Return the split that a name contains as a word: "train" for stage1_train, not for trains; else ""."""
    found = SPLIT_WORD.search(name.lower())
    return SPLIT_ORDER[found.lastindex - 1] if found and found.lastindex else ""


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder; an empty list if the folder does not exist."""
    with suppress(OSError):
        return os.listdir(folder)
    return []


def is_image_name(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def files_below(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """Yield the files in a folder and at most `depth` levels below, sorted, without hidden ones.

    Linked folders are entered only once.
    """
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        level = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth is None or level < depth else []
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def images_below(folder: Path) -> list[Path]:
    """List the images in a folder and below; .npy files only if there are no others, since they are often caches."""
    files = list(files_below(folder))
    return [path for path in files if is_image_name(path.name)] or [path for path in files if path.suffix == ".npy"]


def read_size(path: Path, upright: bool = True) -> tuple[int, int]:
    """Read the height and width of an image from its header, with its EXIF orientation applied if `upright`.

    Tools that store no size display images upright, so their coordinates refer to the upright image. Raises
    FileNotFoundError, and ValueError for a file that is not a readable image.
    """
    try:
        with open_image(path) as image:
            width, height = image.size
            return (width, height) if upright and orientation_of(image) in (5, 6, 7, 8) else (height, width)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow can raise any exception for a broken file, or one that only --channels reads
        with suppress(Exception):
            return stored_header(path, "ignore")[:2]
        raise ValueError(str(error)) from error


def file_states(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Return size in bytes and mtime of each file, int64 [P, 2]; size is MISSING or NO_FILE if there is none."""
    wanted: dict[str, set[str]] = {}
    for name in names:
        inner, _, last = name.rpartition("/")
        wanted.setdefault(inner, set()).add(last)
    found = {}
    for inner, lasts in wanted.items():
        try:
            with os.scandir(folder / inner) as entries:
                for entry in entries:
                    if entry.name in lasts:
                        found[f"{inner}/{entry.name}" if inner else entry.name] = file_state(entry)
        except OSError:
            continue
    # Where the file system accepts other spellings of a name, only it can resolve them.
    rows = [found.get(name) or file_state(folder / name) for name in names]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def file_state(file: os.DirEntry | Path) -> tuple[int, int]:
    """Return size in bytes and mtime of a file; size is MISSING or NO_FILE if there is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return MISSING, 0
    except (OSError, ValueError):
        return NO_FILE, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (NO_FILE, 0)
