"""Find COCO files and their images in a folder as a tool exported it: a folder in, one `SplitFiles` per split out.

COCO files are recognised by their first and last kilobytes, whatever their name. The split follows from the name of the
file or of its folder, the image folder from where the first images of the file are.
"""

import json
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dataset_files.conversion import SplitFiles
from dataset_files.file_names import is_lfs_pointer
from dataset_files.image_files import IMAGE_SUFFIXES, split_in
from dataset_files.problems import leaves_folder

SMALL = 1 << 20  # bytes: a smaller JSON file may be parsed to see what it is
ENDS = 1 << 16  # bytes that are read of either end of a larger one
PROBES = 20  # file names of a COCO file that are looked for
MOST_FILES = 50  # JSON files of a folder; where there are more, those that belong to one image each are passed over
MOST_FOLDERS = 200  # that are considered as image folders
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels")
# COCO's files of other tasks, beside the instances.
ROBOFLOW = "_annotations.coco.json"
OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")
SPLIT_ORDER = ("train", "val", "test", "")
KEY = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
NAMES = [re.compile(rb'"%s"\s*:\s*("(?:[^"\\]|\\.)*")' % key) for key in (b"file_name", b"(?:coco_url|path)")]


def find(root: Path) -> list[SplitFiles]:
    """The splits of a data set whose annotations are COCO files; none if there is no such file.

    Args:
        root: a folder, or a COCO file itself.

    Raises:
        ValueError: several files may be meant for one split.
    """
    if root.is_file():
        files = [root] if is_coco_file(root) else []
        root = root.parent.parent if root.parent.name.lower() in ANNOTATION_FOLDERS else root.parent
    else:
        files = [path for path in json_files(root) if is_coco_file(path)]
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(split_of(path, root), []).append(path)
    if "train" in by_split:
        by_split.pop("", None)  # all of the data once more, or another task's
    chosen = {split: only_one(by_split[split], split, root) for split in SPLIT_ORDER if split in by_split}
    if "" in chosen and "val" in chosen:
        raise ValueError(
            f"{root}: {named(chosen.values(), root)} do not say which one is for training; give --train-json FILE and "
            "--val-json FILE"
        )
    splits = [SplitFiles(split, path, image_folder_of(path, split, root)) for split, path in chosen.items()]
    if splits:
        splits[0].inputs = [path for path in files if path not in chosen.values()]
        splits[0].problems.add_all("unused file", splits[0].inputs, str)
    return splits


# ------------------------------------------------------------------------------------------------------ COCO files


def json_files(root: Path) -> Iterator[Path]:
    """JSON files in a folder and two levels below, sorted; no hidden ones."""
    for place, folders, names in os.walk(root):
        inner = Path(place).relative_to(root)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if len(inner.parts) < 2 else []
        found = sorted(name for name in names if name.lower().endswith(".json") and not name.startswith("."))
        if len(found) > MOST_FILES:
            stems = {os.path.splitext(name)[0] for name in names if is_image(name)}
            found = [name for name in found if name[: -len(".json")] not in stems][:MOST_FILES]
        yield from (Path(place, name) for name in found)


def is_coco_file(path: Path) -> bool:
    """Whether a JSON file looks like COCO instances; a broken one does if it holds two of the three lists."""
    if path.name.lower().startswith(OTHER_TASKS):
        return False
    if path.name.lower().startswith("instances_") or path.name == ROBOFLOW:
        return True  # by its name; what is wrong inside is named, rather than the file passed over
    if is_lfs_pointer(path):
        return False
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
    return {b"images", b"annotations"} <= keys or all(is_in(path, key) for key in (b'"images"', b'"annotations"'))


def both_ends(path: Path) -> bytes:
    """The first and last kilobytes of a file; UTF-16 without its zero bytes, so that ASCII in it is readable."""
    with open(path, "rb") as file:
        start = file.read(SMALL if path.stat().st_size <= SMALL else ENDS)
        rest = path.stat().st_size - len(start)
        file.seek(-min(rest, ENDS), os.SEEK_END)
        return (start + (file.read() if rest > 0 else b"")).replace(b"\0", b"")


