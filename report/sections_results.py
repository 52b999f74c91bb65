"""The page's sections on the results: head, classes, curves, confusion, costs, groups."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from report.analysis import Analysis
from report.confusion import Confusion
from report.error_kinds import KINDS, MISSED
from report.figures import (
    cost_figure,
    group_figure,
    history_figure,
    loss_figure,
    precision_recall_figure,
)
from report.gallery import Gallery, Shot
from report.html_parts import (
    KIND_NAMES,
    Column,
    number,
    of_kind,
    paragraph,
    plot,
    plots,
    section,
    shot,
    shots,
    table,
    text,
)
from report.image_scores import images_of
from report.records import Scene
from report.run_history import History
from train_utils.metrics.coco_evaluation import METRIC_NAMES

EXAMPLES_PER_CELL, EXAMPLES_PER_KIND = 4, 8
CELLS_WITH_EXAMPLES = 1500  # those with most pairs
MEANINGS = {
    "class": "the box or mask fits an object of another class",
    "location": "the class is right, the overlap with the object is between 0.1 and 0.5",
    "both": "another class, and an overlap between 0.1 and 0.5",
    "duplicate": "a second detection of an object that has one already",
    "background": "nothing annotated is there",
    "missed": "an object that no detection is about",
}
GROUP_TITLES = {
    "size": ("AP by size", "square root of the object's area in pixels"),
    "crowding": ("AP by crowding", "objects in the image"),
    "border": ("AP by distance to the border", "distance in percent of the image's short side"),
}
CLASS_COLUMNS = (
    Column("class", "text", "name in the annotations"),
    Column("objects", "count", "annotated, crowds left out"),
    Column("AP", "share", "COCO's, mean over IoU 0.5 to 0.95"),
    Column("AP50", "share", "at IoU 0.5"),
    Column("AP75", "share", "at IoU 0.75"),
    Column("precision", "share", "right share of the detections at or above the threshold, at IoU 0.5"),
    Column("recall", "share", "found share of the objects, at the threshold and IoU 0.5"),
    Column("F1", "share", "of both; the threshold is where this is highest"),
    Column("threshold", "share", "the score with the best F1"),
)


def head_section(facts: Mapping[str, str], stats: Mapping[str, Sequence[float]], history: History | None) -> str:
    """What was evaluated, COCO's 12 metrics, and the run's curves."""
    entries = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    titles = "".join(f'<th scope="col">{KIND_NAMES[kind]}</th>' for kind in stats)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{metric(stats[kind][i])}</td>" for kind in stats) + "</tr>"
        for i, name in enumerate(METRIC_NAMES)
    )
    metrics = f'<table class="metrics"><thead><tr><th scope="col">COCO metric</th>{titles}</tr></thead>{rows}</table>'
    parts = [f'<div class="head"><dl>{entries}</dl>{metrics}</div>']
    if history is not None:
        figures = []
        if history.epochs:
            reading = "Each point is the AP on the validation images after an epoch; a curve that still rises would gain from more epochs."  # noqa: E501
            figures.append(plot(history_figure(history.epochs, history.ap), "AP over the epochs", reading))
        if history.steps:
            reading = "The pale line is the loss of single steps, the strong one its moving average; it should fall and level out."  # noqa: E501
            figures.append(plot(loss_figure(history.steps, history.losses), "Training loss", reading))
        parts.append(plots(*figures))
    return section("summary", "Summary", *parts)


def metric(value: float) -> str:
    return number(value) if value >= 0 else "–"


def classes_section(scene: Scene, analyses: list[Analysis]) -> str:
    """The sortable table of classes."""
    parts = [
        paragraph(
            "Click a column's title to sort. Precision, recall and F1 are those at the class's own best threshold; the "
            "bars behind the numbers have the same scale everywhere, from 0 to 1."
        )
    ]
    for analysis in analyses:
        rows = [
            (name, r.objects, r.ap, r.ap50, r.ap75, r.precision, r.recall, r.f1, r.threshold)
            for name, r in zip(scene.class_names, analysis.classes)
        ]
        rows.sort(key=lambda row: row[1] == 0)  # classes without objects come last
        parts.append(of_kind(analysis.kind, table(CLASS_COLUMNS, rows, f"classes-{analysis.kind}", "class")))
    return section("classes", "Classes", *parts)


def curves_section(scene: Scene, analyses: list[Analysis]) -> str:
    """The mean curves, and small ones per class."""
    parts = []
    for analysis in analyses:
        main = plot(
            precision_recall_figure(analysis.curves),
            f"All classes, {KIND_NAMES[analysis.kind]}",
            "Read from left to right: the more objects are found, the more of the detections are false; the area under "
            "a curve is the AP.",
        )
        order = sorted(range(len(analysis.classes)), key=lambda k: -np.nan_to_num(analysis.classes[k].ap, nan=-1))
        small = "".join(
            f'<figure class="curve"><figcaption>{text(scene.class_names[k])} <b>{number(analysis.classes[k].ap)}'
            f"</b></figcaption>{small_curves(analysis.classes[k].curves)}</figure>"
            for k in order
            if analysis.classes[k].objects
        )
        reading = (
            "One frame per class with its AP: precision upwards, recall to the right, both from 0 to 1; solid IoU 0.5, "
            "dashed 0.75, dotted the mean over 0.5 to 0.95."
        )
        details = f"<details><summary>Curves of each class</summary>{paragraph(reading)}"
        parts.append(of_kind(analysis.kind, plots(main), f'{details}<div class="curves">{small}</div></details>'))
    return section("curves", "Precision and recall", *parts)


def small_curves(curves: np.ndarray) -> str:
    """Curves [3, 101] as steps in a frame of 101 x 100 units, y downwards; each value is a step of one unit."""
    paths = []
    for n, curve in enumerate(curves, start=1):
        heights = [f"{100 * (1 - value):.6g}" for value in curve.tolist()]
        steps = "".join(f"V{height}h{len(list(run))}" for height, run in itertools.groupby(heights))
        paths.append(f'<path class="line-{n}" d="M0,{heights[0]}{steps}"/>')
    return '<svg viewBox="-1 -2 103 104" role="img"><path class="frame" d="M0,0V100H101"/>' + "".join(paths) + "</svg>"


def confusion_section(scene: Scene, analyses: list[Analysis], gallery: Gallery) -> tuple[str, dict[str, Any]]:
    """The confusion matrices; the page's script draws them from the second value."""
    parts, data = [], {}
    for analysis in analyses:
        pairs = analysis.pairs
        score = number(pairs.score)
        reading = (
            f"Rows are the annotated class, columns what was detected, at IoU 0.5 and a score of at least {score}, the "
            "one with the best F1 over all classes; the stronger the colour, the larger the share of its row. "
            "Choose a cell (click, or arrow keys and Enter) to see the images behind it."
        )
        frame = f'<div class="matrix" data-matrix="confusion-{analysis.kind}"></div>'
        parts.append(of_kind(analysis.kind, paragraph(reading), most_confused(scene, pairs, analysis.kind), frame))
        data[f"confusion-{analysis.kind}"] = {
            "names": [*scene.class_names, "background"],
            "corner": "annotated \\ detected",
            "cells": cells(scene, pairs, gallery),
        }
    return section("confusion", "Confusion", *parts), data


