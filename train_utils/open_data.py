"""The check of a dataset before the first step: all that is wrong is counted and named, then the run goes on or stops.

What training can do without is left out with a warning. What would make results wrong stops the run, or with
`--skip-bad` is left out with a warning as well. The evaluation loses nothing but what `--skip-bad` leaves out.
"""

from collections.abc import Sequence
from pathlib import Path

import transforms
from dataset_files.dataset import InstanceDataset
from dataset_files.image_headers import check_images
from dataset_files.problems import KINDS, Problems
from my_dataset_coco import CocoDetection
from my_dataset_voc import VOCInstances, find_voc_folder
from train_utils.distributed import broadcast_from_main, run_on_main
from train_utils.errors import InputError, reading_input, warn


def open_checked(data_path: str, splits: Sequence[bool], skip_bad: bool) -> list[InstanceDataset]:
    """The training split (True) or validation split (False) of a folder, or both, each without what is left out.

    The main process looks at the pictures, and all leave out the same.

    Raises:
        InputError: a split cannot be used; one line that says all.
    """
    with reading_input():
        datasets = [open_split(data_path, training, skip_bad=True) for training in splits]
        left_out = broadcast_from_main(run_on_main(lambda: check(datasets, skip_bad)))
    for dataset, items in zip(datasets, left_out):
        dataset.drop_items(items)
    return datasets


def check(datasets: Sequence[InstanceDataset], skip_bad: bool) -> list[list[int]]:
    """The items that each dataset is to leave out; says what is wrong with each on stderr."""
    found, left_out = [], []
    for dataset in datasets:
        problems, items = check_images(dataset)
        all_problems = Problems()
        all_problems.update(dataset.problems)
        all_problems.update(problems)
        found.append(all_problems)
        left_out.append(items)
    wrong = sum(len(problems.wrong()) for problems in found)
    for dataset, problems in zip(datasets, found):
        for kind in problems.harmless():
            warn(f"{dataset.source}: {problems.in_words(kind, outcome_of(kind, dataset))}")
        if skip_bad or wrong > 1:  # a single one is told by the error alone
            for kind in problems.wrong():
                left = skip_bad and KINDS[kind].skippable
                warn(f"{dataset.source}: {problems.in_words(kind, ', left out' if left else '')}")
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


def open_split(data_path: str, training: bool, skip_bad: bool = False) -> InstanceDataset:
    """The training or validation split of a COCO or VOC folder, told apart by what lies in it.

    Args:
        skip_bad: leave out what would make results wrong instead of raising, see the datasets.

    Raises:
        InputError: there is no such folder, or it has neither layout.
        ValueError, FileNotFoundError: the dataset's own, for what is broken inside.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder (--data-path)")
    flip = transforms.Compose([transforms.RandomHorizontalFlip()]) if training else None
    if find_voc_folder(root, "2012"):
        return VOCInstances(root, txt_name="train.txt" if training else "val.txt", transforms=flip, skip_bad=skip_bad)
    if (root / "annotations").is_dir():
        return CocoDetection(root, "train" if training else "val", flip, skip_bad=skip_bad)
    raise InputError(
        f"{root}: neither COCO's layout (annotations/instances_train2017.json, train2017/, val2017/) "
        "nor VOC's (VOCdevkit/VOC2012/ImageSets/Segmentation/)"
    )


def num_classes_for(dataset: InstanceDataset, given: int | None) -> int:
    """The number of classes with background: from `--num-classes`, or the largest label of the data.

    Raises:
        InputError: the data has a label that the given number has no place for.
    """
    largest = max(dataset.class_names)
    if given is not None and largest > given:
        raise InputError(
            f"the data has '{dataset.class_names[largest]}', id {dataset.category_ids[largest]}, as label {largest}, "
            f"--num-classes says {given}; leave --num-classes out or give at least {largest}"
        )
    return (given or largest) + 1
