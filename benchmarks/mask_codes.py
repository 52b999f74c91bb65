"""Time the conversion of an evaluated image's masks to COCO's run-length codes.

    python benchmarks/mask_codes.py
    python benchmarks/mask_codes.py --masks 300 --rounds 20

Mask probabilities of 28x28 with smooth outlines, and boxes of three sizes in an image of 640x480. The peer does the
same as torchvision's model and reference script: paste full-size masks, binarise, encode one by one with pycocotools.
The script fails if the codes are not identical byte for byte.
"""

import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from common import machine, parser
from measured_rows import table, timed
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from network_files.masks.paste import encode_masks
from train_utils.errors import one_line_errors
from train_utils.option_parsing import add_flag, positive

SIZE = (480, 640)
SIDES = {"small": 24, "as in COCO": 64, "large": 250}  # pixels, around which the boxes' sides vary
MASKS = (1, 10, 50, 100, 500)


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    rows = [row(f"boxes {name}", args.masks, side, args.rounds, 10) for name, side in SIDES.items()]
    counts = MASKS[:2] if args.quick else MASKS
    growth = [row(f"masks: {count}", count, SIDES["as in COCO"], args.rounds, None) for count in counts]
    title = f"{args.masks} masks of an image to codes"
    return f"{machine(torch.device('cpu'))}\n\n{table(title, rows)}\n{table('masks to codes', growth)}"


def row(what: str, count: int, side: float, rounds: int, to_reach: float | None) -> tuple:
    probs, boxes = detections(count, side)
    if encode_masks(probs, boxes, SIZE) != reference_codes(probs, boxes, SIZE):
        raise RuntimeError(f"{what}: the codes differ from those of pasted masks")
    arguments = (probs, boxes, SIZE)
    return timed(what, partial(encode_masks, *arguments), partial(reference_codes, *arguments), rounds, to_reach)


def detections(count: int, side: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return probabilities float32 [count, 1, 28, 28] of centred blobs, and boxes [count, 4] within SIZE."""
    rng = np.random.default_rng([seed, count])
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE
    sides = np.exp(rng.normal(np.log(side), 0.7, (count, 2))).clip(4, (width, height))
    corners = rng.uniform(0, (width, height) - sides)
    ramp = torch.linspace(-1, 1, 28)
    hill = 6 * (0.7 - ramp[:, None] ** 2 - ramp**2)
    waves = F.interpolate(torch.randn((count, 1, 5, 5), generator=generator), size=(28, 28), mode="bicubic")
    return (hill + 1.5 * waves).sigmoid(), torch.from_numpy(np.concatenate((corners, corners + sides), axis=1)).float()


def reference_codes(probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict]:
    """Paste like torchvision's model, and encode like its reference script."""
    masks = paste_masks_in_image(probs, boxes, size) > 0.5
    return [coco_mask.encode(np.array(m[0, :, :, np.newaxis], dtype=np.uint8, order="F"))[0] for m in masks]


def parse(arguments: Sequence[str]):
    p = parser(__doc__)
    p.add_argument("--masks", type=positive, default=100, help="of an image (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=9, help="timed runs of each (default: %(default)s)")
    add_flag(p, "--quick", "smallest settings; the figures mean nothing")
    args = p.parse_args(arguments)
    if args.quick:
        args.masks, args.rounds = 5, 1
    return args


if __name__ == "__main__":
    with one_line_errors():
        print(main(sys.argv[1:]))
