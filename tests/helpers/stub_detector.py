"""A detector that needs no training: it finds every area of one colour on a grey ground, as a network would."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from network_files.instance_masks import crop_to_content
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
        score: of an area by its pixels in the image.

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
    return TrainedModel(Path("stub"), detector, ModelConfig(4), {}, classes, cpu, Precision("cpu", None), {})


def drawn_shapes(
    size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]
) -> tuple[Image.Image, list[np.ndarray]]:
    """Discs and bars in turn, each of a colour of its own, in an image (width, height), and their masks bool [H, W].

    Args:
        boxes: x1y1x2y2, the last two excluded; where shapes overlap, the later one covers the earlier one.
    """
    image = Image.new("RGB", size, (GROUND,) * 3)
    draw = ImageDraw.Draw(image)
    colours = []
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        label = 1 + number % 2
        colour = (200 + label, number // 256, number % 256)
        shape = draw.ellipse if label == 1 else draw.rectangle
        shape((x1, y1, x2 - 1, y2 - 1), fill=colour)
        colours.append(colour)
    pixels = np.asarray(image)
    return image, [(pixels == colour).all(axis=2) for colour in colours]
