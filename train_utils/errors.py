"""A user's mistake becomes one clear line and exit status 2; the program's own keeps its traceback."""
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """What a user gave cannot be used; the message says what, where, and what to do."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a script: an InputError is printed as one line, and the process ends with status 2."""
    try:
        yield
    except InputError as error:
        message = str(error).rpartition(f"{InputError.__name__}: ")[2]  # a loader worker puts its traceback before it
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
        sys.exit(2)


@contextmanager
def reading_input() -> Iterator[None]:
    """Around the reading of what a user gave: what readers raise for bad content becomes an InputError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
