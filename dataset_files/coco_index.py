"""Index a COCO instances file by the byte positions of its annotations.

The index takes a few megabytes, however large the file is. As Python objects, COCO's million training objects take half
a minute to load and gigabytes of memory. Here the file is parsed once, object by object, and only the position of each
image's annotations is kept. The index is stored beside the file or in the user's cache folder, and read from there at
the next start unless the file has changed.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from dataset_files import coco_file
from dataset_files.cache import digest, locked, read_arrays, storage_places, write_arrays
from dataset_files.coco_check import AnnotationCheck
from dataset_files.coco_file import AS_WRITTEN, Annotations, Reading
from dataset_files.problems import Problems

VERSION = 7  # of the stored index; other versions are ignored
STORED_FROM = 1 << 20  # bytes; a smaller file is parsed as fast as its index would be read


class AnnotationsLost(ValueError):
    """An annotation file has changed or vanished while it was in use, so that no further item can be read."""


@dataclass
class CocoIndex:
    """Index of a COCO file with P images and A objects: where each annotation is, and the fields used most.

    Objects are grouped by image and, within an image, in the order of the file. Images and annotations that would make
    results wrong are not indexed; `problems` describes them.
    """

    path: Path  # the COCO file
    stamp: np.ndarray  # int64 [3], format version, size in bytes and mtime of the file that was read
    categories: dict[int, str]  # category id -> name, without the class of regions
    image_ids: np.ndarray  # int64 [P]
    sizes: np.ndarray  # int64 [P, 2], height and width
    file_names: np.ndarray  # str [P]
    bare: np.ndarray  # bool [P], images without any annotation in the file, valid or not
    first: np.ndarray  # int64 [P + 1]; image p has the objects first[p] .. first[p + 1] - 1
    starts: np.ndarray  # int64 [A], the byte offset of each annotation in the file
    lengths: np.ndarray  # int64 [A], the length of each annotation in bytes
    category_ids: np.ndarray  # int64 [A]
    checksums: np.ndarray  # int64 [A], CRC-32 of each annotation's text
    crowds: np.ndarray  # bool [A]
    usable: np.ndarray  # bool [A], objects to train on: no crowds or regions, with a box, and a mask if needed
    has_mask: np.ndarray  # bool [A]
    problems: Problems  # what is wrong with the file

    def annotations(self, image: int, only_usable: bool = False, among: np.ndarray | None = None) -> list[dict]:
        """Read the annotations of an image from the file.

        By default these are all annotations, with `only_usable` the usable ones, and with `among`, bool [A], those that
        it marks. Raises AnnotationsLost if the file has changed since it was indexed, or is gone.
        """
        chosen, among = np.arange(self.first[image], self.first[image + 1]), self.usable if only_usable else among
        if among is not None:
            chosen = chosen[among[chosen]]
        texts = []
        try:
            with open(self.path, "rb") as file:
                if not np.array_equal(stamp_of(file.fileno()), self.stamp):
                    raise AnnotationsLost(f"{self.path}: has changed since it was opened; start again")
                for start, length in zip(self.starts[chosen].tolist(), self.lengths[chosen].tolist()):
                    file.seek(start)
                    texts.append(file.read(length))
        except OSError as error:
            raise AnnotationsLost(f"{self.path}: cannot be read any more ({error}); start again") from error
        return json.loads(b"[" + b",".join(texts) + b"]")

    def owners(self) -> np.ndarray:
        """Return the image index of each object, int64 [A]."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.first))

    def regions(self) -> np.ndarray:
        """Mark the objects of the class `ignore`, bool [A]. Without `Reading.ignore_regions`, none is marked."""
        return ~np.isin(self.category_ids, list(self.categories))

    def usable_counts(self) -> np.ndarray:
        """Count the objects that training can use in each image, int64 [P]."""
        return np.diff(np.concatenate(([0], self.usable.cumsum()))[self.first])

    def classes_of_images(self, only_usable: bool = False) -> list[list[int]]:
        """Return the distinct category ids of each image's objects."""
        chosen = self.usable if only_usable else ~self.regions()
        return [
            np.unique(self.category_ids[first:end][chosen[first:end]]).tolist()
            for first, end in zip(self.first, self.first[1:])
        ]


def open_index(path: Path, reading: Reading = AS_WRITTEN) -> CocoIndex:
    """Load the stored index of an instances file, or build it if it is missing or outdated; ValueError if unusable."""
    stamp = stamp_of(path)
    if stamp[1] < STORED_FROM:
        return make_index(path, reading)
    suffix = reading.suffix()
    if (stored := read_stored(path, stamp, suffix)) is not None:
        return stored
    with locked(f"{digest(str(path.resolve()))}.lock"):  # one process builds the index; the others wait and read it
        if (stored := read_stored(path, stamp, suffix)) is None:
            stored = make_index(path, reading)
            store(stored, suffix)
        return stored