def most_confused(scene: Scene, pairs: Confusion, kind: str) -> str:
    """Buttons for the largest cells beside the diagonal, for those who would not search a large matrix."""
    names = [*scene.class_names, "background"]
    off = pairs.matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:12]
    buttons = []
    for row, column in zip(*np.unravel_index(order, off.shape)):
        if not off[row, column]:
            break
        if row == len(names) - 1:
            words = f"{names[column]} where nothing is"
        elif column == len(names) - 1:
            words = f"{names[row]} missed"
        else:
            words = f"{names[row]} taken for {names[column]}"
        buttons.append(
            f'<button type="button" data-cell="confusion-{kind},{row},{column}">{text(words)} '
            f"<b>{int(off[row, column])}</b></button>"
        )
    return '<p class="chips">' + " ".join(buttons) + "</p>"


def cells(scene: Scene, pairs: Confusion, gallery: Gallery) -> list[list[Any]]:
    """Entries [row, column, number of pairs, examples], the largest wrong ones first."""
    images = images_of(scene, pairs)
    keys = pairs.rows * len(pairs.matrix) + pairs.columns
    scores = np.where(pairs.detections >= 0, scores_of(scene, pairs.detections), 0)
    order = np.lexsort((-scores, keys))
    begins = np.flatnonzero(np.diff(keys[order], prepend=-1))
    groups = np.split(order, begins[1:]) if len(order) else []
    groups.sort(key=lambda g: (pairs.rows[g[0]] == pairs.columns[g[0]], -len(g)))
    found = []
    for rank, group in enumerate(groups):
        candidates = [[int(images[p]), int(pairs.objects[p]), int(pairs.detections[p])] for p in group[:100].tolist()]
        examples = gallery.admit_some(candidates, EXAMPLES_PER_CELL) if rank < CELLS_WITH_EXAMPLES else []
        found.append([int(pairs.rows[group[0]]), int(pairs.columns[group[0]]), len(group), examples])
    return found


