"""Read photos and their objects without this project's datasets, as an oracle for them and as input for networks."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from network_files import InstanceMasks

THREE_PHOTOS = (125952, 404484, 417285)  # image ids of coco_tiny's validation split: different shapes, few objects


def load_photos(coco_root: Path, split: str, image_ids: Sequence[int]) -> tuple[list[Tensor], list[dict]]:
    """Photos and their objects without crowds, read by Pillow and pycocotools and by nothing of this project.

    Returns:
        Images float [3, H, W] in 0..1, and for each `boxes` float32 [N, 4] x1y1x2y2, `labels` int64 [N] and
        `masks` uint8 [N, H, W].
    """
    content = json.loads((coco_root / "annotations" / f"instances_{split}2017.json").read_text())
    records = {record["id"]: record for record in content["images"]}
    images, targets = [], []
    for image_id in image_ids:
        record = records[image_id]
        with Image.open(coco_root / f"{split}2017" / record["file_name"]) as picture:
            pixels = np.array(picture.convert("RGB"))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
        objects = [a for a in content["annotations"] if a["image_id"] == image_id and not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [coco_mask.decode(packed_code(a, record["height"], record["width"])) for a in objects]
        targets.append(
            {
                "boxes": boxes,
                "labels": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
                "masks": torch.from_numpy(np.stack(masks)),
            }
        )
    return images, targets


def packed_code(annotation: dict, height: int, width: int) -> dict:
    """The packed run-length code of a COCO annotation: polygons, or a list of counts."""
    codes = coco_mask.frPyObjects(annotation["segmentation"], height, width)
    return coco_mask.merge(codes) if isinstance(codes, list) else codes


def with_compact_masks(targets: list[dict]) -> list[dict]:
    """The same targets, with InstanceMasks in place of dense masks."""
    return [dict(target, masks=InstanceMasks.from_dense(target["masks"])) for target in targets]
