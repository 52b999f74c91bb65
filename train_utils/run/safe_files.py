"""Append lines to a run's files safely, and recognise a full disk."""

import errno
import os
from pathlib import Path


class LineFile:
    """Append complete lines to a text file. Lines that did not fit on a full disk are written with the next one."""

    def __init__(self, path: Path):
        self.path = path
        self.waiting = b""

    def add(self, line: str) -> None:
        """Append a line; raise OSError if it could not be written yet."""
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
        """Sync the file to disk, so that the lines of all steps before a checkpoint are there when it is."""
        self.write_waiting()
        if self.path.is_file():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())


def reason_of_full_disk(error: BaseException) -> OSError | None:
    """Return the OSError that caused an error, or None; torch.save wraps it in a RuntimeError."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause
