"""The parts of gpu_check.py that measure: training, inference, evaluation, loading, a whole run, the profile."""

import importlib.util
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from common import machine
from gpu_network import training_of
from gpu_processes import torchvisions_step, train_without_evaluation
from gpu_setup import Photos, Row, Setup, floats_and_dense
from measured_rows import matrix_rate
from torch.profiler import ProfilerActivity, profile

from my_dataset_coco import CocoDetection
from train_utils import engine
from train_utils.augmentation import training_transforms
from train_utils.classes import ClassTable
from train_utils.engine import Batch, to_device, train_step
from train_utils.evaluation import detect_all, ready_for_inference
from train_utils.loaders import evaluation_loader, training_loader
from train_utils.models import ModelConfig, build_model
from train_utils.options import TrainSettings
from train_utils.training_state import Training

BLOCKS, STEPS = 3, 6  # of each contestant, interleaved


class Figures:
    """What the blocks of one contestant gave: seconds per call, host seconds until the calls returned, peak memory."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.host: list[float] = []
        self.memory = 0

    def rate(self, batch: int) -> float:
        return batch / statistics.median(self.seconds)


def interleaved(setup: Setup, contestants: Mapping[str, Callable[[], object]]) -> dict[str, Figures]:
    """Run blocks of calls of each contestant in turns, each after one untimed call that fills the allocator's cache."""
    blocks, steps = (1, 1) if setup.small else (BLOCKS, STEPS)
    figures = {name: Figures() for name in contestants}
    for _ in range(blocks):
        for name, run in contestants.items():
            setup.synchronize()
            if setup.on_cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            run()
            setup.synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                run()
            returned = time.perf_counter()
            setup.synchronize()
            figures[name].seconds.append((time.perf_counter() - start) / steps)
            figures[name].host.append((returned - start) / steps)
            if setup.on_cuda:
                figures[name].memory = torch.cuda.max_memory_allocated()
    return figures


def facts(setup: Setup) -> list[Row]:
    rows = [Row("facts", "machine", machine(setup.device))]
    if setup.on_cuda:
        with suppress(OSError, subprocess.CalledProcessError):
            command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
            rows.append(Row("facts", "driver, memory", subprocess.check_output(command, text=True).splitlines()[0]))
    for dtype in () if setup.small else (torch.bfloat16, torch.float32):
        rate = f"{matrix_rate(dtype, setup.device) / 1e12:.1f} TFLOP/s"
        rows.append(Row("facts", f"matrix rate, {str(dtype).removeprefix('torch.')}", rate))
    return rows


def training(setup: Setup) -> list[Row]:
    rows = []
    for batch in setup.batches:
        photos = setup.load(batch)
        ours, theirs = setup.networks(photos)
        ours.to(setup.device, memory_format=torch.channels_last)
        contestants = {"this project": own_step(setup, training_of(setup, ours, setup.mixed()), photos)}
        for name, layout in (("torchvision", torch.contiguous_format), ("channels last", torch.channels_last)):
            contestants[name] = torchvisions_step(
                setup, deepcopy(theirs).to(memory_format=layout), floats_and_dense(photos)
            )
        figures = interleaved(setup, contestants)
        own, peers = figures["this project"], {k: v for k, v in figures.items() if k != "this project"}
        best = max(figure.rate(batch) for figure in peers.values())
        rates = ", ".join(f"{name} {figure.rate(batch):.1f}" for name, figure in peers.items())
        ratio = own.rate(batch) / peers["torchvision"].rate(batch)
        what = f"bf16, batch {batch}"
        rates = f"{own.rate(batch):.1f}; {rates}; {ratio:.2f}x"
        rows.append(Row("training", f"{what}, images per second", rates, **setup.speed_goal(ratio, 2)))
        rows.append(Row("training", f"{what}, against the faster of both", f"{own.rate(batch) / best:.2f}x"))
        for when in ("seconds", "host"):
            times = ", ".join(f"{n} {1e3 * statistics.median(getattr(f, when)):.0f} ms" for n, f in figures.items())
            until = ", until the calls return" if when == "host" else ""
            rows.append(Row("training", f"{what}, time per step{until}", times))
        if setup.on_cuda:
            share = own.memory / peers["torchvision"].memory
            sizes = f"{own.memory / 1e9:.1f} GB; torchvision {peers['torchvision'].memory / 1e9:.1f} GB; {share:.2f}"
            rows.append(Row("training", f"{what}, peak memory", sizes, "at most 0.8", share <= 0.8))
    return rows


