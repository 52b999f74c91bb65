"""Build annotations in COCO's form from images and objects.

Outlines become polygons, and pixels become run-length codes. Readers of other layouts add images and objects in any
order; `converted` numbers the classes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from dataset_files.coco_masks import LARGEST_COORDINATE, LARGEST_IMAGE, is_number
from dataset_files.conversion_store import Converted
from dataset_files.image_files import read_size
from dataset_files.problems import Problems, shown
from network_files.masks.instance_masks import crop_to_content
from network_files.masks.rle import compress, encode_crop

Crop = tuple[int, int, np.ndarray]  # left, top and bool [h, w]: all pixels of an object
Size = tuple[int, int]  # height, width
DEVIATION = 0.005  # largest distance of a polygon's sides from the curve that it stands for, in pixels


class Shape(NamedTuple):
    """An object in a tool's file, or one of its parts."""

    where: str  # its name in messages
    label: str  # its class; "" if it has none
    group: object  # shapes of the same label and group are one object; None for an object of its own
    read: Callable[[], list[float] | Crop]  # returns its polygon or its pixels, or raises NoArea or ValueError
    crowd: bool = False


class NoArea(ValueError):
    """The shape has no area: it is a point, a line or the like."""


class CocoBuilder:
    """Collect the images and objects of one split. File names of images are relative to `image_folder`.

    Classes that `class_names` lacks are added after it, sorted by name. `problems` are those found so far.
    """

    def __init__(self, image_folder: Path, class_names: Sequence[str] = (), problems: Problems | None = None):
        self.image_folder, self.problems = image_folder, problems or Problems()
        self.class_names = list(dict.fromkeys(class_names))
        self.images: list[dict] = []
        self.objects: list[tuple[str, dict]] = []
        self.known_files: set[str] = set()

    def add_image(self, file_name: str, size: Size | None = None) -> dict | None:
        """Add an image and return its entry, or note a problem and return None. Without `size`, read the header."""
        if file_name in self.known_files:
            self.problems.add("same image", file_name)
            return None
        try:
            height, width = size or read_size(self.image_folder / file_name)
        except FileNotFoundError:
            self.problems.add("missing", file_name)
            return None
        except (ValueError, OSError) as error:
            self.problems.add("unreadable", f"{file_name}: {error}")
            return None
        if min(height, width) < 1 or height * width > LARGEST_IMAGE:
            self.problems.add("image", f"{file_name}: {width}x{height} pixels")
            return None
        self.known_files.add(file_name)
        self.images.append({"id": len(self.images) + 1, "file_name": file_name, "height": height, "width": width})
        return self.images[-1]

    def add_object(
        self, image: dict, class_name: str, *, polygons: Sequence[Sequence[float]] = (), crops: Sequence[Crop] = (),
        box: tuple[float, float, float, float] | None = None, crowd: bool = False,
    ) -> None:  # fmt: skip
        """Add an object with all its parts. If there are crops, all parts become one run-length code.

        Args:
            image: the result of `add_image`.
            polygons: flat lists of coordinates in pixels, all finite, at least two points each.
            crops: pixels, which may extend beyond the image.
            box: x1, y1, x2, y2 in pixels, by default around the mask; required without a polygon or crop.
        """
        size = (image["height"], image["width"])
        if crops:
            code = merged_code(crops, polygons, size)
            segmentation: list | dict = {"size": list(size), "counts": code["counts"].decode()}
            x, y, width, height = coco_mask.toBbox(code).tolist()
            extent, area = (x, y, x + width, y + height), float(coco_mask.area(code))
        elif polygons:
            segmentation = [[float(v) for v in polygon] for polygon in polygons]
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation]).clip(0, size[::-1])
            extent = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
            area = float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))))
        elif box is not None:
            segmentation, extent = [], box
            area = (box[2] - box[0]) * (box[3] - box[1])
        else:
            raise ValueError("an object needs polygons, crops or a box")
        x1, y1, x2, y2 = extent if box is None else box
        entry = {"id": len(self.objects) + 1, "image_id": image["id"], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        entry |= {"area": area, "iscrowd": int(crowd), "segmentation": segmentation}
        self.objects.append((class_name, entry))

    def add_shapes(self, image: dict, shapes: Iterable[Shape]) -> None:
        """Group shapes into objects, and add these to an image. Unusable shapes are noted as problems."""
        objects: dict[object, tuple[Shape, list]] = {}
        for number, shape in enumerate(shapes):
            key = number if shape.group is None else (shape.label, shape.group)
            try:
                part = shape.read()
                if shape.label:
                    objects.setdefault(key, (shape, []))[1].append(part)
                else:
                    self.problems.add("no class", shape.where)
            except NoArea as reason:
                self.problems.add("not an area", f"{shape.where}: {reason}")
            except ValueError as reason:
                kind, example = ("outline", f"{shape.where}: {reason}") if shape.label else ("no class", shape.where)
                self.problems.add(kind, example)
        for shape, parts in objects.values():
            polygons = [part for part in parts if isinstance(part, list)]
            crops = [part for part in parts if not isinstance(part, list)]
            self.add_object(image, shape.label, polygons=polygons, crops=crops, crowd=shape.crowd)

    def converted(self) -> Converted:
        others = sorted({name for name, _ in self.objects} - set(self.class_names))
        ids = {name: number for number, name in enumerate((*self.class_names, *others), start=1)}
        annotations = [entry | {"category_id": ids[name]} for name, entry in self.objects]
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        content = {"images": self.images, "annotations": annotations, "categories": categories}
        return Converted(content, self.problems)


def merged_code(crops: Iterable[Crop], polygons: Sequence[Sequence[float]], size: Size) -> dict:
    """Return the packed run-length code of the union of crops and polygons in an image of `size`."""
    codes = []
    for left, top, crop in crops:
        inside = crop[max(-top, 0) :, max(-left, 0) :]
        left, top = max(left, 0), max(top, 0)
        x, y, pixels = crop_to_content(inside[: max(size[0] - top, 0), : max(size[1] - left, 0)])
        codes.append(encode_crop(pixels.astype(bool), left + x, top + y, *size))
    packed = compress(codes)
    if polygons:
        packed += coco_mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], *size)
    return packed[0] if len(packed) == 1 else coco_mask.merge(packed)


def image_coordinates(values: object) -> list[float]:
    """Convert numbers from a file to floats. ValueError if they cannot be coordinates in an image."""
    if not isinstance(values, list) or not all(map(is_number, values)):
        raise ValueError(f"{shown(values)} is not a list of numbers")
    if not all(abs(v) <= LARGEST_COORDINATE for v in values):  # not if NaN
        raise ValueError(f"{shown(values)} has coordinates that no image has")
    return [float(v) for v in values]


def rectangle_polygon(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """Return the polygon of a rectangle from two opposite corners in any order."""
    left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    return [left, top, right, top, right, bottom, left, bottom]


def ellipse_polygon(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> list[float]:
    """Return a polygon inside an ellipse, nowhere farther than DEVIATION from it.

    The axis of `rx` is turned from the x axis by `angle`, in radians, clockwise in an image.
    """
    radius = max(abs(rx), abs(ry), 1.0)
    corners = 4 * math.ceil(math.pi / math.acos(1 - DEVIATION / radius) / 4)
    cosine, sine = math.cos(angle), math.sin(angle)
    polygon = []
    for k in range(corners):
        u, v = rx * math.cos(2 * math.pi * k / corners), ry * math.sin(2 * math.pi * k / corners)
        polygon += [cx + u * cosine - v * sine, cy + u * sine + v * cosine]
    return polygon
