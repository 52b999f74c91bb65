"""Write predictions as a dataset: in COCO's layout, to train on, or in labelme's, to correct by hand.

Both layouts include the images, as hard links where the file system supports them, which take no space. An image with
an EXIF orientation is written upright, since tools disagree on that tag.

labelme's outlines follow the edges between pixels, and are then simplified as long as they still cover most of the
mask's pixels and few others.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from dataset_files.atomic_files import link_atomically, write_atomically, write_image
from dataset_files.image_files import is_image_name
from dataset_files.problems import printable
from dataset_files.stored_images import open_image, orientation_of
from prediction.prediction import Classes, Prediction
from prediction.sources import Source
from train_utils.errors import InputError
from train_utils.visual.drawing import MaskCrop

JPEG_QUALITY = 95
LABELME_VERSION = "5.5.0"  # of the format; all fields written here exist since 5.2
Points = list[list[float]]  # [[x, y], ...] in pixels of the image

SIMILAR = 0.95  # minimum IoU of a simplified outline's pixels and the mask's
TOLERANCES = (2.0, 1.5, 1.0, 0.7, 0.4)  # pixels by which an outline may move, tried in this order
LEVEL = 0.501  # between a mask's values 0 and 1; above a half, so that parts that only touch at a corner stay apart


class CocoSaver:
    """Write a COCO dataset: annotations.json, and the images in images/. Objects with an empty mask are left out."""

    suffixes: tuple[str, ...] = ()

    def __init__(self, folder: Path, classes: Classes):
        self.path, self.classes = folder, classes
        self.images: dict[int, tuple[dict, list[dict]]] = {}

    def add(self, source: Source, prediction: Prediction) -> None:
        height, width = prediction.size
        path = place_image(source, prediction.image, self.path / "images")
        file_name = path.relative_to(self.path / "images").as_posix()
        image = {"id": source.id, "file_name": file_name, "height": height, "width": width}
        entries = [entry for entry in annotations(prediction, source.id) if entry["area"]]
        self.images[source.number] = image, entries

    def close(self) -> str:
        images = [self.images[number] for number in sorted(self.images)]
        objects, ids = [entry for _, entries in images for entry in entries], self.classes.category_ids
        content = {
            "images": [image for image, _ in images],
            "annotations": [{"id": number, **entry} for number, entry in enumerate(objects, start=1)],
            "categories": [{"id": ids[label], "name": name} for label, name in sorted(self.classes.names.items())],
        }
        write_atomically(self.path / "annotations.json", json.dumps(content))
        return f"a COCO dataset of {len(images)} images and {len(objects)} objects in {self.path}/"


def annotations(prediction: Prediction, image_id: int) -> list[dict]:
    """Return the objects of an image in COCO's annotation format, without ids. Each box encloses the object's mask."""
    if not len(prediction):
        return []
    areas, boxes = coco_mask.area(prediction.codes).tolist(), coco_mask.toBbox(prediction.codes).tolist()
    return [
        entry | {"bbox": box, "area": area, "iscrowd": 0}
        for entry, area, box in zip(prediction.to_coco(image_id), areas, boxes)
    ]


class LabelmeSaver:
    """Write a folder for labelme: each image, a JSON file beside it, and labels.txt with the class names.

    Raises:
        InputError: one of the JSON files exists already; it may have been corrected by hand.
    """

    suffixes: tuple[str, ...] = (".json",)

    def __init__(self, folder: Path, sources: Sequence[Source], classes: Classes):
        self.path, self.classes = folder, classes
        existing = next((path for source in sources if (path := source.output(folder, ".json")).exists()), None)
        if existing is not None:
            raise InputError(
                f"{existing}: exists already, perhaps corrected by hand; give another --output-dir, or move "
                f"{folder}/ away"
            )

    def add(self, source: Source, prediction: Prediction) -> None:
        image = place_image(source, prediction.image, self.path)
        height, width = prediction.size
        content: dict[str, object] = {
            "version": LABELME_VERSION, "flags": {}, "shapes": shapes_of(prediction), "imagePath": image.name,
            "imageData": None, "imageHeight": height, "imageWidth": width,
        }  # fmt: skip
        write_atomically(source.output(self.path, ".json"), json.dumps(content, indent=2, ensure_ascii=False))

    def close(self) -> str:
        path = self.path / "labels.txt"
        own = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []  # added by hand
        names = dict.fromkeys([*own, *(printable(name) for _, name in sorted(self.classes.names.items()))])
        write_atomically(path, "".join(f"{name}\n" for name in names))
        return f"files to correct with: labelme {self.path} --labels {path} --nodata"


def shapes_of(prediction: Prediction) -> list[dict]:
    """Return labelme's shapes: a mask for an object with a hole, else a polygon per part, joined by a group_id."""
    shapes = []
    objects = zip(prediction.names, prediction.scores.tolist(), prediction.crops())
    for number, (name, score, crop) in enumerate(objects, start=1):
        common = {"label": printable(name), "flags": {}, "description": f"score {score:.3f}"}
        exact = contours(crop[2])
        if has_hole(exact):
            shapes.append(common | mask_shape(crop))
        elif exact:
            outlines = outlines_of(crop, exact)
            group = number if len(outlines) > 1 else None
            shapes += [common | {"shape_type": "polygon", "group_id": group, "points": points} for points in outlines]
    return shapes


