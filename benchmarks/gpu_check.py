"""Check and measure this project on a GPU with one command, and print a table; in less than eight minutes on one card.

    python benchmarks/gpu_check.py --out gpu_check                                # drawn photos
    python benchmarks/gpu_check.py --out gpu_check --photos /data/coco2017        # real ones, in COCO's layout
    python benchmarks/gpu_check.py --out gpu_check --only parity,training
    python benchmarks/gpu_check.py --out gpu_check --device cpu --small           # to see that it runs

Needs torch, torchvision, Pillow and pycocotools; tqdm and matplotlib are replaced where they are missing. Nothing is
downloaded. Each part is a process of its own with a time limit, so that one that fails or hangs does not stop the
others. Their rows are written to result.json in the output folder as they come. The exit status is 1 if a bound was not
held or a part failed.
"""

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import stand_ins

MISSING = stand_ins.install()

import gpu_correct  # noqa: E402
import gpu_speed  # noqa: E402
from common import parser  # noqa: E402
from gpu_setup import DRAWN, Row, Setup, draw_photos  # noqa: E402
from measured_rows import table  # noqa: E402

from train_utils.device import choose_device  # noqa: E402
from train_utils.errors import InputError, one_line_errors  # noqa: E402
from train_utils.option_parsing import add_flag  # noqa: E402

HEADER = ("part", "check or figure", "found", "bound", "held")
# Name -> function, and seconds that it may take.
PARTS: dict[str, tuple[Callable[[Setup], list[Row]], int]] = {
    "facts": (gpu_correct.facts, 60),
    "parts": (gpu_correct.parts, 60),
    "parity": (gpu_correct.parity, 90),
    "precision": (gpu_correct.precision, 90),
    "waits": (gpu_correct.waits, 60),
    "nccl": (gpu_correct.nccl, 90),
    "resume": (gpu_correct.resume, 150),
    "training": (gpu_speed.training, 120),
    "inference": (gpu_speed.inference, 120),
    "loading": (gpu_speed.loading, 90),
    "whole": (gpu_speed.whole, 120),
    "profile": (gpu_speed.profiled, 90),
}


def main(args: Namespace) -> int:
    setup = Setup(choose_device(args.device), Path(args.out).resolve(), Path(args.photos or "."), args.small)
    if setup.on_cuda or args.device == "cpu":
        setup.out.mkdir(parents=True, exist_ok=True)
    else:
        raise InputError("no CUDA device is available; --device cpu --small shows that everything runs")
    if args.part:
        (setup.out / f"{args.part}.json").write_text(json.dumps([asdict(row) for row in PARTS[args.part][0](setup)]))
        return 0
    names = list(PARTS) if args.only is None else args.only.split(",")
    if unknown := set(names) - set(PARTS):
        raise InputError(f"--only {','.join(sorted(unknown))}: not among {', '.join(PARTS)}")
    if args.photos is None:
        setup.photos = setup.out / "drawn"
        if not setup.photos.exists():
            draw_photos(setup.photos, 12 if setup.small else DRAWN)
    rows = [Row("facts", "replaced packages", ", ".join(MISSING))] if MISSING else []
    for name in names:
        start = time.perf_counter()
        rows += run_part(name, args, setup)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        (setup.out / "result.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table("part", [row.cells() for row in rows], HEADER))
    return 1 if any(row.held is False for row in rows) else 0


def run_part(name: str, args: Namespace, setup: Setup) -> list[Row]:
    """Run a part in a process of its own; a row says how it ended if it did not end well."""
    result = setup.out / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", name, "--out", str(setup.out), "--photos", str(setup.photos)]
    command += ["--device", args.device, "--small", str(args.small)]
    limit = PARTS[name][1] * args.patience
    log = setup.out / f"{name}.log"
    with open(log, "w") as output:
        try:
            status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            return [Row(name, f"stopped after {limit} s", last_line(log), "", False)]
    if status != 0:
        return [Row(name, f"ended with status {status}, see {log.name}", last_line(log), "", False)]
    return [Row(**row) for row in json.loads(result.read_text())]


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200].replace("|", "/") if lines else ""


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--out", required=True, help="folder of the results")
    p.add_argument("--photos", help="folder of photos in COCO's layout (default: drawn ones)")
    p.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    p.add_argument("--only", help=f"parts, separated by commas: {', '.join(PARTS)}")
    p.add_argument("--part", choices=list(PARTS), help="run one part in this process (used by the program itself)")
    p.add_argument("--patience", type=int, default=1, help="factor of the parts' time limits (default: %(default)s)")
    add_flag(p, "--small", "small images and few rounds")
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse_arguments()))
