"""Check the masks of a COCO file, thousands at a time, and compute the box and area of a single mask."""

from array import array
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from dataset_files.problems import shown
from network_files.masks.rle import MOST_PIXELS, are_packed_codes, boxes_of_runs, unpack_all

AT_ONCE = 1 << 19  # coordinates, or characters of run-length codes, that are checked together
LARGEST_COORDINATE = 1e5  # pixels; a rasteriser follows every edge, so larger ones would take forever
SLACK = 1.2, 2.0  # factor and offset in `may_cover_no_pixel`, for non-convex outlines and rounded vertices
LARGEST_IMAGE = MOST_PIXELS


class MaskColumns:
    """Collect the masks of annotations one by one, and check them in large groups.

    Attributes (`check_group` extends them by the masks added since its last call):
        extents: list of float64 [n, 4], x1y1x2y2 around each mask's points or pixels; NaN for an empty mask.
        flaws: indices of the affected annotations, by kind of problem.
        thin: annotations whose polygons may cover no pixel at all; only rasterising them decides.
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
            self.check_group()

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
            self.check_group()

    def check_group(self) -> None:
        """Compute extents and problems of the masks added since the last call, and begin a new group."""
        extents = np.full((self.count - self.first, 4), np.nan)
        if self.owners:
            self.check_polygons(extents)
        if self.packed_owners or self.loose_owners:
            self.check_codes(extents)
        empty = np.flatnonzero(np.isnan(extents[:, 0])) + self.first
        self.flaws["no mask"] += empty.tolist()
        self.extents.append(extents)
        self.begin()

    def check_polygons(self, extents: np.ndarray) -> None:
        points, lengths, owners = (np.array(column) for column in (self.points, self.lengths, self.owners))
        odd, short = lengths % 2 == 1, lengths < 6
        self.flaws["odd polygon"] += np.unique(owners[odd]).tolist()
        self.flaws["short polygon"] += np.unique(owners[short & ~odd]).tolist()
        if np.count_nonzero(lengths == 2) >= 3:  # "polygons" may be single points: [[x1, y1], [x2, y2], ...]
            firsts = np.flatnonzero(np.diff(owners, prepend=-1))  # each object's polygons are contiguous
            are_pairs = np.logical_and.reduceat(lengths == 2, firsts) & (np.diff(firsts, append=len(owners)) >= 3)
            self.flaws["point pairs"] += owners[firsts[are_pairs]].tolist()
        good = ~odd & ~short
        if not good.all():
            points, lengths, owners = points[np.repeat(good, lengths)], lengths[good], owners[good]
        if not len(owners):
            return
        borders = np.flatnonzero(np.diff(owners, prepend=-1))
        starts, x, y = (lengths.cumsum() - lengths) // 2, points[::2], points[1::2]
        ways = ((np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y))
        around = np.stack([way.reduceat(values, starts[borders]) for way, values in ways], axis=1)
        fine = (np.abs(around) <= LARGEST_COORDINATE).all(axis=1)  # False for NaN
        self.flaws["polygon numbers"] += owners[borders][~fine].tolist()
        extents[owners[borders] - self.first] = np.where(fine[:, None], around, 0)
        thin = fine & may_cover_no_pixel(x, y, starts, borders, around)
        self.thin.extend(owners[borders][thin].tolist())

    def check_codes(self, extents: np.ndarray) -> None:
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
        fine &= (sizes > 0).all(axis=1) & (pixels <= LARGEST_IMAGE)
        fine[code_of[(counts < 0) | (counts > LARGEST_IMAGE)]] = False
        fine &= (np.bincount(code_of, counts, minlength=len(owners)) == pixels) | (given == 0)
        self.flaws["code counts"] += owners[~fine].tolist()
        extents[owners[~fine] - self.first] = 0  # not NaN: these objects have a mask, though an invalid one

        chosen = fine & (given > 0)
        boxes = boxes_of_runs(counts[chosen[code_of]], lengths[chosen], *sizes[chosen].T)
        found = boxes[:, 2] > 0
        boxes[:, 2:] += boxes[:, :2]
        extents[owners[chosen][found] - self.first] = boxes[found]


def may_cover_no_pixel(
    x: np.ndarray, y: np.ndarray, starts: np.ndarray, borders: np.ndarray, around: np.ndarray
) -> np.ndarray:
    """Mark objects so thin that they may cover no pixel, bool [N].

    Their area is small for their width and height: a convex outline without a grid point inside has an area of at most
    half its perimeter (Nosarzewska's inequality), which is at most the sum of width and height of its bounding box. Few
    objects of typical data are that thin.

    Args:
        x, y: float64 [S], the vertices of all polygons, concatenated.
        starts: int64 [P], the index of each polygon's first vertex.
        borders: int64 [N], the index of each object's first polygon.
        around: float64 [N, 4], x1y1x2y2 around each object.
    """
    following = np.arange(1, len(x) + 1)
    following[np.append(starts[1:], len(x)) - 1] = starts
    with np.errstate(over="ignore", invalid="ignore"):  # coordinates may be anything that a file can hold
        areas = np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts)) / 2
    sides = (around[:, 2:] - around[:, :2]).sum(axis=1)
    return np.maximum.reduceat(areas, borders) <= SLACK[0] * sides + SLACK[1]


def box_of_mask(segmentation: list | dict) -> list[float] | None:
    """Return the box [x, y, width, height] around a mask; None if the mask is empty or invalid.

    For polygons it is the box around their vertices, as in COCO; for a run-length code, the box around its pixels.
    """
    masks = checked_mask(segmentation)
    if masks is None or masks.flaws["no mask"]:
        return None
    x1, y1, x2, y2 = masks.extents[0][0].tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def area_of_mask(segmentation: list | dict, height: int, width: int) -> float | None:
    """Count the pixels of a mask in an image of this size; None if the mask is invalid or missing."""
    masks = checked_mask(segmentation)
    if masks is None or not 0 < height * width <= LARGEST_IMAGE:
        return None
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
    elif masks.flaws["no mask"]:
        return None
    return float(coco_mask.area(packed_code(segmentation, height, width)))


def checked_mask(segmentation: list | dict) -> MaskColumns | None:
    """Check one mask. Return a `MaskColumns` that holds this mask alone; None if it is invalid."""
    masks = MaskColumns()
    try:
        if isinstance(segmentation, list):
            masks.add_polygons(segmentation)
        else:
            masks.add_code(segmentation)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    masks.check_group()
    invalid = any(masks.flaws[kind] for kind in ("odd polygon", "polygon numbers", "code counts"))
    return None if invalid else masks


def packed_code(mask: list | dict, height: int, width: int) -> dict:
    """Convert a mask (polygons or a run-length code) to a run-length code with packed counts, which are bytes.

    The given code may have listed or packed counts. An invalid mask raises ValueError. Polygons of fewer than three
    points are left out; pycocotools would interpret two points as a box.
    """
    polygons = [polygon for polygon in mask if len(polygon) >= 6] if isinstance(mask, list) else []
    if polygons:
        codes = coco_mask.frPyObjects(polygons, height, width)
        return codes[0] if len(codes) == 1 else coco_mask.merge(codes)
    counts = (mask["counts"] if isinstance(mask, dict) else None) or [height * width]
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": counts.encode()}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(number: Any) -> Any:
    """Convert a float without a fraction, such as 7.0, to an int. Return anything else unchanged."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def int64(number: Any) -> int:
    """Convert a number from a JSON file to an int64. ValueError if it is not whole, OverflowError if too large."""
    number = whole(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"has {shown(number)} instead of a whole number")
    if not -(2**63) <= number < 2**63:
        raise OverflowError(f"has the number {shown(number)}, which is too large")
    return number


def natural(number: Any) -> int:
    """Convert an id with `int64`. Negative ids, which COCO's readers do not accept, raise ValueError."""
    if (natural := int64(number)) < 0:
        raise ValueError(f"has the id {number}, which is below 0")
    return natural
