"""Detect the layout of a folder, or of an annotation file, and find its splits."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dataset_files.conversion_store import SplitFiles
from dataset_files.image_files import files_below, is_image_name, names_in
from dataset_files.layouts import (
    coco_layouts,
    cvat_files,
    labelme_files,
    mask_folders,
    via_files,
    voc_variants,
    yolo_files,
)
from dataset_files.layouts.coco_layouts import SMALL, json_files
from dataset_files.layouts.mask_folders import MASK_FOLDERS
from dataset_files.layouts.voc_files import voc_split
from dataset_files.problems import printable

VOC = "Pascal VOC"
MOST_FOLDERS = 20  # sub-folders that are searched for a layout
# Layout -> reader, tried in this order after VIA's reader and the devkit's. A reader returns [] for another layout, and
# raises ValueError if a file is invalid or several files may be meant for one split.
READERS: dict[str, Callable[[Path], list[SplitFiles]]] = {
    "COCO": coco_layouts.find,
    "YOLO": yolo_files.find,
    "VOC-like": voc_variants.find,
    "labelme": labelme_files.find,
    "ISAT": partial(labelme_files.find, key=labelme_files.ISAT),
    "CVAT": cvat_files.find,
    "mask images": mask_folders.find,
}
MOST_ENTRIES = 20_000  # files that are counted
MOST_JSON = 20  # files whose keys are read
LAYOUTS = (
    "COCO's JSON, labelme, ISAT, CVAT's XML, YOLO with a data.yaml, VIA, Pascal VOC, or images with masks as images"
)


class Layout(NamedTuple):
    name: str
    splits: list[SplitFiles]


def find_layout(path: Path, class_attribute: str | None = None) -> Layout:
    """Detect the layout of a folder or annotation file. `class_attribute` names VIA's class attribute.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: the layout is unknown, or a file is invalid; the message describes the contents in one line.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; --data-path takes a folder of data or its annotation file")
    layout = layout_at(path, class_attribute)
    if layout is None:
        raise ValueError(describe(path) + inner_layouts(path))
    return layout


def layout_at(path: Path, class_attribute: str | None = None) -> Layout | None:
    """Return the layout of an existing folder or file; None if no reader accepts it."""
    via = via_files.find(path, class_attribute)
    if class_attribute is not None and not via:
        raise ValueError(f"{path}: --class-attribute is for VIA's files; leave it out")
    if (folder := voc_variants.variant_folder(path)) is not None and voc_variants.is_standard(folder):
        return Layout(VOC, [voc_split(folder, "train.txt"), voc_split(folder, "val.txt")])
    if via:
        return Layout("VIA", via)
    return next((Layout(name, splits) for name, find in READERS.items() if (splits := find(path))), None)


def inner_layouts(root: Path) -> str:
    """Return a hint that names sub-folders with a known layout; "" if none. Unpacked archives often add a folder."""
    found = []
    for place in [root / name for name in names_in(root) if not name.startswith(".")][:MOST_FOLDERS]:
        with suppress(ValueError, OSError):
            layout = layout_at(place) if place.is_dir() else None
            if layout is not None:
                found.append(f"{place} ({layout.name})")
    return f"; give --data-path the folder inside: {' or '.join(found[:3])}" if found else ""


def named_files(train_json: Path, val_json: Path | None, image_folder: Path | None) -> Layout:
    """Return the layout of the given COCO files. Without `image_folder`, the images of each file are searched for."""
    splits, named = [], {"train": train_json, "val": val_json} if val_json else {"": train_json}
    for name, path in named.items():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (--train-json, --val-json)")
        found = coco_layouts.find(path)
        if not found:
            raise ValueError(f"{path}: not a COCO file (a JSON object with images, annotations and categories)")
        splits.append(SplitFiles(name, path, image_folder or found[0].image_folder))
    return Layout("COCO", splits)


