"""Draw contact sheets: many images side by side, with their objects."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dataset_files.atomic_files import replacing
from network_files.image_transform import ImageTransform
from network_files.mask_rcnn import IMAGENET_MEAN, IMAGENET_STD
from train_utils.augmentation import training_sizes
from train_utils.distributed import is_main, rank
from train_utils.errors import reading_input
from train_utils.loaders import mix_seed
from train_utils.options import TrainSettings
from train_utils.visual.drawing import draw_instances

BATCH = "batch.png"
TILE, BATCH_TILE = 320, 640  # pixels, the side of a tile
MARGIN = 8
GREY = (32, 32, 32)


def contact_sheet(tiles: Sequence[Image.Image], columns: int, side: int = TILE) -> Image.Image:
    """Place images on a grid of squares of `side` pixels, row by row; larger ones are reduced.

    Args:
        columns: the most images in a row.
    """
    columns = min(len(tiles), columns)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), GREY)
    for number, tile in enumerate(tiles):
        tile = tile.copy()
        tile.thumbnail((side - MARGIN, side - MARGIN))
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * side + (side - tile.width) // 2, row * side + (side - tile.height) // 2))
    return sheet


def draw_target(image: Tensor, target: Mapping, names: Mapping[int, str]) -> Image.Image:
    """Draw the objects of a target on their image, uint8 [3, H, W]; `masks` are InstanceMasks in its frame."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    masks = [(left, top, crop.astype(bool)) for left, top, crop in target["masks"].in_current_frame().all_crops()]
    classes = [names.get(label, f"class {label}") for label in target["labels"].tolist()]
    return draw_instances(picture, target["boxes"].numpy(), classes, None, masks)


def write_batch_sheet(loader: DataLoader, settings: TrainSettings, names: Mapping[int, str]) -> None:
    """Write the run's first batch as the network sees it, resized and padded, as batch.png into --output-dir."""
    images, targets = next(iter(loader))
    torch.manual_seed(mix_seed(settings.seed, 0, rank()))  # as the first step does
    transform = ImageTransform(training_sizes(settings), settings.max_size, IMAGENET_MEAN, IMAGENET_STD).train()
    batch, targets = transform(images, targets)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((batch.tensors * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    tiles = [draw_target(image, target, names) for image, target in zip(pixels, targets)]
    if is_main():
        path = Path(settings.output_dir) / BATCH
        sheet = contact_sheet(
            tiles, columns=math.ceil(len(tiles) ** 0.5), side=max(BATCH_TILE, min(max(pixels.shape), 1024))
        )
        with reading_input():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                sheet.save(file, format="PNG")
        height, width = pixels.shape[-2:]
        print(f"the first batch, {len(tiles)} images in a frame of {width}x{height}, is drawn in {path}", flush=True)
