"""Write the report's numbers as CSV and JSON, for other programs."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dataset_files.atomic_files import write_atomically, write_csv
from report.analysis import KIND_NAMES, Analysis
from report.bootstrap import METRICS
from report.confusion import ImageScores, images_of
from report.eval_data import EvalData
from report.suspects import Suspect

FILES = (
    "report.html",
    "report.json",
    "classes.csv",
    "confusion.csv",
    "errors.csv",
    "images.csv",
    "suspects.csv",
    "comparison.csv",
)
CLASS_HEAD = (
    "compared", "class", "category_id", "objects", "AP", "AP50", "AP75", "precision", "recall", "F1", "threshold",
    "AP_low", "AP_high",
)  # fmt: skip
FILE_HEAD = ("file_name", "image_id")
PAIR_HEAD = ("annotation_id", "annotated_class", "detected_class", "score", "x", "y", "width", "height")
SUSPECT_HEAD = ("rank", "kind", "confidence", *FILE_HEAD, *PAIR_HEAD)
ERROR_HEAD = ("compared", *FILE_HEAD, *PAIR_HEAD)
IMAGE_HEAD = (*FILE_HEAD, "F1", "right", "false", "missed")


def write_tables(
    folder: Path,
    data: EvalData,
    analyses: Sequence[Analysis],
    scores: ImageScores,
    suspects: Sequence[Suspect],
    summary: Mapping[str, Any],
) -> None:
    """Write classes.csv, confusion.csv, errors.csv, images.csv, suspects.csv and report.json."""
    write_table(folder / "classes.csv", CLASS_HEAD, class_rows(data, analyses))
    write_table(folder / "confusion.csv", ("compared", "annotated", "detected", "number"), cell_rows(data, analyses))
    write_table(folder / "errors.csv", ERROR_HEAD, error_rows(data, analyses))
    write_table(folder / "images.csv", IMAGE_HEAD, image_rows(data, scores))
    write_table(folder / "suspects.csv", SUSPECT_HEAD, suspect_rows(data, suspects))
    content = dict(summary) | {analysis.kind: plain(data, analysis) for analysis in analyses}
    write_atomically(folder / "report.json", as_json(content))


def as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(finite(content), ensure_ascii=False, indent=1) + "\n"


def write_table(path: Path, head: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    write_csv(path, head, ([shortened(value) for value in row] for row in rows))


def shortened(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def class_rows(data: EvalData, analyses: Sequence[Analysis]) -> Iterator[Sequence[Any]]:
    for analysis in analyses:
        classes = zip(data.class_names, data.category_ids.tolist(), analysis.classes, analysis.intervals[0])
        for name, category, r, interval in classes:
            numbers = (r.ap, r.ap50, r.ap75, r.precision, r.recall, r.f1, r.threshold, *interval)
            yield KIND_NAMES[analysis.kind], name, category, r.objects, *numbers


def cell_rows(data: EvalData, analyses: Sequence[Analysis]) -> Iterator[Sequence[Any]]:
    names = [*data.class_names, "background"]
    for analysis in analyses:
        for row, column in np.argwhere(analysis.pairs.matrix).tolist():
            number = int(analysis.pairs.matrix[row, column])
            yield KIND_NAMES[analysis.kind], names[row], names[column], number


def error_rows(data: EvalData, analyses: Sequence[Analysis]) -> Iterator[Sequence[Any]]:
    """Yield the off-diagonal pairs of the confusion matrix, with the detection's box, else the annotation's."""
    for analysis in analyses:
        pairs = analysis.pairs
        images = images_of(data, pairs)
        for p in np.flatnonzero(pairs.rows != pairs.columns).tolist():
            image, g, d = int(images[p]), int(pairs.objects[p]), int(pairs.detections[p])
            file = data.file_names[image], int(data.image_ids[image])
            yield KIND_NAMES[analysis.kind], *file, *pair_values(data, g, d, detection_first=True)


def image_rows(data: EvalData, scores: ImageScores) -> Iterator[Sequence[Any]]:
    for image in np.argsort(np.nan_to_num(scores.f1, nan=2.0), kind="stable").tolist():
        counts = int(scores.right[image]), int(scores.false[image]), int(scores.missed[image])
        yield data.file_names[image], int(data.image_ids[image]), float(scores.f1[image]), *counts


def suspect_rows(data: EvalData, suspects: Sequence[Suspect]) -> Iterator[Sequence[Any]]:
    """Yield the suspects with the annotation's box, or if it is missing, the detection's."""
    for rank, suspect in enumerate(suspects, start=1):
        file = data.file_names[suspect.image], int(data.image_ids[suspect.image])
        values = pair_values(data, suspect.object, suspect.detection, detection_first=False)
        yield rank, suspect.kind, suspect.confidence, *file, *values


def pair_values(data: EvalData, g: int, d: int, detection_first: bool) -> tuple[Any, ...]:
    """Return annotation id, both classes, score and box of an object and a detection; one of the two may be -1."""
    objects, found, names = data.objects, data.detections, data.class_names
    annotated = (int(objects.ids[g]), names[objects.classes[g]]) if g >= 0 else ("", "")
    detected = (names[found.classes[d]], float(found.scores[d])) if d >= 0 else ("", "")
    take_detection = d >= 0 and (detection_first or g < 0)
    box = (found.boxes[d] if take_detection else objects.boxes[g]).tolist()
    return *annotated, *detected, *box


def plain(data: EvalData, analysis: Analysis) -> dict[str, Any]:
    """Return the numbers of a comparison, ready for JSON."""
    classes = []
    of_classes = zip(data.class_names, data.category_ids.tolist(), analysis.classes, analysis.intervals[0])
    for name, category, result, interval in of_classes:
        numbers = asdict(result) | {"curves": curves_of(result.curves), "ap_interval": interval}
        classes.append({"name": name, "category_id": category} | numbers)
    return {
        "classes": classes,
        "curves": curves_of(analysis.curves),
        "intervals": {name: of_metric[-1] for name, of_metric in zip(METRICS, analysis.intervals)},
        "calibration": {name: np.asarray(v).tolist() for name, v in vars(analysis.calibration).items()},
        "best_score": asdict(analysis.best),
        "confusion": {"score": analysis.pairs.score, "matrix": analysis.pairs.matrix.tolist()},
        "errors": {
            "AP50": analysis.errors.ap50,
            "counts": analysis.errors.counts(),
            "costs": analysis.errors.costs,
        },
        "groups": {name: [asdict(group) for group in groups] for name, groups in analysis.groups.items()},
    }


def curves_of(curves: np.ndarray) -> dict[str, list[float]]:
    """Return the precision at the recalls 0, 0.01, ..., 1, by curve."""
    return dict(zip(("IoU 0.5", "IoU 0.75", "IoU 0.5 to 0.95"), curves.tolist()))


def finite(content: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
