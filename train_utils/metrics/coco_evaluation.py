"""Compute COCO metrics: collect detections, gather them over processes, and score them with hotcoco."""

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from my_dataset_coco import coco_object, portable
from network_files.masks.paste import encode_masks
from network_files.on_device import AsyncHostCopy
from train_utils.classes import ClassTable
from train_utils.distributed import gather_objects

IOU_TYPES = ("bbox", "segm")
TITLES = {"segm": "masks", "bbox": "boxes", "boundary": "boundaries"}
ENOUGH_OBJECTS = 30  # of a class, for a score threshold of its own
MOST_DETECTIONS = 100  # per image, in COCO's metrics and by default in the network
METRIC_NAMES = (
    "AP", "AP50", "AP75", "AP small", "AP medium", "AP large",
    "AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large",
)  # fmt: skip


@dataclass
class ClassMetrics:
    """Metrics of one class."""

    label: int
    name: str
    objects: int  # in the ground truth, without crowds
    ap: float  # -1 without objects
    ap50: float
    threshold: float | None = None  # with the best F1 at IoU 0.5, see `midway`; None without a correct detection


class MetricsOfAll(NamedTuple):
    """AP and recall over all detections; COCO's 12 metrics count only the best 100 detections per image."""

    most: int  # the largest number of detections in an image
    ap: float  # over IoU 0.50 to 0.95, all areas
    recall: float


@dataclass
class Metrics:
    """COCO metrics of boxes, masks or boundaries, for all classes together and for each class."""

    stats: list[float]  # COCO's 12 numbers in the official order, for the best 100 detections per image; -1: no objects
    classes: list[ClassMetrics]  # for the same detections
    of_all: MetricsOfAll | None = None  # None if no image has more than 100 detections
    threshold: float | None = None  # as in `ClassMetrics`, for all classes together

    def table(self, title: str) -> str:
        lines = [title, *(f"  {name:<10} {value:7.4f}" for name, value in zip(METRIC_NAMES, self.stats))]
        if self.of_all is not None:
            most, *values = self.of_all
            for name, value in zip(("AP all", "AR all"), values):
                lines.append(f"  {name:<10} {value:7.4f}  of up to {most} detections per image")
        width = max([len(c.name) for c in self.classes], default=0)
        lines.append(f"  {'class':<{width}}  objects       AP     AP50")
        lines += [f"  {c.name:<{width}}  {c.objects:7d}  {c.ap:7.4f}  {c.ap50:7.4f}" for c in self.classes]
        return "\n".join(lines)


def tables(metrics: Mapping[str, Metrics]) -> str:
    """Format the tables of boxes, masks and boundaries, in the given order, and a line that explains any -1."""
    first = next(iter(metrics.values()))
    parts = [of_kind.table(TITLES[kind]) for kind, of_kind in metrics.items()]
    return "\n".join([*parts, *filter(None, [explain_missing(first.stats, first.classes)])])


def explain_missing(stats: Sequence[float], classes: Sequence[ClassMetrics] = ()) -> str:
    """Explain any -1 among COCO's 12 numbers and any class without objects; "" if there is nothing to explain."""
    if stats[0] == -1:
        return "-1: the validation images have no objects to find (crowds do not count), so that there is no AP"
    sizes = [name for name, value in zip(("small", "medium", "large"), stats[3:6]) if value == -1]
    without = sum(c.objects == 0 for c in classes)
    what = [f"no {' or '.join(sizes)} objects"] if sizes else []
    what += [f"no objects of {without} of the {len(classes)} classes"] if without else []
    return f"-1: the validation images have {' and '.join(what)}" if what else ""


class PendingDetections:
    """Output of `MaskRCNN.detect` while it is copied from the device to the host; `read` waits for the copy."""

    def __init__(self, detections: Sequence[Mapping[str, Tensor]]):
        self.counts = [len(detection["labels"]) for detection in detections]
        self.columns = {key: AsyncHostCopy(torch.cat([d[key] for d in detections])) for key in detections[0]}

    def read(self) -> list[dict[str, Tensor]]:
        columns = {key: column.read().split(self.counts) for key, column in self.columns.items()}
        return [dict(zip(columns, values)) for values in zip(*columns.values())]


