"""Find the images and videos that files, folders and patterns name, and give their outputs unique names."""

import glob
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from dataset_files.image_files import IMAGE_SUFFIXES, files_below, images_below, is_image_name
from train_utils.errors import InputError, reading_input, warn

VIDEO_SUFFIXES = frozenset(".mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .wmv .flv .ts .mts .m2ts .3gp .ogv".split())
OUTPUT_SUFFIXES = IMAGE_SUFFIXES | {".mp4", ".json", ".jsonl"}
# Names of saved detections in --output-dir. Outputs for an input folder with such a name go to another folder.
RESERVED = frozenset("coco crops labelme masks predictions.json predictions.csv labels.txt".split())
LONGEST_NAME = 180  # bytes of a file name; file systems permit 255, and outputs append up to 70

Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Source:
    path: Path
    file_name: str  # relative to the given folder, with forward slashes, such as "day 1/cat.jpg"
    name: str  # file_name without suffix, made unique even if case is ignored; the name of all outputs
    # Of an image, set by `with_ids`.
    number: int = 0  # position among the images
    id: int = 0  # in written results
    size: Size | None = None  # annotated height and width; None without annotations

    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def output(self, folder: Path, suffix: str) -> Path:
        return folder / f"{self.name}{suffix}"

    def drawn_in(self, folder: Path) -> Path:
        """Return the path of the drawn image or video."""
        return self.output(folder, ".mp4" if self.is_video() else ".png")


def find_sources(given: Iterable[str | Path], output_folder: Path) -> list[Source]:
    """List the given files, the images in given folders and their sub-folders, and the files that match a pattern.

    The output folder is skipped where it lies in a given folder. Raises InputError if a file or folder is missing, or a
    folder holds no image.
    """
    found = [pair for text in given for pair in files_of(str(text), output_folder.resolve())]
    names = unique_names(file_name for _, file_name in found)
    return [Source(path, file_name, name) for (path, file_name), name in zip(found, names)]


