"""COCO's JSON and pictures in, (image, target) items out; also any other data set laid out the same way.

The annotations are kept as flat arrays, not as a Python object each, so that COCO's million fits many workers.
"""
import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from network_files import InstanceMasks
from network_files.rle import decode_crop
from transforms import Transform, collate_fn, read_image


class CocoDetection(Dataset):
    """Pictures and instances of one split.

    Folders: `root/annotations/instances_{dataset}{years}.json` and `root/{dataset}{years}/`.

    With dataset="train" crowds are left out, and so are objects without area and pictures that are then without
    object. Any other split keeps every picture and every crowd.

    Attributes:
        class_names: label -> name, for the labels that occur in the file's categories.
        category_ids: label -> the file's category id.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the JSON cannot be used; the message says where and why.
    """

    collate_fn = staticmethod(collate_fn)

    def __init__(
        self, root: str | Path, dataset: str = "train", transforms: Transform | None = None, years: str = "2017"
    ):
        root = Path(root)
        self.image_folder = root / f"{dataset}{years}"
        self.annotation_file = root / "annotations" / f"instances_{dataset}{years}.json"
        for path in (self.annotation_file, self.image_folder):
            if not path.exists():
                raise FileNotFoundError(f"{path}: not found (COCO's layout is annotations/instances_*.json, *{years}/)")
        self.transforms = transforms
        self.index = CocoIndex(self.annotation_file)
        self.class_names = self.index.class_names
        self.category_ids = self.index.category_ids
        self.training = dataset == "train"
        self.pictures = np.arange(len(self.index.image_ids))
        if self.training:
            self.pictures = self.pictures[[len(self.index.usable(p)) > 0 for p in self.pictures]]
        self._coco = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        """Item i.

        Returns:
            Image uint8 [3, H, W] and a dict: `boxes` float32 [N, 4], x1y1x2y2 in pixels of the picture, `labels`
            int64 [N], `masks` InstanceMasks, `image_id` int, `area` float32 [N], `iscrowd` int64 [N].
        """
        path = self.image_folder / str(self.index.file_names[self.pictures[i]])
        image = read_image(path)
        target = self.target(i)
        if tuple(image.shape[-2:]) != target["masks"].size:
            height, width = target["masks"].size
            raise ValueError(
                f"{path}: the picture is {image.shape[-1]}x{image.shape[-2]}, "
                f"its annotations in {self.annotation_file} say {width}x{height}"
            )
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        return image, target

    def target(self, i: int) -> dict:
        """The target of item i, as `__getitem__` returns it but before the transforms."""
        picture = self.pictures[i]
        index = self.index
        chosen = index.usable(picture) if self.training else index.annotations(picture)
        size = self.get_height_and_width(i)
        masks = InstanceMasks.from_crops([decode_crop(index.rle(a)) for a in chosen], size)
        return {
            "boxes": torch.from_numpy(index.boxes[chosen].astype(np.float32)),
            "labels": torch.from_numpy(index.labels[chosen]),
            "masks": masks,
            "image_id": int(index.image_ids[picture]),
            "area": torch.from_numpy(index.areas[chosen].astype(np.float32)),
            "iscrowd": torch.from_numpy(index.crowds[chosen].astype(np.int64)),
        }

    def get_height_and_width(self, i: int) -> tuple[int, int]:
        """Of picture i, from the annotations, without opening it."""
        height, width = self.index.sizes[self.pictures[i]].tolist()
        return height, width

    def image_path(self, i: int) -> Path:
        return self.image_folder / str(self.index.file_names[self.pictures[i]])

    @property
    def coco(self):
        """Ground truth for the evaluation, made on first use: a COCO object of hotcoco or of pycocotools."""
        if self._coco is None:
            self._coco = coco_object(str(self.annotation_file))
        return self._coco


def coco_object(source: str | dict):
    """A COCO object for an annotation file or its content, quietly; hotcoco's if it is installed."""
    try:
        from hotcoco import COCO
    except ImportError:
        from pycocotools.coco import COCO
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


