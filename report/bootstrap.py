"""Compute 95 % intervals of COCO's AP by a bootstrap over images.

The comparison of two models is paired if both get the same resamples. A resample draws as many images as there are,
with replacement. It is a column of weights: how often each image is drawn. Matching depends on single images only, so
it is done once; each resample then sums the weights of right and false detections by descending score. The first column
has all images once, so that its AP is COCO's.

The spread of resamples underestimates that of samples, most if only few images have objects of a class. Intervals
therefore reach further into the tails, as Hesterberg's expanded percentile intervals do ("What Teachers Should Know
About the Bootstrap", The American Statistician 69, 2015); see `tail_of`.

hotcoco 1.3.0's `compare` has a paired bootstrap too, but uses an image once however often it is drawn, as `slice_by`
does: its intervals are a fifth too narrow. Nor does it have intervals per class.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from report.average_precision import AT_50, AT_75, RECALLS, detections_by_class
from report.eval_data import DETECTIONS_PER_CLASS, EvalData, best_per_image
from report.matching import InRange, Matching

RESAMPLES = 1000
MOST_VALUES = 1_000_000  # of an array; right detections times resamples
MOST_OBJECTS, MOST_DETECTIONS = 2**14, 2**24  # of a class; with more, float32 cannot tell all recalls and counts apart
CONFIDENCE = 0.95
FEWEST_IMAGES = 5  # with objects; resamples of fewer images tell nothing about other images
METRICS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")  # COCO's first six


class Interval(NamedTuple):
    """A confidence interval of a metric. Both ends are NaN if too few images have objects."""

    low: float
    high: float


@dataclass
class Resampled:
    """AP of one model on all images and on resamples of them."""

    # float64 [6, K + 1, 1 + R], by metric, class and resample; the last class is the mean over classes, the first
    # resample all images. NaN where no object of the class is drawn.
    values: np.ndarray
    tails: np.ndarray  # float64 [6, K + 1], share of the resamples on each side of the interval, see `tail_of`

    def intervals(self) -> list[list[Interval]]:
        """Return the interval of each metric and class."""
        return [list(map(interval_of, *each)) for each in zip(self.values[:, :, 1:], self.tails)]


def interval_of(samples: np.ndarray, tail: float) -> Interval:
    """Return the interval between the quantiles `tail` and 1 - `tail` of samples [R]. NaNs do not count."""
    known = samples[~np.isnan(samples)]
    if not len(known) or np.isnan(tail):
        return Interval(float("nan"), float("nan"))
    return Interval(*np.quantile(known, (tail, 1 - tail)).tolist())


def tail_of(images: np.ndarray) -> float:
    """Return the share of resamples to leave out at each end of a 95 % interval: 2.5 %, or less for few images.

    NaN if fewer than five images have objects. Resamples of n images have a variance that is too small by the factor
    (n - 1) / n. The mean over classes gets the factor of the sum of the classes' variances, taken as 1 / n.

    Args:
        images: int64 [K], how many images have objects of each class that has any; [1] for a single class.
    """
    if images.sum() < FEWEST_IMAGES:
        return float("nan")
    n = np.maximum(images, 2)
    too_small = ((n - 1) / n**2).sum() / (1 / n).sum()
    z, f = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), max((images - 1).sum(), 1)
    # Student's quantile for f degrees of freedom by its series (Abramowitz and Stegun, 26.7.5).
    student = z + (z**3 + z) / (4 * f) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * f**2)
    return NormalDist().cdf(-student / too_small**0.5)


def draw_weights(images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Draw how often each image occurs in each resample, float32 [I, 1 + R]. Column 0 has all images once."""
    drawn = np.random.default_rng(seed).integers(images, size=(resamples, images)) if images else np.zeros((0, 0), int)
    weights = [np.ones(images), *(np.bincount(one, minlength=images) for one in drawn)]
    return np.stack(weights, axis=1).astype(np.float32)


