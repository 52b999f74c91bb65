"""Find what to predict: files, folders and patterns in, images and videos with a unique name for their outputs out."""

import glob
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dataset_files.image_files import images_below, is_image_name
from dataset_files.whole_ids import value_of
from train_utils.errors import InputError, reading_input

VIDEO_SUFFIXES = frozenset(".mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .wmv .flv .ts .mts .m2ts .3gp .ogv".split())
# Folders of --output-dir that saved detections go to; an input's folder of that name gets another one.
RESERVED = frozenset(("coco", "crops", "labelme", "masks"))


@dataclass(frozen=True)
class Source:
    """An image or a video to predict.

    Attributes:
        path: its file.
        file_name: below the folder that was given, with forward slashes, such as "day 1/cat.jpg".
        name: the same without suffix, and unique also where case does not count: outputs are called so.
    """

    path: Path
    file_name: str
    name: str

    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def drawn_in(self, folder: Path) -> Path:
        """Where the drawn image or video goes."""
        return folder / f"{self.name}{'.mp4' if self.is_video() else '.png'}"


def find_sources(given: Iterable[str | Path], output_folder: Path) -> list[Source]:
    """List files as they are given, the images in folders and their sub-folders, and what fits a pattern, by name.

    Args:
        output_folder: is passed over where it lies in a given folder.

    Raises:
        InputError: a file or folder is missing, or there is no image in it.
    """
    found = [pair for text in given for pair in files_of(str(text), output_folder.resolve())]
    names = unique_names(file_name for _, file_name in found)
    return [Source(path, file_name, name) for (path, file_name), name in zip(found, names)]


def files_of(text: str, output_folder: Path) -> Iterator[tuple[Path, str]]:
    """Each file that an argument means, and its name below the argument's folder."""
    path = Path(text)
    if path.is_file():
        yield path, path.name
        return
    if path.is_dir():
        folder, files, reason = path, images_below(path), "no image in this folder (give videos by name)"
    elif glob.has_magic(text):
        folder, files, reason = (
            fixed_part(text),
            files_that_fit(text),
            "no image or video fits this pattern",
        )
    else:
        what = "neither a file nor a folder" if path.exists() else "no such file or folder"
        raise InputError(f"{path}: {what} (--img-path)")
    if output_folder != folder.resolve() and output_folder.is_relative_to(folder.resolve()):
        files = [file for file in files if not file.resolve().is_relative_to(output_folder)]
    if not files:
        raise InputError(f"{text}: {reason}")
    yield from ((file, below(folder, file)) for file in files)


def files_that_fit(pattern: str) -> list[Path]:
    """The images and videos that a pattern fits, and the images in folders that it fits, each once."""
    files: dict[Path, None] = {}
    for path in sorted(map(Path, glob.glob(pattern, recursive=True))):
        if path.is_dir():
            files |= dict.fromkeys(images_below(path))
        elif is_image_name(path.name) or path.suffix.lower() in VIDEO_SUFFIXES:
            files[path] = None
    return list(files)


def fixed_part(pattern: str) -> Path:
    """The folder that a pattern names before its first wildcard."""
    fixed: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def below(folder: Path, file: Path) -> str:
    """The name of a file below a folder, with forward slashes; its base name if it lies elsewhere."""
    try:
        inner = file.relative_to(folder)
    except ValueError:
        return file.name
    return file.name if ".." in inner.parts else inner.as_posix()


def unique_names(file_names: Iterable[str]) -> list[str]:
    """Names without suffix, numbered where several are the same but for suffix, case and Unicode form."""
    names, taken = [], set()
    for file_name in file_names:
        path = PurePosixPath(file_name)
        folders = list(path.parts[:-1])
        if folders and folders[0].lower() in RESERVED:
            folders[0] = f"{folders[0]}_images"
        wanted = "/".join([*folders, path.stem])
        name, number = wanted, 2
        while (form := unicodedata.normalize("NFC", name).casefold()) in taken:
            name, number = f"{wanted}_{number}", number + 1
        taken.add(form)
        names.append(name)
    return names


@dataclass(frozen=True)
class ResultImage:
    """What written results call an image, and the size that its annotations say.

    Attributes:
        id: the image's id in COCO's formats.
        size: height and width in pixels; None if no annotations are given.
    """

    id: int
    size: tuple[int, int] | None = None


def result_images(sources: Sequence[Source], annotation_file: str | None = None) -> list[ResultImage]:
    """Choose the ids of images in written results.

    Without a file: COCO's image ids if every file name is a number of its own, as COCO's are; else 1, 2, 3, ...

    Args:
        annotation_file: a COCO file in which ids and sizes are looked up, by the names of the files below the folders
            that were given, and where that is not there, by their base names.

    Raises:
        InputError: an image is not in the file, or several have its name or its id.
    """
    if annotation_file is not None:
        known = images_by_name(annotation_file)
        images = [image_in_file(source, annotation_file, known) for source in sources]
        ids = [image.id for image in images]
        if len(set(ids)) < len(ids):
            twice = next(source for source, image_id in zip(sources, ids) if ids.count(image_id) > 1)
            raise InputError(f"{twice.path}: another image has the same id in {annotation_file} (--annotation-file)")
        return images
    numbers = [value_of(source.path.stem) for source in sources]
    ids = [number for number in numbers if number is not None and number >= 0]
    if len(set(ids)) == len(sources):
        return [ResultImage(number) for number in ids]
    return [ResultImage(number) for number in range(1, len(sources) + 1)]


def images_by_name(annotation_file: str) -> dict[str, set[ResultImage]]:
    """The images of a COCO file by whole file name, and by "./" and base name."""
    # Imported only here: it needs pycocotools, which programs that run exported networks do without.
    from dataset_files.coco_index import open_index

    with reading_input():
        index = open_index(Path(annotation_file))
    by_name: dict[str, set[ResultImage]] = {}
    for name, image_id, size in zip(index.file_names.tolist(), index.image_ids.tolist(), index.sizes.tolist()):
        name, image = name.replace("\\", "/"), ResultImage(image_id, tuple(size))
        for form in {name, f"./{name.rpartition('/')[2]}"}:  # no file's whole name begins so
            by_name.setdefault(form, set()).add(image)
    return by_name


def image_in_file(source: Source, annotation_file: str, known: dict[str, set[ResultImage]]) -> ResultImage:
    images = known.get(source.file_name) or known.get(f"./{source.path.name}", set())
    if len(images) != 1:
        reason = "is not in" if not images else "is the name of several images in"
        raise InputError(f"{source.path}: {source.path.name} {reason} {annotation_file} (--annotation-file)")
    return next(iter(images))
