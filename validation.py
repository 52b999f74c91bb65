"""Evaluate weights on a validation set: COCO's 12 metrics for boxes and masks, and AP per class.

    python validation.py                                                       # the weights of the last training
    python validation.py --weights-path save_weights/model_25.pth --data-path /data/coco2017
    torchrun --nproc_per_node=8 validation.py --weights-path ... --data-path ...
    python validation.py --report save_weights/report                          # also write a page about the errors
    python validation.py --compare save_weights/model_20.pth save_weights/model_25.pth    # or results files (.json)
    python validation.py --results-json predictions/predictions.json --annotation-file val.json --iou-type segm
    python validation.py --results-json ... --annotation-file val.json --image-folder images --report DIR

Prints both tables and writes them to record_mAP.txt beside the weights. --compare says which of two is better. The last
two commands score the results file of any detector, and print COCO's official table. --report DIR also writes
DIR/report.html, with its numbers beside it.
"""

from pathlib import Path

from dataset_files.atomic_files import refuse_overwriting, write_atomically
from report import sources
from report.analysis import boundary_metrics
from report.comparison import table, write_comparison
from report.eval_data import make_eval_data
from train_utils.distributed import is_main, process_group
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.metrics.coco_evaluation import TITLES, best_thresholds, explain_missing, tables
from train_utils.metrics.results_file import official_table, score_results_file
from train_utils.open_data import open_validation_data
from train_utils.options import ValidationSettings
from train_utils.trained_model import open_trained_model
from train_utils.weight_files.weights import require_checkpoint, write_thresholds


def main(settings: ValidationSettings) -> None:
    if settings.report and is_main():
        sources.report_folder(settings)  # check it before the long evaluation
    kinds = settings.kinds("bbox", "segm")
    if settings.save_thresholds and (settings.compare or settings.results_json or kinds == ["boundary"]):
        raise InputError("--save-thresholds is for one network's masks or boxes; leave it out")
    if settings.compare:
        compare_two(settings)
        return
    if settings.results_json or settings.annotation_file:
        if is_main():
            score_results_json(settings)
        return

    # Weights
    trained = open_trained_model(settings)
    path = trained.path
    if settings.save_thresholds:
        require_checkpoint(trained.content, path)
        with reading_input():
            refuse_overwriting([], [path.resolve()])
    record = Path(settings.output_dir or path.parent) / "record_mAP.txt"

    # Data
    opened = open_validation_data(settings, trained.trained_with, trained.held_out, trained.config.detections)
    with reading_input():
        refuse_overwriting([path, opened.source], [record])
    dataset = sources.match_to_network(settings, trained, opened)

    # Metrics
    evaluator = sources.detect(settings, trained, dataset)
    detections = evaluator.gathered()
    if detections is not None:  # on the main process
        metrics = evaluator.score(detections, [kind for kind in kinds if kind != "boundary"])
        if "boundary" in kinds:
            data = sources.eval_data_of(dataset, {"segm": evaluator.results(detections)["segm"]})
            metrics["boundary"] = boundary_metrics(data, trained.classes.category_ids)
        metrics = {kind: metrics[kind] for kind in kinds}
        text = f"weights: {path}\ndata: {dataset.source}, {len(dataset)} images\n"
        text += tables(metrics) + "\n"
        print(text, end="")
        with reading_input():
            write_atomically(record, text)
            print(f"written to {record}")
            if settings.save_thresholds:
                thresholds = best_thresholds(metrics)
                write_thresholds(path.resolve(), thresholds, path.resolve())  # a link stays one
                print(f"thresholds of {len(thresholds)} classes written into {path}, chosen on these images")
        if settings.report:
            results = evaluator.results(detections)
            print(f"report in {sources.report_of_network(settings, trained, dataset, results, metrics)}")


def compare_two(settings: ValidationSettings) -> None:
    """Print the differences between two weight or results files, with 95 % intervals. With --report, write a page."""
    if (compared := sources.compare_sides(settings)) is not None:  # on the main process
        comparison, data = compared
        print(f"data: {data}\n{table(comparison)}")
        if settings.report:
            facts = {"data": data, "options": sources.given_options(settings)}
            print(f"page in {write_comparison(sources.report_folder(settings), comparison, facts)}")


def score_results_json(settings: ValidationSettings) -> None:
    """Print COCO's official table for a results file, and write its report if --report is given."""
    if not (settings.results_json and settings.annotation_file):
        raise InputError("--results-json and --annotation-file need each other")
    if settings.image_folder and not settings.report:
        raise InputError("with --results-json, --image-folder is for --report only; give both, or neither")
    kinds = settings.kinds("bbox")
    scored = score_results_file(settings.results_json, settings.annotation_file, kinds)
    if "boundary" in kinds:
        data = make_eval_data(scored.truth, {"segm": scored.results["segm"]}, {})
        scored.stats["boundary"] = boundary_metrics(data).stats
    scored.stats = {kind: scored.stats[kind] for kind in kinds}
    for kind, stats in scored.stats.items():
        title = TITLES[kind] if len(kinds) > 1 else ""
        print("\n".join(filter(None, (title, official_table(stats), explain_missing(stats)))))
    if settings.report:
        print(f"report in {sources.report_of_results(settings, scored)}")


if __name__ == "__main__":
    with one_line_errors():
        settings = ValidationSettings.parse(__doc__)
        with process_group(settings):
            main(settings)
