"""Convert the image lists of Pascal VOC's devkit, with their XML annotations and mask PNGs, to COCO's form.

Only paths of the devkit's layout are opened, whatever paths the files contain, and XML entities are never expanded.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from PIL import Image

from dataset_files.boxes import ious
from dataset_files.conversion import Converted, SplitFiles
from dataset_files.layouts.coco_builder import CocoBuilder, Crop
from dataset_files.problems import Problems, leaves_folder, shown
from network_files.masks.instance_masks import crop_to_content

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID_LABEL = 255  # palette index of the contours between objects, which belong to no object
LARGEST_XML = 10 << 20  # bytes
SMALLEST_OVERLAP = 0.2  # with a smaller IoU, an object's box and the box around a mask do not match
READERS = 4  # threads


@dataclass
class VOCObject:
    """An object of an XML file; its box is x1y1x2y2, 0-based, with exclusive right and lower edges."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class VOCImage(NamedTuple):
    """Size (height, width) and objects with their masks, or None if the image cannot be used."""

    size: tuple[int, int]
    objects: list[tuple[VOCObject, Crop | None]] | None
    problems: Problems


def find_voc_folder(root: str | Path, year: str) -> Path:
    """Return the folder VOC{year}: `root` itself, or a folder in `root` or in its VOCdevkit.

    Raises:
        FileNotFoundError: there is none.
    """
    root = Path(root)
    for folder in (root, root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}"):
        if (folder / "ImageSets" / "Segmentation").is_dir():
            return folder
    raise FileNotFoundError(f"{root}: no VOCdevkit/VOC{year} in it")


def voc_split(folder: Path, txt_name: str) -> SplitFiles:
    """Return the split that a list in ImageSets/Segmentation names."""
    listed = folder / "ImageSets" / "Segmentation" / txt_name
    name = "train" if txt_name.startswith("train") else "val"
    return SplitFiles(
        name,
        listed,
        folder / "JPEGImages",
        partial(convert_list, folder, listed),
        [folder / name for name in ("Annotations", "SegmentationObject", "SegmentationClass")],
    )


def convert_list(folder: Path, listed: Path) -> Converted:
    """Convert the images of a list to COCO's form; an image's id is its line number.

    Difficult objects become crowds. So do objects without a mask, whose box becomes the mask.
    """
    problems = Problems()
    lines = read_list(listed, problems)
    names: dict[str, int] = {}
    repeated = [name for number, name in lines.items() if names.setdefault(name, number) != number]
    problems.add_all("repeated image", repeated, lambda name: f"{name} in {listed.name}")
    builder = CocoBuilder(folder / "JPEGImages", VOC_CLASSES, problems)
    with ThreadPoolExecutor(READERS) as pool:
        for name, image in zip(names, pool.map(partial(read_voc_image, folder), names)):
            problems.update(image.problems)
            entry = None if image.objects is None else builder.add_image(f"{name}.jpg", image.size)
            if entry is not None:
                entry["id"] = names[name]
                for thing, crop in image.objects or ():
                    mask, is_crowd = crop or box_crop(thing), crop is None or thing.difficult
                    builder.add_object(entry, thing.name, crops=[mask], box=thing.box, crowd=is_crowd)
    return builder.converted()


def read_voc_image(folder: Path, name: str) -> VOCImage:
    """Read one image's XML file and masks. An image is not usable if its files, or all its objects, are invalid."""
    problems = Problems()
    try:
        root = parse_xml(folder / "Annotations" / f"{name}.xml")
        size = (whole_number(root, "size/height"), whole_number(root, "size/width"))
    except (ValueError, OSError) as error:
        problems.add("xml", f"Annotations/{name}.xml: {error}")
        return VOCImage((0, 0), None, problems)
    objects = read_objects(root, name, size, problems, VOC_CLASSES)
    for number, (x1, y1, x2, y2) in [(number, thing.box) for number, thing in objects.items()]:
        if x1 >= x2 or y1 >= y2:
            problems.add("box outside", f"Annotations/{name}.xml, object {number} in {size[1]}x{size[0]}")
            del objects[number]
    try:
        matched = match_masks(list(objects.values()), *read_masks(folder, name, size)) if objects else []
    except (FileNotFoundError, ValueError) as error:
        problems.add("masks", str(error))
        return VOCImage(size, None, problems)
    for (number, thing), crop in zip(objects.items(), matched):
        if crop is None and not thing.difficult:
            problems.add("no mask", f"Annotations/{name}.xml, object {number}, '{thing.name}'")
    is_usable = bool(objects) or root.find("object") is None
    return VOCImage(size, list(zip(objects.values(), matched)) if is_usable else None, problems)


def box_crop(thing: VOCObject) -> Crop:
    """Return the pixels of an object's box."""
    x1, y1, x2, y2 = map(int, thing.box)
    return x1, y1, np.ones((max(y2 - y1, 1), max(x2 - x1, 1)), dtype=bool)


