"""A detector that needs no training: it finds every area of one colour on a grey ground, as a network would."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from network_files.masks.instance_masks import crop_to_content
from train_utils.classes import ClassTable
from train_utils.device import Precision
from train_utils.models import ModelConfig
from train_utils.trained_model import TrainedModel

GROUND = 128  # all three channels
NAMES = {1: "disc", 2: "bar", 3: "blot"}
BLOT = 3


class StubDetector(nn.Module):
    """Finds areas of one colour, whose first channel is 200 plus the class; masks of 28x28, boxes to the pixel.

    Args:
        confused_below: side in pixels below which an area is taken for a blot, as networks are confused by fragments.

    Attributes:
        seen: height and width of all images that it was given.
        together: images in each batch.
    """

    continuous_paste = False

    def __init__(self, confused_below: int = 0):
        super().__init__()
        self.confused_below = confused_below
        self.seen: list[tuple[int, int]] = []
        self.together: list[int] = []

    def __deepcopy__(self, memo: dict) -> "StubDetector":
        return self  # so that a test sees what it was given

    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        self.seen += [tuple(image.shape[-2:]) for image in images]
        self.together.append(len(images))
        return [self.detect_one(image.permute(1, 2, 0).numpy()) for image in images]

    def detect_one(self, image: np.ndarray) -> dict[str, Tensor]:
        codes = image.astype(np.int64) @ (1 << 16, 1 << 8, 1)
        ground = GROUND * ((1 << 16) + (1 << 8) + 1)
        found = []
        for code in np.unique(codes[codes != ground]).tolist():
            left, top, crop = crop_to_content(codes == code)
            height, width = crop.shape
            probs = F.interpolate(torch.from_numpy(crop)[None, None].float(), size=(28, 28), mode="area")
            label = BLOT if min(height, width) < self.confused_below else (code >> 16) - 200
            found.append(([left, top, left + width, top + height], label, int(crop.sum()), probs[0]))
        boxes, labels, areas, probs = zip(*found) if found else ((), (), (), ())
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": 1 - 1 / (1 + torch.tensor(areas, dtype=torch.float32).sqrt()),
            "masks": torch.stack(probs) if probs else torch.zeros(0, 1, 28, 28),
        }


def stub_trained(detector: StubDetector) -> TrainedModel:
    """The detector as if it had been opened from a file."""
    cpu = torch.device("cpu")
    classes = ClassTable(NAMES, {label: label for label in NAMES})
    return TrainedModel(Path("stub"), detector, ModelConfig(4), {}, classes, cpu, Precision("cpu", None), {}, {})


Box = tuple[int, int, int, int]  # x1y1x2y2, the last two excluded


def drawn_shapes(size: tuple[int, int], boxes: Sequence[Box]) -> tuple[Image.Image, list[np.ndarray]]:
    """An image (width, height) of `draw_shapes`, and the masks of the shapes, bool [H, W]."""
    image = draw_shapes(size, boxes)
    pixels = np.asarray(image)
    return image, [(pixels == colour_of(number)).all(axis=2) for number in range(len(boxes))]


def draw_shapes(size: tuple[int, int], boxes: Sequence[Box]) -> Image.Image:
    """Discs and bars in turn, each of a colour of its own; where they overlap, the later one covers the earlier one."""
    image = Image.new("RGB", size, (GROUND,) * 3)
    draw = ImageDraw.Draw(image)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        shape = draw.rectangle if number % 2 else draw.ellipse
        shape((x1, y1, x2 - 1, y2 - 1), fill=colour_of(number))
    return image


def colour_of(number: int) -> tuple[int, int, int]:
    """Of the shape that is drawn as the so many-th, from 0; the first channel says the class."""
    return 201 + number % 2, number // 256, number % 256


def separate_boxes(number: int, side: int, lengths: tuple[int, int], seed: int) -> list[Box]:
    """Up to `number` random boxes with sides of the given lengths in a square, at least four pixels apart."""
    random = np.random.default_rng(seed)
    boxes: list[Box] = []
    for _ in range(number):
        (x, y), (w, h) = random.integers(0, side - lengths[0], 2).tolist(), random.integers(*lengths, 2).tolist()
        box = (x, y, min(x + w, side), min(y + h, side))
        if all(box[2] + 4 < b[0] or b[2] + 4 < box[0] or box[3] + 4 < b[1] or b[3] + 4 < box[1] for b in boxes):
            boxes.append(box)
    return boxes
