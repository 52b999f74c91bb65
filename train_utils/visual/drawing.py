"""Draw detections or ground truth on an image: translucent masks with contours, thin boxes, readable labels.

torchvision's functions draw labels over one another, and need torch, which tools/predict_onnx.py does without.
"""

import colorsys
import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import reduce

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset_files.boxes import areas, intersections
from train_utils.visual.fonts import font_for, load_font

MaskCrop = tuple[int, int, np.ndarray]  # left, top and bool [h, w]: the part of the image that holds all of a mask
Colour = tuple[int, int, int]

MASK_OPACITY = 0.4
READABLE_SIDE, LARGEST_UPSCALED_SIDE = 480, 2000
SMALLEST_FONT, LARGEST_FONT = 10, 64
LONGEST_NAME = 40
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue

# Bright and saturated, unlike most of a photo, in which dark or grey colours would hardly stand out.
PALETTE: tuple[Colour, ...] = (
    (255, 59, 48), (52, 199, 89), (10, 122, 255), (255, 204, 0), (175, 82, 222), (255, 149, 0), (0, 199, 190),
    (255, 45, 155), (162, 215, 41), (90, 200, 250), (255, 122, 107), (190, 150, 255), (80, 72, 255), (120, 255, 190),
    (255, 135, 195), (228, 70, 245),
)  # fmt: skip
# Found by trial: with this seed, COCO classes that often occur together seldom share a colour.
PALETTE_SEED = 23660


def draw_instances(
    image: Image.Image, boxes: np.ndarray, names: Sequence[str], scores: np.ndarray | None = None,
    masks: Sequence[MaskCrop] | None = None, enlarge: bool = True,
) -> Image.Image:  # fmt: skip
    """Draw N instances on a copy of an image, large ones first, so that small ones stay visible.

    Unless `enlarge` is False, an image whose short side is at most 320 pixels is first enlarged by an integer factor
    (`readable_scale`), to make room for lines and text. All other images keep their size.

    Args:
        image: in RGB; other modes are converted. It is not modified.
        boxes: float [N, 4], x1y1x2y2 in pixels of `image`.
        names: N class names. A class has the same colour in all images; instances vary slightly in hue and lightness.
        scores: float [N] in 0..1, or None for ground truth.
        masks: None, or N crops `(x0, y0, crop)`: bool [h, w] within the image, its top-left pixel at x0, y0.
    """
    boxes = np.nan_to_num(np.asarray(boxes, dtype=np.float64)).reshape(-1, 4)
    for what, values in (("names", names), ("scores", scores), ("masks", masks)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{len(boxes)} boxes need {len(boxes)} {what}, got {len(values)}")
    scale = readable_scale(*image.size) if enlarge else 1
    canvas = image.convert("RGB")
    if scale > 1:
        canvas = canvas.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    low = np.clip(np.floor(boxes[:, :2] * scale), 0, np.subtract(canvas.size, 1))
    high = np.clip(np.ceil(boxes[:, 2:] * scale), low + 1, canvas.size)
    boxes = np.concatenate([low, high], axis=1).astype(np.int64)  # whole pixels, x2 and y2 excluded
    big_first = np.argsort(-areas(boxes), kind="stable")
    colours = instance_colours(names)
    width = max(1, round((canvas.width * canvas.height) ** 0.5 / 400))  # of lines: 1 for 640 x 480, 4 for full HD

    pixels = np.array(canvas)
    if masks is not None:
        for i in big_first:
            blend_mask(pixels, enlarge_mask(masks[i], scale), colours[i], width)
    for i in big_first:
        x1, y1, x2, y2 = boxes[i]
        box = pixels[y1:y2, x1:x2]  # the line lies inside
        for side in (box[:width], box[-width:], box[:, :width], box[:, -width:]):
            side[:] = colours[i]
    canvas = Image.fromarray(pixels)

    font_size, shown = label_font_size(canvas.size, len(boxes)), [None] * len(boxes) if scores is None else scores
    labels = [fit_label(name, score, font_size, canvas.width) for name, score in zip(names, shown)]
    plates = place_plates(boxes, [plate_size(text, font) for text, font in labels], canvas.size)
    draw = ImageDraw.Draw(canvas)
    for i in big_first:
        (text, font), (x1, y1, x2, y2) = labels[i], plates[i].tolist()
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colours[i])
        ink = "black" if np.dot(colours[i], LUMA) > 125 else "white"
        draw.text((x1 + plate_padding(font), y1), text, fill=ink, font=font)
    return canvas


