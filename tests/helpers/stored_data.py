"""Drawn COCO data sets whose images have any number of channels and any type of values."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIDE = 64
LEVEL, CONTRAST, NOISE = 29_980, 170, 10  # of 65,535: all within one of 256 levels


def write_set(
    folder: Path, write: Callable[[Path, np.ndarray], None], suffix: str, channels: int, images: int = 6, seed: int = 0
) -> Path:
    """Write train2017/ and val2017/, each with images of two classes, squares and discs, that vanish at 8 bits.

    Args:
        write: writes uint16 [H, W, channels] to a path.
    """
    numbers = np.random.default_rng(seed)
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train", images), ("val", max(2, images // 3))):
        (folder / f"{split}2017").mkdir()
        content: dict = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}],
        }
        for i in range(1, count + 1):
            name = f"{split}2017/{i}{suffix}"
            pixels, objects = draw(numbers, channels)
            write(folder / name, pixels)
            content["images"].append({"id": i, "file_name": f"{i}{suffix}", "height": SIDE, "width": SIDE})
            for category, polygon, box in objects:
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": i, "category_id": category, "iscrowd": 0,
                     "segmentation": [polygon], "bbox": box, "area": box[2] * box[3]}
                )  # fmt: skip
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return folder


def draw(numbers: np.random.Generator, channels: int) -> tuple[np.ndarray, list]:
    """An image uint16 [H, W, channels] and its objects: category, polygon and box."""
    pixels = LEVEL + numbers.integers(-NOISE, NOISE + 1, (SIDE, SIDE, channels))
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    objects = []
    count, tries = int(numbers.integers(1, 4)), 50
    while len(objects) < count and (tries := tries - 1):
        side, category = int(numbers.integers(16, 27)), int(numbers.integers(1, 3))
        left, top = numbers.integers(0, SIDE - side, 2).tolist()
        boxes = [box for _, _, box in objects]
        if any(left < x0 + w and x0 < left + side and top < y0 + h and y0 < top + side for x0, y0, w, h in boxes):
            continue
        turns = np.linspace(0, 2 * np.pi, 4 if category == 1 else 24, endpoint=False) + (
            np.pi / 4 if category == 1 else 0
        )
        radius = side / 2 * (2**0.5 if category == 1 else 1)
        points = np.stack((left + side / 2 + radius * np.cos(turns), top + side / 2 + radius * np.sin(turns)), axis=1)
        if category == 1:
            inside = (x > left) & (x < left + side) & (y > top) & (y < top + side)
        else:
            inside = (x - left - side / 2) ** 2 + (y - top - side / 2) ** 2 < radius**2
        pixels[inside] += CONTRAST
        objects.append((category, points.round(2).flatten().tolist(), [left, top, side, side]))
    return pixels.astype(np.uint16), objects
