"""Read masks drawn as images: an instance or a class per value or colour, without loss."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_files.layouts.coco_builder import Crop

LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP")  # what masks may be stored as; JPEG blurs values
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm", ".webp")


@dataclass
class MaskImage:
    """A mask as it is stored.

    Attributes:
        values: int64 [H, W]: grey values, indices of a palette, or colours as 0xRRGGBB; 0 is the background.
        kind: "grey", "palette" or "colour".
        palette: colours as 0xRRGGBB by index, int64; only of kind "palette".
    """

    values: np.ndarray
    kind: str
    palette: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape

    def colours(self) -> np.ndarray:
        """int64 [H, W]: colours as 0xRRGGBB."""
        return self.palette[self.values] if self.palette is not None else self.values


def read_mask_image(path: Path) -> MaskImage:
    """A mask of any of Pillow's modes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image in a lossless format.
    """
    try:
        with Image.open(path, formats=LOSSLESS) as picture:
            if picture.mode == "P":
                return MaskImage(np.array(picture).astype(np.int64), "palette", palette_colours(picture))
            if picture.mode in ("1", "L", "I") or picture.mode.startswith("I;16"):
                return MaskImage(np.array(picture).astype(np.int64), "grey")
            if picture.mode == "LA":
                return MaskImage(np.array(picture)[:, :, 0].astype(np.int64), "grey")
            if picture.mode in ("RGB", "RGBA"):
                return MaskImage(pack_colours(np.array(picture)[:, :, :3]), "colour")
            mode = picture.mode
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file makes Pillow raise anything
        raise ValueError(f"not readable as a mask in PNG or TIFF ({error})") from error
    raise ValueError(f"is a {mode} image; expected grey values, a palette or colours")


def palette_colours(picture: Image.Image) -> np.ndarray:
    """int64 [256]: colours by index, black where the palette has fewer."""
    flat = np.zeros(768, dtype=np.int64)
    colours = (picture.getpalette("RGB") or [])[:768]
    flat[: len(colours)] = colours
    return pack_colours(flat.reshape(256, 3))


def pack_colours(colours: np.ndarray) -> np.ndarray:
    """Red, green, blue [..., 3] -> 0xRRGGBB, int64 [...]."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return (red << 16) | (green << 8) | blue


def instance_crops(values: np.ndarray) -> dict[int, Crop]:
    """The pixels of each value but 0 in [H, W], in the order of values."""
    places = np.flatnonzero(values)
    found = values.reshape(-1)[places]
    order = np.argsort(found, kind="stable")
    numbers, starts = np.unique(found[order], return_index=True)
    crops = {}
    for number, inside in zip(numbers.tolist(), np.split(places[order], starts[1:]) if len(numbers) else []):
        rows, columns = np.divmod(inside, values.shape[1])
        top, left = int(rows.min()), int(columns.min())
        crop = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), dtype=bool)
        crop[rows - top, columns - left] = True
        crops[number] = (left, top, crop)
    return crops


def find_mask(folder: Path, stem: str, endings: tuple[str, ...] = ("",)) -> Path | None:
    """The mask of an image called `stem`, with one of the endings before its suffix."""
    candidates = (folder / f"{stem}{ending}{suffix}" for ending in endings for suffix in MASK_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)
