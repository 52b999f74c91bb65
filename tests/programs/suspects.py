"""Count how many labels that were made wrong on purpose are among the first suspects of a report.

    python -m tests.programs.suspects --weights-path save_weights/model_best.pth               # of `make demo`
    python -m tests.programs.suspects --weights-path ... --images 800 --share 0.02 --first 50 --seeds 1 2

Draws validation images like the demo's that the network has never seen, makes a share of their labels wrong (another
class, removed, moved, added, doubled, each equally often), evaluates with `validation.py --report`, and looks at
suspects.csv. With `--share 0` the labels stay right, and all suspects are false.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.helpers.project import ROOT
from tests.helpers.wrong_labels import KINDS, WrongLabel, make_wrong, named
from train_utils.demo_dataset import annotation_file, make_demo_dataset

SEED = 1000  # of the images; the demo's is 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights-path", required=True, help="checkpoint of the demo")
    parser.add_argument("--images", type=int, default=800, help="(default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.02, help="of the labels to make wrong (default: %(default)s)")
    parser.add_argument("--first", type=int, default=50, help="suspects to look at (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the choice of labels (default: 0)")
    parser.add_argument("--keep", type=Path, help="write data and reports into this folder and leave them there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        make_demo_dataset(folder / "drawn", num_train=1, num_val=args.images, seed=SEED)
        content = json.loads(annotation_file(folder / "drawn", "val2017").read_text())
        for seed in args.seeds:
            changed, wrong = make_wrong(content, args.share, seed)
            (folder / "labels.json").write_text(json.dumps(changed))
            suspects = report(folder, Path(args.weights_path).resolve(), seed)
            print(f"seed {seed}: {len(content['annotations'])} labels, {len(wrong)} wrong", flush=True)
            print(summary(suspects[: args.first], wrong), flush=True)


def report(folder: Path, weights: Path, seed: int) -> list[dict[str, str]]:
    """Evaluate and return the rows of suspects.csv."""
    out = folder / f"report_{seed}"
    command = [sys.executable, str(ROOT / "validation.py"), "--weights-path", str(weights)]
    command += ["--val-json", str(folder / "labels.json"), "--image-folder", str(folder / "drawn" / "val2017")]
    command += ["--batch-size", "4", "--workers", "0", "--output-dir", str(out), "--report", str(out)]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    with open(out / "suspects.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summary(suspects: list[dict[str, str]], wrong: list[WrongLabel]) -> str:
    """How many suspects name a wrong label, and how many wrong labels of each kind are named."""
    hits = named(suspects, wrong)
    found = Counter(wrong[i].kind for i in set(hits) if i >= 0)
    there = Counter(w.kind for w in wrong)
    lines = [
        f"of the first {len(suspects)} suspects {sum(i >= 0 for i in hits)} name a wrong label; "
        f"{sum(found.values())} of {len(wrong)} wrong labels are named"
    ]
    lines += [f"  {kind:<8} {found[kind]} of {there[kind]}" for kind in KINDS]
    false = Counter(suspect["kind"] for suspect, i in zip(suspects, hits) if i < 0)
    lines.append(f"  suspects that name none: {dict(false) or 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
