"""Draw what a training step and an inference cost, over image size, batch and objects: ours and torchvision's.

    python benchmarks/cost_curves.py --amp                       # half an hour on two idle cores
    python benchmarks/cost_curves.py --curves objects --rounds 1
    python benchmarks/cost_curves.py --amp --curves batch --values 2 --size 800   # one point: two photos at 800/1333
    python benchmarks/cost_curves.py --values 64 96 --curves size --rounds 1   # to see that it runs

Each network runs in a process of its own, so that each has a peak of memory of its own; the two take turns, a round
each, so that other load slows both. Memory is what a process needs at its peak beyond its start with data and weights:
resident memory (on Linux), or on a GPU what was allocated. The time is the fastest round. Prints a table per curve,
writes costs.json and a picture per curve, and ends with status 1 if torchvision's is faster or smaller anywhere.
"""

import json
import multiprocessing
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from common import (
    PROJECT,
    as_in_torchvisions_reference,
    build_torchvisions,
    machine,
    on_device,
    parser,
    random_weights,
)
from measured_rows import megabytes, milliseconds, progress, synchronize, table
from step_and_inference import inference, make_optimizer, training_step
from torch import Tensor, nn

from network_files import InstanceMasks, MaskRCNN
from train_utils.device import Precision, choose_device
from train_utils.errors import InputError, one_line_errors
from train_utils.evaluation import ready_for_inference
from train_utils.models import ModelConfig, build_model
from train_utils.option_parsing import add_flag, positive

OUTPUT_FOLDER = PROJECT / "benchmarks" / "out" / "cost_curves"
CURVES = {
    "size": ("short side of the image", (160, 320, 480, 640, 800)),
    "batch": ("images per batch", (1, 2, 4, 8)),
    "objects": ("objects per image", (1, 10, 100, 300, 1000)),
}
USUAL = {"size": 320, "batch": 1, "objects": 7}
MODES = ("training step", "inference")
SIDES = ("this project", "torchvision")
PHOTO = (480, 640)
HEADER = ("", *(f"{what}{of}" for what in ("time", "memory") for of in ("", ", torchvision", ", ratio")))
Photos = tuple[list[Tensor], list[dict]]
Cost = tuple[float, float]  # seconds, bytes


def main(args: Namespace) -> int:
    if args.values and len(args.curves) != 1:
        raise InputError("--values belongs to one of --curves")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(random_weights(config_of(USUAL["size"]), draw_photos(2, 7)[0]), folder / "weights.pth")
    print(f"{machine(choose_device(args.device))}; {'mixed precision' if args.amp else 'float32'}")
    costs: dict[str, dict] = {}
    for curve in args.curves:
        values = args.values or CURVES[curve][1]
        what = CURVES[curve][0] + ("" if curve == "size" else f", short side {args.size}")
        modes = MODES[:1] if curve == "objects" else MODES  # an inference knows no objects
        usual = USUAL | {"size": args.size}
        costs[curve] = {
            mode: [measure(args, folder, mode, usual | {curve: value}) for value in values] for mode in modes
        }
        draw(costs[curve], what, values, folder / f"{curve}.png")
        for mode, pairs in costs[curve].items():
            rows = [row_of(value, *pair) for value, pair in zip(values, pairs)]
            print(f"\n{table(f'{mode}: {what}', rows, HEADER)}", flush=True)
    (folder / "costs.json").write_text(json.dumps(costs))
    all_pairs = [pair for modes in costs.values() for pairs in modes.values() for pair in pairs]
    return 1 if any(ours >= theirs for pair in all_pairs for ours, theirs in zip(*pair)) else 0


def measure(args: Namespace, folder: Path, mode: str, point: dict[str, int]) -> tuple[Cost, Cost]:
    """Let both processes take turns at one point of a curve."""
    progress(f"{mode}: {point}")
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in SIDES]
    children = [
        context.Process(target=contestant, args=(theirs, args, folder, mode, point, side))
        for side, (_, theirs) in zip(SIDES, pipes)
    ]
    for child, (_, theirs) in zip(children, pipes):
        child.start()
        theirs.close()
    seconds: list[list[float]] = [[], []]
    for i in range(-1, args.rounds):
        for k in (0, 1) if i % 2 else (1, 0):
            pipes[k][0].send("run")
            found = pipes[k][0].recv()
            if i >= 0:
                seconds[k].append(found)
    for mine, _ in pipes:
        mine.send("end")
    costs = [(min(each), mine.recv()) for each, (mine, _) in zip(seconds, pipes)]
    for child in children:
        child.join()
    return costs[0], costs[1]


