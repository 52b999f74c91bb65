"""A COCO instances file's text in, its annotations out as columns of numbers: a million of them need little memory.

What cannot be taken in is noted as a problem and left out; only a text that is no instances file at all is an error.
"""

import json
from array import array
from collections.abc import Callable
from json.decoder import WHITESPACE
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset_files.polygons import are_point_pairs, may_cover_no_pixel
from dataset_files.problems import Problems, leaves_folder, shown
from network_files.rle import are_packed_codes, unpack_all

AT_ONCE = 1 << 19  # coordinates, or characters of run-length codes, that are looked at together
LARGEST_COORDINATE = 1e5  # pixels; a rasteriser walks along every edge, so that larger ones would take it for ever
LARGEST_PICTURE = 2 * Image.MAX_IMAGE_PIXELS  # pixels; Pillow opens no larger one

# What an entry of the wrong form raises when it is taken in.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)


def read_content(text: str) -> dict:
    """A JSON text that is an object, but its list "annotations" as Annotations instead of objects.

    Raises:
        ValueError: the text is no object; JSONDecodeError where it is no JSON.
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
    """What the index needs of the annotations, in the order of the file; numbers only, so that a million are small.

    Masks are looked at in groups, and what remains of them is where they reach and what is wrong with them.
    """

    def __init__(self):
        self.ids, self.image_ids, self.category_ids = array("q"), array("q"), array("q")
        self.boxes = array("d")  # four numbers each: x, y, width, height
        self.crowds = array("b")
        self.starts, self.ends = array("q"), array("q")  # in characters of the text
        self.masks = MaskColumns()
        self.problems = Problems()

    def read(self, text: str, i: int, scan: Callable[[str, int], tuple[Any, int]]) -> int:
        """Take in the JSON list that begins at i; returns where it ends."""
        i = expect(text, i, "[")
        number = 0
        if text[i] == "]":
            return i + 1
        while True:
            annotation, end = scan(text, i)
            try:
                self.take(annotation)
            except MALFORMED as error:
                self.drop(annotation, number, error)
            else:
                self.starts.append(i)
                self.ends.append(end)
            number += 1
            if text[end] not in ",]":
                end = WHITESPACE.match(text, end).end()
            if text[end] == "]":
                self.masks.look()
                return end + 1
            i = end + 1 if text[end : end + 2] == ",{" else expect(text, end, ",")

    def take(self, annotation: dict) -> None:
        """Note what the index needs of an annotation, or raise one of MALFORMED. Called a million times."""
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
        """Note that an annotation cannot be used, and forget what was taken of it."""
        count = len(self.ends)
        for column in (self.ids, self.image_ids, self.category_ids, self.crowds):
            del column[count:]
        del self.boxes[4 * count :]
        fields = annotation if isinstance(annotation, dict) else {}
        name = f"annotation {shown(fields['id'])}" if "id" in fields else f"annotation number {number} of the list"
        image = f" of image {shown(fields['image_id'])}" if "image_id" in fields else ""
        self.problems.add("annotation", f"{name}{image} {reason_of(error, annotation)}")


class MaskColumns:
    """The masks of annotations, taken in one after the other and looked at in groups.

    Attributes, of which `look` fills in those of the masks since the last time:
        extents: list of float64 [n, 4], x1y1x2y2 around each mask's points or pixels; NaN where it has none.
        flaws: by kind of problem, the annotations that have it.
        thin: the annotations whose polygons may cover no pixel at all; only drawing them tells.
        codes, sizes: the annotations whose masks are run-length codes, and the codes' heights and widths.
    """

    def __init__(self):
        self.count = 0
        self.extents: list[np.ndarray] = []
        kinds = ("odd polygon", "point pairs", "polygon numbers", "short polygon", "code counts", "no mask")
        self.flaws: dict[str, list[int]] = {kind: [] for kind in kinds}
        self.thin = array("q")
        self.codes, self.sizes = array("q"), array("q")
        self.begin()

    def begin(self) -> None:
        """A new group."""
        self.first = self.count
        self.points, self.lengths, self.owners = array("d"), array("q"), array("q")
        self.packed: list[bytes] = []
        self.packed_owners: list[int] = []
        self.loose: list[array] = []
        self.loose_owners: list[int] = []
        self.characters = 0

    def add_polygons(self, polygons: list[list[float]]) -> None:
        before = len(self.points)
        try:
            for polygon in polygons:
                self.points.fromlist(polygon)
        except (TypeError, OverflowError):
            del self.points[before:]
            raise ValueError(f"has polygons that are none: {shown(polygons)}") from None
        for polygon in polygons:
            self.lengths.append(len(polygon))
            self.owners.append(self.count)
        self.count += 1
        if len(self.points) > AT_ONCE:
            self.look()

    def add_code(self, code: dict) -> None:
        if not isinstance(code, dict):
            raise ValueError("has a segmentation that is neither a list of polygons nor a run-length code")
        counts, (height, width) = code["counts"], map(int64, code["size"])
        if isinstance(counts, str):
            self.packed.append(counts.encode())
            self.packed_owners.append(self.count)
        elif isinstance(counts, list):
            loose = array("q")
            try:
                loose.fromlist(counts)
            except (TypeError, OverflowError):
                raise ValueError(f"has run lengths that are none: {shown(counts)}") from None
            self.loose.append(loose)
            self.loose_owners.append(self.count)
        else:
            raise ValueError(f"has a run-length code whose counts are {shown(counts)}")
        self.codes.append(self.count)
        self.sizes.extend((height, width))
        self.count += 1
        self.characters += len(counts)
        if self.characters > AT_ONCE:
            self.look()

    def look(self) -> None:
        """See where the masks of this group reach and what is wrong with them, and begin a new one."""
        extents = np.full((self.count - self.first, 4), np.nan)
        if self.owners:
            self.look_at_polygons(extents)
        if self.packed_owners or self.loose_owners:
            self.look_at_codes(extents)
        empty = np.flatnonzero(np.isnan(extents[:, 0])) + self.first
        self.flaws["no mask"] += empty.tolist()
        self.extents.append(extents)
        self.begin()

    def look_at_polygons(self, extents: np.ndarray) -> None:
        points, lengths, owners = (np.array(column) for column in (self.points, self.lengths, self.owners))
        odd, short = lengths % 2 == 1, lengths < 6
        self.flaws["odd polygon"] += np.unique(owners[odd]).tolist()
        self.flaws["short polygon"] += np.unique(owners[short & ~odd]).tolist()
        self.flaws["point pairs"] += owners[are_point_pairs(lengths, owners)].tolist()
        good = ~odd & ~short
        if not good.all():
            points, lengths, owners = points[np.repeat(good, lengths)], lengths[good], owners[good]
        if not len(owners):
            return
        borders = np.flatnonzero(np.diff(owners, prepend=-1))  # each object's polygons are together
        starts = (lengths.cumsum() - lengths) // 2
        around = corners_around(points[::2], points[1::2], starts[borders])
        fine = (np.abs(around) <= LARGEST_COORDINATE).all(axis=1)  # not if NaN
        self.flaws["polygon numbers"] += owners[borders][~fine].tolist()
        extents[owners[borders] - self.first] = np.where(fine[:, None], around, 0)
        thin = fine & may_cover_no_pixel(points[::2], points[1::2], starts, borders, around)
        self.thin.extend(owners[borders][thin].tolist())

    def look_at_codes(self, extents: np.ndarray) -> None:
        owners = np.array(self.packed_owners + self.loose_owners, dtype=np.int64)
        sizes = np.array(self.sizes).reshape(-1, 2)[np.searchsorted(np.array(self.codes), owners)]
        given = np.array([len(code) for code in (*self.packed, *self.loose)])
        valid = are_packed_codes(self.packed)
        counts, lengths = unpack_all([packed if ok else b"" for packed, ok in zip(self.packed, valid.tolist())])
        counts = np.concatenate((counts, *(np.array(loose) for loose in self.loose))).astype(np.int64)
        lengths = np.concatenate((lengths, given[len(self.packed) :]))
        code_of = np.repeat(np.arange(len(owners)), lengths)

        fine = np.concatenate((valid, np.ones(len(self.loose), dtype=bool)))
        pixels = sizes.astype(np.float64).prod(axis=1)
        fine &= (sizes > 0).all(axis=1) & (pixels <= LARGEST_PICTURE)
        fine[code_of[(counts < 0) | (counts > LARGEST_PICTURE)]] = False
        fine &= (np.bincount(code_of, counts, minlength=len(owners)) == pixels) | (given == 0)
        self.flaws["code counts"] += owners[~fine].tolist()
        extents[owners[~fine] - self.first] = 0  # these are not without a mask, but have a wrong one

        chosen = fine & (given > 0)
        found, around = extents_of_runs(counts[chosen[code_of]], lengths[chosen], sizes[chosen, 0])
        extents[owners[chosen][found] - self.first] = around


def corners_around(x: np.ndarray, y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """x1y1x2y2 around groups of points that begin at `starts`, float64 [N, 4]; NaN if any of a group is."""
    ways = ((np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y))
    return np.stack([way.reduceat(values, starts) for way, values in ways], axis=1)


def extents_of_runs(counts: np.ndarray, lengths: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where masks reach, from their run lengths.

    Args:
        counts: int64 [S], the run lengths of N codes one after the other, zeros first, down the columns.
        lengths: int64 [N], how many of them belong to each code, at least one.
        heights: int64 [N].

    Returns:
        Which codes have a pixel, int64 [M], and x1y1x2y2 around their pixels, float64 [M, 4].
    """
    code_of = np.repeat(np.arange(len(lengths)), lengths)
    starts = lengths.cumsum() - lengths
    within = np.arange(len(counts)) - starts[code_of]
    ends = counts.cumsum()
    ends -= (ends - counts)[starts][code_of]
    ones = np.flatnonzero((within % 2 == 1) & (counts > 0))
    code_of, first, last = code_of[ones], (ends - counts)[ones], ends[ones] - 1
    height = heights[code_of]
    left, right = first // height, last // height
    top, bottom = np.where(left == right, first % height, 0), np.where(left == right, last % height, height - 1)
    borders = np.flatnonzero(np.diff(code_of, prepend=-1))
    if not len(borders):
        return code_of, np.zeros((0, 4))
    low = [np.minimum.reduceat(values, borders) for values in (left, top)]
    high = [np.maximum.reduceat(values, borders) + 1 for values in (right, bottom)]
    return code_of[borders], np.stack(low + high, axis=1).astype(np.float64)


