"""Read --box-thresh: a score for all classes, scores per class, or the best ones of validation. Needs no torch."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from train_utils.errors import InputError

Thresholds: TypeAlias = float | str | Sequence[float | str] | Mapping[str, float]
DEFAULT = 0.5
BEST = "best"


class ScoreThresholds:
    """The lowest score to show, per label.

    Args:
        given: a number for all classes, "best", "NAME=NUMBER", or several of these; or name -> number. Scores of named
            classes override the others.
        names: label -> class name.
        best: label -> the best score in validation; {} if it is unknown.
        owner: file of the weights, for messages.

    Raises:
        InputError: a part is not understood, no class has that name, or the best scores are unknown.
    """

    def __init__(self, given: Thresholds, names: Mapping[int, str], best: Mapping[int, float], owner: object):
        parts = [f"{n}={v}" for n, v in given.items()] if isinstance(given, Mapping) else given
        parts = [parts] if isinstance(parts, float | int | str) else list(parts)
        self.default = DEFAULT
        self.of_labels = dict(best) if BEST in parts else {}
        if BEST in parts and not best:
            raise InputError(
                f"{owner}: holds no thresholds, which --box-thresh best needs; write them with validation.py "
                "--save-thresholds (model_best.pth has them), or give numbers"
            )
        for part in parts:
            if not isinstance(part, str):
                self.default = float(part)
                continue
            name, is_named, number = part.rpartition("=")
            if is_named:
                labels = [label for label, known in names.items() if known == name]
                if not labels:
                    known = ", ".join(f"'{known}'" for known in list(names.values())[:8])
                    raise InputError(f"--box-thresh {part}: {owner} has no class '{name}' (it has {known}, ...)")
                self.of_labels |= dict.fromkeys(labels, score_of(number, part))
            elif part != BEST:
                self.default = score_of(number, part)

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Return the threshold of each label, int64 [N] -> float64 [N]."""
        return np.array([self.of_labels.get(label, self.default) for label in labels.tolist()], dtype=np.float64)


def score_of(text: str, part: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise InputError(f"--box-thresh {part}: give a score from 0 to 1, best, or NAME=SCORE")
    return value
