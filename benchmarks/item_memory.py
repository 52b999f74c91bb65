"""What a training item weighs, and what it takes to make one: compact masks against dense ones.

    python benchmarks/item_memory.py
    python benchmarks/item_memory.py --objects 300 --rounds 50

Ours is an item of CocoDetection. The other is made as torchvision's reference scripts make theirs: every polygon
decoded by pycocotools to a full-size plane, the planes stacked, the image as floats. Two photos: coco_tiny's most
crowded one; and its first of the most common size, which is given 100 objects, its own and those of others that size.
"""
import json
import shutil
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from common import coco_tiny, compare, machine, parser
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from my_dataset_coco import CocoDetection
from train_utils.arguments import positive
from train_utils.errors import one_line_errors, reading_input

ANNOTATIONS = Path("annotations") / "instances_train2017.json"


def main(args: Namespace) -> None:
    folder = coco_tiny()
    with reading_input():
        content = json.loads((folder / ANNOTATIONS).read_text())
    print(machine(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as scratch:
        crowded = most_crowded_photo(content)
        make_folder(folder, Path(scratch) / "crowded", content, crowded, objects_of(content, crowded))
        report("the most crowded photo", Path(scratch) / "crowded", args.rounds)
        common = photo_of_most_common_size(content)
        make_folder(folder, Path(scratch) / "many", content, common, gather_objects(content, common, args.objects))
        report(f"a photo with {args.objects} objects", Path(scratch) / "many", args.rounds)


def report(title: str, folder: Path, rounds: int) -> None:
    """Weigh and time the only item of a folder in COCO's layout."""
    dataset = CocoDetection(folder, "train")
    annotations = json.loads((folder / ANNOTATIONS).read_text())["annotations"]
    (image, target), (dense_image, dense_target) = dataset[0], reference_item(dataset.image_path(0), annotations)
    same = torch.equal(target["masks"].dense(), dense_target["masks"])
    verdict = "the same pixels" if same else "NOT the same pixels"
    height, width = image.shape[-2:]
    print(f"{title}: {width}x{height}, {len(target['labels'])} objects; both kinds of masks hold {verdict}")
    own_masks, dense_masks = weight(target["masks"].pixels, target["masks"].crops), weight(dense_target["masks"])
    own = weight(image, target["boxes"], target["labels"]) + own_masks
    dense = weight(dense_image, dense_target["boxes"], dense_target["labels"]) + dense_masks
    print(f"  {'':<14}{'masks':>14}{'whole item':>14}")
    for name, masks, item in (("compact", own_masks, own), ("dense", dense_masks, dense)):
        print(f"  {name:<14}{masks / 1e6:>11.2f} MB{item / 1e6:>11.2f} MB")
    print(f"  {'ratio':<14}{dense_masks / own_masks:>11.1f}   {dense / own:>11.1f}")
    make_dense = partial(reference_item, dataset.image_path(0), annotations)
    compare({"compact": partial(dataset.__getitem__, 0), "dense": make_dense}, rounds)


def weight(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def reference_item(path: Path, annotations: Sequence[dict]) -> tuple[Tensor, dict]:
    """What torchvision's references/detection does between a photo's file and the batch, step by step.

    Returns:
        Image float32 [3, H, W] in 0..1; `boxes` float32 [N, 4] x1y1x2y2, `labels` int64 [N], `masks` uint8 [N, H, W].
    """
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
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
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().to(torch.float32) / 255
    return image, {"boxes": boxes[keep], "labels": labels[keep], "masks": masks[keep]}


def objects_of(content: dict, photo: dict) -> list[dict]:
    """A photo's annotations without crowds."""
    return [a for a in content["annotations"] if a["image_id"] == photo["id"] and not a["iscrowd"]]


def most_crowded_photo(content: dict) -> dict:
    return max(content["images"], key=lambda photo: len(objects_of(content, photo)))


def photo_of_most_common_size(content: dict) -> dict:
    """The first in the file; in COCO they are 640x480."""
    ((size, _),) = Counter((p["height"], p["width"]) for p in content["images"]).most_common(1)
    return next(p for p in content["images"] if (p["height"], p["width"]) == size)


def gather_objects(content: dict, photo: dict, count: int) -> list[dict]:
    """Objects for one photo out of all photos of its size, its own first; the same ones again if they run out."""
    size = (photo["height"], photo["width"])
    others = [p for p in content["images"] if (p["height"], p["width"]) == size and p["id"] != photo["id"]]
    objects = [a for p in (photo, *others) for a in objects_of(content, p)]
    return [dict(a, id=i, image_id=photo["id"]) for i, a in enumerate(islice(cycle(objects), count), start=1)]


def make_folder(source: Path, folder: Path, content: dict, photo: dict, annotations: list[dict]) -> None:
    """A folder in COCO's layout with a training split of one photo."""
    for name in ("annotations", "train2017"):
        (folder / name).mkdir(parents=True)
    shutil.copy(source / "train2017" / photo["file_name"], folder / "train2017")
    (folder / ANNOTATIONS).write_text(json.dumps(dict(content, images=[photo], annotations=annotations)))


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--objects", type=positive, default=100, help="objects of the second photo (default: %(default)s)")
    p.add_argument("--rounds", type=positive, default=20, help="timed runs of each (default: %(default)s)")
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        main(parse_arguments())
