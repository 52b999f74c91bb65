"""Train with train.py and with torchvision's network in the loop of its reference script, and compare the results.

    python benchmarks/training_beside_torchvision.py                        # all: many hours on two cores
    python benchmarks/training_beside_torchvision.py --data drawn --precisions bf16 --seeds 0
    python benchmarks/training_beside_torchvision.py --only-show            # the table and pictures of what is finished

`drawn` is the demo: 440 drawn images for training, 80 for validation. `photos` overfits the 80 training photos of
coco_tiny at 128 px with anchors of 8 to 128 px. It starts from the weights with which train.py's `drawn` of the same
precision and seed ended, as from random weights it would take ten times as long. Both sides have the same initial
weights, batches, augmentation, schedule, and seeds of the random samples. Each training has one thread on a core of its
own, and as many run at once as there are cores. A time is the processor time of the steps, without evaluation, so that
other load on the machine does not count. Finished trainings are kept in --output-dir, so a stopped program continues
with the next one.

"AP at equal time" is torchvision's mask AP at the time at which train.py was finished, interpolated between its epochs.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median, stdev
from types import SimpleNamespace

import numpy as np
import torch
from common import PROJECT, as_in_torchvisions_reference, build_torchvisions, coco_tiny, machine, parser
from measured_rows import progress, table
from torch.optim import SGD, AdamW

from report.sources import compare_sides
from train_utils.augmentation import training_transforms
from train_utils.classes import ClassTable
from train_utils.data_check import num_classes_for
from train_utils.demo_dataset import make_demo_dataset
from train_utils.device import Precision, choose_device
from train_utils.errors import InputError, one_line_errors
from train_utils.evaluation import detect_all
from train_utils.loaders import evaluation_loader, mix_seed, training_loader
from train_utils.models import build_training_model
from train_utils.open_data import open_training_data
from train_utils.optimizer import learning_rate, parameter_groups, set_learning_rate
from train_utils.option_parsing import add_flag, positive
from train_utils.options import DEMO_FOLDER, TrainSettings, ValidationSettings

OUTPUT_FOLDER = PROJECT / "benchmarks" / "out" / "training_beside_torchvision"
HOOKS = PROJECT / "benchmarks" / "training_times.py"
SIDES = ("train.py", "torchvision")
WEIGHTS, TIMES, FOUND = "last.pth", "times.jsonl", "found.json"
SMOOTHING = 10  # steps
HEADER = (
    "seed", "mask AP", "torchvision", "difference (95 %)", "verdict", "steps took", "torchvision", "ratio",
    "AP at equal time", "time to the lower AP",
)  # fmt: skip


def photos() -> tuple[str, str]:
    """Return the annotation file and the image folder of the 80 photos."""
    return str(coco_tiny() / "annotations" / "instances_train2017.json"), str(coco_tiny() / "train2017")


def main(args: Namespace) -> None:
    folder = Path(args.output_dir)
    if args.side:  # this process is torchvision's
        return train_torchvisions(Path(args.side[0]), args.side[1:])
    # Each seed of every kind comes before the next seed, so that a stopped program leaves figures for all kinds.
    runs = list(product(args.seeds, args.data, args.precisions))
    if not args.only_show:
        train_all(folder, runs, args.epochs)
    print(machine(torch.device("cpu")))
    for data, precision in product(args.data, args.precisions):
        found = []
        for seed in args.seeds:
            run = run_folder(folder, data, precision, seed, args.epochs)
            if all((run / side / WEIGHTS).exists() for side in SIDES):
                found.append(compare_both(run, data, precision, seed))
        if found:
            draw(found, folder / f"{data}_{precision}.png", f"{data}, {precision}")
            print(f"\n{table(f'{data}, {precision}', [row_of(each) for each in found], HEADER)}\n{summary(found)}")


def run_folder(folder: Path, data: str, precision: str, seed: int, epochs: int | None) -> Path:
    return folder / (f"{data}_{precision}_{seed}" + (f"_{epochs}_epochs" if epochs else ""))


def train_options(folder: Path, data: str, precision: str, seed: int, epochs: int | None) -> list[str]:
    """Return the options of train.py for one training."""
    options = ["--seed", str(seed), "--amp", str(precision == "bf16"), "--device", "cpu", "--workers", "0"]
    if data == "photos":
        annotations, images = photos()
        start = run_folder(folder, "drawn", precision, seed, epochs) / SIDES[0] / WEIGHTS
        options += [
            "--train-json", annotations, "--val-json", annotations, "--image-folder", images, "--pretrain", str(start),
            "--min-size", "128", "--max-size", "176", "--anchor-sizes", "8", "16", "32", "64", "128",
            "--rois-per-image", "32", "--proposals", "100", "--detections", "30", "--epochs", "30", "--batch-size", "4",
            "--opt", "adamw", "--lr", "5e-4", "--weight-decay", "0.02", "--lr-scheduler", "cosineannealinglr",
            "--data-augmentation", "none",
        ]  # fmt: skip
    return [*options, "--print-freq", "1", "--keep", "1"] + (["--epochs", str(epochs)] if epochs else [])


# --- both trainings


def train_all(folder: Path, runs: Sequence[tuple[int, str, str]], epochs: int | None) -> None:
    """Run the trainings that are not finished, one on each core at a time."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    with ThreadPoolExecutor(cores.qsize()) as pool:
        trainings: dict[tuple[Path, str], Future] = {}
        for seed, data, precision in runs:
            run = run_folder(folder, data, precision, seed, epochs)
            options = train_options(folder, data, precision, seed, epochs)
            drawn = (run_folder(folder, "drawn", precision, seed, epochs), SIDES[0])
            start = trainings.get(drawn) if data == "photos" else None
            for side in SIDES:
                trainings[run, side] = pool.submit(train, run, side, options, cores, start)
        for training in trainings.values():
            if training.exception():
                pool.shutdown(wait=True, cancel_futures=True)
                raise InputError(f"{folder}: a training failed: {training.exception()}")