def readable_scale(width: int, height: int) -> int:
    """Return the integer factor that makes an image's short side about 480, and its long side at most 2000 pixels."""
    return max(1, min(round(READABLE_SIDE / min(width, height)), LARGEST_UPSCALED_SIDE // max(width, height)))


def label_font_size(image_size: tuple[int, int], instances: int) -> int:
    """Return the font size in pixels for an image (width, height): larger in large images, smaller in crowded ones."""
    width, height = image_size
    size = (width * height) ** 0.5 / 42
    crowded = min(1, (15 / max(instances, 1)) ** 0.25)
    return round(min(max(size * crowded, SMALLEST_FONT), LARGEST_FONT))


def instance_colours(names: Sequence[str]) -> list[Colour]:
    """Return a colour per instance. It depends on the class name, and varies between instances of the class."""
    seen: Counter[str] = Counter()
    colours = []
    for name in names:
        base = PALETTE[hashlib.sha256(f"{PALETTE_SEED} {name}".encode("utf-8", "replace")).digest()[0] % len(PALETTE)]
        colours.append(vary_colour(base, seen[name]))
        seen[name] += 1
    return colours


def enlarge_mask(mask: MaskCrop, scale: int) -> MaskCrop:
    """Enlarge a mask by an integer factor, as the image was enlarged, and smooth the outline of the mask."""
    x0, y0, crop = mask
    crop = np.asarray(crop, dtype=bool)
    if scale == 1 or crop.size == 0:
        return x0 * scale, y0 * scale, crop
    padded = Image.fromarray(np.pad(crop, 1).astype(np.uint8) * 255)
    smooth = padded.resize((padded.width * scale, padded.height * scale), Image.Resampling.BILINEAR)
    return x0 * scale, y0 * scale, np.asarray(smooth)[scale:-scale, scale:-scale] > 127


def mask_contour(crop: np.ndarray, width: int) -> np.ndarray:
    """Return the mask minus its erosion by `width` pixels, bool [h, w]. Pixels beyond the crop count as outside."""
    rows, columns = crop.shape
    if min(rows, columns) <= 2 * width:
        return crop.copy()
    shifts = range(2 * width + 1)
    padded = np.pad(crop, width)
    eroded = reduce(np.logical_and, (padded[shift : shift + rows] for shift in shifts))
    eroded = reduce(np.logical_and, (eroded[:, shift : shift + columns] for shift in shifts))
    return crop & ~eroded


def place_plates(boxes: np.ndarray, sizes: Sequence[tuple[int, int]], image_size: tuple[int, int]) -> np.ndarray:
    """Place a label plate (w, h) in the image at each of N boxes, if possible without overlap: int x1y1x2y2 [N, 4]."""
    plates, box_areas = np.zeros((len(boxes), 4), dtype=np.int64), areas(boxes)
    placed: list[int] = []
    # Small boxes first: a large one has room for its label along its whole edge.
    for i in np.argsort(box_areas, kind="stable"):
        candidates = plate_candidates(boxes[i], sizes[i], image_size)
        small = boxes[box_areas < 4 * sizes[i][0] * sizes[i][1]]
        hidden_text = intersections(candidates[:, None], plates[placed]).sum(1) / areas(candidates)
        hidden_objects = (intersections(candidates[:, None], small) / areas(small)).sum(1)
        # Hiding another label is by far the worst. Among equally good places the first, most common one wins.
        cost = 50 * hidden_text + hidden_objects + 0.1 * np.arange(len(candidates))
        plates[i] = candidates[cost.argmin()]
        placed.append(i)
    return plates


def plate_candidates(box: np.ndarray, size: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """Return places in the image for a box's label plate (w, h), preferred places first, as int x1y1x2y2 [C, 4]."""
    (x1, y1, x2, y2), (w, h) = box.tolist(), size
    rows = (y1 - h, y1, y2, y2 - h)
    columns = (x1, x2 - w, (x1 + x2 - w) // 2)
    corners = [(x, y) for x in columns for y in rows]
    corners += [(x, y) for y in (y1, (y1 + y2 - h) // 2, y2 - h) for x in (x2, x1 - w)]
    corners += [(x, y) for k in (1, 2, 3) for y in (y1 - h - k * h, y1 + k * h, y2 + k * h) for x in columns]
    top_left = np.clip(corners, 0, np.maximum(np.subtract(image_size, size), 0))
    return np.concatenate([top_left, top_left + size], axis=1)


def vary_colour(colour: Colour, k: int) -> Colour:
    """Return the k-th variant of a colour. A low-discrepancy sequence shifts hue and lightness, by 0 for k = 0."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in colour))
    hue += 0.10 * ((0.5 + 0.755 * k) % 1 - 0.5)
    lightness += 0.36 * ((0.5 + 0.570 * k) % 1 - 0.5)
    red, green, blue = colorsys.hls_to_rgb(hue % 1, min(max(lightness, 0.3), 0.87), saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def blend_mask(pixels: np.ndarray, mask: MaskCrop, colour: Colour, line_width: int) -> None:
    """Blend a mask and its contour into `pixels`, uint8 [H, W, 3], in place."""
    x0, y0, crop = mask
    if not crop.any():
        return
    under = pixels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]]
    under[crop] = under[crop] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY
    # Lighter than fill and box, to stand out from both, and from a background of the same hue.
    under[mask_contour(crop, line_width)] = [(2 * channel + 255) // 3 for channel in colour]


def fit_label(name: str, score: float | None, font_size: int, image_width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a label as one printable line, and a font for it.

    The font has the label's characters, and is so small that the label is not wider than the image.
    """
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(name.split()))
    name = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    text = name if score is None else f"{name} {score:.2f}".strip()
    path = font_for(name)
    while font_size > SMALLEST_FONT // 2 and plate_size(text, load_font(path, font_size))[0] > image_width:
        font_size -= 1
    return text, load_font(path, font_size)


def plate_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Return width and height in pixels of a plate, the filled rectangle behind a label."""
    return round(font.getlength(text)) + 2 * plate_padding(font), sum(font.getmetrics())


def plate_padding(font: ImageFont.FreeTypeFont) -> int:
    return max(2, round(font.size / 5))
