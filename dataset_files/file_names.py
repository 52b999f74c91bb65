"""Resolve file names in annotations, as various tools write them, to files below an image folder.

A name that exists is kept. Any other is replaced by the one file below the image folder that has the same base name,
regardless of folder, case and image suffix. Nothing outside that folder is ever opened.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from dataset_files.image_files import IMAGE_SUFFIXES, file_states, images_below
from dataset_files.problems import Problems, is_file_name, leaves_folder, shown

LFS_START = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024  # bytes; Git LFS's own limit


def resolve(names: Sequence[str], folder: Path) -> tuple[list[str], Problems]:
    """Find the file below `folder` that each name refers to; return names with forward slashes, relative to it.

    A name without such a file stays as it is. Names "found elsewhere", or "ambiguous" ones, are noted as problems.
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
    try:
        with open(path, "rb") as file:
            start = file.read(LARGEST_POINTER + 1)
    except OSError:
        return False
    return start.startswith(LFS_START) and len(start) <= LARGEST_POINTER


class ImageFinder:
    """Finds images below `root` by their names in annotations. The folder is listed on first use."""

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def by_base(self) -> dict[str, list[str]]:
        """Map lower-case base names to images, relative to `root` with forward slashes; skip links to outside."""
        groups: dict[str, list[str]] = {}
        root = os.path.realpath(self.root)
        for path in images_below(self.root):
            real = Path(os.path.realpath(path)) if path.is_symlink() else None
            if real is None or real.is_file() and any(map(real.is_relative_to, (root, os.path.realpath(path.parent)))):
                groups.setdefault(path.name.lower(), []).append(path.relative_to(self.root).as_posix())
        return groups

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Map base names without suffix to images, like `by_base`."""
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
        """Return the images that match `name` best: most parent folders in common, then same case; several on a tie.

        Candidates have the same base name, in any folder and case; if there are none, another image suffix is allowed.
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
    """Return how many parent folders agree, innermost first, and whether the base names agree, including case."""
    folders = [path.lower().split("/")[-2::-1] for path in (name, file)]
    same = len(os.path.commonprefix(folders))  # of any sequences, not only of paths
    return same, name.rpartition("/")[2] == file.rpartition("/")[2]
