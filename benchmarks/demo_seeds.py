"""Train the demo with several seeds in mixed precision and float32, and count the validation images that are right.

    python benchmarks/demo_seeds.py                      # five seeds each: hours on two cores; resumes where it stopped
    python benchmarks/demo_seeds.py --seeds 0 1 --precisions bf16
    python benchmarks/demo_seeds.py --model-ema          # also compare the averaged weights with these

An image is right if each of its objects is found at a score of 0.5 or more, with its class and a mask IoU of at least
0.5, and nothing else is drawn. The exit status is 1 if a run has a mask AP50 below 0.95 or fewer than 9 of 10 images
right.
"""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import torch
from common import PROJECT, machine, parser
from measured_rows import table
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from predict import Predictor
from report.comparison import Comparison
from report.sources import compare_sides
from train_utils.errors import one_line_errors
from train_utils.options import DEMO_FOLDER, ValidationSettings

OUTPUT_FOLDER = PROJECT / "benchmarks" / "out" / "demo_seeds"
REQUIRED_AP50, REQUIRED_SHARE = 0.95, 0.9
SCORE, IOU = 0.5, 0.5


def main(args: Namespace) -> bool:
    rows, held, of_averages = [], [], []
    for precision in args.precisions:
        for seed in args.seeds:
            folder = train(seed, precision, args.model_ema)
            weights = max(folder.glob("model_[0-9]*.pth"), key=lambda path: path.stat().st_mtime)
            if args.model_ema:
                averaged, weights = weights, without_average(weights)
                compared = compare_on_demo(weights, averaged)
                mask, box = ([row.a for row in kind.metrics] for kind in compared.kinds)
                of_averages += [(precision, str(seed), kind.kind, kind.verdict()) for kind in compared.kinds]
                print(of_averages[-2:], flush=True)
            else:
                box, mask = (results(folder / f"{kind}_results.txt") for kind in ("det", "seg"))
            right, images = count_right_images(weights)
            held.append(mask[1] >= REQUIRED_AP50 and right >= REQUIRED_SHARE * images)
            figures = (f"{value:.3f}" for value in (*box[:2], *mask[:2]))
            rows.append((precision, str(seed), *figures, f"{right} of {images}", "yes" if held[-1] else "no"))
            print(rows[-1], flush=True)
    header = ("precision", "seed", "box AP", "box AP50", "mask AP", "mask AP50", "images right", "held")
    print(f"{machine(torch.device('cpu'))}\n\n{table('The demo by seed', rows, header)}")
    if of_averages:
        print(table("A: the weights, B: their average", of_averages, ("precision", "seed", "kind", "verdict")))
    return all(held)


def train(seed: int, precision: str, average: bool) -> Path:
    """Run train.py's demo, or continue it, in a process of its own; return its folder."""
    folder = OUTPUT_FOLDER / (f"{precision}_{seed}" + ("_ema" if average else ""))
    command = [sys.executable, "train.py", "--resume", "auto", "--output-dir", str(folder), "--seed", str(seed)]
    command += ["--amp", str(precision == "bf16"), "--model-ema", str(average)]
    subprocess.run(command, cwd=PROJECT, check=True)
    return folder


def without_average(path: Path) -> Path:
    """Write a checkpoint's own weights, and return their path."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    del content["model_ema"]
    torch.save(content, path.parent / "without_average.pth")
    return path.parent / "without_average.pth"


def compare_on_demo(a: Path, b: Path) -> Comparison:
    """Compare two networks on the demo's validation images, as `validation.py --compare` does."""
    words = ["--compare", str(a), str(b), "--data-path", str(PROJECT / DEMO_FOLDER), "--device", "cpu"]
    found = compare_sides(ValidationSettings.parse("", words))
    assert found is not None
    return found[0]


def results(path: Path) -> list[float]:
    """Return the metrics of the last epoch, AP and AP50 first."""
    return [float(word) for word in path.read_text().splitlines()[-1].split()[1:]]


def count_right_images(weights: Path) -> tuple[int, int]:
    """Return how many validation images are right, and how many there are."""
    data = PROJECT / DEMO_FOLDER
    coco = COCO(str(data / "annotations" / "instances_val2017.json"))
    predictor = Predictor(weights, box_thresh=SCORE)
    right = 0
    for image in coco.loadImgs(coco.getImgIds()):
        objects = coco.loadAnns(coco.getAnnIds(image["id"]))
        found = predictor(data / "val2017" / image["file_name"])
        if len(objects) != len(found):
            continue
        ious = coco_mask.iou(found.codes, [coco.annToRLE(o) for o in objects], [0] * len(objects))
        taken: set[int] = set()  # objects that a detection is about, the best detection first
        for label, overlaps in zip(found.labels, ious):
            free = [k for k, o in enumerate(objects) if k not in taken and o["category_id"] == label]
            best = max(free, key=lambda k: overlaps[k], default=None)
            if best is not None and overlaps[best] >= IOU:
                taken.add(best)
        right += len(taken) == len(objects)
    return right, len(coco.getImgIds())


if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default: 0 1 2 3 4)")
    p.add_argument("--precisions", nargs="+", choices=("bf16", "float32"), default=["bf16", "float32"],
                   help="(default: both)")  # fmt: skip
    p.add_argument("--model-ema", action="store_true", help="average the weights too; compare both")
    with one_line_errors():
        sys.exit(0 if main(p.parse_args()) else 1)
