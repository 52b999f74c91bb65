"""Convert the image lists of Pascal VOC's devkit, with their XML annotations and mask PNGs, to COCO's form.

Only paths of the devkit's layout are opened, whatever paths the files contain, and XML entities are never expanded.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from dataset_files.boxes import ious
from dataset_files.coco_file import AS_WRITTEN, IGNORE, Reading
from dataset_files.conversion_store import Converted, SplitFiles
from dataset_files.layouts.coco_builder import CocoBuilder, Crop, Size
from dataset_files.layouts.mask_images import crops_by_value, read_mask_image
from dataset_files.layouts.text_files import parse_xml
from dataset_files.problems import Problems, leaves_folder, shown

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID_LABEL = 255  # palette index of the contours between objects, which belong to no object
SMALLEST_OVERLAP = 0.2  # with a smaller IoU, an object's box and the box around a mask do not match
READERS = 4  # threads


class VOCObject(NamedTuple):
    """An object of an XML file. Its box is x1y1x2y2, 0-based, with exclusive right and lower edges."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def find_voc_folder(root: str | Path, year: str) -> Path:
    """Find the folder VOC{year}: `root`, or one in `root` or `root`/VOCdevkit. FileNotFoundError if it is missing."""
    root = Path(root)
    for folder in (root, root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}"):
        if (folder / "ImageSets" / "Segmentation").is_dir():
            return folder
    raise FileNotFoundError(f"{root}: no VOCdevkit/VOC{year} in it")


def voc_split(folder: Path, txt_name: str) -> SplitFiles:
    """Return the split of the images that a list in ImageSets/Segmentation names."""
    listed = folder / "ImageSets" / "Segmentation" / txt_name
    inputs = [folder / name for name in ("Annotations", "SegmentationObject", "SegmentationClass")]
    name, convert = "train" if txt_name.startswith("train") else "val", partial(convert_list, folder, listed)
    return SplitFiles(name, listed, folder / "JPEGImages", convert, inputs, takes_reading=True)


def convert_list(folder: Path, listed: Path, reading: Reading = AS_WRITTEN) -> Converted:
    """Convert the images of a list to COCO's form; an image's id is its line number.

    Difficult objects become crowds. So do objects without a mask, with their box as mask, unless the reading allows
    boxes without masks. If the reading has `ignore_regions`, void pixels become a region.
    """
    problems, boxes = Problems(), reading.boxes_without_masks
    names: dict[str, int] = {}
    lines = read_list(listed, problems)
    repeated = [name for number, name in lines.items() if names.setdefault(name, number) != number]
    problems.add_all("repeated image", repeated, lambda name: f"{name} in {listed.name}")
    builder = CocoBuilder(folder / "JPEGImages", VOC_CLASSES, problems)
    with ThreadPoolExecutor(READERS) as pool:
        for name, (size, objects, found) in zip(names, pool.map(partial(read_voc_image, folder, boxes), names)):
            problems.update(found)
            entry = None if objects is None else builder.add_image(f"{name}.jpg", size)
            if entry is None:
                continue
            entry["id"] = names[name]
            for thing, crop in objects or ():
                if crop is None and boxes and not thing.difficult:
                    builder.add_object(entry, thing.name, box=thing.box)
                    continue
                x1, y1, x2, y2 = map(int, thing.box)
                mask = crop or (x1, y1, np.ones((max(y2 - y1, 1), max(x2 - x1, 1)), dtype=bool))
                is_crowd = crop is None or thing.difficult
                builder.add_object(entry, thing.name, crops=[mask], box=thing.box, crowd=is_crowd)
            if reading.ignore_regions and (path := folder / "SegmentationObject" / f"{name}.png").is_file():
                add_void(builder, entry, read_indices(path, size) == VOID_LABEL)
    return builder.converted()


def add_void(builder: CocoBuilder, entry: dict, void: np.ndarray) -> None:
    """Add the void pixels of an image, bool [H, W], as a region that the evaluation ignores."""
    if void.any():
        builder.add_object(entry, IGNORE, crops=[(0, 0, void)])
        builder.objects[-1][1]["void"] = 1


def read_voc_image(
    folder: Path, boxes: bool, name: str
) -> tuple[Size, list[tuple[VOCObject, Crop | None]] | None, Problems]:
    """Read an image's size, its objects with their masks, and their problems.

    The objects are None if a file of the image, or every object in it, is invalid. With `boxes`, objects need no mask.
    """
    problems, where = Problems(), f"Annotations/{name}.xml"
    try:
        root, size = read_annotation(folder, name)
    except (ValueError, OSError) as error:
        problems.add("xml", f"{where}: {error}")
        return (0, 0), None, problems
    objects = read_objects(root, name, size, problems, VOC_CLASSES)
    try:
        matched = match_masks(list(objects.values()), *read_masks(folder, name, size)) if objects else []
    except (FileNotFoundError, ValueError) as error:
        if not (boxes and isinstance(error, FileNotFoundError)):
            problems.add("masks", str(error))
            return size, None, problems
        matched = [None] * len(objects)
    for (number, thing), crop in zip(objects.items(), matched):
        if crop is None and not (thing.difficult or boxes):
            problems.add("no mask", f"{where}, object {number}, '{thing.name}'")
    is_usable = bool(objects) or root.find("object") is None
    return size, list(zip(objects.values(), matched)) if is_usable else None, problems


