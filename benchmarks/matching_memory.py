"""Count the peak of memory in RPN matching, for one image of 800x1333 and many objects.

    python benchmarks/matching_memory.py                          # 10, 100, 300 and 1,000 objects
    python benchmarks/matching_memory.py --objects 10,100 --real  # also compare the matches, with real boxes

Counts the bytes of all tensors that exist at once, those of the boxes excluded: in chunks of objects as the network
matches, with all objects at once, and by torchvision's box_iou and Matcher. Tensors of the "meta" device have no
values, so that gigabytes are counted without being allocated; with --real they have, and all matches must be equal.
torchvision's matcher needs values, so it runs only then.
"""

import weakref
from argparse import Namespace
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from common import parser
from device_waits import numbers
from measured_rows import table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection._utils import Matcher as TorchvisionsMatcher
from torchvision.ops import box_iou

from network_files import matching
from network_files.anchors import AnchorGenerator
from network_files.matching import Matcher
from train_utils.errors import one_line_errors
from train_utils.option_parsing import add_flag

SIZE = 800, 1344  # of the padded image
LEVELS = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
THRESHOLDS = 0.7, 0.3, True
HEADER = ("", "in chunks, as here", "all at once", "torchvision")


class Peak(TorchDispatchMode):
    """Context that counts the bytes of the tensors made in it; `bytes` is the most that existed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.bytes = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given | self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.bytes = max(self.bytes, self.now)
        return result

    def free(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def main(args: Namespace) -> None:
    device = torch.device("cpu" if args.real else "meta")
    levels = [torch.empty(1, 1, *size, device=device) for size in LEVELS]
    anchors = torch.cat(AnchorGenerator().to(device)(SIZE, levels))
    rows = []
    for number in args.objects:
        corner = torch.rand(number, 2, device=device) * 700
        boxes = torch.cat((corner, corner + 5 + torch.rand(number, 2, device=device) * 100), dim=1)
        given = boxes[None], torch.full((1,), number, device=device), anchors[None]
        own, peak = peak_of(Matcher(*THRESHOLDS), *given)
        with mock.patch.object(matching, "PAIRS_AT_ONCE", 2**62):
            at_once, peak_at_once = peak_of(Matcher(*THRESHOLDS), *given)
        theirs, peak_theirs = peak_of(torchvisions_matches, boxes, anchors) if args.real else (None, None)
        if theirs is not None and not (torch.equal(own[0], theirs) and torch.equal(own, at_once)):
            raise SystemExit(f"{number} objects: the matches differ")
        rows.append((number, *(megabytes(count) for count in (peak, peak_at_once, peak_theirs))))
    print(table(f"{len(anchors)} anchors, objects", rows, HEADER))


def torchvisions_matches(boxes: Tensor, anchors: Tensor) -> Tensor:
    return TorchvisionsMatcher(*THRESHOLDS)(box_iou(boxes, anchors))


def peak_of(run: Callable[..., Tensor], *arguments: Tensor) -> tuple[Tensor, int]:
    with Peak() as peak:
        return run(*arguments), peak.bytes


def megabytes(count: int | None) -> str:
    return "not run" if count is None else f"{count / 1e6:,.0f} MB"


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--objects", type=numbers, default=[10, 100, 300, 1000], help="separated by commas")
    add_flag(p, "--real", "real boxes: compare the matches, and count torchvision's")
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        main(parse_arguments())
