"""Fine-tune the demo's network on incomplete labels or with a class more, with and without the option for that.

    python benchmarks/label_options.py --start save_weights/model_best.pth   # half an hour of processor time

regions: half of the training objects are not labelled. A: that is all. B: each lies in a rectangle of the class
`ignore`, and --ignore-regions is given. masks: half of the objects have a box alone. A: they are left out, as without
an option. B: --boxes-without-masks. class: hexagons are a fourth class. A: all rows of the predictors are new. B: the
rows of the three known classes are kept, by name. Both sides see the same images in the same order, and are compared
as `validation.py --compare` does. A run that is there already is not repeated.
"""

import contextlib
import itertools
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import PROJECT, machine, parser
from measured_rows import table

import train
from report.comparison import Row
from report.sources import compare_sides
from train_utils import demo_dataset
from train_utils.demo_dataset import make_demo_dataset
from train_utils.errors import one_line_errors
from train_utils.options import TrainSettings, ValidationSettings

OUTPUT_FOLDER = PROJECT / "benchmarks" / "out" / "label_options"
CASES = {"regions": "--ignore-regions", "masks": "--boxes-without-masks", "class": ""}
EPOCHS = {"regions": "2", "masks": "2", "class": "1"}
IMAGES = 160, 60  # drawn for training and validation
OPTIONS = ["--device", "cpu", "--amp", "--batch-size", "4", "--min-size", "128", "--max-size", "160", "--workers", "0"]
OPTIONS += ["--rois-per-image", "40", "--proposals", "100", "--opt", "adamw", "--lr", "3e-4", "--weight-decay", "0.02"]
OPTIONS += ["--lr-scheduler", "cosineannealinglr", "--nms-thresh", "0.3"]
OPTIONS += ["--trainable-backbone-layers", "0"]  # a third of the time
MARGIN = 2  # pixels around an object in its region
HEADER = ("case", "seed", "kind", "AP of A", "AP of B", "B - A", "95 % interval", "verdict")


def main(args: Namespace) -> None:
    rows = []
    for seed, (case, option) in itertools.product(args.seeds, CASES.items()):
        folder = OUTPUT_FOLDER / f"{case}_{seed}"
        draw(folder, case, seed)
        options = {"A": ["--epochs", EPOCHS[case]], "B": ["--epochs", EPOCHS[case], *filter(None, [option])]}
        # Without an option, objects that have no mask are left out, as if they were not labelled.
        folders = {"A": OUTPUT_FOLDER / f"regions_{seed}" if case == "masks" else folder, "B": folder}
        a, b = (
            tuned(folders[side], side, start_of(Path(args.start), case, side), seed, options[side]) for side in "AB"
        )
        for kind, row in compared(folder, a, b).items():
            low, high = row.of_difference
            verdict = "B is better" if low > 0 else "A is better" if high < 0 else "cannot tell"
            figures = f"{row.a:.3f}", f"{row.b:.3f}", f"{row.difference:+.3f}", f"{low:+.3f} to {high:+.3f}"
            rows.append((case, str(seed), kind, *figures, verdict))
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"{machine(torch.device('cpu'))}\n\n{table('case', sorted(rows), HEADER)}")


def draw(folder: Path, case: str, seed: int) -> None:
    """Draw images, and write the annotations of both sides (A.json, B.json) and of the validation images."""
    if (folder / "B.json").exists():
        return
    with hexagons() if case == "class" else contextlib.nullcontext():
        make_demo_dataset(folder / "data", *IMAGES, seed=seed)
    train, val = (
        json.loads((folder / "data" / "annotations" / f"instances_{name}2017.json").read_text())
        for name in ("train", "val")
    )
    for name, content in (("train", train), ("val", val)):
        for image in content["images"]:
            image["file_name"] = f"data/{name}2017/{image['file_name']}"
    chosen = np.random.default_rng(seed).permutation(len(train["annotations"])) % 2 == 0
    kept = [a for a, is_chosen in zip(train["annotations"], chosen) if is_chosen or case != "regions"]
    sides = {"A": train | {"annotations": kept}, "B": train | {"annotations": kept}}
    if case == "regions":
        ignored = [region(a) for a, is_chosen in zip(train["annotations"], chosen) if not is_chosen]
        categories = [*train["categories"], {"id": len(train["categories"]) + 1, "name": "ignore"}]
        sides["B"] = train | {"annotations": kept + ignored, "categories": categories}
    if case == "masks":
        for a, is_chosen in zip(kept, chosen):
            a["segmentation"] = a["segmentation"] if is_chosen else []
    for name, content in (("val", val), *sides.items()):
        (folder / f"{name}.json").write_text(json.dumps(content))


def region(annotation: dict) -> dict:
    """Return a rectangle of class `ignore` around an object."""
    x, y, w, h = annotation["bbox"]
    x, y, w, h = max(x - MARGIN, 0), max(y - MARGIN, 0), w + 2 * MARGIN, h + 2 * MARGIN
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return annotation | {"category_id": 4, "bbox": [x, y, w, h], "segmentation": outline, "area": w * h}


@contextlib.contextmanager
def hexagons() -> Iterator[None]:
    """Context in which the demo has a fourth class."""
    with contextlib.ExitStack() as stack:
        for name, more in (("CLASS_NAMES", "hexagon"), ("CLASS_HUES", 0.85), ("CORNERS", 6)):
            stack.enter_context(mock.patch.object(demo_dataset, name, (*getattr(demo_dataset, name), more)))
        yield


def start_of(path: Path, case: str, side: str) -> Path:
    """Return the weights to start from: the demo's, or for A of "class" without the names of their classes."""
    if (case, side) != ("class", "A"):
        return path
    nameless = OUTPUT_FOLDER / "nameless.pth"
    if not nameless.exists():
        content = torch.load(path, map_location="cpu", weights_only=True)
        torch.save({k: content[k] for k in ("model", "model_config")}, nameless)
    return nameless


def tuned(folder: Path, side: str, start: Path, seed: int, options: list[str]) -> Path:
    """Train on a side's annotations, unless that has been done; return the checkpoint."""
    output = folder / side
    last = output / f"model_{int(options[1]) - 1}.pth"
    if not last.exists():
        data = ["--train-json", str(folder / f"{side}.json"), "--val-json", str(folder / "val.json")]
        words = [*OPTIONS, *data, "--image-folder", str(folder), "--pretrain", str(start), "--seed", str(seed)]
        with contextlib.redirect_stdout(sys.stderr):
            train.main(TrainSettings.parse("", [*words, *options, "--output-dir", str(output), "--overwrite"]))
    return last


def compared(folder: Path, a: Path, b: Path) -> dict[str, Row]:
    """Return the comparison of AP by kind."""
    words = ["--compare", str(a), str(b), "--val-json", str(folder / "val.json"), "--image-folder", str(folder)]
    with contextlib.redirect_stdout(sys.stderr):
        found = compare_sides(ValidationSettings.parse("", [*words, "--device", "cpu", "--workers", "0"]))
    assert found is not None
    return {each.kind: each.metrics[0] for each in found[0].kinds}


if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--start", default=str(PROJECT / "save_weights" / "model_best.pth"), metavar="FILE",
                   help="the demo's network (default: save_weights/model_best.pth)")  # fmt: skip
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    os.environ.setdefault("MPLBACKEND", "Agg")
    with one_line_errors():
        main(p.parse_args())
