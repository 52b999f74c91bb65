"""What every reader must do with a file, whatever it holds: take it, or refuse it in one line that names it.

`examine` is that property, made_up_files.py has the readers and the files. test_fuzzing.py tries it in short, the part
`fuzz` of reliability.py at length.
"""

import multiprocessing.synchronize  # noqa: F401 (else tqdm imports it while an import counts as an attack)
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from dataset_files.cache import writable_cache
from train_utils.errors import InputError

SECONDS = 10  # that a reader may take for a file of some hundred bytes
MEMORY = 1 << 30  # bytes that it may take
LONGEST_MESSAGE = 1000  # characters


@dataclass
class Reader:
    """What reads a kind of file.

    Attributes:
        name: for people.
        file: where the file stands in the folder.
        whole: a valid file.
        contents: what may stand in it instead.
        read: given the folder, reads the file to its end.
    """

    name: str
    file: str
    whole: bytes
    contents: st.SearchStrategy[bytes]
    read: Callable[[Path], None]


def examine(reader: Reader, folder: Path, examples: int, seed: int | None = None) -> Counter:
    """Let a reader read many files; how many were "accepted" and "refused".

    Args:
        folder: has what belongs to the file.
        seed: of what is drawn; by default the same at every call.

    Raises:
        AssertionError, Hang or the reader's own exception: what must not be, with the shortest such file found.
    """
    counts: Counter = Counter()
    (folder / reader.file).write_bytes(reader.whole)
    reader.read(folder)  # what is imported at first use is imported here

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=seed is None,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(reader.contents)
    def read_one(content: bytes) -> None:
        (folder / reader.file).write_bytes(content)
        counts[outcome(reader, folder)] += 1

    with limited_memory():
        (read_one if seed is None else seeded(seed)(read_one))()
    return counts


def outcome(reader: Reader, folder: Path) -> str:
    with at_most(SECONDS), nothing_runs():
        try:
            reader.read(folder)
        except (ValueError, FileNotFoundError, InputError) as error:
            message = " ".join(str(error).split())  # as errors.leave prints it
            if str(folder) not in message or len(message) > LONGEST_MESSAGE or "MemoryError" in message:
                raise AssertionError(f"no line that names the file and what is wrong: {message}") from error
            return "refused"
    return "accepted"


class Hang(BaseException):
    """A reader took too long."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def give_up(*_) -> None:
        raise Hang(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limited_memory() -> Iterator[None]:
    """More than MEMORY besides what there is now cannot be had; whoever asks for it gets a MemoryError."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# What Python tells of before it does it, and a reader has no business with. "pickle.find_class" is Python's own
# unpickler looking for whatever a file names.
FORBIDDEN = {
    "compile", "exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "os.remove",
    "os.rename",
    "os.rmdir", "os.mkdir", "shutil.rmtree", "socket.connect", "urllib.Request", "pickle.find_class", "ctypes.dlopen",
}  # fmt: skip
reading = False
conversions = ""  # the folder of converted files and locks, the only one that readers write to


def look_at(event: str, arguments: tuple) -> None:
    if not reading or (arguments and str(arguments[0]).startswith(conversions)):
        return
    written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if event in FORBIDDEN or written:
        raise AssertionError(f"the file made its reader do {event} {arguments!r:.200}")


sys.addaudithook(look_at)  # there is no way to take one off again


@contextmanager
def nothing_runs() -> Iterator[None]:
    global reading, conversions
    conversions = str(writable_cache("converted").parent)
    reading = True
    try:
        yield
    finally:
        reading = False
