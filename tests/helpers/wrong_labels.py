"""Make some labels of a dataset wrong on purpose, and count which of them a list of suspects names."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from tests.helpers.photos import packed_code

KINDS = ("class", "removed", "moved", "added", "doubled")
FITS = 0.5  # IoU from which on a suspect without annotation points to a removed label
MOVED_BY = 0.7  # of the object's width


@dataclass
class WrongLabel:
    """A label that is wrong.

    Attributes:
        annotation: its id; None if the label was removed.
        box: of the object, before the label was made wrong; x, y, width, height.
    """

    kind: str
    image: int
    annotation: int | None
    box: list[float]


def make_wrong(content: dict, share: float, seed: int) -> tuple[dict, list[WrongLabel]]:
    """A COCO file's content with a share of its labels made wrong, each kind equally often; at most one per image.

    Another class, the label removed, moved aside, a label added where another image has an object, or the label doubled
    with a shift of a pixel.
    """
    rng = np.random.default_rng(seed)
    content = copy.deepcopy(content)
    annotations = content["annotations"]
    categories = [category["id"] for category in content["categories"]]
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    number = round(share * len(annotations))
    one_per_image = {annotations[i]["image_id"]: i for i in rng.permutation(len(annotations)).tolist()}
    chosen = rng.permutation(sorted(one_per_image.values()))[:number].tolist()
    next_id = max(a["id"] for a in annotations) + 1
    wrong, removed = [], []
    for place, i in enumerate(chosen):
        kind, a = KINDS[place % len(KINDS)], annotations[i]
        height, width = sizes[a["image_id"]]
        made = WrongLabel(kind, a["image_id"], a["id"], list(a["bbox"]))
        if kind == "class":
            a["category_id"] = int(rng.choice([c for c in categories if c != a["category_id"]]))
        elif kind == "removed":
            removed.append(i)
            made.annotation = None
        elif kind == "moved":
            x, _, w, _ = a["bbox"]
            side = 1 if x + w / 2 < width / 2 else -1
            a.update(shifted(a, round(side * MOVED_BY * w), 0, height, width))
        else:
            source = a
            if kind == "added":
                same_size = [o for o in annotations if sizes[o["image_id"]] == (height, width)]
                others = [o for o in same_size if o["image_id"] != a["image_id"]] or [a]
                source = others[int(rng.integers(len(others)))]
            shift = (0, 0) if source is not a else (1, 1)
            new = source | shifted(source, *shift, height, width) | {"id": next_id, "image_id": a["image_id"]}
            annotations.append(new)
            made.annotation, made.box = next_id, new["bbox"]
            next_id += 1
        wrong.append(made)
    for i in sorted(removed, reverse=True):
        del annotations[i]
    return content, wrong


def shifted(annotation: Mapping, right: int, down: int, height: int, width: int) -> dict:
    """Mask, box and area of an annotation moved by whole pixels; what leaves the image is cut off."""
    mask = coco_mask.decode(packed(annotation, height, width))
    moved = np.zeros_like(mask)
    rows, columns = np.nonzero(mask)
    inside = (rows + down >= 0) & (rows + down < height) & (columns + right >= 0) & (columns + right < width)
    moved[rows[inside] + down, columns[inside] + right] = 1
    code = coco_mask.encode(np.asfortranarray(moved))
    return {
        "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
        "bbox": coco_mask.toBbox(code).tolist(),
        "area": float(moved.sum()),
    }


def packed(annotation: Mapping, height: int, width: int) -> dict:
    code = annotation["segmentation"]
    if isinstance(code, dict) and isinstance(code["counts"], str):
        return {"size": code["size"], "counts": code["counts"].encode()}
    return packed_code(dict(annotation), height, width)


def named(suspects: Sequence[Mapping[str, str]], wrong: Sequence[WrongLabel]) -> list[int]:
    """For each suspect, a row of suspects.csv, the wrong label that it names; -1 if it names none.

    A suspect names a label by its annotation id, or without one by a box that overlaps that of the object. The doubled
    label may be named by either of the two annotations.
    """
    by_id = {w.annotation: i for i, w in enumerate(wrong) if w.annotation is not None}
    found = []
    for suspect in suspects:
        box = np.array([[float(suspect[side]) for side in ("x", "y", "width", "height")]])
        hit = by_id.get(int(suspect["annotation_id"]), -1) if suspect["annotation_id"] else -1
        for i, w in enumerate(wrong):
            by_box = not suspect["annotation_id"] or w.kind == "doubled"
            if hit < 0 and by_box and w.image == int(suspect["image_id"]):
                if coco_mask.iou(box, np.array([w.box], dtype=np.float64), [0])[0, 0] >= FITS:
                    hit = i
        found.append(hit)
    return found
