"""Find COCO files and their images in a folder that a tool exported: one `SplitFiles` per split.

COCO files are recognised by their first and last kilobytes, whatever their name. The name of the file or of its folder
decides the split, and the place of the file's first images decides the image folder.
"""

import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dataset_files.conversion_store import SplitFiles
from dataset_files.image_files import SPLIT_ORDER, file_states, is_image_name, names_in, split_in
from dataset_files.problems import leaves_folder

SMALL = 1 << 20  # bytes: smaller JSON files may be parsed to recognise them
ENDS = 1 << 16  # bytes that are read of either end of a larger file
PROBES = 20  # file names of a COCO file that are looked for
MOST_FILES = 50  # JSON files of a folder; if there are more, those that belong to one image each are skipped
MOST_FOLDERS = 200  # candidates for the image folder
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels")
ROBOFLOW = "_annotations.coco.json"
REMEDY = "give --train-json FILE and --val-json FILE"
OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")  # COCO's other annotation files
KEY = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
NAMES = [re.compile(rb'"%s"\s*:\s*("(?:[^"\\]|\\.)*")' % key) for key in (b"file_name", b"(?:coco_url|path)")]


def find(root: Path) -> list[SplitFiles]:
    """Find the splits of a folder with COCO files, or of a single COCO file."""
    if root.is_file():
        files = [root] if is_coco_file(root) else []
        root = root.parent.parent if root.parent.name.lower() in ANNOTATION_FOLDERS else root.parent
    else:
        files = [path for path in json_files(root) if is_coco_file(path)]
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(split_in(path.stem) or nearest_split(path.parent, root), []).append(path)
    if "train" in by_split:
        by_split.pop("", None)  # the whole dataset again, or annotations for another task
    chosen = {name: only_one(by_split[name], name, root) for name in (*SPLIT_ORDER, "") if name in by_split}
    if "" in chosen and "val" in chosen:
        raise ValueError(f"{root}: {named(chosen.values(), root)} do not say which one is for training; {REMEDY}")
    splits = [SplitFiles(split, path, image_folder_of(path, split, root)) for split, path in chosen.items()]
    if splits:
        splits[0].inputs = [path for path in files if path not in chosen.values()]
        splits[0].problems.add_all("unused file", splits[0].inputs, str)
    for split in splits:
        if (rival := rival_folder(split, root)) is not None:
            split.problems.add("image folders", f"{split.source} in {split.image_folder}, not in {rival}")
    return splits


def json_files(root: Path) -> Iterator[Path]:
    """Yield the JSON files in a folder and two levels below, sorted, without hidden ones."""
    for place, folders, names in os.walk(root):
        inner = Path(place).relative_to(root)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if len(inner.parts) < 2 else []
        found = sorted(name for name in names if name.lower().endswith(".json") and not name.startswith("."))
        if len(found) > MOST_FILES:
            stems = {os.path.splitext(name)[0] for name in names if is_image_name(name)}
            found = [name for name in found if name[: -len(".json")] not in stems][:MOST_FILES]
        yield from (Path(place, name) for name in found)


def is_coco_file(path: Path) -> bool:
    """Whether a JSON file looks like COCO instances. In invalid JSON, two of COCO's three lists are enough."""
    if path.name.lower().startswith(OTHER_TASKS):
        return False
    if path.name.lower().startswith("instances_") or path.name == ROBOFLOW:
        return True  # recognised by name, so that faults inside are reported
    try:
        ends = both_ends(path)
    except OSError:
        return False
    keys = set(KEY.findall(ends))
    if not keys or not ends.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"{"):
        return False
    if path.stat().st_size <= SMALL:
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return len(keys) >= 2
        return isinstance(content, dict) and all(isinstance(content.get(k), list) for k in ("images", "annotations"))
    if b'"segments_info"' in ends or b'"caption"' in ends:
        return False
    return {b"images", b"annotations"} <= keys or all(found_after(path, key) for key in (b'"images"', b'"annotations"'))


def both_ends(path: Path) -> bytes:
    """Return the first and last kilobytes of a file. Zero bytes are removed, so that UTF-16 reads like ASCII."""
    with open(path, "rb") as file:
        size = path.stat().st_size
        start = file.read(SMALL if size <= SMALL else ENDS)
        file.seek(max(size - ENDS, len(start)))
        return (start + file.read()).replace(b"\0", b"")


