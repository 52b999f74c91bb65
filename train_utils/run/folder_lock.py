"""Lock the folder of a run, so that a second run in the same folder ends before it touches a file.

The lock belongs to the process and is released when the process ends, even if it is killed.
"""

import os
import socket
import time
from pathlib import Path

from dataset_files.cache import lock
from train_utils.errors import InputError, warn

LOCK = ".lock"
PATIENCE = 5.0  # seconds to wait: a run that is just ending, or was just killed, may hold its lock for a moment


class FolderLock:
    """Hold a folder exclusively, from creation until `release` or the end of the process.

    Raises:
        InputError: another process holds the lock; the message names host and process.
    """

    @classmethod
    def of_existing(cls, folder: Path) -> "FolderLock | None":
        """Lock a folder if it exists; a run that fails before its first step must not create one."""
        return cls(folder) if folder.is_dir() else None

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = open(folder / LOCK, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 (open as long as it is locked)
        end = time.monotonic() + PATIENCE
        while not self.acquire(folder):
            if time.monotonic() > end:
                self.file.seek(0)
                owner = self.file.read().strip() or "another process"
                self.file.close()
                raise InputError(
                    f"{folder} is in use by {owner}: wait until it ends, stop it, or choose another --output-dir"
                )
            time.sleep(0.1)

    def acquire(self, folder: Path) -> bool:
        """Try to take the lock; return whether it succeeded. If the file system has no locks, warn and return True."""
        try:
            if not lock(self.file):
                return False
        except OSError as error:
            warn(f"{folder}: no locks on this file system ({error.strerror}); do not start a second run in it")
            return True
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self.file.flush()
        return True

    def release(self) -> None:
        self.file.close()
