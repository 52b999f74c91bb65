"""Repair a COCO file whose meaning is clear although it deviates from COCO's format.

Each repair is counted as a harmless problem of its own kind. Anything else stays unchanged, and the regular check
reports it. The whole file is loaded as Python objects, so repair only files that need it.
"""

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dataset_files.coco_file import NoCategory, naming_json
from dataset_files.coco_masks import area_of_mask, box_of_mask, int64, is_number
from dataset_files.image_files import read_size, resolve
from dataset_files.problems import Problems, leaves_folder, shown

LARGEST_ID = 2**63 - 1
# Kinds of problems that a repair may fix; "missing" is found by the image check.
REPAIRABLE = {
    "annotation", "annotation id", "category", "code size", "file name", "image", "missing", "point pairs",
    "unknown category", "unknown image",
}  # fmt: skip
FIELDS = {
    "images": ("id", "file_name", "height", "width", "coco_url", "flickr_url", "path"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
    "categories": ("id", "name", "supercategory"),
}
CROWDS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "": 0, "none": 0, "null": 0, "0.0": 0, "1.0": 1}


def is_repairable(error: ValueError) -> bool:
    """Whether `repair` can fix the cause of an error that `make_index` raised."""
    cause = error.__cause__
    if isinstance(cause, json.JSONDecodeError):
        return "BOM" in cause.msg or "\0" in cause.doc[:8]
    if isinstance(cause, UnicodeDecodeError):
        return cause.object[:2] in (b"\xff\xfe", b"\xfe\xff") or 0 in cause.object[:4]
    return isinstance(cause, NoCategory)


def repair(path: Path, image_folder: Path) -> tuple[dict[str, Any], Problems]:
    """Read a COCO file and fix what can be fixed. Return its content, and a problem for each repair.

    ValueError if the file is not JSON or lacks one of the three lists. Image files are searched below `image_folder`.
    If the result has no problems, the original file can be used.
    """
    problems = Problems()
    images, annotations, categories = read_lists(path, problems)
    repair_references(images, annotations, "image", problems)
    repair_references(categories, annotations, "category", problems)
    repair_images(images, image_folder, problems)
    annotations = drop_repeated(annotations, problems)
    number_annotations(annotations, problems)
    sizes = {int(image["id"]): (int(image["height"]), int(image["width"])) for image in images if has_size(image)}
    for annotation in annotations:
        if isinstance(annotation, dict):
            repair_annotation(annotation, sizes, problems)
    return {"images": images, "annotations": annotations, "categories": categories}, problems


def read_lists(path: Path, problems: Problems) -> list[list]:
    """Read images, annotations and categories from JSON in any Unicode encoding, but only the FIELDS of each entry."""
    data = path.read_bytes()
    encoding = json.detect_encoding(data)
    with naming_json(path):
        content = json.loads(data.decode(encoding))
    if encoding != "utf-8":
        what = "UTF-8 with a byte-order mark" if encoding == "utf-8-sig" else encoding.upper()
        problems.add("encoding", f"{path.name} is {what}")
    lists = []
    for key, fields in FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path}: no list '{key}' (is it a COCO instances file?)")
        used = ({k: e[k] for k in fields if k in e} if isinstance(e, dict) else e for e in content[key])
        lists.append(list(used))
    return lists


def repair_references(entries: list, annotations: list, key: str, problems: Problems) -> None:
    """Convert the ids of images or categories (`key`) to whole numbers, both in `entries` and in `annotations`."""
    owners = [entry for entry in entries if isinstance(entry, dict) and "id" in entry]
    users = [a for a in annotations if isinstance(a, dict) and f"{key}_id" in a]
    numbers = whole_ids([entry["id"] for entry in owners])
    changed = []
    for entry, field in [(entry, "id") for entry in owners] + [(user, f"{key}_id") for user in users]:
        number = numbers.get(text_of(entry[field]))
        if number is not None and type(entry[field]) is not int:
            if type(entry[field]) is not float:  # 7.0 needs no repair
                changed.append(f"{key} {shown(entry[field])} -> {number}")
            entry[field] = number
    problems.add_all("text id", dict.fromkeys(changed), str)


def whole_ids(ids: Iterable[Any]) -> dict[str | None, int]:
    """Assign a whole number to each id, the same on every run. Return `text_of(id)` -> number.

    Whole numbers keep their value, also as text ("12", "0012"), unless two texts have the same value. The other ids get
    the numbers after the largest, in order. Ids that are neither whole numbers nor text are left out.
    """
    texts = dict.fromkeys(text for text in map(text_of, ids) if text is not None)
    values = {text: value_of(text) for text in texts}
    taken: dict[int, str] = {}
    for text in sorted(texts, key=lambda text: (str(values[text]) != text, text)):  # "7" before "007"
        value = values[text]
        if value is not None and taken.setdefault(value, text) != text:
            values[text] = None
    following = max(taken, default=0) + 1
    numbers: dict[str | None, int] = {}
    for text, value in values.items():
        if value is None:
            value, following = following, following + 1
        numbers[text] = value
    return numbers


def text_of(value: Any) -> str | None:
    """Format an id as text, "7" for 7, 7.0 and " 7 ". None if it is neither text nor a whole number of 64 bits."""
    if isinstance(value, str):
        return value.strip()
    with suppress(ValueError, OverflowError):
        return str(int64(value))
    return None


def value_of(text: str) -> int | None:
    """Parse a text as a whole number; None if it is not one, or does not fit into int64."""
    is_whole = re.fullmatch(r"-?[0-9]{1,30}", text) is not None
    return int(text) if is_whole and abs(int(text)) <= LARGEST_ID else None


