"""Write the report of a network's evaluation, or of a results file of any detector."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset_files.atomic_files import refuse_overwriting
from dataset_files.dataset import InstanceDataset
from dataset_files.file_names import missing_names, resolve
from report.data_statistics import statistics_of_dataset
from report.eval_data import EvalData, make_eval_data
from report.html_page import ReportInput, is_own_page, write_report
from report.tables import FILES
from train_utils.anchor_fit import anchor_fit
from train_utils.data_check import describe_incomplete
from train_utils.errors import InputError, reading_input, warn
from train_utils.metrics.coco_evaluation import Metrics
from train_utils.metrics.results_file import ScoredResults, with_masks
from train_utils.open_data import open_training_beside
from train_utils.option_parsing import describe
from train_utils.options import TrainSettings, ValidationSettings, result_settings
from train_utils.run.run_folder import LOSS_CURVE, MAP_CURVE
from train_utils.trained_model import TrainedModel

CURVES = {"AP over the epochs": MAP_CURVE, "Training loss": LOSS_CURVE}


def report_of_network(
    settings: ValidationSettings,
    trained: TrainedModel,
    dataset: InstanceDataset,
    results: Mapping[str, list[dict[str, Any]]],
    metrics: Mapping[str, Metrics],
) -> Path:
    """Write the report of a network's detections on a dataset into the folder `--report`; return the page's path."""
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
    """Write the report of a results file; without --image-folder it shows only outlines.

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
        raise InputError(f"{settings.annotation_file}: cannot be reported on ({error!r})") from error


def eval_data_of(dataset: InstanceDataset, results: Mapping[str, list[dict[str, Any]]]) -> EvalData:
    """Build the arrays of a dataset and of results in COCO's format."""
    paths = {dataset.image_id(i): dataset.image_path(i) for i in range(len(dataset))}
    return make_eval_data(content_of(dataset), results, paths, dataset.form)


def content_of(dataset: InstanceDataset) -> dict[str, Any]:
    """Return the ground truth of a dataset as `make_eval_data` takes it."""
    truth = dataset.coco
    annotations = truth.loadAnns(truth.getAnnIds())
    return {
        "images": truth.loadImgs(truth.getImgIds()),
        "annotations": annotations,
        "categories": truth.loadCats(truth.getCatIds()),
        "without_mask": [a["id"] for a in annotations if a.get("segmentation") == []],
    }


def report_folder(settings: ValidationSettings) -> Path:
    """Return the folder `--report`; InputError if it cannot be written to, or has files of the user in their place."""
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
    """Return image id -> file in the folder; warn about missing images, and leave them out."""
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
    """Return the options that were given on the command line."""
    parts = [f"--{name.replace('_', '-')} {describe(getattr(settings, name))}" for name in sorted(settings.given)]
    return " ".join(parts) or "none"
