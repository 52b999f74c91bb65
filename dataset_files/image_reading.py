"""Read image files as uint8 RGB tensors, in the orientation that their annotations refer to."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset_files.rgb_images import open_image, upright_rgb


def read_image(path: str | Path, size: tuple[int, int] | None = None, exif: str | None = None) -> Tensor:
    """Read an image file as uint8 [3, H, W].

    Args:
        size, exif: see `upright_rgb`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not a readable image; the message names it.
    """
    path = Path(path)
    try:
        with open_image(path) as image:
            return torch.from_numpy(np.array(upright_rgb(image, size, exif))).permute(2, 0, 1).contiguous()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image") from None
    except Exception as error:  # Pillow can raise any exception for a broken file
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