def mask_shape(crop: MaskCrop) -> dict:
    """Return a crop as a labelme shape of type "mask": its top-left and bottom-right pixel, and a PNG in base64."""
    left, top, pixels = crop
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    height, width = pixels.shape
    ends = [[float(left), float(top)], [float(left + width - 1), float(top + height - 1)]]
    mask = base64.b64encode(file.getvalue()).decode()
    return {"shape_type": "mask", "group_id": None, "points": ends, "mask": mask}


def place_image(source: Source, image: Image.Image, folder: Path) -> Path:
    """Store an image in a dataset's folder, under the source's output name. Return the path of the stored file.

    The source's file is linked or copied if it is upright; otherwise `image` is written.
    """
    try:
        with open_image(source.path) as stored:
            is_upright = orientation_of(stored) == 1 and is_image_name(source.path.name)
            is_jpeg = stored.format == "JPEG"
    except UnidentifiedImageError:  # an array or an image of many channels, which was read as stored
        is_upright, is_jpeg = True, False
    path = source.output(folder, source.path.suffix.lower() if is_upright else ".jpg" if is_jpeg else ".png")
    if is_upright:
        link_atomically(source.path.resolve(), path)
    else:
        write_image(path, image, **({"quality": JPEG_QUALITY} if is_jpeg else {}))
    return path


def outlines_of(crop: MaskCrop, exact: list[np.ndarray]) -> list[Points]:
    """Return one simplified polygon per part of a mask without holes. `exact` are the contours of the mask."""
    left, top, pixels = crop
    for tolerance in TOLERANCES:
        simple = [simplified(corners, tolerance) for corners in exact]
        if min(map(len, simple)) >= 3 and similarity(simple, pixels) >= SIMILAR:
            break
    else:
        simple = exact
    return [(corners + (left, top)).tolist() for corners in simple]


def has_hole(exact: Sequence[np.ndarray]) -> bool:
    """Whether a mask has a hole. `exact` are the contours of the mask."""
    areas = [signed_area(corners) for corners in exact]
    return min(areas, default=0) < 0 < max(areas, default=0)


def contours(pixels: np.ndarray) -> list[np.ndarray]:
    """Trace the contours of a mask, bool [h, w], along the edges between pixels.

    A contour is float64 [P, 2], x and y of its corners. Contours of holes run in the opposite direction to the others.
    """
    values = np.pad(pixels, 1).repeat(2, axis=0).repeat(2, axis=1).astype(np.float64)
    lines: Any = contourpy.contour_generator(z=values, line_type="Separate").lines(LEVEL)
    found = []
    for line in lines:
        corners = np.rint((line - 1.5) / 2)  # contourpy cuts the corners, by less than half of a doubled pixel
        corners = corners[1:][(np.diff(corners, axis=0) != 0).any(axis=1)]
        steps = corners - np.roll(corners, 1, axis=0)
        found.append(corners[(steps != np.roll(steps, -1, axis=0)).any(axis=1)])
    return found


def signed_area(corners: np.ndarray) -> float:
    """Return the area of a polygon [P, 2], positive if it runs clockwise in an image."""
    (x, y), (next_x, next_y) = corners.T, np.roll(corners, -1, axis=0).T
    return float((x * next_y - next_x * y).sum() / 2)


def simplified(corners: np.ndarray, tolerance: float) -> np.ndarray:
    """Simplify a closed polygon [P, 2] so that it moves by at most `tolerance` pixels (Douglas and Peucker, 1973)."""
    far = int(((corners - corners[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate((corners, corners[:1]))
    kept = np.zeros(len(closed), dtype=bool)
    kept[[0, far, -1]] = True
    waiting = [(0, far), (far, len(corners))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        (x, y), beside = closed[last] - closed[first], closed[first + 1 : last] - closed[first]
        length = float(np.hypot(x, y))  # 0 if both are the same corner
        distances = np.abs(x * beside[:, 1] - y * beside[:, 0]) / length if length else np.hypot(*beside.T)
        farthest = int(distances.argmax())
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            waiting += [(first, middle), (middle, last)]
    return closed[:-1][kept[:-1]]


def similarity(outlines: Sequence[np.ndarray], pixels: np.ndarray) -> float:
    """Return the IoU between a mask, bool [h, w], and polygons in the mask's coordinates."""
    polygons = [corners.reshape(-1).tolist() for corners in outlines]
    covered = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *pixels.shape))).astype(bool)
    return float((covered & pixels).sum() / (covered | pixels).sum())
