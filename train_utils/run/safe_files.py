"""Lock a run's folder, append lines to its files and read them back safely, and continue on a full disk."""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import TextIO

from dataset_files.atomic_files import link_atomically
from dataset_files.cache import lock
from train_utils.errors import InputError, warn

LOCK = ".lock"
PATIENCE = 5.0  # seconds to wait: a run that is just ending, or was just killed, may hold its lock for a moment


def lock_folder(folder: Path) -> TextIO:
    """Create and lock a folder, until the returned file is closed. InputError if another process holds the lock.

    Warn if the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / LOCK, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 (open as long as it is locked)
    end = time.monotonic() + PATIENCE
    try:
        while not lock(file):
            if time.monotonic() > end:
                file.seek(0)
                owner = file.read().strip() or "another process"
                file.close()
                raise InputError(
                    f"{folder} is in use by {owner}: wait until it ends, stop it, or choose another --output-dir"
                )
            time.sleep(0.1)
    except OSError as error:
        warn(f"{folder}: no locks on this file system ({error.strerror}); do not start a second run in it")
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


class LineFile:
    """Append complete lines to a text file. Lines that did not fit on a full disk are written with the next line."""

    def __init__(self, path: Path):
        self.path, self.waiting = path, b""

    def write(self, *lines: str, sync: bool = False) -> None:
        """Append waiting lines, then `lines`. On an OSError, all of them wait for the next call. `sync` calls fsync."""
        self.waiting += "".join(f"{line}\n" for line in lines).encode("utf-8")
        if not self.waiting and not (sync and self.path.is_file()):
            return
        with open(self.path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                if file.write(self.waiting) < len(self.waiting):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(end)
                raise
            self.waiting = b""
            if sync:
                os.fsync(file.fileno())


def valid_lines(path: Path) -> list[str]:
    """Return the complete, valid lines of a results or log file. If any are invalid, keep a copy and warn."""
    content = path.read_bytes() if path.is_file() else b""
    lines = content[: content.rfind(b"\n") + 1].decode("utf-8", "replace").split("\n")[:-1]
    valid = list(map(is_valid, lines))
    if not all(valid):
        aside, first = path.with_name(path.name + ".broken"), valid.index(False) + 1
        link_atomically(path, aside)
        warn(f"{path}: dropped {valid.count(False)} lines that no run writes, first line {first}; see {aside.name}")
    return list(compress(lines, valid))


def is_valid(line: str) -> bool:
    """Whether a line is a log entry, with epoch and step, or holds the results of an epoch."""
    try:
        if line.startswith("{"):
            entry = json.loads(line)
            return all(isinstance(entry.get(name), int) for name in ("epoch", "step"))
        first, *numbers = line.split()
        return first.startswith("epoch:") and int(first[6:]) >= 0 and len([float(number) for number in numbers]) > 1
    except ValueError:
        return False


@contextmanager
def trying_again_later(path: Path) -> Iterator[None]:
    """Context for writing a file that the run will write again later: on an OSError, such as a full disk, only warn."""
    try:
        yield
    except OSError as error:
        warn(f"{path} could not be written ({error.strerror}); the run continues and will try again")
