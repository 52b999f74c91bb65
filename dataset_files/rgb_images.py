"""Open image files with Pillow, read their EXIF orientation and convert them to 8-bit RGB, all without torch."""

import base64
import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from network_files.masks.rle import MOST_PIXELS

EXIF_ORIENTATION = 0x0112
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # keys of Pillow's `info`
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow refuses images of more than twice this many pixels, whose masks could not be encoded. Its warning above the
# limit itself is suppressed.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
EMBEDDED = re.compile(rb'"imageData"\s*:\s*"([^"]+)"')
# Other formats of Pillow's are never tried: some run other programs (EPS), and others do not hold photos.
Image.init()
IMAGE_FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN  # AVIF came with Pillow 11.3
)


def open_image(path: str | Path) -> Image.Image:
    """Open an image file with Pillow; from a JSON file, open the image that labelme embedded as `imageData`.

    Raises ValueError for a JSON file without an image, and whatever Pillow raises.
    """
    file = io.BytesIO(embedded_image(path)) if str(path).lower().endswith(".json") else path
    return Image.open(file, formats=IMAGE_FORMATS)


def embedded_image(path: str | Path) -> bytes:
    """Return the content of the image file that labelme embedded in a JSON file; ValueError if there is none."""
    found = EMBEDDED.search(Path(path).read_bytes().replace(b"\0", b""))
    if found is None:
        raise ValueError("it has no imageData")
    return base64.b64decode(found[1])


def orientation_of(image: Image.Image) -> int:
    """Return the orientation from EXIF or XMP data, or a PNG's raw profile; 1 (upright) if there is none.

    TIFF images count as upright, since Pillow turns them when it reads their pixels.
    """
    if image.format == "TIFF" or image.info.keys().isdisjoint(ORIENTATION_KEYS):
        return 1
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    return orientation if orientation in TRANSPOSES else 1


def upright_rgb(image: Image.Image, size: tuple[int, int] | None = None, exif: str | None = None) -> Image.Image:
    """Convert an open image of any mode to RGB; apply its EXIF orientation if its annotations refer to the result.

    Args:
        size: the annotated height and width.
        exif: "apply" applies the EXIF orientation, "ignore" does not; None applies it if only then the image has the
            annotated size.
    """
    orientation = orientation_of(image)
    if orientation != 1 and (exif == "apply" or size is not None and is_turned(image.size, orientation, size, exif)):
        image = image.transpose(TRANSPOSES[orientation])
    image.load()
    return image if image.mode == "RGB" else as_rgb(image)


def is_turned(stored: tuple[int, int], orientation: int, annotated: tuple[int, int], exif: str | None = None) -> bool:
    """Whether annotations refer to an image with its EXIF orientation applied, not to the stored image.

    COCO's annotations refer to the stored image. Those of other tools may not; swapped width and height reveal it.

    Args:
        stored: width and height, as in Pillow.
        orientation: the EXIF tag; values from 5 swap width and height.
        annotated: height and width.
        exif: see `upright_rgb`.
    """
    if exif is not None:
        return exif == "apply" and orientation != 1
    width, height = stored
    return 5 <= orientation <= 8 and tuple(annotated) == (width, height) and width != height


def is_undecided(stored: tuple[int, int], orientation: int) -> bool:
    """Whether the annotated size fits both the stored image and the one turned by its EXIF orientation."""
    return 2 <= orientation <= 4 or 5 <= orientation <= 8 and stored[0] == stored[1]


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image of any mode to 8-bit RGB; ValueError for floating-point values, whose range is unknown.

    Transparency is dropped, including a palette's; the colours below it remain. 16-bit grey values are divided by 257,
    while Pillow's own `convert` would clip them at 255.
    """
    if image.mode == "F":
        raise ValueError(
            "holds floating-point values, whose range is unknown; save it with 8 or 16 bits, or use --channels"
        )
    values = np.array(image) if image.mode.startswith("I") else np.zeros(1)
    if image.mode.startswith("I;16") or values.max() > 255:  # Pillow before 10.3 opens 16-bit PNG files in mode I
        values = values.clip(0, 65535).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if isinstance(image.info.get("transparency"), bytes):  # of a palette; Pillow would warn that it is dropped
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")
