"""Score a file of detections in COCO's results format, written by any detector, and print COCO's official table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from my_dataset_coco import coco_object
from network_files.masks.rle import unpack_all
from train_utils.errors import InputError, read_json, warn
from train_utils.metrics.coco_evaluation import run_cocoeval

SHAPES = {"bbox": "bbox", "segm": "segmentation"}  # key of an entry's shape, by kind

# The lines of COCO's table, in order: title, abbreviation, IoU, area, detections per image.
OFFICIAL_LINES = [
    *(("Average Precision", "(AP)", iou, "all", 100) for iou in ("0.50:0.95", "0.50", "0.75")),
    *(("Average Precision", "(AP)", "0.50:0.95", area, 100) for area in ("small", "medium", "large")),
    *(("Average Recall", "(AR)", "0.50:0.95", "all", most) for most in (1, 10, 100)),
    *(("Average Recall", "(AR)", "0.50:0.95", area, 100) for area in ("small", "medium", "large")),
]


@dataclass
class ScoredResults:
    """A results file and its metrics."""

    truth: dict[str, Any]  # the content of the annotation file
    results: dict[str, list[dict[str, Any]]]  # "bbox", "segm" or both -> entries in COCO's results format
    stats: dict[str, list[float]]  # the same keys -> COCO's 12 numbers


def score_results_file(results_path: str, annotation_path: str, kinds: Sequence[str]) -> ScoredResults:
    """Compute COCO's 12 metrics of the boxes ("bbox"), the masks ("segm") or both in a results file.

    `kinds` may also contain "boundary", which counts as "segm". The size of a mask is its own area, not that of a
    `bbox` beside it. InputError names the file or entry at fault.
    """
    truth = read_annotations(annotation_path)
    results = {kind: read_results(results_path, truth, kind) for kind in with_masks(kinds)}
    try:
        ground_truth = coco_object(truth)
        stats = {kind: run_cocoeval(ground_truth, entries, kind).stats for kind, entries in results.items()}
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{results_path}, {annotation_path}: cannot be scored ({error})") from error
    return ScoredResults(truth, results, {kind: [float(value) for value in values] for kind, values in stats.items()})


def with_masks(kinds: Sequence[str]) -> list[str]:
    """Replace "boundary" by "segm", since boundaries are computed from masks, and drop duplicates."""
    return list(dict.fromkeys("segm" if kind == "boundary" else kind for kind in kinds))


def read_annotations(path: str) -> dict[str, Any]:
    content = read_json(path, "--annotation-file")
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise InputError(f"{path}: not a COCO annotation file (an object with the lists {', '.join(keys)})")
    for key, wanted in zip(keys, (("id", "height", "width"), ("id", "image_id", "category_id"), ("id",))):
        for place, entry in enumerate(content[key]):
            numbers = [entry.get(name) if isinstance(entry, dict) else None for name in wanted]
            wrong = [name for name, number in zip(wanted, numbers) if not is_integer(number) or number < 0]
            if key == "annotations" and not wrong and not is_box(entry.get("bbox")):
                wrong = ["bbox"]
            if wrong:
                raise InputError(f"{path}: {key}[{place}] has a missing or invalid {', '.join(wrong)}")
    return content


def read_results(path: str, truth: dict[str, Any], iou_type: str) -> list[dict[str, Any]]:
    """Read a results file, check its detections against the ground truth, and drop fields that `iou_type` ignores."""
    results = read_json(path, "--results-json")
    if not isinstance(results, list):
        raise InputError(f"{path}: not a results file (a list of detections)")
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for place, entry in enumerate(results):
        if problem := problem_of(entry, sizes, iou_type):
            raise InputError(f"{path}: detection {place} {problem}")
    categories = {category["id"] for category in truth["categories"]}
    if foreign := sum(entry["category_id"] not in categories for entry in results):
        warn(f"{path}: {foreign} detections are ignored because the ground truth lacks their categories")
    return [{key: entry[key] for key in ("image_id", "category_id", "score", SHAPES[iou_type])} for entry in results]


def problem_of(entry: Any, sizes: dict[int, tuple[int, int]], iou_type: str) -> str | None:
    """Describe what makes a detection invalid; None if it is valid."""
    shape = SHAPES[iou_type]
    if not isinstance(entry, dict):
        return "is not an object with image_id, category_id, score and " + shape
    if missing := [key for key in ("image_id", "category_id", "score", shape) if key not in entry]:
        other = "bbox" if shape == "segmentation" else "segmentation"
        hint = f"; it has {other}, try --iou-type {'bbox' if other == 'bbox' else 'segm'}" if other in entry else ""
        return f"lacks {', '.join(missing)}{hint if missing == [shape] else ''}"
    if not is_integer(entry["image_id"]) or entry["image_id"] not in sizes:
        return f"belongs to image {entry['image_id']!r}, which the annotation file lacks"
    if not is_integer(entry["category_id"]):
        return f"has the category {entry['category_id']!r}, which is not a whole number"
    if not is_finite(entry["score"]):
        return f"has the score {entry['score']!r}, which is not a finite number"
    if shape == "bbox":
        return None if is_box(entry["bbox"]) else f"has the box {entry['bbox']!r}, which is not [x, y, width, height]"
    code, size = entry["segmentation"], sizes[entry["image_id"]]
    if not isinstance(code, dict) or not isinstance(code.get("counts"), (str, list)):
        return "has a segmentation that is not a run-length code (an object with size and counts)"
    if code.get("size") != list(size):
        return f"has a mask of size {code.get('size')!r}, but its image {entry['image_id']} has {list(size)}"
    if not covers(code["counts"], size[0] * size[1]):
        return f"has run lengths that do not cover its image of {size[0]}x{size[1]}"
    return None


def covers(counts: str | list, pixels: int) -> bool:
    """Whether the run lengths, packed or as a list, are valid and add up to the number of pixels."""
    if isinstance(counts, list):
        return all(is_integer(run) and run >= 0 for run in counts) and sum(counts) == pixels
    try:
        runs, _ = unpack_all([counts.encode()])
    except ValueError:
        return False
    return bool((runs >= 0).all()) and int(runs.sum()) == pixels


def is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_finite, value))


def is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def official_table(stats: list[float]) -> str:
    """Format COCO's 12 numbers like the table that pycocotools prints."""
    return "\n".join(
        f" {title:<18} {short} @[ IoU={iou:<9} | area={area:>6s} | maxDets={most:>3d} ] = {value:0.3f}"
        for (title, short, iou, area, most), value in zip(OFFICIAL_LINES, stats)
    )
