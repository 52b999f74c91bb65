"""Parse a COCO instances file into columns of numbers, so that a million annotations need little memory.

Invalid entries are noted as problems and dropped. Only a text that is not an instances file raises an error.
"""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # the stubs omit it
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset_files.coco_masks import LARGEST_IMAGE, MaskColumns, int64, natural, whole
from dataset_files.image_files import is_lfs_pointer
from dataset_files.problems import Problems, leaves_folder, shown

# Errors that an invalid entry can raise while it is parsed.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)

BACKGROUND = ("_background_", "__background__", "__ignore__")  # names of categories that are not classes
IGNORE = "ignore"  # name of the class whose objects --ignore-regions takes as regions
REQUIRED = ("id", "image_id", "category_id", "bbox", "segmentation", "file_name", "height", "width", "name")


class Reading(NamedTuple):
    """Options of the command line that decide how the annotations of a COCO file are interpreted."""

    boxes_from_masks: bool = False  # use the masks' extents as boxes of objects that have a mask
    crowds_are_objects: bool = False  # ignore `iscrowd`, which some tools set for every run-length code
    ignore_regions: bool = False  # objects of the class `ignore` are regions, with or without a mask
    boxes_without_masks: bool = False  # objects with a box and no mask can be used

    def suffix(self) -> str:
        """Return the suffix of the file that stores an index made with these options."""
        marks = zip(self, (".masks", ".objects", ".regions", ".boxes"))
        return "".join(mark for is_set, mark in marks if is_set) + ".index"

    def is_region(self, class_name: str) -> bool:
        return self.ignore_regions and class_name.strip().lower() == IGNORE


AS_WRITTEN = Reading()


@contextmanager
def naming_json(path: Path) -> Iterator[None]:
    """Turn any error of decoding, parsing or interpreting a JSON file into a ValueError that names the file."""
    try:
        yield
    except RecursionError as error:
        raise ValueError(f"{path}: not readable as JSON (nested too deeply)") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        if is_lfs_pointer(path):
            raise ValueError(f"{path}: is a Git LFS pointer instead of the file itself; run `git lfs pull`") from error
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_content(text: str) -> dict:
    """Parse a JSON object; ValueError for any other text. The list "annotations" in it becomes an `Annotations`."""
    scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # the stubs omit it
    content: dict[str, Any] = {}
    try:
        i = expect(text, 0, "{")
        while text[i] != "}":
            key, i = scan(text, i)
            i = expect(text, i, ":")
            if key == "annotations" and text[i] == "[":
                content[key] = Annotations()
                i = content[key].read(text, i, scan)
            else:
                content[key], i = scan(text, i)
            i = WHITESPACE.match(text, i).end()
            if text[i] != "}":
                i = expect(text, i, ",")
                if text[i] != '"':
                    raise Unexpected
        if WHITESPACE.match(text, i + 1).end() != len(text):
            raise Unexpected
    except (Unexpected, StopIteration, IndexError):
        other = json.loads(text)  # raises with the place where it is broken
        raise ValueError(f"holds a {type(other).__name__}, not an object") from None
    return content


class Unexpected(Exception):
    """The text is not a JSON object."""


def expect(text: str, i: int, character: str) -> int:
    """Skip `character` and the white space around it, and return the next position; else raise Unexpected."""
    i = WHITESPACE.match(text, i).end()
    if text[i] != character:
        raise Unexpected
    return WHITESPACE.match(text, i + 1).end()


class Annotations:
    """The annotations of a file, in file order, as columns of numbers. Only fields that the index needs are kept.

    Masks are checked in groups; only their extents and problems are kept.
    """

    def __init__(self) -> None:
        self.ids, self.image_ids, self.category_ids = array("q"), array("q"), array("q")
        self.boxes = array("d")  # four numbers each: x, y, width, height
        self.crowds = array("b")
        self.starts, self.ends = array("q"), array("q")  # positions in the text, in characters
        self.masks = MaskColumns()
        self.problems = Problems()

    def read(self, text: str, i: int, scan: Callable[[str, int], tuple[Any, int]]) -> int:
        """Parse the JSON list at position i into the columns, and return the position after the list."""
        i = expect(text, i, "[")
        number = 0
        if text[i] == "]":
            return i + 1
        while True:
            annotation, end = scan(text, i)
            try:
                self.append(annotation)
            except MALFORMED as error:
                self.drop(annotation, number, error)
            else:
                self.starts.append(i)
                self.ends.append(end)
            number += 1
            if text[end] not in ",]":
                end = WHITESPACE.match(text, end).end()
            if text[end] == "]":
                self.masks.check_group()
                return end + 1
            i = end + 1 if text[end : end + 2] == ",{" else expect(text, end, ",")

    def append(self, annotation: dict) -> None:
        """Append an annotation to the columns. An invalid one raises an error in MALFORMED. Called a million times."""
        box, mask = annotation["bbox"], annotation["segmentation"]
        if len(box) != 4:
            raise ValueError(f"has a bbox of {len(box)} numbers instead of 4")
        area = annotation.get("area", 0)
        if not -1e300 < area < 1e300:
            raise ValueError(f"has the area {area}")
        self.ids.append(whole(annotation["id"]))
        self.image_ids.append(whole(annotation["image_id"]))
        self.category_ids.append(whole(annotation["category_id"]))
        self.boxes.fromlist(box)
        crowd = annotation.get("iscrowd")
        if crowd and crowd != 1:
            raise ValueError(f"has the iscrowd {shown(crowd)}")
        self.crowds.append(1 if crowd else 0)
        if type(mask) is list:
            self.masks.add_polygons(mask)
        else:
            self.masks.add_code(mask)

    def drop(self, annotation: Any, number: int, error: Exception) -> None:
        """Note that an annotation is invalid, and remove the values that were appended for it."""
        count = len(self.ends)
        for column in (self.ids, self.image_ids, self.category_ids, self.crowds):
            del column[count:]
        del self.boxes[4 * count :]
        fields = annotation if isinstance(annotation, dict) else {}
        name = f"annotation {shown(fields['id'])}" if "id" in fields else f"annotation number {number} of the list"
        image = f" of image {shown(fields['image_id'])}" if "image_id" in fields else ""
        self.problems.add("annotation", f"{name}{image} {reason_of(error, annotation)}")


