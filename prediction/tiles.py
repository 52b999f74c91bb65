"""Cut images that are too large for the network into overlapping tiles, and merge the detections in them.

Two detections in different tiles are one object if their masks agree in the area that both tiles see, or if one of them
is cut off by its tile's border and the other covers it. An object that is whole in some tile is taken from there;
otherwise its mask is the union of its parts. Two detections in one tile are never merged, since the network took them
for two objects. Detections in the outermost strip of a tile are dropped if the neighbour sees them further inside.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np

from dataset_files.boxes import intersections
from network_files.masks.rle import compress, decode_crops, encode_crop

# boxes float32 [N, 4], labels int64 [N], scores float32 [N] and masks, probabilities float32 [N, 1, 28, 28]
Detection: TypeAlias = dict[str, np.ndarray]
Encode: TypeAlias = Callable[[np.ndarray, np.ndarray, tuple[int, int]], list[dict]]  # masks, boxes, size -> codes
Tile = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the image, the last two excluded
Window = tuple[int, int, int, int]  # the same numbers of any rectangle

AGREE = 0.5  # minimum IoU of two masks of one object, within the area that both tiles see
COVERED = 0.7  # minimum share of a part cut off by its tile's border that the other tile's mask covers
BORDER = 1 / 50  # width of the strip, as a share of the tile's side: an object that ends in it may continue beyond


@dataclass
class Part:
    """A detection in a tile, with box and mask in pixels of the image."""

    tile: int  # the tile's number
    label: int
    group: int  # the label, or 0 with agnostic NMS; parts of one object have the same group
    score: float
    box: np.ndarray  # x1y1x2y2
    left: int
    top: int
    crop: np.ndarray  # bool [h, w], the mask's pixels at (left, top)
    is_cut: bool  # whether the object may continue beyond the tile

    @property
    def window(self) -> Window:
        height, width = self.crop.shape
        return self.left, self.top, self.left + width, self.top + height

    def inside(self, window: Window | None) -> np.ndarray:
        """Return the mask's pixels, bool [h, w], in a window that lies within `self.window`; no pixels for None."""
        x1, y1, x2, y2 = window or (self.left, self.top, self.left, self.top)
        return self.crop[y1 - self.top : y2 - self.top, x1 - self.left : x2 - self.left]


