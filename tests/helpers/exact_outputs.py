"""Rows for masks, run-length codes, mask targets, weight files, COCO metrics and Detectron2."""

import json
import math
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.roi_heads import project_masks_on_boxes as reference_targets
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from my_dataset_coco import coco_object
from network_files import InstanceMasks
from network_files.image_transform import ImageTransform
from network_files.masks.paste import encode_masks
from network_files.masks.targets import mask_targets
from tests.helpers import detectron2_rows
from tests.helpers.detectron2_rows import ALLOWED
from tests.helpers.drawn_masks import blobs, boxes_of_every_kind, detections
from tests.helpers.exact_rows import Check, absolute, counted
from tests.helpers.exact_stages import same_detections
from tests.helpers.official_metrics import official_evaluation
from tests.helpers.parity import detections_in_float64
from tests.helpers.published_weights import evaluation_args, in_older_style, published_v1, published_v2
from train_utils.metrics.coco_evaluation import run_cocoeval
from train_utils.models import ModelConfig, build_model, load_trained_model

PICTURES = [(97, 33), (60, 80), (28, 300), (1, 50), (50, 1), (2, 2), (240, 320)]
NUMBER = re.compile(r" Average (?:Precision|Recall) .*\] = (-?\d\.\d{3})")


def mask_target_checks(rounds: int) -> list[Check]:
    """Targets of the mask loss from compact and from dense masks, half of them flipped, in frames of many sizes."""
    found, expected = [], []
    for i in range(rounds):
        dense = blobs(8, *torch.randint(20, 90, (2,)).tolist())
        masks, image = InstanceMasks.from_dense(dense), torch.rand(3, *dense.shape[1:])
        if i % 2:
            image, dense, masks = image.flip(-1), dense.flip(-1), masks.flip_horizontal()
        frame = (int(torch.randint(16, 120, (1,))), 160, [0.0] * 3, [1.0] * 3)
        boxes = torch.rand(len(dense), 4)
        _, (theirs,) = GeneralizedRCNNTransform(*frame)([image], [{"boxes": boxes, "masks": dense}])
        _, (ours,) = ImageTransform(*frame)([image], [{"boxes": boxes, "masks": masks}])
        rois = boxes_of_every_kind(*ours["masks"].size, count=20)
        matched = torch.randint(len(dense), (len(rois),))
        expected.append(reference_targets(theirs["masks"], rois, matched, 28))
        found.append(mask_targets([ours["masks"]], [rois], [matched], 28))
    return [absolute("mask targets", f"compact and dense, {rounds} frames, half flipped", found, expected, 0)]


def code_checks(least: int) -> list[Check]:
    """Run-length codes from 28x28 masks and from pasted masks, for boxes inside and across the border."""
    count = different = across = 0
    while count < least:
        for height, width in PICTURES:
            probs, boxes = detections(height, width, 60 if height == 240 else 250)
            planes = paste_masks_in_image(probs, boxes, (height, width))[:, 0] > 0.5
            expected = coco_mask.encode(np.asfortranarray(planes.permute(1, 2, 0).numpy().astype(np.uint8)))
            found = encode_masks(probs, boxes, (height, width))
            different += sum(ours != theirs for ours, theirs in zip(found, expected))
            limits = torch.tensor([width, height, width, height])
            across += int(((boxes < 0) | (boxes > limits)).any(1).sum())
            count += len(boxes)
    return [counted("run-length codes", f"boxes, {across:,} across the border; unequal codes", different, count)]


def weight_checks(images: list[Tensor]) -> list[Check]:
    """Detections after loading torchvision's weight files of every format, and the keys written back."""
    checks = []
    v1, v2 = published_v1(), published_v2()
    with tempfile.TemporaryDirectory() as folder:
        for what, reference, content in (
            ("published v1: older keys, epsilon 0", v1, in_older_style(v1.state_dict())),
            ("v2", v2, v2.state_dict()),
            ("v2 under the key model", v2, {"model": v2.state_dict()}),
        ):
            torch.save(content, Path(folder) / "weights.pth")
            own, _, _ = load_trained_model(Path(folder) / "weights.pth", evaluation_args())
            checks += same_detections(
                "weights", what, detections_in_float64(own, images), detections_in_float64(reference, images)
            )
    config = ModelConfig(91, norm="frozen", min_size=96, max_size=128)
    own = build_model(config)
    own.load_state_dict(v1.state_dict(), strict=True)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    back = own.state_dict()
    missing = [key for key in theirs if key not in back and not key.endswith("num_batches_tracked")]
    unlike = len(missing) + len(set(back) - set(theirs))
    checks.append(counted("weights", "v1: keys in only one of both", unlike, len(back)))
    return checks


def metric_checks(demo: Path) -> list[Check]:
    """The official figures of the COCO API's demonstration, computed by both libraries."""
    checks = []
    text = (demo / "official_results.txt").read_text()
    for iou_type in ("bbox", "segm"):
        printed = NUMBER.findall(text[text.index(f"type={iou_type}") :])[:12]
        official = torch.tensor([float(value) for value in printed], dtype=torch.float64)
        results = json.loads((demo / f"instances_val2014_fake{iou_type}100_results.json").read_text())
        truth = demo / "instances_val2014_100.json"
        evaluations = {
            "hotcoco": run_cocoeval(coco_object(str(truth)), results, iou_type),
            "pycocotools": official_evaluation(truth, results, iou_type),
        }
        stats = {}
        for engine, evaluation in evaluations.items():
            stats[engine] = torch.tensor(list(evaluation.stats), dtype=torch.float64)
            rounded = (stats[engine] * 1000).round() / 1000
            what = f"{iou_type}, official figures (3 digits), {engine}"
            checks.append(absolute("COCO metrics", what, rounded, official, 0))
        both = (stats["hotcoco"], stats["pycocotools"])
        checks.append(absolute("COCO metrics", f"{iou_type}, hotcoco and pycocotools", *both, 0))
    return checks


def detectron2_checks(folder: Path) -> list[Check]:
    """The rows of detectron2_rows.py; the rows from the original photo are only measured, as resizing differs."""
    rows = detectron2_rows.rows(folder)
    allowed = [ALLOWED.get(f"{row.stage} {row.what}", ALLOWED.get(row.stage, math.inf)) for row in rows]
    return [Check(row, tolerance, relative=False) for row, tolerance in zip(rows, allowed)]
