"""Store the objects found in one image: boxes, labels, names, scores, and masks as run-length codes."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from network_files.masks.rle import decode_crops
from train_utils.visual.drawing import MaskCrop, draw_instances


class Classes(Protocol):
    """The name and the category id of each label of a network."""

    names: dict[int, str]
    category_ids: dict[int, int]


@dataclass(eq=False, repr=False)
class Prediction:
    """The N objects found in one image, best first."""

    image: Image.Image  # in RGB, upright, as the network saw it
    boxes: np.ndarray  # float32 [N, 4], x1y1x2y2 in pixels of the image
    labels: np.ndarray  # int64 [N]
    names: list[str]  # N class names
    scores: np.ndarray  # float32 [N], in 0..1
    codes: list[dict]  # N masks as COCO run-length codes, {"size": [H, W], "counts": bytes}
    category_ids: list[int]  # N ids of the classes in the training data and in written results

    def __repr__(self) -> str:
        return f"Prediction({self.summary()} in {self.image.width}x{self.image.height})"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.height, self.image.width

    @property
    def masks(self) -> np.ndarray:
        """The masks as bool [N, H, W], decoded at each call; `crops` takes less memory."""
        planes = np.zeros((len(self), *self.size), dtype=bool)
        for plane, (left, top, crop) in zip(planes, self.crops()):
            plane[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        return planes

    def crops(self) -> list[MaskCrop]:
        """Return the crop of each mask: left, top and pixels, bool [h, w]. The crop of an empty mask has no pixels."""
        return [(left, top, crop.astype(bool)) for left, top, crop in decode_crops(self.codes)]

    def draw(self, enlarge: bool = True) -> Image.Image:
        """Return a copy of the image with masks, boxes, names and scores.

        With `enlarge`, a small image becomes larger by an integer factor, so that its labels can be read.
        """
        return draw_instances(self.image, self.boxes, self.names, self.scores, self.crops(), enlarge=enlarge)

    def to_coco(self, image_id: int = 1) -> list[dict]:
        """Return entries of COCO's results format, each with box (x, y, width, height in pixels) and mask."""
        xywh = self.boxes.astype(np.float64)
        xywh[:, 2:] -= xywh[:, :2]
        return [
            {
                "image_id": image_id,
                "category_id": category_id,
                "score": score,
                "bbox": box,
                "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
            }
            for category_id, score, box, code in zip(self.category_ids, self.scores.tolist(), xywh.tolist(), self.codes)
        ]

    def summary(self) -> str:
        """Count the objects by class, as in '2 person, 1 dog'; 'nothing' if there are none."""
        return ", ".join(f"{self.names.count(n)} {n}" for n in dict.fromkeys(self.names)) or "nothing"
