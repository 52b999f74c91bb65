"""Read YOLO's segmentation layout: a YAML file, images in folders, and a text file of outlines for each image."""

import math
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from dataset_files.image_files import SPLIT_NAMES, SPLIT_ORDER, ImageFinder, images_below, is_image_name, names_in
from dataset_files.layouts.coco_builder import CocoBuilder
from dataset_files.layouts.conversion import Converted, SplitFiles
from dataset_files.layouts.yaml_subset import parse_yaml
from dataset_files.problems import shown

USUAL_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")  # taken before others
LARGEST_YAML = 4 << 20  # bytes
SPLIT_KEY = re.compile(r"^(train|val|valid|validation|test)\s*:", re.MULTILINE)
NAMES_KEY = re.compile(r"^names\s*:", re.MULTILINE)
OUTSIDE = 1e-6  # beyond [0, 1] by more than rounding
FAR = 1.0  # beyond [0, 1], where coordinates can only be meant in pixels


@dataclass
class YoloSplit:
    """One split as its YAML describes it.

    Attributes:
        base: the folder that file names are relative to.
        class_names: by class number.
        entries: image folders and lists of images.
        missing: what the YAML names for any split without its being there.
    """

    yaml: Path
    base: Path
    class_names: list[str]
    entries: list[Path]
    missing: list[str] = field(default_factory=list)


def find(root: Path) -> list[SplitFiles]:
    """The splits of a folder with a YOLO YAML file, or of that file; [] if there is none.

    Raises:
        ValueError: the YAML cannot be read, or names no folder that exists.
    """
    yaml = find_yaml(root)
    if yaml is None:
        return []
    return [
        SplitFiles(name, yaml, split.base, partial(read_yolo, split), partial(input_files, split))
        for name, split in read_splits(yaml).items()
    ]


def find_yaml(root: Path) -> Path | None:
    """The YAML file with `names` and splits; the usual name first, then the alphabet."""
    if root.is_file():
        return root if root.suffix.lower() in (".yaml", ".yml") else None
    names = sorted(name for name in names_in(root) if name.lower().endswith((".yaml", ".yml")))
    for name in sorted(names, key=lambda name: name.lower() not in USUAL_NAMES):
        path = root / name
        if path.is_file() and path.stat().st_size <= LARGEST_YAML:
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            if NAMES_KEY.search(text) and SPLIT_KEY.search(text):
                return path
    return None


def read_splits(yaml: Path) -> dict[str, YoloSplit]:
    """The splits that a YAML names and that exist."""
    try:
        content = parse_yaml(yaml.read_text(encoding="utf-8-sig"), yaml)
    except UnicodeDecodeError as error:
        raise ValueError(f"{yaml}: expected text in UTF-8 ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{yaml}: expected lines such as 'train: images/train', not {shown(content)}")
    class_names, base = read_class_names(content.get("names"), yaml), base_folder(content.get("path"), yaml)
    splits: dict[str, YoloSplit] = {}
    missing: list[str] = []
    taken: dict[Path, str] = {}
    for key, value in content.items():
        name = SPLIT_NAMES.get(key)
        wanted = [one for one in (value if isinstance(value, list) else [value]) if one]
        if name is None or not wanted:
            continue
        if not all(isinstance(one, str) for one in wanted):
            raise ValueError(f"{yaml}: expected '{key}: folder' or a list of folders, not {shown(value)}")
        entries = {one: resolve(one, base, yaml.parent) for one in wanted}
        for one, path in entries.items():
            if path is not None and taken.setdefault(path, one) != one:
                both = f"{taken[path]!r} and {one!r}"
                raise ValueError(f"{yaml}: {both} both lead to {path}; write where each of them is, e.g. images/val")
        missing += [f"{key}: {one}" for one, path in entries.items() if path is None]
        there = [path for path in entries.values() if path is not None]
        if there:
            splits[name] = YoloSplit(yaml, common_base(base, there), class_names, there, missing)
    if not splits:
        raise ValueError(f"{yaml}: names no folder that exists ({shown(missing)}, looked for in {base})")
    return {name: splits[name] for name in SPLIT_ORDER if name in splits}


