"""Rank images by how well they are understood, and say what is wrong in each."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from report.confusion import Confusion
from report.records import Scene


@dataclass
class ImageScores:
    """How the detections above the best score fit the objects of I images.

    Attributes:
        right, false, missed: int64 [I], detections with an object of their class, other detections, objects without a
            detection of their class.
        f1: float64 [I], NaN where an image has neither objects nor detections.
    """

    right: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    f1: np.ndarray

    def worst(self, number: int) -> list[int]:
        """Images by rising F1, those with most errors first."""
        wrong = self.false + self.missed
        order = np.lexsort((-wrong, np.nan_to_num(self.f1, nan=2.0)))
        return [i for i in order.tolist() if wrong[i]][:number]

    def best(self, number: int) -> list[int]:
        """Images by falling F1, those with most objects first, and none that is among the worst."""
        order = np.lexsort((-self.right, -np.nan_to_num(self.f1, nan=-1.0)))
        taken = set(self.worst(number))
        return [i for i in order.tolist() if self.right[i] and i not in taken][:number]

    def sample(self, number: int) -> list[int]:
        """Images drawn at random, always the same ones."""
        drawn = np.random.default_rng(0).permutation(len(self.f1))
        return [i for i in drawn.tolist() if not np.isnan(self.f1[i])][:number]


def score_images(scene: Scene, pairs: Confusion) -> ImageScores:
    """Count right and wrong per image, from the pairs of the confusion matrix."""
    number = len(scene.image_ids)
    images = images_of(scene, pairs)
    is_right = pairs.rows == pairs.columns
    right = np.bincount(images[is_right], minlength=number)
    false = np.bincount(images[~is_right & (pairs.detections >= 0)], minlength=number)
    missed = np.bincount(images[~is_right & (pairs.objects >= 0)], minlength=number)
    with np.errstate(invalid="ignore"):
        f1 = 2 * right / (2 * right + false + missed)
    return ImageScores(right, false, missed, f1)


def images_of(scene: Scene, pairs: Confusion) -> np.ndarray:
    """The image of each pair, int64 [N]."""
    images = np.zeros(len(pairs.rows), dtype=np.int64)
    with_object, with_detection = pairs.objects >= 0, pairs.detections >= 0
    images[with_object] = scene.objects.images[pairs.objects[with_object]]
    images[with_detection] = scene.detections.images[pairs.detections[with_detection]]
    return images


def wrong_in_words(scene: Scene, pairs: Confusion, of_image: np.ndarray, image: int) -> str:
    """What is wrong in an image, such as "missed: 2 cup; dog taken for cat; false: chair".

    Args:
        of_image: the result of `images_of`.
    """
    background = len(scene.class_names)
    missed: Counter[str] = Counter()
    false: Counter[str] = Counter()
    confused: Counter[str] = Counter()
    for p in np.flatnonzero((of_image == image) & (pairs.rows != pairs.columns)).tolist():
        row, column = int(pairs.rows[p]), int(pairs.columns[p])
        if column == background:
            missed[scene.class_names[row]] += 1
        elif row == background:
            false[scene.class_names[column]] += 1
        else:
            confused[f"{scene.class_names[row]} taken for {scene.class_names[column]}"] += 1
    parts = [counted(confused)] if confused else []
    parts += [f"{title}: {counted(names)}" for title, names in (("missed", missed), ("false", false)) if names]
    return "; ".join(parts) or "nothing wrong"


def counted(names: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" if number > 1 else name for name, number in names.most_common())
