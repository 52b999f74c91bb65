"""Read images without torch: as 8-bit RGB in their EXIF orientation, or as they are stored.

Stored images have 1 to 8 channels of 8 or 16 bits or floating-point values: PNG, TIFF and .npy files, and 8-bit images
of all other formats. TIFF files need the package tifffile, 16-bit colour in PNG files needs OpenCV: Pillow would drop
half of the bits.
"""

import base64
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from network_files.masks.rle import MOST_PIXELS

MOST_CHANNELS = 8
VALUES = ("uint8", "uint16", "float32")  # types of values, to which the others below are converted without loss
EXACT = dict(zip(VALUES, VALUES)) | dict.fromkeys(("int8", "int16", "float16", "float64"), "float32")
VALUE_NAMES = {"uint8": "8-bit", "uint16": "16-bit", "float32": "floating-point"}
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_START, GREY, GREY_AND_ALPHA = b"\x89PNG\r\n\x1a\n", 0, 4
OF_MODES = {"I": "uint16", "F": "float32"}  # Pillow opens 16-bit PGM files, and before 10.3 PNG files, in mode I
ORIENTATION = 274  # tag of EXIF and TIFF
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # keys of Pillow's `info`
WAYS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
TRANSPOSES = {orientation: Image.Transpose[way] for orientation, way in enumerate(WAYS.split(), start=2)}
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


class ImageForm(NamedTuple):
    """How images are read and shown: orientation, channels and type of values.

    Attributes:
        exif: see `upright_rgb`. Stored images with an EXIF orientation are refused, unless it is "ignore".
        channels: the number of channels of images that are read as stored; None for 8-bit RGB.
        values: type of their values, one of `VALUES`; None for any.
        shown: the channels that drawings show as red, green and blue, or the one shown in grey; (): the first ones.
    """

    exif: str | None = None
    channels: int | None = None
    values: str | None = None
    shown: tuple[int, ...] = ()

    def checked(self) -> "ImageForm":
        """Return this form; raise ValueError if the channels to show do not exist."""
        if self.shown and (len(self.shown) not in (1, 3) or max(self.shown) >= (self.channels or 0)):
            numbers = " ".join(map(str, self.shown))
            has = f"of 0..{self.channels - 1}" if self.channels else "of images with --channels"
            raise ValueError(f"--show-channels {numbers}: give one or three {has}")
        return self

    @classmethod
    def of_network(cls, config: Mapping[str, Any], exif: str | None, shown: Sequence[int] | None) -> "ImageForm":
        """Build the form of images that a network expects, from its `ModelConfig`; errors as in `checked`."""
        return cls(exif, config.get("channels"), config.get("values"), tuple(shown or ())).checked()


RGB = ImageForm()


class Header(NamedTuple):
    """Size and values of a stored image; `values` is one of `VALUES`."""

    height: int
    width: int
    channels: int
    values: str

    def describe(self) -> str:
        colour = "grey, 1 channel" if self.channels == 1 else f"values, {self.channels} channels"
        return f"{VALUE_NAMES[self.values]} {colour}"


class PackageMissing(ValueError):
    """An image needs a package that is not installed."""


