"""Write the report's numbers as CSV and JSON, for other programs."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dataset_files.atomic_files import write_atomically, write_csv
from report.analysis import Analysis
from report.bootstrap import METRICS
from report.confusion import ImageScores
from report.eval_data import EvalData
from report.suspects import Suspect
from train_utils.metrics.coco_evaluation import TITLES

FILES = (
    "report.html", "report.json", "classes.csv", "confusion.csv", "errors.csv", "images.csv", "suspects.csv",
    "comparison.csv",
)  # fmt: skip
CLASS_HEAD = (
    "compared", "class", "category_id", "objects", "AP", "AP50", "AP75", "precision", "recall", "F1", "threshold",
    "AP_low", "AP_high",
)  # fmt: skip
FILE_HEAD = ("file_name", "image_id")
PAIR_HEAD = ("annotation_id", "annotated_class", "detected_class", "score", "x", "y", "width", "height")


def write_tables(
    folder: Path,
    data: EvalData,
    analyses: Sequence[Analysis],
    scores: ImageScores,
    suspects: Sequence[Suspect],
    summary: Mapping[str, Any],
) -> None:
    """Write classes.csv, confusion.csv, errors.csv, images.csv, suspects.csv and report.json."""
    files = list(zip(data.file_names, data.image_ids.tolist()))
    names = [*data.class_names, "background"]
    write_table(folder / "classes.csv", CLASS_HEAD, class_rows(data, analyses))
    cells = (
        (TITLES[a.kind], names[row], names[column], int(a.pairs.matrix[row, column]))
        for a in analyses
        for row, column in np.argwhere(a.pairs.matrix).tolist()
    )
    write_table(folder / "confusion.csv", ("compared", "annotated", "detected", "number"), cells)
    errors = (  # the off-diagonal pairs of the confusion matrix
        (TITLES[a.kind], *files[a.pairs.images[p]], *pair_values(data, a.pairs.objects[p], a.pairs.detections[p], True))
        for a in analyses
        for p in np.flatnonzero(a.pairs.rows != a.pairs.columns)
    )
    write_table(folder / "errors.csv", ("compared", *FILE_HEAD, *PAIR_HEAD), errors)
    columns = [each.tolist() for each in (scores.f1, scores.right, scores.false, scores.missed)]
    by_f1 = np.argsort(np.nan_to_num(scores.f1, nan=2.0), kind="stable").tolist()
    images = ((*files[image], *(column[image] for column in columns)) for image in by_f1)
    write_table(folder / "images.csv", (*FILE_HEAD, "F1", "right", "false", "missed"), images)
    listed = (
        (rank, s.kind, s.confidence, *files[s.image], *pair_values(data, s.object, s.detection, False))
        for rank, s in enumerate(suspects, start=1)
    )
    write_table(folder / "suspects.csv", ("rank", "kind", "confidence", *FILE_HEAD, *PAIR_HEAD), listed)
    content = dict(summary) | {analysis.kind: plain(data, analysis) for analysis in analyses}
    write_json(folder / "report.json", content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with null for NaN and infinity, which JSON lacks."""
    without_nan = json.loads(json.dumps(content), parse_constant=lambda _: None)
    write_atomically(path, json.dumps(without_nan, ensure_ascii=False, indent=1) + "\n")


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file. Floats get six significant digits; NaN becomes an empty cell."""
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
            yield TITLES[analysis.kind], name, category, r.objects, *numbers


def pair_values(data: EvalData, g: int, d: int, detection_first: bool) -> tuple[Any, ...]:
    """Return the values of PAIR_HEAD for object `g` and detection `d`. One of the two may be -1, which means none.

    If there are both, `detection_first` selects the detection's box, otherwise the object's.
    """
    objects, found, names = data.objects, data.detections, data.class_names
    annotated = (int(objects.ids[g]), names[objects.classes[g]]) if g >= 0 else ("", "")
    detected = (names[found.classes[d]], float(found.scores[d])) if d >= 0 else ("", "")
    box = found.boxes[d] if d >= 0 and (detection_first or g < 0) else objects.boxes[g]
    return *annotated, *detected, *box.tolist()


def plain(data: EvalData, analysis: Analysis) -> dict[str, Any]:
    """Return the numbers of an analysis as dicts and lists, ready for JSON."""
    classes = [
        {"name": name, "category_id": category} | asdict(result)
        | {"curves": curves_of(result.curves), "ap_interval": interval}
        for name, category, result, interval in zip(
            data.class_names, data.category_ids.tolist(), analysis.classes, analysis.intervals[0]
        )
    ]  # fmt: skip
    errors = analysis.errors
    return {
        "classes": classes,
        "curves": curves_of(analysis.curves),
        "intervals": {name: of_metric[-1] for name, of_metric in zip(METRICS, analysis.intervals)},
        "calibration": {name: np.asarray(v).tolist() for name, v in vars(analysis.calibration).items()},
        "best_score": analysis.best._asdict(),
        "confusion": {"score": analysis.pairs.score, "matrix": analysis.pairs.matrix.tolist()},
        "errors": {"AP50": errors.ap50, "counts": errors.counts(), "costs": errors.costs},
        "groups": {name: [asdict(group) for group in groups] for name, groups in analysis.groups.items()},
    }


def curves_of(curves: np.ndarray) -> dict[str, list[float]]:
    return dict(zip(("IoU 0.5", "IoU 0.75", "IoU 0.5 to 0.95"), curves.tolist()))
