"""Write files completely or not at all. Existing files are replaced, not modified, and inputs are never overwritten.

Every writer fills a new file beside its target and then renames it. A crash or a full disk leaves the old file or the
whole new one, and other names (hard links) of the old file keep its content.
"""

import csv
import errno
import io
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

if TYPE_CHECKING:
    from PIL import Image

TEMPORARY = re.compile(r"\.mask-rcnn-[0-9a-f]{12}(\..*)?")  # short, since names are limited to 255 bytes
FORMULA = re.compile(r"\s*[=+\-@]|[\t\r]")  # the beginning of cells that spreadsheets evaluate


def refuse_overwriting(inputs: Iterable[Path], outputs: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    """Check that outputs can be written and would not replace an input. Call this before writing anything.

    Raises ValueError if an input is one of the outputs or lies in one of the folders, where any file may be written; or
    if an output is write-protected, or its place is taken by a folder, a device or the like, or one of its folders is a
    file or cannot be written to.
    """
    outputs, folders = list(outputs), list(folders)
    for parent in {*folders, *(path.parent for path in outputs)}:
        nearest = next(each for each in (parent, *parent.parents) if os.path.lexists(each) or each == each.parent)
        if not nearest.is_dir():
            raise ValueError(f"{nearest}: exists, and is not a folder; give another output folder")
        if not os.access(nearest, os.W_OK):
            raise ValueError(f"{nearest}: cannot be written to; give another output folder")
    existing = {entry_of(path).casefold(): path for path in outputs if exists(path)}
    for path in existing.values():
        try:
            require_replaceable(path)
        except FileExistsError as error:
            raise ValueError(f"{path}: {error.strerror}; give another output") from None
        if not path.lstat().st_mode & stat.S_IWUSR:
            raise ValueError(f"{path}: exists, and is write-protected; give another output")
    starts = {os.path.join(os.path.realpath(path), ""): path for path in folders if path.is_dir()}
    for path in inputs if existing or starts else ():
        for entry in {entry_of(path), os.path.realpath(path)}:
            file = existing.get(entry.casefold())  # some file systems ignore case
            if file is not None and (entry == entry_of(file) or os.path.samefile(entry, file)):
                raise ValueError(f"{path}: would be overwritten by this command, which reads it; give another output")
            folder = next((starts[start] for start in starts if entry.startswith(start)), None)
            if folder is not None:
                raise ValueError(f"{path}: lies in {folder}/, which this command writes to; give another output folder")


def file_to_write(name: str, *inputs: str | None) -> Path:
    """Return the path of the output file `name`. ValueError if it is a folder, or as from `refuse_overwriting`."""
    if not name.strip() or name[-1] in (os.sep, os.altsep):
        raise ValueError(f"{name or repr(name)}: is the name of a folder; name a file in it")
    refuse_overwriting([Path(each) for each in inputs if each], [Path(name)])
    return Path(name)


def exists(path: Path) -> bool:
    """Whether a path exists, even as a broken link. A name that the file system does not allow raises OSError."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def entry_of(path: Path) -> str:
    """Make a path absolute. Links among its folders are resolved; if the path itself is a link, that link is kept."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def require_replaceable(path: Path) -> None:
    """Raise FileExistsError if the path is taken by something other than a file or link, such as a folder or pipe."""
    if exists(path) and not (path.is_symlink() or path.is_file()):
        raise FileExistsError(errno.EEXIST, "exists, and is not a regular file", str(path))


@contextmanager
def renaming_to(path: Path, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`. When the `with` block ends, the file written there replaces `path`.

    The temporary file is hidden and has the suffix of `path`. The folder is created. If the block raises, or writes
    nothing, the old file stays. With `sync` the rename survives a power failure.
    """
    require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".mask-rcnn-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
            temporary.unlink(missing_ok=True)  # os.replace keeps it if both are links to one file
            if sync:
                sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = os_error_behind(error)
        if cause is not None and cause.filename in (None, str(temporary)):
            cause.filename, cause.filename2 = str(path), None
        if cause in (None, error):
            raise
        raise cause from None  # torch.save makes a RuntimeError of a full disk


def os_error_behind(error: BaseException | None) -> OSError | None:
    """Return the OSError behind an error: the error itself, or the cause of a RuntimeError; None if there is none."""
    while isinstance(error, RuntimeError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, OSError) else None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` once it is complete; see `renaming_to`."""
    with renaming_to(path, sync=True) as temporary, open(temporary, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file, replacing an existing one. Characters that UTF-8 cannot encode become escapes."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table. Text that spreadsheets would evaluate as a formula gets an apostrophe in front."""
    text = io.StringIO()
    safe = ([f"'{v}" if isinstance(v, str) and is_formula(v) else v for v in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows([head, *safe])
    write_atomically(path, text.getvalue())


def is_formula(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return False
    return FORMULA.match(text) is not None


def write_image(path: Path, image: "Image.Image", **options: Any) -> None:
    """Write a Pillow image in the format of the path's suffix, creating its folder; `options` are passed to `save`."""
    with renaming_to(path) as temporary:
        image.save(temporary, **options)


def link_atomically(source: Path, path: Path) -> None:
    """Make `path` a hard link to `source`, replacing an existing file. Copy if the file system has no links."""
    with renaming_to(path, sync=True) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def open_new(path: Path) -> TextIO:
    """Create a line-buffered text file, which can be read while it grows. An existing file is removed first."""
    require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return open(path, "x", encoding="utf-8", errors="backslashreplace", buffering=1)


def sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot sync folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