class NoCategory(ValueError):
    """No category of a file can be used."""


def read_categories(categories: list, problems: Problems) -> dict[int, str]:
    """Category id -> name; of two with one id the first.

    Raises:
        NoCategory: there is none that can be used.
    """
    names = {}
    for number, category in enumerate(categories):
        try:
            key = natural(category["id"])
            name = str(category["name"]).encode(errors="replace").decode()  # half a character can be written nowhere
        except MALFORMED as error:
            problems.add("category", f"category number {number} of the list {reason_of(error, category)}")
            continue
        if key in names:
            problems.add("category id", f"category {key}, '{names[key]}' and '{name}'")
        else:
            names[key] = name
    if not names:
        raise NoCategory("a category is wanted, 'categories' holds none")
    return names


class Pictures(NamedTuple):
    """The list "images" as columns: ids int64 [P], sizes int64 [P, 2] (height, width), file names str [P].

    `valid` bool [P] says which can be used; the others are there for their annotations' sake.
    """

    ids: np.ndarray
    sizes: np.ndarray
    file_names: np.ndarray
    valid: np.ndarray


def read_pictures(images: list, problems: Problems) -> Pictures:
    ids, sizes, names, valid = array("q"), array("q"), [], []
    taken = set()
    for number, image in enumerate(images):
        try:
            key = natural(image["id"])
        except MALFORMED as error:
            problems.add("image", f"image number {number} of the list {reason_of(error, image)}")
            continue
        name, height, width = "", 0, 0
        try:
            name, height, width = image["file_name"], int64(image["height"]), int64(image["width"])
            if not isinstance(name, str):
                raise ValueError(f"has the file name {shown(name)}")
            if height < 1 or width < 1 or height * width > LARGEST_PICTURE:
                raise ValueError(f"has a height of {height} and a width of {width}")
        except MALFORMED as error:
            problems.add("image", f"image {key} {reason_of(error, image)}")
            flawed = True
        else:
            flawed = key in taken or leaves_folder(name)
            if key in taken:
                problems.add("image id", f"image {key}, {shown(name)}")
            elif flawed:
                problems.add("file name", f"image {key}, {shown(name)}")
        if key not in taken:
            taken.add(key)
            ids.append(key)
            sizes.extend((0, 0) if flawed else (height, width))
            names.append("" if flawed else name)
            valid.append(not flawed)
    return Pictures(
        np.array(ids, dtype=np.int64),
        np.array(sizes, dtype=np.int64).reshape(-1, 2),
        np.array(names, dtype=np.str_),
        np.array(valid, dtype=bool),
    )


def reason_of(error: Exception, entry: Any) -> str:
    if not isinstance(entry, dict):
        return "is no object"
    if isinstance(error, KeyError):
        return f"lacks the key {error}"
    return str(error) if isinstance(error, ValueError) else f"holds something of the wrong kind ({error})"


def whole(number: float) -> float:
    """An id, made an int again where somebody's tool wrote 7.0."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def int64(number: float) -> int:
    """A number of a JSON file that is to be whole.

    Raises:
        ValueError, OverflowError: it is none, or too large.
    """
    number = whole(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"has {shown(number)} where a whole number is wanted")
    if not -(2**63) <= number < 2**63:
        raise OverflowError(f"has the number {shown(number)}, which is too large")
    return number


def natural(number: float) -> int:
    """The same, not below 0: COCO's readers take no other ids of pictures and categories."""
    if int64(number) < 0:
        raise ValueError(f"has the id {number}, which is below 0")
    return int64(number)
