"""Compute all numbers that a report states about boxes, masks or boundaries."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from report import average_precision
from report.average_precision import BestScore, Calibration, ClassResult, Group
from report.bootstrap import Interval, coco_stats, draw_weights, resample
from report.confusion import Confusion, confusion
from report.error_kinds import Errors, find_errors
from report.eval_data import EvalData
from report.matching import InRange, Overlaps, find_overlaps, match, match_areas
from train_utils.metrics.coco_evaluation import ClassMetrics, Metrics


@dataclass
class Analysis:
    kind: str  # "bbox", "segm" or "boundary"
    overlaps: Overlaps
    classes: list[ClassResult]
    curves: np.ndarray  # float64 [3, 101], mean of the classes' curves
    best: BestScore  # common to all classes
    errors: Errors
    pairs: Confusion  # at the best score
    groups: dict[str, list[Group]]
    intervals: list[list[Interval]]  # of AP, AP50 and AP75 per class; the last is that of the mean over classes
    calibration: Calibration

    def by_ap(self) -> list[int]:
        """Return the indices of the classes that have objects, by descending AP."""
        return sorted((k for k, r in enumerate(self.classes) if r.objects), key=lambda k: -self.classes[k].ap)


def analyse(data: EvalData, kind: str) -> Analysis:
    """Compute the report's numbers for boxes ("bbox"), masks ("segm") or boundaries ("boundary")."""
    data = data.of_kind(kind)
    overlaps = find_overlaps(data, kind)
    matching = match(data, overlaps)
    classes = average_precision.class_results(data, matching)
    best = average_precision.best_overall(data, matching)
    samples = resample(data, {"AP": InRange(matching, ~data.objects.crowds)}, draw_weights(len(data.image_ids)))
    return Analysis(
        kind, overlaps, classes, average_precision.mean_curves(classes), best, find_errors(data, overlaps, matching),
        confusion(data, overlaps, matching, best.threshold), average_precision.all_groups(data, matching, kind),
        samples.intervals()[:3], average_precision.calibration(data, matching),
    )  # fmt: skip


def boundary_metrics(data: EvalData, labels: Mapping[int, int] | None = None) -> Metrics:
    """Compute COCO's boundary metrics (see matching.py). `labels`: label -> category id; None if both are equal."""
    data = data.of_kind("boundary")
    areas = match_areas(data, find_overlaps(data, "boundary"), "boundary")
    results = average_precision.class_results(data, areas["AP"].matching)
    label_of = {category: label for label, category in (labels or {}).items()}
    of_classes = [
        ClassMetrics(label_of.get(category, category), name, r.objects, *np.nan_to_num([r.ap, r.ap50], nan=-1).tolist())
        for category, name, r in zip(data.category_ids.tolist(), data.class_names, results)
    ]
    return Metrics(coco_stats(data, areas), of_classes)
