"""Compare this project with stored outputs of Detectron2 for three photos, stage by stage, as rows of differences.

`python -m tests.programs.detectron2_rows` prints them. The weights are drawn by the rules in the folder's
`weights.json` and written in the format of the model zoo. A stage receives the output of Detectron2's previous stage if
the folder contains it.
"""

import hashlib
import json
import math
import pickle
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import box_iou

from network_files import MaskRCNN
from network_files.boxes import resize_boxes
from network_files.masks.encode import encode_masks
from tests.helpers.project import ROOT
from train_utils.models import load_trained_model
from train_utils.options import InferenceSettings

PHOTOS = ("000000005001", "000000010764", "000000020992")
LEVELS = ("p2", "p3", "p4", "p5", "p6")
COCO_LABELS = sorted(int(label) for label in json.loads((ROOT / "coco91_indices.json").read_text()))
SAME_BOX = 0.01  # pixels between two boxes that count as one
NO_OPTIONS = InferenceSettings()
# What the largest difference of a stage may be, about three times what was measured; scores and boxes in all photos.
ALLOWED = {
    "pyramid": 6e-6,
    "proposals boxes": 4e-4,
    "proposals without counterpart": 0,
    "proposals at another rank": 10,  # equal scores have no order
    "detections of another class": 0,
    "detections scores": 2e-5,
    "detections boxes": 2e-4,
    "mask head probabilities": 3e-4,  # the file's have 16 bits
    "final boxes": 2e-4,
    "final mask areas": 1,
    "final 1 - mean mask IoU": 1e-3,
}


class Row(NamedTuple):
    """The largest difference of two lists of numbers, and the same as a share of the reference's largest entry."""

    stage: str
    what: str
    count: int
    absolute: float
    relative: float


def difference(stage: str, what: str, own: Tensor, reference: Tensor) -> Row:
    if own.shape != reference.shape:
        return Row(stage, what, reference.numel(), math.inf, math.inf)
    absolute = (own.double() - reference.double()).abs().max().item()
    return Row(stage, what, reference.numel(), absolute, absolute / reference.double().abs().max().item())


# ------------------------------------------------------------------------------------------------------- the weights


