"""Pascal VOC's XML files, pictures and instance PNGs in, (image, target) items out."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from my_dataset_coco import coco_object
from network_files import InstanceMasks
from network_files.instance_masks import crop_to_content
from network_files.rle import compress, encode_crop
from transforms import Transform, collate_fn, read_image

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
NOBODY = 255  # palette index of the contours between objects, which belong to none
SMALLEST_OVERLAP = 0.2  # IoU of an object's box with the box around a mask, below which they are not the same


class VOCInstances(Dataset):
    """Pictures and instances of one list of the devkit.

    Training lists ("train.txt", "trainval.txt") leave out difficult objects and objects without a mask, and
    pictures that are then without object. Others keep both as crowds, which the metrics neither count nor punish.

    Args:
        voc_root: the folder VOC{year}, the VOCdevkit that holds it, or the folder that holds the VOCdevkit.
        year: of the devkit.
        txt_name: a list in ImageSets/Segmentation.
        transforms: applied to each item.

    Attributes:
        class_names: label (1..20, the devkit's order) -> name.
        category_ids: label -> category id, the same number.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an XML file cannot be used; the message names it.
    """

    collate_fn = staticmethod(collate_fn)

    def __init__(
        self,
        voc_root: str | Path,
        year: str = "2012",
        txt_name: str = "train.txt",
        transforms: Transform | None = None,
    ):
        self.folder = find_voc_folder(voc_root, year)
        if self.folder is None:
            raise FileNotFoundError(f"{voc_root}: no VOCdevkit/VOC{year} in it")
        self.transforms = transforms
        self.class_names = dict(enumerate(VOC_CLASSES, start=1))
        self.category_ids = {label: label for label in self.class_names}
        self.training = txt_name.startswith("train")
        names = read_list(self.folder / "ImageSets" / "Segmentation" / txt_name)
        self.pictures = [read_annotation(self.folder / "Annotations" / f"{name}.xml", name) for name in names]
        self.image_ids = list(range(1, len(names) + 1))
        if self.training:
            kept = [
                i
                for i, p in enumerate(self.pictures)
                if any(not o.difficult for o in p.objects) and has_instances(self.masks_path(p.name), p.size)
            ]
            self.pictures = [self.pictures[i] for i in kept]
            self.image_ids = [self.image_ids[i] for i in kept]
        self._coco = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        """Item i, of the same form as CocoDetection's."""
        image, target = read_image(self.image_path(i)), self.target(i)
        if tuple(image.shape[-2:]) != target["masks"].size:
            height, width = target["masks"].size
            raise ValueError(
                f"{self.image_path(i)}: the picture is {image.shape[-1]}x{image.shape[-2]}, "
                f"its XML says {width}x{height}"
            )
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        return image, target

    def target(self, i: int) -> dict:
        """The target of item i before the transforms."""
        picture = self.pictures[i]
        objects, crops = [], []
        for thing, crop in zip(picture.objects, self.match_masks(picture)):
            if self.training and (thing.difficult or crop is None):
                continue
            objects.append(thing)
            crops.append(box_crop(thing.box, picture.size) if crop is None else crop)
            if crop is None:
                objects[-1] = VOCObject(thing.label, thing.box, difficult=True)
        masks = InstanceMasks.from_crops(crops, picture.size)
        return {
            "boxes": torch.tensor([o.box for o in objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([o.label for o in objects], dtype=torch.int64),
            "masks": masks,
            "image_id": self.image_ids[i],
            "area": masks.areas().float(),
            "iscrowd": torch.tensor([o.difficult for o in objects], dtype=torch.int64),
        }

    def match_masks(self, picture: "VOCPicture") -> list[tuple[int, int, np.ndarray] | None]:
        """For each XML object the crop of its mask, or None: pairs by class and by overlap, the best first.

        The order of the XML says nothing: objects without a mask stand between others.
        """
        crops, labels = self.read_masks(picture)
        boxes = np.array([(x, y, x + c.shape[1], y + c.shape[0]) for x, y, c in crops], dtype=np.float64).reshape(-1, 4)
        overlap = np.array([[iou(thing.box, box) for box in boxes] for thing in picture.objects]).reshape(
            len(picture.objects), len(boxes)
        )
        same_class = np.array([[thing.label == label for label in labels] for thing in picture.objects], dtype=bool)
        overlap *= same_class.reshape(overlap.shape)
        matched = [None] * len(picture.objects)
        while overlap.size and overlap.max() >= SMALLEST_OVERLAP:
            row, column = np.unravel_index(overlap.argmax(), overlap.shape)
            matched[row] = crops[column]
            overlap[row, :] = overlap[:, column] = 0
        return matched

    def read_masks(self, picture: "VOCPicture") -> tuple[list[tuple[int, int, np.ndarray]], list[int]]:
        """The instances of a picture's PNGs: their crops, and the class that most of their pixels have."""
        instances = read_palette_png(self.masks_path(picture.name), picture.size)
        classes = read_palette_png(self.folder / "SegmentationClass" / f"{picture.name}.png", picture.size)
        crops, labels = [], []
        for number in np.unique(instances):
            if number not in (0, NOBODY):
                left, top, crop = crop_to_content(instances == number)
                crops.append((left, top, crop))
                within = classes[top : top + crop.shape[0], left : left + crop.shape[1]][crop]
                labels.append(int(np.bincount(within).argmax()))
        return crops, labels

    def get_height_and_width(self, i: int) -> tuple[int, int]:
        """Of picture i, from its XML, without opening it."""
        return self.pictures[i].size

    def image_path(self, i: int) -> Path:
        return self.folder / "JPEGImages" / f"{self.pictures[i].name}.jpg"

    def masks_path(self, name: str) -> Path:
        return self.folder / "SegmentationObject" / f"{name}.png"

    def __getstate__(self) -> dict:
        """What a loader worker gets where processes are not forked; the ground truth cannot be pickled."""
        return self.__dict__ | {"_coco": None}

    @property
    def coco(self):
        """Ground truth for the evaluation in COCO's form, made on first use from every picture's PNGs."""
        if self._coco is None:
            self._coco = coco_object(self.coco_content())
        return self._coco

    def coco_content(self) -> dict:
        """The split as the content of a COCO file: masks as run-length codes, difficult objects as crowds."""
        images, annotations = [], []
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
                        "category_id": int(target["labels"][k]),
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": float(target["area"][k]),
                        "iscrowd": int(target["iscrowd"][k]),
                        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                    }
                )
        categories = [{"id": label, "name": name} for label, name in self.class_names.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


@dataclass
class VOCObject:
    label: int
    box: tuple[float, float, float, float]  # x1y1x2y2, 0-based, the right and lower edges beyond the last pixel
    difficult: bool


@dataclass
class VOCPicture:
    name: str
    size: tuple[int, int]  # height, width
    objects: list[VOCObject]


def find_voc_folder(root: str | Path, year: str) -> Path | None:
    """The folder VOC{year} that `root` is, or that lies in it or in its VOCdevkit; None if there is none."""
    root = Path(root)
    candidates = (root, root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}")
    return next((c for c in candidates if (c / "ImageSets" / "Segmentation").is_dir()), None)


def read_list(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found (the list of pictures)")
    names = path.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"{path}: lists no picture")
    return names


def read_annotation(path: Path, name: str) -> VOCPicture:
    """One XML file. Boxes there are 1-based whole pixels, both ends included; parts of objects are passed over."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found (the annotation of a listed picture)")
    try:
        root = ElementTree.parse(path).getroot()
        size = (whole_number(root, "size/height"), whole_number(root, "size/width"))
        objects = [read_object(element, size) for element in root.findall("object")]
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not readable as XML ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return VOCPicture(name, size, objects)


def whole_number(element: ElementTree.Element, path: str) -> int:
    text = element.findtext(path)
    if text is None or not text.strip().isdigit():
        raise ValueError(f"{path} is {text!r}, not a number of pixels")
    return int(text)


def read_object(element: ElementTree.Element, size: tuple[int, int]) -> VOCObject:
    name = (element.findtext("name") or "").strip()
    if name not in VOC_CLASSES:
        raise ValueError(f"object of class '{name}', which is none of the devkit's twenty")
    try:
        x1, y1, x2, y2 = (float(element.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
    except (TypeError, ValueError):
        raise ValueError(f"object '{name}' has no bndbox of four numbers") from None
    box = (max(x1 - 1, 0.0), max(y1 - 1, 0.0), min(x2, float(size[1])), min(y2, float(size[0])))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(
            f"object '{name}' has the box {x1:g} {y1:g} {x2:g} {y2:g}, which is empty in {size[1]}x{size[0]}"
        )
    return VOCObject(VOC_CLASSES.index(name) + 1, box, (element.findtext("difficult") or "0").strip() == "1")


def has_instances(path: Path, size: tuple[int, int]) -> bool:
    """Whether a PNG of instance masks shows any, without making an array of it."""
    with open_masks(path, size) as picture:
        return any(index not in (0, NOBODY) for _, index in picture.getcolors())


def read_palette_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A palette PNG's indices, uint8 [H, W]."""
    with open_masks(path, size) as picture:
        return np.array(picture)


def open_masks(path: Path, size: tuple[int, int]) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found (the masks of a listed picture)")
    picture = Image.open(path)
    if picture.mode not in ("P", "L"):
        raise ValueError(f"{path}: is a {picture.mode} picture; masks are palette pictures")
    if picture.size != (size[1], size[0]):
        raise ValueError(f"{path}: is {picture.width}x{picture.height}, its XML says {size[1]}x{size[0]}")
    return picture


def iou(a: tuple[float, float, float, float], b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def box_crop(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """A mask that is the whole box, for an object whose mask nobody drew."""
    x1, y1, x2, y2 = (int(v) for v in box)
    return x1, y1, np.ones((min(y2, size[0]) - y1, min(x2, size[1]) - x1), dtype=np.uint8)
