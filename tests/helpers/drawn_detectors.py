"""Draw images, objects and the matches of two detectors, whose AP on endless images is known: nothing is detected."""

from dataclasses import dataclass

import numpy as np

from report.bootstrap import Interval, draw_weights, interval_of, resample
from report.eval_data import Detections, EvalData, Objects
from report.matching import IOUS, InRange, Matching


@dataclass
class Detector:
    """How often an object is found, how well, and how many false detections an image and class has."""

    found: float
    iou: float
    false: float


@dataclass
class Scene:
    """How many images and classes there are, and how many objects of a class an image has on average."""

    images: int
    classes: int
    objects: float


A, B = Detector(0.75, 0.75, 0.5), Detector(0.8, 0.78, 0.5)
FEW_CLASSES, RARE_CLASSES = Scene(100, 3, 1.0), Scene(80, 80, 0.06)


def draw(rng: np.random.Generator, scene: Scene, detectors: tuple[Detector, ...]) -> list[tuple[EvalData, InRange]]:
    """Draw images of varying difficulty, and what each detector finds in them."""
    difficulty = rng.normal(0, 0.15, scene.images)
    counts = rng.poisson(scene.objects, (scene.images, scene.classes))
    images, classes = (np.repeat(place.ravel(), counts.ravel()) for place in np.indices(counts.shape))
    hardness = rng.random(len(images)) + difficulty[images]  # the same object is hard for both
    drawn = []
    for each in detectors:
        hit = np.flatnonzero(hardness + rng.normal(0, 0.1, len(images)) < each.found)
        false = rng.poisson(each.false * scene.objects, counts.shape)
        in_images, of_classes = (np.repeat(place.ravel(), false.ravel()) for place in np.indices(counts.shape))
        ious = np.concatenate((rng.normal(each.iou - 0.2 * hardness[hit], 0.1), np.zeros(len(in_images))))
        scores = np.concatenate((rng.beta(5, 2, len(hit)), rng.beta(2, 4, len(in_images))))
        where = np.concatenate((images[hit], in_images)), np.concatenate((classes[hit], of_classes))
        owners = np.concatenate((hit, np.full(len(in_images), -1)))
        order = np.lexsort((-scores, where[0]))
        owners, ious = owners[order], ious[order]
        found = Detections(where[0][order], where[1][order], scores[order], np.zeros((len(order), 4)), [])
        matching = Matching(np.where(ious >= IOUS[:, None], owners, -1), np.zeros((len(IOUS), len(order)), bool))
        drawn.append((eval_data(scene, images, classes, found), InRange(matching, np.ones(len(images), bool))))
    return drawn


def eval_data(scene: Scene, images: np.ndarray, classes: np.ndarray, found: Detections) -> EvalData:
    number, ids = len(images), np.arange(scene.images)
    boxes, areas, crowds = np.zeros((number, 4)), np.ones(number), np.zeros(number, bool)
    objects = Objects(np.arange(number), images, classes, boxes, areas, crowds, [], bare=crowds)
    names = [str(k) for k in range(scene.classes)]
    sizes, paths = np.ones((scene.images, 2), int), [None] * scene.images
    return EvalData(ids, sizes, list(map(str, ids)), paths, np.arange(scene.classes), names, objects, found)


def differences(
    rng: np.random.Generator, scene: Scene, pair: tuple[Detector, Detector], resamples: int
) -> tuple[float, Interval]:
    """Return AP of the second minus that of the first on drawn images, and the interval from resamples of these."""
    weights = draw_weights(scene.images, resamples, int(rng.integers(1 << 30)))
    a, b = (resample(data, {"AP": in_range}, weights) for data, in_range in draw(rng, scene, pair))
    found = b.values[0, -1] - a.values[0, -1]
    return float(found[0]), interval_of(found[1:], a.tails[0, -1])
