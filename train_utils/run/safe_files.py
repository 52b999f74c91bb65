"""Append lines to a run's files safely, and recognise a full disk."""

import errno
import os
from pathlib import Path


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