def stamp_of(file: Path | int) -> np.ndarray:
    """Return format version, size and mtime of an annotation file, int64 [3], to recognise an outdated index."""
    status = os.stat(file)
    return np.array([VERSION, status.st_size, status.st_mtime_ns], dtype=np.int64)


def read_stored(path: Path, stamp: np.ndarray, suffix: str = ".index") -> CocoIndex | None:
    """Read the stored index of a file; None if it is missing, damaged, or has another stamp."""
    for columns in read_arrays(storage_places(path, suffix)):
        if np.array_equal(columns["stamp"], stamp):
            ids, names = columns.pop("categories").tolist(), columns.pop("category_names").tolist()
            problems = Problems(**json.loads(columns.pop("found").item()))
            return CocoIndex(path, categories=dict(zip(ids, names)), problems=problems, **columns)
    return None


def store(index: CocoIndex, suffix: str = ".index") -> None:
    columns = {name: value for name, value in vars(index).items() if isinstance(value, np.ndarray)}
    columns["categories"] = np.array(list(index.categories), dtype=np.int64)
    columns["category_names"] = np.array(list(index.categories.values()), dtype=np.str_)
    columns["found"] = np.array(json.dumps(vars(index.problems)))
    write_arrays(columns, storage_places(index.path, suffix))


def make_index(path: Path, reading: Reading = AS_WRITTEN) -> CocoIndex:
    """Parse, check and index an instances file; ValueError if it is not JSON, or not an instances file."""
    stamp, problems = stamp_of(path), Problems()
    with coco_file.naming_json(path):
        with open(path, encoding="utf-8", newline="") as file:  # keep all newlines, since positions are counted
            text = file.read()
        content = coco_file.read_content(text)
        for key, kind in (("images", list), ("annotations", Annotations), ("categories", list)):
            if not isinstance(content.get(key), kind):
                raise ValueError(f"no list '{key}' (is it a COCO instances file?)")
        categories = coco_file.read_categories(content["categories"], problems)
    annotations = content["annotations"]
    category_ids = np.array(annotations.category_ids, dtype=np.int64)
    for unused in coco_file.unused_categories(content["categories"], np.unique(category_ids).tolist()):
        problems.add("unused category", f"category {unused}, '{categories.pop(unused)}'")
    coco_file.tell_apart(categories, content["categories"], problems)
    images = coco_file.read_image_entries(content["images"], problems)
    problems.update(annotations.problems)
    check = AnnotationCheck(annotations, images, categories, problems, text, reading)
    categories = {key: name for key, name in categories.items() if not reading.is_region(name)}
    is_object = np.isin(category_ids, list(categories))
    crowds = np.array(annotations.crowds, dtype=bool) & (not reading.crowds_are_objects)
    kept = np.flatnonzero(check.valid)
    order = kept[np.argsort(check.owners[kept], kind="stable")]
    checksums = [crc32(text[a:b].encode()) for a, b in zip(annotations.starts, annotations.ends)]
    starts, ends = byte_positions(text, np.array(annotations.starts), np.array(annotations.ends))
    place = images.valid.cumsum() - 1  # index of each image among the usable ones
    image_ids = images.ids[images.valid]
    return CocoIndex(
        path, stamp, categories, image_ids, images.sizes[images.valid], images.file_names[images.valid],
        bare=~np.isin(image_ids, np.array(annotations.image_ids, dtype=np.int64)),
        first=np.searchsorted(place[check.owners[order]], np.arange(len(image_ids) + 1)),
        starts=starts[order], lengths=(ends - starts)[order], category_ids=category_ids[order],
        checksums=np.array(checksums, dtype=np.int64)[order], crowds=crowds[order],
        usable=(check.complete & ~crowds & is_object)[order], has_mask=check.has_mask[order], problems=problems,
    )  # fmt: skip


def byte_positions(text: str, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert positions of characters in a text, in ascending order, to positions of bytes in its UTF-8 encoding."""
    if text.isascii():
        return starts, ends
    places = np.stack((starts, ends), axis=1).reshape(-1).tolist()
    sizes = [len(text[a:b].encode()) for a, b in zip([0, *places], places)]
    positions = np.cumsum(sizes, dtype=np.int64).reshape(-1, 2)
    return positions[:, 0], positions[:, 1]