def scores_of(scene: Scene, detections: np.ndarray) -> np.ndarray:
    return scene.detections.scores[detections] if len(scene.detections) else np.zeros(len(detections))


def costs_section(scene: Scene, analyses: list[Analysis], gallery: Gallery) -> str:
    """TIDE's kinds of error: their number, what they cost, and examples."""
    columns = (
        Column("kind", "text", "TIDE's kinds"),
        Column("number", "count", "of all detections, whatever their score, or of objects"),
        Column("AP50 to be gained", "share", "how much AP50 rises if all errors of this kind are repaired"),
        Column("what it is", "text"),
    )
    parts = []
    for analysis in analyses:
        errors = analysis.errors
        counts = errors.counts()
        rows = [(name, counts[name], max(errors.costs[name], 0.0), MEANINGS[name]) for name in errors.costs]
        figure = plot(
            cost_figure(errors.costs),
            f"What costs AP, {KIND_NAMES[analysis.kind]}",
            "The longer a bar, the more AP50 rises if errors of this kind alone are repaired; bars do not add up.",
        )
        examples = "".join(examples_of(scene, analysis, name, gallery) for name in errors.costs if counts[name])
        intro = paragraph(f"AP50 is {number(errors.ap50)}. Kinds and repairs are those of TIDE (Bolya et al., 2020).")
        listed = table(columns, rows, f"costs-{analysis.kind}")
        parts.append(of_kind(analysis.kind, intro, plots(figure), listed, examples))
    return section("costs", "What costs AP", *parts)


def examples_of(scene: Scene, analysis: Analysis, name: str, gallery: Gallery) -> str:
    """The errors of a kind with the highest scores, or the largest missed objects."""
    errors, found, objects = analysis.errors, scene.detections, scene.objects
    candidates: list[Shot]
    if name == MISSED:
        missed = np.flatnonzero(errors.missed)
        missed = missed[np.argsort(-objects.areas[missed], kind="stable")][:50]
        candidates = [[int(objects.images[g]), int(g), -1] for g in missed]
    else:
        kind = next(number for number, title in KINDS.items() if title == name)
        wrong = np.flatnonzero(errors.kinds == kind)
        wrong = wrong[np.argsort(-found.scores[wrong], kind="stable")][:50]
        candidates = [[int(found.images[d]), int(errors.targets[d]), int(d)] for d in wrong]
    figures = [
        shot(each, "zoom", shot_in_words(scene, each)) for each in gallery.admit_some(candidates, EXAMPLES_PER_KIND)
    ]
    opening = f"<details><summary>{text(name)}: {text(MEANINGS[name])}</summary>"
    return f"{opening}{shots(figures)}</details>" if figures else ""


def shot_in_words(scene: Scene, which: Shot) -> str:
    image, g, d = which
    names = scene.class_names
    parts = [f"annotated {names[scene.objects.classes[g]]}"] if g >= 0 else []
    parts += [f"detected {names[scene.detections.classes[d]]} {scene.detections.scores[d]:.2f}"] if d >= 0 else []
    return f"{', '.join(parts)} – {scene.file_names[image]}"


def groups_section(analyses: list[Analysis]) -> str:
    """AP by size, crowding and distance to the border."""
    parts = []
    for analysis in analyses:
        figures = [
            plot(
                group_figure(analysis.groups[name], axis),
                title,
                "Each bar is the AP of the objects in a range, mean over classes; n is their number, and a bar of few "
                "objects says little.",
            )
            for name, (title, axis) in GROUP_TITLES.items()
        ]
        parts.append(of_kind(analysis.kind, plots(*figures)))
    return section("groups", "Sizes, crowding, borders", *parts)
