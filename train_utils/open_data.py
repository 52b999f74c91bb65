"""Open the splits of a data set, check them before the first step, and report what they hold.

The chain is that of dataset_files/: layout -> files -> conversion or repair -> index -> headers of the images. What
training can do without is left out with a warning. What would make results wrong stops the run, or with `--skip-bad` is
left out as well, unless it puts all of a file in doubt. The evaluation loses nothing but what `--skip-bad` leaves out.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dataset_files.coco_index import Reading
from dataset_files.conversion import SplitFiles
from dataset_files.dataset import InstanceDataset
from dataset_files.image_headers import check_images
from dataset_files.layouts.find import Layout, find_layout, named_files
from dataset_files.problems import KINDS, Problems
from dataset_files.splitting import choose_validation
from my_dataset_coco import CocoDetection
from my_dataset_voc import VOCInstances
from train_utils.distributed import broadcast_from_main, is_main, run_on_main
from train_utils.errors import InputError, reading_input, warn
from train_utils.metrics.coco_evaluation import MOST_DETECTIONS
from train_utils.options import DataSettings

MOSTLY_CROWDS = 0.5


def open_training_data(
    settings: DataSettings, seed: int, detections: int = MOST_DETECTIONS
) -> tuple[InstanceDataset, InstanceDataset]:
    """The training and the validation split, checked, the latter with the former's classes.

    Args:
        detections: how many the network returns per image at most; a warning names images with more objects.

    Raises:
        InputError: a split cannot be used; one line that says all.
    """
    with reading_input():
        layout = layout_of(settings)
        train_split, val_split = choose_splits(layout, settings, for_training=True)
        train_set = open_dataset(layout, train_split, settings, training=True)
        val_set = open_dataset(layout, val_split, settings, training=False)
        if is_main():
            where = settings.data_path or settings.train_json
            print(f"{where}: {layout.name} layout, {in_words(train_set)}", flush=True)
            warn_of_unused(layout)
        if train_split is not None and train_split is val_split:
            divide(train_set, val_set, settings.val_fraction, seed)
            val_set.problems = Problems()  # those of the one file are reported once
    check_and_drop([train_set, val_set], settings, detections)
    adopt_classes(val_set, train_set.class_names, train_set.category_ids, "the training data")
    return train_set, val_set


def open_validation_data(
    settings: DataSettings, trained_with: Mapping, detections: int = MOST_DETECTIONS
) -> InstanceDataset:
    """The validation split, checked; see `open_held_out` and `open_training_data`."""
    dataset = open_held_out(settings, trained_with)
    check_and_drop([dataset], settings, detections)
    return dataset


def open_held_out(settings: DataSettings, trained_with: Mapping) -> InstanceDataset:
    """The validation split, unchecked; of data that are not split the part that the run held out, else all images.

    Args:
        trained_with: settings of the run that made the weights, or {}; what was not given is read as there.
    """
    sources = ("data_path", "train_json", "val_json")
    same_data = all(getattr(settings, s) == trained_with.get(s) for s in sources if s in settings.given)
    same_data &= any(trained_with.get(s) for s in sources)
    if same_data:
        for each in DataSettings.options():
            if each.name not in settings.given and trained_with.get(each.name) is not None:
                setattr(settings, each.name, trained_with[each.name])
    if not any(getattr(settings, s) for s in sources):
        raise InputError("the weights do not say which data they were trained on; give --data-path")
    with reading_input():
        layout = layout_of(settings)
        _, split = choose_splits(layout, settings, for_training=False)
        dataset = open_dataset(layout, split, settings, training=False)
        held_out = same_data or "val_fraction" in settings.given
        if split is not None and split.name in ("", "train") and held_out:
            everything = open_dataset(layout, split, settings, training=True)
            divide(everything, dataset, settings.val_fraction, int(trained_with.get("seed") or 0))
    return dataset


def open_training_beside(settings: DataSettings, held_out: InstanceDataset) -> InstanceDataset | None:
    """The training split that belongs to a validation split, unchecked, with its classes; None if there is none.

    Args:
        settings: as `open_held_out` left them.
        held_out: what that returned; its images are left out where both are of one file.
    """
    layout = layout_of(settings)
    split, val_split = choose_splits(layout, settings, for_training=False)
    try:
        dataset = open_dataset(layout, split, settings, training=True)
    except (ValueError, OSError) as error:
        warn(f"the training split is not compared: {error}")
        return None
    dataset.transforms = None
    if split is not None and split is val_split:
        seen = set(held_out.image_names())
        dataset.drop_items([i for i, name in enumerate(dataset.image_names()) if name in seen])
    dataset.adopt_classes(held_out.class_names, held_out.category_ids)
    return dataset if len(dataset) else None


def open_split(data_path: str | Path, training: bool, skip_bad: bool = False) -> InstanceDataset:
    """The training or validation split of a folder in any layout, unchecked.

    Raises:
        InputError: there is no such folder, or its layout is not known.
        ValueError, FileNotFoundError: the dataset's own, for what is broken inside.
    """
    settings = DataSettings(data_path=str(data_path))
    with reading_input():
        layout = layout_of(settings)
        splits = choose_splits(layout, settings, training)
        dataset = open_dataset(layout, splits[0 if training else 1], settings, training)
    dataset.problems.require_none_wrong(dataset.source, skip_bad)
    return dataset


def layout_of(settings: DataSettings) -> Layout:
    first_json = settings.train_json or settings.val_json
    if first_json:
        if "data_path" in settings.given:
            raise InputError("--train-json and --val-json stand in place of --data-path; leave that out")
        val = settings.val_json if settings.train_json else None
        folder = Path(settings.image_folder) if settings.image_folder else None
        return named_files(Path(first_json), Path(val) if val else None, folder)
    if settings.image_folder is not None:
        raise InputError("--image-folder belongs to --train-json and --val-json; give these, or leave it out")
    return find_layout(data_folder(settings), settings.class_attribute)


def data_folder(settings: DataSettings) -> Path:
    if settings.data_path is None:
        raise InputError("give --data-path, the folder of the data")
    return Path(settings.data_path)


def warn_of_unused(layout: Layout) -> None:
    """Name annotation files of a folder that none of its splits is read from."""
    unused = [path for split in layout.splits for path in split.passed_over]
    if unused:
        named = ", ".join(map(str, unused[:5])) + (f" and {len(unused) - 5} more" if unused[5:] else "")
        warn(f"COCO files that are not used: {named}; to choose others give --train-json FILE and --val-json FILE")


def choose_splits(
    layout: Layout, settings: DataSettings, for_training: bool
) -> tuple[SplitFiles | None, SplitFiles | None]:
    """The splits for training and validation; the same one twice where the data are not split.

    None for Pascal VOC, whose dataset finds its lists itself.
    """
    by_name = {split.name: split for split in layout.splits}
    training = by_name.get("train") or by_name.get("") or next(iter(layout.splits), None)
    validation = by_name.get("val") or by_name.get("test") or training
    if for_training and training is not None and training.name in ("val", "test"):
        if training is not validation or "val_fraction" not in settings.given:
            raise InputError(
                f"{training.source}: only a {training.name} split was found; give --train-json FILE for the training "
                "images, or --val-fraction to divide this one"
            )
    if training is not validation and "val_fraction" in settings.given - settings.from_file:
        raise InputError(
            f"--val-fraction divides data that are not split; {settings.data_path} has {' and '.join(by_name)}; leave "
            "it out"
        )
    if training is not validation and validation is not None and validation.name == "test" and is_main():
        print(f"{settings.data_path}: no validation split, validating on the test split", flush=True)
    return training, validation


def open_dataset(layout: Layout, split: SplitFiles | None, settings: DataSettings, training: bool) -> InstanceDataset:
    if split is None:  # Pascal VOC, whose dataset finds its lists itself
        for name in ("boxes_from_masks", "crowds_are_objects"):
            if getattr(settings, name):
                raise InputError(f"--{name.replace('_', '-')} is not for {layout.name}'s layout; leave it out")
        txt_name = "train.txt" if training else "val.txt"
        folder = data_folder(settings)
        return VOCInstances(
            folder, txt_name=txt_name, skip_bad=True, keep_empty=settings.keep_empty, exif=settings.exif
        )
    return CocoDetection.of_split(
        split, training, reading=Reading(settings.boxes_from_masks, settings.crowds_are_objects), skip_bad=True,
        keep_empty=settings.keep_empty, key=settings.class_attribute or "", exif=settings.exif,
    )  # fmt: skip


def divide(train_set: InstanceDataset, val_set: InstanceDataset, fraction: float, seed: int) -> None:
    """Part the images of one annotation file, which both datasets hold, between them."""
    if not isinstance(train_set, CocoDetection) or not isinstance(val_set, CocoDetection):
        raise TypeError("only datasets of one COCO file can be divided")
    names, classes = val_set.image_names(), val_set.classes_of_images()
    for_validation, one_sided = choose_validation(names, classes, fraction, seed)
    val_set.drop_items(np.flatnonzero(~for_validation).tolist())
    held_out = {name for name, chosen in zip(names, for_validation) if chosen}
    train_set.drop_items([i for i, name in enumerate(train_set.image_names()) if name in held_out])
    train_set.restrict_to(set(names) - held_out)
    if is_main():
        print(
            f"{val_set.source}: not split; {len(held_out)} of {len(names)} images, chosen by their names, are for "
            f"validation (--val-fraction {fraction:g})",
            flush=True,
        )
        if one_sided:
            shown = ", ".join(f"'{val_set.index.categories[c]}'" for c in one_sided[:5])
            warn(f"{val_set.source}: classes that occur on one side of the split only ({len(one_sided)}): {shown}")


def adopt_classes(
    dataset: InstanceDataset, class_names: Mapping[int, str], category_ids: Mapping[int, int], owner: str
) -> None:
    """Number a dataset's classes as another one's or a checkpoint's, by name, and name what only one side has.

    Raises:
        InputError: they have no class in common.
    """
    own = set(dataset.class_names.values())
    missing = dataset.adopt_classes(class_names, category_ids)
    shared = own & set(class_names.values())
    if not shared:
        raise InputError(
            f"{dataset.source}: none of its classes ({listed(own)}) is known to {owner} "
            f"({listed(class_names.values())})"
        )
    if missing and is_main():
        warn(f"{dataset.source}: objects of classes that {owner} lacks are left out: {listed(missing)}")
    alone = set(class_names.values()) - own
    if owner == "the training data" and alone and is_main():
        warn(f"{dataset.source}: has no class {listed(alone)}, which the training data have; they get no AP")


def in_words(dataset: InstanceDataset) -> str:
    names = list(dataset.class_names.values())
    shown = ", ".join(names[:8]) + (", ..." if names[8:] else "")
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'}: {shown}"


def listed(names: Iterable[str]) -> str:
    in_order = sorted(names)
    return ", ".join(f"'{name}'" for name in in_order[:5]) + (", ..." if len(in_order) > 5 else "")


# ----------------------------------------------------------------------------------------------------------- the check


def check_and_drop(
    datasets: Sequence[InstanceDataset], settings: DataSettings, detections: int = MOST_DETECTIONS
) -> None:
    """Check datasets on the main process; all processes leave out the same."""
    with reading_input():
        left_out = broadcast_from_main(run_on_main(lambda: check(datasets, settings.skip_bad)))
    for dataset, items in zip(datasets, left_out):
        dataset.drop_items(items)
    if is_main():
        for dataset, items in zip(datasets, left_out):
            report_contents(dataset, len(items), detections)


def check(datasets: Sequence[InstanceDataset], skip_bad: bool) -> list[list[int]]:
    """The items that each dataset is to leave out; warns of what is wrong with each."""
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
        require_objects(dataset, len(items))
    return left_out


def outcome_of(kind: str, dataset: InstanceDataset) -> str:
    if KINDS[kind].stays:
        return ""
    return ", left out" if dataset.training else f", {dataset.kept_in_evaluation}"


def require_objects(dataset: InstanceDataset, left_out: int) -> None:
    """InputError for a split without a usable image, or whose objects are mostly crowds."""
    counts = dataset.counts()
    if dataset.training and counts.crowds > MOSTLY_CROWDS * counts.objects:
        raise InputError(
            f"{dataset.source}: {counts.crowds} of {counts.objects} objects are crowds (iscrowd: 1), which are not "
            "trained on; if each is a single object, as in exports of brush masks, give --crowds-are-objects"
        )
    if dataset.training and len(dataset) in (left_out, counts.empty_images):
        without_mask = dataset.problems.counts.get("no mask", 0)
        raise InputError(
            f"{dataset.source}: holds no image with a usable object to train on ({counts.objects} objects, "
            f"{counts.crowds} of them crowds, {without_mask} without a mask)"
        )
    if not dataset.training and 0 < left_out == len(dataset):
        raise InputError(f"{dataset.source}: no image is left to evaluate")


def report_contents(dataset: InstanceDataset, left_out: int, detections: int) -> None:
    """One line on what a split holds, and a warning of images with more objects than can be found."""
    counts = dataset.counts()
    line = f"{dataset.source}: {len(dataset)} images"
    if dataset.training:
        line += f" to train on; {counts.crowds} of {counts.objects} objects are crowds and are not trained on"
        line += f"; {counts.images_without_objects} images without objects are left out"
        line += f", {counts.empty_images} kept as background" if counts.empty_images else ""
    else:
        line += f" to validate on, {counts.objects} objects, {counts.crowds} of them crowds"
    print(line, flush=True)
    if counts.most_in_an_image > detections:
        warn(
            f"{dataset.source}: up to {counts.most_in_an_image} objects in an image; the network stops at {detections} "
            "detections per image; --detections allows more"
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
            f"--num-classes is {given}; leave --num-classes out or give at least {largest}"
        )
    return (given or largest) + 1