def read_masks(folder: Path, name: str, size: tuple[int, int]) -> tuple[list[Crop], list[str]]:
    """Read the instances of an image's PNGs: their crops, and the most frequent class of their pixels."""
    instances, classes = (
        read_palette_png(folder / kind / f"{name}.png", size) for kind in ("SegmentationObject", "SegmentationClass")
    )
    crops, names = [], []
    for number in np.unique(instances):
        if number not in (0, VOID_LABEL):
            left, top, crop = crop_to_content(instances == number)
            crops.append((left, top, crop))
            within = classes[top : top + crop.shape[0], left : left + crop.shape[1]][crop]
            names.append(dict(enumerate(VOC_CLASSES, start=1)).get(int(np.bincount(within).argmax()), ""))
    return crops, names


def match_masks(objects: Sequence[VOCObject], crops: Sequence[Crop], names: Sequence[str | None]) -> list[Crop | None]:
    """Return the crop of each XML object's mask, or None: match by class and overlap, best pairs first.

    The order in the XML does not help, since some objects have no mask.

    Args:
        names: the classes of the crops, None where unknown.
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
    """Read a list of images: line number -> name. Lines count from 1, without empty ones."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found (the list of images)")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a list of names ({error})") from error
    if not lines:
        raise ValueError(f"{path}: lists no image")
    problems.add_all("file name", (name for name in lines if leaves_folder(name)), shown)
    return {number: name for number, name in enumerate(lines, start=1) if not leaves_folder(name)}


def parse_xml(path: Path, largest: int = LARGEST_XML) -> ElementTree.Element:
    """Parse an XML file of at most `largest` bytes and return its root.

    Raises:
        ValueError: it is not readable, or declares a document type. Annotations do not need one, and it could define
            entities that expand without end or read other files.
    """
    if not path.is_file():
        raise ValueError("not found")
    if path.stat().st_size > largest:
        raise ValueError(f"has {path.stat().st_size} bytes, far more than an annotation")
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse_document_type
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except expat.ExpatError as error:
        raise ValueError(f"not readable as XML ({error})") from error
    except LookupError as error:
        raise ValueError(f"not readable as XML (unknown encoding: {error})") from error


def refuse_document_type(*_: object) -> None:
    raise ValueError("refused, as it declares a document type, which may define entities")


def whole_number(element: ElementTree.Element, path: str) -> int:
    text = element.findtext(path)
    if text is None or not text.strip().isdigit() or not 0 < int(text) < 1 << 20:
        raise ValueError(f"{path} is {shown(text)}, not a number of pixels")
    return int(text)


class UnusableObject(Exception):
    """An object of an XML file is invalid; `kind` is the kind of problem."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def read_objects(
    root: ElementTree.Element, name: str, size: tuple[int, int], problems: Problems, classes: Sequence[str] = ()
) -> dict[int, VOCObject]:
    """Read the objects of an image's XML file by number, from 1; their boxes are clipped to its size (height, width).

    Args:
        name: of the image.
        classes: the known classes; empty if any is allowed.
    """
    objects = {}
    for number, element in enumerate(root.iterfind("object"), start=1):
        class_name = (element.findtext("name") or "").strip()
        try:
            if classes and class_name not in classes:
                raise UnusableObject("class", shown(class_name))
            if not class_name:
                raise UnusableObject("no class", "has no name")
            box = read_box(element, class_name, size)
        except UnusableObject as error:
            problems.add(error.kind, f"Annotations/{name}.xml, object {number}: {error}")
        else:
            objects[number] = VOCObject(class_name, box, (element.findtext("difficult") or "0").strip() == "1")
    return objects


def read_box(element: ElementTree.Element, name: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Read the box of the object `name`, 0-based x1y1x2y2, clipped to an image of `size` (height, width)."""
    try:
        x1, y1, x2, y2 = (float(element.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        raise UnusableObject("box numbers", f"'{name}' has no bndbox of four numbers") from None
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise UnusableObject("box numbers", f"'{name}' has the box {x1} {y1} {x2} {y2}")
    if x1 - 1 >= x2 or y1 - 1 >= y2:
        raise UnusableObject("corners", f"'{name}' has the box {x1:g} {y1:g} {x2:g} {y2:g}")
    height, width = map(float, size)
    x1, y1, x2, y2 = min(max(x1 - 1, 0), width), min(max(y1 - 1, 0), height), min(x2, width), min(y2, height)
    return x1, y1, max(x2, x1), max(y2, y1)


def read_palette_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the indices of a palette PNG of this size (height, width), uint8 [H, W].

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is broken, or not a palette image of this size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found (the masks of a listed image)")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"has mode {image.mode}; masks are palette images")
            if image.size != (size[1], size[0]):
                raise ValueError(f"is {image.width}x{image.height}, but its XML has {size[1]}x{size[0]}")
            return np.array(image)
    except Exception as error:  # Pillow can raise any exception for a broken file
        raise ValueError(f"{path}: {error}") from error
