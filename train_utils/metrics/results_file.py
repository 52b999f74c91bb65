"""A detections file that anyone's detector wrote, and its ground truth -> COCO's official table.

Both are COCO's formats: a list of `image_id, category_id, score` and `bbox` or `segmentation`, and an annotation file.
"""
import json
import math
from pathlib import Path
from typing import Any

from my_dataset_coco import coco_object
from network_files.rle import unpack_all
from train_utils.errors import InputError, warn
from train_utils.metrics.coco_evaluation import run_cocoeval

# Which of COCO's numbers stands in which line: title, abbreviation, IoU, area, detections an image.
OFFICIAL_LINES = [
    ("Average Precision", "(AP)", iou, area, 100)
    for iou, area in [("0.50:0.95", "all"), ("0.50", "all"), ("0.75", "all")]
    + [("0.50:0.95", area) for area in ("small", "medium", "large")]
] + [
    ("Average Recall", "(AR)", "0.50:0.95", area, most)
    for area, most in [("all", 1), ("all", 10), ("all", 100), ("small", 100), ("medium", 100), ("large", 100)]
]


def score_results_file(results_path: str, annotation_path: str, iou_type: str) -> str:
    """The official table of the 12 metrics.

    For masks a `bbox` in the same entry is left out, so that small, medium and large go by the mask's area.

    Raises:
        InputError: one of the files cannot be read or does not fit the other; names the file and the entry.
    """
    truth = read_annotations(annotation_path)
    results = read_results(results_path, truth, iou_type)
    shape = "segmentation" if iou_type == "segm" else "bbox"
    results = [{key: entry[key] for key in ("image_id", "category_id", "score", shape)} for entry in results]
    try:
        return official_table(run_cocoeval(coco_object(truth), results, iou_type).stats)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{results_path}, {annotation_path}: cannot be scored ({error})") from error


def read_annotations(path: str) -> dict[str, Any]:
    """The content of a COCO annotation file."""
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
                raise InputError(f"{path}: {key}[{place}] lacks {', '.join(wrong)}, or has it with an impossible value")
    return content


def read_results(path: str, truth: dict[str, Any], iou_type: str) -> list[dict[str, Any]]:
    """The entries of a results file, each checked against the images of the ground truth."""
    results = read_json(path, "--results-json")
    if not isinstance(results, list):
        raise InputError(f"{path}: not a results file, which is a list of detections")
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for place, entry in enumerate(results):
        problem = problem_of(entry, sizes, iou_type)
        if problem:
            raise InputError(f"{path}: detection {place} {problem}")
    categories = {category["id"] for category in truth["categories"]}
    foreign = sum(entry["category_id"] not in categories for entry in results)
    if foreign:
        warn(f"{path}: {foreign} detections of categories that the ground truth lacks do not count")
    return results


def problem_of(entry: Any, sizes: dict[int, tuple[int, int]], iou_type: str) -> str | None:
    """What makes a detection useless, in words; None where nothing does."""
    shape = "segmentation" if iou_type == "segm" else "bbox"
    if not isinstance(entry, dict):
        return "is not an object with image_id, category_id, score and " + shape
    missing = [key for key in ("image_id", "category_id", "score", shape) if key not in entry]
    if missing:
        other = "bbox" if shape == "segmentation" else "segmentation"
        hint = f"; it has {other}, try --iou-type {'bbox' if other == 'bbox' else 'segm'}" if other in entry else ""
        return f"lacks {', '.join(missing)}{hint if missing == [shape] else ''}"
    if not is_integer(entry["image_id"]) or entry["image_id"] not in sizes:
        return f"is of image {entry['image_id']!r}, which the annotation file does not have"
    if not is_integer(entry["category_id"]):
        return f"has the category {entry['category_id']!r}, which is no whole number"
    if not is_finite(entry["score"]):
        return f"has the score {entry['score']!r}, which is no number"
    if shape == "bbox":
        return None if is_box(entry["bbox"]) else f"has the box {entry['bbox']!r}, which is not [x, y, width, height]"
    code, size = entry["segmentation"], sizes[entry["image_id"]]
    if not isinstance(code, dict) or not isinstance(code.get("counts"), (str, list)):
        return "has a segmentation that is not run-length code (an object with size and counts)"
    if code.get("size") != list(size):
        return f"has a mask of size {code.get('size')!r}, its image {entry['image_id']} is {list(size)}"
    if not covers(code["counts"], size[0] * size[1]):
        return f"has run lengths that do not cover its image of {size[0]}x{size[1]}"
    return None


def covers(counts: str | list, pixels: int) -> bool:
    """Whether the runs, packed or as a list, are lengths whose sum is the picture."""
    if isinstance(counts, list):
        return all(is_integer(run) and run >= 0 for run in counts) and sum(counts) == pixels
    try:
        runs, _ = unpack_all([counts.encode()])
    except ValueError:
        return False
    return bool((runs >= 0).all()) and int(runs.sum()) == pixels


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_finite, value))


def is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_json(path: str, option: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file ({option})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error


def official_table(stats: list[float]) -> str:
    """COCO's 12 numbers as its own tools print them."""
    return "\n".join(
        f" {title:<18} {short} @[ IoU={iou:<9} | area={area:>6s} | maxDets={most:>3d} ] = {value:0.3f}"
        for (title, short, iou, area, most), value in zip(OFFICIAL_LINES, stats)
    )