@contextmanager
def naming_image(path: Path) -> Iterator[None]:
    """Turn any error that reading an image raises into a ValueError or FileNotFoundError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image") from None
    except PackageMissing as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # Pillow can raise any exception for a broken file
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def read_stored(path: str | Path, form: ImageForm) -> np.ndarray:
    """Read an image as [C, H, W], uint8 or float32. 16-bit values become float32 and keep their scale.

    Raises:
        ValueError: the image does not have the form's channels and values, or a value is not finite.
        Exception: the file is broken.
    """
    return in_form(stored_array(path, exif=form.exif), form)


def in_form(array: np.ndarray, form: ImageForm) -> np.ndarray:
    """Convert an array to [C, H, W], uint8 or float32, and check it; results and errors as in `read_stored`."""
    header = header_of(array)
    if header.channels != form.channels or form.values not in (None, header.values):
        wanted = f"{VALUE_NAMES[form.values]} values, " if form.values else ""
        raise ValueError(f"has {header.describe()}, not {wanted}{form.channels} (--channels)")
    pixels = np.array(channels_first(array), dtype=np.uint8 if header.values == "uint8" else np.float32, order="C")
    if header.values == "float32" and not np.isfinite(pixels).all():
        raise ValueError("has values that are not finite (nan or infinity)")
    return pixels


def stored_header(path: str | Path, exif: str | None = None) -> Header:
    """Read size, channels and type of values without the pixels; errors as in `read_stored`."""
    return header_of(stored_array(path, header_only=True, exif=exif))


def header_of(array: np.ndarray) -> Header:
    if array.dtype.name not in EXACT:
        raise ValueError(f"holds {array.dtype} values; save it with 8 or 16 bits or as float32")
    channels, height, width = channels_first(array).shape
    if not 0 < height * width <= MOST_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    return Header(height, width, channels, EXACT[array.dtype.name])


def channels_first(array: np.ndarray) -> np.ndarray:
    """View an array [H, W], [H, W, C] or [C, H, W] as [C, H, W]. ValueError if the channel axis is unclear."""
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3:
        is_first, is_last = (array.shape[axis] <= MOST_CHANNELS for axis in (0, 2))
        if is_first != is_last:
            return array if is_first else array.transpose(2, 0, 1)
    raise ValueError(f"its shape {list(array.shape)} is not [H, W], or [H, W, C] or [C, H, W] with up to 8 channels")


def stored_array(path: str | Path, header_only: bool = False, exif: str | None = None) -> np.ndarray:
    """Read an image file as an array in the file's layout. With `header_only`, only its shape and type are valid."""
    is_json = str(path).lower().endswith(".json")
    with io.BytesIO(embedded_image(path)) if is_json else open(path, "rb") as file:
        start = file.read(26)
        file.seek(0)
        if start[:6] == b"\x93NUMPY":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if start[:4] in TIFF_STARTS:
            return tiff_array(file, header_only, exif)
        is_deep_png = start[:8] == PNG_START and len(start) == 26 and start[24] == 16
        if is_deep_png and start[25] != GREY:
            width, height = (int.from_bytes(start[i : i + 4], "big") for i in (16, 20))
            shape = height, width, {GREY_AND_ALPHA: 2, 2: 3}.get(start[25], 4)
            return np.broadcast_to(np.uint16(0), shape) if header_only else colour_png(file.read(), shape)
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            return pillow_array(image, header_only, exif)


def pillow_array(image: Image.Image, header_only: bool = False, exif: str | None = "ignore") -> np.ndarray:
    """Convert a Pillow image to an array [H, W] or [H, W, C]. Palette images become RGB, and bilevel images grey."""
    require_upright(orientation_of(image), exif)
    bands = 3 if image.mode == "P" else len(image.getbands())
    values = values_of(image)
    if header_only:
        shape = (image.height, image.width) + ((bands,) if bands > 1 else ())
        return np.broadcast_to(np.zeros((), values), shape)
    image.load()
    image = as_rgb(image) if image.mode == "P" else image.convert("L") if image.mode == "1" else image
    return np.asarray(image).astype(values)


def values_of(image: Image.Image) -> str:
    """Return the type of a Pillow image's values, one of `VALUES`."""
    return "uint16" if image.mode.startswith("I;16") else OF_MODES.get(image.mode, "uint8")


def tiff_array(file: io.BufferedIOBase, header_only: bool, exif: str | None) -> np.ndarray:
    """Read the pages of a TIFF file that match the first in shape and type, as [H, W], [H, W, C] or [C, H, W]."""
    with needed("tifffile", "tifffile", "TIFF files").TiffFile(file) as tiff:
        first = tiff.pages[0]
        require_upright(int(first.tags.valueof(ORIENTATION, 1)), exif)
        pages = [page for page in tiff.pages if (page.shape, page.dtype) == (first.shape, first.dtype)]
        shape = first.shape if len(pages) == 1 else (len(pages), *first.shape)
        if header_only:
            return np.broadcast_to(np.zeros((), first.dtype), shape)
        return np.stack([page.asarray() for page in pages]).reshape(shape)


