"""Time the transform of a crowded photo, and the mask targets of its proposals.

    python benchmarks/crowded_photo.py
    python benchmarks/crowded_photo.py --objects 300 --side 60 --rounds 20

A photo of 640x480 with drawn ellipses, whose sides vary around --side pixels: 32 as in COCO's most crowded photos (half
of the objects there are smaller), 64 as in COCO overall. Both networks' transforms resize it to 800/1333, and 128
proposals near the objects get 28x28 targets. The peer is torchvision: GeneralizedRCNNTransform on dense masks, and
project_masks_on_boxes. The script fails if the results are not bit-identical.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from common import machine, parser
from measured_rows import compared, megabytes, peak_memory, progress, table, timed
from torch import Tensor
from torchvision.models.detection.roi_heads import project_masks_on_boxes as torchvisions_targets
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from network_files import InstanceMasks
from network_files.image_transform import ImageTransform
from network_files.masks.targets import project_masks_on_boxes
from train_utils.errors import one_line_errors
from train_utils.option_parsing import add_flag, positive

PROPOSALS, TARGET_SIZE = 128, 28
MEAN_AND_STD = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OBJECTS = (1, 10, 50, 150, 500)


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    photo = CrowdedPhoto(args.objects, args.side)
    what = f"{args.objects} objects of about {args.side} pixels"
    progress("memory")
    small = CrowdedPhoto(2, 16, size=(64, 64))
    own = peak_memory(photo.own_way, small.own_way) + photo.target["masks"].pixels.nbytes
    peer = peak_memory(photo.peers_way, small.peers_way) + photo.dense_target["masks"].nbytes
    photo.compare_results()
    rows = [
        timed("transform and mask targets", photo.own_way, photo.peers_way, args.rounds, 20),
        compared("memory for both, the given masks included", megabytes(own), megabytes(peer), peer / max(own, 1), 20),
        timed("transform", photo.own_transform, photo.peers_transform, args.rounds, None),
        timed("mask targets", photo.own_targets, photo.peers_targets, args.rounds, None),
        timed(
            "transform and mask targets, objects as large as COCO's",
            *ways(CrowdedPhoto(args.objects, 2 * args.side)),
            args.rounds,
            None,
        ),
    ]
    growth = [
        timed(f"objects: {count}", *ways(CrowdedPhoto(count, args.side)), args.rounds, None)
        for count in (OBJECTS[:2] if args.quick else OBJECTS)
    ]
    return f"{machine(torch.device('cpu'))}\n\n{table(what, rows)}\n{table('transform and mask targets', growth)}"


class CrowdedPhoto:
    """A photo with `count` objects, and the work of both sides on it."""

    def __init__(self, count: int, side: float, size: tuple[int, int] = (480, 640)):
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        height, width = size
        sides = np.exp(rng.normal(np.log(side), 0.7, (count, 2))).clip(4, (width - 1, height - 1)).astype(int)
        corners = rng.integers(0, (width, height) - sides)
        places = zip(corners.tolist(), sides.tolist())
        masks = InstanceMasks.from_crops([(x, y, ellipse(w, h)) for (x, y), (w, h) in places], size)
        self.image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        boxes = torch.from_numpy(np.concatenate((corners, corners + sides), axis=1)).float()
        self.target = {"boxes": boxes, "masks": masks}
        self.dense_target = {"boxes": boxes, "masks": masks.dense()}
        self.float_image = self.image / 255
        self.transform = ImageTransform(800, 1333, *MEAN_AND_STD)
        self.torchvisions = GeneralizedRCNNTransform(800, 1333, *MEAN_AND_STD)
        self.matched = torch.randint(count, (PROPOSALS,))
        self.shift = torch.randn(PROPOSALS, 4) * 0.08

    def own_transform(self) -> None:
        self.resized = self.transform([self.image], [self.target])[1][0]

    def peers_transform(self) -> None:
        self.dense_resized = self.torchvisions([self.float_image], [self.dense_target])[1][0]

    def own_targets(self) -> Tensor:
        proposals = self.proposals(self.resized["boxes"])
        return project_masks_on_boxes(self.resized["masks"], proposals, self.matched, TARGET_SIZE)

    def peers_targets(self) -> Tensor:
        proposals = self.proposals(self.dense_resized["boxes"])
        return torchvisions_targets(self.dense_resized["masks"], proposals, self.matched, TARGET_SIZE)

    def proposals(self, boxes: Tensor) -> Tensor:
        boxes = boxes[self.matched]
        return boxes + self.shift * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)

    def own_way(self) -> Tensor:
        self.own_transform()
        return self.own_targets()

    def peers_way(self) -> Tensor:
        self.peers_transform()
        return self.peers_targets()

    def compare_results(self) -> None:
        if not torch.equal(self.own_way(), self.peers_way()):
            raise RuntimeError("the mask targets differ from torchvision's")


def ways(photo: CrowdedPhoto) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    return photo.own_way, photo.peers_way


def ellipse(width: int, height: int) -> np.ndarray:
    """uint8 [height, width]."""
    y, x = np.ogrid[:height, :width]
    return (((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2 <= 0.25).astype(np.uint8)


def parse(arguments: Sequence[str]):
    p = parser(__doc__)
    p.add_argument("--objects", type=positive, default=150, help="of the photo (default: %(default)s)")
    p.add_argument("--side", type=positive, default=32, help="of an object, in pixels (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=7, help="timed runs of each (default: %(default)s)")
    add_flag(p, "--quick", "smallest settings; the figures mean nothing")
    args = p.parse_args(arguments)
    if args.quick:
        args.objects, args.rounds = 10, 1
    return args


if __name__ == "__main__":
    with one_line_errors():
        print(main(sys.argv[1:]))
