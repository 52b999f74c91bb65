"""Rows of docs/EXACTNESS.md: what is compared, the largest difference and its tolerance."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from tests.helpers.detectron2_rows import Row


class Check(NamedTuple):
    """A row and its tolerance.

    Attributes:
        row: the largest absolute difference, and the same as a share of the reference's largest entry.
        tolerance: the largest permitted difference.
        relative: whether the tolerance applies to the relative difference, or else to the absolute one.
    """

    row: Row
    tolerance: float
    relative: bool

    @property
    def held(self) -> bool:
        return (self.row.relative if self.relative else self.row.absolute) <= self.tolerance


def absolute(
    stage: str, what: str, own: Tensor | Sequence[Tensor], reference: Tensor | Sequence[Tensor], tolerance: float
) -> Check:
    """Compare tensors, or lists of tensors, with an absolute tolerance."""
    return Check(difference(stage, what, own, reference), tolerance, relative=False)


def relative(
    stage: str, what: str, own: Tensor | Sequence[Tensor], reference: Tensor | Sequence[Tensor], tolerance: float
) -> Check:
    """Compare tensors, or lists of tensors, with a tolerance relative to the reference's largest entry."""
    return Check(difference(stage, what, own, reference), tolerance, relative=True)


def difference(stage: str, what: str, own: Tensor | Sequence[Tensor], reference: Tensor | Sequence[Tensor]) -> Row:
    """The row of two tensors or lists of tensors; ValueError if there is nothing to compare."""
    owns, references = ([values] if isinstance(values, Tensor) else list(values) for values in (own, reference))
    count = sum(tensor.numel() for tensor in references)
    if count == 0:
        raise ValueError(f"{stage}, {what}: nothing to compare")
    if [tensor.shape for tensor in owns] != [tensor.shape for tensor in references]:
        return Row(stage, what, count, math.inf, math.inf)
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(owns, references) if b.numel()]
    apart = largest((a - b).abs().max().item() for a, b in pairs)
    scale = largest(b.abs().max().item() for _, b in pairs)
    return Row(stage, what, count, apart, share(apart, scale))


def counted(stage: str, what: str, different: int, count: int, tolerance: float = 0) -> Check:
    """A row for `different` unequal things out of `count`."""
    if count == 0:
        raise ValueError(f"{stage}, {what}: nothing to compare")
    return Check(Row(stage, what, count, different, different / count), tolerance, relative=False)


def merged(stage: str, what: str, rows: Iterable[Row]) -> Row:
    """Merge rows into one: counts added, the largest differences kept."""
    rows = list(rows)
    return Row(
        stage,
        what,
        sum(row.count for row in rows),
        largest(row.absolute for row in rows),
        largest(row.relative for row in rows),
    )


def largest(values: Iterable[float]) -> float:
    """The largest value; NaN counts as infinite."""
    return max(math.inf if math.isnan(value) else value for value in values)


def share(apart: float, scale: float) -> float:
    return apart / scale if scale else (0.0 if apart == 0 else math.inf)


def table(checks: Sequence[Check]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| stage | what | numbers | largest difference | relative | tolerance | held |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for check in checks:
        stage, what, count, apart, of_largest = check.row
        tolerance = number(check.tolerance) + (" relative" if check.relative and check.tolerance else "")
        held = "yes" if check.held else "**NO**"
        if check.tolerance == math.inf:
            tolerance, held = "only measured", ""
        numbers = f"{count:,} | {number(apart)} | {number(of_largest)}"
        lines.append(f"| {stage} | {what} | {numbers} | {tolerance} | {held} |")
    return "\n".join(lines)


def number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
