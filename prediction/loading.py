"""Read images for prediction: a file, a Pillow image or an array in, an upright RGB image or an array out."""

from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from dataset_files import rgb_images
from dataset_files.rgb_images import as_rgb, upright_rgb
from dataset_files.stored_images import ImageForm, PackageMissing, in_form, pillow_array, read_stored
from train_utils.errors import warn

ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray


def open_image(source: ImageLike, exif: str | None = None, size: tuple[int, int] | None = None) -> Image.Image:
    """Return an image in RGB.

    Args:
        source: a file; or a Pillow image or an RGB array uint8 [H, W, 3], whose orientation is kept.
        exif: for files, see `upright_rgb`; without `exif` and `size`, the EXIF orientation is applied.
        size: annotated height and width.

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
    path = existing(source)
    try:
        with rgb_images.open_image(path) as image:
            pages = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # a camera's: the same, smaller
            if pages > 1:
                warn(f"{path}: has {pages} pages or frames; only the first one is read")
            return upright_rgb(image, size, exif or ("apply" if size is None else None))
    except Exception as error:  # Pillow can raise any exception for a broken file
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def open_stored(source: ImageLike, form: ImageForm) -> np.ndarray:
    """Return an image as it is stored: [C, H, W], uint8 or float32.

    Args:
        source: a file; or a Pillow image or an array [H, W], [H, W, C] or [C, H, W].

    Raises:
        ValueError: the file cannot be read, which the message names, or the image is not of this form.
    """
    if not isinstance(source, (str, Path)):
        return in_form(pillow_array(source) if isinstance(source, Image.Image) else np.asarray(source), form)
    path = existing(source)
    try:
        return read_stored(path, form)
    except PackageMissing as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # of any library for a broken file
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def existing(source: str | Path) -> Path:
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    return path
