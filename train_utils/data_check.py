"""Check datasets before the first step, report their contents, and match classes by name.

Training drops harmless faults, with a warning. Faults that would make results wrong stop the run; `--skip-bad` drops
them too, unless they cast doubt on a whole file. In evaluation, only `--skip-bad` drops anything.
"""

from collections.abc import Iterable, Mapping, Sequence

from dataset_files.coco_file import IGNORE
from dataset_files.dataset import InstanceDataset, ObjectCounts
from dataset_files.image_headers import check_images
from dataset_files.problems import DOUBTFUL, KEPT, Problems
from dataset_files.stored_images import stored_header
from train_utils.classes import some_of
from train_utils.distributed import broadcast_from_main, is_main, run_on_main
from train_utils.errors import InputError, reading_input, warn
from train_utils.metrics.coco_evaluation import MOST_DETECTIONS
from train_utils.options import DataSettings

MOSTLY_CROWDS = 0.5


def check_and_drop(
    datasets: Sequence[InstanceDataset], settings: DataSettings, detections: int = MOST_DETECTIONS
) -> list[InstanceDataset]:
    """Drop the unusable items of datasets. The main process checks the datasets and reports faults and contents."""
    with reading_input():  # a package may be missing
        unusable = broadcast_from_main(run_on_main(lambda: check(datasets, settings.skip_bad)))
    checked = [dataset.drop_items(items) for dataset, items in zip(datasets, unusable)]
    if is_main():
        for dataset in checked:
            report_contents(dataset, detections)
    return checked


def check(datasets: Sequence[InstanceDataset], skip_bad: bool) -> list[list[int]]:
    """Warn about each dataset's faults, and return the indices of the items to drop from it."""
    found, left_out = [], []
    for dataset in datasets:
        problems, items = check_images(dataset)
        found.append(Problems.together(dataset.problems, problems))
        left_out.append(items)
    wrong = sum(len(problems.wrong()) for problems in found)
    for dataset, problems in zip(datasets, found):
        for kind in problems.harmless():
            warn(f"{dataset.source}: {problems.describe(kind, outcome_of(kind, dataset))}")
        if skip_bad or wrong > 1:  # a single fault is in the error message already
            for kind in problems.wrong():
                left = skip_bad and kind not in DOUBTFUL
                warn(f"{dataset.source}: {problems.describe(kind, ', left out' if left else '')}")
    if any(problems.blocking(skip_bad) for problems in found):
        unskippable = any(problems.blocking(skip_bad=True) for problems in found)
        parts = [f"{d.source}: {p.summary()}" for d, p in zip(datasets, found) if p.wrong()]
        remedy = "" if unskippable else "; fix the data, or pass --skip-bad to drop these"
        raise InputError(f"{'; '.join(parts)}{remedy}")
    for dataset, items in zip(datasets, left_out):
        require_objects(dataset, len(items))
    return left_out


def outcome_of(kind: str, dataset: InstanceDataset) -> str:
    if kind in KEPT:
        return ""
    if dataset.training:
        return ", left out"
    return ", kept as crowds" if kind == "no mask" else ", kept"


def require_objects(dataset: InstanceDataset, left_out: int) -> None:
    """Raise InputError if a split has no usable image, or if most objects of a training split are crowds."""
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


def report_contents(dataset: InstanceDataset, detections: int) -> None:
    """Print a split's contents in one line. Warn if an image has more objects than the network can detect."""
    counts = dataset.counts()
    print(f"{dataset.source}: {describe_contents(dataset, counts)}", flush=True)
    if dataset.form.channels and len(dataset):
        found = stored_header(dataset.image_path(0), "ignore")
        print(f"{dataset.source}: images of {found.describe()} (--channels)", flush=True)
    if dataset.training and IGNORE in map(str.lower, dataset.class_names.values()):
        warn(f"{dataset.source}: '{IGNORE}' is a class like any other; --ignore-regions takes its objects as regions")
    if counts.most_in_an_image > detections:
        warn(
            f"{dataset.source}: up to {counts.most_in_an_image} objects in an image; the network stops at {detections} "
            "detections per image; --detections allows more"
        )


def describe_contents(dataset: InstanceDataset, counts: ObjectCounts) -> str:
    """Describe the images and objects of a split in one line."""
    line = f"{len(dataset)} images"
    if dataset.training:
        line += f" to train on; {counts.crowds} of {counts.objects} objects are crowds and are not trained on"
        line += f"; {counts.images_without_objects} images without objects are left out"
        line += f", {counts.empty_images} kept as background" if counts.empty_images else ""
    else:
        line += f" to validate on, {counts.objects} objects, {counts.crowds} of them crowds"
    return line + describe_incomplete(counts)


def describe_incomplete(counts: ObjectCounts) -> str:
    """State the number of ignore regions and the number of objects without a mask; "" if both are 0."""
    text = f"; {counts.regions} regions of class '{IGNORE}'" if counts.regions else ""
    return text + (f"; {counts.without_mask} objects have no mask" if counts.without_mask else "")


def match_classes(
    dataset: InstanceDataset, class_names: Mapping[int, str], category_ids: Mapping[int, int], owner: str
) -> InstanceDataset:
    """Return the dataset with the labels that other data, or a network, give to the classes of the same names.

    Warn about classes without a counterpart; InputError if no class has one. Messages call the other side `owner`.
    """
    own, names = set(dataset.class_names.values()), set(class_names.values())
    if not own & names:
        raise InputError(f"{dataset.source}: none of its classes ({listed(own)}) is known to {owner} ({listed(names)})")
    missing = [name for name, counts in dataset.objects_per_class().items() if name not in names and any(counts)]
    if missing and is_main():
        warn(f"{dataset.source}: objects of classes that {owner} lacks are left out: {listed(missing)}")
    if owner == "the training data" and names - own and is_main():
        warn(f"{dataset.source}: has no class {listed(names - own)}, which the training data have; they get no AP")
    return dataset.remap_categories(class_names, category_ids)


def num_classes_for(dataset: InstanceDataset, given: int | None) -> int:
    """Return the number of classes, including background, from `--num-classes` or the largest label of the data."""
    largest = max(dataset.class_names)
    if given is not None and largest > given:
        raise InputError(
            f"the data has '{dataset.class_names[largest]}', id {dataset.category_ids[largest]}, as label {largest}, "
            f"--num-classes is {given}; leave --num-classes out or give at least {largest}"
        )
    return (given or largest) + 1


def describe_classes(dataset: InstanceDataset) -> str:
    names = list(dataset.class_names.values())
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'}: {some_of(names)}"


def listed(names: Iterable[str]) -> str:
    """List up to five of the names, sorted and in quotes."""
    in_order = sorted(names)
    return ", ".join(f"'{name}'" for name in in_order[:5]) + (", ..." if len(in_order) > 5 else "")
