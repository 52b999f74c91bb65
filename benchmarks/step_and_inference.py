"""Time a training step and inference of this project's network and torchvision's, with the same weights and photos.

    python benchmarks/step_and_inference.py                                        # on the GPU if there is one
    python benchmarks/step_and_inference.py --device cpu --min-size 320 --max-size 480
    python benchmarks/step_and_inference.py --amp --batch-size 8 --rounds 20 --what train

Ours runs as in train.py: channels last, uint8 images, compact masks, fused SGD. torchvision's runs as in its reference
scripts: contiguous, float images, dense masks, plain SGD. With --amp ours computes in bf16 (fp16 where a GPU lacks it);
torchvision's in float32, under the same autocast, and under it with channels last. The losses and scores of both are
printed too, to show that both do the same work, and finally a table of ratios with the share that ours reaches of the
machine's limit: the operations of its convolutions and matrix products at the measured rate of `torch.mm`.
"""

import math
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from statistics import median

import torch
from common import as_in_torchvisions_reference, build_pair, describe, machine, on_device, parser, training_photos
from measured_rows import compared, in_turns, matrix_rate, milliseconds, ratio, table
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.flop_counter import FlopCounterMode

from network_files import MaskRCNN
from train_utils.device import (
    MMAP_MAX,
    MMAP_THRESHOLD,
    TRIM_THRESHOLD,
    Precision,
    choose_device,
    keep_freed_memory,
    set_malloc,
)
from train_utils.errors import one_line_errors
from train_utils.evaluation import ready_for_inference
from train_utils.option_parsing import add_flag, positive

WORK = {
    "train": "training step: forward, backward, SGD",
    "inference": "inference: boxes, labels, scores, full-size masks",
}
# Goals, as torchvision's time over ours: in float32; in low precision against torchvision in float32 and under the
# same autocast; and the share of the limit in low precision.
GOALS = {"train": (1.15, 2.5, 1.3, 0.5), "inference": (1.3, 3, None, None)}
# A network, its images and targets, and the precision that it computes in.
Contestant = tuple[nn.Module, Sequence[Tensor], Sequence[dict], Precision]


def main(args: Namespace) -> None:
    device = choose_device(args.device)
    photos = training_photos(args.batch_size)
    contestants = contestants_of(args, photos, device)
    print(machine(device))
    print(f"photos: {describe(*photos)}; short side {args.min_size}, long side at most {args.max_size}")
    rows = []
    for name in args.what:
        runs, results = (training_runs if name == "train" else inference_runs)(contestants, device)
        print(f"{WORK[name]}; {args.rounds} rounds")
        times = in_turns(runs, args.rounds, usual_memory_of_peers(runs))
        print_differences(results)
        fused = {torch.ops.mkldnn._convolution_pointwise: operations_of_fused}
        with FlopCounterMode(display=False, custom_mapping=fused) as counter:
            runs[next(iter(runs))]()
        what = WORK[name].partition(":")[0]
        rows += summary(what, times, counter.get_total_flops(), GOALS[name], contestants, device)
    print(table(f"{args.batch_size} photos at {args.min_size}/{args.max_size}", rows))


def usual_memory_of_peers(runs: Mapping[str, Callable[[], object]]) -> Callable[[str], None]:
    """Give this project's runs the memory that `choose_device` keeps, and others glibc's defaults, which return it.

    So after others, this project's warm up again.
    """
    first = kept = next(iter(runs))

    def prepare(name: str) -> None:
        nonlocal kept
        if name != first:
            usual_memory()
        elif kept != first:
            keep_freed_memory()
            runs[first]()
        kept = name

    return prepare


def usual_memory() -> None:
    """Restore glibc's own settings after large tensors have been freed (mallopt(3)); undoes `keep_freed_memory`."""
    set_malloc({MMAP_MAX: 65536, MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20})


