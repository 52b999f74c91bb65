"""What is wrong with a COCO file's annotations: columns of them in, which can be used and named problems out.

Everything is looked at by column; an annotation is read again only to say in words what is wrong with it.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dataset_files.coco_file import Annotations, Pictures
from dataset_files.problems import Problems, shown

SMALLEST_OVERLAP = 0.1  # IoU of a box and the box around its mask; of 2,359 objects of COCO's none was below 0.9
FAR = 1.0  # a picture's sides beyond its edge


class Checked(NamedTuple):
    """Of A annotations: their pictures' places, int64; whether they are right, bool; whether to train on them, bool."""

    owners: np.ndarray
    valid: np.ndarray
    usable: np.ndarray


def check_annotations(
    annotations: Annotations, pictures: Pictures, categories: dict[int, str], problems: Problems, text: str
) -> Checked:
    """Find out which annotations can be used, and note what is wrong with the others in `problems`.

    Args:
        text: the file's.
    """
    count = len(annotations.ids)
    ids, image_ids = np.array(annotations.ids, dtype=np.int64), np.array(annotations.image_ids, dtype=np.int64)
    owners = find_places(image_ids, pictures.ids)
    sound = np.ones(count, dtype=bool)

    def note(kind: str, flawed: np.ndarray, value: Callable[[dict, int], object]) -> None:
        def describe(k: int) -> str:
            annotation = json.loads(text[annotations.starts[k] : annotations.ends[k]])
            name = f" ({pictures.file_names[owners[k]]})" if owners[k] >= 0 and pictures.valid[owners[k]] else ""
            return f"annotation {ids[k]} of image {image_ids[k]}{name}: {shown(value(annotation, k))}"

        problems.add_all(kind, np.flatnonzero(flawed).tolist(), describe)

    def refuse(kind: str, flawed: np.ndarray, value: Callable[[dict, int], object]) -> None:
        note(kind, flawed & sound, value)
        sound[flawed] = False

    def flawed_masks(kind: str) -> np.ndarray:
        return np.isin(np.arange(count), np.array(masks.flaws[kind], dtype=np.int64))

    # Whose they are
    masks = annotations.masks
    category_ids = np.array(annotations.category_ids, dtype=np.int64)
    refuse("unknown image", owners < 0, lambda a, k: {"bbox": a["bbox"]})
    sound[sound] = pictures.valid[owners[sound]]  # a picture that cannot be used was named, its objects go with it
    refuse("unknown category", ~np.isin(category_ids, list(categories)), lambda a, k: a["category_id"])
    refuse("annotation id", find_places(ids, ids) != np.arange(count), lambda a, k: {"bbox": a["bbox"]})

    # Boxes and masks, each for itself
    boxes = np.array(annotations.boxes).reshape(-1, 4)
    sizes = pictures.sizes[owners] if len(pictures.ids) else np.zeros((count, 2), dtype=np.int64)
    codes, code_sizes = np.array(masks.codes, dtype=np.int64), np.array(masks.sizes).reshape(-1, 2)
    resized = np.zeros(count, dtype=bool)
    resized[codes] = (code_sizes != sizes[codes]).any(axis=1)
    refuse("box numbers", ~(np.abs(boxes) < 1e30).all(axis=1), lambda a, k: a["bbox"])
    refuse("odd polygon", flawed_masks("odd polygon"), lambda a, k: a["segmentation"])
    refuse("polygon numbers", flawed_masks("polygon numbers"), lambda a, k: a["segmentation"])
    refuse("code size", resized, lambda a, k: {"size": a["segmentation"]["size"], "picture": sizes[k].tolist()})
    refuse("code counts", flawed_masks("code counts"), lambda a, k: a["segmentation"])

    # Both together
    extents = np.concatenate(masks.extents or [np.zeros((0, 4))])
    inside, drawn = clipped_corners(boxes, sizes), extents.clip(0, sizes[:, [1, 0, 1, 0]])
    no_area = ~(boxes[:, 2:] > 0).all(axis=1)
    outside = ~no_area & ~(inside[:, 2:] > inside[:, :2]).all(axis=1)
    no_mask = flawed_masks("no mask")
    good = sound & ~no_area & ~outside & ~no_mask
    apart = np.zeros(count, dtype=bool)
    apart[good] = ious(inside[good], drawn[good]) < SMALLEST_OVERLAP
    refuse("apart", apart, lambda a, k: {"bbox": a["bbox"], "mask from x1 y1 to x2 y2": extents[k].tolist()})
    note("empty box", sound & no_area, lambda a, k: a["bbox"])
    note("box outside", sound & outside, lambda a, k: a["bbox"])
    note("no mask", sound & no_mask, lambda a, k: a["segmentation"])
    note("short polygon", sound & flawed_masks("short polygon") & ~no_mask, lambda a, k: a["segmentation"])
    far = FAR * sizes[:, [1, 0]]
    reaching = (extents[:, :2] < -far).any(axis=1) | (extents[:, 2:] > sizes[:, [1, 0]] + far).any(axis=1)
    note("far outside", sound & reaching, lambda a, k: {"mask from x1 y1 to x2 y2": extents[k].tolist()})
    return Checked(owners, sound, good & sound & ~np.array(annotations.crowds, dtype=bool))


def find_places(wanted: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """int64: the first place in `ids` [N] of each that is wanted [M], -1 of those that are not there."""
    if not len(ids):
        return np.full(len(wanted), -1)
    order = np.argsort(ids, kind="stable")
    places = order[np.searchsorted(ids[order], wanted).clip(max=len(ids) - 1)]
    return np.where(ids[places] == wanted, places, -1)


def clipped_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes x, y, width, height -> x1y1x2y2 within their pictures, float64 [N, 4].

    Args:
        boxes: float64 [N, 4].
        sizes: [N, 2] or [2], height and width.
    """
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
    return corners.clip(0, sizes[..., [1, 0, 1, 0]])


def ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs of boxes x1y1x2y2, [N, 4] each; 0 where both are without area."""
    shared = (np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])).clip(0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return shared / np.maximum(union, 1e-9)