def drop_repeated(annotations: list, problems: Problems) -> list:
    """Drop exact copies of annotations, id included: they describe the same object. Return the others."""
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
    old = [entry.get("id") for entry in entries]
    numbers = whole_ids(old)
    are_whole = len(numbers) == len(old) and all(type(value) in (int, float) or is_digits(value) for value in old)
    new = [numbers.get(text_of(value)) for value in old] if are_whole else list(range(1, len(old) + 1))
    changed = [pair for pair in zip(old, new) if not are_whole or isinstance(pair[0], str)]
    problems.add_all("renumbered", changed, lambda pair: f"id {shown(pair[0])} -> {pair[1]}")
    for entry, number in zip(entries, new):
        entry["id"] = number


def is_digits(value: Any) -> bool:
    return isinstance(value, str) and value.strip().isdecimal()


def repair_images(images: list, image_folder: Path, problems: Problems) -> None:
    """Correct or add the file name, height and width of each image, from its URL and the files below `image_folder`."""
    entries = [image for image in images if isinstance(image, dict)]
    for image in entries:
        sources = [image.pop(key, None) for key in ("coco_url", "flickr_url", "path")]
        name, source = image.get("file_name"), next((s for s in sources if isinstance(s, str) and s), None)
        if not (isinstance(name, str) and name) and source is not None:
            image["file_name"] = unquote(urlsplit(source).path).lstrip("/") if "://" in source else source
            problems.add("url", f"{name_of(image)}: {shown(source)}")
    named = [image for image in entries if isinstance(image.get("file_name"), str)]
    names, of_names = resolve([image["file_name"] for image in named], image_folder)
    problems.update(of_names)
    for image, name in zip(named, names):
        image["file_name"] = name
        if not has_size(image):
            repair_size(image, image_folder, problems)


def has_size(image: Any) -> bool:
    try:
        return int64(image["height"]) > 0 and int64(image["width"]) > 0 and int64(image["id"]) >= 0
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def repair_size(image: dict, folder: Path, problems: Problems) -> None:
    """Convert an image's height and width from text, or read missing ones from its file, ignoring EXIF orientation."""
    given: list[Any] = [image.get("height"), image.get("width")]
    is_missing = any(value is None or value == 0 or isinstance(value, str) for value in given)
    if all(map(is_digits, given)):
        height, width = map(int, given)
    elif leaves_folder(image["file_name"]) or not is_missing:
        return
    else:
        try:
            height, width = read_size(folder / image["file_name"], upright=False)
        except (ValueError, OSError):  # the image check reports it
            return
    image["height"], image["width"] = height, width
    problems.add("no size", f"{name_of(image)}: {width}x{height}")


def repair_annotation(annotation: dict, sizes: dict[int, tuple[int, int]], problems: Problems) -> None:
    """Repair an annotation: mask, `iscrowd`, a missing box (from the mask) and a missing area (from mask or box)."""

    def note(kind: str, change: str = "") -> None:
        problems.add(kind, name_of(annotation) + change)

    image_id: Any = annotation.get("image_id")
    size = sizes.get(image_id) if type(image_id) is int else None
    mask = annotation.get("segmentation")
    if mask is None:
        mask = []
        note("no segmentation")
    elif isinstance(mask, list):
        mask = repair_polygons(mask, note)
    elif isinstance(mask, dict) and size is not None and isinstance(given := mask.get("size"), list):
        if tuple(given) == size[::-1] != size:  # width, height instead of height, width
            note("exchanged size", f": {given}, the image has {list(size)}")
            mask = mask | {"size": list(size)}
    annotation["segmentation"] = mask
    has_mask, box = isinstance(mask, (list, dict)), annotation.get("bbox")
    if not box and has_mask and (found := box_of_mask(mask)) is not None:
        note("no box", f": {shown(box)} -> {found}")
        annotation["bbox"] = box = found
    if not is_area(given := annotation.get("area")):
        area = area_of_mask(mask, *size) if size is not None and has_mask else None
        if area is None and isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
            area = float(box[2] * box[3])
        if is_area(area):
            note("area", f": {shown(given)} -> {area:g}")
            annotation["area"] = area
    crowd = annotation.get("iscrowd", 0)
    if type(crowd) is not int and str(crowd).strip().lower() in CROWDS:
        annotation["iscrowd"] = CROWDS[str(crowd).strip().lower()]
        note("crowd", f": {shown(crowd)} -> {annotation['iscrowd']}")


def repair_polygons(mask: list, note: Callable[[str], None]) -> list:
    """Convert one flat polygon, or polygons of coordinate pairs, to a list of flat polygons. Keep anything else."""
    if len(mask) >= 6 and all(map(is_number, mask)):
        note("flat polygon")
        return [mask]
    polygons = [mask] if are_pairs(mask) else mask
    if not polygons or not all(isinstance(polygon, list) and are_pairs(polygon) for polygon in polygons):
        return mask
    note("converted pairs")
    return [[v for p in polygon for v in ((p["x"], p["y"]) if isinstance(p, dict) else p)] for polygon in polygons]


def are_pairs(points: list) -> bool:
    """Whether a list has three or more points, each [x, y] or {"x": x, "y": y}."""
    return len(points) >= 3 and all(
        (isinstance(p, list) and len(p) == 2 and all(map(is_number, p)))
        or (isinstance(p, dict) and is_number(p.get("x")) and is_number(p.get("y")))
        for p in points
    )


def is_area(value: Any) -> bool:
    return is_number(value) and abs(value) < 1e300  # False for NaN


def name_of(entry: dict) -> str:
    if "image_id" in entry:
        return f"annotation {shown(entry.get('id'))} of image {shown(entry['image_id'])}"
    return f"image {shown(entry.get('id'))}"
