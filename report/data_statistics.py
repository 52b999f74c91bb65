"""Measure a split: objects per image and class, their sizes and shapes, and which classes occur together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset_files.dataset import InstanceDataset
from report.eval_data import EvalData

MOST_IMAGES = 2000  # sampled from a training split, as decoding all masks takes long


@dataclass
class DataStatistics:
    """Statistics of the objects of a split, without crowds.

    Attributes:
        images: number of images in the split.
        measured: number of images that were sampled.
        class_counts: int64 [K], objects per class.
        class_images: int64 [K], images with the class.
        per_image: int64 [measured], objects per image.
        sizes: float64 [G], square roots of the areas, in pixels.
        shapes: float64 [G], width over height.
        together: int64 [K, K], images that have both classes; the diagonal is `class_images`.
    """

    images: int
    measured: int
    class_counts: np.ndarray
    class_images: np.ndarray
    per_image: np.ndarray
    sizes: np.ndarray
    shapes: np.ndarray
    together: np.ndarray


def statistics_of(data: EvalData) -> DataStatistics:
    """Compute the statistics of an evaluation's ground truth."""
    objects, real = data.objects, ~data.objects.crowds
    number = len(data.image_ids)
    return statistics(
        number, number, objects.images[real], objects.classes[real], objects.boxes[real], objects.areas[real],
        len(data.class_names),
    )  # fmt: skip


def statistics_of_dataset(dataset: InstanceDataset, category_ids: Sequence[int]) -> DataStatistics:
    """Compute the statistics of a dataset; large ones are sampled at regular intervals.

    Args:
        category_ids: ids of the K classes, in order; objects of other classes are not counted.
    """
    number = len(dataset)
    measured = np.unique(np.linspace(0, number - 1, min(number, MOST_IMAGES)).round().astype(np.int64))
    place = {category: k for k, category in enumerate(category_ids)}
    images, classes, boxes, areas = [], [], [np.zeros((0, 4))], []
    for position, i in enumerate(measured.tolist()):
        target = dataset.target(i)
        numbers = [place.get(dataset.category_ids[label], -1) for label in target["labels"].tolist()]
        kept = np.flatnonzero((np.array(numbers) >= 0) & (target["iscrowd"].numpy() == 0))
        corners = target["boxes"].numpy().astype(np.float64)[kept]
        images += [position] * len(kept)
        classes += [numbers[j] for j in kept]
        boxes.append(np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1))
        areas += target["area"].numpy()[kept].tolist()
    return statistics(
        number, len(measured), np.array(images, dtype=np.int64), np.array(classes, dtype=np.int64),
        np.concatenate(boxes), np.array(areas, dtype=np.float64), len(category_ids),
    )  # fmt: skip


def statistics(
    total: int,
    measured: int,
    images: np.ndarray,
    classes: np.ndarray,
    boxes: np.ndarray,
    areas: np.ndarray,
    num_classes: int,
) -> DataStatistics:
    """Compute the statistics of G objects: image and class numbers [G], boxes [G, 4] x, y, width, height, areas [G]."""
    present = np.zeros((measured, num_classes), dtype=np.float32)
    present[images, classes] = 1
    together = (present.T @ present).astype(np.int64)
    with_area = (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    return DataStatistics(
        total,
        measured,
        np.bincount(classes, minlength=num_classes),
        np.diag(together).copy(),
        np.bincount(images, minlength=measured),
        np.sqrt(areas),
        boxes[with_area, 2] / boxes[with_area, 3],
        together,
    )
