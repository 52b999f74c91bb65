"""Write the report of a network's evaluation, or of a results file of any detector."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset_files.atomic_files import refuse_overwriting
from dataset_files.dataset import InstanceDataset
from dataset_files.image_files import missing_names, resolve
from dataset_files.stored_images import RGB
from network_files.test_time_augmentation import with_tta
from report.comparison import Comparison, compare
from report.data_statistics import statistics_of_dataset
from report.eval_data import EvalData, make_eval_data
from report.html_page import ReportInput, is_own_page, write_report
from report.tables import FILES
from train_utils.data_check import describe_incomplete, match_classes
from train_utils.distributed import is_main
from train_utils.errors import InputError, reading_input, warn
from train_utils.evaluation import detect_all
from train_utils.loaders import evaluation_loader
from train_utils.metrics.coco_evaluation import CocoEvaluator, Metrics
from train_utils.metrics.results_file import (
    SHAPES,
    ScoredResults,
    read_annotations,
    read_json,
    read_results,
    with_masks,
)
from train_utils.open_data import open_training_beside, open_validation_data
from train_utils.option_parsing import describe
from train_utils.options import TrainSettings, ValidationSettings, result_settings
from train_utils.run.run_folder import LOSS_CURVE, MAP_CURVE
from train_utils.sampled_images import anchor_fit
from train_utils.trained_model import TrainedModel, open_trained_model

CURVES = {"AP over the epochs": MAP_CURVE, "Training loss": LOSS_CURVE}
Results = dict[str, list[dict[str, Any]]]  # "bbox" and "segm" -> results in COCO's format


def report_of_network(
    settings: ValidationSettings,
    trained: TrainedModel,
    dataset: InstanceDataset,
    results: Mapping[str, list[dict[str, Any]]],
    metrics: Mapping[str, Metrics],
) -> Path:
    """Write the report of a network's detections on a dataset into the folder of --report. Return the page's path."""
    data = eval_data_of(dataset, {kind: results[kind] for kind in with_masks(list(metrics))})
    training = open_training_beside(settings, dataset)
    transform, anchors = trained.model.transform, trained.model.rpn.anchor_generator
    fit = anchor_fit(dataset, anchors, transform.min_size[-1], transform.max_size)
    deciding = {"epochs", *result_settings(TrainSettings())}
    used = {
        n: v for n, v in trained.trained_with.items() if n in deciding and (n == "epochs" or v not in (None, False))
    }
    facts = {
        "weights": str(trained.path),
        "data": f"{dataset.source}, {len(dataset):,} images{describe_incomplete(dataset.counts())}",
        "options": given_options(settings),
        "trained with": ", ".join(f"{name} {value}" for name, value in used.items()) or "not known",
        "device": str(trained.device),
        "anchors": f"{anchors.describe()}; {fit or 'no objects'}",
    }
    with reading_input():
        run = trained.path.parent
        curves = {title: (run / name).read_bytes() for title, name in CURVES.items() if (run / name).is_file()}
    given = ReportInput(
        f"{trained.path.name} on {dataset.source.name}",
        facts,
        data,
        {kind: of_kind.stats for kind, of_kind in metrics.items()},
        None if training is None else statistics_of_dataset(training, data.category_ids.tolist()),
        curves,
    )
    return write_report(report_folder(settings), given)


def report_of_results(settings: ValidationSettings, scored: ScoredResults) -> Path:
    """Write the report of a results file. Without --image-folder, the page shows outlines instead of images.

    Raises InputError if the annotations cannot be used.
    """
    facts = {
        "results": str(settings.results_json),
        "data": f"{settings.annotation_file}, {len(scored.truth['images']):,} images",
        "options": given_options(settings),
    }
    title = f"{Path(str(settings.results_json)).name} on {Path(str(settings.annotation_file)).name}"
    paths = image_paths(scored.truth, settings.image_folder)
    try:
        data = make_eval_data(scored.truth, scored.results, paths)
        return write_report(report_folder(settings), ReportInput(title, facts, data, scored.stats))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{settings.annotation_file}: the report cannot use these annotations ({error!r})") from error


def eval_data_of(dataset: InstanceDataset, results: Mapping[str, list[dict[str, Any]]]) -> EvalData:
    """Build `EvalData` from a dataset and from results in COCO's format."""
    paths = {dataset.image_id(i): dataset.image_path(i) for i in range(len(dataset))}
    return make_eval_data(content_of(dataset), results, paths, dataset.form)


def content_of(dataset: InstanceDataset) -> dict[str, Any]:
    """Return the ground truth of a dataset, as the argument `content` of `make_eval_data`."""
    truth = dataset.coco
    annotations = truth.loadAnns(truth.getAnnIds())
    return {
        "images": truth.loadImgs(truth.getImgIds()),
        "annotations": annotations,
        "categories": truth.loadCats(truth.getCatIds()),
        "without_mask": [a["id"] for a in annotations if a.get("segmentation") == []],
    }


def report_folder(settings: ValidationSettings) -> Path:
    """Return the folder of --report. Raise InputError if the report would replace inputs or other programs' files."""
    folder = Path(str(settings.report))
    inputs = (
        settings.weights_path, settings.results_json, settings.annotation_file, settings.label_json_path,
        settings.train_json, settings.val_json, *(settings.compare or ()),
    )  # fmt: skip
    with reading_input():
        refuse_overwriting([Path(path) for path in inputs if path], [folder / name for name in FILES])
        found = [name for name in FILES if (folder / name).exists()]
        if found and (found[0] != FILES[0] or not is_own_page(folder / FILES[0])):
            raise InputError(f"{folder}: has {', '.join(found)}, but no report; give another folder (--report)")
    return folder


