"""Check the annotations of a COCO file: find the usable ones, and note the problems of the others.

All checks work on columns; an annotation is parsed again only to describe its problem.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from dataset_files.boxes import fit_of, ious, look_like_fractions
from dataset_files.coco_file import Annotations, ImageEntries
from dataset_files.problems import Problems, shown

# IoU of a box and the box around its mask. None of 2,359 objects of COCO was below 0.9, but single objects of correct
# files go down to 0.27. Below 0.1 the two show different things: nothing could be learnt from the mask in that box.
SMALLEST_OVERLAP = 0.1
FAR = 1.0  # image sizes beyond its edge


class Checked(NamedTuple):
    """Of A annotations: their images' places, int64; whether they are right, bool; and have box and mask, bool."""

    owners: np.ndarray
    valid: np.ndarray
    complete: np.ndarray


def check_annotations(
    annotations: Annotations,
    images: ImageEntries,
    categories: dict[int, str],
    problems: Problems,
    text: str,
    boxes_from_masks: bool = False,
) -> Checked:
    """Find the usable annotations, and note the problems of the others in `problems`.

    Args:
        text: the text of the file.
        boxes_from_masks: use the masks' extents as boxes of objects that have a mask, and ignore the file's.
    """
    count = len(annotations.ids)
    ids, image_ids = np.array(annotations.ids, dtype=np.int64), np.array(annotations.image_ids, dtype=np.int64)
    owners = find_places(image_ids, images.ids)
    valid = np.ones(count, dtype=bool)

    def note(kind: str, flawed: np.ndarray, value: Callable[[dict, int], object]) -> None:
        def describe(k: int) -> str:
            annotation = json.loads(text[annotations.starts[k] : annotations.ends[k]])
            name = f" ({images.file_names[owners[k]]})" if owners[k] >= 0 and images.valid[owners[k]] else ""
            return f"annotation {ids[k]} of image {image_ids[k]}{name}: {shown(value(annotation, k))}"

        problems.add_all(kind, np.flatnonzero(flawed).tolist(), describe)

    def refuse(kind: str, flawed: np.ndarray, value: Callable[[dict, int], object]) -> None:
        note(kind, flawed & valid, value)
        valid[flawed] = False

    def flawed_masks(kind: str) -> np.ndarray:
        return np.isin(np.arange(count), np.array(masks.flaws[kind], dtype=np.int64))

    # Images and categories
    masks = annotations.masks
    category_ids = np.array(annotations.category_ids, dtype=np.int64)
    refuse("unknown image", owners < 0, lambda a, k: {"bbox": a["bbox"]})
    valid[valid] = images.valid[owners[valid]]  # an unusable image was named already, and its objects go with it
    shifted = numbered_in_two_ways(category_ids, categories)
    if shifted:
        problems.add("category numbering", shifted)
    else:
        refuse("unknown category", ~np.isin(category_ids, list(categories)), lambda a, k: a["category_id"])
    refuse("annotation id", find_places(ids, ids) != np.arange(count), lambda a, k: {"bbox": a["bbox"]})

    # Boxes and masks, each on their own
    boxes = np.array(annotations.boxes).reshape(-1, 4)
    sizes = images.sizes[owners] if len(images.ids) else np.zeros((count, 2), dtype=np.int64)
    extents = np.concatenate(masks.extents or [np.zeros((0, 4))])
    no_mask = flawed_masks("no mask")
    wrong_masks = np.logical_or.reduce([flawed_masks(k) for k in ("odd polygon", "polygon numbers", "code counts")])
    if boxes_from_masks:
        drawn = ~no_mask & ~wrong_masks
        boxes[drawn] = np.concatenate((extents[:, :2], extents[:, 2:] - extents[:, :2]), axis=1)[drawn]
    codes, code_sizes = np.array(masks.codes, dtype=np.int64), np.array(masks.sizes).reshape(-1, 2)
    resized = np.zeros(count, dtype=bool)
    resized[codes] = (code_sizes != sizes[codes]).any(axis=1)
    refuse("box numbers", ~(np.abs(boxes) < 1e30).all(axis=1), lambda a, k: a["bbox"])
    refuse("point pairs", flawed_masks("point pairs"), lambda a, k: a["segmentation"])
    refuse("odd polygon", flawed_masks("odd polygon"), lambda a, k: a["segmentation"])
    refuse("polygon numbers", flawed_masks("polygon numbers"), lambda a, k: a["segmentation"])
    refuse("code size", resized, lambda a, k: {"size": a["segmentation"]["size"], "image": sizes[k].tolist()})
    refuse("code counts", flawed_masks("code counts"), lambda a, k: a["segmentation"])

    # Both together, first for the whole file: the meaning of its boxes and masks
    outlined = valid & ~no_mask & ~have_code(count, codes)
    empty = drawn_empty(np.array(masks.thin, dtype=np.int64), valid, sizes, annotations, text)
    no_mask[empty] = True
    with_mask = valid & ~no_mask
    fit = fit_of(boxes[with_mask], extents[with_mask], sizes[with_mask])
    whole_file = {
        "fractions": in_fractions(boxes[valid], extents[outlined]),
        "box format": fit.other_format(),
    }
    kind = next((kind for kind, found in whole_file.items() if found), None)
    if kind is not None:
        problems.add(kind, whole_file[kind])
    elif fit.loose():
        problems.add("loose boxes", fit.loose())

    # Then object by object
    inside, drawn = clipped_corners(boxes, sizes), extents.clip(0, sizes[:, [1, 0, 1, 0]])
    no_area = ~(boxes[:, 2:] > 0).all(axis=1)
    outside = ~no_area & ~(inside[:, 2:] > inside[:, :2]).all(axis=1)
    good = valid & ~no_area & ~outside & ~no_mask
    if kind is None:  # otherwise all of these follow from it
        apart = np.zeros(count, dtype=bool)
        apart[good] = ious(inside[good], drawn[good]) < SMALLEST_OVERLAP
        refuse("apart", apart, lambda a, k: {"bbox": a["bbox"], "mask from x1 y1 to x2 y2": extents[k].tolist()})
        note("empty box", valid & no_area, lambda a, k: a["bbox"])
        note("box outside", valid & outside, lambda a, k: a["bbox"])
    note("no mask", valid & no_mask, lambda a, k: a["segmentation"])
    note("short polygon", valid & flawed_masks("short polygon") & ~no_mask, lambda a, k: a["segmentation"])
    far = FAR * sizes[:, [1, 0]]
    reaching = (extents[:, :2] < -far).any(axis=1) | (extents[:, 2:] > sizes[:, [1, 0]] + far).any(axis=1)
    note("far outside", valid & reaching, lambda a, k: {"mask from x1 y1 to x2 y2": extents[k].tolist()})
    return Checked(owners, valid, good & valid)


