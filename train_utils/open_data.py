"""Open the training and validation data: find the layout, choose or divide splits, open datasets, and check them."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from os.path import realpath
from pathlib import Path

from dataset_files import shared_images
from dataset_files.coco_index import Reading
from dataset_files.conversion_store import OpenedSplit, SplitFiles, open_split_index
from dataset_files.dataset import InstanceDataset, ItemPlan
from dataset_files.layouts.find import VOC, Layout, find_layout, named_files
from dataset_files.problems import Problems
from dataset_files.shared_images import READERS, head_of
from dataset_files.splitting import choose_validation
from dataset_files.stored_images import ImageForm, stored_header
from my_dataset_coco import CocoDetection
from train_utils.data_check import check_and_drop, describe_classes, listed, match_classes
from train_utils.distributed import is_main
from train_utils.errors import InputError, reading_input, warn
from train_utils.metrics.coco_evaluation import MOST_DETECTIONS
from train_utils.options import DataSettings

HeldOut = Mapping[str, str | int]  # image name -> size and hash of the file, see `held_out_images`
SOURCES = ("data_path", "train_json", "val_json")
MOST_PROBED = 20  # images whose header is read to find the type of values


def open_training_data(
    settings: DataSettings, seed: int, detections: int = MOST_DETECTIONS, held_out: HeldOut | None = None
) -> tuple[InstanceDataset, InstanceDataset]:
    """Open and check the training and the validation set, with the same labels. InputError names all faults at once."""
    with reading_input():
        layout, train_set, val_set = open_both(settings, seed, held_out or {}, for_training=True)
    if is_main():
        where = settings.data_path or settings.train_json
        print(f"{where}: {layout.name} layout, {describe_classes(train_set)}", flush=True)
    train_set, val_set = check_and_drop([train_set, val_set], settings, detections)
    if is_main() and (shared := shared_images.describe_shared(train_set, val_set)):
        warn(shared)
    return train_set, match_classes(val_set, train_set.class_names, train_set.category_ids, "the training data")


def open_validation_data(
    settings: DataSettings, trained_with: Mapping, held_out: HeldOut | None = None, detections: int = MOST_DETECTIONS
) -> InstanceDataset:
    """Open the validation split, see `open_held_out`, and check it. Warn of images with over `detections` objects."""
    (dataset,) = check_and_drop([open_held_out(settings, trained_with, held_out)], settings, detections)
    return dataset


def open_held_out(settings: DataSettings, trained_with: Mapping, held_out: HeldOut | None = None) -> InstanceDataset:
    """Open the validation split without checking it.

    If the data are not split, its images are those that the run held out, else a share (--val-fraction), or else all.
    `trained_with` holds the options of the run that wrote the weights; on the same data, they replace those not given.
    """
    paths = [(getattr(settings, s), trained_with.get(s)) for s in SOURCES if s in settings.given]
    same_data = any(trained_with.get(s) for s in SOURCES) and all(
        own == other or own and other and realpath(own) == realpath(other) for own, other in paths
    )
    if same_data:
        for each in DataSettings.options():
            if each.name not in settings.given and trained_with.get(each.name) is not None:
                setattr(settings, each.name, trained_with[each.name])
    if settings.channels not in (None, trained_with.get("channels")):
        raise InputError(f"--channels {settings.channels}: the weights take other images; leave --channels out")
    settings.channels = trained_with.get("channels")
    if not any(getattr(settings, s) for s in SOURCES):
        raise InputError("the weights do not record which data they were trained on; give --data-path")
    with reading_input():
        _, training, split = choose_splits(settings, for_training=False)
        opened = open_files(split, settings)
        plan = plan_of(settings)
        if training is split and (held_out or split.name in ("", "train")):
            names = find_held_out(opened, held_out or {}, same_data or (None if settings.val_json else False))
            if not names and ((same_data and not held_out) or "val_fraction" in settings.given):
                names = divide(opened, settings.val_fraction, int(trained_with.get("seed") or 0))
            plan = plan._replace(images=names or None)
        return CocoDetection(opened, "val", plan=plan)


def open_training_beside(settings: DataSettings, held_out: InstanceDataset) -> InstanceDataset | None:
    """Open the training split beside the validation split `held_out`; None if it is empty or cannot be opened."""
    _, training, validation = choose_splits(settings, for_training=False)
    plan = plan_of(settings)
    try:
        opened = open_files(training, settings)
        if training is validation:
            plan = plan._replace(images=image_names(opened) - set(held_out.image_names()))
        dataset = CocoDetection(opened, "train", plan=plan)
    except (ValueError, OSError) as error:
        warn(f"the training split is not compared: {error}")
        return None
    return dataset.remap_categories(held_out.class_names, held_out.category_ids) if len(dataset) else None


def layout_of(settings: DataSettings) -> Layout:
    if first_json := settings.train_json or settings.val_json:
        if "data_path" in settings.given:
            raise InputError("--train-json and --val-json replace --data-path; omit --data-path")
        val = Path(settings.val_json) if settings.train_json and settings.val_json else None
        return named_files(Path(first_json), val, Path(settings.image_folder) if settings.image_folder else None)
    if settings.image_folder is not None:
        raise InputError("--image-folder needs --train-json or --val-json; give these, or omit it")
    if settings.data_path is None:
        raise InputError("give --data-path, the folder of the data")
    return find_layout(Path(settings.data_path), settings.class_attribute)


def choose_splits(settings: DataSettings, for_training: bool) -> tuple[Layout, SplitFiles, SplitFiles]:
    """Choose the training split and the validation split. If there is only one split, return it twice."""
    layout = layout_of(settings)
    for name in ("boxes_from_masks", "crowds_are_objects"):
        if layout.name == VOC and getattr(settings, name):
            raise InputError(f"--{name.replace('_', '-')} is not for {layout.name}'s layout; leave it out")
    by_name = {split.name: split for split in layout.splits}
    training = by_name.get("train") or by_name.get("") or layout.splits[0]
    validation = by_name.get("val") or by_name.get("test") or training
    if for_training and training.name in ("val", "test"):
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
    if training is not validation and validation.name == "test" and is_main():
        print(f"{settings.data_path}: no validation split, validating on the test split", flush=True)
    return layout, training, validation


def open_files(split: SplitFiles, settings: DataSettings) -> OpenedSplit:
    reading = Reading(*(getattr(settings, name) for name in Reading._fields))
    return open_split_index(split, reading, settings.class_attribute or "")


def plan_of(settings: DataSettings) -> ItemPlan:
    return ItemPlan(keep_empty=settings.keep_empty, skip_bad=True, form=settings.form())  # the check reports these


def with_type_of_values(dataset: InstanceDataset) -> ImageForm:
    """Return how a training set's images are read. With --channels, the first readable image sets the value type."""
    for i in range(min(len(dataset), MOST_PROBED) if dataset.form.channels else 0):
        with suppress(Exception):  # of any library; the check names images that cannot be read
            header = stored_header(dataset.image_path(i), dataset.form.exif)
            return dataset.form._replace(values=header.values)
    return dataset.form