class CocoEvaluator:
    """Collect detections on each process, and score all on the main process, which alone needs the ground truth."""

    def __init__(self, ground_truth: Any, classes: ClassTable, continuous_paste: bool = False):
        self.ground_truth, self.classes, self.continuous_paste = ground_truth, classes, continuous_paste
        self.detections: dict[int, dict] = {}

    def update_batch(
        self, image_ids: Sequence[int], sizes: Sequence[tuple[int, int]], detections: PendingDetections
    ) -> None:
        """Add the detections of several images, given with their heights and widths."""
        for image_id, size, detection in zip(image_ids, sizes, detections.read()):
            self.update(image_id, size, detection)

    def update(self, image_id: int, size: tuple[int, int], detection: Mapping[str, Tensor]) -> None:
        """Add the detections of one image as `MaskRCNN.detect` returns them; `size` is its height and width."""
        codes = encode_masks(detection["masks"], detection["boxes"], size, continuous=self.continuous_paste)
        found = {name: values.cpu().numpy() for name, values in detection.items() if name != "masks"}
        self.detections[image_id] = found | {"codes": codes}

    def metrics(self) -> dict[str, Metrics] | None:
        """Score the detections of all processes and return metrics by IoU type; None except on the main process."""
        detections = self.gathered()
        return None if detections is None else self.score(detections)

    def gathered(self) -> dict[int, dict] | None:
        """Return the detections of all processes by image id on the main process; None on the others."""
        shards = gather_objects(self.detections)
        return None if shards is None else {image_id: d for shard in shards for image_id, d in shard.items()}

    def results(self, detections: Mapping[int, dict]) -> dict[str, list[dict]]:
        """Convert each image's best 100 detections to COCO's results format, see `coco_results`."""
        return coco_results(detections, self.classes.category_ids, MOST_DETECTIONS)

    def score(self, detections: Mapping[int, dict], kinds: Sequence[str] = IOU_TYPES) -> dict[str, Metrics]:
        """Score detections, given by image id, and return metrics by IoU type, in the order of `kinds`."""
        results = self.results(detections)
        truths = {kind: self.ground_truth if kind == "bbox" else truth_of_masks(self.ground_truth) for kind in kinds}
        metrics = {kind: score_results(truths[kind], results[kind], kind, self.classes) for kind in kinds}
        most = max((len(d["labels"]) for d in detections.values()), default=0)
        if most > MOST_DETECTIONS:
            results = coco_results(detections, self.classes.category_ids)
            for kind in kinds:
                found = run_cocoeval(truths[kind], results[kind], kind, most).eval
                numbers = (mean_of_valid(np.asarray(found[name])[..., 0, -1]) for name in ("precision", "recall"))
                metrics[kind].of_all = MetricsOfAll(most, *numbers)
        return metrics


def truth_of_masks(ground_truth: Any) -> Any:
    """Return the ground truth for scoring masks: objects without a mask become crowds, which are ignored."""
    annotations = ground_truth.loadAnns(ground_truth.getAnnIds())
    if all(a.get("segmentation", True) for a in annotations):
        return ground_truth
    images = ground_truth.loadImgs(ground_truth.getImgIds())
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    for i, a in enumerate(annotations):
        if not a["segmentation"]:
            annotations[i] = portable(a, a["category_id"], a["image_id"], sizes[a["image_id"]])
    categories = ground_truth.loadCats(ground_truth.getCatIds())
    return coco_object({"images": images, "annotations": annotations, "categories": categories})


def coco_results(
    detections: Mapping[int, dict], category_ids: Mapping[int, int], most: int | None = None
) -> dict[str, list[dict]]:
    """Convert up to `most` detections per image to COCO's results format. Drop those whose label has no category."""
    boxes, masks = [], []
    for image_id in sorted(detections):
        d = {name: values[:most] for name, values in detections[image_id].items()}
        xywh = d["boxes"].astype(np.float64)
        xywh[:, 2:] -= xywh[:, :2]
        for label, score, box, code in zip(d["labels"].tolist(), d["scores"].tolist(), xywh.tolist(), d["codes"]):
            if label in category_ids:
                common = {"image_id": image_id, "category_id": category_ids[label], "score": score}
                boxes.append({**common, "bbox": box})  # not beside the mask, whose size would then be the box's area
                masks.append({**common, "segmentation": {"size": code["size"], "counts": code["counts"].decode()}})
    return {"bbox": boxes, "segm": masks}


