"""Compute COCO metrics: collect detections compactly, gather them over processes, score with hotcoco or pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from network_files.mask_paste import encode_masks
from train_utils.classes import ClassTable
from train_utils.distributed import gather_objects

IOU_TYPES = ("bbox", "segm")
METRIC_NAMES = (
    "AP", "AP50", "AP75", "AP small", "AP medium", "AP large",
    "AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large",
)  # fmt: skip


@dataclass
class ClassMetrics:
    """Metrics of one class.

    Attributes:
        objects: number of ground-truth objects, not counting crowds.
        ap, ap50: -1 if there are no objects.
    """

    label: int
    name: str
    objects: int
    ap: float
    ap50: float


@dataclass
class Metrics:
    """COCO metrics.

    Attributes:
        stats: COCO's 12 numbers in the official order; -1 where the data has no such objects.
        classes: the metrics per class.
    """

    stats: list[float]
    classes: list[ClassMetrics]

    def table(self, title: str) -> str:
        """Format both as text, ready to print."""
        lines = [title]
        lines += [f"  {name:<10} {value:7.4f}" for name, value in zip(METRIC_NAMES, self.stats)]
        width = max([len(c.name) for c in self.classes], default=0)
        lines.append(f"  {'class':<{width}}  objects       AP     AP50")
        lines += [f"  {c.name:<{width}}  {c.objects:7d}  {c.ap:7.4f}  {c.ap50:7.4f}" for c in self.classes]
        return "\n".join(lines)


class CocoEvaluator:
    """Collect the detections of one process, and score those of all processes.

    Args:
        ground_truth: a COCO object of hotcoco or pycocotools.
        classes: meaning of the detections' labels.
        continuous_paste: how masks are pasted into the image, see `mask_crops`.
    """

    def __init__(self, ground_truth: Any, classes: ClassTable, continuous_paste: bool = False):
        self.ground_truth = ground_truth
        self.classes = classes
        self.continuous_paste = continuous_paste
        self.detections: dict[int, dict] = {}

    def update(self, image_id: int, size: tuple[int, int], detection: Mapping[str, Tensor]) -> None:
        """Add the detections of one image as `MaskRCNN.detect` returns them; `size` is its height and width."""
        self.detections[image_id] = {
            "labels": detection["labels"].cpu().numpy(),
            "scores": detection["scores"].cpu().numpy(),
            "boxes": detection["boxes"].cpu().numpy(),
            "codes": encode_masks(detection["masks"], detection["boxes"], size, continuous=self.continuous_paste),
        }

    def metrics(self) -> dict[str, Metrics] | None:
        """Score the detections of all processes, by IoU type, on the main process; return None on the others."""
        results = self.results()
        return None if results is None else self.score(results)

    def results(self) -> dict[str, list[dict]] | None:
        """The detections of all processes as `coco_results`, on the main process; None on the others."""
        shards = gather_objects(self.detections)
        if shards is None:
            return None
        detections = {image_id: d for shard in shards for image_id, d in shard.items()}
        return coco_results(detections, self.classes.category_ids)

    def score(self, results: Mapping[str, list[dict]]) -> dict[str, Metrics]:
        """The metrics of results, by IoU type."""
        return {kind: score_results(self.ground_truth, results[kind], kind, self.classes) for kind in IOU_TYPES}


def coco_results(detections: Mapping[int, dict], category_ids: Mapping[int, int]) -> dict[str, list[dict]]:
    """Convert detections by image id to COCO's results format per IoU type; labels become category ids.

    Boxes and masks are separate entries, as in official results files, so that mask detections have their masks' areas.
    Detections of labels without a category (gaps in COCO's ids) are dropped.
    """
    boxes, masks = [], []
    for image_id in sorted(detections):
        d = detections[image_id]
        xywh = d["boxes"].astype(np.float64)
        xywh[:, 2:] -= xywh[:, :2]
        for label, score, box, code in zip(d["labels"].tolist(), d["scores"].tolist(), xywh.tolist(), d["codes"]):
            if label in category_ids:
                common = {"image_id": image_id, "category_id": category_ids[label], "score": score}
                boxes.append({**common, "bbox": box})
                masks.append({**common, "segmentation": {"size": code["size"], "counts": code["counts"].decode()}})
    return {"bbox": boxes, "segm": masks}


def score_results(ground_truth: Any, results: Sequence[dict], iou_type: str, classes: ClassTable) -> Metrics:
    """Score results in COCO's format against the ground truth."""
    evaluation = run_cocoeval(ground_truth, list(results), iou_type)
    precision = np.asarray(evaluation.eval["precision"])  # [IoU, recall, class, area, max detections]
    columns = {category: k for k, category in enumerate(evaluation.params.catIds)}
    objects = count_objects(ground_truth)
    by_class = []
    for label, category in sorted(classes.category_ids.items()):
        of_class = precision[:, :, columns[category], 0, -1] if category in columns else np.zeros((1, 0))
        by_class.append(
            ClassMetrics(
                label,
                classes.names[label],
                objects.get(category, 0),
                mean_of_valid(of_class),
                mean_of_valid(of_class[0]),
            )
        )
    return Metrics([float(s) for s in evaluation.stats], by_class)


def run_cocoeval(ground_truth: Any, results: list[dict], iou_type: str) -> Any:
    """Run the COCOeval of the ground truth's library without its output, and return it."""
    if type(ground_truth).__module__.startswith("pycocotools"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from hotcoco import COCO, COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            detections = ground_truth.loadRes(results)
        else:
            detections = COCO()  # pycocotools' loadRes does not accept an empty list
            detections.dataset = {**ground_truth.dataset, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(ground_truth, detections, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def count_objects(ground_truth: Any) -> dict[int, int]:
    """Count the objects per category id, without crowds."""
    counts: dict[int, int] = {}
    for annotation in ground_truth.loadAnns(ground_truth.getAnnIds()):
        if not annotation.get("iscrowd", 0):
            counts[annotation["category_id"]] = counts.get(annotation["category_id"], 0) + 1
    return counts


def mean_of_valid(values: np.ndarray) -> float:
    """Return the mean of the entries that are not -1 (nothing to find); -1 if there are none."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0
