"""Read YOLO's segmentation layout: images in folders, and a text file of outlines for each image."""

import math
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from dataset_files.conversion_store import Converted, SplitFiles
from dataset_files.image_files import ImageFinder, files_below, images_below, is_image_name, names_in
from dataset_files.layouts.coco_builder import CocoBuilder
from dataset_files.layouts.text_files import read_lines
from dataset_files.layouts.yolo_splits import CLASS_LISTS, POSES, YoloSplit, find_yaml, read_splits, splits_of_folders
from dataset_files.problems import Problems, shown

OUTSIDE = 1e-6  # distance from [0, 1] that is more than rounding
FAR = 1.0  # distance from [0, 1] of coordinates that must be pixels
POSE_SLACK = 0.02  # image sizes by which key points may lie outside their box


def find(root: Path) -> list[SplitFiles]:
    """Find the splits of a folder in YOLO's layout, given the folder or its YAML file."""
    if (yaml := find_yaml(root)) is not None:
        splits = read_splits(yaml)
    else:
        # Other tools write classes.txt, too.
        splits = splits_of_folders(root) if root.is_dir() else {}
        paths = (path for split in splits.values() for path in LabelFiles(split).of_images.values())
        if not any(path is not None and is_label_file(path) for path in paths):
            return []
    found: list[SplitFiles] = []
    for name, split in splits.items():
        folders = [entry for entry in split.entries if entry.is_dir()]
        labels = [replaced_folder(folder, split.base) for folder in folders]
        listed = [split.base] if len(folders) < len(split.entries) else []  # a list's images may be anywhere in it
        inputs, problems = [*split.entries, *labels, *listed], split.problems if not found else Problems()
        found.append(SplitFiles(name, split.source, split.base, partial(read_yolo, split), inputs, problems))
    return found


class LabelFiles:
    """The images of a split and their label files.

    Attributes:
        images: path -> name in messages, in the order of the split's entries; images of a list may be missing.
        folders: folder of images -> folder of their label files.
        of_images: image -> label file in that folder, else the one beside the image; None if it has neither.
        beside: label files beside images that also have a folder of labels.
    """

    def __init__(self, split: YoloSplit):
        self.split = split
        self.images: dict[Path, str] = {}
        for entry in split.entries:  # an entry may be the folder above images/ and labels/
            is_list = not entry.is_dir()
            self.images |= images_of_list(entry, split.base) if is_list else {p: p.name for p in images_below(entry)}
        self.folders = {path: label_folder(path, split.base) for path in dict.fromkeys(i.parent for i in self.images)}
        self.names = {place: set(names_in(place)) for pair in self.folders.items() for place in pair}
        self.beside: list[Path] = []
        self.of_images = {image: self.label_file(image) for image in self.images}

    def label_file(self, image: Path) -> Path | None:
        folder, name = self.folders[image.parent], f"{image.stem}.txt"
        inside = folder / name if name in self.names[folder] else None
        beside = image.parent / name
        if folder != image.parent and name in self.names[image.parent] and is_label_file(beside):
            self.beside.append(beside)
            return inside or beside
        return inside

    def shared(self) -> dict[Path, list[str]]:
        """Return label file -> image names, for label files that several images share: a.txt of a.jpg and a.png."""
        stems: dict[Path, list[str]] = {}
        for folder, labels in self.folders.items():
            for name in sorted(filter(is_image_name, self.names[folder])):
                stems.setdefault(labels / f"{Path(name).stem}.txt", []).append(name)
        used = set(self.of_images.values())
        return {path: names for path, names in stems.items() if len(names) > 1 and path in used}

    def lonely(self) -> list[Path]:
        """List the files in the split's label folders that belong to no image."""
        if not all(entry.is_dir() for entry in self.split.entries):
            return []  # these files may belong to other lists
        places = {*self.folders.values(), *(replaced_folder(entry, self.split.base) for entry in self.split.entries)}
        places -= {*self.folders, *self.split.entries}
        used = set(self.of_images.values())
        files = dict.fromkeys(path for place in sorted(places) for path in files_below(place))
        return [path for path in files if path.suffix == ".txt" and path.name not in CLASS_LISTS and path not in used]