def resample(data: EvalData, areas: Mapping[str, InRange], weights: np.ndarray) -> Resampled:
    """Compute the AP of each metric and class on all images and on each resample.

    Args:
        areas: the result of `match_areas`.
        weights: float [I, 1 + R], as `draw_weights` returns them.
    """
    number = len(data.class_names)
    values = np.full((len(METRICS), number + 1, weights.shape[1]), np.nan)
    tails = np.full(values.shape[:2], np.nan)
    for name, in_range in areas.items():
        metric = METRICS.index(name)
        owners, of_classes = (each[in_range.to_find] for each in (data.objects.images, data.objects.classes))
        pairs = np.unique(np.stack((of_classes, owners)), axis=1)
        images = np.bincount(pairs[0], minlength=number)
        tails[metric, :-1] = [tail_of(of_class) for of_class in images[:, None]]
        if len(np.unique(owners)) >= FEWEST_IMAGES:
            tails[metric, -1] = tail_of(images[images > 0])
        aps = aps_of_classes(data, *in_range, weights)
        values[metric, :-1] = aps.mean(axis=1)
        if name == "AP":
            values[1, :-1], values[2, :-1] = aps[:, AT_50], aps[:, AT_75]
            tails[1:3] = tails[0]
    known = ~np.isnan(values[:, :-1])
    with np.errstate(invalid="ignore"):
        values[:, -1] = np.where(known, values[:, :-1], 0).sum(axis=1) / known.sum(axis=1)
    return Resampled(values, tails)


def coco_stats(data: EvalData, areas: Mapping[str, InRange]) -> list[float]:
    """Return COCO's 12 metrics from the result of `match_areas`; -1 where the data has no such objects."""
    aps = resample(data, areas, np.ones((len(data.image_ids), 1))).values[:, -1, 0]
    recalls = [recall_of(data, areas["AP"], most) for most in (1, 10, DETECTIONS_PER_CLASS)]
    recalls += [recall_of(data, areas[f"AP {size}"]) for size in ("small", "medium", "large")]
    return np.nan_to_num([*aps, *recalls], nan=-1).tolist()


def recall_of(data: EvalData, in_range: InRange, most: int = DETECTIONS_PER_CLASS) -> float:
    """Return the recall of the `most` best detections per image and class, averaged over IoUs and classes."""
    matching, to_find = in_range
    found, number = data.detections, len(data.class_names)
    kept = np.zeros(len(found), dtype=bool)
    kept[best_per_image(found.images, found.classes, found.scores, number, most)] = True
    right = (matching.objects >= 0) & kept
    hits = np.stack([np.bincount(found.classes[row], minlength=number) for row in right])
    objects = np.bincount(data.objects.classes[to_find], minlength=number)
    return float((hits[:, objects > 0] / objects[objects > 0]).mean()) if objects.any() else float("nan")


