"""Read single files of Pascal VOC: lists, XML annotations, PNGs of masks. Invalid ones are noted as problems.

Only files of the devkit's layout are opened, whatever a file names, and no entity of an XML file is expanded.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from PIL import Image

from dataset_files.problems import Problems, leaves_folder, shown

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID_LABEL = 255  # palette index of the contours between objects, which belong to no object
LARGEST_XML = 10 << 20  # bytes


@dataclass
class VOCObject:
    label: int
    box: tuple[float, float, float, float]  # x1y1x2y2, 0-based, the right and lower edges beyond the last pixel
    difficult: bool


@dataclass
class VOCPicture:
    name: str
    size: tuple[int, int]  # height, width
    objects: list[VOCObject]
    is_bare: bool = False  # its XML has no object, not even an invalid one


def read_list(path: Path, problems: Problems) -> dict[int, str]:
    """Read the names in a list of images, by their line number, counted from 1 without empty lines."""
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


def read_annotation(folder: Path, name: str, problems: Problems) -> VOCPicture | None:
    """Read one XML file of the devkit in `folder`; None if it is invalid.

    Boxes there are 1-based whole pixels, both ends included; parts of objects are skipped.
    """
    path = folder / "Annotations" / f"{name}.xml"
    try:
        root = parse_xml(path)
        size = (whole_number(root, "size/height"), whole_number(root, "size/width"))
    except (ValueError, OSError) as error:
        problems.add("xml", f"Annotations/{name}.xml: {error}")
        return None
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            objects.append(read_object(element, size))
        except UnusableObject as error:
            problems.add(error.kind, f"Annotations/{name}.xml, object {number}: {error}")
        else:
            if objects[-1].box[0] >= objects[-1].box[2] or objects[-1].box[1] >= objects[-1].box[3]:
                problems.add("box outside", f"Annotations/{name}.xml, object {number} in {size[1]}x{size[0]}")
                objects[-1].difficult = True  # so that it is neither trained on nor scored
    return VOCPicture(name, size, objects, is_bare=root.find("object") is None)


def parse_xml(path: Path, largest: int = LARGEST_XML) -> ElementTree.Element:
    """Parse an XML file of at most `largest` bytes and return its root.

    Raises:
        ValueError: it is not readable, or declares a document type, which could define entities that expand without
            end or read other files, and which annotations do not need.
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


def read_object(element: ElementTree.Element, size: tuple[int, int]) -> VOCObject:
    """Read an object, its box clipped to the image's `size` (height, width)."""
    name = (element.findtext("name") or "").strip()
    if name not in VOC_CLASSES:
        raise UnusableObject("class", shown(name))
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return VOCObject(VOC_CLASSES.index(name) + 1, read_box(element, name, size), difficult)


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


def count_instances(path: Path, size: tuple[int, int]) -> int:
    """Count the instances in a PNG of masks without making an array of it."""
    with open_masks(path, size) as picture:
        return sum(count > 0 for index, count in enumerate(picture.histogram()) if index not in (0, VOID_LABEL))


def read_palette_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the indices of a palette PNG, uint8 [H, W]."""
    with open_masks(path, size) as picture:
        return np.array(picture)


@contextmanager
def open_masks(path: Path, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Open a palette PNG and check its header.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is broken, or not a palette image of this size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found (the masks of a listed image)")
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.mode not in ("P", "L"):
                raise ValueError(f"has mode {picture.mode}; masks are palette images")
            if picture.size != (size[1], size[0]):
                raise ValueError(f"is {picture.width}x{picture.height}, but its XML has {size[1]}x{size[0]}")
            yield picture
    except Exception as error:  # with a broken file Pillow can raise anything
        raise ValueError(f"{path}: {error}") from error
