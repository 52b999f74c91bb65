"""Store images, objects and detections of one evaluation as flat arrays, sorted by image.

Ground truth and results come in COCO's format; the rest of this package works on these arrays. `images` and `classes`
are indices into `EvalData.image_ids` and `EvalData.category_ids`, which are sorted. Boxes are x, y, width, height in
pixels of the image. Run-length codes are packed, and absent if only boxes are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from dataset_files.coco_masks import packed_code
from dataset_files.stored_images import RGB, ImageForm
from my_dataset_coco import box_code

DETECTIONS_PER_CLASS = 100  # the number per image that COCO's metrics use

Entries = Sequence[Mapping[str, Any]]


@dataclass
class Objects:
    """G annotated objects."""

    ids: np.ndarray  # int64 [G], annotation ids
    images: np.ndarray  # int64 [G]
    classes: np.ndarray  # int64 [G]
    boxes: np.ndarray  # float64 [G, 4]
    areas: np.ndarray  # float64 [G], the annotations' `area`
    crowds: np.ndarray  # bool [G]
    codes: list[dict]  # G run-length codes, of the box if there is no mask; [] if only boxes are compared
    bare: np.ndarray  # bool [G], objects without a mask, which are crowds where masks are compared

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Detections:
    """D detections, sorted by image and descending score, at most 100 per image and class."""

    images: np.ndarray  # int64 [D]
    classes: np.ndarray  # int64 [D]
    scores: np.ndarray  # float64 [D]
    boxes: np.ndarray  # float64 [D, 4]
    codes: list[dict]  # D; [] if only boxes are compared

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class EvalData:
    """Images, ground truth and detections of an evaluation."""

    image_ids: np.ndarray  # int64 [I]
    sizes: np.ndarray  # int64 [I, 2], height and width
    file_names: list[str]  # I, from the annotations
    paths: list[Path | None]  # I image files; None if there is none to show
    category_ids: np.ndarray  # int64 [K]
    class_names: list[str]  # K
    objects: Objects
    detections: Detections
    form: ImageForm = RGB  # how images are read and shown, see `read_image`

    def of_kind(self, kind: str) -> "EvalData":
        """Return the data for "bbox", "segm" or "boundary". For the last two, objects without a mask become crowds."""
        if kind == "bbox":
            return self
        return replace(self, objects=replace(self.objects, crowds=self.objects.crowds | self.objects.bare))


def make_eval_data(
    content: Mapping[str, Any],
    results: Mapping[str, Entries],
    paths: Mapping[int, Path],
    form: ImageForm = RGB,
) -> EvalData:
    """Build `EvalData` from ground truth and results in COCO's format.

    Args:
        content: `images`, `annotations` and `categories` of a COCO file; `without_mask`, if given, are the ids of
            annotations that only count where boxes are compared.
        results: results in COCO's format for "bbox", "segm" or both; if both, entries at one index are one detection.
        paths: image id -> file, for the images that can be shown.
    """
    images, categories = (sorted(content[key], key=lambda entry: int(entry["id"])) for key in ("images", "categories"))
    image_ids, category_ids = (np.array([e["id"] for e in each], dtype=np.int64) for each in (images, categories))
    sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2)
    annotations = content["annotations"]
    order, owners, classes = known_entries(annotations, image_ids, category_ids)
    by_image = np.argsort(owners, kind="stable")
    order, owners, classes = order[by_image], owners[by_image], classes[by_image]
    chosen = [annotations[i] for i in order.tolist()]
    boxes = np.array([a["bbox"] for a in chosen], dtype=np.float64).reshape(-1, 4)
    areas = [a["area"] if "area" in a else own for a, own in zip(chosen, boxes[:, 2] * boxes[:, 3])]
    ids = np.array([a["id"] for a in chosen], dtype=np.int64)
    crowds = np.array([bool(a.get("iscrowd", 0)) for a in chosen], dtype=bool)
    bare, codes = np.isin(ids, content.get("without_mask", ())), []
    if "segm" in results:
        for a, is_bare, size in zip(chosen, bare, sizes[owners].tolist()):
            codes.append(box_code(a, size) if is_bare else packed_code(a["segmentation"], *size))
    return EvalData(
        image_ids,
        sizes,
        [str(image.get("file_name", image["id"])) for image in images],
        [paths.get(int(image["id"])) for image in images],
        category_ids,
        [str(category.get("name", category["id"])) for category in categories],
        Objects(ids, owners, classes, boxes, np.array(areas, dtype=np.float64), crowds, codes, bare),
        read_detections(results, image_ids, category_ids),
        form,
    )


def read_detections(results: Mapping[str, Entries], image_ids: np.ndarray, category_ids: np.ndarray) -> Detections:
    leading = results["bbox"] if "bbox" in results else results["segm"]
    places, images, classes = known_entries(leading, image_ids, category_ids)
    scores = np.array([leading[i]["score"] for i in places.tolist()], dtype=np.float64)
    order = best_per_image(images, classes, scores, len(category_ids))
    chosen = places[order].tolist()
    masks = [results["segm"][i]["segmentation"] for i in chosen] if "segm" in results else []
    codes = [packed_code(mask, *mask["size"]) for mask in masks]
    sides = [leading[i]["bbox"] for i in chosen] if "bbox" in results else coco_mask.toBbox(codes)
    boxes = np.array(sides, dtype=np.float64).reshape(-1, 4)
    return Detections(images[order], classes[order], scores[order], boxes, codes)


def known_entries(
    entries: Entries, image_ids: np.ndarray, category_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the entries of known images and categories. Return their indices, images and classes, int64 [N] each."""
    found = []
    for key, known in (("image_id", image_ids), ("category_id", category_ids)):
        ids = np.array([entry[key] for entry in entries], dtype=np.int64)
        found.append(np.where(np.isin(ids, known), np.searchsorted(known, ids), -1))
    images, classes = found
    order = np.flatnonzero((images >= 0) & (classes >= 0))
    return order, images[order], classes[order]


def best_per_image(
    images: np.ndarray, classes: np.ndarray, scores: np.ndarray, num_classes: int, most: int = DETECTIONS_PER_CLASS
) -> np.ndarray:
    """Return indices of detections by image and descending score (stable sort), at most `most` per image and class."""
    order = np.lexsort((-scores, images))
    groups = (images * num_classes + classes)[order]
    by_group = np.argsort(groups, kind="stable")
    begins = np.flatnonzero(np.diff(groups[by_group], prepend=-1))
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[by_group] = np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))
    return order[ranks < most]
