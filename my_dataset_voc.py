"""Pascal VOC's XML files, images and instance PNGs in, (image, target) items out."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset_files.boxes import ious
from dataset_files.dataset import ObjectCounts
from dataset_files.image_reading import read_image
from dataset_files.problems import Problems
from dataset_files.voc_files import (
    VOC_CLASSES,
    VOID_LABEL,
    VOCObject,
    VOCPicture,
    count_instances,
    open_masks,
    read_annotation,
    read_list,
    read_palette_png,
)
from my_dataset_coco import coco_object
from network_files import InstanceMasks
from network_files.masks.instance_masks import crop_to_content
from network_files.masks.rle import compress, encode_crop
from transforms import Transform, collate_fn

SMALLEST_OVERLAP = 0.2  # IoU of an object's box with the box around a mask, below which they are not the same
READERS = 4  # threads that look through the masks before a run; decoding waits for no other thread


class VOCInstances(Dataset):
    """Pictures and instances of one list of the devkit.

    Training lists ("train.txt", "trainval.txt") leave out difficult objects and objects without a mask, and
    pictures that are then without object. Others keep both as crowds, which the metrics neither count nor punish.

    Args:
        voc_root: the folder VOC{year}, the VOCdevkit that holds it, or the folder that holds the VOCdevkit.
        year: of the devkit.
        txt_name: a list in ImageSets/Segmentation.
        transforms: applied to each item.
        skip_bad: leave out what would make results wrong, and note it in `problems`, instead of raising.
        keep_empty: train on images whose XML has no object, too: all that they show is background.

    Attributes:
        class_names: label (1..20, the devkit's order) -> name.
        category_ids: label -> category id, the same number.
        source: the list.
        problems: what is wrong with the XML files and masks.

    Raises:
        FileNotFoundError: the list or the devkit is missing.
        ValueError: a file cannot be used, or would make results wrong; the message names it.
    """

    collate_fn = staticmethod(collate_fn)
    kept_in_evaluation = "kept as crowds"  # what training leaves out

    def __init__(
        self,
        voc_root: str | Path,
        year: str = "2012",
        txt_name: str = "train.txt",
        transforms: Transform | None = None,
        *,
        skip_bad: bool = False,
        keep_empty: bool = False,
        exif: str | None = None,
    ):
        folder = find_voc_folder(voc_root, year)
        if folder is None:
            raise FileNotFoundError(f"{voc_root}: no VOCdevkit/VOC{year} in it")
        self.folder = folder
        self.image_folder = self.folder / "JPEGImages"
        self.transforms = transforms
        self.exif = exif
        self.class_names = dict(enumerate(VOC_CLASSES, start=1))
        self.category_ids = {label: label for label in self.class_names}
        self.label_of = {label: label for label in self.class_names}  # of the devkit's labels
        self.training = txt_name.startswith("train")
        self.keep_empty = keep_empty
        self.source = self.folder / "ImageSets" / "Segmentation" / txt_name
        self.problems = Problems()
        names = read_list(self.source, self.problems)
        read = {number: read_annotation(self.folder, name, self.problems) for number, name in names.items()}
        pictures = {number: picture for number, picture in read.items() if picture is not None}
        kept = self.check_masks(list(pictures.values()))
        if not skip_bad:
            self.problems.require_none_wrong(self.source)
        self.image_ids = [number for number, is_kept in zip(pictures, kept) if is_kept]
        self.without_objects = len(kept) - sum(kept)
        self.pictures = [pictures[number] for number in self.image_ids]
        self._coco = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        """Item i, of the same form as CocoDetection's."""
        image, target = read_image(self.image_path(i), self.get_height_and_width(i), self.exif), self.target(i)
        if tuple(image.shape[-2:]) != target["masks"].size:
            height, width = target["masks"].size
            raise ValueError(
                f"{self.image_path(i)}: the image is {image.shape[-1]}x{image.shape[-2]}, its XML says {width}x{height}"
            )
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        return image, target

    def target(self, i: int) -> dict:
        """The target of item i before the transforms."""
        picture = self.pictures[i]
        objects, crops = [], []
        for thing, crop in zip(picture.objects, self.match_masks(picture)):
            if self.training and (thing.difficult or crop is None) or thing.label not in self.label_of:
                continue
            objects.append(thing)
            crops.append(box_crop(thing.box, picture.size) if crop is None else crop)
            if crop is None:
                objects[-1] = VOCObject(thing.label, thing.box, difficult=True)
        masks = InstanceMasks.from_crops(crops, picture.size)
        return {
            "boxes": torch.tensor([o.box for o in objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([self.label_of[o.label] for o in objects], dtype=torch.int64),
            "masks": masks,
            "image_id": self.image_ids[i],
            "area": masks.areas().float(),
            "iscrowd": torch.tensor([o.difficult for o in objects], dtype=torch.int64),
        }

    def check_masks(self, pictures: Sequence[VOCPicture]) -> list[bool]:
        """Look through the masks of images, note what is wrong; returns which images this split keeps."""
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(self.look_at_masks, pictures))
        kept = []
        for picture, matches in zip(pictures, found):
            if isinstance(matches, str):
                self.problems.add("masks", matches)
                kept.append(False)
                continue
            for number, (thing, has_mask) in enumerate(zip(picture.objects, matches), start=1):
                if not has_mask and not thing.difficult:
                    name = self.class_names[thing.label]
                    self.problems.add("no mask", f"Annotations/{picture.name}.xml, object {number}, '{name}'")
            usable = any(has_mask and not thing.difficult for thing, has_mask in zip(picture.objects, matches))
            kept.append(usable or not self.training or (self.keep_empty and picture.is_bare))
        return kept

    def look_at_masks(self, picture: VOCPicture) -> list[bool] | str:
        """Which objects of an image have a mask, or why its PNGs cannot be used.

        Where there are as many masks as objects each is taken to have its own; to be sure of that takes ten times as
        long, and would be done at every start.
        """
        if not picture.objects:
            return []
        try:
            count = count_instances(self.masks_path(picture.name), picture.size)
            with open_masks(self.classes_path(picture.name), picture.size):
                pass  # its header is right
            if count == len(picture.objects):
                return [True] * count
            return [crop is not None for crop in self.match_masks(picture)]
        except (FileNotFoundError, ValueError) as error:
            return str(error)

    def match_masks(self, picture: VOCPicture) -> list[tuple[int, int, np.ndarray] | None]:
        """For each XML object the crop of its mask, or None: pairs by class and by overlap, the best first.

        The order of the XML says nothing: objects without a mask stand between others.
        """
        if not picture.objects:
            return []
        crops, labels = self.read_masks(picture)
        boxes = np.array([(x, y, x + c.shape[1], y + c.shape[0]) for x, y, c in crops], dtype=np.float64).reshape(-1, 4)
        overlap = ious(np.array([thing.box for thing in picture.objects])[:, None], boxes)
        same_class = np.array([[thing.label == label for label in labels] for thing in picture.objects], dtype=bool)
        overlap *= same_class.reshape(overlap.shape)
        matched: list[tuple[int, int, np.ndarray] | None] = [None] * len(picture.objects)
        while overlap.size and overlap.max() >= SMALLEST_OVERLAP:
            row, column = map(int, np.unravel_index(overlap.argmax(), overlap.shape))
            matched[row] = crops[column]
            overlap[row, :] = overlap[:, column] = 0
        return matched

    def read_masks(self, picture: VOCPicture) -> tuple[list[tuple[int, int, np.ndarray]], list[int]]:
        """The instances of an image's PNGs: their crops, and the class that most of their pixels have."""
        instances = read_palette_png(self.masks_path(picture.name), picture.size)
        classes = read_palette_png(self.classes_path(picture.name), picture.size)
        crops, labels = [], []
        for number in np.unique(instances):
            if number not in (0, VOID_LABEL):
                left, top, crop = crop_to_content(instances == number)
                crops.append((left, top, crop))
                within = classes[top : top + crop.shape[0], left : left + crop.shape[1]][crop]
                labels.append(int(np.bincount(within).argmax()))
        return crops, labels

    def get_height_and_width(self, i: int) -> tuple[int, int]:
        """Of image i, from its XML, without opening it."""
        return self.pictures[i].size

    def image_id(self, i: int) -> int:
        return self.image_ids[i]

    def image_names(self) -> list[str]:
        """The file of each image below `image_folder`."""
        return [f"{picture.name}.jpg" for picture in self.pictures]

    def image_path(self, i: int) -> Path:
        return self.image_folder / f"{self.pictures[i].name}.jpg"

    def masks_path(self, name: str) -> Path:
        return self.folder / "SegmentationObject" / f"{name}.png"

    def classes_path(self, name: str) -> Path:
        return self.folder / "SegmentationClass" / f"{name}.png"

    def counts(self) -> ObjectCounts:
        """Difficult objects count as crowds."""
        per_image = [len(picture.objects) for picture in self.pictures]
        crowds = sum(thing.difficult for picture in self.pictures for thing in picture.objects)
        empty = sum(picture.is_bare for picture in self.pictures) if self.training else 0
        return ObjectCounts(sum(per_image), crowds, max(per_image, default=0), self.without_objects, empty)

    def classes_of_images(self) -> list[list[int]]:
        """The devkit's labels of the objects of each item, in training without difficult ones."""
        return [
            sorted({thing.label for thing in picture.objects if not (self.training and thing.difficult)})
            for picture in self.pictures
        ]

    def objects_per_class(self) -> dict[str, tuple[int, int]]:
        """Class name -> objects that are not difficult, and difficult ones."""
        table = {name: [0, 0] for name in self.class_names.values()}
        for thing in (thing for picture in self.pictures for thing in picture.objects if thing.label in self.label_of):
            table[self.class_names[self.label_of[thing.label]]][thing.difficult] += 1
        return {name: (objects, difficult) for name, (objects, difficult) in table.items()}

    def adopt_classes(self, class_names: Mapping[int, str], category_ids: Mapping[int, int]) -> list[str]:
        """Take another table's labels and category ids, matched by name; objects of other classes are left out."""
        label_of_name = {name: label for label, name in class_names.items()}
        names = dict(enumerate(VOC_CLASSES, start=1))
        self.label_of = {k: label_of_name[name] for k, name in names.items() if name in label_of_name}
        self.class_names, self.category_ids = dict(class_names), dict(category_ids)
        self._coco = None
        lacking = {t.label for picture in self.pictures for t in picture.objects if t.label not in self.label_of}
        return [names[label] for label in sorted(lacking)]

    def drop_items(self, items: Sequence[int]) -> None:
        """Go on without these items; the others close up."""
        chosen = set(items)
        self.pictures = [picture for i, picture in enumerate(self.pictures) if i not in chosen]
        self.image_ids = [number for i, number in enumerate(self.image_ids) if i not in chosen]

    def __getstate__(self) -> dict:
        """What a loader worker gets where processes are not forked; the ground truth cannot be pickled."""
        return self.__dict__ | {"_coco": None}

    @property
    def coco(self) -> Any:
        """Ground truth for the evaluation in COCO's form, made on first use from every image's PNGs."""
        if self._coco is None:
            self._coco = coco_object(self.coco_content())
        return self._coco

    def coco_content(self) -> dict:
        """The split as the content of a COCO file: masks as run-length codes, difficult objects as crowds."""
        images: list[dict] = []
        annotations: list[dict] = []
        for i, picture in enumerate(self.pictures):
            height, width = picture.size
            images.append(
                {"id": self.image_ids[i], "height": height, "width": width, "file_name": f"{picture.name}.jpg"}
            )
            target = self.target(i)
            crops = target["masks"].all_crops()
            codes = compress([encode_crop(crop.astype(bool), left, top, height, width) for left, top, crop in crops])
            for k, (code, (x1, y1, x2, y2)) in enumerate(zip(codes, target["boxes"].tolist())):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": self.image_ids[i],
                        "category_id": self.category_ids[int(target["labels"][k])],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": float(target["area"][k]),
                        "iscrowd": int(target["iscrowd"][k]),
                        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                    }
                )
        categories = [{"id": key, "name": self.class_names[label]} for label, key in self.category_ids.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def find_voc_folder(root: str | Path, year: str) -> Path | None:
    """The folder VOC{year} that `root` is, or that lies in it or in its VOCdevkit; None if there is none."""
    root = Path(root)
    candidates = (root, root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}")
    return next((c for c in candidates if (c / "ImageSets" / "Segmentation").is_dir()), None)


def box_crop(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """A mask that is the whole box, for an object whose mask nobody drew."""
    x1, y1, x2, y2 = (int(v) for v in box)
    return x1, y1, np.ones((min(y2, size[0]) - y1, min(x2, size[1]) - x1), dtype=np.uint8)
