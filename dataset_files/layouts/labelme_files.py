"""Read labelme's layout: a JSON beside each image, in nested folders, perhaps below train/ and val/."""

import base64
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_files.conversion import Converted, SplitFiles
from dataset_files.file_names import ImageFinder
from dataset_files.image_files import files_below, images_below, split_folders
from dataset_files.layouts.coco_builder import CocoBuilder, Crop, image_coordinates
from dataset_files.layouts.outlines import ellipse_polygon, rectangle_polygon
from dataset_files.layouts.text_files import read_json, read_lines
from dataset_files.problems import shown

IGNORED_LABELS = ("__ignore__", "_background_")
NO_AREA = ("point", "points", "line", "linestrip")
DEPTH = 4  # levels of folders that are searched for the first JSON
PEEKED = 3  # JSON files that are looked at
HEAD = 1 << 16  # characters of a file that are enough to recognise it
SHAPES = re.compile(r'"shapes"\s*:\s*\[')


def find(root: Path) -> list[SplitFiles]:
    """The splits of a folder in labelme's layout; [] if it is of another one."""
    folders = {split: folder for split, folder in split_folders(root).items() if has_labelme_json(folder, DEPTH)}
    if not folders and has_labelme_json(root, DEPTH):
        folders = {"": root}
    return [
        SplitFiles(split, folder, root, partial(read_labelme, folder, root), partial(input_files, folder, root))
        for split, folder in folders.items()
    ]


def has_labelme_json(folder: Path, depth: int) -> bool:
    """Whether one of the first JSON files in a folder, nested at most `depth` levels, is labelme's."""
    looked_at = 0
    for path in files_below(folder, depth):
        if path.suffix.lower() == ".json":
            if seems_labelme(path):
                return True
            looked_at += 1
            if looked_at == PEEKED:
                return False
    return False


def seems_labelme(path: Path) -> bool:
    """Whether a file is labelme's by its first characters, as COCO files of any size lie in other folders."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            head = file.read(HEAD)
        if '"imageData"' in head and len(head) == HEAD and not SHAPES.search(head):
            return is_labelme(read_json(path))  # the image in base64 is before the shapes
        return SHAPES.search(head) is not None
    except (ValueError, OSError):
        return False  # reported when read, if others are labelme's


def is_labelme(content: object) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("shapes"), list)
        and any(key in content for key in ("imagePath", "imageData", "imageHeight"))
    )


def input_files(folder: Path, root: Path) -> list[Path]:
    """The files of a split that decide what is read, and its folders, for images without a JSON are reported, too."""
    files = list(files_below(folder))
    folders = dict.fromkeys(path.parent for path in files)
    return [*label_lists(folder, root), *folders, *(p for p in files if p.suffix.lower() == ".json")]


def label_lists(folder: Path, root: Path) -> list[Path]:
    return [path for path in dict.fromkeys((folder / "labels.txt", root / "labels.txt")) if path.is_file()]


def read_label_list(folder: Path, root: Path) -> list[str]:
    """The classes of labels.txt in their order; [] without such a file."""
    for path in label_lists(folder, root):
        return [name for name in read_lines(path) if name and name not in IGNORED_LABELS]
    return []


def read_labelme(folder: Path, root: Path) -> Converted:
    """All JSON files of `folder` and below; file names are relative to `root`."""
    builder = CocoBuilder(root, read_label_list(folder, root), report_new=True)
    finder = ImageFinder(root)
    described = set()
    for path in files_below(folder):
        if path.suffix.lower() == ".json":
            described.add(add_file(builder, finder, path))
    left = (image.relative_to(root).as_posix() for image in images_below(folder))
    builder.problems.add_all("unlabelled", (name for name in left if name not in described), str)
    return builder.converted()


def add_file(builder: CocoBuilder, finder: ImageFinder, path: Path) -> str | None:
    """Add the image of one JSON and its objects; returns the image's file name if there is such a file."""
    name = path.relative_to(finder.root).as_posix()
    try:
        content = read_json(path)
        if not is_labelme(content):
            raise ValueError('is not labelme\'s: expected {"shapes": [...], "imagePath": "..."}')
    except (ValueError, OSError) as error:
        builder.problems.add("json", f"{name}: {error}")
        return None
    file_name = find_image(finder, path, content.get("imagePath"))
    if file_name is None:
        embedded = isinstance(content.get("imageData"), str)
        wanted = shown(content.get("imagePath"))
        builder.problems.add("embedded" if embedded else "no image", f"{name} names {wanted}")
        return None
    size = (content.get("imageHeight"), content.get("imageWidth"))
    known = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size)
    image = builder.add_image(file_name, size if known else None)
    if image is not None:
        add_shapes(builder, image, content["shapes"], name)
    return file_name