def is_in(path: Path, text: bytes) -> bool:
    """Whether a text stands anywhere in a file, without reading it as JSON."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


# ---------------------------------------------------------------------------------------------------------- splits


def split_of(path: Path, root: Path) -> str:
    """ "train", "val" or "test" if the name of a file says so, else that of the nearest folder that does; else ""."""
    return split_in(path.stem) or next(filter(None, map(split_in, reversed(path.relative_to(root).parts[:-1]))), "")


def only_one(files: list[Path], split: str, root: Path) -> Path:
    """The file of a split: those highest up, called instances, of 2017 or of no year come first.

    Raises:
        ValueError: several are left.
    """
    preferences = (
        lambda path: depth_of(path, root) == min(depth_of(file, root) for file in files),
        lambda path: path.name.lower().startswith("instances"),
        lambda path: "2017" in path.name,
        lambda path: path.name.lower() in (ROBOFLOW, "result.json"),
    )
    for preferred in preferences:
        files = [path for path in files if preferred(path)] or files
    if len(files) > 1 and split != "test":
        purpose = {"train": " for training", "val": " for validation", "": ""}[split]
        raise ValueError(
            f"{root}: holds several COCO files{purpose} ({named(files, root)}); give --train-json FILE and "
            "--val-json FILE"
        )
    return files[0]


def depth_of(path: Path, root: Path) -> int:
    """Folders between `root` and a file, those for annotations not counted."""
    return sum(part.lower() not in ANNOTATION_FOLDERS for part in path.relative_to(root).parts[:-1])


def named(paths: Iterable[Path], root: Path) -> str:
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# --------------------------------------------------------------------------------------------------- image folders


def image_folder_of(path: Path, split: str, root: Path) -> Path:
    """The folder below `root` that the file names of a COCO file are relative to.

    It is the one that has most of the file's first images under their names as they stand; else the one that has most
    of their base names; else `root` if some are below; else the one that is named like the file.
    """
    names = [name for name in first_file_names(path) if name]
    candidates = list(image_folders(path, split, root))
    if not names:
        return candidates[0]
    best, count = most(candidates, lambda folder: sum(is_file_in(folder, name) for name in names))
    if 2 * count >= len(names):
        return best
    stems = {stem_of(name) for name in names}
    by_base, count = most(candidates, lambda folder: len(stems & {stem_of(name) for name in images_in(folder)}))
    if 2 * count >= len(stems):
        return by_base
    return root if count else candidates[0]


def most(candidates: list[Path], score: Callable[[Path], int]) -> tuple[Path, int]:
    """The first candidate with the highest score, and the score."""
    scores = [score(candidate) for candidate in candidates]
    return candidates[scores.index(max(scores))], max(scores)


def image_folders(path: Path, split: str, root: Path) -> Iterator[Path]:
    """Existing folders that may hold a file's images; those named like it first, those of another split last."""
    subset = re.sub(r"^instances_", "", path.stem)
    likely = [root / subset, root / "images" / subset, path.parent / subset, path.parent / "images" / subset]
    likely += [path.parent, path.parent / "images", root, root / "images"]
    folders = [folder for folder in likely if folder.is_dir()]
    starts = [path.parent, root]
    if path.parent.name.lower() in ANNOTATION_FOLDERS and path.parent != root:
        starts.insert(0, path.parent.parent)
    folders += [folder for start in dict.fromkeys(starts) for folder in folders_below(start, levels=2)]
    folders = list(dict.fromkeys(folders))[:MOST_FOLDERS]

    def distance(folder: Path) -> int:
        own = next(filter(None, map(split_in, reversed(folder.relative_to(root).parts))), "")
        exact = folder.name == subset
        return 0 if exact else 1 if split and own == split else 3 if own and own != split else 2

    yield from sorted(folders, key=distance)


def folders_below(folder: Path, levels: int) -> Iterator[Path]:
    if levels == 0:
        return
    try:
        with os.scandir(folder) as entries:
            inner = sorted(e.path for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return
    for path in inner[:MOST_FOLDERS]:
        yield Path(path)
    for path in inner[:MOST_FOLDERS]:
        yield from folders_below(Path(path), levels - 1)


def first_file_names(path: Path) -> list[str]:
    """The first few file names in a COCO file; of images without one the names in their URLs."""
    ends = both_ends(path)
    if ends and not any(name.search(ends) for name in NAMES):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            place = content.find(b'"images"')
            ends = content[place : place + ENDS] if place >= 0 else b""
    names = []
    for found in next((name for name in NAMES if name.search(ends)), NAMES[0]).finditer(ends):
        try:
            names.append(json.loads(found[1]))
        except ValueError:
            continue
        if len(names) == PROBES:
            break
    return names


def is_file_in(folder: Path, name: str) -> bool:
    return not leaves_folder(name) and (folder / name).is_file()


def images_in(folder: Path) -> Iterator[str]:
    """The names of the images directly in a folder."""
    try:
        with os.scandir(folder) as entries:
            yield from [entry.name for entry in entries if is_image(entry.name)]
    except OSError:
        return


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def stem_of(name: str) -> str:
    return os.path.splitext(name.replace("\\", "/").rpartition("/")[2])[0].lower()