def find_places(wanted: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the first index in `ids` [N] of each of `wanted` [M], int64 [M]; -1 for missing ones."""
    if not len(ids):
        return np.full(len(wanted), -1)
    order = np.argsort(ids, kind="stable")
    places = order[np.searchsorted(ids[order], wanted).clip(max=len(ids) - 1)]
    return np.where(ids[places] == wanted, places, -1)


def numbered_in_two_ways(category_ids: np.ndarray, categories: dict[int, str]) -> str:
    """Describe the problem if annotations count categories from 0 and "categories" from 1; else "".

    It is not corrected: it is as likely that one class is wrong in all annotations of the file.
    """
    used = np.unique(category_ids).tolist()
    if not used or used[0] != 0 or 0 in categories or not all(number + 1 in categories for number in used):
        return ""
    return (
        f"annotations have category_id 0 to {used[-1]}, 'categories' has {min(categories)} to {max(categories)}: "
        "it looks as if annotations count from 0 and 'categories' from 1; number both alike"
    )


def drawn_empty(
    thin: np.ndarray, valid: np.ndarray, sizes: np.ndarray, annotations: Annotations, text: str
) -> np.ndarray:
    """Return those of the valid annotations in `thin`, int64 [M], whose polygons cover no pixel when rasterised."""
    empty = []
    for k in thin[valid[thin]].tolist():
        polygons = json.loads(text[annotations.starts[k] : annotations.ends[k]])["segmentation"]
        height, width = sizes[k].tolist()
        codes = coco_mask.frPyObjects([polygon for polygon in polygons if len(polygon) >= 6], height, width)
        if not any(coco_mask.area(codes)):
            empty.append(k)
    return np.array(empty, dtype=np.int64)


def have_code(count: int, codes: np.ndarray) -> np.ndarray:
    """Return which annotations have a run-length code as their mask, bool [count]."""
    return np.isin(np.arange(count), codes)


def in_fractions(boxes: np.ndarray, outlines: np.ndarray) -> str:
    """Describe the problem if all coordinates of a file's boxes or polygons are fractions; else "".

    Args:
        boxes: float64 [N, 4], x, y, width, height.
        outlines: float64 [M, 4], x1y1x2y2 around polygons.
    """
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
    found = [name for name, values in (("boxes", corners), ("polygons", outlines)) if look_like_fractions(values)]
    if not found:
        return ""
    return (
        f"all coordinates of {' and '.join(found)} are within 0..1, so that they look like fractions of image sizes; "
        "multiply x and width by the width of the image, y and height by its height"
    )


def clipped_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Convert boxes x, y, width, height to x1y1x2y2 within their images, float64 [N, 4].

    Args:
        boxes: float64 [N, 4].
        sizes: [N, 2] or [2], height and width.
    """
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
    return corners.clip(0, sizes[..., [1, 0, 1, 0]])
