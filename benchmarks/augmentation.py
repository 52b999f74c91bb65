"""Measure how many training items per second one loader worker makes, with each augmentation.

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --rounds 20

Items are coco_tiny's training photos, as train.py loads them with one thread. Each row is measured in turns with items
as before, which are flipped only; the ratio is how much faster those are. With copy-paste the time includes the
collating of batches of 4, in which the images are resized; other rows leave that to the network.
"""

import sys
from collections.abc import Callable, Sequence

import torch
from common import coco_tiny, machine, parser
from measured_rows import in_turns, milliseconds, progress, table

import transforms
from my_dataset_coco import CocoDetection
from train_utils.errors import one_line_errors, reading_input
from train_utils.option_parsing import add_flag, positive

FLIP = transforms.RandomHorizontalFlip()
BATCH = 4
ROWS: dict[str, tuple[Sequence[transforms.Transform], Callable[[Sequence], tuple]]] = {
    "--data-augmentation none": ((), transforms.collate_fn),
    "--vflip": ((FLIP, transforms.RandomVerticalFlip()), transforms.collate_fn),
    "--color-jitter 0.4": ((FLIP, transforms.ColorJitter(0.4)), transforms.collate_fn),
    "--data-augmentation lsj": ((transforms.ScaleJitter(1024), FLIP), transforms.collate_fn),
    "lsj, --use-copypaste": ((transforms.ScaleJitter(1024), FLIP), transforms.CopyPaste()),
}
HEADER = ("", "items per second and worker", "flips only", "time per item", "flips only", "ratio")


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with reading_input():
            plain = items(args.photos, (FLIP,), transforms.collate_fn)
            rows = [
                row(name, args.photos, items(args.photos, *parts), plain, args.rounds) for name, parts in ROWS.items()
            ]
    finally:
        torch.set_num_threads(threads)
    return f"{machine(torch.device('cpu'))}\n\n{table(f'items of {args.photos} photos, one worker', rows, HEADER)}"


def items(
    photos: int, chosen: Sequence[transforms.Transform], collate: Callable[[Sequence], tuple]
) -> Callable[[], None]:
    """Return a function that loads all items once, in batches."""
    dataset = CocoDetection(coco_tiny(), "train", transforms.Compose(chosen))

    def load() -> None:
        torch.manual_seed(0)
        for first in range(0, photos, BATCH):
            collate([dataset[i] for i in range(first, min(first + BATCH, photos))])

    return load


def row(name: str, photos: int, own: Callable[[], None], plain: Callable[[], None], rounds: int) -> tuple:
    progress(name)
    ours, before, ratio = in_turns(own, plain, rounds)
    rates = [f"{photos / seconds:.0f}" for seconds in (ours, before)]
    return (name, *rates, *(milliseconds(seconds / photos) for seconds in (ours, before)), f"{1 / ratio:.2f}x")


def parse(arguments: Sequence[str]):
    p = parser(__doc__)
    p.add_argument("--photos", type=positive, default=80, help="of coco_tiny, at most 80 (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=7, help="timed runs of each (default: %(default)s)")
    add_flag(p, "--quick", "smallest settings; the figures mean nothing")
    args = p.parse_args(arguments)
    if args.quick:
        args.photos, args.rounds = 4, 1
    return args


if __name__ == "__main__":
    with one_line_errors():
        print(main(sys.argv[1:]))
