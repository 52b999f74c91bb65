"""Report the contents and the faults of a dataset in any layout, without training.

python tools/inspect_dataset.py my_data               # layout, splits, objects per class, sizes, problems
python tools/inspect_dataset.py my_data --show 24     # also write data_sheet.png: 24 images with masks
python tools/inspect_dataset.py --train-json a.json --val-json b.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files import shared_images
from dataset_files.atomic_files import refuse_overwriting, write_image
from dataset_files.dataset import InstanceDataset, files_of
from dataset_files.image_headers import check_images
from dataset_files.problems import DOUBTFUL, Problems
from dataset_files.stored_images import stored_header
from train_utils.data_check import describe_classes, describe_contents, outcome_of, require_objects
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.models import ModelConfig, anchors_of
from train_utils.open_data import open_both
from train_utils.option_parsing import natural, option, positive, positive_number
from train_utils.options import DataSettings
from train_utils.sampled_images import anchor_fit
from train_utils.visual.sheets import contact_sheet, draw_target

MOST_CLASSES = 100  # listed at most


@dataclass
class ReportSettings(DataSettings):
    seed: int = option(0, "seed for dividing data that are not split ({default})", type=natural)
    min_size: int = option(
        800, "short side of the network's input, for the fit of the anchors ({default})", type=positive
    )
    max_size: int = option(1333, "limit of the long side ({default})", type=positive)
    anchor_sizes: list[int] | None = option(None, "as in training", type=positive, nargs=5)
    anchor_ratios: list[float] | None = option(None, "as in training", type=positive_number, nargs="+")
    show: int = option(0, "write a contact sheet of N images with their masks ({default})", type=natural)
    output: str = option("data_sheet.png", "file of the contact sheet ({default})", metavar="FILE")


def main(settings: ReportSettings) -> None:
    """Print the report, and with --show write the contact sheet. InputError if the faults would stop training."""
    if settings.data_path is None and settings.train_json is None:
        raise InputError("name the folder of the data: tools/inspect_dataset.py FOLDER")
    with reading_input():
        layout, train_set, val_set = open_both(settings, settings.seed, held_out={}, for_training=False)
    if settings.show:
        with reading_input():
            refuse_overwriting(files_of(train_set, val_set), [Path(settings.output)])
    stops = False
    print(f"layout: {layout.name}, {describe_classes(train_set)}")
    for title, dataset in (("training", train_set), ("validation", val_set)):
        problems, items = check_images(dataset)
        print(f"\n{title}: {dataset.source}")
        print_contents(dataset)
        anchors = anchors_of(ModelConfig(2, anchor_sizes=settings.anchor_sizes, anchor_ratios=settings.anchor_ratios))
        if fit := anchor_fit(dataset, anchors, settings.min_size, settings.max_size):
            print(f"  {fit}")
        found = Problems.together(dataset.problems, problems)
        stops |= print_problems(found, dataset, items, settings.skip_bad)
        if dataset.training:
            train_set = dataset.drop_items(items)
    if shared := shared_images.describe_shared(train_set, val_set):
        print(f"\n{shared}")
    if settings.show:
        write_sheet(train_set, settings.show, Path(settings.output))
    if stops:
        raise InputError(f"{train_set.source}: with these problems, training stops before its first step")


def print_contents(dataset: InstanceDataset) -> None:
    counts = dataset.counts()
    if dataset.form.values:
        print(f"  {stored_header(dataset.image_path(0), 'ignore').describe()}")
    sizes = np.array([dataset.get_height_and_width(i) for i in range(len(dataset))]).reshape(-1, 2)
    print(f"  {describe_contents(dataset, counts)}")
    if len(sizes):
        (low_h, low_w), (mid_h, mid_w), (high_h, high_w) = (way(sizes, axis=0) for way in (np.min, np.median, np.max))
        print(f"  width {low_w}..{high_w} (median {mid_w:.0f}), height {low_h}..{high_h} (median {mid_h:.0f})")
    print(f"  at most {counts.most_in_an_image} objects in an image")
    per_class = dataset.objects_per_class()
    width = max(map(len, per_class), default=0)
    for name, (objects, crowds) in list(per_class.items())[:MOST_CLASSES]:
        print(f"    {name:<{width}}  {objects:7d} objects  {crowds:6d} crowds")
    if len(per_class) > MOST_CLASSES:
        print(f"    ... and {len(per_class) - MOST_CLASSES} more classes")


def print_problems(problems: Problems, dataset: InstanceDataset, unusable: list[int], skip_bad: bool) -> bool:
    """Print the faults of a split and the number of unusable images. Return whether they stop the training."""
    stops = bool(problems.blocking(skip_bad))
    try:
        require_objects(dataset, len(unusable))
        if not problems.counts:
            print("  nothing is wrong")
    except InputError as error:
        stops = True
        print(f"  wrong (stops the training): {str(error).removeprefix(f'{dataset.source}: ')}")
    for kind in problems.wrong():
        remedy = "stops the training" if kind in DOUBTFUL else "stops the training; --skip-bad leaves these out"
        print(f"  wrong ({remedy}): {problems.describe(kind)}")
    for kind in problems.harmless():
        print(f"  {problems.describe(kind, outcome_of(kind, dataset))}")
    if unusable:
        print(f"  images that cannot be used: {len(unusable)}")
    return stops


def write_sheet(dataset: InstanceDataset, number: int, path: Path) -> None:
    """Write a contact sheet: the first `number` images of a split, with the boxes and masks of their objects."""
    with reading_input():
        indices = range(min(number, len(dataset)))
        tiles = [draw_target(*dataset[i], dataset.class_names, dataset.form.shown) for i in indices]
        if not tiles:
            raise InputError(f"{dataset.source}: no image to show")
        write_image(path, contact_sheet(tiles, columns=6))
    print(f"\n{len(tiles)} images drawn in {path}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--data-path", *arguments]
    with one_line_errors():
        main(ReportSettings.parse(__doc__, arguments))
