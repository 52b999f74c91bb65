"""Compare two sets of detections on the same images: AP with intervals, the differences, a verdict, and a page."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset_files.atomic_files import write_atomically
from dataset_files.stored_images import RGB, ImageForm
from report.average_precision import best_overall, object_counts
from report.bootstrap import FEWEST_IMAGES, METRICS, Interval, Resampled, draw_weights, interval_of, resample
from report.confusion import Confusion, ImageScores, confusion, score_images
from report.eval_data import Entries, EvalData, make_eval_data
from report.gallery import Gallery, Shot
from report.html_page import render
from report.matching import find_overlaps, match_areas
from report.tables import write_json, write_table
from train_utils.errors import reading_input
from train_utils.metrics.coco_evaluation import TITLES

CHANGED_SHOWN = 24
HEAD = (
    "compared", "name", "objects", "A", "A_low", "A_high", "B", "B_low", "B_high", "difference", "difference_low",
    "difference_high", "B_ahead",
)  # fmt: skip


@dataclass
class Row:
    """The values of A and B for a metric, or for the AP of a class.

    They are NaN if there are no such objects; intervals and `ahead` also if too few images have objects.
    """

    name: str  # of the metric or the class
    objects: int  # without crowds; of all sizes
    a: float
    of_a: Interval
    b: float
    of_b: Interval
    of_difference: Interval
    ahead: float  # share of the resamples in which B is ahead of A

    @property
    def difference(self) -> float:
        return self.b - self.a


@dataclass
class KindComparison:
    kind: str
    metrics: list[Row]  # COCO's six APs
    classes: list[Row]  # AP per class
    pairs: tuple[Confusion, Confusion]  # of A and of B, each at its best score
    scores: tuple[ImageScores, ImageScores]

    def verdict(self) -> str:
        """State in a sentence whether A or B is better, judged by the interval of the difference in AP."""
        ap = self.metrics[0]
        low, high = ap.of_difference
        words = "B is better" if low > 0 else "A is better" if high < 0 else "this data cannot tell"
        if low == high == 0:
            return f"{words}: the AP of {TITLES[self.kind]} is {ap.a:.4f} for both, in every resample too"
        if np.isnan(low):
            return f"{words}: fewer than {FEWEST_IMAGES} images have objects"
        found = f"AP of {TITLES[self.kind]} {ap.a:.4f} and {ap.b:.4f}"
        return f"{words}: {found}, a difference of {signed(ap.difference)} ({signed(low)} to {signed(high)})"

    def changed_most(self, number: int) -> list[int]:
        """Return the images whose F1 differs most between A and B. Ties go to larger changes in correct detections."""
        a, b = self.scores
        change = np.abs(np.nan_to_num(b.f1, nan=1.0) - np.nan_to_num(a.f1, nan=1.0))
        order = np.lexsort((-np.abs(b.right - a.right), -change))
        return [i for i in order.tolist() if change[i] > 0][:number]


@dataclass
class Comparison:
    """Two sets of detections, A and B, compared by masks, boxes or boundaries."""

    names: tuple[str, str]  # of A and of B
    data: tuple[EvalData, EvalData]
    kinds: list[KindComparison]


def compare(
    content: Mapping[str, Any], names: Sequence[str], results: Sequence[Mapping[str, Entries]], kinds: Sequence[str],
    paths: Mapping[int, Any], form: ImageForm = RGB,
) -> Comparison:  # fmt: skip
    """Compare A and B by each of `kinds`: "segm", "bbox" or "boundary". See `make_eval_data` for the arguments.

    `names` and `results` have an entry for A and one for B.
    """
    a, b = (make_eval_data(content, each, paths, form) for each in results)
    weights = draw_weights(len(content["images"]))
    return Comparison((names[0], names[1]), (a, b), [compare_kind((a, b), kind, weights) for kind in kinds])


def compare_kind(data: tuple[EvalData, EvalData], kind: str, weights: np.ndarray) -> KindComparison:
    samples, pairs, scores = [], [], []
    for one in (each.of_kind(kind) for each in data):
        overlaps = find_overlaps(one, kind)
        areas = match_areas(one, overlaps, kind)
        matching = areas["AP"].matching
        samples.append(resample(one, areas, weights))
        pairs.append(confusion(one, overlaps, matching, best_overall(one, matching).threshold))
        scores.append(score_images(one, pairs[-1]))
    counts, (a, b) = object_counts(data[0].of_kind(kind)), samples
    metrics = [row(name, int(counts.sum()), a, b, i, -1) for i, name in enumerate(METRICS)]
    classes = [row(name, int(counts[k]), a, b, 0, k) for k, name in enumerate(data[0].class_names)]
    return KindComparison(kind, metrics, classes, (pairs[0], pairs[1]), (scores[0], scores[1]))


def row(name: str, objects: int, a: Resampled, b: Resampled, metric: int, k: int) -> Row:
    of_a, of_b = a.values[metric, k], b.values[metric, k]
    difference = of_b - of_a
    known = difference[1:][~np.isnan(difference[1:])]
    intervals = [interval_of(samples[1:], a.tails[metric, k]) for samples in (of_a, of_b, difference)]
    ahead = float("nan") if np.isnan(intervals[2].low) else float((known > 0).mean())
    return Row(name, objects, float(of_a[0]), intervals[0], float(of_b[0]), intervals[1], intervals[2], ahead)


def table(comparison: Comparison) -> str:
    """Format the comparison as text. The last line is the verdict on the first of `comparison.kinds`."""
    lines = [f"{letter}: {name}" for letter, name in zip("AB", comparison.names)]
    for each in comparison.kinds:
        width = max(len(row.name) for row in each.metrics + each.classes)
        for title, rows in (("", each.metrics), ("AP per class", each.classes)):
            head = f"  {title:<{width}}  {'A':^22}  {'B':^22}  {'B - A':^27}  B ahead in"
            lines += ["", head] if title else ["", TITLES[each.kind], head]
            lines += [f"  {one.name:<{width}}  {cells(one)}" for one in rows]
    return "\n".join([*lines, "", comparison.kinds[0].verdict()])


def cells(row: Row) -> str:
    if np.isnan(row.a):
        return "-1: no such objects"
    if np.isnan(row.ahead):
        few = f"fewer than {FEWEST_IMAGES} images have objects"
        return f"{row.a:.4f}                  {row.b:.4f}                  {signed(row.difference)}  {few}"
    sides = [f"{value:.4f} ({low:.4f}-{high:.4f})" for value, (low, high) in ((row.a, row.of_a), (row.b, row.of_b))]
    low, high = row.of_difference
    return f"{'  '.join(sides)}  {signed(row.difference)} ({signed(low)} to {signed(high)})  {row.ahead:8.1%}"


def signed(value: float) -> str:
    return f"{value:+.4f}"


def write_comparison(folder: Path, comparison: Comparison, facts: Mapping[str, str]) -> Path:
    """Write report.html, report.json and comparison.csv into a folder; return the page's path."""
    leading, data = comparison.kinds[0], comparison.data[0]
    galleries = [Gallery(*each) for each in zip(comparison.data, leading.pairs)]
    changed = []
    for image in leading.changed_most(CHANGED_SHOWN):
        a, b = (scores.f1[image] for scores in leading.scores)
        changed.append(galleries[0].admit(Shot(image), f"{data.file_names[image]} – F1 of A {a:.2f}, of B {b:.2f}"))
    content = galleries[0].content()
    for image, shown in content["images"].items():
        shown["other"] = galleries[1].detections_of(int(image))
    titles = [Path(name).name for name in comparison.names]
    if titles[0] == titles[1]:  # add the folders, to tell the two apart
        shared = os.path.commonpath([Path(name).absolute().parent for name in comparison.names])
        titles = [os.path.relpath(name, shared) for name in comparison.names]
    page = render(
        "comparison.html", {"names": data.class_names, "cells": {}, **content},
        title=" and ".join(f"{letter}: {name}" for letter, name in zip("AB", titles)),
        facts={"A": comparison.names[0], "B": comparison.names[1], **facts}, comparison=comparison, data=data,
        changed=changed, scores=[pairs.score for pairs in leading.pairs],
    )  # fmt: skip
    numbers: dict[str, Any] = {"facts": facts, "verdicts": {each.kind: each.verdict() for each in comparison.kinds}}
    for each in comparison.kinds:
        rows = {"metrics": each.metrics, "classes": each.classes}
        numbers[each.kind] = {name: [asdict(r) | {"difference": r.difference} for r in of] for name, of in rows.items()}
    cells_of_csv = [
        (each.kind, r.name, r.objects, r.a, *r.of_a, r.b, *r.of_b, r.difference, *r.of_difference, r.ahead)
        for each in comparison.kinds
        for r in each.metrics + each.classes
    ]
    with reading_input():
        write_atomically(folder / "report.html", page)
        write_table(folder / "comparison.csv", HEAD, cells_of_csv)
        write_json(folder / "report.json", numbers)
    return folder / "report.html"