def is_label_file(path: Path) -> bool:
    """Whether the first non-empty line of a text file has YOLO's form."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = next(filter(str.strip, file), "")
    with suppress(ValueError):
        parse_label_line(line)
        return True
    return False


def images_of_list(path: Path, base: Path) -> dict[Path, str]:
    """Read a list of image paths, and find the images. Return path of the image -> line of the list.

    Paths may be relative to the list or to `base`, or come from another machine. The longest
    end of a path that leads to a file is used.
    """
    finder, images = ImageFinder(base), {}
    for line in filter(None, (line.replace("\\", "/") for line in read_lines(path))):
        if not is_image_name(line):
            raise ValueError(f"{path}: expected one image path per line, not {shown(line)}")
        parts = [part for part in PurePosixPath(line).parts if part not in (".", "..")]
        tails = [line, *("/".join(parts[k:]) for k in range(len(parts)))]
        found = (finder.at(place, tail) for tail in tails for place in (path.parent, base))
        file_name = next((one for one in found if one is not None), None) or finder.find(line)
        images[base / file_name if file_name else base / line.lstrip("/")] = line
    return images


def label_folder(images: Path, base: Path) -> Path:
    """Find the folder of label files for a folder of images: see `replaced_folder`, or else the image folder itself."""
    folder = replaced_folder(images, base)
    return folder if folder.is_dir() or not any(name.endswith(".txt") for name in names_in(images)) else images


def replaced_folder(images: Path, base: Path) -> Path:
    """Replace the last "images" in a path by "labels". Above `base`, do so only if the new folder exists."""
    inner = images.relative_to(base).parts if images.is_relative_to(base) else ()
    for root, parts, is_inside in ((base, inner, True), (Path(), images.parts, False)):
        places = [k for k, part in enumerate(parts) if part.lower() == "images"]
        if places:
            folder = root.joinpath(*parts[: places[-1]], "labels", *parts[places[-1] + 1 :])
            if is_inside or folder.is_dir():
                return folder
    return images


def read_yolo(split: YoloSplit) -> Converted:
    """Read a split with its label files. ValueError if no image has a label file, or if the labels are poses."""
    builder, files = CocoBuilder(split.base, split.class_names), LabelFiles(split)
    if files.images and not any(files.of_images.values()):
        first = next(iter(files.images))
        expected = files.folders[first.parent] / f"{first.stem}.txt"
        raise ValueError(f"{split.source}: no image has a label file; expected e.g. {expected}")
    shared = files.shared()
    outlines: list[list[float]] = []
    for path, name in files.images.items():
        labels = files.of_images[path]
        if not path.is_relative_to(split.base) or not path.is_file():
            builder.problems.add("missing", name)
        elif labels not in shared and (image := builder.add_image(path.relative_to(split.base).as_posix())):
            if labels is not None:
                outlines += add_label_file(builder, image, labels, split)
    if are_poses(outlines):
        raise ValueError(f"{split.source}: each label is a box followed by points inside it: {POSES}")
    problems = builder.problems
    problems.add_all("shared labels", shared, lambda path: f"{split.short(path)} of {' and '.join(shared[path])}")
    problems.add_all("labels beside", files.beside, split.short)
    problems.add_all("no label image", files.lonely(), split.short)
    return builder.converted()


def add_label_file(builder: CocoBuilder, image: dict, path: Path, split: YoloSplit) -> list[list[float]]:
    """Add the objects of one label file, one per line. Return the coordinates of each outline, as in the file."""
    problems, name, outlines = builder.problems, split.short(path), []
    edges = image["width"], image["height"]
    try:
        lines = read_lines(path, problems)
    except ValueError as error:
        problems.add("label line", str(error))
        return []
    for number, line in enumerate(lines, start=1):
        where = f"{name}, line {number}"
        if not line:
            continue
        try:
            class_id, values = parse_label_line(line)
            x, y, w, h = values[:4]
            is_box = len(values) == 4
            if is_box and (w <= 0 or h <= 0):
                raise ValueError(f"a box of width {w:g} and height {h:g}")
        except ValueError as error:
            problems.add("label line", f"{where}: {error}")
            continue
        if class_id >= len(split.class_names):
            problems.add("class id", f"{where}: {class_id} of {len(split.class_names)} classes from 0")
            continue
        corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2] if is_box else values
        if min(corners) < -OUTSIDE or max(corners) > 1 + OUTSIDE:
            problems.add("clipped", where)
        scaled = [value * edges[k % 2] for k, value in enumerate(corners)]
        if is_box:
            x1, y1, x2, y2 = (min(max(value, 0.0), float(edges[k % 2])) for k, value in enumerate(scaled))
            builder.add_object(image, split.class_names[class_id], box=(x1, y1, x2, y2))
        else:
            outlines.append(values)
            builder.add_object(image, split.class_names[class_id], polygons=[scaled])
    return outlines


def are_poses(outlines: list[list[float]]) -> bool:
    """Whether all outlines of a split are poses: boxes followed by two or more points inside them.

    Both look alike. But poses all have the same length, and the width and height of a box, read as a corner, are mostly
    far from the other corners. Each point may be followed by its visibility: 0, 1 or 2.
    """
    if len({len(outline) for outline in outlines}) != 1 or len(outlines[0]) < 8:
        return False
    values = np.array(outlines)
    centres, sizes, rest = values[:, None, :2], values[:, None, 2:4], values[:, 4:]
    in_image = np.abs(centres - 0.5) + sizes / 2 <= 0.5 + POSE_SLACK
    if not (in_image.all() and (sizes > 0).all()):
        return False
    for numbers in (2, 3):
        if rest.shape[1] % numbers:
            continue
        points = rest.reshape(len(rest), -1, numbers)
        visible = (points[..., :2] != 0).any(axis=-1, keepdims=True)
        inside = (np.abs(points[..., :2] - centres) <= sizes / 2 + POSE_SLACK) | ~visible
        if not inside.all():
            continue
        if numbers == 3 and np.isin(points[..., 2], (0, 1, 2)).all():
            return True
        others = np.concatenate((centres, np.where(visible, points[..., :2], centres)), axis=1)
        low, high = others.min(axis=1), others.max(axis=1)
        far = np.abs(sizes[:, 0] - (low + high) / 2) > 1.5 * (high - low)
        if numbers == 2 and far.any():
            return True
    return False


def parse_label_line(line: str) -> tuple[int, list[float]]:
    """Parse a line of a label file: a class number, and the coordinates of a box or an outline.

    A box is centre, width and height. Coordinates are fractions of the image. An invalid line raises ValueError.
    """
    try:
        first, *values = (float(word) for word in line.split())
    except ValueError:
        raise ValueError(f"expected numbers, not {shown(line)}") from None
    if not first.is_integer() or first < 0:
        raise ValueError(f"expected a class number first, not {first:g}")
    if len(values) < 4 or len(values) % 2:
        raise ValueError(
            f"expected a class and x y pairs (a box: x y width height; no poses), not {len(values) + 1} numbers"
        )
    if not all(map(math.isfinite, values)):
        raise ValueError(f"has coordinates that are not finite: {shown(line)}")
    if min(values) < -FAR or max(values) > 1 + FAR:
        raise ValueError(f"has the coordinate {max(values, key=abs):g}; expected fractions of the image, 0 to 1")
    return int(first), values
