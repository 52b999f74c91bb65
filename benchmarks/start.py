"""Measure a start on COCO's training annotations: seconds until the first item can be loaded, and memory from then on.

    python benchmarks/start.py                                  # a file as long as COCO's, about 450 MB; minutes
    python benchmarks/start.py --objects 100000 --images 12000

Writes an instances file of made-up polygons to a temporary folder and opens it like CocoDetection: first without and
then with a stored index. The peers are `json.load` of the file and pycocotools' COCO object. Every figure comes from a
separate process that starts with nothing loaded. Memory is that of one training process and its loader workers together
(shared pages count once) after each worker has read the annotations of its share of an epoch.
"""

import contextlib
import io
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import machine, parser
from measured_rows import compared, in_child, megabytes, progress, table
from pycocotools.coco import COCO

from dataset_files import coco_index
from train_utils.errors import one_line_errors
from train_utils.option_parsing import add_flag, positive

LATER_START = 1.0  # seconds


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    if args.quick:
        coco_index.STORED_FROM = 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        growth = []
        for share in (100, 10, 1):
            images, objects = max(args.images // share, 8), max(args.objects // share, 8)
            path = Path(folder) / f"instances_{objects}.json"
            progress(f"writing {objects} objects")
            write_instances(path, images, objects)
            seconds = measure_starts(path, args.rounds)
            growth.append((f"{objects} objects", *(f"{value:.3f} s" for value in seconds.values())))
        rows = [
            compared(
                "first start, json.load", *(f"{seconds[k]:.2f} s" for k in ("first", "json.load")),
                seconds["json.load"] / seconds["first"], 1,
            ),
            compared(
                "first start, pycocotools", *(f"{seconds[k]:.2f} s" for k in ("first", "pycocotools")),
                seconds["pycocotools"] / seconds["first"], None,
            ),
            compared(
                "later start, 1 s", f"{seconds['later']:.3f} s", f"{LATER_START} s", LATER_START / seconds["later"], 1
            ),
            memory(path, args.workers),
        ]  # fmt: skip
        title = f"{images} images, {objects} objects, {megabytes(path.stat().st_size)}"
    header = ("objects", "first start", "later start", "json.load", "pycocotools")
    return f"{machine(torch.device('cpu'))}\n\n{table(title, rows)}\n{table('start', growth, header)}"


def write_instances(path: Path, images: int, objects: int) -> None:
    """Write an instances file like COCO's: polygons of 8 to 90 numbers, 45 on average, in random order of images."""
    draw = random.Random(objects)
    shapes = []
    for _ in range(500):
        x, y = draw.uniform(0, 500), draw.uniform(0, 400)
        count = draw.choice((4, 8, 12, 22, 45, 45))
        angles = sorted(draw.uniform(0, math.tau) for _ in range(count))  # an outline that does not cross itself
        radii = [draw.uniform(10, 50) for _ in range(count)]
        points = [(x + 50 + r * math.cos(a), y + 50 + r * math.sin(a)) for a, r in zip(angles, radii)]
        polygon = [round(value, 2) for point in points for value in point]
        box = [round(x, 2), round(y, 2), 100.0, 100.0]
        shapes.append(json.dumps({"segmentation": [polygon], "area": draw.uniform(9, 9999), "iscrowd": 0, "bbox": box}))
    with open(path, "w") as file:
        file.write('{"info": {"year": 2017}, "images": [')
        for i in range(1, images + 1):
            picture = {"license": 3, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640, "id": i}
            file.write(f"{', ' if i > 1 else ''}{json.dumps(picture)}")
        file.write('], "annotations": [')
        for i in range(1, objects + 1):
            ids = f'"image_id": {draw.randint(1, images)}, "category_id": {draw.randint(1, 80)}, "id": {i}'
            file.write(f"{', ' if i > 1 else ''}{draw.choice(shapes)[:-1]}, {ids}}}")
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def measure_starts(path: Path, rounds: int) -> dict[str, float]:
    """Measure alternately the first and a later start, `json.load` and pycocotools; return median seconds."""
    path.read_bytes()  # equal conditions: the file is in the system's cache
    ways = {"first": first_start, "later": later_start, "json.load": load_json, "pycocotools": load_pycocotools}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            progress(f"{path.name}: {name}")
            seconds[name].append(in_child(duration, way, path))
    return {name: statistics.median(values) for name, values in seconds.items()}


def duration(way: Callable[[Path], Any], path: Path) -> float:
    start = time.perf_counter()
    kept = way(path)
    end = time.perf_counter()
    del kept
    return end - start


def first_start(path: Path) -> coco_index.CocoIndex:
    for place in coco_index.storage_places(path, coco_index.AS_WRITTEN.suffix()):
        place.unlink(missing_ok=True)
    return later_start(path)


def later_start(path: Path) -> coco_index.CocoIndex:
    index = coco_index.open_index(path)
    index.usable_counts()
    return index


def load_json(path: Path) -> dict:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def load_pycocotools(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def memory(path: Path, workers: int) -> tuple:
    if not Path("/proc/self/smaps_rollup").exists():
        return ("memory", "not measured", "not measured", "only on Linux", "10x", "")
    progress("memory")
    own = in_child(memory_of_group, later_start, read_own, path, workers)
    peer = in_child(memory_of_group, load_pycocotools, read_pycocotools, path, workers)
    return compared(f"memory, one process and {workers} workers", megabytes(own), megabytes(peer), peer / own, 10)


def memory_of_group(way: Callable, read: Callable, path: Path, workers: int) -> int:
    """Return the bytes of this process and its workers after each worker has read its share of the images."""
    data = way(path)
    pipes, children = [], []
    for number in range(workers):
        done, go_on = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            read(data, number, workers)
            os.write(done[1], b"x")
            os.read(go_on[0], 1)
            os._exit(0)
        children.append(child)
        pipes.append((done, go_on))
    for done, _ in pipes:
        os.read(done[0], 1)
    total = sum(proportional_size(process) for process in [os.getpid(), *children])
    for (done, go_on), child in zip(pipes, children):
        os.write(go_on[1], b"x")
        os.waitpid(child, 0)
        for end in (*done, *go_on):
            os.close(end)
    return total


def proportional_size(process: int) -> int:
    """Return the bytes of a process, with shared pages divided among the processes that share them."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def read_own(index: coco_index.CocoIndex, number: int, workers: int) -> None:
    for picture in share(len(index.image_ids), number, workers):
        index.annotations(picture, only_usable=True)


def read_pycocotools(coco: COCO, number: int, workers: int) -> None:
    ids = list(coco.imgs)
    for picture in share(len(ids), number, workers):
        for annotation in coco.loadAnns(coco.getAnnIds(ids[picture])):
            sum(map(sum, annotation["segmentation"]))  # reads every number, as making a mask does


def share(pictures: int, number: int, workers: int) -> list[int]:
    """Return the images of one worker in an epoch, in random order."""
    order = list(range(pictures))
    random.Random(0).shuffle(order)
    return order[number::workers]


def parse(arguments: Sequence[str]):
    p = parser(__doc__)
    p.add_argument("--images", type=positive, default=118_287, help="(default: %(default)s, as COCO's)")
    p.add_argument("--objects", type=positive, default=1_000_000, help="(default: %(default)s)")
    p.add_argument("--workers", type=positive, default=8, help="for the memory measurement (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=1, help="timed runs of each (default: %(default)s)")
    p.add_argument("--folder", help="where to write the file (default: the system's temporary folder)")
    add_flag(p, "--quick", "smallest settings; the figures mean nothing")
    args = p.parse_args(arguments)
    if args.quick:
        args.images, args.objects, args.workers, args.rounds = 40, 400, 2, 1
    return args


if __name__ == "__main__":
    with one_line_errors():
        print(main(sys.argv[1:]))