def open_both(
    settings: DataSettings, seed: int, held_out: HeldOut, for_training: bool
) -> tuple[Layout, InstanceDataset, InstanceDataset]:
    """Open the datasets for training and validation. If there is only one split, divide its images between them."""
    layout, training, validation = choose_splits(settings, for_training)
    of_training = of_validation = open_files(training, settings)
    plan = val_plan = plan_of(settings)
    if training is not validation:
        of_validation = open_files(validation, settings)
    elif len(names := image_names(of_training)) < 2:
        raise ValueError(
            f"{training.source}: {'one' if names else 'no'} image cannot be divided into training and validation; add "
            "images, or give --train-json FILE and --val-json FILE"
        )
    else:
        chosen = find_held_out(of_training, held_out, trust_names=True)
        chosen = chosen or divide(of_training, settings.val_fraction, seed)
        plan, val_plan = plan._replace(images=names - chosen), plan._replace(images=chosen)
        of_validation = replace(of_training, problems=Problems())  # report the problems of this file only once
    train_set = CocoDetection(of_training, "train", plan=plan)
    val_set = CocoDetection(of_validation, "val", plan=val_plan)
    train_set.form = val_set.form = with_type_of_values(train_set)
    return layout, train_set, val_set


def divide(opened: OpenedSplit, fraction: float, seed: int) -> set[str]:
    """Choose images of an annotation file for validation. Return their names, and print their number."""
    index = opened.index
    for_validation, one_sided = choose_validation(index.file_names.tolist(), index.classes_of_images(), fraction, seed)
    if is_main():
        print(
            f"{opened.split.source}: not split; {for_validation.sum()} of {len(for_validation)} images, chosen by "
            f"their names, are used for validation (--val-fraction {fraction:g})",
            flush=True,
        )
        if one_sided:
            classes = listed(index.categories[c] for c in one_sided)
            warn(f"{opened.split.source}: classes on one side of the split only ({len(one_sided)}): {classes}")
    return set(index.file_names[for_validation].tolist())


def held_out_images(train_set: InstanceDataset, val_set: InstanceDataset) -> dict[str, str]:
    """Map the name of each validation image to the size and hash of its file.

    Return {} if the data are already split, and on processes other than the main one.
    """
    if val_set.source != train_set.source or not is_main():
        return {}
    names = val_set.image_names()
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(content_of, map(val_set.image_path, range(len(names))))))


def content_of(path: Path) -> str:
    size, digest = head_of(path)
    return f"{size} {digest.hex()[:32]}"


def find_held_out(opened: OpenedSplit, held_out: HeldOut, trust_names: bool | None) -> set[str]:
    """Return the names of the images that a run held out for validation. Content identifies an image, even if renamed.

    Warn about images that are not found. `trust_names`: whether an image of the same name but other content counts.
    True: always; None: never; False: only if all images have changed, as in resized data, and none is missing. Older
    checkpoints store the size of a file instead of size and hash.
    """
    folder, names = opened.split.image_folder, image_names(opened)
    contents = {name: content_of(folder / name) for name in held_out if name in names}
    found = {name for name, content in contents.items() if held_out[name] in (content, int(content.split()[0]))}
    left = held_out.keys() - found
    if any(isinstance(held_out[name], str) for name in left):
        wanted = Counter(held_out[name] for name in left)
        sizes = {int(str(content).split()[0]) for content in wanted}
        for name in sorted(names - found):
            with suppress(OSError):
                if (folder / name).stat().st_size in sizes and wanted[content := content_of(folder / name)] > 0:
                    wanted[content] -= 1
                    found.add(name)
        left = {name for name in left if wanted[held_out[name]] > 0}
    changed = {name for name in left & names if (folder / name).is_file()}
    if not trust_names and (trust_names is None or found or changed != left):
        changed = set()
    where, count = opened.split.source, len(held_out)
    if held_out and is_main():
        if missing := left - changed:
            warn(
                f"{where}: {len(missing)} of {count} images that the training held out for validation are not "
                f"here, or have changed: {listed(missing)}"
            )
        if changed:
            warn(
                f"{where}: {len(changed)} of {count} images that the training held out for validation have changed "
                f"since, and are still used for it: {listed(changed)}"
            )
        if found:
            print(f"{where}: {len(found)} images that the training held out are used for validation", flush=True)
    return found | changed


def image_names(opened: OpenedSplit) -> set[str]:
    return set(opened.index.file_names.tolist())
