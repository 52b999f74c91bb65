"""Evaluate weights on a validation set: COCO's 12 metrics for boxes and masks, and AP by class.

    python validation.py                                                       # what the last train.py left
    python validation.py --weights-path save_weights/model_25.pth --data-path /data/coco2017
    torchrun --nproc_per_node=8 validation.py --weights-path ... --data-path ...
    python validation.py --results-json predictions/predictions.json --annotation-file val.json --iou-type segm

Prints both tables and writes them to record_mAP.txt beside the weights. The last line scores detections that any
detector wrote, and prints COCO's official table.
"""
from argparse import Namespace
from pathlib import Path

import torch

from train_utils.classes import ClassTable
from train_utils.distributed import is_main, process_group
from train_utils.engine import Precision, choose_device, evaluate
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.loaders import evaluation_loader
from train_utils.metrics.results_file import score_results_file
from train_utils.models import load_trained_model
from train_utils.open_data import open_checked
from train_utils.options import OUTPUT_FOLDER, validation_parser
from train_utils.run.run_folder import newest_checkpoint, write_atomically


def main(args: Namespace) -> None:
    if args.results_json or args.annotation_file or args.iou_type:
        if not (args.results_json and args.annotation_file):
            raise InputError("--results-json and --annotation-file go together, --iou-type with both")
        if is_main():
            print(score_results_file(args.results_json, args.annotation_file, args.iou_type or "bbox"))
        return

    # Weights
    path = args.weights_path or newest_checkpoint(OUTPUT_FOLDER)
    if path is None:
        raise InputError(f"no weights: {OUTPUT_FOLDER}/ holds no checkpoint; train first or give --weights-path")
    model, config, content = load_trained_model(path, args)
    trained_with = content.get("args", {})
    device = choose_device(args.device)
    precision = Precision.choose(device, trained_with.get("amp", False) if args.amp is None else args.amp)
    model.to(device, memory_format=torch.channels_last)

    # Data
    data_path = args.data_path or trained_with.get("data_path")
    if data_path is None:
        raise InputError(f"{path}: does not say which data it was trained on; give --data-path")
    (dataset,) = open_checked(data_path, (False,), args.skip_bad)
    classes = ClassTable.of_weights(content, config.num_classes, args.label_json_path)
    if "category_ids" not in content:  # then the labels are taken to be the data's
        classes.category_ids |= {k: v for k, v in dataset.category_ids.items() if k in classes.names}
    if args.label_json_path is None:
        classes.check_against(dataset, path)
    loader = evaluation_loader(dataset, args.batch_size, args.workers)

    # Metrics
    unreadable = [] if args.skip_bad else None
    metrics = evaluate(model, loader, dataset.coco if is_main() else None, classes, device, precision, unreadable)
    if is_main():
        text = f"weights: {path}\ndata: {data_path}, {len(dataset)} pictures\n"
        text += metrics["bbox"].table("boxes") + "\n" + metrics["segm"].table("masks") + "\n"
        print(text, end="")
        folder = Path(args.output_dir) if args.output_dir else Path(path).parent
        with reading_input():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "record_mAP.txt", text)
        print(f"written to {folder / 'record_mAP.txt'}")


if __name__ == "__main__":
    with one_line_errors():
        args = validation_parser(__doc__).parse_args()
        with process_group(args):
            main(args)
