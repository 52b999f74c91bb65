"""Read images for prediction: a file, a Pillow image or an array in, an upright RGB image out."""

import threading
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from dataset_files import rgb_images
from dataset_files.rgb_images import as_rgb, is_turned, orientation_of, turn_upright
from network_files.masks.rle import MOST_PIXELS
from train_utils.errors import warn

ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray

raised_limit = threading.Lock()


def open_image(
    source: ImageLike, exif: str | None = None, large: bool = False, size: tuple[int, int] | None = None
) -> Image.Image:
    """Return an image in RGB.

    Args:
        source: a file; or a Pillow image or an RGB array uint8 [H, W, 3], which are taken as they are.
        exif: of a file: "apply" turns it as its EXIF orientation says, "ignore" reads it as it is stored. None turns it
            too, but where `size` is given only if it then has that size, as in training.
        large: whether files of more pixels than Pillow permits are meant to be read, up to 268 million.
        size: height and width that annotations say of a file.

    Raises:
        ValueError: the file cannot be read, which the message names, or the array is not an image.
        TypeError: `source` is none of these.
    """
    if isinstance(source, Image.Image):
        return as_rgb(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise ValueError(f"an array must be RGB, uint8 [H, W, 3]; got {source.dtype} {list(source.shape)}")
        return Image.fromarray(source)
    if not isinstance(source, (str, Path)):
        raise TypeError(f"an image is a path, a Pillow image or an array uint8 [H, W, 3], not {type(source).__name__}")
    return read_file(Path(source), exif, large, size)


def read_file(path: Path, exif: str | None, large: bool, size: tuple[int, int] | None) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        with open_any_size(path) if large else rgb_images.open_image(path) as picture:
            pages = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1  # a camera's: the same, smaller
            if pages > 1:
                warn(f"{path}: has {pages} pages or frames; only the first one is read")
            as_annotated = size is None or is_turned(picture.size, orientation_of(picture), size)
            if exif == "apply" or exif is None and as_annotated:
                picture = turn_upright(picture)
            picture.load()
            return picture if picture.mode == "RGB" else as_rgb(picture)  # without a copy, which may be large
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: cannot be read as an image ({error}); give --tile 1024 if it is one") from error
    except Exception as error:  # a broken file makes Pillow raise anything
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def open_any_size(path: Path) -> Image.Image:
    """Open an image regardless of Pillow's limit against decompression bombs, if run-length codes fit its masks."""
    with raised_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = rgb_images.open_image(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if picture.width * picture.height > MOST_PIXELS:
        picture.close()
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MOST_PIXELS}")
    return picture