def step_times(setup: Setup) -> list[Row]:
    """Steps with other settings: that each is applied, and the time per step, without torchvision's."""
    batch = setup.batches[0]
    photos, cases = setup.load(batch), dict[str, tuple[str, dict]]()
    cases |= {arch: (arch, {}) for arch in ("v1", "v2", "detectron2")}
    cases |= {"clipping": ("v1", {"clip_grad_norm": 1.0}), "accumulation": ("v1", {"accumulate": 2})}
    rows = []
    for name, (arch, settings) in cases.items():
        state = state_of(setup, arch, photos, **settings)
        applied = train_step(state, pinned(setup, photos), 1).read().applied
        seconds = interleaved(setup, {name: own_step(setup, state, photos)})[name].seconds
        figure = f"{1e3 * statistics.median(seconds):.0f} ms"
        rows.append(Row("step_times", f"{name}, bf16, batch {batch}, time per step", figure, "applied", applied))
    return rows


def state_of(setup: Setup, arch: str, photos: Photos, **settings: Any) -> Training:
    if arch == "detectron2":
        path = setup.weights(photos, "v1")
        config = ModelConfig(91, arch, "frozen", min_size=setup.sides[0], max_size=setup.sides[1])
        network = build_model(config)
        network.load_state_dict(torch.load(path, weights_only=True)["model"])
    else:
        network = setup.networks(photos, arch)[0]
    network.to(setup.device, memory_format=torch.channels_last)
    return training_of(setup, network, setup.mixed(), **settings)


def own_step(setup: Setup, state: Training, photos: Photos) -> Callable[[], object]:
    """A step of train.py, whose result is read when the next has been started."""
    batch, pending = pinned(setup, photos), []

    def step() -> None:
        pending.append(train_step(state, batch, 1))
        if len(pending) > 1:
            pending.pop(0).read()

    return step


def pinned(setup: Setup, photos: Photos) -> Batch:
    images, targets = photos
    if setup.on_cuda:
        images, targets = [i.pin_memory() for i in images], [dict(t, masks=t["masks"].pin_memory()) for t in targets]
    return Batch(tuple(images), tuple(targets))


def inference(setup: Setup) -> list[Row]:
    rows = []
    for batch in (1, setup.batches[-1]):
        photos = setup.load(batch)
        ours, theirs = setup.networks(photos)
        network = ready_for_inference(ours.to(memory_format=torch.channels_last), setup.mixed()).to(setup.device)
        theirs.to(setup.device).eval()
        dense = floats_and_dense(photos)[0]
        contestants = {
            "this project": partial(infer, setup, network, photos[0]),
            "torchvision": partial(infer, setup, theirs, dense),
            "boxes and 28x28 masks": partial(infer, setup, network.detect, photos[0]),
        }
        rates = {name: figure.rate(batch) for name, figure in interleaved(setup, contestants).items()}
        ratio = rates["this project"] / rates["torchvision"]
        rows.append(Row("inference", f"bf16, batch {batch}, full-size masks, images per second",
                        f"{rates['this project']:.1f}; torchvision {rates['torchvision']:.1f}; {ratio:.2f}x",
                        **setup.speed_goal(ratio, 1.5)))  # fmt: skip
        rows.append(Row("inference", f"bf16, batch {batch}, boxes and 28x28 masks, images per second",
                        f"{rates['boxes and 28x28 masks']:.1f}"))  # fmt: skip
    return [*rows, evaluation_row(setup)]


@torch.inference_mode()
def infer(setup: Setup, network: Callable, images: list[torch.Tensor]) -> object:
    with setup.mixed().autocast():
        return network(to_device(images, setup.device))


def evaluation_row(setup: Setup) -> Row:
    """`detect_all` on the validation photos, loading and metrics included."""
    if importlib.util.find_spec("hotcoco") is None:
        return Row("inference", "evaluate", "skipped: hotcoco is not installed")
    dataset = CocoDetection(setup.photos, "val")
    model, _ = setup.networks(setup.load(1))
    loader = evaluation_loader(dataset, setup.batches[-1], 0 if setup.small else 4, setup.device)
    arguments = (dataset.coco, ClassTable.of_dataset(dataset), setup.device, setup.mixed())
    start = time.perf_counter()
    detect_all(model.to(setup.device, memory_format=torch.channels_last), loader, *arguments).metrics()
    return Row("inference", f"evaluate, {len(dataset)} photos, images per second",
               f"{len(dataset) / (time.perf_counter() - start):.1f}")  # fmt: skip


# --- loading and a whole run


