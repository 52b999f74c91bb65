"""Tiny datasets in both layouts, and ways to break them: each takes the folder in which a good one lies in `data`."""

import json
import os
import pickle
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZE = 64  # of all pictures, in pixels
NAMES = ("ape", "bear")
BOX_POLYGON = [4, 8, 28, 8, 28, 48, 4, 48]  # the first object of each picture
WEIGHTS = "good.pth"  # what a run on good data left, beside `data`
Spoil = Callable[[Path], object]


# --------------------------------------------------------------------------------------------------- the good datasets


def make_coco(root: Path) -> None:
    """Four pictures to train on, two to evaluate on; two objects each, one a polygon and one a run-length code."""
    (root / "annotations").mkdir(parents=True)
    for split, ids in (("train", (1, 2, 3, 4)), ("val", (5, 6))):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for image_id in ids:
            name = f"{image_id}.png"
            picture(seed=image_id).save(root / f"{split}2017" / name)
            images.append({"id": image_id, "height": SIZE, "width": SIZE, "file_name": name})
            for k in (0, 1):
                x, y, w, h = box = (4 + 28 * k, 8, 24, 40)
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                mask = {"size": [SIZE, SIZE], "counts": loose_counts(*box)} if k else [polygon]
                values = {"id": 10 * image_id + k, "image_id": image_id, "category_id": 1 + k, "bbox": list(box)}
                annotations.append({**values, "segmentation": mask, "area": w * h, "iscrowd": 0})
        categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        annotation_file(root, split).write_text(json.dumps(content))


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def loose_counts(x: int, y: int, w: int, h: int) -> list[int]:
    """The run lengths of a filled box in a picture of SIZE."""
    first = x * SIZE + y
    return [first, *[h, SIZE - h] * (w - 1), h, SIZE * SIZE - first - (w - 1) * SIZE - h]


def annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


VOC_OBJECT = (
    "<object><name>{}</name><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    "</bndbox></part><bndbox><xmin>{}</xmin><ymin>9</ymin><xmax>{}</xmax><ymax>48</ymax></bndbox></object>"
)