def read_masks(folder: Path, name: str, size: Size) -> tuple[list[Crop], list[str]]:
    """Read the mask PNGs of an image. Return the crop of each instance, and the most frequent class of its pixels."""
    instances, classes = (
        read_indices(folder / kind / f"{name}.png", size) for kind in ("SegmentationObject", "SegmentationClass")
    )
    crops = crops_by_value(np.where(instances == VOID_LABEL, 0, instances))
    of_pixels = [classes[y : y + pixels.shape[0], x : x + pixels.shape[1]][pixels] for x, y, pixels in crops]
    class_names = dict(enumerate(VOC_CLASSES, start=1))
    return crops, [class_names.get(int(np.bincount(found).argmax()), "") for found in of_pixels]


def read_indices(path: Path, size: Size) -> np.ndarray:
    """Read the palette indices of a mask PNG, int64 [H, W]. FileNotFoundError if missing, ValueError if unusable."""
    try:
        mask = read_mask_image(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found (the masks of a listed image)") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    if mask.kind == "colour":
        raise ValueError(f"{path}: holds colours; masks are palette images")
    if mask.size != size:
        raise ValueError(f"{path}: is {mask.size[1]}x{mask.size[0]}, but its XML has {size[1]}x{size[0]}")
    return mask.values


def match_masks(objects: Sequence[VOCObject], crops: Sequence[Crop], names: Sequence[str | None]) -> list[Crop | None]:
    """Return the crop of each XML object's mask, or None for an object without one.

    Masks are matched by class and overlap, best pairs first; the order in the XML does not help, since some objects
    have no mask. `names` are the classes of the crops, None if unknown.
    """
    extents = np.array([(x, y, x + c.shape[1], y + c.shape[0]) for x, y, c in crops], dtype=np.float64)
    boxes = np.array([thing.box for thing in objects], dtype=np.float64).reshape(-1, 1, 4)
    overlap = ious(boxes, extents.reshape(1, -1, 4))
    for row, thing in enumerate(objects):
        overlap[row, [name not in (None, thing.name) for name in names]] = 0
    matched: list[Crop | None] = [None] * len(objects)
    while overlap.size and overlap.max() >= SMALLEST_OVERLAP:
        row, column = map(int, np.unravel_index(overlap.argmax(), overlap.shape))
        matched[row] = crops[column]
        overlap[row, :] = overlap[:, column] = 0
    return matched


def read_list(path: Path, problems: Problems) -> dict[int, str]:
    """Read a list of images. Return line number -> name; empty lines are not counted."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found (the list of images)")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a list of names ({error})") from error
    if not lines:
        raise ValueError(f"{path}: lists no image")
    problems.add_all("file name", filter(leaves_folder, lines), shown)
    return {number: name for number, name in enumerate(lines, start=1) if not leaves_folder(name)}


def read_annotation(folder: Path, name: str) -> tuple[Element, Size]:
    """Read an image's XML file. Return its root and the image's height and width; ValueError or OSError if unusable."""
    root = parse_xml(folder / "Annotations" / f"{name}.xml")
    sides = {path: root.findtext(path, "").strip() for path in ("size/height", "size/width")}
    for path, text in sides.items():
        if not text.isdigit() or not 0 < int(text) < 1 << 20:
            raise ValueError(f"{path} is {shown(root.findtext(path))}, not a number of pixels")
    height, width = map(int, sides.values())
    return root, (height, width)


def read_objects(
    root: Element, name: str, size: Size, problems: Problems, classes: Sequence[str] = ()
) -> dict[int, VOCObject]:
    """Read the valid objects of an XML file. Return number (from 1) -> object; boxes are clipped to the image.

    Any class is allowed if `classes` is empty.
    """
    objects, where = {}, f"Annotations/{name}.xml"
    height, width = map(float, size)
    for number, element in enumerate(root.iterfind("object"), start=1):
        label = (element.findtext("name") or "").strip()
        texts = [element.findtext(f"bndbox/{key}", "") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = map(float, texts)
        except ValueError:
            x1 = y1 = x2 = y2 = math.nan
        fault = None
        if classes and label not in classes:
            fault = "class", shown(label)
        elif not label:
            fault = "no class", "has no name"
        elif not all(map(math.isfinite, (x1, y1, x2, y2))):
            found = f"the bndbox {shown(' '.join(texts))}" if any(texts) else "no bndbox"
            fault = "box numbers", f"'{label}' has {found}; expected four numbers"
        elif x1 - 1 >= x2 or y1 - 1 >= y2:
            fault = "corners", f"'{label}' has the box {x1:g} {y1:g} {x2:g} {y2:g}"
        if fault is not None:
            problems.add(fault[0], f"{where}, object {number}: {fault[1]}")
            continue
        x1, y1, x2, y2 = min(max(x1 - 1, 0), width), min(max(y1 - 1, 0), height), min(x2, width), min(y2, height)
        if x1 >= x2 or y1 >= y2:
            problems.add("box outside", f"{where}, object {number} in {width:g}x{height:g}")
            continue
        is_difficult = (element.findtext("difficult") or "0").strip() == "1"
        objects[number] = VOCObject(label, (x1, y1, x2, y2), is_difficult)
    return objects