def contestant(pipe: Connection, args: Namespace, folder: Path, mode: str, point: dict[str, int], side: str) -> None:
    """Run one network when asked to, and answer with the seconds; at the end, with the bytes at its peak."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    run = work(side, mode, point, folder, device, Precision.choose(device, args.amp))
    before = memory(device, "VmRSS")
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading the weights
    while pipe.recv() == "run":
        start = time.perf_counter()
        run()
        synchronize()
        pipe.send(time.perf_counter() - start)
    pipe.send(memory(device, "VmHWM") - before)


def work(
    side: str, mode: str, point: dict[str, int], folder: Path, device: torch.device, precision: Precision
) -> Callable[[], object]:
    images, targets = draw_photos(point["batch"], point["objects"])
    config = config_of(point["size"])
    network: nn.Module = build_model(config) if side == SIDES[0] else build_torchvisions(config)
    network.load_state_dict(torch.load(folder / "weights.pth"))
    if isinstance(network, MaskRCNN):
        network.to(device, memory_format=torch.channels_last)
    else:
        network.to(device)
        images, targets = as_in_torchvisions_reference(images, targets)
    if mode == MODES[1]:
        ready = ready_for_inference(network, precision) if isinstance(network, MaskRCNN) else network.eval()
        return lambda: inference(ready, images, device, precision)
    optimizer = make_optimizer(network)
    return lambda: training_step(network, optimizer, *on_device(network, images, targets, device), device, precision)


def memory(device: torch.device, kind: str) -> int:
    """Return the bytes in use, VmRSS, or the most that were in use at a time, VmHWM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 1024


def config_of(size: int) -> ModelConfig:
    return ModelConfig(91, norm="frozen", min_size=size, max_size=size * 5 // 3)


def draw_photos(number: int, objects: int) -> Photos:
    """Draw soft images uint8 [3, H, W] with so many ellipses each, whose masks are compact."""
    generator = torch.Generator().manual_seed(0)
    height, width = PHOTO
    images, targets = [], []
    for i in range(number):
        noise = torch.rand(1, 3, 12, 16, generator=generator)
        images.append((255 * nn.functional.interpolate(noise, PHOTO, mode="bilinear")[0]).to(torch.uint8))
        corner = torch.rand(objects, 2, generator=generator) * torch.tensor([width - 112, height - 112])
        boxes = torch.cat((corner, corner + 12 + 100 * torch.rand(objects, 2, generator=generator)), dim=1).round()
        crops = [(x1, y1, ellipse(y2 - y1, x2 - x1)) for x1, y1, x2, y2 in boxes.int().tolist()]
        labels = torch.randint(1, 91, (objects,), generator=generator)
        masks = InstanceMasks.from_crops(crops, PHOTO)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks, "image_id": i})
    return images, targets


def ellipse(height: int, width: int) -> np.ndarray:
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (x**2 + y**2 <= 1).astype(np.uint8)


def row_of(value: int, own: Cost, peer: Cost) -> tuple:
    cells: list[str] = []
    for form, ours, theirs in zip((milliseconds, megabytes), own, peer):
        cells += [form(ours), form(theirs), f"{theirs / ours:.2f}x"]
    return (value, *cells)


def draw(costs: dict[str, list], what: str, values: tuple[int, ...], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4 * len(costs)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(costs), 2, squeeze=False)
    for row, (mode, pairs) in zip(grid, costs.items()):
        for axes, k, unit, name in zip(row, (0, 1), (1, 1e9), ("seconds", "memory at the peak in GB")):
            for i, (side, colour) in enumerate(zip(SIDES, ("tab:blue", "tab:orange"))):
                axes.plot(values, [pair[i][k] / unit for pair in pairs], marker="o", color=colour, label=side)
            if max(values) >= 100 * min(values):
                axes.set_xscale("log")
            axes.set(xlabel=what, ylabel=name, title=mode, ylim=(0, None))
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(path, dpi=100)


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--device", default="cpu", help="cuda, cuda:N or cpu (default: %(default)s)")
    p.add_argument("--curves", nargs="+", choices=tuple(CURVES), default=list(CURVES), help="(default: all)")
    p.add_argument("--values", type=positive, nargs="+", help="other points of the one curve")
    p.add_argument("--size", type=positive, default=320, help="short side in the other curves (default: 320)")
    p.add_argument("--rounds", type=positive, default=3, help="timed, after one to warm up (default: 3)")
    p.add_argument("--threads", type=positive, help="of each process (default: all)")
    p.add_argument("--output-dir", default=str(OUTPUT_FOLDER), help="(default: benchmarks/out/cost_curves)")
    add_flag(p, "--amp", "mixed precision for both")
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse_arguments()))