def loading(setup: Setup) -> list[Row]:
    batch, rows = setup.batches[-1], []
    photos = setup.load(batch)
    step = own_step(setup, state_of(setup, "v1", photos), photos)
    rate = interleaved(setup, {"step": step})["step"].rate(batch)
    for workers in (1,) if setup.small else (1, 4, 8):
        settings = TrainSettings(batch_size=batch, workers=workers)
        dataset = CocoDetection(setup.photos, "train", transforms=training_transforms(settings))
        loader = training_loader(dataset, settings, pin_memory=setup.on_cuda)
        count, start = 0, None
        for epoch in range(1 if setup.small else 3):
            loader.batch_sampler.start_at(epoch)
            for images, _ in loader:
                start, count = (time.perf_counter(), 0) if start is None else (start, count + len(images))
        loaded = count / (time.perf_counter() - start)
        figure = f"{loaded:.1f}; the step {rate:.1f}; {loaded / rate:.2f}x"
        bound = setup.speed_goal(loaded / rate, 2) if workers == 8 else {}
        rows.append(Row("loading", f"{workers} workers, images per second", figure, **bound))
    return rows


def whole(setup: Setup) -> list[Row]:
    """train.py itself, steps of the larger batch: its rate after the first steps, beside the rate of the step alone."""
    batch, steps, ends, proposals = setup.batches[-1], 3 if setup.small else 25, [], []
    photos = setup.load(batch)
    step = own_step(setup, state_of(setup, "v1", photos), photos)
    rate = interleaved(setup, {"step": step})["step"].rate(batch)
    started = engine.train_step

    def timed(training: Training, *arguments: Any) -> Any:
        if not ends:  # train.py's network has just been built
            training.model.rpn.register_forward_hook(lambda *values: proposals.extend(map(len, values[2][0])))
        ends.append(time.perf_counter())
        return started(training, *arguments)

    engine.train_step = timed
    words = ["--data-path", str(setup.photos), "--device", str(setup.device), "--amp", "--batch-size", str(batch)]
    words += ["--pretrain", str(setup.weights(photos)), "--max-steps", str(steps)]
    words += ["--min-size", str(setup.sides[0]), "--max-size", str(setup.sides[1]), "--overwrite", "--lr", "1e-5"]
    words += ["--output-dir", str(setup.out / "whole"), "--epochs", "1000"]
    words += ["--proposals", "100", "--rois-per-image", "32"] if setup.small else []
    train_without_evaluation(words)
    warm = len(ends) // 4
    own = batch / statistics.median(b - a for a, b in zip(ends[warm:], ends[warm + 1 :]))  # between checkpoints
    mean = statistics.mean(proposals)
    return [
        Row("whole", f"train.py, {steps} steps of {batch}, images per second",
            f"{own:.1f}; the step alone {rate:.1f}; {own / rate:.2f}", **setup.speed_goal(own / rate, 0.9)),
        Row("whole", "proposals per image, of a network that proposes", f"{mean:.0f}", "50", mean >= 50),
    ]  # fmt: skip


# --- the profile


def profiled(setup: Setup) -> list[Row]:
    batch = setup.batches[-1]
    photos = setup.load(batch)
    step = own_step(setup, state_of(setup, "v1", photos), photos)
    for _ in range(1 if setup.small else 4):
        step()
    setup.synchronize()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if setup.on_cuda else [])
    with profile(activities=activities) as found:
        for _ in range(1 if setup.small else 4):
            step()
        setup.synchronize()
    if not setup.on_cuda:
        operators = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)[:15]
        return [Row("profile", e.key[:70], f"{e.self_cpu_time_total / 1e3:.1f} ms in {e.count}") for e in operators]
    return [Row("profile", f"batch {batch}: {name}", figure) for name, figure in kernel_figures(found.events())]


def kernel_figures(events: Iterable[Any]) -> list[tuple[str, str]]:
    """The share of time in which the device works, the largest gaps, and the kernels that take most.

    Annotations (`Optimizer.step#...`) span gaps, and appear on the device under the names that they have on the host.
    """
    events = list(events)
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    of_host = {e.name for e in events if e.device_type == torch.autograd.DeviceType.CPU}
    kernels = sorted(
        (e.time_range.start, e.time_range.end, e.name)
        for e in on_device
        if e.name not in of_host and not getattr(e, "is_user_annotation", False)
    )
    busy, gaps, end = 0.0, [], kernels[0][0]
    for start, stop, name in kernels:
        if start > end:
            gaps.append((start - end, name))
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    total = end - kernels[0][0]
    figures = [("share of time in which the device works", f"{busy / total:.3f}")]
    figures += [(f"gap before {name[:60]}", f"{gap / 1e3:.2f} ms") for gap, name in sorted(gaps)[:-6:-1]]
    times: dict[str, list[float]] = {}
    for start, stop, name in kernels:
        times.setdefault(name, []).append(stop - start)
    largest = sorted(times.items(), key=lambda item: -sum(item[1]))[:15]
    return figures + [(name[:60], f"{sum(t) / total:.1%} in {len(t)} kernels") for name, t in largest]