def read_class_names(names: object, yaml: Path) -> list[str]:
    """Class names by number, from a list or from a mapping of numbers 0, 1, 2, ..."""
    if isinstance(names, dict) and names and all(key.isdecimal() for key in names):
        by_number = {int(key): name for key, name in names.items()}
        if sorted(by_number) == list(range(len(names))):
            names = [by_number[number] for number in sorted(by_number)]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{yaml}: expected names such as [cat, dog] or {{0: cat, 1: dog}}, not {shown(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{yaml}: names has {shown(next(n for n in names if names.count(n) > 1))} more than once")
    return names


def base_folder(path: object, yaml: Path) -> Path:
    """The folder of the data: `path` if it exists, relative to the YAML or absolute, else the YAML's folder."""
    if isinstance(path, str) and path:
        named = yaml.parent / path.replace("\\", "/")
        if named.is_dir():
            return named
    return yaml.parent


def resolve(entry: str, base: Path, yaml_folder: Path) -> Path | None:
    """The folder or list that an entry of the YAML means; None if there is none.

    Roboflow writes ../train/images for train/images beside the YAML; an absolute path of another machine is
    recognised by its last parts. Both are looked for before a path that leaves the folder.
    """
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    inner = [part for part in parts if part not in ("..", ".", "/")]
    foreign = entry.startswith(("/", "\\")) or ":" in parts[0] if parts else False
    tails = [inner]
    if foreign:
        tails = [inner[k:] for k in range(len(inner))]
    candidates = [folder.joinpath(*tail) for tail in tails if tail for folder in (base, yaml_folder)]
    as_named = base / entry.replace("\\", "/")
    candidates = [as_named, *candidates] if foreign else [*candidates, as_named]
    return next((path for path in candidates if path.is_dir() or (path.suffix == ".txt" and path.is_file())), None)


def common_base(base: Path, entries: list[Path]) -> Path:
    """The folder that file names are relative to: `base` if all entries lie in it, else what they share."""
    base = Path(base)
    if all(entry.is_relative_to(base) and ".." not in entry.relative_to(base).parts for entry in entries):
        return base
    resolved = [entry.resolve() for entry in entries]
    shared = resolved[0] if resolved[0].is_dir() else resolved[0].parent
    while not all(entry.is_relative_to(shared) for entry in resolved):
        shared = shared.parent
    # One level up, labels beside images are below it too.
    return shared.parent


def input_files(split: YoloSplit) -> list[Path]:
    """The YAML, lists, folders of images (for their listing) and label files."""
    labels = {label_folder(image.parent, split.base) for image, _ in listed_images(split)}
    files = [label / name for label in sorted(labels) for name in sorted(names_in(label)) if name.endswith(".txt")]
    return [split.yaml, *split.entries, *files]


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


def label_folder(images: Path, base: Path) -> Path:
    """Where the label files of images in a folder are: the last "images" in its path replaced, else beside them."""
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
    builder.problems.add_all("no split", split.missing, lambda entry: f"{entry} in {split.yaml.name}")
    any_labels = False
    folders: dict[Path, Path] = {}
    images = listed_images(split)
    for path, name in images:
        if not path.is_relative_to(split.base) or not path.is_file():
            builder.problems.add("missing", name)
            continue
        folder = folders.setdefault(path.parent, label_folder(path.parent, split.base))
        labels = folder / f"{path.stem}.txt"
        image = builder.add_image(path.relative_to(split.base).as_posix())
        if labels.is_file():
            any_labels = True
            if image is not None:
                add_label_file(builder, image, labels, split)
    if images and not any_labels:
        expected = next((folders[p.parent] / f"{p.stem}.txt" for p, _ in images if p.parent in folders), "")
        raise ValueError(f"{split.yaml}: no image has a label file; expected e.g. {expected}")
    note_lonely_labels(builder, images, folders)
    return builder.converted()


def note_lonely_labels(builder: CocoBuilder, images: list[tuple[Path, str]], folders: dict[Path, Path]) -> None:
    """Note label files in the folders of a split that has no image for them."""
    stems: dict[Path, set[str]] = {}
    for path, _ in images:
        if path.parent in folders:
            stems.setdefault(folders[path.parent], set()).add(path.stem)
    listed_alone = all(folder != labels for folder, labels in folders.items())  # else lists of images lie there, too
    for folder, known in stems.items() if listed_alone else ():
        lonely = (n for n in sorted(names_in(folder)) if n.endswith(".txt") and n[:-4] not in known)
        builder.problems.add_all("no label image", (n for n in lonely if n != "classes.txt"), lambda n: f"{n}")


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
