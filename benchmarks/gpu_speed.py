"""The parts of gpu_check.py that measure: training, inference, evaluation, loading, a whole run, the profile."""

import statistics
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial

import torch
from common import on_device
from gpu_correct import training_of
from gpu_setup import Photos, Row, Setup
from torch import nn
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile

from my_dataset_coco import CocoDetection
from network_files import MaskRCNN
from train_utils import engine
from train_utils.augmentation import training_transforms
from train_utils.classes import ClassTable
from train_utils.engine import Batch, to_device, train_step
from train_utils.evaluation import evaluate, ready_for_inference
from train_utils.loaders import evaluation_loader, training_loader
from train_utils.options import TrainSettings

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
    """Run blocks of calls of each contestant in turns, after one to warm up."""
    blocks, steps = (1, 1) if setup.small else (BLOCKS, STEPS)
    figures = {name: Figures() for name in contestants}
    for block in range(-1, blocks):
        for name, run in contestants.items():
            setup.synchronize()
            if setup.on_cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            for _ in range(steps):
                run()
            returned = time.perf_counter()
            setup.synchronize()
            if block >= 0:
                figures[name].seconds.append((time.perf_counter() - start) / steps)
                figures[name].host.append((returned - start) / steps)
            if setup.on_cuda:
                figures[name].memory = torch.cuda.max_memory_allocated()
    return figures


def training(setup: Setup) -> list[Row]:
    rows = []
    for batch in setup.batches:
        photos = setup.load(batch)
        ours, theirs = setup.networks(photos)
        contestants = {"this project": own_step(setup, ours, photos)}
        for name, layout in (("torchvision", torch.contiguous_format), ("channels last", torch.channels_last)):
            contestants[name] = torchvisions_step(setup, deepcopy(theirs).to(memory_format=layout), photos)
        figures = interleaved(setup, contestants)
        own, peers = figures.pop("this project"), figures
        best = max(figure.rate(batch) for figure in peers.values())
        rates = ", ".join(f"{name} {figure.rate(batch):.1f}" for name, figure in peers.items())
        ratio = own.rate(batch) / peers["torchvision"].rate(batch)
        what = f"bf16, batch {batch}"
        rows.append(Row("training", f"{what}, images per second", f"{own.rate(batch):.1f}; {rates}; {ratio:.2f}x", "2x",
                        ratio >= 2))  # fmt: skip
        rows.append(Row("training", f"{what}, against the faster of both", f"{own.rate(batch) / best:.2f}x"))
        rows.append(Row("training", f"{what}, host time per step until the calls return", ", ".join(
            f"{name} {1e3 * statistics.median(f.host):.0f} ms" for name, f in [("this project", own), *peers.items()]
        )))  # fmt: skip
        if setup.on_cuda:
            share = own.memory / peers["torchvision"].memory
            sizes = f"{own.memory / 1e9:.1f} GB; torchvision {peers['torchvision'].memory / 1e9:.1f} GB; {share:.2f}"
            rows.append(Row("training", f"{what}, peak memory", sizes, "0.8", share <= 0.8))
    return rows


def own_step(setup: Setup, network: MaskRCNN, photos: Photos) -> Callable[[], object]:
    """A step of train.py, whose result is read when the next has been started."""
    network.to(setup.device, memory_format=torch.channels_last)
    state = training_of(setup, network, setup.mixed())
    images, targets = photos
    if setup.on_cuda:
        images, targets = [i.pin_memory() for i in images], [dict(t, masks=t["masks"].pin_memory()) for t in targets]
    batch, pending = Batch(tuple(images), tuple(targets)), []

    def step() -> None:
        pending.append(train_step(state, batch, 1))
        if len(pending) > 1:
            pending.pop(0).read()

    return step


def torchvisions_step(setup: Setup, network: nn.Module, photos: Photos) -> Callable[[], object]:
    """A step of torchvision's reference script."""
    network.train().to(setup.device)
    optimizer = SGD([p for p in network.parameters() if p.requires_grad], lr=1e-5, momentum=0.9, weight_decay=1e-4)
    scaler, dense = setup.mixed().scaler(), setup.dense(photos)

    def step() -> None:
        images, targets = on_device(network, *dense, setup.device)
        with setup.mixed().autocast():
            loss = sum(network(images, targets).values())
        loss.item()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def inference(setup: Setup) -> list[Row]:
    rows = []
    for batch in (1, setup.batches[-1]):
        photos = setup.load(batch)
        ours, theirs = setup.networks(photos)
        network = ready_for_inference(ours.to(memory_format=torch.channels_last), setup.mixed()).to(setup.device)
        theirs.to(setup.device).eval()
        dense = setup.dense(photos)[0]
        contestants = {
            "this project": partial(infer, setup, network, photos[0]),
            "torchvision": partial(infer, setup, theirs, dense),
            "boxes and 28x28 masks": partial(infer, setup, network.detect, photos[0]),
        }
        rates = {name: figure.rate(batch) for name, figure in interleaved(setup, contestants).items()}
        ratio = rates["this project"] / rates["torchvision"]
        rows.append(Row("inference", f"bf16, batch {batch}, full-size masks, images per second",
                        f"{rates['this project']:.1f}; torchvision {rates['torchvision']:.1f}; {ratio:.2f}x", "1.5x",
                        ratio >= 1.5))  # fmt: skip
        rows.append(Row("inference", f"bf16, batch {batch}, boxes and 28x28 masks, images per second",
                        f"{rates['boxes and 28x28 masks']:.1f}"))  # fmt: skip
    return [*rows, evaluation_row(setup)]