def found_after(path: Path, text: bytes) -> bytes:
    """Return a few kilobytes of a file, starting at the first occurrence of a text; b"" if it does not occur."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(text)
        return content[place : place + ENDS] if place >= 0 else b""


def nearest_split(folder: Path, root: Path) -> str:
    """Return the split in the name of a folder, or else of its nearest ancestor below `root`; "" if there is none."""
    return next(filter(None, map(split_in, reversed(folder.relative_to(root).parts))), "")


def only_one(files: list[Path], split: str, root: Path) -> Path:
    """Choose one of several annotation files of a split.

    The file highest in the tree comes first, not counting annotation folders, then one with a usual name. Raises
    ValueError if several are left, except for a test split.
    """

    def depth(path: Path) -> int:
        return sum(part.lower() not in ANNOTATION_FOLDERS for part in path.relative_to(root).parts[:-1])

    highest = min(map(depth, files))
    for preferred in (
        lambda path: depth(path) == highest,
        lambda path: path.name.lower().startswith("instances"),
        lambda path: "2017" in path.name,
        lambda path: path.name.lower() in (ROBOFLOW, "result.json"),
    ):
        files = [path for path in files if preferred(path)] or files
    if len(files) > 1 and split != "test":
        purpose = {"train": " for training", "val": " for validation", "": ""}[split]
        raise ValueError(f"{root}: holds several COCO files{purpose} ({named(files, root)}); {REMEDY}")
    return files[0]


def named(paths: Iterable[Path], root: Path) -> str:
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def image_folder_of(path: Path, split: str, root: Path) -> Path:
    """Find the folder below `root` that the file names of a COCO file are relative to.

    This is the folder with most of the file's first images under their full names, else with most of their base names,
    else `root` if some are below it, else the folder that is named like the file.
    """
    names, candidates = first_file_names(path), image_folders(path, split, root)
    if not names:
        return candidates[0]
    inside = [name for name in names if not leaves_folder(name)]
    counts = [sum((folder / name).is_file() for name in inside) for folder in candidates]
    if 2 * max(counts) >= len(names):
        return candidates[counts.index(max(counts))]
    stems = {stem_of(name) for name in names}
    counts = [len(stems & set(map(stem_of, filter(is_image_name, names_in(folder))))) for folder in candidates]
    if 2 * max(counts) >= len(stems):
        return candidates[counts.index(max(counts))]
    return root if max(counts) else candidates[0]


def rival_folder(split: SplitFiles, root: Path) -> Path | None:
    """Return another folder in which the file names of a split's images lead to different files; None if there is none.

    Also None if the name or place of the split's image folder leaves no doubt.
    """
    chosen = split.image_folder
    if chosen.name in (split.source.stem, "images") or chosen in (split.source.parent, root) or split_in(chosen.name):
        return None
    names = [name for name in first_file_names(split.source) if not leaves_folder(name)]
    sizes = [size for size, _ in file_states(chosen, names).tolist()]
    for folder in image_folders(split.source, split.name, root) if max(sizes, default=-1) >= 0 else ():
        others = [size for size, _ in file_states(folder, names).tolist()]
        if others != sizes and all(other >= 0 for other, size in zip(others, sizes) if size >= 0):
            return folder
    return None


def image_folders(path: Path, split: str, root: Path) -> list[Path]:
    """List folders that may hold a COCO file's images: first those named like the file, last those of another split."""
    subset, is_inner = path.stem.removeprefix("instances_"), path.parent.name.lower() in ANNOTATION_FOLDERS
    places = [root, root / "images", path.parent, path.parent / "images"]
    likely = [place / subset for place in places] + places[2:] + places[:2]
    starts = dict.fromkeys(([path.parent.parent] if is_inner and path.parent != root else []) + [path.parent, root])
    below = [folder for start in starts for folder in folders_below(start, levels=2)]

    def distance(folder: Path) -> int:
        own = nearest_split(folder, root)
        return 0 if folder.name == subset else 1 if split and own == split else 3 if own and own != split else 2

    folders = [folder for folder in likely if folder.is_dir()] + below
    return sorted(list(dict.fromkeys(folders))[:MOST_FOLDERS], key=distance)


def folders_below(folder: Path, levels: int) -> Iterator[Path]:
    """Yield the folders below a folder, at most `levels` deep, without hidden ones."""
    names = next(os.walk(folder))[1] if levels and folder.is_dir() else []
    inner = [folder / name for name in sorted(names) if not name.startswith(".")][:MOST_FOLDERS]
    yield from inner
    for path in inner:
        yield from folders_below(path, levels - 1)


def first_file_names(path: Path) -> list[str]:
    """Return the first few file names of images in a COCO file, or their URLs or paths if no image has a file name."""
    ends = both_ends(path)
    if ends and not any(name.search(ends) for name in NAMES):
        ends = found_after(path, b'"images"')
    names: list[str] = []
    for found in next((name for name in NAMES if name.search(ends)), NAMES[0]).finditer(ends):
        with suppress(ValueError):
            names.append(json.loads(found[1]))
        if len(names) == PROBES:
            break
    return list(filter(None, names))


def stem_of(name: str) -> str:
    return os.path.splitext(name.replace("\\", "/").rpartition("/")[2])[0].lower()
