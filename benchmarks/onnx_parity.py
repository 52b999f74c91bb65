"""Compare exported networks in each runtime and precision with the same weights in torch: AP, speed and memory.

    python train.py && python benchmarks/onnx_parity.py                      # the demo's network
    python benchmarks/onnx_parity.py --weights-path mask_rcnn.pth --data-path /data/coco2017 --images 500

Exports the weights in float32, fp16 and int8 into a temporary folder. Each way to run them has a process of its own,
without torch if it does not need torch. All ways detect in each image of the validation set, one way after the other in
alternating order, and pycocotools scores their detections. Peak memory is that of the whole process, so it includes
reading the file. Linux only.
"""

import copy
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import PROJECT, counterparts, machine, parser
from measured_rows import megabytes, milliseconds, progress, table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dataset_files.dataset import InstanceDataset
from onnx_files.network_graph import GraphOptions, build, write
from onnx_files.precision import at_intervals, build_reduced, open_images
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.metrics.coco_evaluation import run_cocoeval
from train_utils.option_parsing import positive
from train_utils.options import InferenceSettings
from train_utils.trained_model import TrainedModel, open_trained_model

REFERENCE = "torch fp32"
# Way -> runtime, precision of its arithmetic, file.
WAYS = {
    "onnxruntime fp32": ("onnxruntime", "fp32", "fp32.onnx"),
    "onnxruntime fp16": ("onnxruntime", "fp32", "fp16.onnx"),
    "onnxruntime int8": ("onnxruntime", "fp32", "int8.onnx"),
    "openvino fp32": ("openvino", "fp32", "fp32.onnx"),
    "openvino bf16": ("openvino", "bf16", "fp32.onnx"),
    REFERENCE: ("torch", "fp32", ""),
    "torch bf16": ("torch", "bf16", ""),
}
MOST_APART, MOST_LOST = 0.001, 0.01  # AP: the difference of float32, and the loss of lower precisions
BOX_TOLERANCE, SCORE_TOLERANCE = 0.05, 1e-4
CALIBRATION_IMAGES = 16


