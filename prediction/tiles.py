"""Cut images that are too large for the network into overlapping tiles, and merge the detections in these.

Two detections in different tiles are one object if their masks agree in the area that both tiles see, or if one of them
is cut off by its tile's border and the other covers it. An object that is whole in some tile is taken from there;
otherwise its mask is the union of its parts. Two detections in one tile are never merged, since the network took them
for two objects. Detections in the outermost strip of a tile are dropped if the neighbour sees them further inside.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from dataset_files.boxes import intersections
from network_files.masks.rle import compress, decode_crops, encode_crop

Detection: TypeAlias = dict[str, np.ndarray]  # boxes [N, 4], labels [N], scores [N] and masks [N, 1, 28, 28]
Encode: TypeAlias = Callable[[np.ndarray, np.ndarray, tuple[int, int]], list[dict]]  # masks, boxes, size -> codes
Tile = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the image, the last two excluded
Window = tuple[int, int, int, int]  # the same of any rectangle

AGREE = 0.5  # IoU of the masks of one object within the area that two tiles see
COVERED = 0.7  # share of an object's part, cut off by its tile's border, that the other tile's mask of it covers
BORDER = 1 / 50  # width of the strip, as a share of the tile's side: an object that ends in it may continue beyond


@dataclass
class TileDetections:
    """The network's detections in a tile, whose boxes are in pixels of the tile."""

    tile: Tile
    detection: Detection


@dataclass
class Part:
    """A detection in a tile, in the frame of the image.

    Attributes:
        tile: the tile's number.
        group: the label, or 0 for all: parts of one object have the same.
        box: x1y1x2y2 in pixels of the image.
        left, top, crop: the pixels of its mask, bool [h, w].
        is_cut: whether it may continue beyond its tile.
    """

    tile: int
    label: int
    group: int
    score: float
    box: np.ndarray
    left: int
    top: int
    crop: np.ndarray
    is_cut: bool

    @property
    def window(self) -> Window:
        height, width = self.crop.shape
        return self.left, self.top, self.left + width, self.top + height

    def inside(self, window: Window) -> np.ndarray:
        """Return the mask's pixels in a window that lies within its own, bool [h, w]."""
        x1, y1, x2, y2 = window
        return self.crop[y1 - self.top : y2 - self.top, x1 - self.left : x2 - self.left]