def train(run: Path, side: str, options: list[str], cores: SimpleQueue[int], start: Future | None) -> None:
    """Train one side in a process of its own, on one of the free cores, if its last weights are not there yet.

    Photos wait for `start`, the training whose weights they begin with.
    """
    folder = run / side
    if (folder / WEIGHTS).exists():
        return
    if start is not None:
        start.result()
    progress(f"{run.name}, {side}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [PROJECT / "train.py", *options, "--output-dir", folder, "--hooks", HOOKS]
    if side == SIDES[1]:
        command = [__file__, "--side", run, *options]
    core = cores.get()
    try:
        subprocess.run(
            [sys.executable, *map(str, command)], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "BESIDE_TORCHVISION": str(run)},
            preexec_fn=lambda: os.sched_setaffinity(0, [core]),
        )  # fmt: skip
    finally:
        cores.put(core)
    if side == SIDES[0]:
        newest = max(folder.glob("model_[0-9]*.pth"), key=lambda path: path.stat().st_mtime)
        newest.rename(folder / WEIGHTS)
        for path in folder.glob("model_*.pth"):
            path.unlink()


def train_torchvisions(run: Path, options: Sequence[str]) -> None:
    """Train torchvision's network as its reference script does, on the batches and with the schedule of train.py."""
    settings = TrainSettings.parse(None, options)
    settings.resolve(1)
    device = choose_device(settings.device)
    precision = Precision.choose(device, settings.amp)
    torch.manual_seed(settings.seed)
    if settings.is_demo():
        settings.data_path = DEMO_FOLDER
        make_demo_dataset(DEMO_FOLDER)

    train_set, val_set = open_training_data(settings, settings.seed, settings.detections)
    train_set.transforms = training_transforms(settings)
    classes = ClassTable.of_dataset(train_set)
    loader = training_loader(train_set, settings, pin_memory=False)
    val_loader = evaluation_loader(val_set, batch_size=None, workers=0, device=device)
    evaluated, config = build_training_model(settings, num_classes_for(train_set, None), None, classes.names)
    model = build_torchvisions(config)
    model.load_state_dict(evaluated.state_dict())  # those with which train.py begins

    optimizer_of = {"sgd": SGD, "adamw": AdamW}[settings.opt]
    momentum = {"momentum": settings.momentum} if settings.opt == "sgd" else {}
    groups = parameter_groups(model, settings.weight_decay)
    optimizer = optimizer_of(groups, lr=settings.lr, weight_decay=settings.weight_decay, **momentum)
    with open(run / SIDES[1] / TIMES, "w", buffering=1) as times:
        for epoch in range(settings.epochs):
            model.train()
            loader.batch_sampler.start_at(epoch, 0)
            losses, began = [], time.process_time()
            for step, (images, targets) in enumerate(loader, epoch * len(loader)):
                torch.manual_seed(mix_seed(settings.seed, step, 0))
                set_learning_rate(optimizer, learning_rate(step, settings, len(loader)))
                images, targets = as_in_torchvisions_reference(images, targets)
                with precision.autocast():
                    loss = sum(model(images, targets).values())
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            seconds = time.process_time() - began
            evaluated.load_state_dict(model.state_dict())
            metrics = detect_all(evaluated, val_loader, val_set.coco, classes, device, precision).metrics()
            aps = {"box": metrics["bbox"].stats[0], "mask": metrics["segm"].stats[0]}
            times.write(json.dumps({"epoch": epoch, "seconds": seconds, "losses": losses} | aps) + "\n")
    content = {"model": evaluated.state_dict(), "model_config": config.to_plain()}
    torch.save(content | {"class_names": classes.names, "category_ids": classes.category_ids}, run / SIDES[1] / WEIGHTS)