@torch.inference_mode()
def infer(setup: Setup, network: Callable, images: list[torch.Tensor]) -> object:
    with setup.mixed().autocast():
        return network(to_device(images, setup.device))


def evaluation_row(setup: Setup) -> Row:
    """`evaluate` on the validation photos, loading and metrics included."""
    dataset = CocoDetection(setup.photos, "val")
    model, _ = setup.networks(setup.load(1))
    loader = evaluation_loader(dataset, setup.batches[-1], 0 if setup.small else 4, setup.device)
    arguments = (dataset.coco, ClassTable.of_dataset(dataset), setup.device, setup.mixed())
    start = time.perf_counter()
    evaluate(model.to(setup.device, memory_format=torch.channels_last), loader, *arguments)
    return Row("inference", f"evaluate, {len(dataset)} photos, images per second",
               f"{len(dataset) / (time.perf_counter() - start):.1f}")  # fmt: skip


# --- loading and a whole run


def loading(setup: Setup) -> list[Row]:
    batch, rows = setup.batches[-1], []
    photos = setup.load(batch)
    step = own_step(setup, setup.networks(photos)[0], photos)
    rate = interleaved(setup, {"step": step})["step"].rate(batch)
    settings = TrainSettings.parse("", [])
    for workers in (1,) if setup.small else (1, 4, 8):
        dataset = CocoDetection(setup.photos, "train", transforms=training_transforms(settings))
        loader = training_loader(dataset, batch, 3, workers, 0, pin_memory=setup.on_cuda)
        count, start = 0, None
        for epoch in range(1 if setup.small else 3):
            loader.batch_sampler.start_at(epoch)
            for images, _ in loader:
                start, count = (time.perf_counter(), 0) if start is None else (start, count + len(images))
        loaded = count / (time.perf_counter() - start)
        bound = {"bound": "2x the step's rate", "held": loaded >= 2 * rate} if workers == 8 else {}
        rows.append(
            Row("loading", f"{workers} workers, images per second", f"{loaded:.1f}; the step {rate:.1f}", **bound)
        )
    return rows


def whole(setup: Setup) -> list[Row]:
    """train.py itself, steps of the larger batch: its rate after the first steps, beside the rate of the step alone."""
    import train

    batch, steps, ends = setup.batches[-1], 3 if setup.small else 25, []
    photos = setup.load(batch)
    step = own_step(setup, setup.networks(photos)[0], photos)
    rate = interleaved(setup, {"step": step})["step"].rate(batch)
    started = engine.train_step

    def timed(*arguments):
        ends.append(time.perf_counter())
        return started(*arguments)

    engine.train_step = timed
    train.evaluate = lambda *_, **__: None  # the validation set may be large
    words = ["--data-path", str(setup.photos), "--device", str(setup.device), "--amp", "--batch-size", str(batch)]
    words += ["--pretrain", "False", "--norm", "frozen", "--trainable-backbone-layers", "3", "--max-steps", str(steps)]
    words += ["--min-size", str(setup.sides[0]), "--max-size", str(setup.sides[1]), "--overwrite", "--lr", "1e-5"]
    words += ["--output-dir", str(setup.out / "whole"), "--epochs", "1"]
    words += ["--proposals", "100", "--rois-per-image", "32"] if setup.small else []
    train.main(TrainSettings.parse("", words))
    warm = len(ends) // 4
    own = batch * (len(ends) - 1 - warm) / (ends[-1] - ends[warm])
    share = own / rate
    return [Row("whole", f"train.py, {steps} steps of {batch}, images per second",
                f"{own:.1f}; the step alone {rate:.1f}; {share:.2f}", "0.9", share >= 0.9)]  # fmt: skip


# --- the profile


def profiled(setup: Setup) -> list[Row]:
    batch = setup.batches[-1]
    photos = setup.load(batch)
    step = own_step(setup, setup.networks(photos)[0], photos)
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
    kernels = sorted(
        (e.time_range.start, e.time_range.end, e.name)
        for e in found.events()
        if e.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, gaps, end = 0.0, [], kernels[0][0]
    for start, stop, name in kernels:
        if start > end:
            gaps.append((start - end, name))
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    total = end - kernels[0][0]
    rows = [Row("profile", f"share of time in which the GPU works, batch {batch}", f"{busy / total:.3f}")]
    rows += [Row("profile", f"gap before {name[:60]}", f"{gap / 1e3:.2f} ms") for gap, name in sorted(gaps)[:-6:-1]]
    times: dict[str, list[float]] = {}
    for start, stop, name in kernels:
        times.setdefault(name, []).append(stop - start)
    largest = sorted(times.items(), key=lambda item: -sum(item[1]))[:15]
    rows += [Row("profile", name[:70], f"{sum(t) / total:.1%} in {len(t)} kernels") for name, t in largest]
    return rows
