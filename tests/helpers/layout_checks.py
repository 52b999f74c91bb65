"""What the tests of foreign layouts share: reading a folder, and comparing what was read with what was written."""

from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from pycocotools import mask as coco_mask

from dataset_files.conversion_store import Converted, SplitFiles
from dataset_files.layouts import labelme_files
from tests.helpers.layout_writers import ONE_CLASS, WITH_CROWDS, Sample

# A disc of radius 12 around (30, 20) in an image of 40 x 60.
DISC = np.add.outer((np.arange(40) + 0.5 - 20) ** 2, (np.arange(60) + 0.5 - 30) ** 2) <= 144


class ISAT:
    """In place of a reader's module."""

    find = staticmethod(partial(labelme_files.find, key=labelme_files.ISAT))


def mask_of(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W], by pycocotools."""
    if isinstance(segmentation, dict):
        return coco_mask.decode(segmentation).astype(bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))).astype(bool)


def contents(splits: list[SplitFiles]) -> dict[str, Converted]:
    return {split.name: split.convert() for split in splits}


def only(module: ModuleType | type, root: Path, **options) -> Converted:
    """The content of a folder without splits."""
    (split,) = module.find(root, **options)
    return split.convert()


def check_same(converted: Converted, folder: Path, samples: list[Sample], layout: str) -> None:
    """The content is that of `samples`: images, sizes, and for each object class, box, mask, area and crowd."""
    content = converted.content
    assert converted.problems.wrong() == []
    images = {Path(image["file_name"]).name: image for image in content["images"]}
    assert sorted(images) == sorted(sample.name for sample in samples)
    assert [image["id"] for image in content["images"]] == list(range(1, len(images) + 1))
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    names = {category["id"]: category["name"] for category in content["categories"]}
    for sample in samples:
        image = images[sample.name]
        assert (image["height"], image["width"]) == sample.size
        assert (folder / image["file_name"]).is_file() and "\\" not in image["file_name"]
        found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert len(found) == len(sample.things)
        for thing in sample.things:
            (annotation,) = (a for a in found if np.abs(np.subtract(a["bbox"], thing.box())).max() < 0.01)
            assert names[annotation["category_id"]] == ONE_CLASS.get(layout, thing.class_name)
            assert np.array_equal(mask_of(annotation["segmentation"], sample.size), thing.mask(sample.size))
            assert annotation["area"] == thing.mask(sample.size).sum()
            assert annotation["iscrowd"] == (thing.crowd and layout in WITH_CROWDS)


def objects_of(converted: Converted, file_name: str) -> list[dict]:
    ids = [i["id"] for i in converted.content["images"] if i["file_name"].endswith(file_name)]
    return [a for a in converted.content["annotations"] if a["image_id"] in ids]


def classes_of(converted: Converted) -> list[str]:
    names = {c["id"]: c["name"] for c in converted.content["categories"]}
    return [names[a["category_id"]] for a in converted.content["annotations"]]
