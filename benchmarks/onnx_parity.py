"""Compare an exported network with the same weights in torch: COCO metrics, differences and speed, image by image.

    python train.py && python benchmarks/onnx_parity.py                      # the demo's network
    python benchmarks/onnx_parity.py --weights-path mask_rcnn.pth --data-path /data/coco2017 --images 500

Exports the weights to a temporary file, runs each image of the validation set through onnxruntime and through torch, in
turns one before the other, both with the same number of threads and in float32, and scores both sets of detections.
"""

import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from common import machine, parser
from measured_rows import compared, milliseconds, progress, table
from torch import Tensor

from dataset_files.dataset import InstanceDataset
from onnx_files.export import export
from onnx_files.onnx_model import OnnxModel
from train_utils.device import Precision
from train_utils.errors import one_line_errors, reading_input
from train_utils.evaluation import ready_for_inference
from train_utils.metrics.coco_evaluation import CocoEvaluator
from train_utils.open_data import open_validation_data
from train_utils.option_parsing import positive
from train_utils.options import InferenceSettings, ValidationSettings
from train_utils.trained_model import TrainedModel, open_trained_model

MOST_APART = 0.001  # 0.1 points of AP
BOX_TOLERANCE, SCORE_TOLERANCE = 0.05, 1e-4
Detect = Callable[[Tensor], Mapping[str, Tensor]]


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    trained = open_trained_model(InferenceSettings(weights_path=args.weights_path, device="cpu", amp=False))
    torch.set_num_threads(args.threads or torch.get_num_threads())
    dataset = open_validation_data(ValidationSettings(data_path=args.data_path), trained.trained_with)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with reading_input():
            export(trained, path)
        exported = OnnxModel(path, torch.get_num_threads(), "onnxruntime")
    ways = {"onnxruntime": in_onnxruntime(exported), "torch": in_torch(trained)}
    return compare_ways(ways, trained, dataset, args.images or len(dataset))


def parse(arguments: Sequence[str]) -> Namespace:
    p = parser(__doc__)
    p.add_argument("--weights-path", help="weights that validation.py takes (default: the newest in save_weights/)")
    p.add_argument("--data-path", help="(default: the data of their run)")
    p.add_argument("--images", type=positive, help="only so many images (default: all of the validation set)")
    p.add_argument("--threads", type=positive, help="of both (default: torch's)")
    return p.parse_args(arguments)


def in_torch(trained: TrainedModel) -> Detect:
    network = ready_for_inference(trained.model, Precision("cpu", None))

    @torch.inference_mode()
    def detect(image: Tensor) -> Mapping[str, Tensor]:
        return network.detect([image])[0]

    return detect


def in_onnxruntime(model: OnnxModel) -> Detect:
    def detect(image: Tensor) -> Mapping[str, Tensor]:
        found = model.detect(image.permute(1, 2, 0).numpy())
        return {name: torch.from_numpy(value) for name, value in found.items()}

    return detect


def compare_ways(ways: Mapping[str, Detect], trained: TrainedModel, dataset: InstanceDataset, images: int) -> str:
    evaluators = {name: CocoEvaluator(dataset.coco, trained.classes, trained.model.continuous_paste) for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    others, detections = 0, 0
    for i in range(min(images, len(dataset))):
        if i % 20 == 0:
            progress(f"image {i} of {min(images, len(dataset))}")
        image, target = dataset[i]
        found = {}
        for name in list(ways)[:: 1 if i % 2 == 0 else -1]:
            start = time.perf_counter()
            found[name] = ways[name](image)
            seconds[name].append(time.perf_counter() - start)
            evaluators[name].update(target["image_id"], tuple(image.shape[-2:]), found[name])
        detections += len(found["torch"]["labels"])
        others += different(found["onnxruntime"], found["torch"])
    return report(evaluators, seconds, others, detections)


def different(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> int:
    """Detections of one that have no counterpart of the same label, box and score in the other."""
    if not len(found["labels"]) or not len(reference["labels"]):
        return len(found["labels"]) + len(reference["labels"])
    same = found["labels"][:, None] == reference["labels"]
    same &= (found["boxes"][:, None] - reference["boxes"]).abs().amax(dim=2) <= BOX_TOLERANCE
    same &= (found["scores"][:, None] - reference["scores"]).abs() <= SCORE_TOLERANCE
    return int((~same.any(dim=1)).sum() + (~same.any(dim=0)).sum())


def report(
    evaluators: Mapping[str, CocoEvaluator], seconds: Mapping[str, list[float]], others: int, detections: int
) -> str:
    metrics = {name: evaluator.metrics() for name, evaluator in evaluators.items()}
    rows = []
    for kind, name in (("bbox", "box AP"), ("segm", "mask AP")):
        a, b = metrics["onnxruntime"][kind].stats[0], metrics["torch"][kind].stats[0]
        within = "yes" if abs(a - b) <= MOST_APART else "no"
        rows.append((name, f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}", f"{MOST_APART:g}", within))
    header = ("", "onnxruntime", "torch", "difference", "at most", "held")
    number = len(seconds["torch"])
    own, peer = (
        np.array(seconds[name][1:] or seconds[name]) for name in ("onnxruntime", "torch")
    )  # the first warms up
    ratio = float(np.median(peer / own))
    speed = compared("per image, median", milliseconds(float(np.median(own))), milliseconds(float(np.median(peer))),
                     ratio, None)[:4]  # fmt: skip
    return "\n".join(
        (
            f"{machine(torch.device('cpu'))}; onnxruntime {onnxruntime.__version__}",
            "",
            table(f"{number} validation images", rows, header),
            table("seconds", [speed], ("", "onnxruntime", "torch", "torch / onnxruntime")),
            f"{others} of {detections} detections differ: another label, {BOX_TOLERANCE:g} px or {SCORE_TOLERANCE:g}",
        )
    )


if __name__ == "__main__":
    with one_line_errors():
        print(main(sys.argv[1:]))
