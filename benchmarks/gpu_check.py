"""Check and measure this project on a GPU with one command, and print a table; in less than eight minutes on one card.

    python benchmarks/gpu_check.py                                   # drawn photos
    python benchmarks/gpu_check.py --photos /data/coco2017           # real ones, in COCO's layout
    python benchmarks/gpu_check.py --part training parity
    python benchmarks/gpu_check.py --device cpu --small              # to see that it runs

Needs torch, torchvision, numpy and Pillow. Stand-ins replace other packages where they are missing; an evaluation needs
hotcoco and is skipped without it. Nothing is downloaded. Each part is a process of its own with a time limit, so that
one that fails or hangs does not stop the others; speed comes first. The rows are in result.json in the output folder as
they come. The exit status is 1 if a bound was not held or a part failed.
"""

import json
import multiprocessing
import os
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import stand_ins

MISSING = stand_ins.install()

import gpu_network  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_processes  # noqa: E402
import gpu_speed  # noqa: E402
import torch  # noqa: E402
from common import parser  # noqa: E402
from gpu_setup import DRAWN, Row, Setup, draw_photos, prepare  # noqa: E402
from measured_rows import in_child, table  # noqa: E402

from train_utils.errors import InputError, one_line_errors  # noqa: E402
from train_utils.option_parsing import add_flag, positive  # noqa: E402

HEADER = ("part", "check or figure", "found", "bound", "held")
# Name -> function, and the seconds that it may take.
PARTS: dict[str, tuple[Callable[[Setup], list[Row]], int]] = {
    "prepare": (prepare, 60),
    "facts": (gpu_speed.facts, 40),
    "training": (gpu_speed.training, 100),
    "inference": (gpu_speed.inference, 80),
    "parts": (gpu_parts.parts, 60),
    "parity": (gpu_network.parity, 80),
    "precision": (gpu_network.precision, 60),
    "overflow": (gpu_network.overflow, 60),
    "settings": (gpu_network.settings, 60),
    "waits": (gpu_processes.waits, 60),
    "groups": (gpu_processes.groups, 200),
    "resume": (gpu_processes.resume, 120),
    "whole": (gpu_speed.whole, 90),
    "loading": (gpu_speed.loading, 90),
    "step_times": (gpu_speed.step_times, 60),
    "profile": (gpu_speed.profiled, 60),
}


def main(args: Namespace) -> int:
    # CUDA cannot be used in a fork of a process that has used it.
    if args.device != "cpu" and not in_child(torch.cuda.is_available):
        raise InputError("no CUDA device is available; --device cpu --small shows that everything runs")
    setup = Setup(torch.device(args.device), Path(args.out).resolve(), Path(args.photos or "."), args.small)
    setup.out.mkdir(parents=True, exist_ok=True)
    if args.photos is None:
        setup.photos = setup.out / "drawn"
        if not setup.photos.exists():
            draw_photos(setup.photos, 12 if setup.small else DRAWN)
    began, rows = time.perf_counter(), []
    if MISSING:
        rows.append(Row("facts", "replaced packages", ", ".join(MISSING)))
    for name in ["prepare", *(args.part or list(PARTS)[1:])]:
        left = args.minutes * 60 - (time.perf_counter() - began)
        start = time.perf_counter()
        rows += run_part(name, setup, min(PARTS[name][1] * args.patience, left))
        rows.append(Row(name, "time of the part", f"{time.perf_counter() - start:.0f} s"))
        print(f"{name}: {rows[-1].figure}", file=sys.stderr, flush=True)
        (setup.out / "result.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table("part", [row.cells() for row in rows], HEADER))
    return 1 if any(row.held is False for row in rows) else 0


def run_part(name: str, setup: Setup, limit: float) -> list[Row]:
    """Run a part in a fork of this process; a row says how it ended if it did not end well."""
    if limit <= 0:
        return [Row(name, "not run", "the minutes were over", "", False)]
    result, log = setup.out / f"{name}.json", setup.out / f"{name}.log"
    result.unlink(missing_ok=True)
    child = multiprocessing.get_context("fork").Process(target=part, args=(name, setup, result, log))
    child.start()
    child.join(limit)
    if child.is_alive():
        os.killpg(child.pid, 9)  # with the processes that it started
        child.join()
        return [Row(name, f"stopped after {limit:.0f} s", last_line(log), "", False)]
    if child.exitcode != 0:
        return [Row(name, f"ended with status {child.exitcode}, see {log.name}", last_line(log), "", False)]
    return [Row(**row) for row in json.loads(result.read_text())]


def part(name: str, setup: Setup, result: Path, log: Path) -> None:
    os.setpgid(0, 0)
    with open(log, "w") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    try:
        if setup.on_cuda and name not in ("groups", "resume"):  # their processes choose it
            setup.device = torch.device("cuda", setup.device.index or 0)
            torch.cuda.set_device(setup.device)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # as `choose_device` does
        rows = PARTS[name][0](setup)
        result.write_text(json.dumps([asdict(row) for row in rows]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise SystemExit(1) from None


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200].replace("|", "/") if lines else ""


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--out", default="gpu_check", help="folder of the results (default: %(default)s)")
    p.add_argument("--photos", help="folder of photos in COCO's layout (default: drawn ones)")
    p.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    p.add_argument("--part", nargs="+", choices=list(PARTS)[1:], help="only these parts (default: all, in this order)")
    p.add_argument("--minutes", type=positive, default=8, help="for all parts together (default: %(default)s)")
    p.add_argument("--patience", type=positive, default=1, help="factor of the parts' limits (default: %(default)s)")
    add_flag(p, "--small", "small images and few rounds")
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse_arguments()))
