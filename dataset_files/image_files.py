"""Find the image files of a dataset, read their sizes from headers, and recognise the names of splits."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

import numpy as np

from dataset_files.problems import Problems, is_file_name, leaves_folder, shown
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
LFS_START = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024  # bytes; Git LFS's own limit
Value = TypeVar("Value")


def split_paths(folder: Path, suffix: str = "") -> dict[str, Path]:
    """Map "train", "val" and "test" to the sub-folder that is named like the split, if there is one.

    With a `suffix` such as ".txt", map them to the file that is named like the split instead.
    """
    found: dict[str, Path] = {}
    for name in names_in(folder, suffix):
        stem = name.lower().removesuffix(suffix)
        if stem in SPLIT_NAMES and (folder / name).is_dir() != bool(suffix):
            found.setdefault(SPLIT_NAMES[stem], folder / name)
    return in_order(found)


def in_order(by_split: dict[str, Value]) -> dict[str, Value]:
    """Sort a mapping from splits: "train", "val", "test", and last "", annotations that are not split."""
    return {name: by_split[name] for name in (*SPLIT_ORDER, "") if name in by_split}


def split_in(name: str) -> str:
    """Return the split that a name contains as a whole word: "train" for stage1_train, but "" for trains."""
    found = SPLIT_WORD.search(name.lower())
    return SPLIT_ORDER[found.lastindex - 1] if found and found.lastindex else ""


def names_in(folder: Path, suffixes: str | tuple[str, ...] = "") -> list[str]:
    """Return the names in a folder that end with a suffix, sorted; an empty list if the folder does not exist."""
    with suppress(OSError):
        return sorted(name for name in os.listdir(folder) if name.lower().endswith(suffixes))
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
    """List the images below a folder. Files *.npy, which may be caches, are listed only if there is no other image."""
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
    """Return the `file_state` of each file, int64 [P, 2], by listing each folder once."""
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
    """Return a file's size in bytes and mtime. The size is MISSING for a missing file, and NO_FILE for a folder etc."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return MISSING, 0
    except (OSError, ValueError):
        return NO_FILE, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (NO_FILE, 0)


def resolve(names: Sequence[str], folder: Path) -> tuple[list[str], Problems]:
    """Find the file below `folder` that each name refers to, and return the files' names.

    Found names are relative to `folder`, with forward slashes. A name without such a file stays as it is. Names "found
    elsewhere", or "ambiguous" ones, are noted as problems.
    """
    absent = set(missing_names(names, folder))
    if not absent:
        return list(names), Problems()
    finder, problems, found = ImageFinder(folder), Problems(), {}
    for name in dict.fromkeys(name for name in names if name in absent):
        fitting = finder.fitting(name)
        if len(fitting) == 1:
            found[name] = fitting[0]
            problems.add("found elsewhere", f"{shown(name)} -> '{fitting[0]}'")
        elif fitting:
            problems.add("ambiguous", f"{shown(name)} may be '{fitting[0]}' or '{fitting[1]}' in {folder}")
    return [found.get(name, name) for name in names], problems


def missing_names(names: Sequence[str], folder: Path) -> list[str]:
    """Return the names that are not files below `folder`."""
    inside = [name for name in names if not leaves_folder(name)]
    existing = {name for name, (size, _) in zip(inside, file_states(folder, inside).tolist()) if size >= 0}
    return [name for name in names if name not in existing]


def is_lfs_pointer(path: str | Path) -> bool:
    """Whether a file is a Git LFS pointer to content that was not downloaded."""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(LARGEST_POINTER + 1)
        return start.startswith(LFS_START) and len(start) <= LARGEST_POINTER
    return False


class ImageFinder:
    """Find images below `root` by their names in annotations. The folder is listed on first use."""

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def by_base(self) -> dict[str, list[str]]:
        """Map lower-case base names to paths relative to `root`, with forward slashes. Skip links out of `root`."""
        groups: dict[str, list[str]] = {}
        root = os.path.realpath(self.root)
        for path in images_below(self.root):
            real = Path(os.path.realpath(path)) if path.is_symlink() else None
            if real is None or real.is_file() and any(map(real.is_relative_to, (root, os.path.realpath(path.parent)))):
                groups.setdefault(path.name.lower(), []).append(path.relative_to(self.root).as_posix())
        return groups

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Map lower-case base names without suffix to the same paths as `by_base`."""
        groups: dict[str, list[str]] = {}
        for base, names in self.by_base.items():
            groups.setdefault(os.path.splitext(base)[0], []).extend(names)
        return groups

    def at(self, folder: Path, name: str) -> str | None:
        """Return the path of `folder / name` relative to `root`; None if it is missing or outside `root`."""
        if not name or "\0" in name or not is_file_name(name):
            return None
        path = Path(os.path.normpath(folder / name))
        if not path.is_relative_to(self.root) or ".." in path.relative_to(self.root).parts or not path.is_file():
            return None
        return path.relative_to(self.root).as_posix()

    def find(self, name: str, *folders: Path) -> str | None:
        """Return the image that `name` refers to, relative to `root` with forward slashes.

        The folders are searched in order for the whole name, then for its base name. If neither exists, return the best
        match (see `fitting`), or None if there is no single best one.
        """
        name = name.replace("\\", "/")
        for wanted in dict.fromkeys((name, name.rpartition("/")[2])):
            for folder in folders:
                if (found := self.at(folder, wanted)) is not None:
                    return found
        fitting = self.fitting(name)
        near = [one for one in fitting if (self.root / one).parent in folders]
        return next((group[0] for group in (fitting, near) if len(group) == 1), None)

    def fitting(self, name: str) -> list[str]:
        """Return the images that match `name` best, several if they are tied.

        Candidates have the same base name, in any folder and case; if there are none, another image suffix is allowed.
        The best ones have most parent folders in common with `name`, then the same case.
        """
        plain = name.replace("\\", "/").partition("?d=")[2] or name.replace("\\", "/")  # Label Studio's local files
        for wanted in dict.fromkeys((plain, unquote(plain))):
            base = wanted.rpartition("/")[2].lower()
            stem, suffix = os.path.splitext(base)
            candidates = self.by_base.get(base)
            if not candidates and (suffix in IMAGE_SUFFIXES or not suffix):
                candidates = self.by_stem.get(stem)
            if candidates:
                likeness = [likeness_of(wanted, candidate) for candidate in candidates]
                return [c for c, like in zip(candidates, likeness) if like == max(likeness)]
        return []


def likeness_of(name: str, file: str) -> tuple[int, bool]:
    """Compare two paths: return how many innermost folders agree, and whether the base names are identical."""
    folders = [path.lower().split("/")[-2::-1] for path in (name, file)]
    same = len(os.path.commonprefix(folders))  # of any sequences, not only of paths
    return same, name.rpartition("/")[2] == file.rpartition("/")[2]
