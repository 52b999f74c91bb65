"""A COCO instances file in, the places of its annotations out: an index of a few megabytes, however long the file.

COCO's file of a million training objects takes half a minute and gigabytes as Python objects. Here it is read through
once, object by object; what is kept is where in the file each picture's annotations stand. The index is then stored,
beside the file or in the user's cache folder, and the next start takes it from there as long as the file is the same.
"""
import io
import json
import os
import uuid
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from json.decoder import WHITESPACE
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

VERSION = 1  # of the stored index; another one is not read
DIGEST = 32  # bytes of the SHA-256 that a stored index begins with
STORED_FROM = 1 << 20  # bytes: a smaller file is read as fast as its index would be


@dataclass
class CocoIndex:
    """Where the annotations of P pictures and A objects stand, by picture, in the order of the file.

    Attributes:
        path: the file.
        stamp: int64 [3], version, size in bytes and time of change, of the file that was read.
        categories: category id -> name.
        image_ids: int64 [P].
        sizes: int64 [P, 2], height and width.
        file_names: str [P].
        first: int64 [P + 1]; picture p has the objects first[p] .. first[p + 1] - 1.
        starts: int64 [A], the byte at which each begins in the file.
        lengths: int64 [A], in bytes.
        usable: bool [A], what training can learn from: no crowds, box and mask not empty.
    """

    path: Path
    stamp: np.ndarray
    categories: dict[int, str]
    image_ids: np.ndarray
    sizes: np.ndarray
    file_names: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    usable: np.ndarray

    def annotations(self, picture: int, only_usable: bool) -> list[dict]:
        """A picture's annotations as the file has them.

        Raises:
            ValueError: the file is not the one that was indexed.
        """
        chosen = np.arange(self.first[picture], self.first[picture + 1])
        if only_usable:
            chosen = chosen[self.usable[chosen]]
        texts = []
        with open(self.path, "rb") as file:
            if not np.array_equal(stamp_of(file.fileno()), self.stamp):
                raise ValueError(f"{self.path}: has changed since it was opened; start again")
            for start, length in zip(self.starts[chosen].tolist(), self.lengths[chosen].tolist()):
                file.seek(start)
                texts.append(file.read(length))
        return json.loads(b"[" + b",".join(texts) + b"]")

    def usable_counts(self) -> np.ndarray:
        """int64 [P]: how many objects of each picture training can learn from."""
        return np.diff(np.concatenate(([0], self.usable.cumsum()))[self.first])


def open_index(path: Path) -> CocoIndex:
    """The index of an instances file, stored or made anew.

    Raises:
        ValueError: the file cannot be used; the message says where and why.
    """
    stamp = stamp_of(path)
    if stamp[1] < STORED_FROM:
        return make_index(path)
    stored = read_stored(path, stamp)
    if stored is None:
        with locked(path):  # of several processes one makes the index, the others wait here and find it
            stored = read_stored(path, stamp)
            if stored is None:
                stored = make_index(path)
                store(stored)
    return stored


def stamp_of(file: Path | int) -> np.ndarray:
    """What tells an instances file (a path or a descriptor) from what it was before."""
    status = os.stat(file)
    return np.array([VERSION, status.st_size, status.st_mtime_ns], dtype=np.int64)


# ---------------------------------------------------------------------------------------------------- the stored index


def storage_places(path: Path) -> list[Path]:
    """Where an index may be stored: beside the file, and for folders that cannot be written, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    own_name = f"{path.stem}-{sha256(str(path.resolve()).encode()).hexdigest()[:16]}.index"
    return [path.with_suffix(".index"), cache / "mask-rcnn" / own_name]


def read_stored(path: Path, stamp: np.ndarray) -> CocoIndex | None:
    """A stored index of the file as it is now; None where there is none, or only one that is damaged."""
    for place in storage_places(path):
        try:
            data = place.read_bytes()
        except OSError:
            continue
        if sha256(data[DIGEST:]).digest() != data[:DIGEST]:
            continue
        with np.load(io.BytesIO(data[DIGEST:]), allow_pickle=False) as columns:
            if np.array_equal(columns["stamp"], stamp):
                columns = dict(columns)
                ids, names = columns.pop("category_ids").tolist(), columns.pop("category_names").tolist()
                return CocoIndex(path, categories=dict(zip(ids, names)), **columns)
    return None


def store(index: CocoIndex) -> None:
    """Write the index, behind its digest, to the first place that takes it; there may be none."""
    columns = {name: value for name, value in vars(index).items() if isinstance(value, np.ndarray)}
    columns["category_ids"] = np.array(list(index.categories), dtype=np.int64)
    columns["category_names"] = np.array(list(index.categories.values()), dtype=np.str_)
    content = io.BytesIO()
    np.savez(content, **columns)
    for place in storage_places(index.path):
        draft = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(sha256(content.getvalue()).digest() + content.getvalue())
            os.replace(draft, place)
            return
        except OSError:
            with suppress(OSError):
                draft.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process of this machine at a time, where the system can do that; the lock goes with its process."""
    with open(path, "rb") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # some network file systems have no locks: then each process makes the index for itself
        yield


