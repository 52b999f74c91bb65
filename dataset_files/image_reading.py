"""Read image files as uint8 RGB tensors, in the orientation that their annotations refer to."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset_files.rgb_images import as_rgb, is_turned, open_image, orientation_of, turn_upright


def read_image(path: str | Path, size: tuple[int, int] | None = None, exif: str | None = None) -> Tensor:
    """Read an image file as uint8 [3, H, W].

    Args:
        size: the annotated height and width.
        exif: "apply" applies the EXIF orientation, "ignore" does not; None applies it if only then the image has the
            annotated size.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not a readable image; the message names it.
    """
    path = Path(path)
    try:
        with open_image(path) as image:
            if exif == "apply" or size is not None and is_turned(image.size, orientation_of(image), size, exif):
                return image_to_tensor(turn_upright(image))
            return image_to_tensor(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image") from None
    except Exception as error:  # Pillow can raise any exception for a broken file
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def image_to_tensor(image: Image.Image) -> Tensor:
    """Convert a Pillow image of any mode to uint8 [3, H, W]."""
    return torch.from_numpy(np.array(as_rgb(image))).permute(2, 0, 1).contiguous()
