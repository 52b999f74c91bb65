"""Detect with a network on its validation data, and open the two sides of `--compare`: weights or results files."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataset_files.dataset import InstanceDataset
from dataset_files.stored_images import RGB, ImageForm
from network_files import MaskRCNN
from report.comparison import Side
from report.sources import content_of, image_paths
from train_utils.data_check import match_classes
from train_utils.distributed import is_main
from train_utils.errors import InputError, warn
from train_utils.evaluation import detect_all
from train_utils.loaders import evaluation_loader
from train_utils.metrics.coco_evaluation import CocoEvaluator
from train_utils.metrics.results_file import SHAPES, read_annotations, read_json, read_results, with_masks
from train_utils.open_data import open_validation_data
from train_utils.options import ValidationSettings
from train_utils.trained_model import TrainedModel, open_trained_model

Augment = Callable[[MaskRCNN], MaskRCNN]


@dataclass
class TwoSides:
    """What is compared.

    Attributes:
        content: ground truth: `images`, `annotations` and `categories` of a COCO file.
        source: where it comes from.
        kinds: "segm", "bbox" and "boundary", as far as both have them.
        paths: image id -> file, for the images that can be shown.
        form: how images are read and shown, see `read_image`.
    """

    content: Mapping[str, Any]
    source: str
    a: Side
    b: Side
    kinds: Sequence[str]
    paths: Mapping[int, Path]
    form: ImageForm = RGB


def match_to_network(settings: ValidationSettings, trained: TrainedModel, opened: InstanceDataset) -> InstanceDataset:
    """Return the data as a network takes them: its classes, completed by category ids if it lacks these, and images.

    Raises:
        InputError: the network lacks the classes of the data.
    """
    classes, opened = trained.classes, copy.copy(opened)
    opened.form = opened.form._replace(channels=trained.form.channels, values=trained.form.values)
    if "category_ids" not in trained.content:  # assume that the labels are the data's
        classes.category_ids |= {k: v for k, v in opened.category_ids.items() if k in classes.names}
    if settings.label_json_path is None:
        if classes.are_named():
            return match_classes(opened, classes.names, classes.category_ids, str(trained.path))
        classes.require_labels_of(opened, trained.path)
    return opened


def detect(
    settings: ValidationSettings, trained: TrainedModel, dataset: InstanceDataset, with_tta: Augment
) -> CocoEvaluator:
    """Detect objects in this process's share of the images; `with_tta` makes the network of `--tta`."""
    loader = evaluation_loader(dataset, settings.batch_size, settings.workers, trained.device)
    unreadable: list[str] | None = [] if settings.skip_bad else None
    ground_truth = dataset.coco if is_main() else None
    model = with_tta(trained.model) if settings.tta else trained.model
    return detect_all(model, loader, ground_truth, trained.classes, trained.device, trained.precision, unreadable)


def open_sides(settings: ValidationSettings, with_tta: Augment) -> TwoSides | None:
    """Open the two sides that `--compare` names, and detect with those that are weights; None on other processes.

    Raises:
        InputError: a file cannot be used, or the two do not fit together.
    """
    paths = list(settings.compare or ())
    if len(paths) != 2:
        raise InputError(f"--compare takes two, weights or results files; got {len(paths)}")
    are_weights = [not path.lower().endswith(".json") for path in paths]
    if any(are_weights) == bool(settings.annotation_file):
        raise InputError(
            "--annotation-file belongs to two results files; with weights, give --data-path or --val-json"
            if settings.annotation_file
            else "--compare of two results files needs --annotation-file"
        )
    opened, detected = None, {}
    for path in [path for path, is_weights in zip(paths, are_weights) if is_weights]:
        one = replace(settings, weights_path=path)
        one.given = settings.given
        trained = open_trained_model(one)
        if opened is None:
            opened = open_validation_data(one, trained.trained_with, trained.held_out, trained.config.detections)
        elif trained.held_out and is_main() and (seen := set(opened.image_names()) - trained.held_out.keys()):
            warn(f"{path}: was trained on {len(seen)} of the {len(opened)} images, so that its AP on them is too high")
        evaluator = detect(one, trained, match_to_network(one, trained, opened), with_tta)
        detections = evaluator.gathered()
        if detections is not None:
            detected[path] = with_categories_of(opened, trained, evaluator.results(detections))
    if not is_main():
        return None
    content = read_annotations(str(settings.annotation_file)) if opened is None else content_of(opened)
    known = [detected.get(path) or read_all(path, content, settings) for path in paths]
    kinds = [
        kind for kind in settings.kinds("segm", "bbox") if all(set(with_masks([kind])) <= set(each) for each in known)
    ]
    if not kinds:
        raise InputError(f"{paths[0]}, {paths[1]}: one has only boxes, the other only masks")
    a, b = (Side(path, results) for path, results in zip(paths, known))
    if opened is None:
        found = image_paths(content, settings.image_folder)
        return TwoSides(content, str(settings.annotation_file), a, b, kinds, found)
    shown = {opened.image_id(i): opened.image_path(i) for i in range(len(opened))}
    return TwoSides(content, str(opened.source), a, b, kinds, shown, opened.form)


def with_categories_of(
    opened: InstanceDataset, trained: TrainedModel, results: Mapping[str, list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Replace the network's category ids by the data's, by name; drop detections of classes that the data lacks."""
    classes = trained.classes
    if not classes.are_named():
        return dict(results)
    of_data = {name: opened.category_ids[label] for label, name in opened.class_names.items()}
    ids = {classes.category_ids[label]: of_data.get(name) for label, name in classes.names.items()}
    return {
        kind: [e | {"category_id": ids[e["category_id"]]} for e in entries if ids[e["category_id"]] is not None]
        for kind, entries in results.items()
    }


def read_all(path: str, content: dict[str, Any], settings: ValidationSettings) -> dict[str, list[dict[str, Any]]]:
    """Read a results file: the kinds that are asked for, else those that its first entry has."""
    entries = read_json(path, "--compare")
    first = entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else {}
    kinds = settings.kinds(*([kind for kind in ("segm", "bbox") if SHAPES[kind] in first] or ["bbox"]))
    return {kind: read_results(path, content, kind) for kind in with_masks(kinds)}
