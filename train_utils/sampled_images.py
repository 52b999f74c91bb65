"""Measure a sample of the training images: how well anchors fit the objects, and the statistics of the pixels."""

import numpy as np
import torch

from dataset_files.dataset import InstanceDataset
from my_dataset_coco import read_image
from network_files.anchors import AnchorGenerator, best_anchor_ious

FITS = 0.5  # IoU
MOST_FOR_BOXES, MOST_FOR_PIXELS = 1000, 200


def at_intervals(number: int, most: int) -> list[int]:
    """Choose at most `most` of `number` indices, at regular intervals."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int)).tolist()


def anchor_fit(dataset: InstanceDataset, generator: AnchorGenerator, min_size: int, max_size: int) -> str | None:
    """Describe how well the anchors fit the objects at the network's input size; None if there are no objects."""
    ious, sides = [torch.zeros(0)], [torch.zeros(0)]
    for i in at_intervals(len(dataset), MOST_FOR_BOXES):
        size = dataset.get_height_and_width(i)
        scale = min(min_size / min(size), max_size / max(size))
        boxes = dataset.boxes(i) * scale
        ious.append(best_anchor_ious(boxes, (max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)), generator))
        sides.append((boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt())
    best, lengths = torch.cat(ious), torch.cat(sides)
    if not len(best):
        return None
    smallest, middle = torch.quantile(lengths[:: 1 + len(lengths) // 2**24], torch.tensor([0.1, 0.5])).tolist()
    missed = int((best < FITS).sum())
    return (
        f"at --min-size {min_size}, {missed} of {len(best)} objects ({missed / len(best):.1%}) have no anchor with an "
        f"IoU of {FITS}; a tenth of all objects are below {smallest:.0f} x {smallest:.0f} px there, half below "
        f"{middle:.0f} x {middle:.0f}"
    )


def pixel_statistics(dataset: InstanceDataset) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation (1 if constant), after scaling 8-bit values to 0..1."""
    mean, squares, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for i in at_intervals(len(dataset), MOST_FOR_PIXELS):
        image = read_image(dataset.image_path(i), form=dataset.form)
        pixels = image.flatten(1).double() / (255 if image.dtype == torch.uint8 else 1)
        own_mean, own = pixels.mean(dim=1), pixels.shape[1]
        shift, total = own_mean - mean, count + own
        # The parallel form of Chan, Golub and LeVeque (1983): no difference of large sums.
        squares = squares + (pixels - own_mean[:, None]).square().sum(dim=1) + shift.square() * (count * own / total)
        mean, count = mean + shift * (own / total), total
    deviation = (squares / count).sqrt()
    return mean.tolist(), torch.where(deviation > 0, deviation, 1.0).tolist()