def make_voc(root: Path) -> None:
    """The same in VOC's layout; every object has a part."""
    folder = root / "VOC2012"
    for name in ("Annotations", "JPEGImages", "SegmentationObject", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for split, names in (("train", "abcd"), ("val", "ef")):
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            picture(seed=ord(name)).save(folder / "JPEGImages" / f"{name}.jpg")
            instances = np.zeros((SIZE, SIZE), dtype=np.uint8)
            instances[8:48, 4:28], instances[8:48, 32:56] = 1, 2
            save_palette(instances, folder / "SegmentationObject" / f"{name}.png")
            save_palette(np.array([0, 12, 15], dtype=np.uint8)[instances], folder / "SegmentationClass" / f"{name}.png")
            objects = VOC_OBJECT.format("dog", 5, 28) + VOC_OBJECT.format("person", 33, 56)
            size = f"<size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>"
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def save_palette(indices: np.ndarray, path: Path) -> None:
    image = Image.fromarray(indices, mode="P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    image.save(path)


# ----------------------------------------------------------------------------------------------------- ways to break it


def edit(change: Callable[[dict], object], split: str = "train") -> Spoil:
    """Change the content of an annotation file."""

    def spoil(folder: Path) -> None:
        file = annotation_file(folder / "data", split)
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return spoil


def annotation(split: str = "train", **changes) -> Spoil:
    """Change the first annotation: image 1's polygon, of image 5 in the validation split."""
    return edit(lambda content: content["annotations"][0].update(changes), split)


def count_from_zero(content: dict) -> None:
    content["categories"][0]["id"] = 0
    for one in content["annotations"][::2]:
        one["category_id"] = 0


def code(counts: str | list[int], size: Sequence[int] = (SIZE, SIZE)) -> Spoil:
    return annotation(segmentation={"size": list(size), "counts": counts})


def text(change: Callable[[str], str], split: str = "train") -> Spoil:
    def spoil(folder: Path) -> None:
        file = annotation_file(folder / "data", split)
        file.write_text(change(file.read_text()))

    return spoil


def replace_picture(make: Spoil, split: str = "train", name: str = "1.png") -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "data" / f"{split}2017" / name
        path.unlink()
        make(path)

    return spoil


def saved(image: Callable[[], Image.Image], form: str = "PNG", **options) -> Spoil:
    return replace_picture(lambda path: image().save(path, form, **options))


def cut_off(path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-2000])


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 50,000 x 50,000 pixels."""
    Image.new("L", (1, 1)).save(path, "PNG")
    data = path.read_bytes()
    header = b"IHDR" + (50000).to_bytes(4, "big") * 2 + data[24:29]
    path.write_bytes(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:])


def loop(path: Path) -> None:
    path.symlink_to(path)


def turned(wide: bool) -> Spoil:
    """A picture of 64x32 that its EXIF tag turns, with annotations for the turned one or for the stored one."""

    def spoil(folder: Path) -> None:
        size = {"width": 64, "height": 32} if wide else {"width": 32, "height": 64}
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.new("RGB", (64, 32), (0, 90, 180))
        replace_picture(lambda path: image.save(path, "JPEG", exif=exif))(folder)

        def change(content: dict) -> None:
            content["images"][0].update(size)
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1]
            whole = {"bbox": [2, 2, 28, 28], "segmentation": [[2, 2, 30, 2, 30, 30, 2, 30]], "area": 784, "iscrowd": 0}
            content["annotations"].append({"id": 1, "image_id": 1, "category_id": 1, **whole})

        edit(change)(folder)

    return spoil


def renamed(name: str) -> Spoil:
    """The first picture lies where `name` says, seen from the image folder, and the annotations say so."""

    def spoil(folder: Path) -> None:
        images = folder / "data" / "train2017"
        target = Path(os.path.normpath(images / name.replace("OUTSIDE", str(folder))))
        target.parent.mkdir(parents=True, exist_ok=True)
        (images / "1.png").rename(target)
        name_in_file = name.replace("OUTSIDE", str(folder))
        edit(lambda content: content["images"][0].update(file_name=name_in_file))(folder)

    return spoil


def unlink_all(folder: Path) -> None:
    for path in (folder / "data" / "train2017").iterdir():
        path.unlink()


def voc_file(name: str, change: Spoil) -> Spoil:
    """Change a file of the VOC folder."""
    return lambda folder: change(folder / "data" / "VOC2012" / name)


def xml(change: Callable[[str], str], name: str = "a") -> Spoil:
    return voc_file(f"Annotations/{name}.xml", lambda path: path.write_text(change(path.read_text())))


LAUGHS = "<!DOCTYPE a [<!ENTITY l0 'ha'>{}]>".format(
    "".join(f"<!ENTITY l{i} '{f'&l{i - 1};' * 10}'>" for i in range(1, 12))
)


def masks(change: Spoil, name: str = "a") -> Spoil:
    return voc_file(f"SegmentationObject/{name}.png", change)


def without_the_first(path: Path) -> None:
    values = np.array(Image.open(path))
    values[values == 1] = 0
    save_palette(values, path)


def all_of(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


def nothing(folder: Path) -> None:
    pass


class Trap:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def trap(folder: Path) -> None:
    torch.save({"model": {"weight": Trap(folder / "sprung")}}, folder / "bad.pth")


def bare_trap(folder: Path) -> None:
    (folder / "bad.pth").write_bytes(pickle.dumps({"model": {"weight": Trap(folder / "sprung")}}))


def cut_off_weights(folder: Path) -> None:
    (folder / "bad.pth").write_bytes((folder / WEIGHTS).read_bytes()[:-5000])


def other_network(folder: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, folder / "bad.pth")
