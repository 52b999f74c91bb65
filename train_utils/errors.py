"""Exit statuses and one-line messages of runs that do not finish normally.

Errors of the program itself keep their traceback and exit with status 1.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

WRONG_INPUT = 2
STOPPED = 3  # by a signal; a checkpoint was written
NOT_FINITE = 4  # too many losses in a row were not finite; a checkpoint from before them was written
LOST_PROCESS = 5  # another process of the run died or hung
INTERRUPTED = 130  # Ctrl-C twice: at once, without a checkpoint


class InputError(Exception):
    """User input cannot be used; the message names what, where, and the remedy."""


class RunEnded(Exception):
    """The run ends in an orderly way before its last step."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Context for a script: print an InputError as one line and exit with status 2, or RunEnded with its status."""
    try:
        yield
    except InputError as error:
        message = str(error).rpartition(f"{InputError.__name__}: ")[2]  # a loader worker puts its traceback before it
        leave(f"error: {message}", WRONG_INPUT)
    except RunEnded as end:
        leave(str(end), end.status)
    except KeyboardInterrupt:
        leave("stopped at once, without a checkpoint", INTERRUPTED)


def leave(message: str, status: int) -> None:
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(status)


def warn(message: str) -> None:
    """Print a warning on stderr, past a progress bar."""
    line = f"warning: {' '.join(message.split())}"
    if "tqdm" in sys.modules:  # else there is no bar, and programs that run exported networks may lack the package
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def reading_input() -> Iterator[None]:
    """Context for reading user input: turn the ValueError or OSError of a reader into an InputError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error


@contextmanager
def writing_output() -> Iterator[None]:
    """Context for writing results: turn an OSError, such as a full disk, into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {error.filename or 'the output'}: {error.strerror or error}") from error
