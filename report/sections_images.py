"""The page's sections on images and data: worst and best images, suspect labels, statistics."""

from typing import Any

import numpy as np

from report.analysis import Analysis
from report.data_statistics import DataStatistics
from report.figures import histogram_figure
from report.gallery import Gallery
from report.html_parts import Column, paragraph, plot, plots, section, shot, shots, table, text
from report.image_scores import ImageScores, images_of, wrong_in_words
from report.records import Scene
from report.suspects import MEANING, Suspect

WORST, BEST, RANDOM = 18, 6, 6
SUSPECTS_SHOWN = 200
LAST = 1_000_000  # end of the last bin of a histogram, whose name has no end
COUNTS = (
    (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, LAST),
    "objects per image",
    ("0", "1", "2", "3", "4-5", "6-7", "8-11", "12-15", "16-23", "24-31", "32+"),
)
SIZES = (
    (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, LAST),
    "square root of the area, px from",
    ("0", "8", "16", "24", "32", "48", "64", "96", "128", "192", "256", "384"),
)
SHAPES = (
    (0, 0.2, 0.33, 0.5, 0.67, 0.83, 1.2, 1.5, 2, 3, 5, LAST),
    "width to height, from",
    ("0", "1:5", "1:3", "1:2", "2:3", "1:1", "1.2:1", "1.5:1", "2:1", "3:1", "5:1"),
)
HISTOGRAMS = (
    ("per_image", "Objects per image", COUNTS, "Each bar is the share of images{} with so many objects."),
    (
        "sizes",
        "Sizes of objects",
        SIZES,
        "Each bar is the share of objects{} from that size up to the next; COCO's medium is from 32 to 96 pixels.",
    ),
    ("shapes", "Shapes of boxes", SHAPES, "Each bar is the share of boxes{} from that ratio up to the next."),
)


def images_section(scene: Scene, analysis: Analysis, scores: ImageScores, gallery: Gallery) -> str:
    """Truth beside detections, of the worst, the best and some random images."""
    reading = (
        "Each image stands here twice: on the left what is annotated, on the right what was found at a score of at "
        f"least {analysis.pairs.score:.3f}. Solid lines are right; dashed lines with a cross are wrong or were missed."
    )
    of_image = images_of(scene, analysis.pairs)
    parts = [paragraph(reading)]
    for title, chosen in (
        ("Worst", scores.worst(WORST)),
        ("Best", scores.best(BEST)),
        ("Drawn at random", scores.sample(RANDOM)),
    ):
        figures = []
        for image in chosen:
            if (which := gallery.admit(image)) is not None:
                wrong = wrong_in_words(scene, analysis.pairs, of_image, image)
                caption = f"{scene.file_names[image]} – F1 {scores.f1[image]:.2f} – {wrong}"
                figures.append(shot(which, "pair", caption))
        if figures:
            parts.append(f"<h3>{title}</h3>{shots(figures)}")
    return section("images", "Images", *parts)


def suspects_section(scene: Scene, suspects: list[Suspect], gallery: Gallery) -> str:
    """The list of suspect labels with a crop of each."""
    if not suspects:
        return section("suspects", "Suspect labels", paragraph("None: no annotation is contradicted with confidence."))
    kinds = {kind: sum(s.kind == kind for s in suspects) for kind in MEANING}
    options = "".join(f"<option>{text(kind)}</option>" for kind, number in kinds.items() if number)
    choice = (
        f'<p class="filter"><label>Show <select id="suspect-kind"><option value="">all kinds</option>{options}'
        '</select></label> <span role="status" id="suspect-count"></span></p>'
    )
    meanings = "".join(
        f"<dt>{text(kind)}</dt><dd>{text(MEANING[kind])}: {number}</dd>" for kind, number in kinds.items() if number
    )
    entries = []
    for rank, suspect in enumerate(suspects[:SUSPECTS_SHOWN], start=1):
        number = gallery.admit_crop([suspect.image, suspect.object, suspect.detection])
        entries.append(suspect_entry(scene, suspect, rank, number))
    shown = min(len(suspects), SUSPECTS_SHOWN)
    reading = (
        "Annotations that the network contradicts, the most confident first. Blue and solid is what is annotated, "
        "orange and dashed what was detected. The network may be the one that is wrong: look before changing a label. "
        f"{shown} of {len(suspects)} are shown; suspects.csv lists all of them for the labelling tool."
    )
    parts = (paragraph(reading), f"<dl>{meanings}</dl>", choice, f'<ol class="suspects">{"".join(entries)}</ol>')
    return section("suspects", "Suspect labels", *parts)