def colour_png(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    cv2 = needed("cv2", "opencv-python-headless", "16-bit colour in PNG files")
    pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)  # blue, green, red (, alpha)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("OpenCV cannot decode it")
    return pixels[..., {2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[shape[2]]]


def needed(module: str, package: str, what: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError:
        raise PackageMissing(f"with --channels, {what} need the package {package}: pip install {package}") from None


def require_upright(orientation: int, exif: str | None) -> None:
    if orientation != 1 and exif != "ignore":
        raise ValueError("has an EXIF orientation, which --channels does not apply; save it upright, or --exif ignore")


def to_picture(pixels: np.ndarray, shown: Sequence[int] = ()) -> Image.Image:
    """Convert an image [C, H, W] to 8-bit RGB; see `ImageForm` for the channels that are `shown`.

    Values other than bytes are stretched between percentiles 1 and 99.
    """
    chosen = pixels[list(shown or range(3 if len(pixels) >= 3 else 1))]
    if chosen.dtype != np.uint8:
        low, high = np.percentile(chosen[:, ::4, ::4], (1, 99), axis=(1, 2), keepdims=True).astype(np.float32)
        stretched = (chosen - low) * (255 / np.where(high > low, high - low, 1))
        chosen = stretched.clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(chosen, (3, *chosen.shape[1:])).transpose(1, 2, 0)))


def open_image(path: str | Path) -> Image.Image:
    """Open an image with Pillow: an image file, or the image that labelme embedded in a JSON file as `imageData`.

    Raises ValueError for a JSON file without an image, and whatever Pillow raises.
    """
    file = io.BytesIO(embedded_image(path)) if str(path).lower().endswith(".json") else path
    return Image.open(file, formats=IMAGE_FORMATS)


def embedded_image(path: str | Path) -> bytes:
    """Return the bytes of the image file that labelme embedded in a JSON file; ValueError if there is none."""
    found = EMBEDDED.search(Path(path).read_bytes().replace(b"\0", b""))
    if found is None:
        raise ValueError("it has no imageData")
    return base64.b64decode(found[1])


def orientation_of(image: Image.Image) -> int:
    """Return an image's EXIF orientation, 1 to 8, from wherever its format stores it; 1 (upright) if there is none.

    TIFF images count as upright, since Pillow turns them when it reads their pixels.
    """
    if image.format == "TIFF" or image.info.keys().isdisjoint(ORIENTATION_KEYS):
        return 1
    orientation = image.getexif().get(ORIENTATION, 1)
    return orientation if orientation in TRANSPOSES else 1


def upright_rgb(image: Image.Image, size: tuple[int, int] | None = None, exif: str | None = None) -> Image.Image:
    """Convert an open image of any mode to RGB, and turn it by its EXIF orientation if its annotations expect that.

    With `exif` "apply" it is always turned, with "ignore" never. With None it is turned if only the turned image has
    `size`, the annotated height and width.
    """
    orientation = orientation_of(image)
    if orientation != 1 and (exif == "apply" or size is not None and is_turned(image.size, orientation, size, exif)):
        image = image.transpose(TRANSPOSES[orientation])
    image.load()
    return image if image.mode == "RGB" else as_rgb(image)


def is_turned(stored: tuple[int, int], orientation: int, annotated: tuple[int, int], exif: str | None = None) -> bool:
    """Whether annotations refer to an image as turned by its EXIF orientation, not as stored.

    COCO's annotations refer to the stored image. Those of other tools may not; swapped width and height reveal it.
    `stored` is width and height, `annotated` height and width; see `upright_rgb` for `exif`.
    """
    if exif is not None:
        return exif == "apply" and orientation != 1
    width, height = stored
    return 5 <= orientation <= 8 and tuple(annotated) == (width, height) and width != height


def is_undecided(stored: tuple[int, int], orientation: int) -> bool:
    """Whether an image's EXIF orientation keeps its size, so that the annotated size cannot show if it was applied."""
    return 2 <= orientation <= 4 or 5 <= orientation <= 8 and stored[0] == stored[1]


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image of any mode to 8-bit RGB.

    Floating-point values raise ValueError, since their range is unknown. Transparency is dropped, including a
    palette's; the colours below it remain. 16-bit grey values are divided by 257, while Pillow's own `convert` would
    clip them at 255.
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
