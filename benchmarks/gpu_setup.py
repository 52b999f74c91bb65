"""Shared parts of gpu_check.py: its settings, the rows of its table, the photos and the networks."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import as_in_torchvisions_reference, build_pair, random_weights
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN

from my_dataset_coco import CocoDetection
from network_files import MaskRCNN
from train_utils.device import Precision
from train_utils.models import ModelConfig

Photos = tuple[list[Tensor], list[dict]]
DRAWN = 160  # photos, where none are given


@dataclass
class Row:
    """A line of the table; `held` is None where a figure has no bound."""

    part: str
    check: str
    figure: str
    bound: str = ""
    held: bool | None = None

    def cells(self) -> tuple[str, ...]:
        return (self.part, self.check, self.figure, self.bound, {True: "yes", False: "no", None: ""}[self.held])


def bounded(part: str, check: str, found: float, bound: float, note: str = "") -> Row:
    """Return a row that holds if a difference is at most its bound; NaN is not."""
    return Row(part, check, f"{found:.1e}{note}", f"{bound:.0e}", found <= bound)


def exact(part: str, check: str, same: bool, otherwise: str = "others") -> Row:
    return Row(part, check, "the same" if same else otherwise, "the same", same)


@dataclass
class Setup:
    """What a part is run with.

    Attributes:
        out: folder of the results.
        photos: folder in COCO's layout.
        small: small images and few rounds, to see that everything runs.
    """

    device: torch.device
    out: Path
    photos: Path
    small: bool

    @property
    def sides(self) -> tuple[int, int]:
        return (96, 160) if self.small else (800, 1333)

    @property
    def batches(self) -> tuple[int, ...]:
        return (2,) if self.small else (2, 8)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def mixed(self) -> Precision:
        return Precision.choose(self.device, amp=True)

    def load(self, count: int) -> Photos:
        dataset = CocoDetection(self.photos, "train")
        images, targets = dataset.collate_fn([dataset[i % len(dataset)] for i in range(count)])
        return list(images), list(targets)

    def networks(self, photos: Photos, arch: str = "v1") -> tuple[MaskRCNN, TorchvisionMaskRCNN]:
        """This project's network and torchvision's, with the same weights, both on the CPU."""
        few = {"proposals": 100, "rois_per_image": 32} if self.small else {}
        return build_pair(photos[0][:2], *self.sides, str(self.weights(photos, arch)), **few)

    def weights(self, photos: Photos, arch: str = "v1") -> Path:
        """A checkpoint whose network proposes and finds about as much as a trained one; drawn once."""
        path = self.out / f"weights_{arch}.pth"
        if not path.exists():
            norm, layers = ("batch", 5) if arch == "v2" else ("frozen", 3)
            config = ModelConfig(91, arch, norm, 1e-5, layers, *self.sides)
            torch.save({"model": random_weights(config, photos[0][:2]), "model_config": config.to_plain()}, path)
        return path

    def speed_goal(self, ratio: float, goal: float) -> dict:
        """The bound of a row, which only a GPU has to hold."""
        return {"bound": f"{goal:g}", "held": ratio >= goal} if self.on_cuda else {}

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()


def prepare(setup: Setup) -> list[Row]:
    """Index the photos and draw the weights, so that no two processes do it at the same time."""
    photos = setup.load(2)
    for arch in ("v1", "v2"):
        setup.weights(photos, arch)
    return []


def floats_and_dense(photos: Photos) -> Photos:
    """Photos as both networks take them with the same bits: images divided by 255 on the CPU, dense masks."""
    return as_in_torchvisions_reference(*photos)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Context in which convolutions and products are computed in full float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def draw_photos(root: Path, number: int) -> Path:
    """Draw soft images of 640x480 and 480x640 with 3 to 12 polygons each, in COCO's layout; return its folder."""
    random = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for i in range(1, (number if split == "train" else min(number, 24)) + 1):
            width, height = (640, 480) if i % 3 else (480, 640)
            noise = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            photo = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            pen = ImageDraw.Draw(photo)
            for _ in range(int(random.integers(3, 13))):
                centre, radius = random.uniform(0.15, 0.85, 2) * (width, height), random.uniform(15, 120)
                angles = np.sort(random.uniform(0, 2 * np.pi, 9))
                points = centre + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)
                points = points.clip(0, (width - 1, height - 1)).round(1)
                low, high = points.min(axis=0), points.max(axis=0)
                if (high - low).min() < 4:
                    continue
                pen.polygon([tuple(p) for p in points], fill=tuple(random.integers(0, 256, 3).tolist()))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": int(random.integers(1, 91)),
                        "iscrowd": 0,
                        "bbox": [*low.tolist(), *(high - low).tolist()],
                        "area": float(np.prod(high - low)) / 2,
                        "segmentation": [points.reshape(-1).tolist()],
                    }
                )
            name = f"{i:012d}.jpg"
            photo.save(root / f"{split}2017" / name, quality=90)
            images.append({"id": i, "file_name": name, "width": width, "height": height})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": c, "name": f"class {c}"} for c in range(1, 91)],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root