class CocoIndex:
    """A COCO instance file as flat arrays; annotations are grouped by picture, in the order of the file.

    Attributes, for P pictures in the file's order and A annotations:
        image_ids int64 [P], sizes int64 [P, 2] (height, width), file_names str [P]
        first int64 [P + 1]: picture p has the annotations first[p] .. first[p + 1] - 1
        ids int64 [A], labels int64 [A], crowds bool [A], areas float64 [A]
        boxes float64 [A, 4]: x1y1x2y2, in training clipped to the picture by `usable`
    """

    def __init__(self, path: Path):
        content = read_json(path)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise ValueError(f"{path}: no list '{key}' (is it a COCO instances file?)")
        try:
            self.read_categories(content["categories"])
            self.read_pictures(content["images"])
            self.read_annotations(content["annotations"])
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks the key {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: {self.reading} {reason}") from error

    def read_categories(self, categories: list[dict]) -> None:
        self.reading = "a category"
        if not categories:
            raise ValueError("is wanted, 'categories' is empty")
        names = {int(c["id"]): str(c["name"]) for c in categories}
        self.category_ids = labels_of_categories(list(names))
        self.class_names = {label: names[category] for label, category in self.category_ids.items()}

    def read_pictures(self, images: list[dict]) -> None:
        self.reading = "an image"
        self.image_ids = np.array([i["id"] for i in images], dtype=np.int64)
        self.sizes = np.array([(i["height"], i["width"]) for i in images], dtype=np.int64).reshape(-1, 2)
        self.file_names = np.array([i["file_name"] for i in images], dtype=np.str_)

    def read_annotations(self, annotations: list[dict]) -> None:
        position = {int(image_id): p for p, image_id in enumerate(self.image_ids)}
        label_of = {category: label for label, category in self.category_ids.items()}
        owners = np.empty(len(annotations), dtype=np.int64)
        for i, annotation in enumerate(annotations):
            self.reading = f"annotation {annotation.get('id', f'number {i}')}"
            if annotation["image_id"] not in position:
                raise ValueError(f"belongs to image {annotation['image_id']}, which is not in 'images'")
            if annotation["category_id"] not in label_of:
                raise ValueError(f"has category {annotation['category_id']}, which is not in 'categories'")
            if len(annotation["bbox"]) != 4:
                raise ValueError(f"has a bbox of {len(annotation['bbox'])} numbers instead of 4")
            owners[i] = position[annotation["image_id"]]
        order = np.argsort(owners, kind="stable")
        annotations = [annotations[i] for i in order]
        owners = owners[order]
        self.reading = "an annotation"
        self.first = np.searchsorted(owners, np.arange(len(self.image_ids) + 1))
        self.ids = np.array([a["id"] for a in annotations], dtype=np.int64)
        self.labels = np.array([label_of[a["category_id"]] for a in annotations], dtype=np.int64)
        self.crowds = np.array([a.get("iscrowd", 0) for a in annotations], dtype=bool)
        self.boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
        self.areas = np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations], dtype=np.float64)
        self.boxes[:, 2:] += self.boxes[:, :2]
        self.clip_boxes(owners)
        self.read_segmentations(annotations, owners)

    def clip_boxes(self, owners: np.ndarray) -> None:
        limits = self.sizes[owners][:, [1, 0, 1, 0]] if len(owners) else np.zeros((0, 4))
        self.boxes = self.boxes.clip(0, limits)

    def read_segmentations(self, annotations: list[dict], owners: np.ndarray) -> None:
        """Polygons as one array of coordinates with the starts of polygons and of annotations; codes as bytes."""
        coordinates, polygon_ends, codes = [], [], []
        polygon_counts, code_sizes = np.zeros(len(annotations) + 1, np.int64), np.zeros(len(annotations) + 1, np.int64)
        for i, (annotation, owner) in enumerate(zip(annotations, owners)):
            self.reading = f"annotation {annotation['id']}"
            segmentation = annotation["segmentation"]
            if isinstance(segmentation, list):
                coordinates.extend(np.asarray(polygon, dtype=np.float64) for polygon in segmentation)
                polygon_ends.extend(len(polygon) for polygon in segmentation)
                polygon_counts[i + 1] = len(segmentation)
            else:
                code = packed_code(segmentation, *self.sizes[owner].tolist())
                codes.append(code)
                code_sizes[i + 1] = len(code)
        self.coordinates = np.concatenate(coordinates) if coordinates else np.zeros(0)
        self.polygon_starts = np.cumsum([0, *polygon_ends])
        self.first_polygon = polygon_counts.cumsum()
        self.codes = np.frombuffer(b"".join(codes), dtype=np.uint8)
        self.code_starts = code_sizes.cumsum()
        self.owners = owners

    def annotations(self, picture: int) -> np.ndarray:
        """Every annotation of a picture, crowds too."""
        return np.arange(self.first[picture], self.first[picture + 1])

    def usable(self, picture: int) -> np.ndarray:
        """The annotations of a picture that training can learn from: no crowds, box and mask not empty."""
        chosen = self.annotations(picture)
        boxes = self.boxes[chosen]
        has_mask = (self.first_polygon[chosen + 1] > self.first_polygon[chosen]) | (
            self.code_starts[chosen + 1] > self.code_starts[chosen]
        )
        return chosen[(boxes[:, 2:] > boxes[:, :2]).all(axis=1) & ~self.crowds[chosen] & has_mask]

    def rle(self, annotation: int) -> dict:
        """The packed run-length code of an annotation's mask."""
        height, width = self.sizes[self.owners[annotation]].tolist()
        start, end = self.code_starts[annotation : annotation + 2]
        if end > start:
            return {"size": [height, width], "counts": self.codes[start:end].tobytes()}
        first, last = self.first_polygon[annotation : annotation + 2]
        if first == last:
            return coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
        polygons = [self.coordinates[self.polygon_starts[p] : self.polygon_starts[p + 1]] for p in range(first, last)]
        return coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in polygons], height, width))


def packed_code(segmentation: dict, height: int, width: int) -> bytes:
    """The packed counts of a run-length code as COCO files hold it: packed already (str), or a list of numbers."""
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"has a mask of size {segmentation['size']}, its picture is {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        counts = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    return counts.encode() if isinstance(counts, str) else counts


def read_json(path: Path) -> dict:
    """A JSON file that holds an object; ValueError names the file and the place where it is broken."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not an object")
    return content
