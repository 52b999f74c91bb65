"""Compute mean and standard deviation per channel of training images that are read as stored."""

import numpy as np
import torch

from dataset_files.dataset import InstanceDataset
from my_dataset_coco import read_image

MOST_IMAGES = 200  # sampled at regular intervals


def pixel_statistics(dataset: InstanceDataset) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel (1 if constant); bytes count as 0..1, as in the network."""
    number, count = len(dataset), 0
    mean = squares = torch.zeros((), dtype=torch.float64)
    for i in np.unique(np.linspace(0, number - 1, min(number, MOST_IMAGES)).round().astype(int)).tolist():
        image = read_image(dataset.image_path(i), form=dataset.form)
        pixels = image.flatten(1).double() / (255 if image.dtype == torch.uint8 else 1)
        own_mean, own = pixels.mean(dim=1), pixels.shape[1]
        shift, total = own_mean - mean, count + own
        # The parallel form of Chan, Golub and LeVeque (1983): no difference of large sums.
        squares = squares + (pixels - own_mean[:, None]).square().sum(dim=1) + shift.square() * (count * own / total)
        mean, count = mean + shift * (own / total), total
    deviation = (squares / count).sqrt()
    return mean.tolist(), torch.where(deviation > 0, deviation, 1.0).tolist()
