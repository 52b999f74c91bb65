"""Draw a stand-in for the folder of real photos, for those who do not have it.

`coco_tiny` and `voc_tiny` come out in the layouts and with the peculiarities of the real ones: ids with gaps, polygons,
crowds as uncompressed run lengths, images of different sizes; difficult objects, parts, an object without mask.
"""

import json
import shutil
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tests.helpers.photos import THREE_PHOTOS, packed_code
from tests.helpers.project import ROOT
from train_utils.demo_dataset import make_demo_dataset

IMAGES = 24  # per split
CROWD_EVERY = 4  # images
VOID = 255
VOC_CLASSES = json.loads((ROOT / "pascal_voc_indices.json").read_text())  # "1".."20" -> name


def draw_data(folder: Path) -> Path:
    """Draw both datasets into the folder, which must not exist or be empty, and return it."""
    make_demo_dataset(folder / "coco_tiny", num_train=IMAGES, num_val=IMAGES)
    voc = folder / "voc_tiny" / "VOCdevkit" / "VOC2012"
    for name in ("Annotations", "JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    for split in ("train", "val"):
        images = folder / "coco_tiny" / f"{split}2017"
        file = folder / "coco_tiny" / "annotations" / f"instances_{split}2017.json"
        content = as_in_coco(json.loads(file.read_text()), images)
        file.write_text(json.dumps(content))
        write_voc(voc, split, content, images)
    return folder


# ---------------------------------------------------------------------------------------------------------------- COCO


def as_in_coco(content: dict, images: Path) -> dict:
    """The drawn dataset with COCO's 80 categories, forms of segmentation and crowds; renames the files of `images`."""
    names = json.loads((ROOT / "coco91_indices.json").read_text())
    categories = [{"id": int(label), "name": name} for label, name in names.items()]
    new_ids = dict(zip((record["id"] for record in content["images"]), image_ids(images.name, content["images"])))
    records, annotations, numbers = [], [], count(1)
    for k, record in enumerate(content["images"]):
        record = record | {"id": new_ids[record["id"]]}
        old_name, record["file_name"] = record["file_name"], f"{record['id']:012d}.jpg"
        (images / old_name).rename(images / record["file_name"])
        records.append(record)
        objects = [a for a in content["annotations"] if new_ids[a["image_id"]] == record["id"]]
        for annotation in [*map(in_cocos_form, objects), *([crowd(record)] if k % CROWD_EVERY == 3 else [])]:
            number = next(numbers)
            label = categories[number % len(categories)]["id"]
            annotations.append(annotation | {"id": number, "image_id": record["id"], "category_id": label})
    return {"images": records, "annotations": annotations, "categories": categories}


def image_ids(folder: str, records: list[dict]) -> list[int]:
    """New ids; the first three of the validation images have those that the tests ask for."""
    return [*THREE_PHOTOS, *range(500_001, 500_001 + len(records))][: len(records)] if folder == "val2017" else [
        1000 + 7 * k for k in range(len(records))
    ]  # fmt: skip


def in_cocos_form(annotation: dict) -> dict:
    """Boxes around polygons to a hundredth of a pixel; run lengths that are not compressed."""
    outlines = annotation["segmentation"]
    if isinstance(outlines, list):
        points = np.array(outlines[0]).reshape(-1, 2)
        return annotation | {"bbox": [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).round(2).tolist()]}
    return annotation | {"segmentation": run_lengths(coco_mask.decode(outlines))}


def crowd(record: dict) -> dict:
    """Two groups of pixels in the upper corners, as a crowd."""
    plane = np.zeros((record["height"], record["width"]), dtype=np.uint8)
    plane[2:9, 3:20] = plane[4:12, -20:-3] = 1
    code = coco_mask.encode(np.asfortranarray(plane))
    box, area = coco_mask.toBbox(code).tolist(), int(plane.sum())
    return {"segmentation": run_lengths(plane), "bbox": box, "area": area, "iscrowd": 1}


def run_lengths(plane: np.ndarray) -> dict:
    """COCO's uncompressed code of a mask [H, W]: lengths of runs down the columns, the first one of zeros."""
    pixels = np.concatenate(([0], plane.T.ravel(), [2]))
    ends = np.flatnonzero(np.diff(pixels))
    return {"size": list(plane.shape), "counts": np.diff(ends, prepend=0).tolist()}


# ----------------------------------------------------------------------------------------------------------------- VOC


def write_voc(voc: Path, split: str, content: dict, images: Path) -> None:
    """The same images and objects in VOC's layout, under VOC's classes in turn."""
    names = []
    for k, record in enumerate(content["images"]):
        name = f"2012_{record['id']:06d}"
        names.append(name)
        shutil.copy(images / record["file_name"], voc / "JPEGImages" / f"{name}.jpg")
        objects = [a for a in content["annotations"] if a["image_id"] == record["id"] and not a["iscrowd"]]
        write_voc_annotation(voc, name, record, objects, difficult=k == 1, without_mask=k == 2)
    (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")


def write_voc_annotation(
    voc: Path, name: str, record: dict, objects: list[dict], difficult: bool, without_mask: bool
) -> None:
    """XML and both masks; `difficult` is said of all objects, and the first one may be missing in the masks."""
    height, width = record["height"], record["width"]
    instances, classes = (np.zeros((height, width), dtype=np.uint8) for _ in range(2))
    xml = f"<annotation><filename>{name}.jpg</filename><size><width>{width}</width><height>{height}</height>"
    xml += "<depth>3</depth></size>"
    for k, annotation in enumerate(objects):
        plane = coco_mask.decode(packed_code(annotation, height, width)).astype(bool)
        label = annotation["id"] % (len(VOC_CLASSES) - 1) + 1  # as in the real files, not every class occurs
        xml += object_xml(VOC_CLASSES[str(label)], plane, difficult)
        if not (without_mask and k == 0):
            inner = inside(plane)
            instances[plane], classes[plane] = VOID, VOID
            instances[inner], classes[inner] = k + 1, label
    (voc / "Annotations" / f"{name}.xml").write_text(xml + "</annotation>")
    save_palette(instances, voc / "SegmentationObject" / f"{name}.png")
    save_palette(classes, voc / "SegmentationClass" / f"{name}.png")


def object_xml(name: str, plane: np.ndarray, difficult: bool) -> str:
    """Corners count from 1; every object has a part with a box of its own."""
    rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    low, high = (columns[0] + 1, rows[0] + 1), (columns[-1] + 1, rows[-1] + 1)
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (*low, *high)))
    part = f"<part><name>head</name><bndbox>{box}</bndbox></part>"
    return f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox>{box}</bndbox>{part}</object>"


def inside(plane: np.ndarray) -> np.ndarray:
    """The mask without the pixels that have a neighbour outside it; those are void, as VOC's contours are."""
    padded = np.pad(plane, 1)
    return plane & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def save_palette(indices: np.ndarray, path: Path) -> None:
    image = Image.fromarray(indices, mode="P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    image.save(path)
