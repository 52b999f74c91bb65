"""Image files of a data set: list them, find the one that an annotation names, read a size from the header."""

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from PIL import Image

from dataset_files.problems import is_file_name
from dataset_files.rgb_images import PICTURE_FORMATS, orientation_of

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .webp .tif .tiff .gif .ppm .pgm .pbm .pnm .jp2 .avif".split()
)
# Names of sub-folders, lists and keys, in lower case -> the split's.
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLIT_ORDER = ("train", "val", "test")


def split_folders(folder: Path) -> dict[str, Path]:
    """The sub-folders of `folder` that are named like a split: "train", "val" or "test" -> folder."""
    found: dict[str, Path] = {}
    for name in sorted(names_in(folder)):
        split = SPLIT_NAMES.get(name.lower())
        if split and (folder / name).is_dir():
            found.setdefault(split, folder / name)
    return {split: found[split] for split in SPLIT_ORDER if split in found}


def names_in(folder: Path) -> list[str]:
    """The names in a folder; none if there is no such folder."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def is_image_name(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def files_below(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """All files in a folder and its sub-folders, sorted, hidden ones left out; links to folders are not followed.

    Args:
        depth: levels of sub-folders to enter; None for all.
    """
    for place, folders, names in os.walk(folder):
        level = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth is None or level < depth else []
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def images_below(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if is_image_name(path.name)]


class ImageFinder:
    """Finds images below `root` by the names that annotations have for them; the folder is listed on first use."""

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """File name in lower case -> the images of that name, relative to `root` with forward slashes."""
        return self.group(lambda path: path.name.lower())

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """The same by name without suffix."""
        return self.group(lambda path: path.stem.lower())

    @cached_property
    def images(self) -> list[Path]:
        return images_below(self.root)

    def group(self, key: Callable[[Path], str]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for path in self.images:
            groups.setdefault(key(path), []).append(path.relative_to(self.root).as_posix())
        return groups

    def at(self, folder: Path, name: str) -> str | None:
        """The image `name` as seen from `folder`, relative to `root`; None if it is missing or outside `root`."""
        if not name or "\0" in name or not is_file_name(name):
            return None
        path = Path(os.path.normpath(folder / name))
        if not path.is_relative_to(self.root) or ".." in path.relative_to(self.root).parts or not path.is_file():
            return None
        return path.relative_to(self.root).as_posix()

    def find(self, name: str, *folders: Path) -> str | None:
        """The image called `name`, which may have backslashes, a foreign folder, another case or another suffix.

        Args:
            folders: where to look first, in this order.

        Returns:
            Its path relative to `root` with forward slashes. Outside of `folders` only an image whose base name (else
            its stem) is unique below `root` is taken, since any other choice would be a guess. None if there is none.
        """
        name = name.replace("\\", "/")
        base = name.rpartition("/")[2]
        for wanted in dict.fromkeys((name, base)):
            for folder in folders:
                if (found := self.at(folder, wanted)) is not None:
                    return found
        for group in (self.by_name.get(base.lower(), []), self.by_stem.get(Path(base).stem.lower(), [])):
            if len(group) == 1:
                return group[0]
            near = [one for one in group if (self.root / one).parent in folders]
            if len(near) == 1:
                return near[0]
        return None


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as its EXIF tag turns it, from its header.

    Tools that store no size show images turned, and so their coordinates are meant.

    Raises:
        ValueError: the file is not an image that can be read.
        FileNotFoundError: there is no such file.
    """
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            width, height = image.size
            return (width, height) if orientation_of(image) in (5, 6, 7, 8) else (height, width)
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file makes Pillow raise anything
        raise ValueError(str(error)) from error
