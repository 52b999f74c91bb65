"""Collect the images of the page, and create their thumbnails, outlines and crops, one image at a time.

Images are admitted in the order of the requests, up to a limit that keeps the page small. Examples in other images are
omitted; the numbers in the tables are still complete.
"""

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import contourpy
import numpy as np
from PIL import Image

from dataset_files.stored_images import to_picture
from my_dataset_coco import read_image
from network_files.masks.rle import decode_crops
from report.confusion import Confusion
from report.eval_data import EvalData
from train_utils.errors import warn

MOST_IMAGES = 600
THUMBNAIL, CROP = 320, 220  # pixels, long side
LARGEST_THUMBNAIL = 24_000  # bytes; a larger one is compressed further
OUTLINE_SIDE = 72  # pixels of a mask's crop, in which its outline is traced
MARGIN, SMALLEST_VIEW = 0.6, 48  # around a box, as a share of its longer side; pixels of the image


class Shot(NamedTuple):
    """An image with one of its objects and one of its detections; -1 means none."""

    image: int
    object: int = -1
    detection: int = -1


@dataclass
class Gallery:
    """Collect the shots of a page. The page's script draws each shot by its index."""

    data: EvalData
    pairs: Confusion  # determines which objects and detections are right
    shots: list[tuple[Shot, str, bool]] = field(default_factory=list)  # caption, and whether to store a sharp crop
    images: dict[int, None] = field(default_factory=dict)  # of the shots, in order of admission

    def admit(self, shot: Shot, caption: str = "", crop: bool = False) -> int | None:
        """Add a shot and return its index; None if the shot's image is new and the gallery is full."""
        if shot.image not in self.images and len(self.images) >= MOST_IMAGES:
            return None
        self.images[shot.image] = None
        self.shots.append((shot, caption or self.caption(shot), crop))
        return len(self.shots) - 1

    def admit_some(self, shots: Sequence[Shot], number: int) -> list[int]:
        """Admit up to `number` shots, preferring those whose image is already in the gallery."""
        known_first = sorted(shots, key=lambda shot: shot.image not in self.images)
        return [n for shot in known_first[:number] if (n := self.admit(shot)) is not None]

    def caption(self, shot: Shot) -> str:
        found, names = self.data.detections, self.data.class_names
        parts = []
        if shot.object >= 0:
            parts.append(f"annotated {names[self.data.objects.classes[shot.object]]}")
        if shot.detection >= 0:
            parts.append(f"detected {names[found.classes[shot.detection]]} {found.scores[shot.detection]:.2f}")
        return f"{', '.join(parts)} – {self.data.file_names[shot.image]}"

    def content(self) -> dict[str, Any]:
        """Return the gallery's images and `Shot`s as JSON data for the page's script. Boxes are in image pixels."""
        shots: list[list[Any]] = [[*shot, self.view(shot, crop), None, caption] for shot, caption, crop in self.shots]
        crops: dict[int, list[int]] = {}
        for number, (shot, _, crop) in enumerate(self.shots):
            if crop:
                crops.setdefault(shot.image, []).append(number)
        shown = {shot.detection for shot, _, _ in self.shots}
        images: dict[str, Any] = {}
        unreadable: list[str] = []
        for image in self.images:
            photo = self.read(image, unreadable)
            images[str(image)] = {
                "file": self.data.file_names[image],
                "id": int(self.data.image_ids[image]),
                "size": self.data.sizes[image, ::-1].tolist(),
                "src": None if photo is None else as_jpeg(photo, THUMBNAIL),
                "truth": self.objects_of(image),
                "found": self.detections_of(image, shown),
            }
            if photo is None:
                continue
            for number in crops.get(image, ()):
                x, y, w, h = shots[number][3]
                shots[number][4] = as_jpeg(photo.crop((x, y, x + w, y + h)), CROP)
        if unreadable:
            warn(f"{len(unreadable)} images are not shown in the report, the first: {unreadable[0]}")
        return {"images": images, "shots": shots}

    def read(self, image: int, unreadable: list[str]) -> Image.Image | None:
        """Read an image in RGB, or return None. If the image is unreadable, add the reason to `unreadable`."""
        path, size = self.data.paths[image], tuple(self.data.sizes[image].tolist())
        if path is None:
            return None
        try:
            pixels = read_image(path, size, self.data.form)
            if tuple(pixels.shape[1:]) == size:
                return to_picture(pixels.numpy(), self.data.form.shown)
            unreadable.append(f"{path}: not of the annotated size, {size[1]}x{size[0]}")
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
        return None

    @cached_property
    def right(self) -> tuple[set[int], set[int]]:
        """Return the indices of correct objects and of correct detections: those paired within their class."""
        right = self.pairs.rows == self.pairs.columns
        return set(self.pairs.objects[right].tolist()), set(self.pairs.detections[right].tolist())

    def objects_of(self, image: int) -> list[list[Any]]:
        """Return the image's objects as entries [index, class, box, right, crowd, outline]; see `right`."""
        objects = self.data.objects
        begin, end = np.searchsorted(objects.images, [image, image + 1]).tolist()
        outlines = outlines_of(objects.codes[begin:end]) if objects.codes else [""] * (end - begin)
        return [
            [g, int(objects.classes[g]), objects.boxes[g].round(1).tolist(), int(g in self.right[0]),
             int(objects.crowds[g]), outline]
            for g, outline in zip(range(begin, end), outlines)
        ]  # fmt: skip

    def detections_of(self, image: int, shown: Collection[int] = ()) -> list[list[Any]]:
        """Return the image's detections as entries [index, class, box, right, score, outline]; see `right`.

        Detections that score below `pairs.score` have -1 as `right`, and are returned only if they are in `shown`.
        """
        found = self.data.detections
        begin, end = np.searchsorted(found.images, [image, image + 1]).tolist()
        rated = {d: int(d in self.right[1]) if found.scores[d] >= self.pairs.score else -1 for d in range(begin, end)}
        chosen = [d for d in rated if rated[d] >= 0 or d in shown]
        outlines = outlines_of([found.codes[d] for d in chosen]) if found.codes else [""] * len(chosen)
        return [
            [d, int(found.classes[d]), found.boxes[d].round(1).tolist(), rated[d], round(float(found.scores[d]), 4),
             outline]
            for d, outline in zip(chosen, outlines)
        ]  # fmt: skip

    def view(self, shot: Shot, crop: bool) -> list[int]:
        """Return [x, y, width, height] to show: a region around the shot's object and detection, or the whole image."""
        size = self.data.sizes[shot.image][::-1]
        boxes = [self.data.objects.boxes[shot.object]] if shot.object >= 0 else []
        boxes += [self.data.detections.boxes[shot.detection]] if shot.detection >= 0 else []
        if not boxes:
            return [0, 0, *size.tolist()]
        low = np.min([box[:2] for box in boxes], axis=0)
        high = np.max([box[:2] + box[2:] for box in boxes], axis=0)
        smallest = SMALLEST_VIEW if crop else size.min() / 4  # a thumbnail enlarged further would be blurred
        side = max(smallest, (1 + 2 * MARGIN) * float((high - low).max()))
        begin = np.clip(np.floor((low + high - side) / 2), 0, size - 1).astype(int)
        end = np.clip(np.ceil((low + high + side) / 2), begin + 1, size).astype(int)
        return [*begin.tolist(), *(end - begin).tolist()]


def as_jpeg(photo: Image.Image, side: int) -> str:
    """Return an image as a data URL: a JPEG with sides of at most `side` pixels."""
    small = photo.copy()
    small.thumbnail((side, side))
    for quality in (70, 40):
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LARGEST_THUMBNAIL:
            break
    return as_url(file.getvalue(), "jpeg")


def as_url(image: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(image).decode()}"


def outlines_of(codes: Sequence[dict]) -> list[str]:
    """Return SVG paths of the outlines of masks, in whole pixels of the image."""
    return [outline(*crop) for crop in decode_crops(codes)]


def outline(left: int, top: int, mask: np.ndarray) -> str:
    """Return an SVG path around a mask, uint8 [h, w] at (left, top). Large masks are traced at reduced size."""
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
