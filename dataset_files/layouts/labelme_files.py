"""Read labelme's and ISAT's layouts: one JSON file per image, usually beside the image.

ISAT's files (`info` and `objects`) are converted to labelme's form (`shapes`, `imagePath`) as they are read.
"""

import base64
import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_files.coco_file import BACKGROUND
from dataset_files.conversion_store import Converted, SplitFiles
from dataset_files.image_files import ImageFinder, files_below, images_below, is_image_name, split_paths
from dataset_files.layouts import coco_builder
from dataset_files.layouts.coco_builder import CocoBuilder, Crop, NoArea, Shape
from dataset_files.layouts.text_files import HEAD, beginning, read_json, read_lines
from dataset_files.problems import Problems, is_file_name, shown

LABELME, ISAT = "shapes", "objects"  # keys of the lists of objects
NO_AREA = ("point", "points", "line", "linestrip")
DEPTH = 4  # levels of folders that are searched for the first JSON
PEEKED = 3  # JSON files that are read to recognise the layout


def as_labelme(content: dict, key: str) -> dict | None:
    """Convert the content of a labelme or ISAT file (`key`) to labelme's form; None for any other content."""
    info, objects = content.get("info"), content.get(key)
    if not isinstance(objects, list):
        return None
    if key == LABELME:
        return content if any(known in content for known in ("imagePath", "imageData", "imageHeight")) else None
    if not isinstance(info, dict) or "name" not in info:
        return None
    shapes = [
        {
            "label": one.get("category"), "points": one.get("segmentation"), "shape_type": "polygon",
            "group_id": one.get("group"), "iscrowd": bool(one.get("iscrowd")),
        }
        if isinstance(one, dict) else one
        for one in objects
    ]  # fmt: skip
    sizes = {"imageHeight": info.get("height"), "imageWidth": info.get("width")}
    return {"shapes": shapes, "imagePath": f"{info.get('folder') or '.'}/{info['name']}"} | sizes


def find(root: Path, key: str = LABELME) -> list[SplitFiles]:
    """Find the splits of a folder with a JSON file per image, written by labelme or ISAT (`key`)."""
    root = Path(os.path.abspath(root))
    folders = {split: folder for split, folder in split_paths(root).items() if first_files(folder, key)}
    if not folders and first_files(root, key):
        folders = {"": root}
    files = [path for folder in folders.values() for path in first_files(folder, key)]
    images = [image_beside(path, as_labelme(read_json(path), key) or {}, root) for path in files]
    beside = list(dict.fromkeys(image.parent for image in images if image is not None))
    base = root.parent if beside else root
    return [
        SplitFiles(split, folder, base, partial(read_files, folder, root, base, key), [root, *beside])
        for split, folder in folders.items()
    ]


def first_files(folder: Path, key: str) -> list[Path]:
    """Return the files of labelme or ISAT (`key`) among the first PEEKED JSON files at most DEPTH levels deep."""
    files = (path for path in files_below(folder, DEPTH) if path.suffix.lower() == ".json")
    return [path for path in islice(files, PEEKED) if is_of_tool(path, key)]


def is_of_tool(path: Path, key: str) -> bool:
    """Whether labelme or ISAT (`key`) wrote a file. Only its first bytes are read if they decide: it may be large."""
    head = beginning(path)
    has_key = re.search(rb'"%s"\s*:\s*\[' % key.encode(), head) is not None
    if has_key and path.stat().st_size >= HEAD:
        return True
    with suppress(ValueError, OSError, AttributeError):  # reported later if other files are the tool's
        # An embedded image may come before the shapes.
        return (has_key or b'"imageData"' in head) and as_labelme(read_json(path), key) is not None
    return False


def image_beside(path: Path, content: dict, root: Path) -> Path | None:
    """Return the image that a JSON file names, if that image is in a folder beside `root`; None otherwise."""
    name = content.get("imagePath")
    if not isinstance(name, str) or "\0" in name or not is_file_name(name):
        return None
    image = Path(os.path.normpath(path.parent / name.replace("\\", "/")))
    is_beside = image.is_relative_to(root.parent) and not image.is_relative_to(root) and image.parent != root.parent
    return image if is_beside and is_image_name(image.name) and image.is_file() else None


def read_files(folder: Path, root: Path, base: Path, key: str) -> Converted:
    """Convert the JSON files below `folder`. Images are in or beside `root`; file names are relative to `base`."""
    problems, finder = Problems(), ImageFinder(root)
    lists = [path for path in (folder / "labels.txt", root / "labels.txt") if path.is_file()]
    labels = [name for path in lists[:1] for name in read_lines(path, problems)]
    class_names = [name for name in labels if name and name not in BACKGROUND]
    builder = CocoBuilder(base, class_names, problems)
    paths = (path for path in files_below(folder) if path.suffix.lower() == ".json")
    described = {add_file(builder, finder, path, key) for path in paths}
    names = (image.relative_to(base).as_posix() for image in images_below(folder))
    problems.add_all("unlabelled", (name for name in names if name not in described), str)
    for label, entry in builder.objects if class_names else ():
        if label not in class_names:
            problems.add("new class", f"{shown(label)} in {builder.images[entry['image_id'] - 1]['file_name']}")
    return builder.converted()


