"""Draw contact sheets: many images side by side, with their objects."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dataset_files.atomic_files import refuse_overwriting, write_image
from dataset_files.dataset import InstanceDataset, files_of
from dataset_files.stored_images import to_picture
from network_files.boxes import size_of
from network_files.image_transform import ImageTransform
from network_files.mask_rcnn import IMAGENET_MEAN, IMAGENET_STD
from network_files.masks.paste import mask_crops
from train_utils.augmentation import training_sizes
from train_utils.classes import ClassTable
from train_utils.distributed import is_main, rank
from train_utils.errors import reading_input
from train_utils.evaluation import ready_for_inference
from train_utils.loaders import mix_seed
from train_utils.options import TrainSettings
from train_utils.training_state import RunState, Training
from train_utils.visual.drawing import draw_instances

BATCH = "batch.png"
SHOWN, LOOK_AHEAD = 8, 20  # images on a sheet of predictions; range in which to search for one with objects
LEAST_SCORE = 0.5
TILE, BATCH_TILE = 320, 640  # pixels, the side of a tile
MARGIN = 8
GREY = (32, 32, 32)


def contact_sheet(tiles: Sequence[Image.Image], columns: int, side: int = TILE) -> Image.Image:
    """Place images on a grid of squares of `side` pixels, at most `columns` in a row. Larger images are scaled down."""
    columns = min(len(tiles), columns)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), GREY)
    for number, tile in enumerate(tiles):
        tile = tile.copy()
        tile.thumbnail((side - MARGIN, side - MARGIN))
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * side + (side - tile.width) // 2, row * side + (side - tile.height) // 2))
    return sheet


def draw_target(image: Tensor, target: Mapping, names: Mapping[int, str], shown: Sequence[int] = ()) -> Image.Image:
    """Draw the objects of a target on their image [C, H, W]. `shown` selects the channels to draw, see `ImageForm`."""
    masks = [(left, top, crop.astype(bool)) for left, top, crop in target["masks"].resampled_crops()]
    classes = [names.get(label, f"class {label}") for label in target["labels"].tolist()]
    return draw_instances(to_picture(image.numpy(), shown), target["boxes"].numpy(), classes, None, masks)


def chosen_items(dataset: InstanceDataset, number: int = SHOWN) -> list[int]:
    """Choose evenly spaced items to show. Instead of an item without objects, prefer a close one with objects."""
    chosen = []
    for first, end in pairwise(round(k * len(dataset) / number) for k in range(number + 1)):
        if near := range(first, min(end, first + LOOK_AHEAD)):
            chosen.append(next((i for i in near if len(dataset.target(i)["labels"])), first))
    return chosen


class PredictionSheets:
    """Hook that draws predictions_{epoch}.png once an epoch has been evaluated."""

    def __init__(self, dataset: InstanceDataset, classes: ClassTable):
        self.dataset, self.classes = dataset, classes

    def before_step(self, state: RunState) -> None:
        """Draw the predictions of an epoch before the next epoch begins, when the epoch has been evaluated."""
        if state.ends_epoch(state.number):
            epoch, training = state.epoch_of(state.number), state.training
            with training.evaluation_weights():
                state.run.write_predictions(epoch, lambda: draw_predictions(training, self.dataset, self.classes))

    after_train = before_step


@torch.inference_mode()
def draw_predictions(training: Training, dataset: InstanceDataset, classes: ClassTable) -> Image.Image | None:
    """Draw a few images in pairs: ground truth on the left, detections on the right. None if no image is readable."""
    network, tiles = ready_for_inference(training.model, training.precision), []
    for i in chosen_items(dataset):
        try:
            image, target = dataset[i]
        except (ValueError, OSError):  # the evaluation has reported this
            continue
        with training.precision.autocast():
            (found,) = network.detect([image.to(training.device)])
        found = {name: value[found["scores"] >= LEAST_SCORE].float().cpu() for name, value in found.items()}
        crops = mask_crops(found["masks"], found["boxes"], size_of(image), network.continuous_paste)
        masks = [(left, top, (crop > 0.5).numpy()) for left, top, crop in crops]
        names = [classes.names.get(int(label), f"class {int(label)}") for label in found["labels"]]
        picture = to_picture(image.numpy(), dataset.form.shown)
        predicted = draw_instances(picture, found["boxes"].numpy(), names, found["scores"].numpy(), masks)
        tiles += [draw_target(image, target, classes.names, dataset.form.shown), predicted]
    return contact_sheet(tiles, columns=4) if tiles else None


def write_batch_sheet(
    loader: DataLoader, dataset: InstanceDataset, settings: TrainSettings, names: Mapping[int, str]
) -> None:
    """Write the run's first batch as batch.png into --output-dir, resized and padded as the network sees it."""
    images, targets = next(iter(loader))
    torch.manual_seed(mix_seed(settings.seed, 0, rank()))  # same seed as in the first step
    channels = settings.channels
    values = ([0.0] * channels, [1.0] * channels) if channels else (IMAGENET_MEAN, IMAGENET_STD)
    transform = ImageTransform(training_sizes(settings), settings.max_size, *values).train()
    batch, targets = transform(images, targets)
    mean, std = (torch.tensor(values)[:, None, None] for values in values)
    pixels = batch.tensors * std + mean
    if images[0].dtype == torch.uint8:
        pixels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    tiles = [draw_target(image, target, names, dataset.form.shown) for image, target in zip(pixels, targets)]
    if is_main():
        path, side = Path(settings.output_dir) / BATCH, max(BATCH_TILE, min(max(pixels.shape), 1024))
        sheet = contact_sheet(tiles, math.ceil(len(tiles) ** 0.5), side)
        with reading_input():
            refuse_overwriting(files_of(dataset), [path])
            write_image(path, sheet)
        height, width = pixels.shape[-2:]
        print(f"the first batch, {len(tiles)} images in a frame of {width}x{height}, is drawn in {path}", flush=True)
