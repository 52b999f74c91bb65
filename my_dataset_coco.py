"""Annotations in COCO's form and images in, (image, target) items out.

The annotations stay in their file until an item wants them (dataset_files/coco_index.py says where they are), so that
COCO's million costs no worker a Python object.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from dataset_files.coco_check import clipped_corners
from dataset_files.coco_index import AS_WRITTEN, Reading, open_index
from dataset_files.conversion import SplitFiles
from dataset_files.conversion_store import OpenedSplit, open_split_index
from dataset_files.dataset import ObjectCounts
from dataset_files.file_names import resolve
from dataset_files.image_reading import read_image
from dataset_files.mask_measures import box_of_mask
from network_files import InstanceMasks
from network_files.masks.rle import decode_crops
from transforms import Transform, collate_fn


class CocoDetection(Dataset):
    """Images and instances of one split, from a COCO file.

    Folders: `root/annotations/instances_{dataset}{years}.json` and `root/{dataset}{years}/`. `of_split` opens
    annotations of any layout.

    For training, crowds are left out, and so are objects without a box or mask and images that are then without object.
    Any other split keeps every image and every crowd.

    Args:
        skip_bad: leave out what would make results wrong, and note it in `problems`, instead of raising.
        keep_empty: train on images that have no annotation at all, too: all that they show is background.
        boxes_from_masks, crowds_are_objects: see `Reading`.

    Attributes:
        class_names: label -> name, for the file's categories.
        category_ids: label -> category id, in the ground truth and in written results.
        source: what messages name: the annotation file, or the file or folder that it was converted from.
        problems: what is wrong with it.
        exif: see `read_image`.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the JSON cannot be used, or holds what would make results wrong; the message says where and why.
    """

    collate_fn = staticmethod(collate_fn)
    kept_in_evaluation = "kept"  # what training leaves out

    def __init__(
        self,
        root: str | Path,
        dataset: str = "train",
        transforms: Transform | None = None,
        years: str = "2017",
        *,
        skip_bad: bool = False,
        keep_empty: bool = False,
        boxes_from_masks: bool = False,
        crowds_are_objects: bool = False,
    ):
        root = Path(root)
        split = SplitFiles(
            dataset, root / "annotations" / f"instances_{dataset}{years}.json", root / f"{dataset}{years}"
        )
        for path in (split.source, split.image_folder):
            if not path.exists():
                raise FileNotFoundError(f"{path}: not found (COCO's layout is annotations/instances_*.json, *{years}/)")
        reading = Reading(boxes_from_masks, crowds_are_objects)
        index = open_index(split.source, reading)
        opened = OpenedSplit(index, index.problems)
        self.begin(split, opened, reading, dataset == "train", transforms, skip_bad, keep_empty)

    @classmethod
    def of_split(
        cls,
        split: SplitFiles,
        training: bool,
        transforms: Transform | None = None,
        *,
        reading: Reading = AS_WRITTEN,
        skip_bad: bool = False,
        keep_empty: bool = False,
        key: str = "",
        exif: str | None = None,
    ) -> "CocoDetection":
        """A split of any layout; annotations that are no COCO file, or a flawed one, are converted first.

        Args:
            key: see `open_split_index`.
        """
        self = cls.__new__(cls)
        opened = open_split_index(split, reading, key)
        resolved = resolve(opened.index.file_names.tolist(), split.image_folder)
        opened.problems.update(resolved.problems)
        if resolved.problems.counts:
            opened.index.file_names = np.array(resolved.names, dtype=np.str_)
        self.begin(split, opened, reading, training, transforms, skip_bad, keep_empty)
        self.exif = exif
        return self

    def begin(
        self,
        split: SplitFiles,
        opened: OpenedSplit,
        reading: Reading,
        training: bool,
        transforms: Transform | None,
        skip_bad: bool,
        keep_empty: bool,
    ) -> None:
        self.source, self.image_folder = split.source, split.image_folder
        self.index, self.problems = opened.index, opened.problems
        self.reading = reading
        self.problems.require_none_wrong(self.source, skip_bad)
        self.category_ids = labels_of_categories(list(self.index.categories))
        self.class_names = {label: self.index.categories[category] for label, category in self.category_ids.items()}
        self.label_of = {category: label for label, category in self.category_ids.items()}
        self.training = training
        self.transforms = transforms
        self.exif: str | None = None
        self.pictures = np.arange(len(self.index.image_ids))
        self.own_images = self.pictures  # with those that training leaves out
        self.without_objects = 0
        if training:
            self.pictures = np.flatnonzero((self.index.usable_counts() > 0) | (keep_empty & self.index.bare))
            self.without_objects = len(self.index.image_ids) - len(self.pictures)
        # Whether the ground truth is the file as it stands.
        self.is_whole = not self.problems.counts and reading == AS_WRITTEN and self.index.path == self.source
        self._coco = None

    def adopt_classes(self, class_names: Mapping[int, str], category_ids: Mapping[int, int]) -> list[str]:
        """Take the labels and category ids of another table, matched by name.

        Objects of classes that the table lacks are left out.

        Returns:
            The names of those classes that occur in objects here.
        """
        label_of_name = {name: label for label, name in class_names.items()}
        own_names = self.index.categories
        label_of = {c: label_of_name[name] for c, name in own_names.items() if name in label_of_name}
        lacking = [c for c in own_names if c not in label_of]
        if label_of != self.label_of or dict(category_ids) != self.category_ids:
            self.is_whole = self.is_whole and not lacking and all(category_ids[k] == c for c, k in label_of.items())
        self.label_of, self.class_names, self.category_ids = label_of, dict(class_names), dict(category_ids)
        self._coco = None
        occurring = set(np.unique(self.index.category_ids).tolist())
        return [own_names[c] for c in lacking if c in occurring]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        """Item i.

        Returns:
            Image uint8 [3, H, W] and a dict: `boxes` float32 [N, 4], x1y1x2y2 in pixels of the picture, `labels`
            int64 [N], `masks` InstanceMasks, `image_id` int, `area` float32 [N], `iscrowd` int64 [N].
        """
        path = self.image_path(i)
        image = read_image(path, self.get_height_and_width(i), self.exif)
        target = self.target(i)
        if tuple(image.shape[-2:]) != target["masks"].size:
            height, width = target["masks"].size
            raise ValueError(
                f"{path}: the image is {image.shape[-1]}x{image.shape[-2]}, "
                f"its annotations in {self.source} say {width}x{height}"
            )
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        return image, target

    def target(self, i: int) -> dict:
        """The target of item i, as `__getitem__` returns it but before the transforms."""
        size = self.get_height_and_width(i)
        annotations = self.annotations(i, only_usable=self.training)
        try:
            masks = InstanceMasks.from_crops(decode_crops([packed_code(a, *size) for a in annotations]), size)
        except ValueError as error:
            raise ValueError(f"{self.source}: a mask of image {self.image_id(i)} {error}") from error
        xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
        pixels = masks.areas().tolist()
        areas = [float(a.get("area", own)) for a, own in zip(annotations, pixels)]
        crowds = [int(bool(a.get("iscrowd", 0)) or own == 0) for a, own in zip(annotations, pixels)]
        return {
            "boxes": torch.from_numpy(clipped_corners(xywh, np.array(size)).astype(np.float32)),
            "labels": torch.tensor([self.label_of[a["category_id"]] for a in annotations], dtype=torch.int64),
            "masks": masks,
            "image_id": self.image_id(i),
            "area": torch.tensor(areas, dtype=torch.float32),
            "iscrowd": torch.tensor(crowds, dtype=torch.int64),
        }

    def annotations(self, i: int, only_usable: bool) -> list[dict]:
        """The annotations of item i as in the file, but for what `reading` changes and classes that are left out."""
        annotations = self.index.annotations(self.pictures[i], only_usable)
        annotations = [a for a in annotations if a["category_id"] in self.label_of]
        for annotation in annotations:
            if self.reading.boxes_from_masks:
                annotation["bbox"] = box_of_mask(annotation["segmentation"]) or annotation["bbox"]
            if self.reading.crowds_are_objects:
                annotation["iscrowd"] = 0
        return annotations

    def image_id(self, i: int) -> int:
        return int(self.index.image_ids[self.pictures[i]])

    def get_height_and_width(self, i: int) -> tuple[int, int]:
        """Of image i, from the annotations, without opening it."""
        height, width = self.index.sizes[self.pictures[i]].tolist()
        return height, width

    def image_names(self) -> list[str]:
        """The file of each image below `image_folder`."""
        return self.index.file_names[self.pictures].tolist()

    def image_path(self, i: int) -> Path:
        return self.image_folder / str(self.index.file_names[self.pictures[i]])

    def drop_items(self, items: Sequence[int]) -> None:
        """Continue without these items; the others close up."""
        self.pictures = np.delete(self.pictures, np.array(items, dtype=np.int64))
        self.is_whole = self.is_whole and not len(items)

    def counts(self) -> ObjectCounts:
        """How many objects of its images the split has, and what is not trained on."""
        chosen = np.isin(self.index.owners(), self.own_images if self.training else self.pictures)
        crowds = self.index.crowds[chosen]
        per_image = np.bincount(self.index.owners()[chosen], minlength=1)
        empty = int(self.index.bare[self.pictures].sum()) if self.training else 0
        most = int(per_image.max(initial=0))
        return ObjectCounts(len(crowds), int(crowds.sum()), most, self.without_objects, empty)

    def restrict_to(self, names: set[str]) -> None:
        """Count only images of these names as this split's own, of a file that holds another split as well."""
        own = np.array([name in names for name in self.index.file_names.tolist()], dtype=bool)
        self.own_images = np.flatnonzero(own)
        self.without_objects = len(self.own_images) - len(self.pictures)

    def objects_per_class(self) -> dict[str, tuple[int, int]]:
        """Class name -> objects that are no crowds, and crowds."""
        owners = self.index.owners()
        here = np.isin(owners, self.own_images if self.training else self.pictures)
        table = {}
        for category, label in self.label_of.items():
            crowds = self.index.crowds[here & (self.index.category_ids == category)]
            table[self.class_names[label]] = (int((~crowds).sum()), int(crowds.sum()))
        return table

    def classes_of_images(self) -> list[list[int]]:
        """The category ids of the objects of each item, in training of those that are trained on."""
        chosen = self.index.usable if self.training else np.ones(len(self.index.usable), dtype=bool)
        return [
            np.unique(self.index.category_ids[first:end][chosen[first:end]]).tolist()
            for first, end in zip(self.index.first[self.pictures], self.index.first[self.pictures + 1])
        ]

    def __getstate__(self) -> dict:
        """What a loader worker gets where processes are not forked; the ground truth cannot be pickled."""
        return self.__dict__ | {"_coco": None}

    @property
    def coco(self) -> Any:
        """Ground truth for the evaluation, made on first use: a COCO object of hotcoco."""
        if self._coco is None and self.is_whole:
            with contextlib.suppress(ValueError):  # hotcoco's, of a field that nothing here needs
                self._coco = coco_object(str(self.source))
        if self._coco is None:
            self._coco = coco_object(self.coco_content())
        return self._coco

    def coco_content(self) -> dict:
        """The split as the content of a COCO file, without what was left out and in a form that every reader takes.

        Objects without a mask become crowds that fill their box, which the metrics neither reward nor punish.
        """
        images, annotations = [], []
        for i, picture in enumerate(self.pictures):
            height, width = self.get_height_and_width(i)
            name = str(self.index.file_names[picture])
            images.append({"id": self.image_id(i), "height": height, "width": width, "file_name": name})
            for a in self.annotations(i, only_usable=False):
                code = packed_code(a, height, width)
                area = float(coco_mask.area(code))
                if area == 0:
                    code, a = box_code(a["bbox"], height, width), a | {"iscrowd": 1}
                counts = code["counts"]
                annotations.append(
                    {
                        "id": int(a["id"]),
                        "image_id": self.image_id(i),
                        "category_id": self.category_ids[self.label_of[a["category_id"]]],
                        "bbox": a["bbox"],
                        "area": a.get("area", area),
                        "iscrowd": int(bool(a.get("iscrowd"))),
                        "segmentation": code | {"counts": counts.decode() if isinstance(counts, bytes) else counts},
                    }
                )
        if min((a["id"] for a in annotations), default=1) < 1:  # the metrics take id 0 for "no match"
            annotations = [a | {"id": number} for number, a in enumerate(annotations, start=1)]
        categories = [{"id": key, "name": self.class_names[label]} for label, key in self.category_ids.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def box_code(box: Sequence[float], height: int, width: int) -> dict:
    """The packed run-length code of a box [x, y, width, height], clipped to its image."""
    x1, y1, x2, y2 = clipped_corners(np.array([box], dtype=np.float64), np.array((height, width)))[0].tolist()
    return coco_mask.frPyObjects([[x1, y1, x2, y1, x2, y2, x1, y2]], height, width)[0]


def coco_object(source: str | dict) -> Any:
    """Return hotcoco's COCO object of an annotation file or its content, quietly."""
    from hotcoco import COCO  # only the main process of an evaluation needs it

    with contextlib.redirect_stdout(io.StringIO()):
        if isinstance(source, str):
            return COCO(source)
        coco = COCO()
        coco.dataset = source
        coco.createIndex()
        return coco


def labels_of_categories(category_ids: Sequence[int]) -> dict[int, int]:
    """Label -> category id, for all categories of a data set.

    Labels are the ids themselves whenever these start at 1 or above and the largest is at most twice their number
    (COCO: 90 for 80), so that published weights fit. Any other numbering becomes 1..K in the order of the ids.
    """
    ids = sorted(category_ids)
    if ids and ids[0] >= 1 and ids[-1] <= 2 * len(ids):
        return {i: i for i in ids}
    return dict(enumerate(ids, start=1))


def packed_code(annotation: dict, height: int, width: int) -> dict:
    """The packed run-length code of an annotation's mask: polygons, a list of counts, or packed already.

    Polygons of fewer than three points are passed over; pycocotools would take two points for a box.

    Raises:
        ValueError: the counts are none.
    """
    mask = annotation["segmentation"]
    polygons = [polygon for polygon in mask if len(polygon) >= 6] if isinstance(mask, list) else []
    if polygons:
        codes = coco_mask.frPyObjects(polygons, height, width)
        return codes[0] if len(codes) == 1 else coco_mask.merge(codes)
    counts = (mask["counts"] if isinstance(mask, dict) else None) or [height * width]
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": counts.encode()}