def image_paths(truth: Mapping[str, Any], folder: str | None) -> dict[int, Path]:
    """Return image id -> file for the images in a folder. Images without a file are left out, with a warning."""
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder (--image-folder)")
    images = [image for image in truth["images"] if isinstance(image.get("file_name"), str)]
    names, _ = resolve([image["file_name"] for image in images], Path(folder))
    absent = set(missing_names(names, Path(folder)))
    found = {image["id"]: Path(folder) / name for image, name in zip(images, names) if name not in absent}
    if lacking := len(truth["images"]) - len(found):
        warn(f"{folder}: {lacking} of {len(truth['images'])} images are missing; they are shown as outlines")
    return found


def given_options(settings: ValidationSettings) -> str:
    parts = [f"--{name.replace('_', '-')} {describe(getattr(settings, name))}" for name in sorted(settings.given)]
    return " ".join(parts) or "none"


def match_to_network(settings: ValidationSettings, trained: TrainedModel, opened: InstanceDataset) -> InstanceDataset:
    """Return a copy of the dataset with the network's classes and image form.

    If the weights store no category ids, those of the data are used. Raises InputError if the network lacks the classes
    of the data.
    """
    classes, opened = trained.classes, copy.copy(opened)
    opened.form = opened.form._replace(channels=trained.form.channels, values=trained.form.values)
    if "category_ids" not in trained.content:  # assume that network and data have equal labels
        classes.category_ids |= {k: v for k, v in opened.category_ids.items() if k in classes.names}
    if settings.label_json_path is None:
        if classes.are_named():
            return match_classes(opened, classes.names, classes.category_ids, str(trained.path))
        classes.require_labels_of(opened, trained.path)
    return opened


def detect(settings: ValidationSettings, trained: TrainedModel, dataset: InstanceDataset) -> CocoEvaluator:
    """Detect objects in this process's share of the images. Return the evaluator that holds the detections."""
    loader = evaluation_loader(dataset, settings.batch_size, settings.workers, trained.device)
    unreadable: list[str] | None = [] if settings.skip_bad else None
    ground_truth = dataset.coco if is_main() else None
    model = with_tta(trained.model) if settings.tta else trained.model
    return detect_all(model, loader, ground_truth, trained.classes, trained.device, trained.precision, unreadable)


def compare_sides(settings: ValidationSettings) -> tuple[Comparison, str] | None:
    """Compare the two files of --compare. Each is a results file, or weights, which are first run on the data.

    Returns the comparison and a description of the data, or None on all but the main process. Raises InputError if a
    file cannot be used, or if the two files cannot be compared.
    """
    paths = list(settings.compare or ())
    if len(paths) != 2:
        raise InputError(f"--compare takes two files, weights or results; got {len(paths)}")
    weights = [path for path in paths if not path.lower().endswith(".json")]
    if weights and settings.annotation_file:
        raise InputError("--annotation-file belongs to two results files; with weights, give --data-path or --val-json")
    if not weights and not settings.annotation_file:
        raise InputError("--compare of two results files needs --annotation-file")
    opened, detected = detect_with_all(settings, weights)
    if not is_main():
        return None
    if opened is None:
        content, source = read_annotations(str(settings.annotation_file)), str(settings.annotation_file)
        shown, form = image_paths(content, settings.image_folder), RGB
    else:
        content, source, form = content_of(opened), str(opened.source), opened.form
        shown = {opened.image_id(i): opened.image_path(i) for i in range(len(opened))}
    a, b = (detected.get(path) or read_all(path, content, settings) for path in paths)
    kinds = [kind for kind in settings.kinds("segm", "bbox") if set(with_masks([kind])) <= set(a) & set(b)]
    if not kinds:
        raise InputError(f"{paths[0]}, {paths[1]}: one has only boxes, the other only masks")
    return compare(content, paths, (a, b), kinds, shown, form), f"{source}, {len(content['images']):,} images"


def detect_with_all(
    settings: ValidationSettings, weights: Sequence[str]
) -> tuple[InstanceDataset | None, dict[str, Results]]:
    """Detect objects with each of the weights, all on the validation data of the first.

    Returns the data (None without weights), and path -> results, which is empty on all but the main process.
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
        evaluator = detect(one, trained, match_to_network(one, trained, opened))
        detections = evaluator.gathered()
        if detections is not None:
            detected[path] = with_categories_of(opened, trained, evaluator.results(detections))
    return opened, detected


def with_categories_of(opened: InstanceDataset, trained: TrainedModel, results: Results) -> Results:
    """Replace the network's category ids by the dataset's, by class name. Detections of other classes are dropped."""
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
    """Read the boxes, the masks or both from a results file: those in --iou-type, else those in the first entry."""
    entries = read_json(path, "--compare")
    first = entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else {}
    kinds = settings.kinds(*([kind for kind in ("segm", "bbox") if SHAPES[kind] in first] or ["bbox"]))
    return {kind: read_results(path, content, kind) for kind in with_masks(kinds)}
