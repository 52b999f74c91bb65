"""Find images that occur in two splits, as the same file or as an exact copy. Most files are never opened."""

import filecmp
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from dataset_files.dataset import InstanceDataset

HEAD = 1 << 14  # bytes at either end that are compared first
READERS = 8  # threads: on a network file system most of the time is waiting


def describe_shared(training: InstanceDataset, validation: InstanceDataset) -> str | None:
    """Describe, in one line, the validation images that are also trained on; None if there are none."""
    paths = [validation.image_path(i) for i in range(len(validation))]
    pairs = shared_images(paths, [training.image_path(i) for i in range(len(training))])
    if not pairs:
        return None
    shown = "; ".join(f"{own}" if own == other else f"{own} is {other}" for own, other in pairs[:3])
    more = f"; and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    return (
        f"{validation.source}: {len(pairs)} of {len(paths)} validation images are also trained on, so that the "
        f"metrics are too good: {shown}{more}"
    )


def shared_images(paths: Sequence[Path], others: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pair each of `paths` with the first of `others` that is the same file or has the same bytes.

    Paths without such a file are left out. Sizes are compared first, then both ends of files of equal size, then all
    bytes of files that agree there.
    """
    with ThreadPoolExecutor(READERS) as pool:
        states, other_states = (
            {path: state for path, state in zip(files, pool.map(state_of, files)) if state} for files in (paths, others)
        )
        by_file = {state: other for other, state in reversed(other_states.items())}
        found = {path: by_file[state] for path, state in states.items() if state in by_file}
        sizes = {size for path, (size, *_) in states.items() if path not in found}
        sizes &= {size for size, *_ in other_states.values()}
        candidates = [other for other, (size, *_) in other_states.items() if size in sizes]
        by_head: dict[tuple[int, bytes], list[Path]] = {}
        for other, head in zip(candidates, pool.map(head_of, candidates)):
            by_head.setdefault(head, []).append(other)
        left = [path for path, (size, *_) in states.items() if size in sizes and path not in found]
        alike = [by_head.get(head, []) for head in pool.map(head_of, left)]
        equal = pool.map(equal_file, left, alike)
    found |= {path: other for path, other in zip(left, equal) if other is not None}
    return [(path, found[path]) for path in paths if path in found]


def state_of(path: Path) -> tuple[int, int, int] | None:
    """Return size, device and inode of a file; None on an error."""
    with suppress(OSError, ValueError):
        status = path.stat()
        return status.st_size, status.st_dev, status.st_ino
    return None


def head_of(path: Path) -> tuple[int, bytes]:
    """Return the size of a file and a hash of its first and last bytes; a size of -1 if it cannot be read."""
    with suppress(OSError), open(path, "rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(HEAD)
        file.seek(max(size - HEAD, 0))
        return size, sha256(start + file.read()).digest()
    return -1, b""


def equal_file(path: Path, candidates: Sequence[Path]) -> Path | None:
    with suppress(OSError):
        return next((other for other in candidates if filecmp.cmp(path, other, shallow=False)), None)
    return None