def main(args: Namespace) -> str:
    trained = open_trained_model(InferenceSettings(args.weights_path, device="cpu", amp=False))
    validation, training = open_images(trained, args.data_path, with_training=True)
    validation = validation.drop_items(range(args.images or len(validation), len(validation)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with reading_input():
            sizes = export_all(trained, training or validation, folder)
        names, found, memory = detect_all(trained.path, validation, folder, args.threads)
    return report(validation.coco, sizes, names, found, memory)


def parse(arguments: Sequence[str]) -> Namespace:
    p = parser(__doc__)
    p.add_argument("--weights-path", help="weights that validation.py takes (default: the newest in save_weights/)")
    p.add_argument("--data-path", help="(default: the data of their run)")
    p.add_argument("--images", type=positive, help="only so many images (default: all of the validation set)")
    p.add_argument("--threads", type=positive, default=1, help="of each way (default: 1)")
    return p.parse_args(arguments)


def export_all(trained: TrainedModel, training: InstanceDataset, folder: Path) -> dict[str, int]:
    """Write the file of each precision; return their sizes in bytes by name, and that of the weights in float32."""
    options = GraphOptions()
    progress("export")
    write(build(trained, options), folder / "fp32.onnx")
    for precision in ("fp16", "int8"):
        images = at_intervals(training, CALIBRATION_IMAGES)
        write(build_reduced(trained, options, precision, images), folder / f"{precision}.onnx")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    return sizes | {"": sum(value.nbytes for value in trained.model.state_dict().values())}


def detect_all(
    weights: Path, dataset: InstanceDataset, folder: Path, threads: int
) -> tuple[dict[str, str], dict[str, list[dict]], dict[str, int]]:
    """Run all ways; return by way the runtime's name, {"seconds": ..., "results": [...]} per image, and peak memory."""
    with ExitStack() as stack:
        workers = {}
        for way, (runtime, precision, file) in WAYS.items():
            script = PROJECT / "benchmarks" / "detect_worker.py"
            words = [runtime, precision, str(folder / file if file else weights), str(threads)]
            worker = subprocess.Popen(
                [sys.executable, str(script), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            workers[way] = stack.enter_context(worker)
        names = {way: answer(worker) for way, worker in workers.items()}
        found: dict[str, list[dict]] = {way: [] for way in WAYS}
        for i in range(len(dataset)):
            if i % 20 == 0:
                progress(f"image {i} of {len(dataset)}")
            image, target = dataset[i]
            np.save(folder / "image.npy", image.permute(1, 2, 0).numpy())
            for way in list(WAYS)[:: 1 if i % 2 == 0 else -1]:
                print(target["image_id"], folder / "image.npy", file=workers[way].stdin, flush=True)
                found[way].append(answer(workers[way]))
        memory = {}
        for way, worker in workers.items():
            worker.stdin.close()
            memory[way] = answer(worker)
    return names, found, memory


def answer(worker: subprocess.Popen) -> Any:
    line = worker.stdout.readline()
    if not line:
        raise InputError(f"{' '.join(worker.args[2:])}: the process ended, see above")
    return json.loads(line)


def report(
    ground_truth: Any, sizes: Mapping[str, int], names: Mapping[str, str], found: Mapping[str, list[dict]],
    memory: Mapping[str, int],
) -> str:  # fmt: skip
    """Format one row per way; the other arguments are those that `export_all` and `detect_all` return.

    Args:
        ground_truth: hotcoco's COCO object.
    """
    results = {way: list(chain(*(image["results"] for image in images))) for way, images in found.items()}
    if not all(results.values()):
        raise InputError("nothing is found in these images; give weights that were trained on such images")
    ap = {way: average_precisions(ground_truth, results[way]) for way in WAYS}
    # The first image warms up.
    seconds = {way: np.array([image["seconds"] for image in images[1:] or images]) for way, images in found.items()}
    rows = []
    for way, (_, _, file) in WAYS.items():
        lost = np.array(ap[REFERENCE]) - ap[way]
        apart, bound = (abs(lost).max(), MOST_APART) if way.endswith("fp32") else (lost.max(), MOST_LOST)
        verdict = ("yes" if apart <= bound else "no") if max(ap[REFERENCE]) > 0 else "-"  # of 0 AP nothing can be lost
        rows.append(
            (
                way, megabytes(sizes[file]), megabytes(memory[way]), milliseconds(float(np.median(seconds[way]))),
                f"{np.median(seconds[REFERENCE] / seconds[way]):.2f}x", *(f"{value:.4f}" for value in ap[way]),
                different(found[way], found[REFERENCE]), f"{bound:g}", verdict,
            )
        )  # fmt: skip
    header = (
        "", "weights", "peak memory", "CPU time per image", f"{REFERENCE} / own", "box AP", "mask AP",
        "other detections", "AP lost at most", "held",
    )  # fmt: skip
    title = f"{len(found[REFERENCE])} images, {len(results[REFERENCE])} detections"
    lines = (
        machine(torch.device("cpu")), *sorted(set(names.values())), "", table(title, rows, header),
        "AP is that of pycocotools, which this project's evaluation equals to the last bit. Other detections: those of "
        f"this way and of {REFERENCE} without a counterpart of the same label within {BOX_TOLERANCE:g} px and "
        f"{SCORE_TOLERANCE:g} in score.",
    )  # fmt: skip
    return "\n".join(lines)


def average_precisions(ground_truth: Any, results: Sequence[dict]) -> list[float]:
    """Box AP and mask AP by pycocotools.

    Raises:
        RuntimeError: this project's evaluation gives other numbers.
    """
    found = []
    coco = COCO()
    coco.dataset = ground_truth.dataset
    with redirect_stdout(StringIO()):
        coco.createIndex()
        for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
            of_kind = [{k: r[k] for k in ("image_id", "category_id", "score", key)} for r in results]
            evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(of_kind)), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            own = run_cocoeval(ground_truth, of_kind, kind).stats
            if not np.array_equal(np.asarray(own), evaluation.stats):
                raise RuntimeError(f"{kind}: {list(own)} here, {list(evaluation.stats)} by pycocotools")
            found.append(float(evaluation.stats[0]))
    return found


def different(found: Sequence[dict], reference: Sequence[dict]) -> int:
    """Count the detections of one way without a counterpart of the same label, box and score in the other."""
    count = 0
    for one, other in zip(found, reference):
        own, theirs = tensors(one["results"]), tensors(other["results"])
        if not len(own["labels"]) or not len(theirs["labels"]):
            count += len(own["labels"]) + len(theirs["labels"])
            continue
        i, j = counterparts(own, theirs, BOX_TOLERANCE)
        close = (own["scores"][i] - theirs["scores"][j]).abs() <= SCORE_TOLERANCE
        count += len(own["labels"]) + len(theirs["labels"]) - 2 * int(close.sum())
    return count


def tensors(results: Sequence[dict]) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([r["bbox"] for r in results]).reshape(-1, 4),
        "labels": torch.tensor([r["category_id"] for r in results]),
        "scores": torch.tensor([r["score"] for r in results]),
    }


if __name__ == "__main__":
    with one_line_errors():
        print(main(parse(sys.argv[1:])))
