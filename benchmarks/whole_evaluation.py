"""Time an evaluation after the network: from the detections to COCO's metrics for boxes and masks.

    python benchmarks/whole_evaluation.py
    python benchmarks/whole_evaluation.py --images 5000 --rounds 1        # as large as COCO's validation set

Made-up ground truth like COCO's, seven objects per image as polygons; 100 detections per image, some near the objects,
each with mask probabilities of 28x28. Ours is CocoEvaluator, from `update` to `metrics`. The peer does the same as
torchvision's model and reference scripts: paste full-size masks, encode them, load and evaluate the results image by
image in pycocotools, then accumulate. The conversion of masks to run-length codes is timed by itself as well, for boxes
of three sizes. The script fails if the codes or the metrics differ.
"""

import contextlib
import copy
import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from common import machine, parser
from measured_rows import compared, in_turns, milliseconds, progress, ratio, table, timed
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from my_dataset_coco import coco_object
from network_files.masks.encode import encode_masks
from train_utils.classes import ClassTable
from train_utils.errors import one_line_errors
from train_utils.metrics.coco_evaluation import IOU_TYPES, CocoEvaluator
from train_utils.option_parsing import add_flag, positive

SIZE = (480, 640)
SIDES = {"small": 24, "as in COCO": 64, "large": 250}  # pixels, around which the boxes' sides vary
DETECTIONS, OBJECTS, COCO_VAL = 100, 7, 5000
CLASSES = (1, 90, 1203)  # without background
KINDS = 20  # different sets of detections, which the images share


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    codes = [codes_row(name, side, args.rounds) for name, side in SIDES.items()]
    images = sorted({-(-args.images // 4), -(-args.images // 2), args.images})
    Evaluation(images[0], 90).compare_results()
    rows, times = [], []
    for count in images:
        progress(f"{count} images")
        seconds = list(in_turns(Evaluation(count, 90).ways(), args.rounds if count == args.images else 1).values())
        times.append([median(each) for each in seconds])
        goal = 10 if count == args.images else None
        rows.append(compared(f"{count} images", *map(milliseconds, times[-1]), ratio(*seconds), goal))
    steps = (COCO_VAL - images[-1]) / (images[-1] - images[0])
    ours, theirs = (last + steps * (last - first) for first, last in zip(times[0], times[-1]))
    rows.append(compared(f"{COCO_VAL} images, by the slope", f"{ours:.0f} s", f"{theirs:.0f} s", theirs / ours, 10))
    for classes in CLASSES[:2] if args.quick else CLASSES:
        ways = Evaluation(images[0], classes).ways()
        rows.append(timed(f"{images[0]} images, {classes} classes", *ways.values(), 1, None))
    title = f"{DETECTIONS} detections per image to COCO's metrics"
    tables = table(f"{DETECTIONS} masks of an image to codes", codes), table(title, rows)
    return f"{machine(torch.device('cpu'))}\n\n{tables[0]}\n{tables[1]}"


def codes_row(what: str, side: float, rounds: int) -> tuple:
    """Time the conversion of an image's masks to run-length codes alone."""
    given = (*detections(DETECTIONS, side), SIZE)
    arrays = given[0].numpy(), given[1].numpy(), SIZE
    if encode_masks(*arrays) != reference_codes(*given):
        raise RuntimeError(f"boxes {what}: the codes differ from those of pasted masks")
    return timed(f"boxes {what}", partial(encode_masks, *arrays), partial(reference_codes, *given), 3 * rounds, 10)


class Evaluation:
    """Ground truth and detections, and the work of both sides on them."""

    def __init__(self, images: int, classes: int):
        rng = np.random.default_rng(0)
        self.table = ClassTable({k: f"class {k}" for k in range(1, classes + 1)}, {k: k for k in range(1, classes + 1)})
        self.image_ids = list(range(1, images + 1))
        kinds = [self.make_kind(rng, classes, seed) for seed in range(KINDS)]
        self.found = {image_id: kinds[image_id % KINDS][0] for image_id in self.image_ids}
        annotations = [dict(a, image_id=image_id) for image_id in self.image_ids for a in kinds[image_id % KINDS][1]]
        self.content = {
            "images": [{"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.jpg"} for i in self.image_ids],
            "annotations": [dict(a, id=number) for number, a in enumerate(annotations, start=1)],
            "categories": [{"id": k, "name": name} for k, name in self.table.names.items()],
        }
        self.truth = coco_object(self.content)
        self.pycocotools_truth = COCO()
        self.pycocotools_truth.dataset = copy.deepcopy(self.content)
        with contextlib.redirect_stdout(io.StringIO()):
            self.pycocotools_truth.createIndex()

    @staticmethod
    def make_kind(rng: np.random.Generator, classes: int, seed: int) -> tuple[dict[str, Tensor], list[dict]]:
        """Make the detections and the objects of an image."""
        probs, boxes = detections(DETECTIONS, 64, seed)
        labels = rng.integers(1, classes + 1, DETECTIONS)
        annotations = []
        for box, label in zip(boxes[:OBJECTS].double().numpy(), labels.tolist()):
            x, y, w, h = *box[:2], *(box[2:] - box[:2])
            angles = np.linspace(0, 2 * np.pi, 22, endpoint=False)
            outline = np.stack((x + w / 2 + w / 2 * np.cos(angles), y + h / 2 + h / 2 * np.sin(angles)), axis=1)
            annotations.append(
                {
                    "category_id": label,
                    "iscrowd": 0,
                    "bbox": [x, y, w, h],
                    "area": np.pi / 4 * w * h,
                    "segmentation": [outline.round(2).reshape(-1).tolist()],
                }
            )
        found = {"labels": torch.from_numpy(labels), "scores": torch.from_numpy(rng.random(DETECTIONS)).float()}
        return {**found, "boxes": boxes, "masks": probs}, annotations

    def ways(self) -> dict[str, Callable[[], dict]]:
        return {"this project": self.own_way, "torchvision": self.peers_way}

    def own_way(self) -> dict[str, list[float]]:
        evaluator = CocoEvaluator(self.truth, self.table)
        for image_id, found in self.found.items():
            evaluator.update(image_id, SIZE, found)
        return {kind: metrics.stats for kind, metrics in evaluator.metrics().items()}

    def peers_way(self) -> dict[str, list[float]]:
        truth = self.pycocotools_truth
        with contextlib.redirect_stdout(io.StringIO()):
            evaluations = {kind: COCOeval(truth, iouType=kind) for kind in IOU_TYPES}
            by_image = {kind: [] for kind in IOU_TYPES}
            for image_id, found in self.found.items():
                for kind, results in reference_results(image_id, found).items():
                    evaluation = evaluations[kind]
                    evaluation.cocoDt = truth.loadRes(results)
                    evaluation.params.imgIds = [image_id]
                    evaluation.evaluate()
                    by_image[kind].append(np.array(evaluation.evalImgs).reshape(len(evaluation.params.catIds), -1, 1))
            for kind, evaluation in evaluations.items():
                evaluation.evalImgs = np.concatenate(by_image[kind], axis=2).reshape(-1).tolist()
                evaluation.params.imgIds = list(self.found)
                evaluation._paramsEval = copy.deepcopy(evaluation.params)
                evaluation.accumulate()
                evaluation.summarize()
        return {kind: evaluation.stats.tolist() for kind, evaluation in evaluations.items()}

    def compare_results(self) -> None:
        own, peer = self.own_way(), self.peers_way()
        if not all(np.allclose(own[kind], peer[kind], rtol=0, atol=1e-6) for kind in IOU_TYPES):
            raise RuntimeError(f"the metrics differ: {own} and {peer}")


def detections(count: int, side: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return probabilities float32 [count, 1, 28, 28] of centred blobs, and boxes [count, 4] within SIZE."""
    rng = np.random.default_rng([seed, count])
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE
    sides = np.exp(rng.normal(np.log(side), 0.7, (count, 2))).clip(4, (width, height))
    corners = rng.uniform(0, (width, height) - sides)
    ramp = torch.linspace(-1, 1, 28)
    hill = 6 * (0.7 - ramp[:, None] ** 2 - ramp**2)
    waves = F.interpolate(torch.randn((count, 1, 5, 5), generator=generator), size=(28, 28), mode="bicubic")
    return (hill + 1.5 * waves).sigmoid(), torch.from_numpy(np.concatenate((corners, corners + sides), axis=1)).float()


def reference_codes(probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict]:
    """Paste like torchvision's model, and encode like its reference script."""
    masks = paste_masks_in_image(probs, boxes, size) > 0.5
    return [coco_mask.encode(np.array(m[0, :, :, np.newaxis], dtype=np.uint8, order="F"))[0] for m in masks]


def reference_results(image_id: int, found: dict[str, Tensor]) -> dict[str, list[dict]]:
    """Convert one image's detections to COCO's results format, like the reference script."""
    boxes = found["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    codes = reference_codes(found["masks"], found["boxes"], SIZE)
    common = [
        {"image_id": image_id, "category_id": label, "score": score}
        for label, score in zip(found["labels"].tolist(), found["scores"].tolist())
    ]
    return {
        "bbox": [{**c, "bbox": box} for c, box in zip(common, boxes.tolist())],
        "segm": [{**c, "segmentation": {**code, "counts": code["counts"].decode()}} for c, code in zip(common, codes)],
    }


def parse(arguments: Sequence[str]):
    p = parser(__doc__)
    p.add_argument("--images", type=positive, default=120, help="to evaluate (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=3, help="timed runs of each (default: %(default)s)")
    add_flag(p, "--quick", "smallest settings; the figures mean nothing")
    args = p.parse_args(arguments)
    if args.quick:
        args.images, args.rounds = 4, 1
    return args


if __name__ == "__main__":
    with one_line_errors():
        print(main(sys.argv[1:]))
