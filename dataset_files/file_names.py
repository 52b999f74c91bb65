"""Find the image files that annotations name: file names as tools write them in, names that exist below a folder out.

Names that exist as they stand are kept. Any other gets the one file below the image folder that has the same base
name, whatever its folder, case or image suffix; nothing outside of that folder is ever looked at.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from dataset_files.image_files import IMAGE_SUFFIXES
from dataset_files.problems import Problems, leaves_folder, shown

LFS_START = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024  # bytes, as Git LFS has it


class Resolved(NamedTuple):
    """File names in the order they were asked for, and what was found out about them."""

    names: list[str]
    problems: Problems


def resolve(names: Sequence[str], folder: Path) -> Resolved:
    """The file below `folder` that each name means, relative to it with forward slashes.

    A name without such a file is returned as it is, for the check of the images to report as missing.

    Returns:
        The names, and how many were "found elsewhere" or are "ambiguous", since several files fit equally well.
    """
    absent = set(missing_names(names, folder))
    if not absent:
        return Resolved(list(names), Problems())
    files, found, ambiguous = FilesBelow(folder), {}, {}
    for name in absent:
        fitting = files.fitting(name)
        if len(fitting) == 1:
            found[name] = fitting[0]
        elif fitting:
            ambiguous[name] = fitting
    problems = Problems()
    in_order = [name for name in dict.fromkeys(names) if name in absent]
    problems.add_all("found elsewhere", (n for n in in_order if n in found), lambda n: f"{shown(n)} -> '{found[n]}'")
    problems.add_all(
        "ambiguous",
        (n for n in in_order if n in ambiguous),
        lambda n: f"{shown(n)} may be '{ambiguous[n][0]}' or '{ambiguous[n][1]}' in {folder}",
    )
    return Resolved([found.get(name, name) for name in names], problems)


def missing_names(names: Sequence[str], folder: Path) -> list[str]:
    """The names that are no file below `folder` as they stand; each folder is listed once, whatever the count."""
    wanted: dict[str, list[str]] = {}
    for name in names:
        wanted.setdefault(name.rpartition("/")[0], []).append(name)
    absent = []
    for inner, inside in wanted.items():
        listed = set() if leaves_folder(f"{inner}/x" if inner else "x") else listing(folder / inner)
        for name in inside:
            if name.rpartition("/")[2] not in listed and (leaves_folder(name) or not (folder / name).is_file()):
                absent.append(name)
    return absent


def listing(folder: Path) -> set[str]:
    """The names of the files in a folder, links included; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return set()


def is_lfs_pointer(path: str | Path) -> bool:
    """Whether a file is Git LFS's stand-in for one that was not downloaded."""
    try:
        with open(path, "rb") as file:
            start = file.read(LARGEST_POINTER + 1)
    except OSError:
        return False
    return start.startswith(LFS_START) and len(start) <= LARGEST_POINTER


class FilesBelow:
    """The images below a folder by their base name and stem, in lower case."""

    def __init__(self, folder: Path):
        self.by_base: dict[str, list[str]] = {}
        self.by_stem: dict[str, list[str]] = {}
        for name in images_below(folder):
            base = name.rpartition("/")[2].lower()
            self.by_base.setdefault(base, []).append(name)
            self.by_stem.setdefault(os.path.splitext(base)[0], []).append(name)

    def fitting(self, name: str) -> list[str]:
        """The files that `name` fits best: most folders in common, then the same case; several if they fit equally."""
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
    """How many folders above the base names are the same, and whether the base names are, also in case."""
    folders, others = name.split("/")[-2::-1], file.split("/")[-2::-1]
    same = 0
    while same < min(len(folders), len(others)) and folders[same].lower() == others[same].lower():
        same += 1
    return same, name.rpartition("/")[2] == file.rpartition("/")[2]


def images_below(folder: Path) -> Iterator[str]:
    """The images below a folder, relative to it with forward slashes, sorted by folder; hidden ones are passed over.

    Linked folders are entered, each real folder once. A linked file is passed over if it lies outside.
    """
    root, entered = os.path.realpath(folder), set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        inner = os.path.relpath(place, folder).replace(os.sep, "/")
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES or name.startswith("."):
                continue
            path = os.path.join(place, name)
            if os.path.islink(path) and not is_below(os.path.realpath(path), root, real):
                continue
            yield name if inner == "." else f"{inner}/{name}"


def is_below(path: str, *folders: str) -> bool:
    return any(path.startswith(os.path.join(folder, "")) for folder in folders)
