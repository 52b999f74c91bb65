"""Dataset of images with annotations in COCO's form; its items are (image, target).

The annotations stay in their file until an item needs them (dataset_files/coco_index.py stores their positions), so
that no loader worker holds a million annotations as Python objects.
"""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from dataset_files.boxes import clip, corners_of
from dataset_files.coco_index import AS_WRITTEN
from dataset_files.coco_masks import box_of_mask, packed_code
from dataset_files.conversion_store import OpenedSplit, SplitFiles, open_split_index
from dataset_files.dataset import EVERYTHING, ItemPlan, ObjectCounts
from dataset_files.stored_images import RGB, ImageForm, naming_image, open_image, read_stored, upright_rgb
from network_files import InstanceMasks
from network_files.masks.rle import decode_crops
from transforms import Transform, collate_fn


class CocoDetection(Dataset):
    """Images and instances of one split; implements `InstanceDataset`, which describes the members.

    Training leaves out crowds, objects without a box or mask, and images in which no object is left. Any other
    split keeps every image and every crowd.

    Args:
        root: a folder with `annotations/instances_{dataset}{years}.json` and `{dataset}{years}/`; or an opened split of
            any layout.
        dataset: "train" for training; any other name for evaluation.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the JSON cannot be used, or would make results wrong; the message states where and why.
    """

    collate_fn = staticmethod(collate_fn)

    def __init__(
        self,
        root: str | Path | OpenedSplit,
        dataset: str = "train",
        transforms: Transform | None = None,
        years: str = "2017",
        *,
        plan: ItemPlan = EVERYTHING,
    ):
        opened = root if isinstance(root, OpenedSplit) else open_split_index(coco_split(Path(root), dataset, years))
        self.source, self.image_folder = opened.split.source, opened.split.image_folder
        self.index, self.reading, self.problems = opened.index, opened.reading, opened.problems
        self.problems.require_none_wrong(self.source, plan.skip_bad)
        self.transforms = transforms
        self.form = plan.form
        self.category_ids = labels_of_categories(list(self.index.categories))
        self.class_names = {label: self.index.categories[category] for label, category in self.category_ids.items()}
        self.label_of = {category: label for label, category in self.category_ids.items()}
        self.training = dataset == "train"
        self.is_region = self.index.regions()
        names = self.index.file_names.tolist()
        is_own = np.array([plan.images is None or name in plan.images for name in names], dtype=bool)
        self.own_images = np.flatnonzero(is_own)  # including those that training leaves out
        self.image_indices = self.own_images
        if self.training:
            is_kept = (self.index.usable_counts() > 0) | (plan.keep_empty & self.index.bare)
            self.image_indices = np.flatnonzero(is_own & is_kept)
        self.without_objects = len(self.own_images) - len(self.image_indices)
        self._coco: Any = None

    def remap_categories(self, class_names: Mapping[int, str], category_ids: Mapping[int, int]) -> "CocoDetection":
        remapped = copy.copy(self)
        label_of_name = {name: label for label, name in class_names.items()}
        remapped.label_of = {c: label_of_name[n] for c, n in self.index.categories.items() if n in label_of_name}
        remapped.class_names, remapped.category_ids = dict(class_names), dict(category_ids)
        remapped._coco = None
        return remapped

    def drop_items(self, items: Sequence[int]) -> "CocoDetection":
        smaller = copy.copy(self)
        smaller.image_indices = np.delete(self.image_indices, np.array(items, dtype=np.int64))
        smaller._coco = None
        return smaller

    def __len__(self) -> int:
        return len(self.image_indices)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        """Return (image, target) of item i. The image is read as `form` specifies; see `InstanceDataset`."""
        path = self.image_path(i)
        image = read_image(path, self.get_height_and_width(i), self.form)
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
        size = self.get_height_and_width(i)
        annotations = self.annotations(i, only_usable=self.training)
        masks = self.masks([packed_code(a["segmentation"], *size) for a in annotations], i)
        pixels = masks.areas().tolist()
        areas = [float(a.get("area", own)) for a, own in zip(annotations, pixels)]
        needs_mask = not self.reading.boxes_without_masks
        crowds = [int(bool(a.get("iscrowd", 0)) or (own == 0 and needs_mask)) for a, own in zip(annotations, pixels)]
        target = {
            "boxes": boxes_of(annotations, size),
            "labels": torch.tensor([self.label_of[a["category_id"]] for a in annotations], dtype=torch.int64),
            "masks": masks,
            "image_id": self.image_id(i),
            "area": torch.tensor(areas, dtype=torch.float32),
            "iscrowd": torch.tensor(crowds, dtype=torch.int64),
        }
        if not needs_mask:
            target["has_mask"] = torch.tensor(pixels, dtype=torch.int64) > 0
        if self.reading.ignore_regions:
            found = self.index.annotations(self.image_indices[i], among=self.index.crowds | self.is_region)
            target["ignore_regions"] = self.masks([code_of(a, size) for a in found], i)
        return target

    def masks(self, codes: Sequence[dict], i: int) -> InstanceMasks:
        size = self.get_height_and_width(i)
        try:
            return InstanceMasks.from_crops(decode_crops(codes), size)
        except ValueError as error:
            raise ValueError(f"{self.source}: a mask of image {self.image_id(i)} {error}") from error

    def boxes(self, i: int) -> Tensor:
        """Return the boxes of item i's objects that can be trained on, [N, 4], without decoding masks."""
        return boxes_of(self.annotations(i, only_usable=True), self.get_height_and_width(i))

    def annotations(self, i: int, only_usable: bool) -> list[dict]:
        """Return the annotations of item i as `reading` interprets them, except those of classes without a label."""
        annotations = self.index.annotations(self.image_indices[i], only_usable)
        annotations = [a for a in annotations if a["category_id"] in self.label_of]
        for annotation in annotations:
            if self.reading.boxes_from_masks:
                annotation["bbox"] = box_of_mask(annotation["segmentation"]) or annotation["bbox"]
            if self.reading.crowds_are_objects:
                annotation["iscrowd"] = 0
            if self.reading.boxes_without_masks and not annotation["segmentation"]:
                annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        return annotations

    def image_id(self, i: int) -> int:
        return int(self.index.image_ids[self.image_indices[i]])

    def get_height_and_width(self, i: int) -> tuple[int, int]:
        height, width = self.index.sizes[self.image_indices[i]].tolist()
        return height, width

    def image_names(self) -> list[str]:
        return self.index.file_names[self.image_indices].tolist()

    def image_path(self, i: int) -> Path:
        return self.image_folder / str(self.index.file_names[self.image_indices[i]])

    def own_objects(self) -> np.ndarray:
        """Mark the objects of the index that are in this split, bool [A], even in images that training leaves out."""
        return np.isin(self.index.owners(), self.own_images if self.training else self.image_indices)

    def counts(self) -> ObjectCounts:
        chosen = self.own_objects()
        regions = int((chosen & self.is_region).sum())
        chosen &= ~self.is_region
        crowds, without_mask = self.index.crowds[chosen], int((chosen & self.index.usable & ~self.index.has_mask).sum())
        most = int(np.bincount(self.index.owners()[chosen], minlength=1).max())
        empty = int(self.index.bare[self.image_indices].sum()) if self.training else 0
        return ObjectCounts(len(crowds), int(crowds.sum()), most, self.without_objects, empty, regions, without_mask)

    def objects_per_class(self) -> dict[str, tuple[int, int]]:
        chosen, table = self.own_objects(), {}
        for category, label in self.label_of.items():
            crowds = self.index.crowds[chosen & (self.index.category_ids == category)]
            table[self.class_names[label]] = (int((~crowds).sum()), int(crowds.sum()))
        return table

    def classes_of_images(self) -> list[list[int]]:
        of_all = self.index.classes_of_images(only_usable=self.training)
        return [of_all[place] for place in self.image_indices]

    def checksum(self) -> str:
        chosen = np.isin(self.index.owners(), self.image_indices)
        names = "\n".join(self.image_names()).encode(errors="surrogatepass")
        return sha256(names + self.index.checksums[chosen].tobytes()).hexdigest()[:16]

    def __getstate__(self) -> dict:
        """Return the state to pickle for spawned loader workers, without `_coco`, which cannot be pickled."""
        return self.__dict__ | {"_coco": None}

    @property
    def coco(self) -> Any:
        """The ground truth for the evaluation, as hotcoco's COCO object; created on first use."""
        if self._coco is None and self.is_whole():
            with contextlib.suppress(ValueError):  # hotcoco rejects a field that is not needed here
                self._coco = coco_object(str(self.source))
        if self._coco is None:
            self._coco = coco_object(self.coco_content())
        return self._coco

    def is_whole(self) -> bool:
        """Whether the evaluation can use the annotation file itself as ground truth, without any change."""
        as_written = self.index.path == self.source and self.reading._replace(ignore_regions=False) == AS_WRITTEN
        as_written &= not (self.problems.counts or self.is_region.any())
        own_ids = all(self.category_ids[label] == category for category, label in self.label_of.items())
        all_classes = self.label_of.keys() == self.index.categories.keys()
        return as_written and own_ids and all_classes and len(self) == len(self.index.image_ids)

    def coco_content(self) -> dict:
        """Build the content of a COCO file that has only the items of this dataset, and that every reader accepts.

        Objects without a mask become crowds that fill their box, which the metrics neither reward nor penalise, unless
        they are used: then their segmentation is []. Regions of the class `ignore` become a crowd of every class.
        """
        images, annotations, needs_mask = [], [], not self.reading.boxes_without_masks
        regions: list[dict] = []
        for i, place in enumerate(self.image_indices):
            height, width = self.get_height_and_width(i)
            name = str(self.index.file_names[place])
            images.append({"id": self.image_id(i), "height": height, "width": width, "file_name": name})
            for a in self.annotations(i, only_usable=False):
                category = self.category_ids[self.label_of[a["category_id"]]]
                annotations.append(portable(a, category, self.image_id(i), (height, width), needs_mask))
            for a in self.index.annotations(int(place), among=self.is_region):
                if not a.get("void"):  # as crowds count by their box, void outlines would hide the whole image
                    a = portable(a | {"iscrowd": 1}, 0, self.image_id(i), (height, width))
                    regions += [a | {"category_id": category} for category in self.category_ids.values()]
        last = max((a["id"] for a in annotations), default=0)
        annotations += [a | {"id": number} for number, a in enumerate(regions, start=last + 1)]
        if min((a["id"] for a in annotations), default=1) < 1:  # the metrics take id 0 for "no match"
            annotations = [a | {"id": number} for number, a in enumerate(annotations, start=1)]
        categories = [{"id": key, "name": self.class_names[label]} for label, key in self.category_ids.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def coco_split(root: Path, dataset: str, years: str) -> SplitFiles:
    """Return the files of a split in COCO's own layout."""
    split = SplitFiles(dataset, root / "annotations" / f"instances_{dataset}{years}.json", root / f"{dataset}{years}")
    for path in (split.source, split.image_folder):
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found (COCO's layout is annotations/instances_*.json, *{years}/)")
    return split


def portable(a: dict, category: int, image_id: int, size: tuple[int, int], needs_mask: bool = True) -> dict:
    """Convert an annotation to a form that every COCO reader accepts. If it has no mask, see `coco_content`."""
    code = packed_code(a["segmentation"], *size)
    area = float(coco_mask.area(code))
    segmentation: dict | list = []
    if area or needs_mask:
        a, code = (a, code) if area else (a | {"iscrowd": 1}, box_code(a, size))
        segmentation = code | {"counts": code["counts"].decode()}
    entry = {"id": int(a["id"]), "image_id": image_id, "category_id": category, "bbox": a["bbox"]}
    return entry | {
        "area": a.get("area", area), "iscrowd": int(bool(a.get("iscrowd"))), "segmentation": segmentation,
    }  # fmt: skip


def code_of(a: dict, size: tuple[int, int]) -> dict:
    """Return the packed run-length code of an annotation's mask, or of its box if it has none."""
    code = packed_code(a["segmentation"], *size)
    return code if coco_mask.area(code) else box_code(a, size)


def box_code(a: dict, size: tuple[int, int]) -> dict:
    """Return the packed run-length code of an annotation's box, clipped to an image of this height and width."""
    x1, y1, x2, y2 = clip(corners_of(np.array([a["bbox"]], dtype=np.float64)), np.array(size))[0].tolist()
    return coco_mask.frPyObjects([[x1, y1, x2, y1, x2, y2, x1, y2]], *size)[0]


def boxes_of(annotations: Sequence[dict], size: tuple[int, int]) -> Tensor:
    """Return the boxes of annotations, x1y1x2y2 [N, 4], clipped to an image of this height and width."""
    xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    return torch.from_numpy(clip(corners_of(xywh), np.array(size)).astype(np.float32))


def coco_object(source: str | dict) -> Any:
    """Create hotcoco's COCO object from an annotation file or its content, and suppress its output."""
    from hotcoco import COCO  # only the main process of an evaluation needs it

    with contextlib.redirect_stdout(io.StringIO()):
        if isinstance(source, str):
            return COCO(source)
        coco = COCO()
        coco.dataset = source
        coco.createIndex()
        return coco


def labels_of_categories(category_ids: Sequence[int]) -> dict[int, int]:
    """Return label -> category id, for all categories of a dataset.

    Labels equal the ids if these start at 1 or above and the largest is at most twice their number (COCO: 90 for 80
    classes), so that published weights fit. Otherwise labels are 1..K in the order of the ids.
    """
    ids = sorted(category_ids)
    if ids and ids[0] >= 1 and ids[-1] <= 2 * len(ids):
        return {i: i for i in ids}
    return dict(enumerate(ids, start=1))


def read_image(path: str | Path, size: tuple[int, int] | None = None, form: ImageForm = RGB) -> Tensor:
    """Read an image as RGB, uint8 [3, H, W]. If `form` has channels, read it as stored, [C, H, W] uint8 or float32.

    For `size` see `upright_rgb`. Raises FileNotFoundError, and ValueError for a file that is not a readable image of
    this form; both name it.
    """
    with naming_image(Path(path)):
        if form.channels is not None:
            return torch.from_numpy(read_stored(path, form))
        with open_image(path) as image:
            return torch.from_numpy(np.array(upright_rgb(image, size, form.exif))).permute(2, 0, 1).contiguous()
