"""Detections or ground truth -> a picture that a person can read.

A picture and its instances (boxes, names, scores, mask crops) go in, a new picture comes out: translucent masks with a
contour, thin boxes, and on top of both a label for every instance, laid out so that the labels leave each other
readable.
"""

import colorsys
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, reduce
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from dataset_files.boxes import areas, intersections

MaskCrop = tuple[int, int, np.ndarray]
Colour = tuple[int, int, int]

MASK_OPACITY = 0.4
READABLE_SIDE, LARGEST_UPSCALED_SIDE = 480, 2000
SMALLEST_FONT, LARGEST_FONT = 10, 64
LONGEST_NAME = 40

# Bright and saturated, since photographs seldom are: a dark or greyish colour would be lost in them.
PALETTE: tuple[Colour, ...] = (
    (255, 59, 48),
    (52, 199, 89),
    (10, 122, 255),
    (255, 204, 0),
    (175, 82, 222),
    (255, 149, 0),
    (0, 199, 190),
    (255, 45, 155),
    (162, 215, 41),
    (90, 200, 250),
    (255, 122, 107),
    (190, 150, 255),
    (80, 72, 255),
    (120, 255, 190),
    (255, 135, 195),
    (228, 70, 245),
)
# Chosen by trying values: with this one, COCO classes that often stand in one picture seldom share a colour.
PALETTE_SEED = 23660

# Families that hold Chinese, Japanese and Korean characters, as Linux, Windows and macOS name them; the first that is
# installed is tried first.
CJK_FAMILIES = (
    "Noto Sans CJK",
    "Noto Sans SC",
    "Source Han Sans",
    "WenQuanYi",
    "Microsoft YaHei",
    "SimHei",
    "SimSun",
    "PingFang",
    "Hiragino Sans",
    "Heiti",
    "Songti",
    "Arial Unicode",
    "Droid Sans Fallback",
    "Malgun Gothic",
    "Nanum",
    "Yu Gothic",
    "MS Gothic",
    "Noto Serif CJK",
)

logger = logging.getLogger(__name__)


def draw_instances(
    image: Image.Image,
    boxes: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    masks: Sequence[MaskCrop] | None = None,
    line_width: int | None = None,
) -> Image.Image:
    """Draws N instances on a copy of a picture; big ones first, so that small ones stay visible.

    A picture whose short side is at most 320 pixels is first enlarged by a whole factor, to a short side of about 480
    (`readable_scale`): lines and text need that room. All other pictures keep their size.

    Arguments:
        image: the picture, RGB; other modes are converted. It is not modified.
        boxes: float [N, 4], x1y1x2y2 in pixels of `image`.
        names: N class names. A class keeps its colour from picture to picture; its instances differ a little in hue and
            lightness.
        scores: float [N] in 0..1, or None for ground truth.
        masks: None, or N crops `(x0, y0, crop)`: `crop` is bool [h, w] and lies within the picture, its top-left pixel
            at column x0, row y0 of `image`.
        line_width: width of boxes and contours in pixels of the returned picture; None derives it from the picture's
            size.

    Returns: an RGB picture of `readable_scale(*image.size)` times the size.
    """
    boxes = np.nan_to_num(np.asarray(boxes, dtype=np.float64)).reshape(-1, 4)
    _check_lengths(len(boxes), names=names, scores=scores, masks=masks)

    scale = readable_scale(*image.size)
    canvas = image.convert("RGB")
    if scale > 1:
        canvas = canvas.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    boxes = _covered_pixels(boxes * scale, *canvas.size)
    big_first = np.argsort(-areas(boxes), kind="stable")
    colours = instance_colours(names)
    width = line_width or default_line_width(canvas.size)

    pixels = np.array(canvas)
    if masks is not None:
        for i in big_first:
            _blend_mask(pixels, enlarge_mask(masks[i], scale), colours[i], width)
    for i in big_first:
        _outline_box(pixels, boxes[i], colours[i], width)
    canvas = Image.fromarray(pixels)

    font_size = label_font_size(canvas.size, len(boxes))
    labels = [
        _fit_label(name, None if scores is None else scores[i], font_size, canvas.width) for i, name in enumerate(names)
    ]
    plates = place_plates(boxes, [_plate_size(text, font) for text, font in labels], canvas.size)
    draw = ImageDraw.Draw(canvas)
    for i in big_first:
        _draw_label(draw, *labels[i], plates[i], colours[i])
    return canvas


