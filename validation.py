"""Evaluate weights on a validation set: COCO's 12 metrics for boxes and masks, and AP per class.

    python validation.py                                                       # the weights of the last training
    python validation.py --weights-path save_weights/model_25.pth --data-path /data/coco2017
    torchrun --nproc_per_node=8 validation.py --weights-path ... --data-path ...
    python validation.py --report save_weights/report                          # also write a page about the errors
    python validation.py --results-json predictions/predictions.json --annotation-file val.json --iou-type segm
    python validation.py --results-json ... --annotation-file val.json --image-folder images --report DIR

Prints both tables and writes them to record_mAP.txt beside the weights. The last two commands score the results file of
any detector, and print COCO's official table. --report DIR also writes DIR/report.html, with its numbers beside it.
"""

from pathlib import Path

from dataset_files.atomic_files import refuse_overwriting, write_atomically
from prediction.test_time_augmentation import with_tta
from report.sources import report_folder, report_of_network, report_of_results
from train_utils.data_check import match_classes
from train_utils.distributed import is_main, process_group
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.evaluation import detect_all
from train_utils.loaders import evaluation_loader
from train_utils.metrics.coco_evaluation import explain_missing, tables
from train_utils.metrics.results_file import official_table, score_results_file
from train_utils.open_data import open_validation_data
from train_utils.options import ValidationSettings
from train_utils.trained_model import open_trained_model


def main(settings: ValidationSettings) -> None:
    if settings.results_json or settings.annotation_file or settings.iou_type:
        if is_main():
            score_results_json(settings)
        return

    # Weights
    if settings.report and is_main():
        report_folder(settings)  # check it before the long evaluation
    trained = open_trained_model(settings)
    path, classes = trained.path, trained.classes
    record = Path(settings.output_dir or path.parent) / "record_mAP.txt"

    # Data
    dataset = open_validation_data(settings, trained.trained_with, trained.held_out, trained.config.detections)
    with reading_input():
        refuse_overwriting([path, dataset.source], [record])
    if "category_ids" not in trained.content:  # assume that the labels are the data's
        classes.category_ids |= {k: v for k, v in dataset.category_ids.items() if k in classes.names}
    if settings.label_json_path is None:
        if classes.are_named():
            dataset = match_classes(dataset, classes.names, classes.category_ids, str(path))
        else:
            classes.require_labels_of(dataset, path)
    loader = evaluation_loader(dataset, settings.batch_size, settings.workers, trained.device)

    # Metrics
    unreadable: list[str] | None = [] if settings.skip_bad else None
    ground_truth = dataset.coco if is_main() else None
    model = with_tta(trained.model) if settings.tta else trained.model
    evaluator = detect_all(model, loader, ground_truth, classes, trained.device, trained.precision, unreadable)
    detections = evaluator.gathered()
    if detections is not None:  # on the main process
        metrics = evaluator.score(detections)
        text = f"weights: {path}\ndata: {dataset.source}, {len(dataset)} images\n"
        text += tables(metrics) + "\n"
        print(text, end="")
        with reading_input():
            write_atomically(record, text)
        print(f"written to {record}")
        if settings.report:
            print(f"report in {report_of_network(settings, trained, dataset, evaluator.results(detections), metrics)}")


def score_results_json(settings: ValidationSettings) -> None:
    """Print COCO's official table for a results file, and write its report if --report is given."""
    if not (settings.results_json and settings.annotation_file):
        raise InputError("--results-json and --annotation-file need each other, and --iou-type needs both")
    if settings.image_folder and not settings.report:
        raise InputError("with --results-json, --image-folder is for --report only; give both, or neither")
    scored = score_results_file(settings.results_json, settings.annotation_file, settings.iou_type or "bbox")
    print("\n".join(filter(None, (official_table(scored.stats), explain_missing(scored.stats)))))
    if settings.report:
        print(f"report in {report_of_results(settings, scored)}")


if __name__ == "__main__":
    with one_line_errors():
        settings = ValidationSettings.parse(__doc__)
        with process_group(settings):
            main(settings)
