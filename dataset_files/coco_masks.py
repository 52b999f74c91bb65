"""Masks of a COCO file's annotations as columns: polygons and run-length codes, checked many at once."""

from array import array

import numpy as np
from PIL import Image

from dataset_files.polygons import are_point_pairs, may_cover_no_pixel
from dataset_files.problems import shown
from dataset_files.whole_ids import int64
from network_files.masks.rle import are_packed_codes, unpack_all

AT_ONCE = 1 << 19  # coordinates, or characters of run-length codes, that are checked together
LARGEST_COORDINATE = 1e5  # pixels; a rasteriser follows every edge, so larger ones would take forever
LARGEST_PICTURE = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 60)  # pixels; Pillow refuses larger ones


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
