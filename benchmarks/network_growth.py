"""Measure how the cost of a training step and of inference grows, for this project's network and torchvision's.

    python benchmarks/network_growth.py                                   # all tables, some minutes on two cores
    python benchmarks/network_growth.py --what size,objects --rounds 3
    python benchmarks/network_growth.py --amp --device cuda --base-size 800

Varied one at a time: the image's short side, the batch size, the number of classes, and the objects per photo. The
others stay at --base-size, one photo, 91 classes, and the photo's own objects. Both get the same weights, photos and
targets, and alternate; --amp runs both under the same autocast.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median

import torch
from common import as_in_torchvisions_reference, build_pair, compare, machine, parser, training_photos
from step_and_inference import inference, make_optimizer, training_step
from torch import Tensor

from network_files import InstanceMasks
from train_utils.device import Precision, choose_device
from train_utils.errors import one_line_errors
from train_utils.evaluation import ready_for_inference
from train_utils.option_parsing import add_flag, positive

SIZES = (320, 480, 640, 800, 1333)
BATCHES = (1, 2, 4)
CLASSES = (2, 91, 1204)  # one class, COCO, LVIS; background included
OBJECTS = (1, 10, 50, 150, 500)
TABLES = ("size", "batch", "classes", "objects")


def main(args: Namespace) -> None:
    device = choose_device(args.device)
    precision = Precision.choose(device, args.amp)
    print(machine(device))
    for table in args.what:
        rows = []
        for value, images, targets, size, classes in settings(table, args.base_size):
            print(f"{table} {value}", flush=True)
            rows.append((value, *measure(images, targets, size, classes, device, precision, args.rounds)))
        print(markdown(table, rows), flush=True)


def settings(table: str, base: int) -> Iterator[tuple[int, list[Tensor], list[dict], int, int]]:
    """Yield value, images, targets, short side and number of classes of each row of a table."""
    images, targets = training_photos(max(BATCHES))
    if table == "size":
        yield from ((size, images[:1], targets[:1], size, 91) for size in SIZES)
    elif table == "batch":
        yield from ((batch, images[:batch], targets[:batch], base, 91) for batch in BATCHES)
    elif table == "classes":
        yield from ((number, images[:1], with_labels_below(targets[:1], number), base, number) for number in CLASSES)
    else:
        yield from ((number, images[:1], [with_objects(images[0], number)], base, 91) for number in OBJECTS)


def measure(
    images: Sequence[Tensor],
    targets: Sequence[dict],
    size: int,
    classes: int,
    device: torch.device,
    precision: Precision,
    rounds: int,
) -> tuple[float, float, float, float]:
    """Return the median seconds of a step, ours and torchvision's, and of an inference, ours and torchvision's."""
    ours, theirs = build_pair(images, size, max(size * 5 // 3, size), num_classes=classes)
    ours.to(device, memory_format=torch.channels_last)
    theirs.to(device)
    dense = as_in_torchvisions_reference(images, targets)
    steps = {
        "this project": partial(training_step, ours, make_optimizer(ours), images, targets, device, precision),
        "torchvision": partial(training_step, theirs, make_optimizer(theirs), *dense, device, precision),
    }
    step = compare(steps, rounds)
    ready = ready_for_inference(ours, precision)
    theirs.eval()
    infer = compare(
        {
            "this project": partial(inference, ready, images, device, precision),
            "torchvision": partial(inference, theirs, dense[0], device, precision),
        },
        rounds,
    )
    return tuple(median(seconds) for seconds in (*step.values(), *infer.values()))


def with_labels_below(targets: Sequence[dict], classes: int) -> list[dict]:
    return [dict(target, labels=(target["labels"] - 1) % (classes - 1) + 1) for target in targets]


def with_objects(image: Tensor, number: int) -> dict:
    """Make a target of `number` ellipses, a tenth to a third of the image wide, at random places."""
    generator = torch.Generator().manual_seed(number)
    height, width = image.shape[-2:]
    crops, boxes = [], []
    for _ in range(number):
        share = 0.1 + 0.23 * torch.rand(2, generator=generator)
        h, w = (max(int(length * part), 2) for length, part in zip((height, width), share.tolist()))
        top, left = (int(torch.randint(0, room, (1,), generator=generator)) for room in (height - h, width - w))
        y, x = torch.linspace(-1, 1, h)[:, None], torch.linspace(-1, 1, w)
        crops.append((left, top, (x**2 + y**2 <= 1).numpy()))
        boxes.append([left, top, left + w, top + h])
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.randint(1, 91, (number,), generator=generator),
        "masks": InstanceMasks.from_crops(crops, (height, width)),
        "image_id": 0,
    }


def markdown(table: str, rows: Sequence[tuple[int, float, float, float, float]]) -> str:
    lines = [f"| {table} | step, ours | step, torchvision | ratio | inference, ours | inference, torchvision | ratio |"]
    lines.append("| --- " * 7 + "|")
    for value, own_step, their_step, own_inference, their_inference in rows:
        lines.append(
            f"| {value} | {own_step:.2f} s | {their_step:.2f} s | {their_step / own_step:.2f} | "
            f"{own_inference:.2f} s | {their_inference:.2f} s | {their_inference / own_inference:.2f} |"
        )
    return "\n".join(lines)


def tables(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(TABLES):
        raise ValueError(text)
    return names


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda, else cpu with a warning)")
    p.add_argument("--base-size", type=positive, default=320, help="short side where it is not varied (default: 320)")
    p.add_argument("--rounds", type=positive, default=2, help="timed runs of each (default: %(default)s)")
    p.add_argument("--what", type=tables, default=list(TABLES), help=f"{','.join(TABLES)} (default: all)")
    add_flag(p, "--amp", "mixed precision, for both")
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        main(parse_arguments())
