"""Check the annotations of a COCO file: mark which are usable, and note all problems.

All checks work on columns. An annotation is parsed again only to describe its problem.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from dataset_files.boxes import FEWEST_OBJECTS, clip, corners_of, ious, judge_format
from dataset_files.coco_file import Annotations, ImageEntries, Reading
from dataset_files.problems import Problems, shown

# IoU of a box and the box around its mask. None of 2,359 objects of COCO was below 0.9, but single objects of correct
# files go down to 0.27. Below 0.1 the two show different things: nothing could be learnt from the mask in that box.
SMALLEST_OVERLAP = 0.1
FAR = 1.0  # image sizes beyond the edge of an image
FRACTION = 1.5  # normalised coordinates lie within -0.5..1.5: outlines may extend a little beyond the image


class AnnotationCheck:
    """Check the A annotations of a COCO file: mark which are valid and complete, and add problems to `problems`.

    `categories` maps category ids to names; `text` is the content of the file.

    Attributes:
        owners: int64 [A], the index of each annotation's image.
        valid: bool [A], annotations that would not make results wrong.
        complete: bool [A], valid annotations with a box, and with a mask where one is needed.
        has_mask: bool [A].
    """

    def __init__(
        self, annotations: Annotations, images: ImageEntries, categories: dict[int, str], problems: Problems, text: str,
        reading: Reading,
    ) -> None:  # fmt: skip
        self.annotations, self.images, self.problems, self.text = annotations, images, problems, text
        self.count = len(annotations.ids)
        self.ids = np.array(annotations.ids, dtype=np.int64)
        self.image_ids = np.array(annotations.image_ids, dtype=np.int64)
        self.owners = find_places(self.image_ids, images.ids)
        self.sizes = images.sizes[self.owners] if len(images.ids) else np.zeros((self.count, 2), dtype=np.int64)
        self.boxes = np.array(annotations.boxes).reshape(-1, 4)
        self.extents = np.concatenate(annotations.masks.extents or [np.zeros((0, 4))])
        self.valid = np.ones(self.count, dtype=bool)
        self.check_references(categories)
        self.check_boxes_and_masks(reading.boxes_from_masks)
        regions = [key for key, name in categories.items() if reading.is_region(name)]
        needs_mask = ~np.isin(annotations.category_ids, regions) & (not reading.boxes_without_masks)
        self.complete, self.has_mask = self.compare_boxes_with_masks(needs_mask)

    def annotation(self, k: int) -> dict:
        return json.loads(self.text[self.annotations.starts[k] : self.annotations.ends[k]])

    def note(self, kind: str, flawed: np.ndarray, value: Callable[[dict, int], object]) -> None:
        """Add a problem of this kind for each annotation k with `flawed[k]`; its message has `value(annotation, k)`."""

        def describe(k: int) -> str:
            owner, found = self.owners[k], shown(value(self.annotation(k), k))
            name = f" ({self.images.file_names[owner]})" if owner >= 0 and self.images.valid[owner] else ""
            return f"annotation {self.ids[k]} of image {self.image_ids[k]}{name}: {found}"

        self.problems.add_all(kind, np.flatnonzero(flawed).tolist(), describe)

    def refuse(self, kind: str, flawed: np.ndarray, value: Callable[[dict, int], object]) -> None:
        """Mark flawed annotations as invalid. Those that were still valid are noted as problems, see `note`."""
        self.note(kind, flawed & self.valid, value)
        self.valid[flawed] = False

    def with_flaw(self, kind: str) -> np.ndarray:
        """Return which annotations have a mask with this kind of problem, bool [A]."""
        return self.among(self.annotations.masks.flaws[kind])

    def among(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.isin(np.arange(self.count), np.array(places, dtype=np.int64))

    def check_references(self, categories: dict[int, str]) -> None:
        self.refuse("unknown image", self.owners < 0, lambda a, k: {"bbox": a["bbox"]})
        # Objects of an unusable image are not reported, since the image itself was.
        self.valid[self.valid] = self.images.valid[self.owners[self.valid]]
        category_ids = np.array(self.annotations.category_ids, dtype=np.int64)
        used = np.unique(category_ids).tolist()
        if used and used[0] == 0 and 0 not in categories and all(number + 1 in categories for number in used):
            # Not corrected, since one class may just as well be wrong throughout the file.
            numbers = f"category_id 0 to {used[-1]}, 'categories' has {min(categories)} to {max(categories)}"
            cause = "it looks as if annotations count from 0 and 'categories' from 1; number both alike"
            self.problems.add("category numbering", f"annotations have {numbers}: {cause}")
        else:
            unknown = ~np.isin(category_ids, list(categories))
            self.refuse("unknown category", unknown, lambda a, k: a["category_id"])
        repeated = find_places(self.ids, self.ids) != np.arange(self.count)
        self.refuse("annotation id", repeated, lambda a, k: {"bbox": a["bbox"]})

    def check_boxes_and_masks(self, boxes_from_masks: bool) -> None:
        masks, sizes = self.annotations.masks, self.sizes
        if boxes_from_masks:
            kinds = ("no mask", "odd polygon", "polygon numbers", "code counts")
            drawn = ~np.logical_or.reduce([self.with_flaw(kind) for kind in kinds])
            corners = self.extents[drawn]
            self.boxes[drawn] = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
        self.refuse("box numbers", ~(np.abs(self.boxes) < 1e30).all(axis=1), lambda a, k: a["bbox"])
        for kind in ("point pairs", "odd polygon", "polygon numbers"):
            self.refuse(kind, self.with_flaw(kind), lambda a, k: a["segmentation"])
        codes, code_sizes = np.array(masks.codes, dtype=np.int64), np.array(masks.sizes).reshape(-1, 2)
        resized = self.among(codes[(code_sizes != sizes[codes]).any(axis=1)])
        self.refuse("code size", resized, lambda a, k: {"size": a["segmentation"]["size"], "image": sizes[k].tolist()})
        self.refuse("code counts", self.with_flaw("code counts"), lambda a, k: a["segmentation"])

    def compare_boxes_with_masks(self, needs_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compare boxes with masks: all boxes together to judge their format, then each box with its own mask.

        `needs_mask`, bool [A], marks the annotations that are incomplete without a mask. Returns which annotations are
        complete and which have a mask, bool [A] each.
        """
        boxes, extents, sizes, valid = self.boxes, self.extents, self.sizes, self.valid
        masks = self.annotations.masks
        no_mask = self.with_flaw("no mask")
        outlined = valid & ~no_mask & ~self.among(masks.codes)
        for k in filter(valid.__getitem__, masks.thin):  # only rasterising shows whether these cover a pixel
            polygons = [polygon for polygon in self.annotation(k)["segmentation"] if len(polygon) >= 6]
            no_mask[k] = not any(coco_mask.area(coco_mask.frPyObjects(polygons, *sizes[k].tolist())))
        with_mask = valid & ~no_mask
        other, loose = judge_format(boxes[with_mask], extents[with_mask], sizes[with_mask])
        fractions = describe_fractions(boxes[valid], extents[outlined])
        is_doubtful = bool(fractions or other)  # for the whole file
        for kind, problem in (("fractions", fractions), ("box format", other), ("loose boxes", loose)):
            if problem:
                self.problems.add(kind, problem)
                break

        inside, drawn = clip(corners_of(boxes), sizes), clip(extents, sizes)
        no_area = ~(boxes[:, 2:] > 0).all(axis=1)
        outside = ~no_area & ~(inside[:, 2:] > inside[:, :2]).all(axis=1)
        boxed = valid & ~no_area & ~outside
        good = boxed & ~no_mask
        if not is_doubtful:  # otherwise all of these problems follow from the box format
            apart = np.zeros(self.count, dtype=bool)
            apart[good] = ious(inside[good], drawn[good]) < SMALLEST_OVERLAP
            self.refuse(
                "apart", apart, lambda a, k: {"bbox": a["bbox"], "mask from x1 y1 to x2 y2": extents[k].tolist()}
            )
            self.note("empty box", valid & no_area, lambda a, k: a["bbox"])
            self.note("box outside", valid & outside, lambda a, k: a["bbox"])
        self.note("no mask", valid & no_mask & needs_mask, lambda a, k: a["segmentation"])
        short = self.with_flaw("short polygon") & ~no_mask
        self.note("short polygon", valid & short, lambda a, k: a["segmentation"])
        edges = sizes[:, [1, 0]]
        reaching = (extents[:, :2] < -FAR * edges).any(axis=1) | (extents[:, 2:] > (1 + FAR) * edges).any(axis=1)
        self.note("far outside", valid & reaching, lambda a, k: {"mask from x1 y1 to x2 y2": extents[k].tolist()})
        return boxed & valid & ~(no_mask & needs_mask), ~no_mask


def find_places(wanted: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Find the first occurrence of each of `wanted` [M] in `ids` [N]. Return indices, int64 [M]; -1 if missing."""
    if not len(ids):
        return np.full(len(wanted), -1)
    order = np.argsort(ids, kind="stable")
    places = order[np.searchsorted(ids[order], wanted).clip(max=len(ids) - 1)]
    return np.where(ids[places] == wanted, places, -1)


def describe_fractions(boxes: np.ndarray, outlines: np.ndarray) -> str:
    """Return a message if all boxes, or all polygons, look like fractions of the image size; "" otherwise.

    `boxes` are xywh [N, 4]; `outlines`, x1y1x2y2 [M, 4], are the boxes around polygons.
    """
    found = [
        name
        for name, of in (("boxes", corners_of(boxes)), ("polygons", outlines))
        if len(of) >= FEWEST_OBJECTS and of.any() and of.max() <= FRACTION and of.min() >= 1 - FRACTION
    ]
    if not found:
        return ""
    return (
        f"all coordinates of {' and '.join(found)} are within 0..1, so that they look like fractions of image sizes; "
        "multiply x and width by the width of the image, y and height by its height"
    )