def find_image(finder: ImageFinder, path: Path, image_path: object) -> str | None:
    """The image of a JSON, relative to the finder's root: as imagePath says, else by the JSON's own name beside it.

    JSON files are moved and renamed together with their images, while imagePath stays as it was.
    """
    named = image_path.replace("\\", "/") if isinstance(image_path, str) else ""
    if (found := finder.at(path.parent, named)) is not None:
        return found
    beside = path.parent.relative_to(finder.root)
    same_stem = [one for one in finder.by_stem.get(path.stem.lower(), []) if Path(one).parent == beside]
    if len(same_stem) == 1:
        return same_stem[0]
    return finder.find(named, path.parent) if named else None


def add_shapes(builder: CocoBuilder, image: dict, shapes: list, name: str) -> None:
    """Add the objects of an image: shapes of the same label and group_id are one."""
    objects: dict[object, tuple[str, list, list]] = {}
    for number, shape in enumerate(shapes, start=1):
        where = f"{name}, shape {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
            builder.problems.add("no class", f"{where}: {shown(shape)}")
            continue
        label, kind = shape["label"].strip(), shape.get("shape_type") or "polygon"
        if label in IGNORED_LABELS or kind in NO_AREA:
            builder.problems.add("ignored" if label in IGNORED_LABELS else "not an area", f"{where}, {shown(label)}")
            continue
        try:
            parts = list(shape_parts(shape, kind))
        except ValueError as error:
            builder.problems.add("outline", f"{where}, {shown(label)}: {error}")
            continue
        group = shape.get("group_id")
        key = (label, group) if isinstance(group, (int, str)) else (label, None, number)
        _, polygons, crops = objects.setdefault(key, (label, [], []))
        for part in parts:
            (polygons if isinstance(part, list) else crops).append(part)
    for label, polygons, crops in objects.values():
        builder.add_object(image, label, polygons=polygons, crops=crops)


def shape_parts(shape: dict, kind: object) -> Iterator[list[float] | Crop]:
    """The polygon or the pixels of a shape.

    Raises:
        ValueError: it is of an unknown kind, or its points do not fit the kind.
    """
    points = shape.get("points")
    if not isinstance(points, list) or not points or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ValueError(f"expected points [[x, y], ...], not {shown(points)}")
    flat = image_coordinates([value for point in points for value in point])
    xs, ys = flat[0::2], flat[1::2]
    expected = {"polygon": range(3, 1 << 30), "circle": (2,), "rectangle": (2, 4), "mask": (2,)}
    expected |= {"oriented_rectangle": (4,), "rotation": (4,)}
    if not isinstance(kind, str) or kind not in expected:
        raise ValueError(f"unknown shape_type {shown(kind)}")
    if len(points) not in expected[kind]:
        raise ValueError(f"a {kind} of {len(points)} points")
    if kind == "circle":
        radius = float(np.hypot(xs[1] - xs[0], ys[1] - ys[0]))
        yield ellipse_polygon(xs[0], ys[0], radius, radius)
    elif kind == "rectangle":
        yield rectangle_polygon(min(xs), min(ys), max(xs), max(ys))
    elif kind == "mask":
        yield round(min(xs)), round(min(ys)), decode_mask(shape.get("mask"))
    else:
        yield flat


def decode_mask(text: object) -> np.ndarray:
    """bool [h, w] from a PNG in base64.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(text, str):
        raise ValueError("a mask without its PNG in base64")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as picture:
            pixels = np.array(picture)
    except Exception as error:  # a broken file makes Pillow raise anything
        raise ValueError(f"a mask that is no PNG in base64 ({error})") from error
    return np.any(pixels.reshape(*pixels.shape[:2], -1)[:, :, :3], axis=2)
