"""Read YOLO's segmentation layout: images in folders, and a text file of outlines for each image."""

import math
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from dataset_files.conversion import Converted, SplitFiles
from dataset_files.file_names import ImageFinder
from dataset_files.image_files import images_below, is_image_name, names_in
from dataset_files.layouts.coco_builder import CocoBuilder
from dataset_files.layouts.yolo_splits import CLASS_LISTS, YoloSplit, find_yaml, read_splits, splits_of_folders
from dataset_files.problems import shown

OUTSIDE = 1e-6  # beyond [0, 1] by more than rounding
FAR = 1.0  # beyond [0, 1], where coordinates can only be meant in pixels


def find(root: Path) -> list[SplitFiles]:
    """The splits of a folder in YOLO's layout, or of its YAML file; [] if it is of another one.

    Raises:
        ValueError: the YAML or the list of classes cannot be read, or the YAML names no folder that exists.
    """
    if (yaml := find_yaml(root)) is not None:
        splits = read_splits(yaml)
    else:
        splits = splits_of_folders(root) if root.is_dir() else {}
        if not any(map(has_labels, splits.values())):
            return []
    return [
        SplitFiles(name, split.source, split.base, partial(read_yolo, split), partial(input_files, split))
        for name, split in splits.items()
    ]


def has_labels(split: YoloSplit) -> bool:
    """Whether one of a split's images has a label file in YOLO's form; other tools write classes.txt, too."""
    images = listed_images(split)
    folders = label_folders(images, split.base)
    for path, _ in images:
        labels = folders[path.parent] / f"{path.stem}.txt"
        lines = labels.read_text(encoding="utf-8-sig", errors="replace").splitlines() if labels.is_file() else []
        for line in filter(str.strip, lines[:1]):
            with suppress(ValueError):
                parse_label_line(line)
                return True
    return False


def input_files(split: YoloSplit) -> list[Path]:
    """The YAML, lists, folders of images (for their listing) and label files."""
    folders = label_folders(listed_images(split), split.base)
    labels = sorted(set(folders.values()))
    files = [folder / name for folder in labels for name in sorted(names_in(folder)) if name.endswith(".txt")]
    return [split.source, *split.entries, *folders, *files]


def listed_images(split: YoloSplit) -> list[tuple[Path, str]]:
    """Images of a split and how messages call them, in the order of entries; those of a list may be missing."""
    found: dict[Path, str] = {}
    for entry in split.entries:
        if entry.is_dir():
            # An entry may be the folder above images/ and labels/.
            found |= {path: path.name for path in images_below(entry)}
        else:
            found |= images_of_list(entry, split.base)
    return list(found.items())


