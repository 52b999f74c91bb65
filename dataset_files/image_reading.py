"""Read image files as tensors, in the orientation that their annotations refer to."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset_files.rgb_images import open_image, upright_rgb
from dataset_files.stored_images import RGB, ImageForm, PackageMissing, read_stored


def read_image(path: str | Path, size: tuple[int, int] | None = None, form: ImageForm = RGB) -> Tensor:
    """Read an image file as uint8 [3, H, W], or as stored: [C, H, W], uint8 or float32.

    Args:
        size: see `upright_rgb`.
        form: of the result.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not a readable image of this form; the message names it.
    """
    path = Path(path)
    try:
        if form.channels is not None:
            return torch.from_numpy(read_stored(path, form))
        with open_image(path) as image:
            return torch.from_numpy(np.array(upright_rgb(image, size, form.exif))).permute(2, 0, 1).contiguous()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image") from None
    except PackageMissing as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # Pillow can raise any exception for a broken file
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