def describe(root: Path) -> str:
    """Describe, in one line, a folder or JSON file of unknown layout, and what the most similar layout would need."""
    if root.is_file():
        return f"{root}: holds {keys_of(root)}; {closest({keys_of(root)}, Counter([root.suffix.lower()]), set())}"
    suffixes, folders = contents_of(root)
    keys = Counter(map(keys_of, islice(json_files(root), MOST_JSON)))
    if not suffixes:
        return f"{root}: holds no files; expected {LAYOUTS}"
    counts = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in suffixes.most_common(6))
    inside = f"; JSON files hold {' or '.join(key for key, _ in keys.most_common(3))}" if keys else ""
    return printable(f"{root}: found {counts}{inside}; {closest(set(keys), suffixes, folders)}")


def contents_of(root: Path) -> tuple[Counter, set[str]]:
    """Count the files below a folder by suffix. Also collect the names of folders and CSV files, in lower case."""
    suffixes: Counter[str] = Counter()
    folders: set[str] = set()
    for path in islice(files_below(root), MOST_ENTRIES):
        *inner, name = path.relative_to(root).as_posix().lower().split("/")
        suffixes[path.suffix.lower()] += 1
        folders.update(inner if path.suffix.lower() != ".csv" else (*inner, name))
    return suffixes, folders


def keys_of(path: Path) -> str:
    """Describe the first keys of a JSON file, or its content if it has no keys."""
    try:
        if path.stat().st_size > SMALL:
            return "a large JSON file"
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return "invalid JSON"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    names = [f"'{key[:30]}'" for key in content]
    return "the keys " + ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "an empty object"


def closest(keys: set[str], suffixes: Counter, folders: set[str]) -> str:
    """Describe the layout most similar to these JSON keys, suffixes and folder names, and what is missing for it."""
    text = " ".join(keys)
    has_images = any(is_image_name(f"x{suffix}") for suffix in suffixes)
    without_images = "" if has_images else ", without the images"
    if "'annotations'" in text or "'images'" in text:
        absent = [key for key in ("images", "annotations", "categories") if f"'{key}'" not in text]
        lacking = f", which lacks the list {' and '.join(map(repr, absent))}" if absent else ""
        return f"closest to COCO's JSON{lacking}"
    if has_images and "_classes.csv" in folders:
        fault = "semantic masks with _classes.csv: they give each pixel a class, but do not separate objects"
        return f"{fault}; export instances instead, in Roboflow as COCO Segmentation"
    if "'shapes'" in text:
        return f"closest to labelme: a JSON with 'shapes' and 'imagePath' beside each image{without_images}"
    if "'project'" in text and "'attribute'" in text and "'view'" in text:
        return "a project of VIA 3; only versions 1 and 2 can be read, so convert it to COCO's JSON"
    if "'_via" in text or "'regions'" in text:
        return f"closest to VIA: via_region_data.json or a project with '_via_img_metadata'{without_images}"
    if "a list" in text:
        remedy = "export it as COCO (result.json with images/) instead"
        return f"a list is a file of results, or Label Studio's own JSON: {remedy}"
    if ".xml" in suffixes:
        return "closest to Pascal VOC, without SegmentationObject/ or ImageSets/Segmentation/"
    if ".txt" in suffixes and ("labels" in folders or ".yaml" in suffixes or ".yml" in suffixes):
        has_yaml = {".yaml", ".yml"} & set(suffixes)
        its = "a" if has_yaml else "its"  # a YAML without names is not the data.yaml
        no_yaml = "" if has_yaml and not has_images else f", without {its} data.yaml (names, train, val) or classes.txt"
        return f"closest to YOLO's{no_yaml}{without_images}"
    if has_images and {name.lower() for name in MASK_FOLDERS} & folders:
        form = "images/ and masks/ with files of the same names, the masks as PNG, TIFF or BMP (JPEG blurs values)"
        return f"closest to images with masks as images: {form}"
    if has_images:
        return f"images without annotations; expected {LAYOUTS}"
    return f"none of the layouts that can be read: {LAYOUTS}"
