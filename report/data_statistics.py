"""Measure a split: objects per image and class, their sizes and shapes, and which classes occur together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset_files.dataset import InstanceDataset
from report.eval_data import EvalData
from train_utils.sampled_images import at_intervals

MOST_IMAGES = 2000  # sampled from a training split, as decoding all masks takes long


@dataclass
class DataStatistics:
    """Statistics of the G objects in the measured images of a split, without crowds."""

    images: int  # in the split
    measured: int  # images whose objects were measured
    class_counts: np.ndarray  # int64 [K], objects per class
    class_images: np.ndarray  # int64 [K], images with the class
    per_image: np.ndarray  # int64 [measured], objects per image
    sizes: np.ndarray  # float64 [G], square roots of the areas, in pixels
    shapes: np.ndarray  # float64 [at most G], width over height of boxes with an area
    together: np.ndarray  # int64 [K, K], images that have both classes; the diagonal is `class_images`


def statistics_of(data: EvalData) -> DataStatistics:
    o, number = data.objects, len(data.image_ids)
    rows = np.column_stack((o.images, o.classes, o.areas, o.boxes[:, 2:]))[~o.crowds]
    return statistics(number, number, len(data.class_names), rows)


def statistics_of_dataset(dataset: InstanceDataset, category_ids: Sequence[int]) -> DataStatistics:
    """Compute statistics of the objects of the given categories. Large datasets are sampled at regular intervals."""
    measured = at_intervals(len(dataset), MOST_IMAGES)
    place = {category: k for k, category in enumerate(category_ids)}
    rows = [np.zeros((0, 5))]
    for position, i in enumerate(measured):
        target = dataset.target(i)
        classes = np.array([place.get(dataset.category_ids[label], -1) for label in target["labels"].tolist()])
        kept = np.flatnonzero((classes >= 0) & (target["iscrowd"].numpy() == 0))
        corners = target["boxes"].numpy().astype(np.float64)[kept]
        of_image = np.full(len(kept), position), classes[kept], target["area"].numpy()[kept]
        rows.append(np.column_stack((*of_image, corners[:, 2:] - corners[:, :2])))
    return statistics(len(dataset), len(measured), len(category_ids), np.concatenate(rows))


def statistics(total: int, measured: int, num_classes: int, rows: np.ndarray) -> DataStatistics:
    """Compute the statistics of G objects. `rows`, float64 [G, 5]: image, class, area, width and height of the box."""
    images, classes = rows[:, :2].astype(np.int64).T
    present = np.zeros((measured, num_classes), dtype=np.float32)
    present[images, classes] = 1
    together = (present.T @ present).astype(np.int64)
    width, height = rows[(rows[:, 3:] > 0).all(axis=1), 3:].T
    counts = np.bincount(classes, minlength=num_classes), np.diag(together).copy()
    per_image = np.bincount(images, minlength=measured)
    return DataStatistics(total, measured, *counts, per_image, np.sqrt(rows[:, 2]), width / height, together)