def suspect_entry(scene: Scene, suspect: Suspect, rank: int, crop: int) -> str:
    annotated = detected = "–"
    if suspect.object >= 0:
        annotation = int(scene.objects.ids[suspect.object])
        annotated = f"{scene.class_names[scene.objects.classes[suspect.object]]} (annotation {annotation})"
    if suspect.detection >= 0:
        score = scene.detections.scores[suspect.detection]
        detected = f"{scene.class_names[scene.detections.classes[suspect.detection]]} {score:.2f}"
    places = f"{suspect.image},{suspect.object},{suspect.detection}"
    image = f'<div class="shot crop" data-shot="{places}" data-crop="{crop}"></div>' if crop >= 0 else ""
    return (
        f'<li data-kind-of-suspect="{text(suspect.kind)}" value="{rank}">{image}<p><b>{text(suspect.kind)}</b> '
        f"{suspect.confidence:.2f}<br>{text(scene.file_names[suspect.image])}<br>annotated: {text(annotated)}<br>"
        f"detected: {text(detected)}</p></li>"
    )


def data_section(
    scene: Scene, statistics: DataStatistics, training: DataStatistics | None
) -> tuple[str, dict[str, Any]]:
    """What the data hold; the training split beside the validation split where it is known."""
    splits = {"validation": statistics} | ({"training": training} if training is not None else {})
    lines = [f"{name}: {s.images:,} images, {len(s.sizes):,} objects" for name, s in splits.items()]
    if training is not None and training.measured < training.images:
        lines[-1] += f" in the {training.measured:,} images that were looked at, at even distances"
    beside = " beside those of training" if training is not None else ""
    figures = [
        plot(histogram_figure({n: getattr(s, name) for n, s in splits.items()}, *bins), title, reading.format(beside))
        for name, title, bins, reading in HISTOGRAMS
    ]
    columns = [Column("class", "text"), Column("objects", "count"), Column("images", "count")]
    columns += [Column("objects, training", "count"), Column("images, training", "count")] if training else []
    rows = []
    for k, name in enumerate(scene.class_names):
        row = [name, int(statistics.class_counts[k]), int(statistics.class_images[k])]
        row += [int(training.class_counts[k]), int(training.class_images[k])] if training else []
        rows.append(row)
    rows.sort(key=lambda row: not any(row[1:]))  # classes without objects come last
    reading = (
        "Rows and columns are classes, a cell the number of validation images that have both, the stronger the colour, "
        "the larger the share of the images of the row's class."
    )
    content = (
        paragraph("; ".join(lines) + "."),
        plots(*figures),
        table(columns, rows, "data-classes", "class"),
        "<details><summary>Which classes occur together</summary>",
        paragraph(reading),
        '<div class="matrix" data-matrix="together"></div></details>',
    )
    return section("data", "The data", *content), {"together": together(scene, statistics)}


def together(scene: Scene, statistics: DataStatistics) -> dict[str, Any]:
    rows, columns = np.nonzero(statistics.together)
    numbers = statistics.together[rows, columns]
    cells = [[r, c, n, []] for r, c, n in zip(rows.tolist(), columns.tolist(), numbers.tolist())]
    return {"names": scene.class_names, "corner": "images with both", "cells": cells}
