"""Store indexes, image headers and conversions of datasets in cache files, and provide locks between processes."""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np

from dataset_files.atomic_files import replacing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # mypy has no optional modules

OWN = ".mask-rcnn."  # in the names of files that are stored beside the user's
DIGEST = 32  # bytes of the SHA-256 that stored arrays begin with


def user_cache() -> Path:
    """Return this project's folder in the user's cache; it may not exist yet."""
    return Path(os.path.abspath(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))) / "mask-rcnn"


def writable_cache(inner: str) -> Path:
    """Create and return a folder in the user's cache, or a temporary one if the cache is not writable."""
    user = f"mask-rcnn-{os.getuid()}" if hasattr(os, "getuid") else "mask-rcnn"
    for folder in (user_cache() / inner, Path(tempfile.gettempdir()) / user / inner):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise OSError(f"{user_cache()}: not writable, and neither is {tempfile.gettempdir()}; set XDG_CACHE_HOME")


def digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:24]


def storage_places(path: Path, suffix: str) -> list[Path]:
    """List paths where arrays derived from `path` may be stored: beside it unless it is a folder, or in the cache."""
    in_cache = user_cache() / f"{path.stem[:60]}-{digest(str(path.resolve()))}{suffix}"
    return [in_cache] if path.is_dir() else [path.with_suffix(f"{OWN[:-1]}{suffix}"), in_cache]


def read_arrays(places: Iterable[Path]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of each file that exists and is intact."""
    for place in places:
        with suppress(OSError):
            data = place.read_bytes()
            if sha256(data[DIGEST:]).digest() == data[:DIGEST]:
                with np.load(io.BytesIO(data[DIGEST:]), allow_pickle=False) as arrays:
                    yield dict(arrays)


def write_arrays(arrays: Mapping[str, Any], places: Iterable[Path]) -> None:
    """Write arrays, preceded by their digest, to the first path that is writable. If none is, do nothing."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    content = file.getvalue()
    for place in places:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as stored:
                stored.write(sha256(content).digest() + content)
            return


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock `name` in a `with` block, so that only one process of the user at a time runs the block."""
    with ExitStack() as stack:
        with suppress(OSError):  # some network file systems have no locks; there each process does the work itself
            lock(stack.enter_context(open(writable_cache("locks") / name, "ab")), wait=True)
        yield


def lock(file: IO, wait: bool = False) -> bool:
    """Lock a file that is open for writing; return whether that succeeded. OSError if the file system has no locks.

    A POSIX record lock: child processes do not inherit it, so it cannot outlive the process that took it, and most
    network file systems support it across machines. On Windows nothing is locked, and the result is True.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    return True
