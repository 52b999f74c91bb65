"""The six images of layout_writers.py as COCO files, in the way of each tool that writes these."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pycocotools import mask as coco_mask

from tests.helpers.layout_writers import CLASSES, Sample, Thing, write_image, write_json


def content(
    samples: Sequence[Sample],
    first_id: int = 1,
    name: Callable[[Sample], str] = lambda sample: sample.name,
    categories: Sequence[dict] | None = None,
    code_of: Callable[[Thing], bool] = lambda thing: True,
) -> dict:
    """A COCO file's content.

    Args:
        first_id: of images, annotations and categories.
        name: `file_name` of a sample.
        code_of: whether an object's mask is written as a run-length code; all others have a polygon per part.
    """
    categories = categories or [{"id": first_id + k, "name": c} for k, c in enumerate(CLASSES)]
    number = {category["name"]: category["id"] for category in categories}
    images, annotations = [], []
    for i, sample in enumerate(samples):
        height, width = sample.size
        images.append({"id": first_id + i, "file_name": name(sample), "height": height, "width": width})
        for thing in sample.things:
            mask = thing.mask(sample.size)
            if thing.hole or thing.crowd or code_of(thing):
                counts = coco_mask.encode(mask.astype("uint8", order="F"))["counts"].decode()
                segmentation: object = {"size": [height, width], "counts": counts}
            else:
                segmentation = [[x1, y1, x2, y1, x2, y2, x1, y2] for x1, y1, x2, y2 in thing.parts]
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": first_id + i,
                    "category_id": number[thing.class_name],
                    "bbox": thing.box(),
                    "area": int(mask.sum()),
                    "iscrowd": int(thing.crowd),
                    "segmentation": segmentation,
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco_2017(root: Path, samples: Sequence[Sample]) -> None:
    for split, some in (("train", samples[:4]), ("val", samples[4:])):
        for sample in some:
            write_image(root / f"{split}2017" / sample.name, sample)
        write_json(root / "annotations" / f"instances_{split}2017.json", content(some))


def write_coco_without_year(root: Path, samples: Sequence[Sample]) -> None:
    for split, some in (("train", samples[:4]), ("val", samples[4:])):
        for sample in some:
            write_image(root / "images" / split / sample.name, sample)
        write_json(root / "annotations" / f"instances_{split}.json", content(some))


def write_roboflow(root: Path, samples: Sequence[Sample]) -> None:
    """Ids from 0, and an unused category 0 that all others name as their supercategory."""
    categories = [{"id": 0, "name": "things", "supercategory": "none"}]
    categories += [{"id": k, "name": c, "supercategory": "things"} for k, c in enumerate(CLASSES, start=1)]
    for split, some in (("train", samples[:4]), ("valid", samples[4:])):
        for sample in some:
            write_image(root / split / sample.name, sample)
        write_json(root / split / "_annotations.coco.json", content(some, 0, categories=categories))


def write_cvat(root: Path, samples: Sequence[Sample]) -> None:
    for sample in samples:
        write_image(root / "images" / "default" / sample.name, sample)
    write_json(root / "annotations" / "instances_default.json", content(samples))


def write_label_studio(root: Path, samples: Sequence[Sample]) -> None:
    for sample in samples:
        write_image(root / "images" / sample.name, sample)
    prefix = "..\\..\\label-studio\\media\\upload\\1\\"
    write_json(root / "result.json", content(samples, 0, lambda sample: prefix + sample.name))


def write_one_json(root: Path, samples: Sequence[Sample]) -> None:
    """As labelme2coco, makesense and supervision write: one file of any name, and an unused `_background_`."""
    for sample in samples:
        write_image(root / "photos" / sample.name, sample)
    categories = [{"id": k, "name": c} for k, c in enumerate(("_background_", *CLASSES))]
    write_json(root / "export.json", content(samples, 1, categories=categories))


def write_lvis_like(root: Path, samples: Sequence[Sample]) -> None:
    """`coco_url` in place of `file_name`, and polygons where a mask has no hole."""
    for sample in samples:
        write_image(root / "images" / sample.name, sample)
    whole = content(samples, code_of=lambda thing: False)
    for image in whole["images"]:
        image["coco_url"] = f"http://images.example/{image.pop('file_name').replace(' ', '%20')}"
    write_json(root / "lvis.json", whole)


COCO_WRITERS: dict[str, Callable[[Path, Sequence[Sample]], None]] = {
    "COCO 2017": write_coco_2017,
    "COCO without a year": write_coco_without_year,
    "Roboflow": write_roboflow,
    "CVAT COCO": write_cvat,
    "Label Studio": write_label_studio,
    "one COCO JSON": write_one_json,
    "LVIS-like": write_lvis_like,
}
