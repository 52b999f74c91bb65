"""Write files atomically: a crash or a full disk leaves the old file or the whole new one, never a part."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` once it is complete and synced to disk.

    If the body raises, the old file stays. The parent folder must exist.
    """
    temporary = temporary_path(path)
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
    """Write a UTF-8 text file, replacing an existing one."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def link_atomically(source: Path, path: Path) -> None:
    """Make `path` a hard link to `source`, replacing an existing file; copy where the file system has no links."""
    temporary = temporary_path(path)
    try:
        os.link(source, temporary)
    except OSError:
        with replacing(path) as file:
            file.write(source.read_bytes())
        return
    os.replace(temporary, path)
    temporary.unlink(missing_ok=True)  # os.replace leaves it where `path` is a link to the same file already
    sync_folder(path.parent)


def temporary_path(path: Path) -> Path:
    """Return a hidden path beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def sync_folder(folder: Path) -> None:
    """Sync a folder so that a rename in it survives a power failure, where the file system supports that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