def tiles_of(image_size: tuple[int, int], side: int | None, overlap: float) -> list[Tile]:
    """Return equally large tiles that cover an image, row by row.

    Args:
        image_size: width and height in pixels.
        side: of a tile in pixels; None for the whole image as one tile.
        overlap: share of the side by which neighbours overlap at least.
    """
    width, height = image_size
    if side is None:
        return [(0, 0, width, height)]
    columns, rows = (starts(length, side, overlap) for length in image_size)
    return [(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where the tiles along an axis begin: at regular intervals, so that the last one ends with the image."""
    if length <= side:
        return [0]
    step = max(int(side * (1 - overlap)), 1)
    number = math.ceil((length - side) / step) + 1
    return [round(k * (length - side) / (number - 1)) for k in range(number)]


def merge_tiles(
    found: Sequence[TileDetections], size: tuple[int, int], encode: Encode, agnostic: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
    """Merge the detections of an image's tiles by the rule above.

    Args:
        size: the image's height and width.
        encode: returns run-length codes for the masks of a tile.
        agnostic: whether detections of different classes can be one object, as with --agnostic-nms.

    Returns:
        `boxes` float32 [N, 4] and `labels` int64 [N], `scores` float32 [N], N run-length codes; best first.
    """
    tiles = [one.tile for one in found]
    by_tile = [parts_of(number, one, size, encode, agnostic) for number, one in enumerate(found)]
    by_tile = [[part for part in parts if not is_left_to_another(part, tiles, size)] for parts in by_tile]
    parts = [part for parts in by_tile for part in parts]
    objects = [merged([parts[i] for i in group]) for group in groups_of(parts, by_tile, tiles)]
    objects.sort(key=lambda part: -part.score)
    codes = compress([encode_crop(part.crop, part.left, part.top, *size) for part in objects])
    return (
        np.array([part.box for part in objects], dtype=np.float32).reshape(-1, 4),
        np.array([part.label for part in objects], dtype=np.int64),
        np.array([part.score for part in objects], dtype=np.float32),
        codes,
    )


def parts_of(number: int, found: TileDetections, size: tuple[int, int], encode: Encode, agnostic: bool) -> list[Part]:
    """Return the detections of a tile in the frame of the image; arguments as in `merge_tiles`."""
    left, top, right, bottom = found.tile
    boxes = found.detection["boxes"]
    codes = encode(found.detection["masks"], boxes, (bottom - top, right - left))
    in_image = boxes.astype(np.float64) + (left, top, left, top)
    labels, scores = found.detection["labels"].tolist(), found.detection["scores"].tolist()
    parts = []
    for label, score, box, (x, y, crop) in zip(labels, scores, in_image, decode_crops(codes)):
        is_cut, group = may_continue(box, found.tile, size), 0 if agnostic else label
        parts.append(Part(number, label, group, score, box, left + x, top + y, crop.astype(bool), is_cut))
    return parts


def may_continue(box: np.ndarray, tile: Tile, size: tuple[int, int]) -> bool:
    """Whether a box reaches into the strip along a border of its tile, except where that is the image's border."""
    x1, y1, x2, y2 = inside_of(tile, size)
    return bool(box[0] <= x1 or box[1] <= y1 or box[2] >= x2 or box[3] >= y2)


def is_left_to_another(part: Part, tiles: Sequence[Tile], size: tuple[int, int]) -> bool:
    """Whether a part lies in the strip along a border of its tile, and wholly in another tile without its strips."""
    if not is_in_strip(part.box, tiles[part.tile], size):
        return False
    x1, y1, x2, y2 = part.box
    insides = np.array([inside_of(tile, size) for tile in tiles])
    return bool(((insides[:, :2] <= (x1, y1)) & (insides[:, 2:] >= (x2, y2))).all(axis=1).any())


def is_in_strip(box: np.ndarray, tile: Tile, size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = inside_of(tile, size)
    return bool(box[2] <= x1 or box[3] <= y1 or box[0] >= x2 or box[1] >= y2)


def inside_of(tile: Tile, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a tile without the strips along its borders; unbounded where its border is the image's."""
    strip = BORDER * max(tile[2] - tile[0], tile[3] - tile[1])
    height, width = size
    left, top = (-math.inf if start == 0 else start + strip for start in tile[:2])
    right, bottom = (math.inf if end == length else end - strip for end, length in zip(tile[2:], (width, height)))
    return left, top, right, bottom


def groups_of(parts: Sequence[Part], by_tile: Sequence[Sequence[Part]], tiles: Sequence[Tile]) -> list[list[int]]:
    """Group the parts of each object, the best agreement first, with at most one part per tile and object."""
    owner = list(range(len(parts)))
    groups = {i: [i] for i in owner}
    for _, i, j in sorted(agreements(by_tile, tiles), key=lambda pair: -pair[0]):
        one, other = owner[i], owner[j]
        if one == other or {parts[k].tile for k in groups[one]} & {parts[k].tile for k in groups[other]}:
            continue
        groups[one] += groups[other]
        for k in groups.pop(other):
            owner[k] = one
    return list(groups.values())


def agreements(by_tile: Sequence[Sequence[Part]], tiles: Sequence[Tile]) -> Iterator[tuple[float, int, int]]:
    """Yield the agreement and numbers, over all tiles, of two parts that show one object in different tiles."""
    first = np.concatenate(([0], np.cumsum([len(parts) for parts in by_tile])))
    for a in range(len(tiles)):
        for b in range(a + 1, len(tiles)):
            seen_by_both = intersection(tiles[a], tiles[b])
            if seen_by_both is None:
                continue
            ours, theirs = (np.array([part.window for part in by_tile[k]]).reshape(-1, 4) for k in (a, b))
            for i, j in np.argwhere(intersections(ours[:, None], theirs) > 0).tolist():
                agreement = agreement_of(by_tile[a][i], by_tile[b][j], seen_by_both)
                if agreement > 0:
                    yield agreement, int(first[a]) + i, int(first[b]) + j


def agreement_of(one: Part, other: Part, seen_by_both: Window) -> float:
    """Return how well two masks agree within a window, at most 1; 0 if they do not show the same object."""
    shared = intersection(one.window, other.window)
    if shared is None:
        return 0.0
    common = int(np.count_nonzero(one.inside(shared) & other.inside(shared)))
    if common == 0:
        return 0.0
    areas = [area_within(part, seen_by_both) for part in (one, other)]
    agreement = common / (sum(areas) - common)
    if agreement >= AGREE and one.group == other.group:
        return agreement
    for part, area, whole in ((one, areas[0], other), (other, areas[1], one)):
        if part.is_cut and common >= COVERED * area and (part.group == whole.group or not whole.is_cut):
            return agreement
    return 0.0


def area_within(part: Part, window: Window) -> int:
    shared = intersection(part.window, window)
    return 0 if shared is None else int(np.count_nonzero(part.inside(shared)))


def intersection(one: Window, other: Window) -> Window | None:
    x1, y1, x2, y2 = (f(a, b) for f, a, b in zip((max, max, min, min), one, other))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def merged(parts: Sequence[Part]) -> Part:
    """Return an object: its best whole part, else the union of its parts with label and score of the best."""
    whole = [part for part in parts if not part.is_cut]
    best = max(whole or parts, key=lambda part: part.score)
    if whole or len(parts) == 1:
        return best
    boxes = np.stack([part.box for part in parts])
    windows = np.array([part.window for part in parts])
    (x1, y1), (x2, y2) = windows[:, :2].min(axis=0).tolist(), windows[:, 2:].max(axis=0).tolist()
    crop = np.zeros((y2 - y1, x2 - x1), dtype=bool)
    for part in parts:
        left, top, right, bottom = part.window
        crop[top - y1 : bottom - y1, left - x1 : right - x1] |= part.crop
    box = np.concatenate((boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))
    return Part(best.tile, best.label, best.group, best.score, box, x1, y1, crop, is_cut=False)
