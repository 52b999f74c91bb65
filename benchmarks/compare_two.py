"""Measure `validation.py --compare`: its time and memory, what boundary AP costs per image, and how often it is right.

    python benchmarks/compare_two.py                      # 5,000 images of 80 classes, 100 detections each
    python benchmarks/compare_two.py --coverage 500       # the share of drawn trials whose interval holds the truth

B is A without a tenth of its detections; boxes and masks are compared. Processor time is that of all threads: on two
idle cores, a comparison takes between half and all of it.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from common import machine, parser
from measured_rows import progress, table
from validation_report import Watch, made_up, resident

from report.comparison import compare
from report.eval_data import make_eval_data
from report.matching import boundary_codes
from tests.helpers.drawn_detectors import FEW_CLASSES, RARE_CLASSES, A, B, differences
from train_utils.errors import one_line_errors
from train_utils.option_parsing import positive

SCENES = {"100 images, 3 classes, 100 objects each": FEW_CLASSES, "80 images, 80 classes, 5 objects each": RARE_CLASSES}
RESAMPLES = 300


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    measured = coverage(args.coverage) if args.coverage else comparison(args.images, args.detections)
    return f"{machine(torch.device('cpu'))}\n\n{measured}"


def comparison(images: int, detections: int) -> str:
    progress(f"{images} images")
    content, results, _ = made_up(images, detections)
    kept = np.random.default_rng(0).random(len(results["bbox"])) > 0.1
    fewer = {kind: [entry for entry, keep in zip(entries, kept) if keep] for kind, entries in results.items()}
    before, watch = resident(), Watch()
    start = time.perf_counter(), time.process_time()
    found = compare(content, ("A", "B"), (results, fewer), ["segm", "bbox"], {})
    wall, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    memory = watch.stop() - before
    data = make_eval_data(content, {"segm": results["segm"][: 50 * detections]}, {})
    start = time.process_time(), 0
    for image in range(50):
        chosen = data.detections.images == image
        boundary_codes([code for code, keep in zip(data.detections.codes, chosen) if keep])
    per_image = (time.process_time() - start[0]) / 50
    row = (f"{images} images", f"{wall:.0f} s", f"{processor:.0f} s", f"{memory / 1e6:.0f} MB")
    header = ("", "time", "processor time", "memory beyond the data", f"boundaries of {detections} masks")
    return table("comparison", [(*row, f"{1000 * per_image:.1f} ms")], header) + f"\n{found.kinds[0].verdict()}\n"


def coverage(trials: int) -> str:
    rows = []
    for title, scene in SCENES.items():
        for what, pair in (("B is better", (A, B)), ("as good", (A, A))):
            progress(f"{title}, {what}")
            rng = np.random.default_rng(0)
            endless = replace(scene, images=60_000 if scene.classes < 10 else 20_000)
            truth = differences(rng, endless, pair, 0)[0]
            tried = [differences(rng, scene, pair, RESAMPLES) for _ in range(trials)]
            low, high = np.array([interval for _, interval in tried]).T
            covered, spread = np.mean((low <= truth) & (truth <= high)), np.std([found for found, _ in tried])
            told = np.mean(low > 0), np.mean(high < 0)
            rows.append((title, what, f"{truth:+.3f}", f"{spread:.3f}", *(f"{v:.1%}" for v in (covered, *told))))
    header = ("", "truth", "difference in AP", "its spread", "covered", '"B is better"', '"A is better"')
    return table(f"{trials} trials", rows, header)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--images", type=positive, default=5000, help="(default: 5000)")
    made.add_argument("--detections", type=positive, default=100, help="per image (default: 100)")
    made.add_argument("--coverage", type=positive, metavar="TRIALS", help="measure this instead")
    return made.parse_args(arguments)


if __name__ == "__main__":
    with one_line_errors():
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        print(main(sys.argv[1:]), flush=True)
