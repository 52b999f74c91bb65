"""Describe a folder that no reader accepts in one line: its contents, the closest layout, and what is missing."""

import json
import os
from collections import Counter
from pathlib import Path

from dataset_files.image_files import is_image_name
from dataset_files.layouts.coco_layouts import SMALL, json_files
from dataset_files.layouts.mask_folders import MASK_FOLDERS
from dataset_files.problems import printable

MOST_ENTRIES = 20_000  # files that are counted
MOST_JSON = 20  # files whose keys are read
LAYOUTS = (
    "COCO's JSON, labelme, ISAT, CVAT's XML, YOLO with a data.yaml, VIA, Pascal VOC, or images with masks as images"
)


def describe(root: Path) -> str:
    """Describe a folder or JSON file, the layout that it resembles most, and what is missing, in one line."""
    if root.is_file():
        return f"{root}: holds {keys_of(root)}; {closest({keys_of(root)}, Counter([root.suffix.lower()]), set())}"
    suffixes, folders = contents_of(root)
    keys = Counter(keys_of(path) for _, path in zip(range(MOST_JSON), json_files(root)))
    if not suffixes:
        return f"{root}: holds no files; expected {LAYOUTS}"
    counts = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in suffixes.most_common(6))
    inside = f"; JSON files hold {' or '.join(key for key, _ in keys.most_common(3))}" if keys else ""
    return printable(f"{root}: found {counts}{inside}; {closest(set(keys), suffixes, folders)}")


def contents_of(root: Path) -> tuple[Counter, set[str]]:
    """Count the files below a folder by suffix, and collect the names of its folders and CSV files in lower case."""
    suffixes: Counter[str] = Counter()
    all_folders: set[str] = set()
    for _, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        all_folders.update(folder.lower() for folder in folders)
        all_folders.update(name.lower() for name in names if name.lower().endswith(".csv"))
        suffixes.update(os.path.splitext(name)[1].lower() for name in names if not name.startswith("."))
        if suffixes.total() > MOST_ENTRIES:
            break
    return suffixes, all_folders


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
    """Describe the layout that the contents resemble most, and what is missing."""
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
        its = "a" if has_yaml else "its"  # what there is lacks names, unless the images are missing
        no_yaml = "" if has_yaml and not has_images else f", without {its} data.yaml (names, train, val) or classes.txt"
        return f"closest to YOLO's{no_yaml}{without_images}"
    if has_images and {name.lower() for name in MASK_FOLDERS} & folders:
        form = "images/ and masks/ with files of the same names, the masks as PNG, TIFF or BMP (JPEG blurs values)"
        return f"closest to images with masks as images: {form}"
    if has_images:
        return f"images without annotations; expected {LAYOUTS}"
    return f"none of the layouts that can be read: {LAYOUTS}"
