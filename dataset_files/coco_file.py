"""Parse a COCO instances file into columns of numbers, so that a million annotations need little memory.

Invalid entries are noted as problems and dropped; only a text that is not an instances file at all is an error.
"""

import json
from array import array
from collections.abc import Callable
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # the stubs omit it
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset_files.polygons import are_point_pairs, may_cover_no_pixel
from dataset_files.problems import Problems, leaves_folder, shown
from network_files.rle import are_packed_codes, unpack_all

AT_ONCE = 1 << 19  # coordinates, or characters of run-length codes, that are checked together
LARGEST_COORDINATE = 1e5  # pixels; a rasteriser follows every edge, so larger ones would take forever
LARGEST_PICTURE = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 60)  # pixels; Pillow refuses larger ones

# Errors that an invalid entry can raise while it is parsed.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)


def read_content(text: str) -> dict:
    """Parse a JSON object, with its list "annotations" as Annotations instead of Python objects.

    Raises:
        ValueError: the text is not an object; JSONDecodeError: it is not JSON.
    """
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
        whole = json.loads(text)  # raises with the place where it is broken
        raise ValueError(f"holds a {type(whole).__name__}, not an object") from None
    return content


class Unexpected(Exception):
    """The text is not a JSON object."""


def expect(text: str, i: int, character: str) -> int:
    """Skip white space and `character`, and return the position of what follows.

    Raises:
        Unexpected: the next character is another one.
    """
    i = WHITESPACE.match(text, i).end()
    if text[i] != character:
        raise Unexpected
    return WHITESPACE.match(text, i + 1).end()


class Annotations:
    """Columns of the annotations that the index needs, in the order of the file; numbers only, to save memory.

    Masks are checked in groups; only their extents and problems are kept.
    """

    def __init__(self) -> None:
        self.ids, self.image_ids, self.category_ids = array("q"), array("q"), array("q")
        self.boxes = array("d")  # four numbers each: x, y, width, height
        self.crowds = array("b")
        self.starts, self.ends = array("q"), array("q")  # in characters of the text
        self.masks = MaskColumns()
        self.problems = Problems()

    def read(self, text: str, i: int, scan: Callable[[str, int], tuple[Any, int]]) -> int:
        """Parse the JSON list that begins at position i; return the position of its end."""
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
        """Append an annotation to the columns, or raise one of MALFORMED. Called a million times."""
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
        """Note that an annotation is invalid, and remove what was appended of it."""
        count = len(self.ends)
        for column in (self.ids, self.image_ids, self.category_ids, self.crowds):
            del column[count:]
        del self.boxes[4 * count :]
        fields = annotation if isinstance(annotation, dict) else {}
        name = f"annotation {shown(fields['id'])}" if "id" in fields else f"annotation number {number} of the list"
        image = f" of image {shown(fields['image_id'])}" if "image_id" in fields else ""
        self.problems.add("annotation", f"{name}{image} {reason_of(error, annotation)}")


class MaskColumns:
    """Masks of annotations, added one by one and checked in groups.

    Attributes, which `look` extends by the masks added since its last call:
        extents: list of float64 [n, 4], x1y1x2y2 around each mask's points or pixels; NaN where it has none.
        flaws: indices of the affected annotations, by kind of problem.
        thin: annotations whose polygons may cover no pixel at all; only rasterising them shows it.
        codes, sizes: annotations whose masks are run-length codes, and the heights and widths of the codes.
    """

    def __init__(self) -> None:
        self.count = 0
        self.extents: list[np.ndarray] = []
        kinds = ("odd polygon", "point pairs", "polygon numbers", "short polygon", "code counts", "no mask")
        self.flaws: dict[str, list[int]] = {kind: [] for kind in kinds}
        self.thin = array("q")
        self.codes, self.sizes = array("q"), array("q")
        self.begin()

    def begin(self) -> None:
        """Begin a new group."""
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
            raise ValueError(f"has invalid polygons: {shown(polygons)}") from None
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
                raise ValueError(f"has invalid run lengths: {shown(counts)}") from None
            self.loose.append(loose)
            self.loose_owners.append(self.count)
        else:
            raise ValueError(f"has a run-length code with invalid counts: {shown(counts)}")
        self.codes.append(self.count)
        self.sizes.extend((height, width))
        self.count += 1
        self.characters += len(counts)
        if self.characters > AT_ONCE:
            self.look()

    def look(self) -> None:
        """Compute extents and problems of the masks in this group, and begin a new one."""
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
        extents[owners[~fine] - self.first] = 0  # these are not without a mask, but have an invalid one

        chosen = fine & (given > 0)
        found, around = extents_of_runs(counts[chosen[code_of]], lengths[chosen], sizes[chosen, 0])
        extents[owners[chosen][found] - self.first] = around


def corners_around(x: np.ndarray, y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return x1y1x2y2 around groups of points that begin at `starts`, float64 [N, 4]; NaN if a group has one."""
    ways = ((np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y))
    return np.stack([way.reduceat(values, starts) for way, values in ways], axis=1)


def extents_of_runs(counts: np.ndarray, lengths: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the extents of masks from their run lengths.

    Args:
        counts: int64 [S], the concatenated run lengths of N codes, column-major and beginning with zeros.
        lengths: int64 [N], number of run lengths of each code, at least one.
        heights: int64 [N].

    Returns:
        The codes that have a pixel, int64 [M], and x1y1x2y2 around their pixels, float64 [M, 4].
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
    """No category of a file is usable."""


def read_categories(categories: list, problems: Problems) -> dict[int, str]:
    """Read category id -> name; of two with the same id, the first.

    Raises:
        NoCategory: no category is usable.
    """
    names: dict[int, str] = {}
    for number, category in enumerate(categories):
        try:
            key = natural(category["id"])
            name = str(category["name"]).encode(errors="replace").decode()  # half a surrogate pair cannot be encoded
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


class Pictures(NamedTuple):
    """The list "images" as columns: ids int64 [P], sizes int64 [P, 2] (height, width), file names str [P].

    `valid` bool [P] marks the usable ones; the others are kept to recognise their annotations.
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
        return "is not an object"
    if isinstance(error, KeyError):
        return f"lacks the key {error}"
    return str(error) if isinstance(error, ValueError) else f"has a value of the wrong type ({error})"


def whole(number: Any) -> Any:
    """Turn an id that a tool wrote as 7.0 back into an int."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def int64(number: Any) -> int:
    """Convert a number of a JSON file to a whole number.

    Raises:
        ValueError, OverflowError: it is not whole, or too large.
    """
    number = whole(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"has {shown(number)} instead of a whole number")
    if not -(2**63) <= number < 2**63:
        raise OverflowError(f"has the number {shown(number)}, which is too large")
    return number


def natural(number: Any) -> int:
    """Convert like `int64`, to 0 or above: COCO's readers accept no other ids of images and categories."""
    if int64(number) < 0:
        raise ValueError(f"has the id {number}, which is below 0")
    return int64(number)
