"""Find the splits of YOLO's layout: from its YAML file, or from a list of classes and the names of folders."""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dataset_files.image_files import SPLIT_NAMES, in_order, names_in, split_paths
from dataset_files.layouts.text_files import read_lines, read_yaml
from dataset_files.problems import Problems, shown

USUAL_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")  # taken before others
LARGEST_YAML = 4 << 20  # bytes
SPLIT_KEY = re.compile(r"^(train|val|valid|validation|test)\s*:", re.MULTILINE)
CLASS_LISTS = ("classes.txt", "obj.names")
NO_VALUE = ("", "~", "null")
POSES = "pose labels hold a box and key points, and no outlines; export segmentation instead"
NAMES_KEY = re.compile(r"^names\s*:", re.MULTILINE)


@dataclass
class YoloSplit:
    """A split described by `source`: a YAML file or a list of classes. All splits of a source share `problems`."""

    source: Path
    base: Path  # the folder that file names are relative to
    class_names: list[str]  # by class number
    entries: list[Path]  # image folders and lists of images
    problems: Problems

    def short(self, path: Path) -> str:
        """Format a path for messages: relative to `base` if it is inside."""
        return path.relative_to(self.base).as_posix() if path.is_relative_to(self.base) else str(path)


def find_yaml(root: Path) -> Path | None:
    """Find the YAML file with `names` and splits; prefer usual file names, then the first in alphabetical order."""
    if root.is_file():
        return root if root.suffix.lower() in (".yaml", ".yml") else None
    for name in sorted(names_in(root, (".yaml", ".yml")), key=lambda name: name.lower() not in USUAL_NAMES):
        path = root / name
        if path.is_file() and path.stat().st_size <= LARGEST_YAML:
            text = path.read_bytes().replace(b"\0", b"").decode(errors="replace").lstrip("\ufeff\ufffd")
            if NAMES_KEY.search(text) and SPLIT_KEY.search(text):
                return path
    return None


def read_splits(yaml: Path) -> dict[str, YoloSplit]:
    """Read the splits of a YAML file. Splits without an existing folder or list are left out."""
    problems = Problems()
    content = read_yaml(yaml, problems)
    if not isinstance(content, dict):
        raise ValueError(f"{yaml}: expected lines such as 'train: images/train', not {shown(content)}")
    if "kpt_shape" in content:
        raise ValueError(f"{yaml}: has kpt_shape: {POSES}")
    class_names, path = read_class_names(content.get("names"), yaml), content.get("path")
    named = yaml.parent / path.replace("\\", "/") if isinstance(path, str) and path else yaml.parent
    base = named if named.is_dir() else yaml.parent
    splits: dict[str, YoloSplit] = {}
    missing: list[str] = []
    taken: dict[Path, str] = {}
    for key, value in content.items():
        name = SPLIT_NAMES.get(key)
        wanted = [one for one in (value if isinstance(value, list) else [value]) if one not in NO_VALUE]
        if name is None or not wanted:
            continue
        if not all(isinstance(one, str) for one in wanted):
            raise ValueError(f"{yaml}: expected '{key}: folder' or a list of folders, not {shown(value)}")
        entries = []
        for one in dict.fromkeys(wanted):
            place = resolve(one, base, yaml.parent)
            if place is None:
                missing.append(f"{key}: {one} in {yaml.name}")
                continue
            if taken.setdefault(place, one) != one:
                both = f"{taken[place]!r} and {one!r}"
                raise ValueError(f"{yaml}: {both} both lead to {place}; write where each of them is, e.g. images/val")
            entries.append(place)
        if entries:
            splits[name] = YoloSplit(yaml, common_base(base, entries), class_names, entries, problems)
    if not splits:
        raise ValueError(f"{yaml}: names no folder that exists ({shown(missing)}, looked for in {base})")
    problems.add_all("no split", missing, str)
    return in_order(splits)


def read_class_names(names: object, yaml: Path) -> list[str]:
    """Read class names from a list, or from a mapping of the numbers 0, 1, 2, ..."""
    if isinstance(names, dict) and names and all(key.isdecimal() for key in names):
        by_number = {int(key): name for key, name in names.items()}
        if sorted(by_number) == list(range(len(names))):
            names = [by_number[number] for number in sorted(by_number)]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{yaml}: expected names such as [cat, dog] or {{0: cat, 1: dog}}, not {shown(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{yaml}: names has {shown(next(n for n in names if names.count(n) > 1))} more than once")
    return names


def resolve(entry: str, base: Path, yaml_folder: Path) -> Path | None:
    """Find the folder or list that an entry of the YAML refers to; None if it does not exist.

    Roboflow writes ../train/images or NAME-1/train/images for train/images beside the YAML. An absolute path from
    another machine is found by its last parts. Places inside the folder are tried before a path that leaves it.
    """
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    inner = [part for part in parts if part not in ("..", ".", "/")]
    foreign = entry.startswith(("/", "\\")) or ":" in parts[0] if parts else False
    tails = [inner[k:] for k in range(len(inner) if foreign else min(len(inner), 2))]
    candidates = [folder.joinpath(*tail) for tail in tails if tail for folder in (base, yaml_folder)]
    as_named = base / entry.replace("\\", "/")
    candidates = [as_named, *candidates] if foreign else [*candidates, as_named]
    return next((path for path in candidates if path.is_dir() or (path.suffix == ".txt" and path.is_file())), None)


def common_base(base: Path, entries: list[Path]) -> Path:
    """Return the folder to which file names are relative: `base` if it holds all entries, else a common ancestor."""
    if all(entry.is_relative_to(base) and ".." not in entry.relative_to(base).parts for entry in entries):
        return base
    folders = [place if place.is_dir() else place.parent for place in (entry.resolve() for entry in entries)]
    return Path(os.path.commonpath(folders)).parent  # this also contains the folders of labels


def splits_of_folders(root: Path) -> dict[str, YoloSplit]:
    """Find the splits of a folder with a list of classes in place of a YAML file. ValueError if two lists disagree."""
    problems = Problems()
    found = find_class_list(root, problems)
    if found is None:
        return {}
    source, class_names = found
    images = root / "images" if (root / "images").is_dir() else root
    lists = split_paths(source.parent, ".txt") | split_paths(root, ".txt")
    entries = in_order(lists) or split_paths(images) or split_paths(root) or {"": images}
    return {name: YoloSplit(source, root, class_names, [path], problems) for name, path in entries.items()}


def find_class_list(root: Path, problems: Problems) -> tuple[Path, list[str]] | None:
    """Find and read the list of classes in a folder, or beside its label files.

    labelImg writes one into every folder of labels, but appends new classes to only one of them. Raises ValueError if a
    list is invalid, or not the beginning of another.
    """
    labels, splits = root / "labels", split_paths(root).values()
    places = [root, root / "data", labels, *split_paths(labels).values(), root / "images"]
    places += [place for split in splits for place in (split, split / "labels")]
    paths = [place / name for place in places for name in CLASS_LISTS]
    lists = {path: read_lines(path, problems) for path in paths if path.is_file()}
    for path, names in lists.items():
        while names and not names[-1]:
            names.pop()
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"{path}: expected one class name per line, none empty or repeated, not {shown(names)}")
    if not lists:
        return None
    longest = max(lists, key=lambda path: len(lists[path]))
    for path, names in lists.items():
        if names != lists[longest][: len(names)]:
            raise ValueError(f"{path}: numbers the classes differently from {longest}; keep the right one")
    return longest, lists[longest]
