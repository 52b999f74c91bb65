"""Measure the report of validation.py: time beyond the evaluation, memory beyond it, and the size of the page.

    python benchmarks/validation_report.py                    # 1,250, 2,500 and 5,000 images, 80 classes
    python benchmarks/validation_report.py --images 500

Made-up ground truth and detections with COCO's 80 classes on the photos of coco_tiny, which images share: seven objects
per image, most of them found, some under a wrong class or out of place, and low-scoring detections up to the given
number. Boxes and masks are both analysed. Each number of images is a process of its own, so that its memory is its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import coco_tiny, machine, parser
from measured_rows import progress, table
from pycocotools import mask as coco_mask

from my_dataset_coco import CocoDetection, coco_object
from report.eval_data import make_eval_data
from report.html_page import ReportInput, write_report
from train_utils.errors import one_line_errors, reading_input
from train_utils.metrics.coco_evaluation import IOU_TYPES, run_cocoeval
from train_utils.option_parsing import positive

CLASSES, OBJECTS = 80, 7
CORNERS = 24  # of an object's outline
PAGE = 1 << 12  # bytes
HEADER = ("", "evaluation", "report beyond it", "memory before", "most memory beyond it", "report.html", "other files")


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    if args.inner:
        return measured(args.images[0], args.detections)
    rows = []
    for images in args.images:
        progress(f"{images} images")
        command = [sys.executable, __file__, "--images", str(images), "--detections", str(args.detections), "--inner"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append((f"{images} images", *done.stdout.strip().split("\t")))
    title = f"{CLASSES} classes, {args.detections} detections per image"
    return f"{machine(torch.device('cpu'))}\n\n{table(title, rows, HEADER)}"


def measured(images: int, detections: int) -> str:
    """Evaluate and write the report once; the figures of a row, with tabs between them."""
    content, results, paths = made_up(images, detections)
    start = time.perf_counter()
    truth = coco_object(content)
    stats = {kind: run_cocoeval(truth, results[kind], kind).stats for kind in IOU_TYPES}
    evaluated = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        before, watch = resident(), Watch()
        start = time.perf_counter()
        given = ReportInput("benchmark", {}, make_eval_data(content, results, paths), stats)
        page = write_report(Path(folder), given)
        seconds = time.perf_counter() - start
        most = watch.stop()
        size = page.stat().st_size
        others = sum(file.stat().st_size for file in Path(folder).iterdir()) - size
    return "\t".join(
        (f"{evaluated:.1f} s", f"{seconds:.1f} s", *(f"{b / 1e6:.0f} MB" for b in (before, most - before)),
         *(f"{b / 1e6:.1f} MB" for b in (size, others)))
    )  # fmt: skip


class Watch:
    """Ask every 20 ms how much memory the process has."""

    def __init__(self) -> None:
        self.most = resident()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self) -> None:
        while not self.ended.wait(0.02):
            self.most = max(self.most, resident())

    def stop(self) -> int:
        """The most, in bytes."""
        self.ended.set()
        self.thread.join()
        return max(self.most, resident())


def resident() -> int:
    """The memory of this process in bytes, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def made_up(images: int, detections: int) -> tuple[dict, dict[str, list[dict]], dict[int, Path]]:
    """Ground truth, results of boxes and masks, and image files by id."""
    with reading_input():
        photos = CocoDetection(coco_tiny(), "val")
    rng = np.random.default_rng(0)
    content: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k + 1, "name": f"class {k + 1}"} for k in range(CLASSES)],
    }
    results: dict[str, list[dict]] = {kind: [] for kind in IOU_TYPES}
    paths = {}
    frequency = 1 / np.arange(1, CLASSES + 1)
    frequency /= frequency.sum()
    for image in range(1, images + 1):
        i = image % len(photos)
        height, width = photos.get_height_and_width(i)
        paths[image] = photos.image_path(i)
        content["images"].append({"id": image, "height": height, "width": width, "file_name": f"{image:012d}.jpg"})
        boxes = random_boxes(rng, OBJECTS, height, width)
        labels = 1 + rng.choice(CLASSES, OBJECTS, p=frequency)
        for box, label in zip(boxes, labels.tolist()):
            outline = blob(box).round(1).ravel().tolist()
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image, "category_id": label, "bbox": box.tolist(),
                 "area": float(box[2] * box[3] * 0.75), "iscrowd": 0, "segmentation": [outline]}
            )  # fmt: skip
        near = boxes + rng.normal(0, 0.06, boxes.shape) * np.tile(boxes[:, 2:], 2)
        others = random_boxes(rng, detections - OBJECTS, height, width)
        found = np.maximum(np.concatenate((near, others)), (0, 0, 4, 4))
        wrong = 1 + rng.choice(CLASSES, detections, p=frequency)
        is_right = np.arange(detections) < OBJECTS
        classes = np.where(is_right & (rng.random(detections) < 0.85), np.resize(labels, detections), wrong)
        scores = np.where(is_right, rng.beta(4, 1.5, detections), rng.beta(1, 8, detections))
        codes = coco_mask.frPyObjects([blob(box).ravel().tolist() for box in found], height, width)
        for box, code, label, score in zip(found.tolist(), codes, classes.tolist(), scores.tolist()):
            common = {"image_id": image, "category_id": label, "score": score}
            results["bbox"].append({**common, "bbox": box})
            code = {"size": code["size"], "counts": code["counts"].decode()}
            results["segm"].append({**common, "segmentation": code})
    return content, results, paths


def random_boxes(rng: np.random.Generator, number: int, height: int, width: int) -> np.ndarray:
    """Boxes x, y, width, height within an image, of sizes like COCO's, float64 [number, 4]."""
    sides = np.exp(rng.normal(np.log(60), 0.8, (number, 2))).clip(6, 0.9 * min(height, width))
    corners = rng.random((number, 2)) * ((width, height) - sides)
    return np.concatenate((corners, sides), axis=1)


def blob(box: Sequence[float] | np.ndarray) -> np.ndarray:
    """A wavy outline [24, 2] within a box x, y, width, height."""
    x, y, width, height = box
    angles = 2 * np.pi * np.arange(CORNERS) / CORNERS
    radius = 0.45 + 0.05 * np.cos(5 * angles)
    return np.stack((x + width * (0.5 + radius * np.cos(angles)), y + height * (0.5 + radius * np.sin(angles))), axis=1)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument(
        "--images", type=positive, nargs="+", default=[1250, 2500, 5000], help="(default: 1250 2500 5000)"
    )
    made.add_argument("--detections", type=positive, default=100, help="per image (default: 100)")
    made.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    return made.parse_args(arguments)


if __name__ == "__main__":
    with one_line_errors():
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        print(main(sys.argv[1:]), flush=True)
