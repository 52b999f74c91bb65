"""Validate whole numbers from JSON files, and convert ids of any type to whole numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

from dataset_files.problems import shown

LARGEST = 2**63 - 1


def whole_ids(ids: Iterable[Any]) -> dict[str, int]:
    """Map `text_of` each id to a whole number, the same on every run.

    Whole numbers keep their value, also as text ("12", "0012"), unless two texts have the same value. The other ids get
    the numbers after the largest, in order. Ids that are neither whole numbers nor text are left out.
    """
    texts = dict.fromkeys(text for text in map(text_of, ids) if text is not None)
    values = {text: value_of(text) for text in texts}
    taken: dict[int, str] = {}
    for text in sorted(texts, key=lambda text: (str(values[text]) != text, text)):  # "7" before "007"
        value = values[text]
        if value is not None and taken.setdefault(value, text) != text:
            values[text] = None
    following = max(taken, default=0) + 1
    numbers: dict[str, int] = {}
    for text, value in values.items():
        if value is None:
            value, following = following, following + 1
        numbers[text] = value
    return numbers


def number_of(value: Any, numbers: Mapping[str, int]) -> int | None:
    """Look up the whole number of an id in the result of `whole_ids`; None if it was left out."""
    text = text_of(value)
    return None if text is None else numbers.get(text)


def text_of(value: Any) -> str | None:
    """Format an id as text, 7 and 7.0 alike; None if it is neither text nor a whole number, or is beyond int64."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    is_int = isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    return str(value) if is_int else None


def value_of(text: str) -> int | None:
    """Parse a text as a whole number; None if it is not one, or does not fit into int64."""
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 30:
        return None
    return int(text) if abs(int(text)) <= LARGEST else None


def whole(number: Any) -> Any:
    """Convert a number that a tool wrote as 7.0 to an int."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def int64(number: Any) -> int:
    """Convert a number from a JSON file to an int64; ValueError, OverflowError if it is not whole, or too large."""
    number = whole(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"has {shown(number)} instead of a whole number")
    if not -(2**63) <= number < 2**63:
        raise OverflowError(f"has the number {shown(number)}, which is too large")
    return number


def natural(number: Any) -> int:
    """Convert like `int64`, but refuse negative numbers, which COCO's readers do not accept as ids."""
    if int64(number) < 0:
        raise ValueError(f"has the id {number}, which is below 0")
    return int64(number)