def images_of_list(path: Path, base: Path) -> dict[Path, str]:
    """The images of a .txt with one path per line: relative to the list or to `base`, or of another machine."""
    try:
        lines = [line.strip().replace("\\", "/") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected one image path per line in UTF-8 ({error})") from error
    finder = ImageFinder(base)
    images = {}
    for line in filter(None, lines):
        if not is_image_name(line):
            raise ValueError(f"{path}: expected one image path per line, not {shown(line)}")
        file_name = listed_image(finder, line, path.parent)
        images[base / file_name if file_name else base / line.lstrip("/")] = line
    return images


def listed_image(finder: ImageFinder, line: str, folder: Path) -> str | None:
    """An image of a list, relative to the finder's root: by as many of its last folders as lead to a file."""
    parts = [part for part in PurePosixPath(line).parts if part not in (".", "..")]
    tails = ["/".join(parts[k:]) for k in range(len(parts))]
    found = (finder.at(place, tail) for tail in (line, *tails) for place in (folder, finder.root))
    return next((one for one in found if one is not None), None) or finder.find(line)


def label_folders(images: list[tuple[Path, str]], base: Path) -> dict[Path, Path]:
    """Folder of images -> folder of their label files."""
    return {folder: label_folder(folder, base) for folder in dict.fromkeys(path.parent for path, _ in images)}


def label_folder(images: Path, base: Path) -> Path:
    """Where the label files of images in a folder are: the last "images" in its path replaced, else beside them."""
    folder = replaced_folder(images, base)
    return folder if folder.is_dir() or not any(name.endswith(".txt") for name in names_in(images)) else images


def replaced_folder(images: Path, base: Path) -> Path:
    inner = list(images.relative_to(base).parts) if images.is_relative_to(base) else []
    for parts, root in ((inner, base), (list(images.parts), None)):
        lowered = [part.lower() for part in parts]
        if "images" in lowered:
            place = len(parts) - 1 - lowered[::-1].index("images")
            replaced = [*parts[:place], "labels", *parts[place + 1 :]]
            folder = Path(*replaced) if root is None else root.joinpath(*replaced)
            if folder.is_dir() or root is not None:
                return folder
    return images


def read_yolo(split: YoloSplit) -> Converted:
    """All images of a split and the objects of their label files."""
    builder = CocoBuilder(split.base, split.class_names)
    builder.problems.add_all("no split", split.missing, lambda entry: f"{entry} in {split.source.name}")
    images = listed_images(split)
    folders = label_folders(images, split.base)
    any_labels = False
    for path, name in images:
        if not path.is_relative_to(split.base) or not path.is_file():
            builder.problems.add("missing", name)
            continue
        labels = folders[path.parent] / f"{path.stem}.txt"
        image = builder.add_image(path.relative_to(split.base).as_posix())
        if labels.is_file():
            any_labels = True
            if image is not None:
                add_label_file(builder, image, labels, split)
    if images and not any_labels:
        path = images[0][0]
        expected = folders[path.parent] / f"{path.stem}.txt"
        raise ValueError(f"{split.source}: no image has a label file; expected e.g. {expected}")
    if all(entry.is_dir() for entry in split.entries):
        note_lonely_labels(builder, images, folders)
    return builder.converted()


def note_lonely_labels(builder: CocoBuilder, images: list[tuple[Path, str]], folders: dict[Path, Path]) -> None:
    """Note label files in the folders of a split that has no image for them."""
    stems: dict[Path, set[str]] = {}
    for path, _ in images:
        stems.setdefault(folders[path.parent], set()).add(path.stem)
    listed_alone = all(folder != labels for folder, labels in folders.items())  # else lists of images lie there, too
    for folder, known in stems.items() if listed_alone else ():
        lonely = (n for n in sorted(names_in(folder)) if n.endswith(".txt") and n[:-4] not in known)
        builder.problems.add_all("no label image", (n for n in lonely if n not in CLASS_LISTS), lambda n: f"{n}")


def add_label_file(builder: CocoBuilder, image: dict, path: Path, split: YoloSplit) -> None:
    """Add the objects of one label file, one per line."""
    name = path.relative_to(split.base).as_posix() if path.is_relative_to(split.base) else str(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        builder.problems.add("label line", f"{name}: expected text in UTF-8 ({error})")
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{name}, line {number}"
            try:
                class_id, values = parse_label_line(line)
            except ValueError as error:
                builder.problems.add("label line", f"{where}: {error}")
                continue
            if class_id >= len(split.class_names):
                builder.problems.add("class id", f"{where}: {class_id} of {len(split.class_names)} classes from 0")
            else:
                add_labelled(builder, image, split.class_names[class_id], values, where)


def parse_label_line(line: str) -> tuple[int, list[float]]:
    """Class number and coordinates of a line.

    Raises:
        ValueError: it is not a class and a box or outline in fractions of the image.
    """
    try:
        first, *values = (float(word) for word in line.split())
    except ValueError:
        raise ValueError(f"expected numbers, not {shown(line)}") from None
    if not first.is_integer() or first < 0:
        raise ValueError(f"expected a class number first, not {first:g}")
    if len(values) < 4 or len(values) % 2:
        raise ValueError(f"expected a class and x y pairs (a box: x y width height), not {len(values) + 1} numbers")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"has coordinates that are not finite: {shown(line)}")
    if min(values) < -FAR or max(values) > 1 + FAR:
        raise ValueError(f"has the coordinate {max(values, key=abs):g}; expected fractions of the image, 0 to 1")
    return int(first), values


def add_labelled(builder: CocoBuilder, image: dict, class_name: str, values: list[float], where: str) -> None:
    """Add an object from fractions of the image: x, y of the centre, width and height of a box, or an outline."""
    width, height = image["width"], image["height"]
    if len(values) == 4:
        x, y, w, h = values
        corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        if w <= 0 or h <= 0:
            builder.problems.add("label line", f"{where}: a box of width {w:g} and height {h:g}")
            return
    else:
        corners = values
    if min(corners) < -OUTSIDE or max(corners) > 1 + OUTSIDE:
        builder.problems.add("clipped", where)
    scaled = [value * (height if k % 2 else width) for k, value in enumerate(corners)]
    if len(values) == 4:
        x1, y1, x2, y2 = (min(max(v, 0.0), float(width if k % 2 == 0 else height)) for k, v in enumerate(scaled))
        builder.add_object(image, class_name, box=(x1, y1, x2, y2))
    else:
        builder.add_object(image, class_name, polygons=[scaled])
