"""Repair a COCO file whose meaning is clear although it deviates from COCO's format.

Each repair is counted as a harmless problem of its own kind. Anything else stays unchanged, and the regular check
reports it. The whole file is loaded as Python objects, so repair only files that need it.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dataset_files.coco_file import NoCategory
from dataset_files.coco_masks import area_of_mask, box_of_mask
from dataset_files.conversion import Converted
from dataset_files.file_names import resolve
from dataset_files.image_files import read_size
from dataset_files.problems import Problems, leaves_folder, shown
from dataset_files.whole_ids import int64, number_of, text_of, whole_ids

# Kinds of problems that a repair may fix; "missing" is found by the image check.
REPAIRABLE = {
    "annotation", "annotation id", "category", "code size", "file name", "image", "missing", "point pairs",
    "unknown category", "unknown image",
}  # fmt: skip
IMAGE_FIELDS = ("id", "file_name", "height", "width")
CATEGORY_FIELDS = ("id", "name", "supercategory")
ANNOTATION_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
CROWDS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "": 0, "none": 0, "null": 0, "0.0": 0, "1.0": 1}


def worth_repairing(problems: Problems | None, error: Exception | None) -> bool:
    """Whether the problems found are ones that `repair` can fix.

    Args:
        problems: found in the annotations, and in the images if they were checked.
        error: the exception that `make_index` raised instead.
    """
    cause = getattr(error, "__cause__", None)
    if isinstance(cause, json.JSONDecodeError):
        return "BOM" in cause.msg or "\0" in cause.doc[:8]
    if isinstance(cause, UnicodeDecodeError):
        return cause.object[:2] in (b"\xff\xfe", b"\xfe\xff") or 0 in cause.object[:4]
    if error is not None:
        return isinstance(cause, NoCategory)
    return problems is not None and not REPAIRABLE.isdisjoint(problems.counts)


def repair(path: Path, image_folder: Path) -> Converted:
    """Read a COCO file and fix what can be fixed.

    If the result has no problems, nothing was repaired, and the original file can be used.

    Args:
        image_folder: searched, with its sub-folders, for the images that the file names.

    Raises:
        ValueError: the file is not readable as JSON, or lacks one of the three lists.
    """
    problems = Problems()
    content = read(path, problems)
    images, annotations, categories = (
        [pick_fields(entry, fields) for entry in content[key]]
        for key, fields in (
            ("images", IMAGE_FIELDS + ("coco_url", "flickr_url", "path")),
            ("annotations", ANNOTATION_FIELDS),
            ("categories", CATEGORY_FIELDS),
        )
    )
    repair_references(images, annotations, "image", problems)
    repair_references(categories, annotations, "category", problems)
    repair_images(images, image_folder, problems)
    annotations = drop_repeated(annotations, problems)
    number_annotations(annotations, problems)
    sizes = {int(image["id"]): (int(image["height"]), int(image["width"])) for image in images if has_size(image)}
    for annotation in annotations:
        if isinstance(annotation, dict):
            repair_annotation(annotation, sizes, problems)
    return Converted({"images": images, "annotations": annotations, "categories": categories}, problems)


def read(path: Path, problems: Problems) -> dict:
    """Read a JSON file in any Unicode encoding."""
    data = path.read_bytes()
    encoding = json.detect_encoding(data)
    try:
        content = json.loads(data.decode(encoding))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if encoding != "utf-8":
        what = "UTF-8 with a byte-order mark" if encoding == "utf-8-sig" else encoding.upper()
        problems.add("encoding", f"{path.name} is {what}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path}: no list '{key}' (is it a COCO instances file?)")
    return content


def pick_fields(entry: Any, fields: tuple[str, ...]) -> Any:
    """Copy the given fields of an entry, as far as it has them; return anything but an object unchanged."""
    return {key: entry[key] for key in fields if key in entry} if isinstance(entry, dict) else entry


# ------------------------------------------------------------------------------------------------------------- ids


def repair_references(entries: list, annotations: list, key: str, problems: Problems) -> None:
    """Convert the ids of images or categories to whole numbers, both in their list and in the annotations.

    Args:
        key: "image" or "category".
    """
    owners = [entry for entry in entries if isinstance(entry, dict) and "id" in entry]
    numbers = whole_ids([entry["id"] for entry in owners])
    field = f"{key}_id"
    users = [a for a in annotations if isinstance(a, dict) and field in a]
    changed = []
    for entry, name in [(entry, "id") for entry in owners] + [(user, field) for user in users]:
        number = number_of(entry[name], numbers)
        if number is not None and type(entry[name]) is not int:
            if type(entry[name]) is not float:  # 7.0 needs no repair
                changed.append(f"{key} {shown(entry[name])} -> {number}")
            entry[name] = number
    problems.add_all("text id", dict.fromkeys(changed), str)


def drop_repeated(annotations: list, problems: Problems) -> list:
    """Drop annotations that repeat another one exactly, including its id: one object was written twice."""
    kept, dropped = [], []
    groups: dict[tuple, list[dict]] = {}
    for annotation in annotations:
        if isinstance(annotation, dict) and "id" in annotation:
            key = text_of(annotation["id"]), repr(annotation.get("image_id")), repr(annotation.get("bbox"))
            alike = groups.setdefault(key, [])
            if annotation in alike:
                dropped.append(annotation)
                continue
            alike.append(annotation)
        kept.append(annotation)
    problems.add_all("repeated", dropped, name_of)
    return kept


def number_annotations(annotations: list, problems: Problems) -> None:
    """Number all annotations from 1 if any id is missing, repeated, or not a whole number."""
    entries = [annotation for annotation in annotations if isinstance(annotation, dict)]
    values = [entry.get("id") for entry in entries]
    numbers = whole_ids(values)
    if len(numbers) == len(entries) and all(type(value) in (int, float) or is_digits(value) for value in values):
        wrong = [value for value in values if isinstance(value, str)]
        problems.add_all("renumbered", wrong, lambda text: f"id {shown(text)} -> {number_of(text, numbers)}")
        for entry in entries:
            entry["id"] = number_of(entry["id"], numbers)
        return
    pairs = zip(values, range(1, len(values) + 1))
    problems.add_all("renumbered", pairs, lambda pair: f"id {shown(pair[0])} -> {pair[1]}")
    for number, entry in enumerate(entries, start=1):
        entry["id"] = number


def is_digits(value: Any) -> bool:
    return isinstance(value, str) and value.strip().isdecimal()


# ---------------------------------------------------------------------------------------------------------- images


def repair_images(images: list, image_folder: Path, problems: Problems) -> None:
    """Give each image the name of an existing file below the folder, if there is one, and a height and width."""
    entries = [image for image in images if isinstance(image, dict)]
    for image in entries:
        sources = [image.pop(key, None) for key in ("coco_url", "flickr_url", "path")]
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            source = next((s for s in sources if isinstance(s, str) and s), None)
            if source is not None:
                image["file_name"] = unquote(urlsplit(source).path).lstrip("/") if "://" in source else source
                problems.add("url", f"{name_of(image)}: {shown(source)}")
    named = [image for image in entries if isinstance(image.get("file_name"), str)]
    resolved = resolve([image["file_name"] for image in named], image_folder)
    problems.update(resolved.problems)
    for image, name in zip(named, resolved.names):
        image["file_name"] = name
        if not has_size(image):
            repair_size(image, image_folder, problems)


def has_size(image: Any) -> bool:
    """Whether an entry of "images" has a valid id, height and width."""
    try:
        return int64(image["height"]) > 0 and int64(image["width"]) > 0 and int64(image["id"]) >= 0
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def repair_size(image: dict, folder: Path, problems: Problems) -> None:
    """Convert height and width from text, or else read them from the stored image, ignoring its EXIF tag."""
    name: str = image["file_name"]
    given: list[Any] = [image.get("height"), image.get("width")]
    if all(map(is_digits, given)):
        size = tuple(map(int, given))
    elif leaves_folder(name) or not any(value is None or value == 0 or isinstance(value, str) for value in given):
        return
    else:
        try:
            size = read_size(folder / name, upright=False)
        except (ValueError, OSError):  # the image check reports it
            return
    image["height"], image["width"] = size
    problems.add("no size", f"{name_of(image)}: {size[1]}x{size[0]}")


# ----------------------------------------------------------------------------------------------------- annotations


def repair_annotation(annotation: dict, sizes: dict[int, tuple[int, int]], problems: Problems) -> None:
    """Repair an annotation, its mask first, since box and area may have to be computed from it."""
    image_id: Any = annotation.get("image_id")
    size = sizes.get(image_id) if type(image_id) is int else None
    if annotation.get("segmentation") is None:
        annotation["segmentation"] = []
        problems.add("no segmentation", name_of(annotation))
    mask = annotation["segmentation"]
    if isinstance(mask, list):
        annotation["segmentation"] = repair_polygons(mask, lambda kind: problems.add(kind, name_of(annotation)))
    elif isinstance(mask, dict) and size is not None and exchanged(mask.get("size"), size):
        problems.add("exchanged size", f"{name_of(annotation)}: {mask['size']}, the image has {list(size)}")
        annotation["segmentation"] = mask | {"size": list(size)}
    mask = annotation["segmentation"]
    if not annotation.get("bbox") and isinstance(mask, (list, dict)):
        box = box_of_mask(mask)
        if box is not None:
            problems.add("no box", f"{name_of(annotation)}: {shown(annotation.get('bbox'))} -> {box}")
            annotation["bbox"] = box
    if not is_area(annotation.get("area")):
        repair_area(annotation, size, problems)
    crowd = annotation.get("iscrowd", 0)
    if type(crowd) is not int and str(crowd).strip().lower() in CROWDS:
        annotation["iscrowd"] = CROWDS[str(crowd).strip().lower()]
        problems.add("crowd", f"{name_of(annotation)}: {shown(crowd)} -> {annotation['iscrowd']}")


def repair_polygons(mask: list, note: Callable[[str], None]) -> list:
    """Convert a flat polygon, or pairs of coordinates, to a list of flat polygons; return anything else unchanged."""
    if len(mask) >= 6 and all(map(is_number, mask)):
        note("flat polygon")
        return [mask]
    if are_pairs(mask):
        note("converted pairs")
        return [flat(mask)]
    if mask and all(isinstance(polygon, list) and are_pairs(polygon) for polygon in mask):
        note("converted pairs")
        return [flat(polygon) for polygon in mask]
    return mask


def are_pairs(points: list) -> bool:
    """Whether a list has three or more points, each [x, y] or {"x": x, "y": y}."""
    return len(points) >= 3 and all(
        (isinstance(p, list) and len(p) == 2 and all(map(is_number, p)))
        or (isinstance(p, dict) and is_number(p.get("x")) and is_number(p.get("y")))
        for p in points
    )


def flat(points: list) -> list[float]:
    return [value for p in points for value in ((p["x"], p["y"]) if isinstance(p, dict) else p)]


def exchanged(given: Any, size: tuple[int, int]) -> bool:
    """Whether a run-length code's size is width, height instead of height, width."""
    return isinstance(given, list) and tuple(given) == size[::-1] and tuple(given) != size


def repair_area(annotation: dict, size: tuple[int, int] | None, problems: Problems) -> None:
    mask, box = annotation["segmentation"], annotation.get("bbox")
    area = area_of_mask(mask, *size) if size is not None and isinstance(mask, (list, dict)) else None
    if area is None and isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
        area = float(box[2] * box[3])
    if area is None or not is_area(area):
        return
    problems.add("area", f"{name_of(annotation)}: {shown(annotation.get('area'))} -> {area:g}")
    annotation["area"] = area


def is_area(value: Any) -> bool:
    return is_number(value) and math.isfinite(value) and abs(value) < 1e300


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def name_of(entry: dict) -> str:
    """Name an annotation or image for a message."""
    if "image_id" in entry:
        return f"annotation {shown(entry.get('id'))} of image {shown(entry['image_id'])}"
    return f"image {shown(entry.get('id'))}"
