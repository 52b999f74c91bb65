"""Measure the accuracy that --amp costs: COCO metrics of the same trained weights in float32 and mixed precision.

    python train.py && python benchmarks/amp_detections.py                      # the demo's network
    python benchmarks/amp_detections.py --weights-path mask_rcnn.pth --data-path /data/coco2017

Evaluates the last checkpoint of train.py in save_weights/ on its validation images, as validation.py does. Only with
trained weights does the comparison mean anything.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

from common import machine, parser
from measured_rows import table

from train_utils.classes import ClassTable
from train_utils.device import Precision, choose_device
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.evaluation import evaluate
from train_utils.loaders import evaluation_loader
from train_utils.models import load_trained_model
from train_utils.open_data import open_split
from train_utils.options import OUTPUT_FOLDER
from train_utils.run.run_folder import newest_checkpoint

MOST_APART = 0.003  # 0.3 points of AP


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    path = args.weights_path or newest_checkpoint(OUTPUT_FOLDER)
    if path is None:
        raise InputError(f"no weights: {OUTPUT_FOLDER}/ holds no checkpoint; train first or give --weights-path")
    device = choose_device(args.device)
    model, config, content = load_trained_model(path, args)
    with reading_input():
        dataset = open_split(args.data_path or content["args"]["data_path"], training=False)
    classes = ClassTable.of_weights(content, config.num_classes, None)
    loader = evaluation_loader(dataset, batch_size=1, workers=args.workers)
    model.to(device)
    full, mixed = (
        evaluate(model, loader, dataset.coco, classes, device, Precision.choose(device, amp)) for amp in (False, True)
    )
    rows = []
    for kind, name in (("bbox", "box AP"), ("segm", "mask AP")):
        a, b = full[kind].stats[0], mixed[kind].stats[0]
        within = "yes" if abs(b - a) <= MOST_APART else "no"
        rows.append((name, f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}", f"{MOST_APART:g}", within))
    header = ("", "float32", "--amp", "difference", "at most", "held")
    return f"{machine(device)}\n\n{table(f'{len(dataset)} validation images', rows, header)}"


def parse(arguments: Sequence[str]) -> Namespace:
    p = parser(__doc__)
    p.add_argument("--weights-path", help="a checkpoint (default: the newest in save_weights/)")
    p.add_argument("--data-path", help="(default: the data of its run)")
    p.add_argument("--device", default="cpu", help="cuda, cuda:N or cpu (default: %(default)s)")
    p.add_argument("-j", "--workers", type=int, default=0, help="(default: %(default)s)")
    p.set_defaults(label_json_path=None, num_classes=None, arch=None, min_size=None, max_size=None, detections=None)
    return p.parse_args(arguments)


if __name__ == "__main__":
    with one_line_errors():
        print(main(sys.argv[1:]))
