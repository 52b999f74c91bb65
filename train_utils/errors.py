"""Report input errors and early ends of a run in one line, with an exit status. Bugs keep their traceback."""

import errno
import importlib
import io
import json
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

WRONG_INPUT = 2
STOPPED = 3  # stopped by a signal, after writing a checkpoint
NOT_FINITE = 4  # too many consecutive non-finite losses; the checkpoint is from before them
LOST_PROCESS = 5  # another process of the run died or stalled
OUT_OF_MEMORY = 6  # of the GPU or the machine; in training after writing a checkpoint, if possible
INTERRUPTED = 130  # second Ctrl-C: immediately, without a checkpoint
BROKEN_PIPE = 141  # the reader of stdout is gone, as after `| head`; the status that a shell reports for SIGPIPE

# Merely checking whether a file exists can raise these.
FAULTS_OF_FILES = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC)
# In errors of CUDA and its libraries, of torch on the CPU, and about a loader worker that the system killed.
OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "signal: Killed")


class InputError(Exception):
    """User input cannot be used; the message names the file or option, the fault and the remedy."""


class RunEnded(Exception):
    """The run ends cleanly before its last step."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Context for a script: report an InputError, a RunEnded or a lack of memory in one line, and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the encoding may lack characters of file or class names
    try:
        try:
            yield
        finally:
            if sys.stdout is not None and not isinstance(sys.exc_info()[1], InputError | RunEnded):
                sys.stdout.flush()  # so that a broken pipe is caught here, not when Python exits
    except InputError as error:
        message = str(error).rpartition(f"{InputError.__name__}: ")[2]  # a loader worker prefixes its traceback
        leave(f"error: {message}", WRONG_INPUT)
    except RunEnded as end:
        leave(str(end), end.status)
    except KeyboardInterrupt:
        leave("stopped at once", INTERRUPTED)
    except Exception as error:
        if is_out_of_memory(error):
            leave(f"error: out of memory{getattr(error, 'batch', '')} ({first_line(error)})", OUT_OF_MEMORY)
        if isinstance(error, BrokenPipeError) and reader_has_gone():
            leave("", BROKEN_PIPE)
        if isinstance(error, OSError) and error.errno in FAULTS_OF_FILES:
            leave(f"error: {error.filename or 'cannot write the output'}: {error.strerror}", WRONG_INPUT)
        raise


def leave(message: str, status: int) -> None:
    if message:
        print(" ".join(message.split()), file=sys.stderr, flush=True)
    with suppress(OSError, AttributeError):  # no stdout
        sys.stdout.flush()
    if reader_has_gone():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python tries again when it exits
    sys.exit(status)


def reader_has_gone() -> bool:
    """Whether stdout is a pipe without a reader."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return bool(poll.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows has no poll; there may be no stdout, or a test's
        return False


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):  # torch's errors, without importing torch
        return any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
    return isinstance(error, MemoryError)


def optional_package(module: str, need: str, package: str) -> Any:
    """Import an optional module. If the module is missing, raise an InputError that begins with the text `need`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{need}, which is not installed: pip install {package} ({error})") from None


@contextmanager
def naming_batch(images: Sequence[Any], remedy: str) -> Iterator[None]:
    """Context for running a network: add the size of the images [C, H, W] and a remedy to an out-of-memory error."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            vars(error)["batch"] = f" at {describe_batch(images)}; {remedy}"
        raise


def describe_batch(images: Sequence[Any]) -> str:
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    return f"{len(images)} images of up to {height} x {width} pixels"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def warn(message: str) -> None:
    """Print a warning on stderr without breaking a progress bar."""
    line = f"warning: {' '.join(message.split())}"
    if "tqdm" in sys.modules:  # otherwise there is no bar, and the package may be missing
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def reading_input(faults: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Context for reading user input: turn the ValueError or OSError of a reader into an InputError."""
    try:
        yield
    except BrokenPipeError:  # of stdout
        raise
    except faults as error:
        if isinstance(error, OSError) and error.filename and error.strerror:
            raise InputError(f"{error.filename}: {error.strerror}") from error
        raise InputError(str(error)) from error


def read_json(path: str | Path, option: str) -> Any:
    """Return the content of a JSON file that an option names; InputError if it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file ({option})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error


def writing_output() -> AbstractContextManager[None]:
    """Context for writing results: turn an OSError, such as a full disk, into an InputError."""
    return reading_input((OSError,))