def add_file(builder: CocoBuilder, finder: ImageFinder, path: Path, key: str) -> str | None:
    """Add the image of a JSON file with its objects. Return the image's file name; None if the JSON cannot be used."""
    name = path.relative_to(finder.root).as_posix()
    try:
        content = read_json(path, builder.problems)
        if not isinstance(content, dict) or key not in content:  # such as args.json of a run
            builder.problems.add("other json", name)
            return None
        content = as_labelme(content, key)
        if content is None:
            raise ValueError(f'expected a list "{key}" and the name of the image')
    except (ValueError, OSError) as error:
        builder.problems.add("json", f"{name}: {str(error).removeprefix(f'{path}: ')}")
        return None
    base = builder.image_folder
    if (found := find_image(finder, path, content.get("imagePath"))) is not None:
        file_name = (finder.root / found).relative_to(base).as_posix()
    elif base != finder.root and (beside := image_beside(path, content, finder.root)) is not None:
        file_name = beside.relative_to(base).as_posix()
    elif content.get("imageData") and isinstance(content["imageData"], str):
        file_name = path.relative_to(base).as_posix()  # `open_image` reads the image inside it
        builder.problems.add("embedded", name)
    else:
        wanted = shown(content.get("imagePath"))
        builder.problems.add("no image", f"{name} names {wanted}, which is not below {finder.root}")
        return None
    sides = [content.get("imageHeight"), content.get("imageWidth")]
    height, width = (side if isinstance(side, int) and not isinstance(side, bool) and side > 0 else 0 for side in sides)
    image = builder.add_image(file_name, (height, width) if height and width else None)
    if image is not None:
        builder.add_shapes(image, shapes_of(content["shapes"], name, builder.problems))
    return file_name


def find_image(finder: ImageFinder, path: Path, image_path: object) -> str | None:
    """Find the image of a JSON file, and return its path relative to the finder's root.

    The image is found by imagePath, or else beside the JSON under the JSON's own name. JSON files are often moved or
    renamed together with their images, while imagePath remains unchanged.
    """
    named = image_path.replace("\\", "/") if isinstance(image_path, str) else ""
    if (found := finder.at(path.parent, named)) is not None:
        return found
    beside = path.parent.relative_to(finder.root)
    same_stem = [one for one in finder.by_stem.get(path.stem.lower(), []) if Path(one).parent == beside]
    if len(same_stem) == 1:
        return same_stem[0]
    return finder.find(named, path.parent) if named else None


def shapes_of(entries: list, name: str, problems: Problems) -> Iterator[Shape]:
    """Yield the shapes of a JSON file. Those labelled as background or to be ignored are only noted."""
    for number, entry in enumerate(entries, start=1):
        fields = entry if isinstance(entry, dict) else {}
        label, group = fields.get("label"), fields.get("group_id")
        label = label.strip() if isinstance(label, str) else ""
        where = f"{name}, shape {number}, {shown(label) if label else shown(entry)}"
        if label in BACKGROUND:
            problems.add("ignored", where)
        else:
            group = group if isinstance(group, (int, str)) else None
            yield Shape(where, label, group, partial(read_shape, fields), fields.get("iscrowd") is True)


def read_shape(shape: dict) -> list[float] | Crop:
    """Return the polygon or the pixels of a shape; NoArea for lines and points, ValueError for invalid shapes."""
    points, kind = shape.get("points"), shape.get("shape_type") or "polygon"
    if kind in NO_AREA:
        raise NoArea(kind)
    if not isinstance(points, list) or not points or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ValueError(f"expected points [[x, y], ...], not {shown(points)}")
    flat = coco_builder.image_coordinates([value for point in points for value in point])
    xs, ys = flat[0::2], flat[1::2]
    expected = {"polygon": range(3, 1 << 30), "circle": (2,), "rectangle": (2, 4), "mask": (2,)}
    expected |= {"oriented_rectangle": (4,), "rotation": (4,)}
    if not isinstance(kind, str) or kind not in expected:
        raise ValueError(f"unknown shape_type {shown(kind)}")
    if len(points) not in expected[kind]:
        raise ValueError(f"a {kind} of {len(points)} points")
    if kind == "circle":
        radius = float(np.hypot(xs[1] - xs[0], ys[1] - ys[0]))
        return coco_builder.ellipse_polygon(xs[0], ys[0], radius, radius)
    if kind == "rectangle":
        return coco_builder.rectangle_polygon(min(xs), min(ys), max(xs), max(ys))
    if kind == "mask":
        return round(min(xs)), round(min(ys)), decode_mask(shape.get("mask"))
    return flat


def decode_mask(text: object) -> np.ndarray:
    """Decode a mask from a PNG in base64 to bool [h, w]; ValueError if it is something else."""
    if not isinstance(text, str):
        raise ValueError("a mask without its PNG in base64")
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
            pixels = np.array(image)
    except Exception as error:  # Pillow can raise any exception for a broken file
        raise ValueError(f"a mask that is not a PNG in base64 ({error})") from error
    return np.any(pixels.reshape(*pixels.shape[:2], -1)[:, :, :3], axis=2)