def aps_of_classes(data: EvalData, matching: Matching, to_find: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AP of each class, IoU and resample, float64 [K, T, R]. Only objects in `to_find`, bool [G], count."""
    by_class = detections_by_class(data)

    def ap_of(k: int) -> np.ndarray:
        owners, chosen = data.objects.images[to_find & (data.objects.classes == k)], by_class[k]
        if not len(owners):
            return np.full((len(matching.objects), weights.shape[1]), np.nan)
        right, counted = matching.objects[:, chosen] >= 0, ~matching.ignored[:, chosen]
        together = max(MOST_VALUES // max(right.any(axis=0).sum(), 1), 100)
        parts = [weights[:, begin : begin + together] for begin in range(1, weights.shape[1], together)]
        parts.insert(0, weights[:, :1].astype(np.float64))  # all images
        images = data.detections.images[chosen]
        return np.concatenate([resampled_ap(right, counted, images, owners, part) for part in parts], axis=1)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        return np.stack(list(pool.map(ap_of, range(len(by_class)))))


def resampled_ap(
    right: np.ndarray, counted: np.ndarray, images: np.ndarray, owners: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Compute the AP of one class at each IoU and in each resample from matched detections.

    Precision is needed only at correct detections, since it falls between them. The number of detections up to each
    correct one is summed once, over the detections that count at the majority of IoUs, and then corrected per IoU.

    Args:
        right, counted: bool [T, N], whether a detection is matched, and whether it counts; by descending score.
        images: int64 [N], of the detections.
        owners: int64 [G], images of the objects to find.
        weights: float [I, R]; float32 is as exact in counts, but AP is then known to 1e-6 only.

    Returns:
        float64 [T, R]; NaN where no object is drawn.
    """
    objects = weights[owners].sum(axis=0, dtype=np.float64)
    if objects.max(initial=0) > MOST_OBJECTS or len(images) * weights.max(initial=0) > MOST_DETECTIONS:
        weights = weights.astype(np.float64)
    usual = 2 * np.count_nonzero(counted, axis=0) > len(counted)
    is_event = (right & counted) | (counted != usual)
    kept = np.flatnonzero(is_event.any(axis=0))
    found_usual = sums_up_to(weights, images[usual], np.cumsum(usual)[kept])
    aps, short = np.zeros((len(right), weights.shape[1])), just_short(objects)
    for ap, events, is_right, counts in zip(aps, is_event[:, kept], (right & counted)[:, kept], counted[:, kept]):
        if not events.any():
            continue
        found, drawn = found_usual[events], weights[images[kept[events]]]
        correction = (counts.astype(weights.dtype) - usual[kept])[events]
        if correction.any():
            changed = np.flatnonzero(correction)
            shifts = accumulate(np.add, drawn[changed] * correction[changed, None])
            for begin, end, shift in zip(changed, [*changed[1:], len(found)], shifts):
                found[begin:end] += shift
            drawn[~is_right[events]] = 0
        hits = accumulate(np.add, drawn)
        precision = np.divide(hits, np.maximum(found, 1, out=found), out=found)
        accumulate(np.maximum, precision[::-1])
        ap += precision[0]  # for a recall of 0
        precision[:-1] -= precision[1:]  # a step down in precision counts for all recalls that were reached before it
        ap += np.einsum("er,er->r", precision, recalls_reached(hits, objects, short))
    aps[:, objects == 0] = np.nan
    return aps / len(RECALLS)


def recalls_reached(hits: np.ndarray, objects: np.ndarray, short: np.ndarray) -> np.ndarray:
    """Count the recall thresholds 0.01, 0.02, ..., 1 of COCO that `hits` [E, R] out of `objects` [R] reach.

    `short` is the result of `just_short`.
    """
    nearly = 1 + 4 * np.finfo(hits.dtype).eps  # rounding must not lose a recall that is reached exactly
    reached = hits * (100 * nearly / np.maximum(objects, 1)).astype(hits.dtype)
    np.floor(reached, out=reached)
    columns = np.flatnonzero(short.any(axis=0))
    reached[:, columns] -= short[hits[:, columns].astype(np.int64), columns]
    return reached


def just_short(objects: np.ndarray) -> np.ndarray:
    """Mark numbers of hits that reach a recall of exactly k / 100, where COCO's rounded threshold is slightly higher.

    Returns bool [1 + most objects, R], by number of hits and resample.
    """
    short = np.zeros((int(objects.max()) + 1, len(objects)), dtype=bool)
    for k in np.flatnonzero(RECALLS > np.arange(101) / 100):
        columns = np.flatnonzero((objects * k % 100 == 0) & (objects > 0))
        short[(objects[columns] * k / 100).astype(np.int64), columns] = True
    return short


def sums_up_to(weights: np.ndarray, rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return `weights[rows[:end]].sum(axis=0)` for each of the E ascending `ends`, [E, R]."""
    sums, begin = np.empty((len(ends), weights.shape[1]), weights.dtype), 0
    for one, end in zip(sums, ends.tolist()):
        weights[rows[begin:end]].sum(axis=0, out=one)
        begin = end
    return accumulate(np.add, sums)


def accumulate(function: np.ufunc, rows: np.ndarray) -> np.ndarray:
    """Accumulate rows [E, R] in place and return them, two to three times as fast as `function.accumulate`."""
    if rows.shape[1] == 1:
        return function.accumulate(rows, out=rows)
    for before, row in zip(rows, rows[1:]):
        function(before, row, out=row)
    return rows
