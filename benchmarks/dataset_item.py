"""Measure the time to load a training item, and its size in bytes.

    python benchmarks/dataset_item.py
    python benchmarks/dataset_item.py --rounds 20

Ours is an item of CocoDetection as in train.py, with the flip. The peer follows torchvision's reference scripts step by
step: Pillow, every polygon to a full-size plane by pycocotools, PILToTensor, ToDtype, the same flip. Both use one
thread, like a loader worker, on coco_tiny's training photos; the script fails if pixels, boxes or masks differ. The
table of growth gives coco_tiny's first photo of 640x480 more and more objects, its own and those of similar photos.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch
import torchvision.transforms.functional as F
from common import coco_tiny, machine, parser
from measured_rows import compared, in_turns, megabytes, progress, table, timed
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor

from my_dataset_coco import CocoDetection
from train_utils.errors import one_line_errors, reading_input
from train_utils.option_parsing import add_flag, positive
from transforms import RandomHorizontalFlip

ANNOTATIONS = Path("annotations") / "instances_train2017.json"
OBJECTS = (1, 10, 50, 150, 500)


def main(arguments: Sequence[str]) -> str:
    args = parse(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with reading_input(), tempfile.TemporaryDirectory() as scratch:
            rows = whole_set(args.photos, args.rounds)
            growth = [
                one_photo(count, Path(scratch) / str(count), args.rounds)
                for count in (OBJECTS[:2] if args.quick else OBJECTS)
            ]
    finally:
        torch.set_num_threads(threads)
    title = f"items of {args.photos} photos, one worker"
    return f"{machine(torch.device('cpu'))}\n\n{table(title, rows)}\n{table('one item', growth)}"


def whole_set(photos: int, rounds: int) -> list[tuple]:
    own = CocoDetection(coco_tiny(), "train", RandomHorizontalFlip())
    peer = ReferenceDataset(coco_tiny())
    flipped = CocoDetection(coco_tiny(), "train", RandomHorizontalFlip(1.0))
    weights = [[0, 0], [0, 0]]
    for i in range(photos):
        number = peer.ids.index(own[i][1]["image_id"])
        ours, theirs = flipped[i], peer.item(number, flip=True)
        check_same(ours, theirs)
        masks = ours[1]["masks"]
        for k, parts in enumerate(((ours[0], masks.pixels, masks.crops), (theirs[0], theirs[1]["masks"]))):
            weights[k][0] += weight(*parts[1:])
            weights[k][1] += weight(*parts, ours[1]["boxes"], ours[1]["labels"])
    progress("items")
    ours, theirs, ratio = in_turns(
        lambda: [own[i] for i in range(photos)], lambda: [peer[i] for i in range(photos)], rounds
    )
    return [
        compared("items per second", f"{photos / ours:.0f}", f"{photos / theirs:.0f}", ratio, 2),
        *(
            compared(f"{what}, bytes per item", megabytes(o / photos), megabytes(t / photos), t / o, None)
            for what, o, t in zip(("masks", "image, boxes and masks"), *weights)
        ),
    ]


def one_photo(count: int, folder: Path, rounds: int) -> tuple:
    content = json.loads((coco_tiny() / ANNOTATIONS).read_text())
    photo = next(p for p in content["images"] if (p["height"], p["width"]) == (480, 640))
    make_folder(coco_tiny(), folder, content, photo, gather_objects(content, photo, count))
    own, peer = CocoDetection(folder, "train", RandomHorizontalFlip()), ReferenceDataset(folder)
    return timed(f"objects: {count}", partial(own.__getitem__, 0), partial(peer.__getitem__, 0), rounds, None)


class ReferenceDataset:
    """torchvision's CocoDetection with the transforms of its references/detection."""

    def __init__(self, root: Path):
        self.folder = root / "train2017"
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(str(root / ANNOTATIONS))
        self.ids = sorted(self.coco.imgs)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        return self.item(i, flip=torch.rand(1).item() < 0.5)

    def item(self, i: int, flip: bool) -> tuple[Tensor, dict]:
        """Image float32 [3, H, W] in 0..1; `boxes` float32 [N, 4] x1y1x2y2, `labels` [N], `masks` uint8 [N, H, W]."""
        picture = Image.open(self.folder / self.coco.loadImgs(self.ids[i])[0]["file_name"]).convert("RGB")
        annotations = self.coco.loadAnns(self.coco.getAnnIds(self.ids[i]))
        annotations = [a for a in annotations if a["iscrowd"] == 0]
        width, height = picture.size
        boxes = torch.as_tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=width)
        boxes[:, 1::2].clamp_(min=0, max=height)
        labels = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        masks = []
        for annotation in annotations:
            planes = coco_mask.decode(coco_mask.frPyObjects(annotation["segmentation"], height, width))
            masks.append(torch.as_tensor(planes, dtype=torch.uint8).any(dim=2))
        masks = torch.stack(masks)
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        boxes, labels, masks = boxes[keep], labels[keep], masks[keep]
        if flip:
            picture, masks = F.hflip(picture), masks.flip(-1)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        image = F.convert_image_dtype(F.pil_to_tensor(picture), torch.float)
        return image, {"boxes": boxes, "labels": labels, "masks": masks}


def check_same(own: tuple[Tensor, dict], peer: tuple[Tensor, dict]) -> None:
    same = torch.equal(own[0] / 255, peer[0]) and torch.equal(own[1]["masks"].dense(), peer[1]["masks"].to(torch.uint8))
    if not same or not torch.allclose(own[1]["boxes"], peer[1]["boxes"], rtol=0, atol=1e-3):
        raise RuntimeError(f"the items of image {own[1]['image_id']} differ")


def weight(*tensors: Tensor) -> int:
    """Return the size in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gather_objects(content: dict, photo: dict, count: int) -> list[dict]:
    """Collect objects for one photo from all photos of its size, its own first, repeated if there are too few."""
    size = (photo["height"], photo["width"])
    others = [p for p in content["images"] if (p["height"], p["width"]) == size and p["id"] != photo["id"]]
    objects = [
        a for p in (photo, *others) for a in content["annotations"] if a["image_id"] == p["id"] and not a["iscrowd"]
    ]
    return [dict(a, id=i, image_id=photo["id"]) for i, a in enumerate(islice(cycle(objects), count), start=1)]


def make_folder(source: Path, folder: Path, content: dict, photo: dict, annotations: list[dict]) -> None:
    """Make a folder in COCO's layout with a training split of one photo."""
    for name in ("annotations", "train2017"):
        (folder / name).mkdir(parents=True)
    shutil.copy(source / "train2017" / photo["file_name"], folder / "train2017")
    (folder / ANNOTATIONS).write_text(json.dumps(dict(content, images=[photo], annotations=annotations)))


def parse(arguments: Sequence[str]):
    p = parser(__doc__)
    p.add_argument("--photos", type=positive, default=80, help="of coco_tiny, at most 80 (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=7, help="timed runs of each (default: %(default)s)")
    add_flag(p, "--quick", "smallest settings; the figures mean nothing")
    args = p.parse_args(arguments)
    if args.quick:
        args.photos, args.rounds = 2, 1
    return args


if __name__ == "__main__":
    with one_line_errors():
        print(main(sys.argv[1:]))
