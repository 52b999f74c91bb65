"""Lock the folder of a run, so that a second run in the same folder ends before it touches a file."""

import os
import socket
import time
from pathlib import Path
from typing import TextIO

from dataset_files.cache import lock
from train_utils.errors import InputError, warn

LOCK = ".lock"
PATIENCE = 5.0  # seconds to wait: a run that is just ending, or was just killed, may hold its lock for a moment


def lock_folder(folder: Path) -> TextIO:
    """Create a folder if necessary, and lock it until the returned file is closed or the process ends.

    InputError names the host and process that hold the lock. Warn if the file system has no locks.
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
