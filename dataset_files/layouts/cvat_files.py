"""Read CVAT's own XML: images with their shapes, or the tracks of a video whose frames are stored as images."""

import math
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from dataset_files.coco_masks import LARGEST_IMAGE
from dataset_files.conversion_store import Converted, SplitFiles
from dataset_files.image_files import ImageFinder, in_order, split_in
from dataset_files.layouts import coco_builder
from dataset_files.layouts.coco_builder import CocoBuilder, Crop, NoArea, Shape
from dataset_files.layouts.text_files import beginning, file_per_split, parse_xml
from dataset_files.problems import shown

LARGEST = 1 << 30  # bytes; larger files are refused
SUBSET = re.compile(rb'<image [^>]*?\bsubset="([^"]*)"')
FRAME = re.compile(r"frame_(\d{6,})", re.IGNORECASE)  # the names of images in CVAT's exports of videos
NO_AREA = ("polyline", "points", "cuboid", "skeleton")

Labelled = tuple[str, str | None, Element]  # class, group and shape


def find(root: Path) -> list[SplitFiles]:
    """Find the splits of a folder with CVAT's XML files, or of a single one."""
    sources = file_per_split(root, ".xml", is_cvat, "XML files of CVAT")
    found: dict[str, SplitFiles] = {}
    for split, path in sources.items():
        named = sorted({name.decode(errors="replace") for name in SUBSET.findall(path.read_bytes())})
        for subset in named if len(sources) == 1 and any(map(split_in, named)) else [None]:
            name = split if subset is None else split_in(subset)
            if name in found:
                raise ValueError(f"{path}: the subset {shown(subset)} is not the only one for the split '{name}'")
            found[name] = SplitFiles(name, path, path.parent, partial(read_cvat, path, subset), [path.parent])
    if "" in found and len(found) > 1:
        raise ValueError(f"{root}: some of its subsets are named like a split, others are not; name all or none")
    return list(in_order(found).values())


def is_cvat(path: Path) -> bool:
    head = beginning(path)
    return all(re.search(tag, head) for tag in (rb"<annotations[\s>]", rb"<(version|meta|image|track)\b"))


def read_cvat(source: Path, subset: str | None) -> Converted:
    """Convert a CVAT file, or one subset of it; ValueError if the file is not readable as XML."""
    try:
        root = parse_xml(source, LARGEST)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    labels = (label for label in root.iterfind("meta//labels/label") if not label.findtext("parent"))
    builder = CocoBuilder(source.parent, [name for label in labels if (name := label.findtext("name"))])
    finder = ImageFinder(source.parent)
    for element in root.iterfind("image"):
        if subset in (None, element.get("subset")):
            name = element.get("name", "")
            file_name = finder.find(name, source.parent, source.parent / "images")
            shapes = [(one.get("label", ""), one.get("group_id"), one) for one in element]
            add_image(builder, file_name, name, size_of(element.get("height"), element.get("width")), shapes)
    if root.find("track") is not None:
        add_frames(builder, finder, root)
    return builder.converted()


def size_of(height: str | None, width: str | None) -> tuple[int, int] | None:
    return (int(height), int(width)) if height and width and height.isdecimal() and width.isdecimal() else None


def add_frames(builder: CocoBuilder, finder: ImageFinder, root: Element) -> None:
    """Add the frames of a video that exist as image files. Frames with shapes but no file are noted as missing."""
    files = {int(match[1]): stem for stem in finder.by_stem if (match := FRAME.fullmatch(stem))}
    frames: dict[int, list[Labelled]] = {number: [] for number in files}
    for track in root.iterfind("track"):
        shapes = {int(s.get("frame", "")): s for s in track if s.get("frame", "").isdecimal()}
        for number, shape in shapes.items():
            if shape.get("outside") != "1":
                frames.setdefault(number, []).append((track.get("label", ""), track.get("group_id"), shape))
        for first, following in zip(sorted(shapes), sorted(shapes)[1:]):
            if shapes[first].get("outside") != "1" and any(number in files for number in range(first + 1, following)):
                builder.problems.add("track gap", f"track {track.get('id')}, between frames {first} and {following}")
    size = size_of(root.findtext("meta//original_size/height"), root.findtext("meta//original_size/width"))
    for number, shapes_of_frame in sorted(frames.items()):
        names = finder.by_stem.get(files.get(number, ""), [])
        add_image(builder, names[0] if names else None, f"frame_{number:06d}.png", size, shapes_of_frame)


def add_image(
    builder: CocoBuilder, file_name: str | None, name: str, size: tuple[int, int] | None, shapes: Iterable[Labelled]
) -> None:
    if file_name is None:
        builder.problems.add("missing", shown(name))
    elif (image := builder.add_image(file_name, size)) is not None:
        found = []
        for number, (label, group, shape) in enumerate(shapes, start=1):
            if shape.tag != "tag":
                where, group = f"{file_name}, shape {number}, {shown(label)}", None if group in ("", "0") else group
                found.append(Shape(where, label, group, partial(read_shape, shape)))
        builder.add_shapes(image, found)


def read_shape(shape: Element) -> list[float] | Crop:
    """Return the outline or the pixels of a shape; NoArea for lines and points, ValueError for invalid shapes."""
    if shape.tag in NO_AREA:
        raise NoArea(shape.tag)
    angle = math.radians(numbers_of(shape.get("rotation", "0"))[0])  # clockwise, around the centre
    if shape.tag == "polygon":
        polygon = numbers_of(shape.get("points", "").replace(";", ","))
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers")
        return polygon
    if shape.tag == "box":
        x1, y1, x2, y2 = (numbers_of(shape.get(key, ""))[0] for key in ("xtl", "ytl", "xbr", "ybr"))
        return turned(coco_builder.rectangle_polygon(x1, y1, x2, y2), (x1 + x2) / 2, (y1 + y2) / 2, angle)
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (numbers_of(shape.get(key, ""))[0] for key in ("cx", "cy", "rx", "ry"))
        return coco_builder.ellipse_polygon(cx, cy, rx, ry, angle)
    if shape.tag == "mask":
        return mask_crop(shape)
    raise ValueError(f"unknown shape {shown(shape.tag)}")


def turned(polygon: list[float], cx: float, cy: float, angle: float) -> list[float]:
    """Rotate a polygon about a point; an angle of 0 returns it unchanged, bit for bit."""
    if not angle:
        return polygon
    turn = complex(math.cos(angle), math.sin(angle))
    points = [complex(x - cx, y - cy) * turn for x, y in zip(polygon[::2], polygon[1::2])]
    return [value for p in points for value in (cx + p.real, cy + p.imag)]


def numbers_of(text: str) -> list[float]:
    try:
        return coco_builder.image_coordinates([float(number) for number in text.split(",")])
    except ValueError as error:
        raise ValueError(f"{shown(text)} is not a list of numbers") from error


def mask_crop(shape: Element) -> Crop:
    """Decode a mask from run lengths along the rows of its box. Background and object alternate, background first."""
    left, top, width, height = (int(numbers_of(shape.get(key, ""))[0]) for key in ("left", "top", "width", "height"))
    counts = np.array(numbers_of(shape.get("rle", "")), dtype=np.int64)
    if min(width, height) < 1 or width * height > LARGEST_IMAGE or counts.min() < 0 or counts.sum() != width * height:
        raise ValueError(f"a mask of {width}x{height} pixels, whose run lengths cover {counts.sum()}")
    return left, top, np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
