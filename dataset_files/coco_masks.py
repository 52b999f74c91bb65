"""Check the masks of a COCO file, polygons and run-length codes, many at once; measure single ones."""

from array import array

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from dataset_files.problems import shown
from dataset_files.whole_ids import int64
from network_files.masks.rle import are_packed_codes, boxes_of_runs, unpack_all, unpack_counts

AT_ONCE = 1 << 19  # coordinates, or characters of run-length codes, that are checked together
LARGEST_COORDINATE = 1e5  # pixels; a rasteriser follows every edge, so larger ones would take forever
SLACK = 1.2, 2.0  # of `may_cover_no_pixel`, for outlines that are not convex and for the rounding of their corners
LARGEST_IMAGE = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 60)  # pixels; Pillow refuses larger ones


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
        fine &= (sizes > 0).all(axis=1) & (pixels <= LARGEST_IMAGE)
        fine[code_of[(counts < 0) | (counts > LARGEST_IMAGE)]] = False
        fine &= (np.bincount(code_of, counts, minlength=len(owners)) == pixels) | (given == 0)
        self.flaws["code counts"] += owners[~fine].tolist()
        extents[owners[~fine] - self.first] = 0  # these are not without a mask, but have an invalid one

        chosen = fine & (given > 0)
        boxes = boxes_of_runs(counts[chosen[code_of]], lengths[chosen], *sizes[chosen].T)
        found = boxes[:, 2] > 0
        boxes[:, 2:] += boxes[:, :2]
        extents[owners[chosen][found] - self.first] = boxes[found]


def corners_around(x: np.ndarray, y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return x1y1x2y2 around groups of points that begin at `starts`, float64 [N, 4]; NaN if a group has one."""
    ways = ((np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y))
    return np.stack([way.reduceat(values, starts) for way, values in ways], axis=1)


def are_point_pairs(lengths: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Where an object begins that has three or more "polygons", all of two numbers: [[x1, y1], [x2, y2], ...].

    Args:
        lengths: int64 [P], the count of numbers of each polygon.
        owners: int64 [P], the objects they belong to; each object's polygons are together.

    Returns:
        int64 [M], places among the polygons, one for each such object.
    """
    if np.count_nonzero(lengths == 2) < 3:
        return np.zeros(0, dtype=np.int64)
    borders = np.flatnonzero(np.diff(owners, prepend=-1))
    counts = np.diff(borders, append=len(owners))
    only_pairs = np.logical_and.reduceat(lengths == 2, borders)
    return borders[only_pairs & (counts >= 3)]


def may_cover_no_pixel(
    x: np.ndarray, y: np.ndarray, starts: np.ndarray, borders: np.ndarray, around: np.ndarray
) -> np.ndarray:
    """Which objects may cover no pixel: their polygons have little area for their width and height, bool [N].

    A convex outline that has none of a grid's points inside has an area of at most half its length (Nosarzewska's
    inequality), which is at most the width and height of the box around it. Few objects of usual data are left.

    Args:
        x, y: float64 [S], the corners of all polygons one after the other.
        starts: int64 [P], where each polygon begins among the corners.
        borders: int64 [N], where each object begins among the polygons.
        around: float64 [N, 4], x1y1x2y2 around each object.
    """
    following = np.arange(1, len(x) + 1)
    following[np.append(starts[1:], len(x)) - 1] = starts
    with np.errstate(over="ignore", invalid="ignore"):  # coordinates may be anything that a file can hold
        areas = np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts)) / 2
    sides = (around[:, 2:] - around[:, :2]).sum(axis=1)
    return np.maximum.reduceat(areas, borders) <= SLACK[0] * sides + SLACK[1]


# ------------------------------------------------------------------------------------------------- single masks


def box_of_mask(segmentation: list | dict) -> list[float] | None:
    """x, y, width, height around a mask; None if it is empty or invalid.

    Of polygons that is the box around their corners, as COCO has it; of a run-length code (counts packed or listed) the
    one around its pixels.
    """
    if isinstance(segmentation, dict):
        counts = run_lengths(segmentation)
        if counts is None or not counts[1::2].any():
            return None
        (box,) = boxes_of_runs(counts, np.array([len(counts)]), *segmentation["size"])
        return [float(value) for value in box]
    polygons = valid_polygons(segmentation)
    if not polygons:
        return None
    points = np.concatenate(polygons).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def area_of_mask(segmentation: list | dict, height: int, width: int) -> float | None:
    """Pixels of a mask in an image of that size; None if it is invalid or has no outline."""
    if isinstance(segmentation, dict):
        counts = run_lengths(segmentation)
        return None if counts is None else float(counts[1::2].sum())
    polygons = valid_polygons(segmentation)
    if not polygons or not 0 < height * width <= LARGEST_IMAGE:
        return None
    codes = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    return float(coco_mask.area(coco_mask.merge(codes)))


def run_lengths(code: dict) -> np.ndarray | None:
    """The run lengths of a code, int64, zeros first; None if they are invalid or do not add up to its size."""
    try:
        height, width = code["size"]
        counts = code["counts"]
        counts = unpack_counts(counts.encode()) if isinstance(counts, str) else np.array(counts, dtype=np.int64)
        valid = counts.ndim == 1 and counts.min(initial=0) >= 0 and counts.max(initial=0) <= LARGEST_IMAGE
        return counts if valid and len(counts) and 0 < int(counts.sum()) == height * width else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def valid_polygons(polygons: list) -> list[np.ndarray]:
    """The polygons with three points or more, float64 [2 * points] each; none at all if one is invalid."""
    try:
        valid = [np.array(polygon, dtype=np.float64) for polygon in polygons if len(polygon) >= 6]
    except (TypeError, ValueError, OverflowError):
        return []
    fine = all(p.ndim == 1 and len(p) % 2 == 0 and (np.abs(p) <= LARGEST_COORDINATE).all() for p in valid)
    return valid if fine else []
