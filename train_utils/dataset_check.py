"""The check of a dataset before the first step: all that is wrong is counted and named, then the run goes on or stops.

What training can do without is left out with a warning. What would make results wrong stops the run, or with
`--skip-bad` is left out with a warning as well, unless it puts all of a file in doubt. The evaluation loses nothing but
what `--skip-bad` leaves out.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dataset_files.problems import KINDS, Problems
from train_utils.data import InstanceDataset, open_split
from train_utils.distributed import from_main, on_main
from train_utils.errors import InputError, reading_input
from train_utils.picture_check import check_pictures


def open_checked(data_path: str, splits: Sequence[bool], skip_bad: bool) -> list[InstanceDataset]:
    """The training split (True) or validation split (False) of a folder, or both, each without what is left out.

    The main process looks at the pictures, and all leave out the same.

    Raises:
        InputError: a split cannot be used; one line that says all.
    """
    with reading_input():
        datasets = [open_split(data_path, training, skip_bad=True) for training in splits]
        left_out = from_main(on_main(lambda: check(datasets, skip_bad)))
    for dataset, items in zip(datasets, left_out):
        dataset.leave_out(items)
    return datasets


def check(datasets: Sequence[InstanceDataset], skip_bad: bool) -> list[list[int]]:
    """The items that each dataset is to leave out; says what is wrong with each on stderr."""
    found, left_out = [], []
    for dataset in datasets:
        problems, items = check_pictures(dataset)
        all_problems = Problems()
        all_problems.update(dataset.problems)
        all_problems.update(problems)
        found.append(all_problems)
        left_out.append(items)
    wrong = sum(len(problems.wrong()) for problems in found)
    for dataset, problems in zip(datasets, found):
        for kind in problems.harmless():
            warn(dataset.source, problems.in_words(kind, outcome_of(kind, dataset)))
        if skip_bad or wrong > 1:  # a single one is told by the error alone
            for kind in problems.wrong():
                left = skip_bad and KINDS[kind].skippable
                warn(dataset.source, problems.in_words(kind, ", left out" if left else ""))
    unskippable = any(problems.unskippable() for problems in found)
    if unskippable or (wrong and not skip_bad):
        parts = [f"{d.source}: {p.summary()}" for d, p in zip(datasets, found) if p.wrong()]
        remedy = "" if unskippable else "; mend the data, or leave that out with --skip-bad"
        raise InputError(f"{'; '.join(parts)}{remedy}")
    for dataset, items in zip(datasets, left_out):
        if dataset.training and len(items) == len(dataset):
            raise InputError(f"{dataset.source}: holds no picture with a usable object to train on")
        if not dataset.training and 0 < len(items) == len(dataset):
            raise InputError(f"{dataset.source}: no picture is left to evaluate")
    return left_out


def outcome_of(kind: str, dataset: InstanceDataset) -> str:
    if KINDS[kind].stays:
        return ""
    return ", left out" if dataset.training else f", {dataset.kept_in_evaluation}"


def warn(source: Path, message: str) -> None:
    print(f"warning: {source}: {message}", file=sys.stderr, flush=True)
