"""Check that a dataset's images exist and have their annotated sizes, without decoding them.

Each folder is listed once to find the files. Their headers are read once and, for large datasets, stored beside the
annotations, so that the next start reads only the headers of files that have changed.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_files import stored_images
from dataset_files.cache import read_arrays, storage_places, write_arrays
from dataset_files.dataset import InstanceDataset
from dataset_files.image_files import MISSING, NO_FILE, file_states, is_lfs_pointer
from dataset_files.problems import Problems
from dataset_files.stored_images import RGB, VALUES, Header, ImageForm, PackageMissing

STORED_FROM = 5000  # images; the headers of fewer are read within a second
READERS = 8  # threads: on a network file system most of the time is waiting
FAULTS = ("", "not an image", "bomb", "unreadable", "lfs", "float", "form")  # kinds of problems; "" if none


def check_images(dataset: InstanceDataset) -> tuple[Problems, list[int]]:
    """Return the problems of a dataset's images, and the indices of the affected items."""
    folder, names, form = dataset.image_folder, dataset.image_names(), dataset.form
    sizes = np.array([dataset.get_height_and_width(i) for i in range(len(dataset))], dtype=np.int64).reshape(-1, 2)
    files = file_states(folder, names)
    suffix = ".training" if dataset.training else ".validation"  # both may come from one file
    suffix += "" if form.channels is None else ".stored"
    headers = read_headers(folder, names, files, storage_places(dataset.source, suffix), form)
    problems, bad = Problems(), np.zeros(len(names), dtype=bool)

    def name(i: int) -> str:
        return f"{folder / names[i]} (image {dataset.image_id(i)})"

    def note(kind: str, flawed: np.ndarray, describe: Callable[[int], str] = name) -> None:
        problems.add_all(kind, np.flatnonzero(flawed & ~bad).tolist(), describe)
        bad[flawed] = True

    def with_values(i: int) -> str:
        width, height, _, _, channels, values = headers[i].tolist()
        return f"{name(i)} has {Header(height, width, channels, VALUES[values]).describe()}"

    def with_reason(i: int) -> str:
        return f"{name(i)}: {why_not_stored(folder / names[i], form)}"

    def with_sizes(i: int) -> str:
        return f"{name(i)} is {headers[i, 0]}x{headers[i, 1]}, annotated {sizes[i, 1]}x{sizes[i, 0]}"

    note("missing", files[:, 0] == MISSING)
    note("unreadable", files[:, 0] == NO_FILE)
    note("empty", files[:, 0] == 0)
    for number, fault in enumerate(FAULTS[1:], start=1):
        note(fault, headers[:, 3] == number, with_reason if fault == "form" else name)
    exif = form.exif
    if form.channels is None:
        deep = np.flatnonzero((headers[:, 5] == VALUES.index("uint16")) & ~bad).tolist()
        problems.add_all("deep", deep, lambda i: str(folder / names[i]))
    else:
        note("channels", headers[:, 4] != form.channels, with_values)
        values = VALUES.index(form.values) if form.values else headers[np.argmin(bad), 5] if len(names) else 0
        note("values", headers[:, 5] != values, with_values)
    other = (headers[:, 1::-1] != sizes).any(axis=1) & ~bad
    for i in np.flatnonzero((headers[:, 2] > 1) & ~bad).tolist():
        width, height, orientation, *_ = headers[i].tolist()
        if stored_images.is_turned((width, height), orientation, tuple(sizes[i].tolist()), exif):
            turned = (height, width) if orientation < 5 else (width, height)
            other[i] = turned != tuple(sizes[i].tolist())
        elif exif is None and stored_images.is_undecided((width, height), orientation):
            problems.add("exif", f"{name(i)}, orientation {orientation}")
    note("size", other, with_sizes)
    return problems, np.flatnonzero(bad).tolist()


def read_headers(
    folder: Path, names: Sequence[str], files: np.ndarray, places: Sequence[Path], form: ImageForm = RGB
) -> np.ndarray:
    """Read the headers of P images. Return six numbers for each, int64 [P, 6]; all are 0 for missing or empty files.

    They are width, height, EXIF orientation, index in `FAULTS`, channels (only of images that are read as stored) and
    index in `VALUES`. Headers of large datasets are stored in one of `places`; `files` comes from `file_states`.
    """
    headers = np.zeros((len(names), 6), dtype=np.int64)
    is_unread = files[:, 0] > 0
    kept = next(read_arrays(places), None) if len(names) >= STORED_FROM else None
    if kept is not None:
        rows = dict(zip(kept["names"].tolist(), range(len(kept["names"]))))
        row = np.array([rows.get(name, -1) for name in names], dtype=np.int64)
        known = np.flatnonzero(row >= 0)
        known = known[(kept["files"][row[known]] == files[known]).all(axis=1)]
        rows_kept = kept["headers"][row[known]]  # older files lack the last two columns
        headers[known, : rows_kept.shape[1]] = rows_kept
        is_unread[known] = False
    unread = np.flatnonzero(is_unread).tolist()
    if unread:
        paths = [os.path.join(folder, names[i]) for i in unread]
        with warnings.catch_warnings(), ThreadPoolExecutor(READERS) as pool:
            warnings.simplefilter("ignore")  # Pillow warns again when the images are opened
            read = pool.map(partial(read_header, form=form), paths, chunksize=64)
            quiet = None if len(paths) > STORED_FROM else True  # None: hidden without a terminal
            headers[unread] = list(tqdm(read, "reading headers", len(paths), leave=False, disable=quiet))
        if len(names) >= STORED_FROM:
            columns = {"names": np.array(names, dtype=np.str_), "files": files, "headers": headers}
            write_arrays(columns, places)
    return headers


def read_header(path: str, form: ImageForm = RGB) -> tuple[int, ...]:
    """Read the header of one image. Return the six numbers that `read_headers` describes."""
    try:
        if form.channels is not None:
            height, width, channels, values = stored_images.stored_header(path, form.exif)
            return width, height, 1, 0, channels, VALUES.index(values)
        with stored_images.open_image(path) as image:
            fault = "float" if image.mode == "F" else ""
            orientation, values = stored_images.orientation_of(image), stored_images.values_of(image)
            return *image.size, orientation, FAULTS.index(fault), 0, VALUES.index(values)
    except PackageMissing:
        raise
    except Image.DecompressionBombError:
        fault = "bomb"
    except PermissionError:
        fault = "unreadable"
    except Exception as error:  # Pillow can raise any exception for a broken header
        if is_lfs_pointer(path):
            fault = "lfs"
        elif form.channels is None:  # Pillow does not know images of many channels
            fault = "not an image" if why_not_stored(path, form) else "float"
        else:
            fault = "form" if isinstance(error, ValueError) else "not an image"
    return 0, 0, 1, FAULTS.index(fault), 0, 0


def why_not_stored(path: str | Path, form: ImageForm) -> str:
    """Return why an image cannot be read as stored; "" if it can."""
    try:
        stored_images.stored_header(path, form.exif)
        return ""
    except Exception as error:
        return str(error)