# --- results


@dataclass
class Curve:
    """One side's training: losses [S] by step, and mask AP [E] after seconds [E] of steps."""

    losses: np.ndarray
    seconds: np.ndarray
    aps: np.ndarray

    @classmethod
    def of(cls, plain: dict) -> "Curve":
        return cls(*(np.array(plain[name]) for name in ("losses", "seconds", "aps")))

    def ap_at(self, seconds: float) -> float:
        return float(np.interp(seconds, [0, *self.seconds], [0, *self.aps]))

    def seconds_to(self, ap: float) -> float:
        """The first time at which the AP, interpolated between epochs, reaches a value."""
        reached = int(np.argmax(self.aps >= ap))
        times, aps = np.array([0, *self.seconds]), np.array([0, *self.aps])
        share = (ap - aps[reached]) / (aps[reached + 1] - aps[reached])
        return float(times[reached] + share * (times[reached + 1] - times[reached]))


def compare_both(run: Path, data: str, precision: str, seed: int) -> dict:
    """Compare the last weights of both sides as `validation.py --compare` does; store and return all figures."""
    if (run / FOUND).exists():
        return json.loads((run / FOUND).read_text())
    weights = [str(run / side / WEIGHTS) for side in SIDES]
    options = ["--compare", weights[1], weights[0], "--device", "cpu", "--amp", str(precision == "bf16")]
    options += (
        ["--data-path", DEMO_FOLDER] if data == "drawn" else ["--val-json", photos()[0], "--image-folder", photos()[1]]
    )
    compared = compare_sides(ValidationSettings.parse(None, [*options, "--iou-type", "segm"]))
    if compared is None:
        raise RuntimeError("only the main process compares")
    masks = compared[0].kinds[0]
    ap = masks.metrics[0]
    found = {
        "seed": seed, "ap": ap.b, "peer_ap": ap.a, "interval": list(ap.of_difference)[:2], "verdict": masks.verdict(),
        "curves": [own_curve(run / SIDES[0]), peer_curve(run / SIDES[1])],
    }  # fmt: skip
    (run / FOUND).write_text(json.dumps(found))
    return found


def own_curve(folder: Path) -> dict:
    losses = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    times = [json.loads(line)["seconds"] for line in (folder / TIMES).read_text().splitlines()]
    lines = (folder / "seg_results.txt").read_text().splitlines()
    return {
        "losses": [entry["loss"] for entry in losses if "loss" in entry],
        "seconds": np.cumsum(times).tolist(),
        "aps": [float(line.split()[1]) for line in lines],
    }