class NoCategory(ValueError):
    """No category of a file is usable."""


def read_categories(categories: list, problems: Problems) -> dict[int, str]:
    """Return category id -> name. Of repeated ids the first one counts. Without a usable category, raise NoCategory."""
    names: dict[int, str] = {}
    for number, category in enumerate(categories):
        try:
            key = natural(category["id"])
            name = str(category["name"]).encode(errors="replace").decode()  # a lone surrogate cannot be encoded
        except MALFORMED as error:
            problems.add("category", f"category number {number} of the list {reason_of(error, category)}")
            continue
        if key in names:
            problems.add("category id", f"category {key}, '{names[key]}' and '{name}'")
        else:
            names[key] = name
    if not names:
        raise NoCategory("'categories' has no usable category")
    return names


def unused_categories(entries: list, used: Iterable[int]) -> list[int]:
    """Return the ids of unused categories that are not classes, but headings or the background.

    A heading is the supercategory of all other categories. Any other unused category stays, since a split may lack a
    class. If no category would be left, all stay. `entries` is a COCO file's list "categories", not yet validated.
    """
    valid = [e for e in entries if isinstance(e, dict) and type(e.get("id")) is int and isinstance(e.get("name"), str)]
    if len(valid) < 2 or len({e["id"] for e in valid}) < len(entries):
        return []
    used = set(used)
    dropped = []
    for entry in (e for e in valid if e["id"] not in used):
        others = [e for e in valid if e is not entry and e["name"] not in BACKGROUND]
        groups_the_others = bool(others) and all(e.get("supercategory") == entry["name"] for e in others)
        if groups_the_others or entry["name"] in BACKGROUND:
            dropped.append(entry["id"])
    return dropped if len(dropped) < len(valid) else []


def tell_apart(names: dict[int, str], entries: list, problems: Problems) -> None:
    """Add the supercategory to names that several categories share.

    `names` maps category ids to names. Names that are still not unique are noted. Classes of different splits are
    matched by name, so two classes of one name would be merged.
    """
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    for entry in entries if shared else ():
        key = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(key, int) and names.get(key, "") in shared and entry.get("supercategory"):
            names[key] = f"{names[key]} ({entry['supercategory']})"
    for name, count in Counter(names.values()).items():
        if count > 1:
            ids = ", ".join(str(key) for key, other in names.items() if other == name)
            problems.add("category name", f"'{name}', ids {ids}")


class ImageEntries(NamedTuple):
    """The list "images" as columns: ids int64 [P], sizes int64 [P, 2] (height, width), file names str [P].

    `valid` bool [P] marks usable images. The others, with size 0, are kept so that their annotations are recognised.
    """

    ids: np.ndarray
    sizes: np.ndarray
    file_names: np.ndarray
    valid: np.ndarray


def read_image_entries(images: list, problems: Problems) -> ImageEntries:
    """Read the list "images". Of two images with the same id, keep the first."""
    entries: dict[int, tuple[int, int, str, bool]] = {}  # id -> height, width, file name, valid
    for number, image in enumerate(images):
        key = None
        try:
            key = natural(image["id"])
            name, height, width = image["file_name"], int64(image["height"]), int64(image["width"])
            if not isinstance(name, str):
                raise ValueError(f"has the file name {shown(name)}")
            if height < 1 or width < 1 or height * width > LARGEST_IMAGE:
                raise ValueError(f"has a height of {height} and a width of {width}")
        except MALFORMED as error:
            which = f"image number {number} of the list" if key is None else f"image {key}"
            problems.add("image", f"{which} {reason_of(error, image)}")
            if key is not None:
                entries.setdefault(key, (0, 0, "", False))
            continue
        if key in entries:
            problems.add("image id", f"image {key}, {shown(name)}")
        elif leaves_folder(name):
            problems.add("file name", f"image {key}, {shown(name)}")
            entries[key] = 0, 0, "", False
        else:
            entries[key] = height, width, name, True
    heights, widths, names, valid = zip(*entries.values()) if entries else ((), (), (), ())
    return ImageEntries(
        np.array(list(entries), dtype=np.int64),
        np.array([heights, widths], dtype=np.int64).T.reshape(-1, 2).copy(),
        np.array(names, dtype=np.str_),
        np.array(valid, dtype=bool),
    )


def reason_of(error: Exception, entry: Any) -> str:
    if not isinstance(entry, dict):
        return "is not an object"
    if isinstance(error, KeyError):
        return f"lacks the key {error}"
    if isinstance(error, ValueError):
        return str(error)
    if empty := [key for key in REQUIRED if entry.get(key, 0) is None]:
        return f"has null in place of a value for {' and '.join(map(repr, empty))}"
    return f"has a value of the wrong type ({error})"
