"""Read masks stored as lossless images, with one value or colour per instance or class."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_files.layouts.coco_builder import Crop, Size

LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP")  # formats of masks; JPEG blurs values
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm", ".webp")
MOST_STEPS = 0.2  # of the pixels around objects: at most 0.13 in 268 sharp masks, at least 0.26 in blurred ones
MANY_VALUES = 8
RIM = 0.9  # share of a value's pixels that touch another value but 0
BINARY = 128  # least value of the object in a mask of one object with blurred edges
FLAT = 0.05  # share of the pixels between such an object and the background that have only equal neighbours
# Pairs of slices that lay an image over itself, shifted to each of the eight neighbours.
NEIGHBOURS = (
    (np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1, :], np.s_[1:, :]), (np.s_[:-1, :-1], np.s_[1:, 1:]),
    (np.s_[:-1, 1:], np.s_[1:, :-1]),
)  # fmt: skip


@dataclass
class MaskImage:
    values: np.ndarray  # int64 [H, W]: grey values, indices of a palette, or colours as 0xRRGGBB; 0 is the background
    kind: str  # "grey", "palette" or "colour"
    # Colours as 0xRRGGBB by index, int64 [256], padded with black; only of kind "palette".
    palette: np.ndarray | None = None

    @property
    def size(self) -> Size:
        return self.values.shape

    def colours(self) -> np.ndarray:
        """Return the colours as 0xRRGGBB, int64 [H, W]."""
        return self.palette[self.values] if self.palette is not None else self.values


def read_mask_image(path: Path) -> MaskImage:
    """Read a lossless grey, palette or colour image. FileNotFoundError if it is missing, ValueError if unusable."""
    try:
        with Image.open(path, formats=LOSSLESS) as image:
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(f"holds {pages} pages; save each as a file of its own")
            values, mode = np.array(image), image.mode
            palette = (image.getpalette("RGB") or [])[:768] if mode == "P" else []
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow can raise any exception for a broken file
        raise ValueError(f"not readable as a mask in PNG or TIFF ({error})") from error
    if mode == "P":
        colours = np.array(palette + [0] * (768 - len(palette))).reshape(256, 3)
        return MaskImage(values.astype(np.int64), "palette", pack_colours(colours))
    if mode in ("1", "L", "LA", "I") or mode.startswith("I;16"):
        return MaskImage((values[:, :, 0] if mode == "LA" else values).astype(np.int64), "grey")
    if mode in ("RGB", "RGBA"):
        return MaskImage(pack_colours(values[:, :, :3]), "colour")
    raise ValueError(f"is a {mode} image; expected grey values, a palette or colours")


def pack_colours(colours: np.ndarray) -> np.ndarray:
    """Pack red, green, blue [..., 3] to 0xRRGGBB, int64 [...]."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return (red << 16) | (green << 8) | blue


class Blurred(ValueError):
    """The edges of several objects in a mask image are blurred, so that values do not tell the objects apart."""


def instance_crops(values: np.ndarray, is_grey: bool) -> tuple[list[Crop], bool]:
    """Separate the instances of a mask [H, W]: return a crop of each nonzero value, in the order of values.

    Also return whether the mask is that of a single object with blurred edges, which is cut at half its value. If the
    edges of several objects are blurred, so that values are not objects, raise Blurred.
    """
    pixels = pixels_by_value(values)
    if len(pixels) < 2 or not (has_steps(values, min(pixels)) or are_mostly_rims(values, pixels)):
        return crops_by_value(values, pixels), False
    highest = max(pixels)
    if is_grey and highest >= BINARY and is_one_object(values, highest):
        return crops_by_value((2 * values > highest).astype(np.int64)), True
    listed = ", ".join(map(str, list(pixels)[:6])) + (", ..." if len(pixels) > 6 else "")
    raise Blurred(f"values {listed}")


def crops_by_value(values: np.ndarray, pixels: dict[int, np.ndarray] | None = None) -> list[Crop]:
    """Return a crop of each nonzero value of a mask [H, W], in order. `pixels`: see `pixels_by_value`."""
    crops = []
    for inside in (pixels_by_value(values) if pixels is None else pixels).values():
        rows, columns = np.divmod(inside, values.shape[1])
        top, left = int(rows.min()), int(columns.min())
        crop = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), dtype=bool)
        crop[rows - top, columns - left] = True
        crops.append((left, top, crop))
    return crops


def pixels_by_value(values: np.ndarray) -> dict[int, np.ndarray]:
    """Map each nonzero value of a mask [H, W] to the indices of its pixels in the flattened mask, int64 [N]."""
    places = np.flatnonzero(values)
    found = values.reshape(-1)[places]
    order = np.argsort(found, kind="stable")
    numbers, starts = np.unique(found[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(places[order], starts[1:]) if len(numbers) else []))


def has_steps(values: np.ndarray, lowest: int) -> bool:
    """Whether edges in a mask [H, W] are blurred: many pixels have values between object and background.

    Around a blurred object lie pixels of lower values that themselves touch a lower value: steps down to the
    background. In sharp masks, steps are rare. Around the lowest value but 0 there are none.
    """
    is_step = touching(values, lambda own, other: other < own)
    steps = around = 0
    for pair in NEIGHBOURS:
        for inner, outer in (pair, pair[::-1]):
            beside = (values[inner] > lowest) & (values[inner] != values[outer])
            around += int(beside.sum())
            steps += int((beside & is_step[outer] & (values[outer] < values[inner])).sum())
    return steps > MOST_STEPS * around


def are_mostly_rims(values: np.ndarray, pixels: dict[int, np.ndarray]) -> bool:
    """Whether a mask [H, W] has many values, and most of them lie only along others, as after JPEG compression."""
    if len(pixels) < MANY_VALUES:
        return False
    beside = touching(values, lambda own, other: (own != other) & (own != 0) & (other != 0)).reshape(-1)
    return 2 * sum(beside[inside].mean() >= RIM for inside in pixels.values()) > len(pixels)


def is_one_object(values: np.ndarray, highest: int) -> bool:
    """Whether a grey mask [H, W] shows a single object: its intermediate values form edges, and do not fill areas."""
    between = (8 * values > highest) & (8 * values < 7 * highest)
    is_flat = between & ~touching(values, np.not_equal)
    return int(is_flat.sum()) <= FLAT * int(between.sum())


def touching(values: np.ndarray, relation: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Mark the pixels for which the relation to any of their eight neighbours holds, [H, W] -> bool [H, W]."""
    marked = np.zeros(values.shape, dtype=bool)
    for here, there in NEIGHBOURS:
        marked[here] |= relation(values[here], values[there])
        marked[there] |= relation(values[there], values[here])
    return marked
