"""Collect the images that the page shows, and make their thumbnails, outlines and crops, one image at a time.

The first images that are asked for get in, up to a limit that keeps the page small; examples in other images are left
out, and their numbers stay in the tables.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import contourpy
import numpy as np
from PIL import Image

from dataset_files.image_reading import read_image
from network_files.masks.rle import decode_crops
from report.confusion import Confusion
from report.records import Scene
from train_utils.errors import warn

MOST_IMAGES = 600
THUMBNAIL, CROP = 320, 220  # pixels, long side
LARGEST_THUMBNAIL = 24_000  # bytes; a larger one is compressed further
OUTLINE_SIDE = 72  # pixels of a mask's crop, in which its outline is traced
CROP_MARGIN, SMALLEST_CROP = 0.6, 48  # around a box, as a share of its longer side; pixels of the image

Shot = list[int]  # image, object, detection; -1 where there is none


@dataclass
class Gallery:
    """What the page shows of images.

    Attributes:
        exif: how image files are read, see `read_image`.
        pairs: decides which objects and detections are right.
        images: the images that are in, in order of their admission.
        detections: detections below the pairs' score that are shown nevertheless.
        crops: for each a shot, whose surroundings are shown in the image's own resolution.
    """

    scene: Scene
    pairs: Confusion
    exif: str | None = None
    images: dict[int, None] = field(default_factory=dict)
    detections: set[int] = field(default_factory=set)
    crops: list[Shot] = field(default_factory=list)

    def admit(self, image: int, object: int = -1, detection: int = -1) -> Shot | None:
        """Ask for an image; None if the gallery is full and does not have it."""
        if image not in self.images and len(self.images) >= MOST_IMAGES:
            return None
        self.images[image] = None
        if detection >= 0:
            self.detections.add(detection)
        return [image, object, detection]

    def admit_some(self, shots: Sequence[Shot], number: int) -> list[Shot]:
        """Up to that many of the given shots, those first whose image is in the gallery already."""
        known = [shot for shot in shots if shot[0] in self.images]
        new = [shot for shot in shots if shot[0] not in self.images]
        admitted = [self.admit(*shot) for shot in [*known, *new][:number]]
        return [shot for shot in admitted if shot is not None]

    def admit_crop(self, shot: Shot) -> int:
        """Ask for a crop around an object or detection; returns its number, or -1 if there is no room."""
        if self.admit(*shot) is None:
            return -1
        self.crops.append(shot)
        return len(self.crops) - 1

    def content(self) -> dict[str, Any]:
        """Everything in a form for JSON: `images` by number and `crops`. Coordinates are pixels of the images."""
        images: dict[str, Any] = {}
        crops: list[Any] = [None] * len(self.crops)
        crops_of: dict[int, list[int]] = {}
        for number, shot in enumerate(self.crops):
            crops_of.setdefault(shot[0], []).append(number)
        unreadable = []
        right_objects, right_detections = self.right()
        for image in self.images:
            height, width = self.scene.sizes[image].tolist()
            picture = None
            if self.scene.paths[image] is not None:
                try:
                    picture = self.read(image)
                except (ValueError, OSError) as error:
                    unreadable.append(str(error))
            images[str(image)] = {
                "file": self.scene.file_names[image],
                "id": int(self.scene.image_ids[image]),
                "size": [width, height],
                "src": None if picture is None else thumbnail(picture),
                "truth": self.objects_of(image, right_objects),
                "found": self.detections_of(image, right_detections),
            }
            for number in crops_of.get(image, ()):
                region = self.region(self.crops[number])
                crops[number] = [region, None if picture is None else crop(picture, region)]
        if unreadable:
            warn(f"{len(unreadable)} images are not shown in the report, the first: {unreadable[0]}")
        return {"images": images, "crops": crops}

    def read(self, image: int) -> Image.Image:
        """The image in RGB.

        Raises:
            ValueError: it cannot be read or has another size than the annotations say.
            FileNotFoundError: it is missing.
        """
        path, (height, width) = self.scene.paths[image], self.scene.sizes[image].tolist()
        pixels = read_image(path, (height, width), self.exif) if path is not None else None
        if pixels is None or tuple(pixels.shape[1:]) != (height, width):
            raise ValueError(f"{path}: not of the annotated size, {width}x{height}")
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def right(self) -> tuple[set[int], set[int]]:
        """Objects and detections that are paired with one of their class."""
        right = self.pairs.rows == self.pairs.columns
        return set(self.pairs.objects[right].tolist()), set(self.pairs.detections[right].tolist())

    def objects_of(self, image: int, right: set[int]) -> list[list[Any]]:
        """Entries [number, class, box, right, crowd, outline]."""
        objects = self.scene.objects
        begin, end = np.searchsorted(objects.images, [image, image + 1]).tolist()
        outlines = outlines_of(objects.codes[begin:end]) if objects.codes else [""] * (end - begin)
        return [
            [g, int(objects.classes[g]), rounded(objects.boxes[g]), int(g in right), int(objects.crowds[g]), outline]
            for g, outline in zip(range(begin, end), outlines)
        ]

    def detections_of(self, image: int, right: set[int]) -> list[list[Any]]:
        """Entries [number, class, box, right, score, outline]; right is -1 for those below the score of the pairs."""
        found = self.scene.detections
        begin, end = np.searchsorted(found.images, [image, image + 1]).tolist()
        above = found.scores >= self.pairs.score
        chosen = [d for d in range(begin, end) if above[d] or d in self.detections]
        outlines = outlines_of([found.codes[d] for d in chosen]) if found.codes else [""] * len(chosen)
        return [
            [d, int(found.classes[d]), rounded(found.boxes[d]), int(d in right) if above[d] else -1,
             round(float(found.scores[d]), 4), outline]
            for d, outline in zip(chosen, outlines)
        ]  # fmt: skip

    def region(self, shot: Shot) -> list[int]:
        """The part of an image to show around a shot: x, y, width, height."""
        image, g, d = shot
        boxes = [self.scene.objects.boxes[g]] if g >= 0 else []
        boxes += [self.scene.detections.boxes[d]] if d >= 0 else []
        low = np.min([box[:2] for box in boxes], axis=0)
        high = np.max([box[:2] + box[2:] for box in boxes], axis=0)
        side = max(SMALLEST_CROP, (1 + 2 * CROP_MARGIN) * float((high - low).max()))
        size = self.scene.sizes[image][::-1]
        begin = np.clip(np.floor((low + high - side) / 2), 0, size - 1).astype(int)
        end = np.clip(np.ceil((low + high + side) / 2), begin + 1, size).astype(int)
        return [*begin.tolist(), *(end - begin).tolist()]


def thumbnail(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return as_data(small)


def crop(picture: Image.Image, region: list[int]) -> str:
    x, y, width, height = region
    part = picture.crop((x, y, x + width, y + height))
    part.thumbnail((CROP, CROP))
    return as_data(part)


def as_data(picture: Image.Image) -> str:
    """A JPEG as a data address."""
    for quality in (70, 40):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LARGEST_THUMBNAIL:
            break
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def outlines_of(codes: Sequence[dict]) -> list[str]:
    """SVG paths of the outlines of masks, in whole pixels of the image."""
    return [outline(*crop) for crop in decode_crops(codes)] if codes else []


def outline(left: int, top: int, mask: np.ndarray) -> str:
    """The outline of a mask, uint8 [h, w] at (left, top); a large one is traced in a smaller copy."""
    height, width = mask.shape
    if not height or not width:
        return ""
    scale = min(1.0, OUTLINE_SIDE / max(height, width))
    small = Image.fromarray(mask * 255).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
    )
    values = np.pad(np.asarray(small, dtype=np.float64) / 255, 1)
    step_x, step_y = width / small.width, height / small.height
    lines: Any = contourpy.contour_generator(z=values, line_type="Separate").lines(0.5)  # each float64 [P, 2], x and y
    parts = []
    for line in lines:
        points = np.rint((line - 0.5) * (step_x, step_y) + (left, top)).astype(int)
        kept = np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))
        parts.append("M" + " ".join(f"{x},{y}" for x, y in points[kept].tolist()) + "Z")
    return "".join(parts)


def rounded(box: np.ndarray) -> list[float]:
    return [round(float(value), 1) for value in box]
