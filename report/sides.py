"""Detect with a network on its validation data, and compare the two sides of `--compare`: weights or results files."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dataset_files.dataset import InstanceDataset
from dataset_files.stored_images import RGB
from network_files import MaskRCNN
from report.comparison import Comparison, Side, compare
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
Results = dict[str, list[dict[str, Any]]]  # "bbox" and "segm" -> results in COCO's format


def match_to_network(settings: ValidationSettings, trained: TrainedModel, opened: InstanceDataset) -> InstanceDataset:
    """Return the data as a network takes them: in its classes and image form; the data may supply category ids.

    Raises InputError if the network lacks the classes of the data.
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


def compare_sides(settings: ValidationSettings, with_tta: Augment) -> tuple[Comparison, str] | None:
    """Detect with the weights that `--compare` names, read the results files, and compare the two.

    Return the comparison and a description of the data; None on all but the main process. Raises InputError if a file
    cannot be used, or the two do not fit together.
    """
    paths = list(settings.compare or ())
    if len(paths) != 2:
        raise InputError(f"--compare takes two, weights or results files; got {len(paths)}")
    weights = [path for path in paths if not path.lower().endswith(".json")]
    if weights and settings.annotation_file:
        raise InputError("--annotation-file belongs to two results files; with weights, give --data-path or --val-json")
    if not weights and not settings.annotation_file:
        raise InputError("--compare of two results files needs --annotation-file")
    opened, detected = detect_with_all(settings, weights, with_tta)
    if not is_main():
        return None
    if opened is None:
        content, source = read_annotations(str(settings.annotation_file)), str(settings.annotation_file)
        shown, form = image_paths(content, settings.image_folder), RGB
    else:
        content, source, form = content_of(opened), str(opened.source), opened.form
        shown = {opened.image_id(i): opened.image_path(i) for i in range(len(opened))}
    a, b = (Side(path, detected.get(path) or read_all(path, content, settings)) for path in paths)
    both = set(a.results) & set(b.results)
    kinds = [kind for kind in settings.kinds("segm", "bbox") if both.issuperset(with_masks([kind]))]
    if not kinds:
        raise InputError(f"{paths[0]}, {paths[1]}: one has only boxes, the other only masks")
    return compare(content, a, b, kinds, shown, form), f"{source}, {len(content['images']):,} images"


def detect_with_all(
    settings: ValidationSettings, weights: Sequence[str], with_tta: Augment
) -> tuple[InstanceDataset | None, dict[str, Results]]:
    """Detect with each of the weights on the data of the first; return the data, and the results by path.

    The data are None without weights. Only the main process has results.
    """
    opened, detected = None, {}
    for path in weights:
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
    return opened, detected


def with_categories_of(opened: InstanceDataset, trained: TrainedModel, results: Results) -> Results:
    """Replace the network's category ids by the data's, by name; drop detections of classes that the data lacks."""
    classes = trained.classes
    if not classes.are_named():
        return results
    of_data = {name: opened.category_ids[label] for label, name in opened.class_names.items()}
    ids = {classes.category_ids[label]: of_data.get(name) for label, name in classes.names.items()}
    return {
        kind: [e | {"category_id": ids[e["category_id"]]} for e in entries if ids[e["category_id"]] is not None]
        for kind, entries in results.items()
    }


def read_all(path: str, content: dict[str, Any], settings: ValidationSettings) -> Results:
    """Read a results file: the kinds that --iou-type names, else those that its first entry has."""
    entries = read_json(path, "--compare")
    first = entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else {}
    kinds = settings.kinds(*([kind for kind in ("segm", "bbox") if SHAPES[kind] in first] or ["bbox"]))
    return {kind: read_results(path, content, kind) for kind in with_masks(kinds)}
