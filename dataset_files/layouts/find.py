"""Detect the layout of a folder, or of an annotation file, and find its splits."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dataset_files.conversion import SplitFiles
from dataset_files.image_files import names_in
from dataset_files.layouts import (
    coco_layouts,
    cvat_files,
    labelme_files,
    mask_folders,
    via_files,
    voc_variants,
    yolo_files,
)
from dataset_files.layouts.folder_description import describe
from dataset_files.layouts.voc_files import voc_split

VOC = "Pascal VOC"
MOST_FOLDERS = 20  # sub-folders that are searched for a layout
# By name, in this order; VIA's reader and the devkit's come first. Each returns [] for another layout, and raises
# ValueError if a file is invalid or several may be meant for one split.
READERS: dict[str, Callable[[Path], list[SplitFiles]]] = {
    "COCO": coco_layouts.find,
    "YOLO": yolo_files.find,
    "VOC-like": voc_variants.find,
    "labelme": labelme_files.find,
    "ISAT": partial(labelme_files.find, tool=labelme_files.ISAT),
    "CVAT": cvat_files.find,
    "mask images": mask_folders.find,
}


class Layout(NamedTuple):
    """The name of a layout, and its splits."""

    name: str
    splits: list[SplitFiles]


def find_layout(path: Path, class_attribute: str | None = None) -> Layout:
    """Detect the layout of a folder or annotation file.

    Args:
        class_attribute: the region attribute that is the class, in VIA's files.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: its layout is unknown, or a file in it is invalid; one line that describes its contents.
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
    if path.is_dir() and voc_variants.is_standard(path):
        folder = voc_variants.variant_folder(path) or path
        return Layout(VOC, [voc_split(folder, "train.txt"), voc_split(folder, "val.txt")])
    if via:
        return Layout("VIA", via)
    return next((Layout(name, splits) for name, find in READERS.items() if (splits := find(path))), None)


def inner_layouts(root: Path) -> str:
    """Describe the sub-folders that have a layout, since archives often contain a folder; "" if none has."""
    found = []
    for place in sorted(root / name for name in names_in(root) if not name.startswith("."))[:MOST_FOLDERS]:
        with suppress(ValueError, OSError):
            layout = layout_at(place) if place.is_dir() else None
            if layout is not None:
                found.append(f"{place} ({layout.name})")
    return f"; give --data-path the folder inside: {' or '.join(found[:3])}" if found else ""


def named_files(train_json: Path, val_json: Path | None, image_folder: Path | None) -> Layout:
    """Return the layout of COCO files named one by one; without an image folder, search beside each file."""
    splits = []
    for name, path in (("train" if val_json else "", train_json), ("val", val_json)):
        if path is None:
            continue
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (--train-json, --val-json)")
        found = coco_layouts.find(path)
        if not found:
            raise ValueError(f"{path}: not a COCO file (a JSON object with images, annotations and categories)")
        splits.append(SplitFiles(name, path, image_folder or found[0].image_folder))
    return Layout("COCO", splits)