def files_of(text: str, output_folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file that a path or a pattern names: the file's path, and its path relative to the searched folder."""
    path = Path(text)
    if path.is_file():
        yield path, path.name
        return
    if path.is_dir() and text:
        folder, files, reason = path, images_below(path), "no image in this folder (give videos by name)"
    elif glob.has_magic(text):
        folder = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        files, reason = matching_files(text, folder), "no image or video matches this pattern"
    else:
        what = "neither a file nor a folder" if path.exists() and text else "no such file or folder"
        raise InputError(f"{text or repr(text)}: {what}")
    if output_folder != folder.resolve() and output_folder.is_relative_to(folder.resolve()):
        files = [file for file in files if not file.resolve().is_relative_to(output_folder)]
    if not files:
        raise InputError(f"{text}: {reason}")
    yield from ((file, below(folder, file)) for file in files)


def matching_files(pattern: str, folder: Path) -> list[Path]:
    """List the images and videos that match a pattern, and the images in all folders that match the pattern.

    `folder` is the folder that the pattern names before the first wildcard.
    """
    wanted = Path(pattern).relative_to(folder).parts
    if "**" in wanted:  # glob follows links that lead in circles
        found = sorted(file for file in files_below(folder) if fits(file.relative_to(folder).parts, wanted))
    else:
        found = sorted(map(Path, glob.glob(pattern)))
    files: dict[Path, None] = {}
    for path in found:
        if path.is_dir():
            files |= dict.fromkeys(images_below(path))
        elif is_image_name(path.name) or path.suffix.lower() == ".npy" or path.suffix.lower() in VIDEO_SUFFIXES:
            files[path] = None
    return list(files)


def fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a path or one of its parent folders matches a pattern. "**" matches any number of parts of the path."""
    if not wanted:
        return True
    if wanted[0] == "**":
        return fits(parts, wanted[1:]) or bool(parts) and fits(parts[1:], wanted)
    return bool(parts) and fnmatch(parts[0], wanted[0]) and fits(parts[1:], wanted[1:])


def below(folder: Path, file: Path) -> str:
    """Return a file's path relative to `folder`, with forward slashes; the base name if the file lies elsewhere."""
    try:
        inner = file.relative_to(folder)
    except ValueError:
        return file.name
    return file.name if ".." in inner.parts else inner.as_posix()


def unique_names(file_names: Iterable[str]) -> list[str]:
    """Return a unique output name for each file: its name without suffix, numbered if necessary.

    Names are numbered if they differ only in suffix, case or Unicode form. No output takes the path of a folder of
    other outputs: beside a folder x.png, the drawing of x.jpg gets another name.
    """
    paths = [PurePosixPath(file_name) for file_name in file_names]
    folders = {folder for path in paths for folder in path.parents if folder.suffix.lower() in OUTPUT_SUFFIXES}
    taken = {comparable(str(folder.with_suffix(""))) for folder in folders}
    names = []
    for path in paths:
        first, *others = path.parts[:-1] or ("",)
        folder = f"{first}_images" if first.lower() in RESERVED else first
        stem = path.stem
        while len(os.fsencode(stem)) > LONGEST_NAME:
            stem = stem[:-1]
        wanted = "/".join(part for part in (folder, *others, stem) if part)
        name, number = wanted, 2
        while comparable(name) in taken:
            name, number = f"{wanted}_{number}", number + 1
        taken.add(comparable(name))
        names.append(name)
    return names


def comparable(name: str) -> str:
    """Normalize a name: two names that some file system takes for the same file become equal."""
    return unicodedata.normalize("NFC", name).casefold()


def with_ids(sources: Sequence[Source], annotation_file: str | None = None) -> list[Source]:
    """Return copies of the images' sources with `number`, `id` and, if an annotation file is given, `size`.

    Args:
        annotation_file: a COCO file in which to look up ids and sizes, by file name below the given folder, else by
            base name. Without it, ids are the numbers in the file names if these are all different numbers, as in
            COCO, else 1, 2, 3, ...

    Raises:
        InputError: an image is not in the file, or several have its name or its id.
    """
    if annotation_file is None:
        stems = [source.path.stem for source in sources]
        own = [int(stem) for stem in stems if re.fullmatch("[0-9]{1,30}", stem) and int(stem) < 2**63]
        are_ids = len(set(own)) == len(sources)
        ids = own if are_ids else range(1, len(sources) + 1)
        return [replace(source, number=n, id=i) for n, (source, i) in enumerate(zip(sources, ids))]
    known: dict[str, set[tuple[int, Size]]] = {}  # by whole file name, and by "./" and base name
    with reading_input():
        for name, image in images_in(Path(annotation_file)):
            for form in {name, f"./{name.rpartition('/')[2]}"}:  # no whole name begins with "./"
                known.setdefault(form, set()).add(image)
    images: list[Source] = []
    for n, source in enumerate(sources):
        named = known.get(source.file_name) or known.get(f"./{source.path.name}", set())
        if len(named) != 1:
            reason = "is not in" if not named else "is the name of several images in"
            raise InputError(f"{source.path}: {source.path.name} {reason} {annotation_file} (--annotation-file)")
        images += [replace(source, number=n, id=image_id, size=size) for image_id, size in named]
    ids = [image.id for image in images]
    if len(set(ids)) < len(ids):
        twice = next(image for image in images if ids.count(image.id) > 1)
        raise InputError(f"{twice.path}: another image has the same id in {annotation_file} (--annotation-file)")
    return images


def images_in(path: Path) -> list[tuple[str, tuple[int, Size]]]:
    """Read file name (with forward slashes), id and size of each image of a COCO file, which may lack annotations."""
    from dataset_files.coco_index import open_index  # needs pycocotools, unlike the rest

    try:
        index = open_index(path)
    except ValueError:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict) or "annotations" in content or not isinstance(content.get("images"), list):
            raise
        try:  # such as COCO's image_info_test-dev2017.json
            rows = [(str(i["file_name"]), int(i["id"]), (int(i["height"]), int(i["width"]))) for i in content["images"]]
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: an image lacks file_name, id, height or width") from error
    else:
        if index.problems.wrong():
            warn(f"{path}: {index.problems.summary()}")
        rows = list(zip(index.file_names.tolist(), index.image_ids.tolist(), map(tuple, index.sizes.tolist())))
    return [(name.replace("\\", "/"), (image_id, size)) for name, image_id, size in rows]