def draw_weights(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of `weights.json`; ValueError if one differs from those that Detectron2 was given."""
    recipe = json.loads((folder / "weights.json").read_text())
    numbers = np.random.default_rng(recipe["seed"])
    arrays = {}
    for key, entry in recipe["keys"].items():
        z = numbers.standard_normal(entry["shape"], dtype=np.float32)
        arrays[key] = by_rule(entry["rule"], z)
        if hashlib.sha256(arrays[key].tobytes()).hexdigest()[:16] != entry["sha256"]:
            raise ValueError(f"{key}: not the array that Detectron2 was given ({entry['rule']})")
    return arrays


def by_rule(rule: str, z: np.ndarray) -> np.ndarray:
    """One of: `c z / sqrt(fan_in)`, `a + c z`, `c z`, `c (1 + d z)`, `c abs(1 + d z)`."""
    if rule.endswith("z / sqrt(fan_in)"):
        factor = float(rule.split()[0])
        factor = math.sqrt(2) if factor == 1.41421 else factor
        return z * (factor / math.sqrt(math.prod(z.shape[1:])))
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", rule)]
    if "(" in rule:
        factor = numbers.pop(0) if not rule.startswith("abs") else 1.0
        inner = numbers[0] + numbers[1] * z
        return factor * (np.abs(inner) if "abs" in rule else inner)
    offset = numbers.pop(0) if "+" in rule else 0.0
    return offset + numbers[0] * z


def write_zoo_file(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with path.open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file, protocol=2)
    return path


# ---------------------------------------------------------------------------------------------------------- the rows


class Reference:
    """Detectron2's outputs for one photo, and the photo."""

    def __init__(self, folder: Path, name: str):
        values = np.load(folder / f"{name}.npz")
        self.name = name
        self.values = {key: torch.from_numpy(values[key]) for key in values}
        self.size, self.resized_size = (tuple(pair) for pair in self.values["size"].view(2, 2).tolist())
        codes = json.loads((folder / f"{name}_masks.json").read_text())
        self.codes = [{"size": list(self.size), "counts": code.encode()} for code in codes]
        with Image.open(folder.parent / "coco_tiny" / "val2017" / f"{name}.jpg") as picture:
            self.photo = picture.convert("RGB")

    def __getitem__(self, key: str) -> Tensor:
        return self.values[key]

    @property
    def labels(self) -> Tensor:
        """Detectron2's classes, 0..79, as COCO's ids."""
        return torch.tensor(COCO_LABELS)[self["classes"]]

    @property
    def resized(self) -> Tensor:
        """The photo as Detectron2 resizes it, uint8 [3, h, w]."""
        height, width = self.resized_size
        return as_tensor(self.photo.resize((width, height), Image.Resampling.BILINEAR))


def as_tensor(photo: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)


@torch.inference_mode()
def stage_rows(model: MaskRCNN, reference: Reference) -> list[Row]:
    """Rows for one photo, resized by Pillow; only the proposals depend on this project's own previous stage."""
    batch, _ = model.transform([reference.resized])
    pyramid = model.backbone(batch.tensors)
    rows = [
        difference("pyramid", name, level[0, :4, ::16, ::16], reference[f"feat_{name}"])
        for name, level in zip(LEVELS, pyramid.values())
    ]
    (proposals,), _ = model.rpn(list(pyramid.values()), batch.tensors.shape[-2:], batch.image_sizes)
    distance = torch.cdist(reference["proposals"], proposals, p=math.inf)
    nearest = distance.argmin(1)
    found = distance[torch.arange(len(nearest)), nearest] <= SAME_BOX
    rows += [
        difference("proposals", "boxes", proposals[nearest[found]], reference["proposals"][found]),
        counted("proposals", "without counterpart", found),
        counted("proposals", "at another rank", ~found | (nearest == torch.arange(len(nearest)))),
    ]
    class_logits, deltas = model.roi_heads.predict_boxes(pyramid, [reference["proposals"]], batch.image_sizes)
    (detections,) = model.roi_heads.select_detections(class_logits, deltas, [reference["proposals"]], batch.image_sizes)
    rows += [
        counted("detections", "of another class", detections["labels"] == reference.labels),
        difference("detections", "scores", detections["scores"], reference["scores"]),
        difference("detections", "boxes", detections["boxes"], reference["boxes"]),
    ]
    logits = model.roi_heads.predict_masks(pyramid, [reference["boxes"]], batch.image_sizes, reference.labels)
    probs = logits.sigmoid()
    boxes = resize_boxes(reference["boxes"], reference.resized_size, reference.size)
    codes = encode_masks(probs[:, None].numpy(), boxes.numpy(), reference.size, continuous=model.continuous_paste)
    apart = 1 - mean_iou(codes, reference.codes)
    areas = torch.from_numpy(coco_mask.area(codes).astype(np.int64))
    return [
        *rows,
        difference("mask head", "probabilities", probs, reference["mask_probs"]),
        difference("final", "boxes", boxes, reference["final_boxes"]),
        difference("final", "mask areas", areas, reference["areas"]),
        Row("final", "1 - mean mask IoU", len(codes), apart, apart),
    ]


def counted(stage: str, what: str, same: Tensor) -> Row:
    different = int((~same).sum())
    return Row(stage, what, len(same), different, different / len(same))


def mean_iou(own: list[dict], reference: list[dict]) -> float:
    """Mean IoU of corresponding masks; two empty masks count as equal."""
    ious = [coco_mask.iou([a], [b], [0])[0, 0] if coco_mask.area([a, b]).any() else 1.0 for a, b in zip(own, reference)]
    return float(np.mean(ious))


@torch.inference_mode()
def whole_way_iou(model: MaskRCNN, reference: Reference) -> float:
    """Mean IoU of the masks, from photo to masks, with Detectron2's; 0 for those without counterpart.

    A counterpart is the detection of the same class with the highest box IoU, of at least 0.5.
    """
    (own,) = model.detect([as_tensor(reference.photo)])
    codes = encode_masks(own["masks"].numpy(), own["boxes"].numpy(), reference.size, continuous=model.continuous_paste)
    overlaps = box_iou(reference["final_boxes"], own["boxes"]) * (reference.labels[:, None] == own["labels"])
    ious = [
        mean_iou([codes[i]], [code]) if overlap >= 0.5 else 0.0
        for overlap, i, code in zip(*(values.tolist() for values in overlaps.max(1)), reference.codes)
    ]
    return float(np.mean(ious))


def rows(folder: Path) -> list[Row]:
    """The rows of all photos merged: counts added, the largest differences kept.

    The last rows are means over the photos: the difference of the masks from Detectron2's if this project resizes the
    photo, and with torchvision's resizing or pasting instead.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = write_zoo_file(Path(scratch) / "model_final_f10217.pkl", draw_weights(folder))
        model, _, _ = load_trained_model(path, NO_OPTIONS)
    references = [Reference(folder, name) for name in PHOTOS]
    merged: dict[tuple[str, str], Row] = {}
    for row in [row for reference in references for row in stage_rows(model, reference)]:
        seen = merged.get(row[:2], Row(*row[:2], 0, 0.0, 0.0))
        largest = (max(seen.absolute, row.absolute), max(seen.relative, row.relative))
        merged[row[:2]] = Row(*row[:2], seen.count + row.count, *largest)
    found = list(merged.values())
    for ways, model.transform.antialias, model.continuous_paste in (
        ("", True, True),
        (", torchvision's resizing", False, True),
        (", torchvision's pasting", True, False),
    ):
        apart = 1 - float(np.mean([whole_way_iou(model, reference) for reference in references]))
        found.append(Row("from the photo", "1 - mean mask IoU" + ways, 100 * len(references), apart, apart))
    return found