def peer_curve(folder: Path) -> dict:
    epochs = [json.loads(line) for line in (folder / TIMES).read_text().splitlines()]
    return {
        "losses": [loss for epoch in epochs for loss in epoch["losses"]],
        "seconds": np.cumsum([epoch["seconds"] for epoch in epochs]).tolist(),
        "aps": [epoch["mask"] for epoch in epochs],
    }


def row_of(found: dict) -> tuple:
    own, peer = map(Curve.of, found["curves"])
    low, high = found["interval"]
    lower = min(own.aps.max(), peer.aps.max())
    difference = f"{found['ap'] - found['peer_ap']:+.3f} ({low:+.3f} to {high:+.3f})"
    verdict = found["verdict"].split(":")[0].replace("B is", "train.py is").replace("A is", "torchvision is")
    times = own.seconds[-1], peer.seconds[-1]
    to_lower = own.seconds_to(lower), peer.seconds_to(lower)
    return (
        found["seed"], f"{found['ap']:.3f}", f"{found['peer_ap']:.3f}", difference, verdict,
        *(f"{seconds:.0f} s" for seconds in times), f"{times[1] / times[0]:.2f}x",
        f"{own.aps[-1]:.3f}, torchvision {peer.ap_at(times[0]):.3f}",
        f"{to_lower[0]:.0f} s, torchvision {to_lower[1]:.0f} s: {to_lower[1] / to_lower[0]:.2f}x",
    )  # fmt: skip


def summary(found: Sequence[dict]) -> str:
    """Return the mean difference over the seeds with its standard error, and the median ratio of the times."""
    differences = [each["ap"] - each["peer_ap"] for each in found]
    pairs = [[Curve.of(plain) for plain in each["curves"]] for each in found]
    ratio = median(peer.seconds[-1] / own.seconds[-1] for own, peer in pairs)
    error = f", standard error {stdev(differences) / len(found) ** 0.5:.3f}" if len(found) > 1 else ""
    return (
        f"Mean difference in mask AP over {len(found)} seeds: {mean(differences):+.3f}{error}. "
        f"Median ratio of the times: {ratio:.2f}."
    )


def draw(found: Sequence[dict], path: Path, title: str) -> None:
    """Draw the losses over the steps, and mask AP over the time, of all seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for each in found:
        for side, colour, plain in zip(SIDES, ("tab:blue", "tab:orange"), each["curves"]):
            curve = Curve.of(plain)
            window = np.ones(SMOOTHING) / SMOOTHING
            smooth = np.convolve(curve.losses, window, mode="valid") if len(curve.losses) > SMOOTHING else curve.losses
            look = {"color": colour, "alpha": 0.8, "linewidth": 1.2, "label": side if each is found[0] else None}
            left.plot(np.arange(len(smooth)) + 1, smooth, **look)
            right.plot([0, *curve.seconds / 60], [0, *curve.aps], marker=".", **look)
    left.set(xlabel="step", ylabel=f"loss, mean of {SMOOTHING} steps", title=f"{title}: loss")
    right.set(xlabel="minutes of processor time in steps", ylabel="mask AP", title=f"{title}: mask AP by time")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def parse_arguments() -> Namespace | SimpleNamespace:
    if sys.argv[1:2] == ["--side"]:
        return SimpleNamespace(side=sys.argv[2:], output_dir=sys.argv[2])
    p = parser(__doc__)
    p.add_argument("--data", nargs="+", choices=("drawn", "photos"), default=["drawn", "photos"])
    p.add_argument("--precisions", nargs="+", choices=("bf16", "float32"), default=["bf16", "float32"])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default: 0 1 2 3 4)")
    p.add_argument("--epochs", type=positive, help="shorter trainings, to see that it runs")
    p.add_argument("--output-dir", default=str(OUTPUT_FOLDER), help="(default: benchmarks/out/...)")
    add_flag(p, "--only-show", "train nothing; show what is finished")
    p.set_defaults(side=None)
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        main(parse_arguments())