def readable_scale(width: int, height: int) -> int:
    """The whole factor that brings the short side of a small picture to about 480 pixels, without a long side over
    2000; 1 for all others."""
    return max(1, min(round(READABLE_SIDE / min(width, height)), LARGEST_UPSCALED_SIDE // max(width, height)))


def default_line_width(picture: tuple[int, int]) -> int:
    """Line width in pixels for a picture (width, height): 1 for the usual photograph of 640 x 480, 4 for full HD."""
    width, height = picture
    return max(1, round((width * height) ** 0.5 / 400))


def label_font_size(picture: tuple[int, int], instances: int) -> int:
    """Font size in pixels for the labels of a picture (width, height): grows with the picture, and is a little smaller
    where it is crowded."""
    width, height = picture
    size = (width * height) ** 0.5 / 42
    crowded = min(1, (15 / max(instances, 1)) ** 0.25)
    return round(min(max(size * crowded, SMALLEST_FONT), LARGEST_FONT))


def instance_colours(names: Sequence[str]) -> list[Colour]:
    """The colour of each of N instances: its class's palette entry, found from the name alone, varied for each further
    instance of the class."""
    seen: Counter[str] = Counter()
    colours = []
    for name in names:
        base = PALETTE[hashlib.sha256(f"{PALETTE_SEED} {name}".encode("utf-8", "replace")).digest()[0] % len(PALETTE)]
        colours.append(_vary(base, seen[name]))
        seen[name] += 1
    return colours


def enlarge_mask(mask: MaskCrop, scale: int) -> MaskCrop:
    """The same mask in a picture `scale` times as large, its outline smoothed: `(x0, y0, bool [h, w])` in pixels of
    that picture."""
    x0, y0, crop = mask
    crop = np.asarray(crop, dtype=bool)
    if scale == 1 or crop.size == 0:
        return x0 * scale, y0 * scale, crop
    padded = Image.fromarray(np.pad(crop, 1).astype(np.uint8) * 255)
    smooth = padded.resize((padded.width * scale, padded.height * scale), Image.Resampling.BILINEAR)
    return x0 * scale, y0 * scale, np.asarray(smooth)[scale:-scale, scale:-scale] > 127


def mask_contour(crop: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask within `width` pixels of its outside, bool [h, w] from bool [h, w]: the mask minus its
    erosion.

    What lies beyond the crop counts as outside, so that the contour also closes along the border of a picture.
    """
    rows, columns = crop.shape
    shifts = range(2 * width + 1)
    padded = np.pad(crop, width)
    eroded = reduce(np.logical_and, (padded[shift : shift + rows] for shift in shifts))
    eroded = reduce(np.logical_and, (eroded[:, shift : shift + columns] for shift in shifts))
    return crop & ~eroded


def place_plates(boxes: np.ndarray, sizes: Sequence[tuple[int, int]], picture: tuple[int, int]) -> np.ndarray:
    """Finds a place for N label plates, each near its box and within the picture, off each other wherever there is
    room.

    Arguments:
        boxes: int [N, 4], x1y1x2y2 in pixels, x2 and y2 excluded.
        sizes: N pairs of plate width and height.
        picture: width and height of the picture.

    Returns: plates, int [N, 4], x1y1x2y2 in pixels of the picture.
    """
    plates = np.zeros((len(boxes), 4), dtype=np.int64)
    if not len(boxes):
        return plates
    box_areas = areas(boxes)
    placed: list[int] = []
    # Small boxes choose first: a big one has room for its label along the whole edge.
    for i in np.argsort(box_areas, kind="stable"):
        candidates = _plate_candidates(boxes[i], sizes[i], picture)
        small = boxes[box_areas < 4 * sizes[i][0] * sizes[i][1]]
        hidden_text = intersections(candidates[:, None], plates[placed]).sum(1) / areas(candidates)
        hidden_objects = (intersections(candidates[:, None], small) / areas(small)).sum(1)
        # Hiding another label is by far the worst; of equally good places the first, the most usual one, wins.
        cost = 50 * hidden_text + hidden_objects + 0.1 * np.arange(len(candidates))
        plates[i] = candidates[cost.argmin()]
        placed.append(i)
    return plates


def _plate_candidates(box: np.ndarray, size: tuple[int, int], picture: tuple[int, int]) -> np.ndarray:
    """Places for a plate of size (w, h) at a box, int [C, 4] x1y1x2y2, the most usual first, all within the picture."""
    (x1, y1, x2, y2), (w, h) = box.tolist(), size
    rows = (y1 - h, y1, y2, y2 - h)
    columns = (x1, x2 - w, (x1 + x2 - w) // 2)
    corners = [(x, y) for x in columns for y in rows]
    corners += [(x, y) for y in (y1, (y1 + y2 - h) // 2, y2 - h) for x in (x2, x1 - w)]
    corners += [
        (x, y) for step in (1, 2, 3) for y in (y1 - h - step * h, y1 + step * h, y2 + step * h) for x in columns
    ]
    top_left = np.clip(corners, 0, np.maximum(np.subtract(picture, size), 0))
    return np.concatenate([top_left, top_left + size], axis=1)


def _check_lengths(count: int, **per_instance: Sequence | np.ndarray | None) -> None:
    for what, values in per_instance.items():
        if values is not None and len(values) != count:
            raise ValueError(f"{count} boxes need {count} {what}, got {len(values)}")


def _covered_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """The pixels that boxes [N, 4] x1y1x2y2 touch within the picture: int [N, 4], x2 and y2 excluded, at least one
    pixel each."""
    low = np.clip(np.floor(boxes[:, :2]), 0, (width - 1, height - 1))
    high = np.clip(np.ceil(boxes[:, 2:]), low + 1, (width, height))
    return np.concatenate([low, high], axis=1).astype(np.int64)


def _vary(colour: Colour, k: int) -> Colour:
    """A colour's k-th variant: k = 0 is the colour itself, the others lie evenly around it in hue and lightness
    (steps of low discrepancy)."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in colour))
    hue += 0.10 * ((0.5 + 0.755 * k) % 1 - 0.5)
    lightness += 0.36 * ((0.5 + 0.570 * k) % 1 - 0.5)
    red, green, blue = colorsys.hls_to_rgb(hue % 1, min(max(lightness, 0.3), 0.87), saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def _blend_mask(pixels: np.ndarray, mask: MaskCrop, colour: Colour, line_width: int) -> None:
    """Blends a mask and its contour into `pixels`, uint8 [H, W, 3], in place."""
    x0, y0, crop = mask
    if not crop.any():
        return
    under = pixels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]]
    under[crop] = under[crop] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY
    # Lighter than the fill and than the box: it stands out from both, and from a background of the same hue.
    under[mask_contour(crop, line_width)] = [(2 * channel + 255) // 3 for channel in colour]


def _outline_box(pixels: np.ndarray, box: np.ndarray, colour: Colour, line_width: int) -> None:
    """Draws a box, int x1y1x2y2 with x2 and y2 excluded, into `pixels`, uint8 [H, W, 3], in place; the line lies within
    the box, however small that is."""
    x1, y1, x2, y2 = box
    inside = pixels[y1:y2, x1:x2]
    for side in (inside[:line_width], inside[-line_width:], inside[:, :line_width], inside[:, -line_width:]):
        side[:] = colour


def _fit_label(
    name: str, score: float | None, font_size: int, picture_width: int
) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text of a label, and a font that has its characters: smaller where the plate would else be wider than the
    picture."""
    name = _printable(name)
    text = name if score is None else f"{name} {score:.2f}".strip()
    path = font_for(name)
    while font_size > SMALLEST_FONT // 2 and _plate_size(text, _font(path, font_size))[0] > picture_width:
        font_size -= 1
    return text, _font(path, font_size)


def _printable(name: str) -> str:
    """A name as one line of printable characters, cut where it is very long."""
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(name.split()))
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _plate_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height in pixels of the plate under a text."""
    return round(font.getlength(text)) + 2 * _padding(font), sum(font.getmetrics())


def _padding(font: ImageFont.FreeTypeFont) -> int:
    return max(2, round(font.size / 5))


def _draw_label(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, plate: np.ndarray, colour: Colour
) -> None:
    x1, y1, x2, y2 = plate.tolist()
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    red, green, blue = colour
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    draw.text((x1 + _padding(font), y1), text, fill="black" if luminance > 125 else "white", font=font)


@lru_cache(maxsize=1024)
def font_for(name: str) -> str:
    """The path of a font that has the characters of a name: DejaVu Sans, which comes with matplotlib, else the
    installed CJK font that has most."""
    default = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
    if name.isascii() or not _missing(default, name):
        return default
    best = min((default, *_installed_cjk_fonts()), key=lambda path: _missing(path, name))
    if _missing(best, name):
        _warn_of_missing_characters()
    return best


@lru_cache(maxsize=1)
def _warn_of_missing_characters() -> None:
    logger.warning(
        "No installed font has all characters of the class names; some will show as empty boxes. "
        "Install one, such as Noto Sans CJK."
    )


def _missing(font_path: str, text: str) -> int:
    """How many of a text's characters a font lacks; all of them where it cannot be read."""
    try:
        face = FT2Font(font_path)
    except (OSError, RuntimeError):
        return len(text)
    return sum(face.get_char_index(ord(c)) == 0 for c in text)


@lru_cache(maxsize=1)
def _installed_cjk_fonts() -> tuple[str, ...]:
    # Imported only here: where a machine has not done so yet, it looks through all installed fonts, which takes
    # seconds.
    from matplotlib.font_manager import FontEntry, fontManager

    def rank(entry: FontEntry) -> tuple:
        return (
            next(i for i, family in enumerate(CJK_FAMILIES) if entry.name.startswith(family)),
            entry.style != "normal",
            abs(int(entry.weight) - 400),
        )

    found = [entry for entry in fontManager.ttflist if entry.name.startswith(CJK_FAMILIES)]
    return tuple(dict.fromkeys(entry.fname for entry in sorted(found, key=rank)))


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