def score_results(ground_truth: Any, results: Sequence[dict], iou_type: str, classes: ClassTable) -> Metrics:
    """Score results in COCO's format against the ground truth."""
    evaluation = run_cocoeval(ground_truth, list(results), iou_type)
    precision = np.asarray(evaluation.eval["precision"])  # [IoU, recall, class, area, max detections]
    scores = np.asarray(evaluation.eval["scores"])[0, :, :, 0, -1]
    columns = {category: k for k, category in enumerate(evaluation.params.catIds)}
    annotations = ground_truth.loadAnns(ground_truth.getAnnIds())
    objects = Counter(a["category_id"] for a in annotations if not a.get("iscrowd", 0))
    given = np.array([(entry["category_id"], entry["score"]) for entry in results], dtype=np.float64).reshape(-1, 2)
    counts = np.array([objects[category] for category in columns], dtype=np.int64)
    by_class = []
    for label, category in sorted(classes.category_ids.items()):
        k = [columns[category]] if category in columns else []
        of_class = precision[:, :, k, 0, -1]
        best = best_threshold(of_class[0], scores[:, k], counts[k])
        threshold = midway(best, given[given[:, 0] == category, 1])
        ap, ap50 = mean_of_valid(of_class), mean_of_valid(of_class[0])
        by_class.append(ClassMetrics(label, classes.names[label], objects[category], ap, ap50, threshold))
    common = midway(best_threshold(precision[0, :, :, 0, -1], scores, counts), given[:, 1])
    return Metrics([float(s) for s in evaluation.stats], by_class, threshold=common)


def midway(score: float | None, scores: np.ndarray) -> float | None:
    """Lower a threshold halfway to the next lower of `scores`, as a margin for other images. None stays None."""
    return None if score is None else float(score + scores[scores < score].max(initial=0)) / 2


def best_threshold(precision: np.ndarray, scores: np.ndarray, objects: np.ndarray) -> float | None:
    """Return the score threshold that gives K classes together the best F1; None if no detection is correct.

    `precision` and `scores` are [101, K], at the recalls 0, 0.01, ..., 1, and `objects` int64 [K]. For one class of up
    to 100 objects the result is exact, as each recall is then among the 101; else it is exact to 1 % of recall. COCO's
    interpolation does no harm: where it takes the precision of a higher recall, F1 is higher at that recall.
    """
    reached = (precision > 0) & (objects > 0)
    if not reached.any():
        return None
    hits = np.ceil(np.multiply.outer(np.linspace(0, 1, 101), objects) - 1e-9).clip(1)  # objects found at each recall
    found = hits / np.where(reached, precision, 1)
    candidates = np.unique(np.quantile(scores[reached], np.linspace(0, 1, 201), method="nearest"))
    count = (reached & (scores >= candidates[:, None, None])).sum(axis=1)  # [C, K], as scores fall with recall
    last = np.maximum(count - 1, 0), np.arange(len(objects))
    f1 = 2 * (hits[last] * (count > 0)).sum(axis=1) / (objects.sum() + (found[last] * (count > 0)).sum(axis=1))
    return float(candidates[f1.argmax()])  # the lowest of equally good ones, where precision is not interpolated


def best_thresholds(metrics: Mapping[str, Metrics]) -> dict[int, float]:
    """Map each label to the threshold with the best mask F1, or box F1 if no mask is correct; {} without correct boxes.

    A class with few objects gets the common threshold of all classes, as its own would fit other images worse.
    """
    for of_kind in (metrics[kind] for kind in ("segm", "bbox") if kind in metrics):
        if (common := of_kind.threshold) is not None:
            return {c.label: c.threshold or common if c.objects >= ENOUGH_OBJECTS else common for c in of_kind.classes}
    return {}


def run_cocoeval(ground_truth: Any, results: list[dict], iou_type: str, most: int | None = None) -> Any:
    """Run COCO's evaluation, bit for bit like pycocotools. With `most` detections per image, omit COCO's 12 `stats`."""
    from hotcoco import COCOeval  # only the main process needs it

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), iou_type)
        if most is not None:
            evaluation.params.maxDets = [most]
        evaluation.evaluate()
        evaluation.accumulate()
        if most is None:
            evaluation.summarize()
    return evaluation


def mean_of_valid(values: np.ndarray) -> float:
    """Return the mean of all entries but -1, COCO's mark for a missing value; -1 if no other entries exist."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0
