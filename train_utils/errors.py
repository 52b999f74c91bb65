"""How a run ends otherwise than well: in one line on stderr, with a status that says what kind of end it was.

The program's own mistakes keep their traceback and end with status 1.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

WRONG_INPUT = 2
STOPPED = 3  # by a signal; a checkpoint was written
NOT_FINITE = 4  # too many losses in a row were not finite; a checkpoint from before was written
LOST_PROCESS = 5  # another process of the run died or hangs
INTERRUPTED = 130  # Ctrl-C twice: at once, without a checkpoint


class InputError(Exception):
    """What a user gave cannot be used; the message says what, where, and what to do."""


class RunEnded(Exception):
    """The run ends before its last step, in good order."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a script: an InputError is printed as one line and gives status 2, any other end its own status."""
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
    tqdm.write(f"warning: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def reading_input() -> Iterator[None]:
    """Around the reading of what a user gave: what readers raise for bad content becomes an InputError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
