"""Read the history of a run from its folder."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

RESULTS = {"box AP": "det_results.txt", "mask AP": "seg_results.txt"}
LOG = "log.jsonl"
MOST_POINTS = 2000  # limit for the loss curve


@dataclass
class History:
    """History of a run.

    Attributes:
        epochs: E epoch numbers.
        ap: "box AP" and "mask AP" -> E values.
        steps: S logged steps.
        losses: S training losses.
    """

    epochs: list[int]
    ap: dict[str, list[float]]
    steps: list[int]
    losses: list[float]


def read_history(folder: Path) -> History | None:
    """Read the history of the run in a folder, skipping unreadable lines; return None if there is none."""
    per_kind = {name: results_of(folder / file) for name, file in RESULTS.items()}
    epochs = sorted(set.intersection(*(set(results) for results in per_kind.values())))
    steps, losses = logged_losses(folder / LOG)
    if not epochs and not steps:
        return None
    return History(epochs, {name: [of[e] for e in epochs] for name, of in per_kind.items()}, steps, losses)


def results_of(file: Path) -> dict[int, float]:
    """Return epoch -> AP of a results file."""
    found = {}
    for line in lines_of(file):
        first, *values = line.split()
        try:
            found[int(first.removeprefix("epoch:"))] = float(values[0])
        except (ValueError, IndexError):
            continue
    return found


def logged_losses(file: Path) -> tuple[list[int], list[float]]:
    steps, losses = [], []
    for line in lines_of(file):
        try:
            entry = json.loads(line)
            step, loss = int(entry["step"]), entry["loss"]
        except (ValueError, KeyError, TypeError):
            continue
        steps.append(step)
        losses.append(math.nan if loss is None else float(loss))
    every = max(1, len(steps) // MOST_POINTS)
    return steps[::every], losses[::every]


def lines_of(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        return []
