"""Files that a crash or a full disk leaves whole: replaced in one step, or added to line by line."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once it is whole and on the disk; else the old one stays."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def put_in_place(source: Path, path: Path) -> None:
    """Give a file a second name, in place of what had that name; a copy where the file system knows no links."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with replacing(path) as file:
            file.write(source.read_bytes())
    else:
        os.replace(temporary, path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a renaming last through a loss of power, where the file system offers that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left unfinished."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)


class LineFile:
    """Whole lines at the end of a text file; what a full disk refuses waits and is written with the next line."""

    def __init__(self, path: Path):
        self.path = path
        self.waiting = b""

    def add(self, line: str) -> None:
        """Raises OSError where the line has to wait."""
        self.waiting += line.encode("utf-8") + b"\n"
        self.write_waiting()

    def write_waiting(self) -> None:
        if not self.waiting:
            return
        with open(self.path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                written = file.write(self.waiting)
                if written < len(self.waiting):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(end)
                raise
        self.waiting = b""

    def sync(self) -> None:
        """Put the lines on the disk, so that no checkpoint outlives the lines of its steps."""
        self.write_waiting()
        if self.path.is_file():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())


def reason_of_full_disk(error: BaseException) -> OSError | None:
    """The OSError behind an error of torch.save, which reports one as its own RuntimeError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