def print_differences(results: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Print each one's losses or scores, and how far they are from those of the first of torchvision's."""
    reference = list(results.values())[1]
    for name, values in results.items():
        as_many = values.keys() == reference.keys()
        apart = max((values[k] - v).abs().max().item() for k, v in reference.items()) if as_many else float("inf")
        shown = ", ".join(f"{key} {value.mean():.6f}" for key, value in values.items())
        print(f"  {name}: {shown}; differs by at most {apart:.1e}")


def operations_of_fused(
    _input: Sequence[int], first: Sequence[int], second: object, *_: object, out_shape: Sequence[int]
) -> int:
    """Floating-point operations of a convolution of `fused_convolution`, from shapes, [B, C_out, H', W'] in the end."""
    weight = second if first == out_shape else first  # after the shortcut, if there is one
    return 2 * math.prod(out_shape) * math.prod(weight[1:])  # type: ignore[index]


def summary(
    what: str,
    times: Mapping[str, Sequence[float]],
    flop: int,
    goals: Sequence[float | None],
    contestants: Mapping[str, Contestant],
    device: torch.device,
) -> list[tuple]:
    """Return rows of the table: ours against each of torchvision's, and against the limit in our precision."""
    (own, seconds), *peers = times.items()
    dtype = contestants[own][3].dtype
    full_goal, mixed_goal, same_goal, limit_goal = goals
    rows = []
    for i, (peer, theirs) in enumerate(peers):
        goal = full_goal if dtype is None else (mixed_goal if i == 0 else same_goal)
        figures = milliseconds(median(seconds)), milliseconds(median(theirs))
        rows.append(compared(f"{what}, {own} and {peer}", *figures, ratio(seconds, theirs), goal))
    rate, taken = matrix_rate(dtype or torch.float32, device), median(seconds)
    name = f"{what}; the limit: {flop / 1e9:,.0f} GFLOP at {rate / 1e9:,.0f} GFLOP/s"
    figures = milliseconds(taken), milliseconds(flop / rate)
    return [*rows, compared(name, *figures, flop / rate / taken, None if dtype is None else limit_goal)]


def contestants_of(
    args: Namespace, photos: tuple[list[Tensor], list[dict]], device: torch.device
) -> dict[str, Contestant]:
    """Return the contestants by name: ours first, torchvision's in float32 second."""
    ours, theirs = build_pair(photos[0], args.min_size, args.max_size, args.weights)
    ours.to(device, memory_format=torch.channels_last)
    theirs.to(device)
    dense = as_in_torchvisions_reference(*photos)
    full = Precision.choose(device, amp=False)
    if not args.amp:
        return {"this project": (ours, *photos, full), "torchvision": (theirs, *dense, full)}
    mixed = Precision.choose(device, amp=True)
    dtype = str(mixed.dtype).removeprefix("torch.")
    return {
        f"this project, {dtype}": (ours, *photos, mixed),
        "torchvision, float32": (theirs, *dense, full),
        f"torchvision, {dtype}": (deepcopy(theirs), *dense, mixed),
        f"torchvision, {dtype}, channels last": (deepcopy(theirs).to(memory_format=torch.channels_last), *dense, mixed),
    }


def training_runs(
    contestants: Mapping[str, Contestant], device: torch.device
) -> tuple[dict[str, Callable[[], None]], dict[str, dict[str, Tensor]]]:
    """Return the steps by name, and the losses of each, which are known when it has run."""
    losses: dict[str, dict[str, Tensor]] = {name: {} for name in contestants}
    optimizers = {name: make_optimizer(network) for name, (network, *_) in contestants.items()}

    def step(name: str) -> None:
        network, images, targets, precision = contestants[name]
        losses[name] = training_step(network, optimizers[name], images, targets, device, precision)

    return {name: partial(step, name) for name in contestants}, losses


def make_optimizer(network: nn.Module) -> Optimizer:
    """Make an SGD with learning rate 0, so that every round does the same work on the same weights; ours is fused."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    return SGD(trainable, lr=0.0, momentum=0.9, weight_decay=1e-4, fused=isinstance(network, MaskRCNN))


def training_step(
    network: nn.Module,
    optimizer: Optimizer,
    images: Sequence[Tensor],
    targets: Sequence[dict],
    device: torch.device,
    precision: Precision,
) -> dict[str, Tensor]:
    """Do a training step like `train_one_epoch`, in short form, and return the losses."""
    network.train()
    torch.manual_seed(0)
    scaler = precision.scaler()
    images, targets = on_device(network, images, targets, device)
    with precision.autocast():
        losses = network(images, targets)
        loss = sum(losses.values())
    loss.item()
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return {name: value.detach().cpu() for name, value in losses.items()}


def inference_runs(
    contestants: Mapping[str, Contestant], device: torch.device
) -> tuple[dict[str, Callable[[], None]], dict[str, dict[str, Tensor]]]:
    """Return the inferences by name, and the ranked scores of each, which are known when it has run."""
    scores: dict[str, dict[str, Tensor]] = {name: {} for name in contestants}
    ready = {
        name: ready_for_inference(network, precision) if isinstance(network, MaskRCNN) else network.eval()
        for name, (network, _, _, precision) in contestants.items()
    }

    def infer(name: str) -> None:
        _, images, _, precision = contestants[name]
        found = inference(ready[name], images, device, precision)
        scores[name] = {f"{len(each)} scores of photo {i}": each for i, each in enumerate(found)}

    return {name: partial(infer, name) for name in contestants}, scores


@torch.inference_mode()
def inference(network: nn.Module, images: Sequence[Tensor], device: torch.device, precision: Precision) -> list[Tensor]:
    with precision.autocast():
        detections = network([image.to(device, non_blocking=True) for image in images])
    return [detection["scores"].float().cpu() for detection in detections]


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda, else cpu with a warning)")
    p.add_argument("--min-size", type=positive, default=800, help="short side of the input (default: %(default)s)")
    p.add_argument("--max-size", type=positive, default=1333, help="long side's limit (default: %(default)s)")
    p.add_argument("-b", "--batch-size", type=positive, default=2, help="photos (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=5, help="timed runs of each (default: %(default)s)")
    p.add_argument("--weights", help="Mask R-CNN weights of COCO's 90 classes for both (default: drawn at random)")
    add_flag(p, "--amp", "mixed precision")
    p.add_argument("--what", default=list(WORK), type=work, help="train, inference or train,inference (default: both)")
    return p.parse_args()


def work(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(WORK):
        raise ValueError(text)
    return names


if __name__ == "__main__":
    with one_line_errors():
        main(parse_arguments())