def tiles_of(image_size: tuple[int, int], side: int | None, overlap: float) -> list[Tile]:
    """Return equally large tiles, row by row, that cover an image of this width and height.

    Tiles overlap by at least the share `overlap` of `side`, in pixels. If `side` is None, the whole image is one tile.
    """
    width, height = image_size
    if side is None:
        return [(0, 0, width, height)]
    columns, rows = (starts(length, side, overlap) for length in image_size)
    return [(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Return the first pixel of each tile along an axis, at regular intervals. The last tile ends with the image."""
    if length <= side:
        return [0]
    step = max(int(side * (1 - overlap)), 1)
    number = math.ceil((length - side) / step) + 1
    return [round(k * (length - side) / (number - 1)) for k in range(number)]


def merge_tiles(
    tiles: Sequence[Tile], found: Sequence[Detection], size: tuple[int, int], encode: Encode, agnostic: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
    """Merge the detections of an image's tiles, as the top of this file describes.

    Args:
        found: the detections in each tile, whose boxes are in pixels of the tile.
        size: the image's height and width.
        encode: returns run-length codes for the masks of a tile.
        agnostic: whether detections of different classes can be one object, as with --agnostic-nms.

    Returns:
        `boxes` float32 [N, 4] and `labels` int64 [N], `scores` float32 [N], N run-length codes; best first.
    """
    if len(tiles) == 1:
        boxes, labels, scores, masks = (found[0][name] for name in ("boxes", "labels", "scores", "masks"))
        return boxes, labels, scores, encode(masks, boxes, size)
    insides = np.array([inside_of(tile, size) for tile in tiles])
    parts = [
        part
        for number, tile in enumerate(tiles)
        for part in parts_of(number, tile, found[number], insides, encode, agnostic)
        if not is_left_to_another(part, insides)
    ]
    objects = sorted((merged(group) for group in grouped(parts, tiles)), key=lambda part: -part.score)
    return (
        np.array([part.box for part in objects], dtype=np.float32).reshape(-1, 4),
        np.array([part.label for part in objects], dtype=np.int64),
        np.array([part.score for part in objects], dtype=np.float32),
        compress([encode_crop(part.crop, part.left, part.top, *size) for part in objects]),
    )


def inside_of(tile: Tile, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a tile without its border strips; infinite at the image's border."""
    strip = BORDER * max(tile[2] - tile[0], tile[3] - tile[1])
    left, top = (-math.inf if start == 0 else start + strip for start in tile[:2])
    right, bottom = (math.inf if end == length else end - strip for end, length in zip(tile[2:], size[::-1]))
    return left, top, right, bottom


def parts_of(
    number: int, tile: Tile, found: Detection, insides: np.ndarray, encode: Encode, agnostic: bool
) -> Iterator[Part]:
    """Convert a tile's detections to pixels of the image. `insides`, float64 [T, 4], is `inside_of` of all tiles."""
    left, top, right, bottom = tile
    codes = encode(found["masks"], found["boxes"], (bottom - top, right - left))
    boxes = found["boxes"].astype(np.float64) + (left, top, left, top)
    low, high = insides[number, :2], insides[number, 2:]
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    for label, score, box, (x, y, crop) in zip(labels, scores, boxes, decode_crops(codes)):
        is_cut = bool((box[:2] <= low).any() or (box[2:] >= high).any())
        group = 0 if agnostic else label
        yield Part(number, label, group, score, box, left + x, top + y, crop.astype(bool), is_cut)


def is_left_to_another(part: Part, insides: np.ndarray) -> bool:
    """Whether to drop a part: it lies in the border strips of its tile, but clear of the strips of another tile."""
    low, high = insides[:, :2], insides[:, 2:]
    if (part.box[2:] > low[part.tile]).all() and (part.box[:2] < high[part.tile]).all():
        return False
    return bool(((low <= part.box[:2]) & (high >= part.box[2:])).all(axis=1).any())


def grouped(parts: Sequence[Part], tiles: Sequence[Tile]) -> list[list[Part]]:
    """Group parts that show one object, pairs with the highest IoU first. A group has at most one part per tile."""
    owner = list(range(len(parts)))
    groups = {i: [part] for i, part in enumerate(parts)}
    for _, i, j in sorted(agreements(parts, tiles), key=lambda pair: -pair[0]):
        one, other = owner[i], owner[j]
        if one == other or {part.tile for part in groups[one]} & {part.tile for part in groups[other]}:
            continue
        groups[one] += groups.pop(other)
        owner = [one if each == other else each for each in owner]
    return list(groups.values())


def agreements(parts: Sequence[Part], tiles: Sequence[Tile]) -> Iterator[tuple[float, int, int]]:
    """Yield the IoU and both indices of each pair of parts that show one object in two tiles (see `agreement_of`)."""
    windows = np.array([part.window for part in parts]).reshape(-1, 4)
    owners = np.array([part.tile for part in parts], dtype=np.int64)
    for a, b in combinations(range(len(tiles)), 2):
        seen_by_both = intersection(tiles[a], tiles[b])
        if seen_by_both is None:
            continue
        ours, theirs = np.flatnonzero(owners == a), np.flatnonzero(owners == b)
        for i, j in np.argwhere(intersections(windows[ours][:, None], windows[theirs]) > 0).tolist():
            i, j = int(ours[i]), int(theirs[j])
            if (agreement := agreement_of(parts[i], parts[j], seen_by_both)) > 0:
                yield agreement, i, j


def agreement_of(one: Part, other: Part, seen_by_both: Window) -> float:
    """Return the IoU of two parts' masks in the window that both tiles see; 0 if the parts show different objects."""
    shared = intersection(one.window, other.window)
    common = int(np.count_nonzero(one.inside(shared) & other.inside(shared)))
    if common == 0:
        return 0.0
    ours, theirs = (
        int(np.count_nonzero(part.inside(intersection(part.window, seen_by_both)))) for part in (one, other)
    )
    agreement = common / (ours + theirs - common)
    if agreement >= AGREE and one.group == other.group:
        return agreement
    for part, area, whole in ((one, ours, other), (other, theirs, one)):
        if part.is_cut and common >= COVERED * area and (part.group == whole.group or not whole.is_cut):
            return agreement
    return 0.0


def intersection(one: Window, other: Window) -> Window | None:
    x1, y1, x2, y2 = (f(a, b) for f, a, b in zip((max, max, min, min), one, other))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def merged(parts: Sequence[Part]) -> Part:
    """Return the best whole part of an object; if all are cut off, their union with the best part's label and score."""
    whole = [part for part in parts if not part.is_cut]
    best = max(whole or parts, key=lambda part: part.score)
    if whole or len(parts) == 1:
        return best
    boxes, windows = np.stack([part.box for part in parts]), np.array([part.window for part in parts])
    (x1, y1), (x2, y2) = windows[:, :2].min(axis=0).tolist(), windows[:, 2:].max(axis=0).tolist()
    crop = np.zeros((y2 - y1, x2 - x1), dtype=bool)
    for part in parts:
        left, top, right, bottom = part.window
        crop[top - y1 : bottom - y1, left - x1 : right - x1] |= part.crop
    box = np.concatenate((boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))
    return Part(best.tile, best.label, best.group, best.score, box, x1, y1, crop, is_cut=False)