# ---------------------------------------------------------------------------------------------------- reading the file


def make_index(path: Path) -> CocoIndex:
    """Read an instances file through.

    Raises:
        ValueError: it is not readable as JSON or no instances file, or an entry of it cannot be used.
    """
    stamp = stamp_of(path)
    try:
        with open(path, encoding="utf-8", newline="") as file:  # as it stands: places are counted in it
            text = file.read()
        content = read_content(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for key, kind in (("images", list), ("annotations", Annotations), ("categories", list)):
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{path}: no list '{key}' (is it a COCO instances file?)")
    try:
        categories = read_categories(content["categories"])
        image_ids, sizes, file_names = read_pictures(content["images"])
        annotations = content["annotations"]
        owners = annotations.find_owners(image_ids, sizes, categories)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    order = np.argsort(owners, kind="stable")
    starts, ends = byte_positions(text, np.array(annotations.starts), np.array(annotations.ends))
    return CocoIndex(
        path,
        stamp,
        categories,
        image_ids,
        sizes,
        file_names,
        first=np.searchsorted(owners[order], np.arange(len(image_ids) + 1)),
        starts=starts[order],
        lengths=(ends - starts)[order],
        usable=annotations.usable(sizes[owners])[order],
    )


def read_content(text: str) -> dict:
    """A JSON text that is an object, but its list "annotations" as Annotations instead of objects.

    Raises:
        ValueError: an annotation cannot be used, or the text is no object; JSONDecodeError where it is no JSON.
    """
    scan = json.JSONDecoder().scan_once
    content = {}
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
        whole = json.loads(text)  # says where it is broken
        raise ValueError(f"holds a {type(whole).__name__}, not an object") from None
    return content


class Unexpected(Exception):
    """The text is no JSON object."""


def expect(text: str, i: int, character: str) -> int:
    """The place of what follows `character`, which is to be the next in the text but for white space."""
    i = WHITESPACE.match(text, i).end()
    if text[i] != character:
        raise Unexpected
    return WHITESPACE.match(text, i + 1).end()


class Annotations:
    """What the index needs of the annotations, in the order of the file; numbers only, so that a million are small."""

    def __init__(self):
        self.ids, self.image_ids, self.category_ids = array("q"), array("q"), array("q")
        self.boxes = array("d")  # four numbers each: x, y, width, height
        self.objects = array("b")  # 1 for what is no crowd and has a mask
        self.starts, self.ends = array("q"), array("q")  # in characters of the text
        self.code_sizes: dict[int, list[int]] = {}  # of those whose masks are run-length codes: height, width

    def read(self, text: str, i: int, scan: Callable[[str, int], tuple[Any, int]]) -> int:
        """Take in the JSON list that begins at i; returns where it ends."""
        i = expect(text, i, "[")
        if text[i] == "]":
            return i + 1
        while True:
            annotation, end = scan(text, i)
            try:
                self.take(annotation)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"lacks the key {error}" if isinstance(error, KeyError) else error
                number = annotation.get("id") if isinstance(annotation, dict) else None
                name = f"number {len(self.ends)}" if number is None else number
                raise ValueError(f"annotation {name} {reason}") from error
            self.starts.append(i)
            self.ends.append(end)
            if text[end] not in ",]":
                end = WHITESPACE.match(text, end).end()
            if text[end] == "]":
                return end + 1
            i = end + 1 if text[end : end + 2] == ",{" else expect(text, end, ",")

    def take(self, annotation: dict) -> None:
        """Look whether an annotation can be used, and note what the index needs of it. Called a million times."""
        box, mask = annotation["bbox"], annotation["segmentation"]
        if len(box) != 4:
            raise ValueError(f"has a bbox of {len(box)} numbers instead of 4")
        if not isfinite(annotation.get("area", 0)):
            raise ValueError(f"has the area {annotation['area']}")
        if isinstance(mask, list):
            has_mask = bool(mask)
            for polygon in mask:
                if len(polygon) < 4 or not isfinite(sum(polygon)):
                    raise ValueError(f"has a polygon that is none: {str(polygon)[:40]}")
        elif isinstance(mask, dict) and isinstance(mask["counts"], (str, list)):
            has_mask = bool(mask["counts"])
            self.code_sizes[len(self.ids)] = mask["size"]
        else:
            raise ValueError("has a segmentation that is neither a list of polygons nor a run-length code")
        self.ids.append(whole(annotation["id"]))
        self.image_ids.append(whole(annotation["image_id"]))
        self.category_ids.append(whole(annotation["category_id"]))
        self.boxes.extend(box)
        self.objects.append(has_mask and not annotation.get("iscrowd"))

    def find_owners(self, image_ids: np.ndarray, sizes: np.ndarray, categories: dict[int, str]) -> np.ndarray:
        """The picture of each, int64 [A].

        Raises:
            ValueError: there is no such picture or no such category, or a mask has not the size of its picture.
        """
        order = np.argsort(image_ids, kind="stable")
        wanted = np.array(self.image_ids, dtype=np.int64)
        places = np.searchsorted(image_ids[order], wanted, side="right") - 1
        owners = order[places] if len(order) else places
        unknown = (places < 0) | (image_ids[owners] != wanted) if len(order) else np.ones(len(wanted), dtype=bool)
        for k in np.flatnonzero(unknown)[:1].tolist():
            raise ValueError(f"annotation {self.ids[k]} belongs to image {wanted[k]}, which is not in 'images'")
        for k in np.flatnonzero(~np.isin(np.array(self.category_ids), list(categories)))[:1].tolist():
            raise ValueError(
                f"annotation {self.ids[k]} has category {self.category_ids[k]}, which is not in 'categories'"
            )
        for k, size in self.code_sizes.items():
            if list(size) != sizes[owners[k]].tolist():
                raise ValueError(
                    f"annotation {self.ids[k]} has a mask of size {size}, its picture is {sizes[owners[k]].tolist()}"
                )
        return owners

    def usable(self, sizes: np.ndarray) -> np.ndarray:
        """bool [A]: what training can learn from. `sizes` int64 [A, 2]: height and width of each one's picture."""
        boxes = clipped_corners(np.array(self.boxes).reshape(-1, 4), sizes)
        return (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & np.array(self.objects, dtype=bool)


def whole(number: float) -> float:
    """An id, made an int again where somebody's tool wrote 7.0."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def clipped_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes x, y, width, height -> x1y1x2y2 within their pictures, float64 [N, 4].

    Args:
        boxes: float64 [N, 4].
        sizes: [N, 2] or [2], height and width.
    """
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
    return corners.clip(0, sizes[..., [1, 0, 1, 0]])


def read_categories(categories: list[dict]) -> dict[int, str]:
    """Category id -> name."""
    if not categories:
        raise ValueError("a category is wanted, 'categories' is empty")
    with naming("a category"):
        return {int(c["id"]): str(c["name"]) for c in categories}


def read_pictures(images: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids int64 [P], heights and widths int64 [P, 2], file names str [P]."""
    with naming("an image"):
        return (
            np.array(array("q", [whole(i["id"]) for i in images]), dtype=np.int64),
            np.array([(i["height"], i["width"]) for i in images], dtype=np.int64).reshape(-1, 2),
            np.array([i["file_name"] for i in images], dtype=np.str_),
        )


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Errors about an entry of the file name it."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{what} {f'lacks the key {error}' if isinstance(error, KeyError) else error}") from error


def byte_positions(text: str, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending places in a text, in characters -> the same in bytes of its UTF-8 file."""
    if text.isascii():
        return starts, ends
    places = np.stack((starts, ends), axis=1).reshape(-1).tolist()
    sizes = [len(text[a:b].encode()) for a, b in zip([0, *places], places)]
    return tuple(np.cumsum(sizes).reshape(-1, 2).T)
