"""Store images, objects and detections of one evaluation as flat arrays, sorted by image.

Ground truth and results come in COCO's format; the rest of this package works on these arrays. Image and class numbers
are indices into `EvalData.image_ids` and `EvalData.category_ids`, which are sorted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from dataset_files.coco_masks import packed_code
from my_dataset_coco import box_code

DETECTIONS_PER_CLASS = 100  # the number per image that COCO's metrics use


@dataclass
class Objects:
    """G annotated objects.

    Attributes:
        ids: int64 [G], annotation ids.
        images, classes: int64 [G], numbers.
        boxes: float64 [G, 4], x, y, width, height in pixels of the image.
        areas: float64 [G], the annotations' `area`.
        crowds: bool [G].
        codes: run-length codes of the masks, or of the box where there is none; empty if only boxes are compared.
        bare: bool [G], objects without a mask, which are crowds where masks are compared; None: there is none.
    """

    ids: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    codes: list[dict]
    bare: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Detections:
    """D detections, sorted by image and descending score; at most 100 per image and class.

    Attributes:
        images, classes: int64 [D], numbers.
        scores: float64 [D].
        boxes: float64 [D, 4], x, y, width, height.
        codes: as in `Objects`.
    """

    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    codes: list[dict]

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class EvalData:
    """Images, ground truth and detections of an evaluation.

    Attributes:
        image_ids: int64 [I], sorted.
        sizes: int64 [I, 2], height and width.
        file_names: I names from the annotations.
        paths: I image files; None if there is none to show.
        category_ids: int64 [K], sorted.
        class_names: K names.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    file_names: list[str]
    paths: list[Path | None]
    category_ids: np.ndarray
    class_names: list[str]
    objects: Objects
    detections: Detections

    def of_kind(self, kind: str) -> "EvalData":
        """Return the data for comparing boxes ("bbox"), masks or boundaries."""
        objects = self.objects
        if kind == "bbox" or objects.bare is None:
            return self
        return replace(self, objects=replace(objects, crowds=objects.crowds | objects.bare))


def make_eval_data(
    content: Mapping[str, Sequence[Mapping[str, Any]]],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    paths: Mapping[int, Path],
) -> EvalData:
    """Build the arrays from ground truth and results.

    Args:
        content: `images`, `annotations` and `categories` of a COCO file; `without_mask`, if given, are the ids of
            annotations that only count where boxes are compared.
        results: results in COCO's format for "bbox", "segm" or both; if both, entries at one index are one detection.
        paths: image id -> file.
    """
    images = sorted(content["images"], key=lambda image: int(image["id"]))
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    image_ids = np.array([image["id"] for image in images], dtype=np.int64)
    category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
    sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2)
    with_masks, without_mask = "segm" in results, content.get("without_mask", ())
    return EvalData(
        image_ids,
        sizes,
        [str(image.get("file_name", image["id"])) for image in images],
        [paths.get(int(image["id"])) for image in images],
        category_ids,
        [str(category.get("name", category["id"])) for category in categories],
        read_objects(content["annotations"], image_ids, category_ids, sizes, with_masks, without_mask),
        read_detections(results, image_ids, category_ids),
    )


def read_objects(
    annotations: Sequence[Mapping[str, Any]],
    image_ids: np.ndarray,
    category_ids: np.ndarray,
    sizes: np.ndarray,
    with_masks: bool,
    without_mask: Sequence[Any],
) -> Objects:
    known = [a for a in annotations if is_in(a["image_id"], image_ids) and is_in(a["category_id"], category_ids)]
    owners = numbers_of(known, "image_id", image_ids)
    order = np.argsort(owners, kind="stable")
    chosen = [dict(known[i]) for i in order.tolist()]
    images = owners[order]
    boxes = np.array([a["bbox"] for a in chosen], dtype=np.float64).reshape(-1, 4)
    ids = np.array([a["id"] for a in chosen], dtype=np.int64)
    bare = np.isin(ids, without_mask)
    codes = []
    if with_masks:
        for a, is_bare, size in zip(chosen, bare, sizes[images].tolist()):
            codes.append(box_code(a["bbox"], *size) if is_bare else packed_code(a["segmentation"], *size))
    areas = [a["area"] if "area" in a else own for a, own in zip(chosen, boxes[:, 2] * boxes[:, 3])]
    return Objects(
        ids,
        images,
        numbers_of(chosen, "category_id", category_ids),
        boxes,
        np.array(areas, dtype=np.float64),
        np.array([bool(a.get("iscrowd", 0)) for a in chosen], dtype=bool),
        codes,
        bare,
    )


def read_detections(
    results: Mapping[str, Sequence[Mapping[str, Any]]], image_ids: np.ndarray, category_ids: np.ndarray
) -> Detections:
    leading = results["bbox"] if "bbox" in results else results["segm"]
    places = [i for i, entry in enumerate(leading) if is_in(entry["category_id"], category_ids)]
    entries = [leading[i] for i in places]
    images = numbers_of(entries, "image_id", image_ids)
    classes = numbers_of(entries, "category_id", category_ids)
    scores = np.array([entry["score"] for entry in entries], dtype=np.float64)
    order = best_per_image(images, classes, scores, len(category_ids))
    codes = [packed(results["segm"][places[i]]["segmentation"]) for i in order.tolist()] if "segm" in results else []
    if "bbox" in results:
        boxes = np.array([entries[i]["bbox"] for i in order.tolist()], dtype=np.float64).reshape(-1, 4)
    else:
        boxes = np.asarray(coco_mask.toBbox(codes), dtype=np.float64).reshape(-1, 4)
    return Detections(images[order], classes[order], scores[order], boxes, codes)


def best_per_image(
    images: np.ndarray, classes: np.ndarray, scores: np.ndarray, num_classes: int, most: int = DETECTIONS_PER_CLASS
) -> np.ndarray:
    """Return indices by image and descending score, stable, with at most `most` detections per image and class."""
    order = np.lexsort((-scores, images))
    groups = (images * num_classes + classes)[order]
    by_group = np.argsort(groups, kind="stable")
    sorted_groups = groups[by_group]
    begins = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[by_group] = np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))
    return order[ranks < most]


def packed(code: Mapping[str, Any]) -> dict:
    """Return a run-length code with packed bytes; its counts may be text or a list."""
    counts, size = code["counts"], list(code["size"])
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": size, "counts": counts}, *size)
    return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}


def is_in(value: int, sorted_ids: np.ndarray) -> bool:
    place = int(np.searchsorted(sorted_ids, value))
    return place < len(sorted_ids) and int(sorted_ids[place]) == value


def numbers_of(entries: Sequence[Mapping[str, Any]], key: str, sorted_ids: np.ndarray) -> np.ndarray:
    return np.searchsorted(sorted_ids, np.array([entry[key] for entry in entries], dtype=np.int64))
