"""Write the report of an evaluation: report.html, one file that loads nothing, and its numbers as CSV and JSON.

Ground truth and results -> `Scene` -> `analyse` (boxes, masks) -> sections of the page, whose images the `Gallery`
makes -> files.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_files.atomic_files import write_atomically
from report.analysis import analyse
from report.data_statistics import DataStatistics, statistics_of_scene
from report.gallery import Gallery
from report.html_page import page
from report.image_scores import score_images
from report.records import make_scene
from report.run_history import History, code_version
from report.sections_images import data_section, images_section, suspects_section
from report.sections_results import (
    classes_section,
    confusion_section,
    costs_section,
    curves_section,
    groups_section,
    head_section,
)
from report.suspects import find_suspects
from report.tables import write_tables
from train_utils.errors import reading_input
from train_utils.metrics.coco_evaluation import METRIC_NAMES

KINDS = ("segm", "bbox")  # the first that was compared decides about images and suspects


@dataclass
class ReportInput:
    """What a report is written of.

    Attributes:
        title: of the page.
        facts: name -> value, shown at the top: weights, data, options.
        content: ground truth, `images`, `annotations` and `categories` of a COCO file.
        results: "bbox", "segm" or both -> results in COCO's format; with both, entries are the same detections.
        stats: the same keys -> COCO's 12 metrics.
        paths: image id -> image file, of those that can be shown.
        exif: how the files are read, see `read_image`.
        training: statistics of the training split, in the order of the category ids; None if it is not known.
        history: of the run; None if there is none.
    """

    title: str
    facts: dict[str, str]
    content: Mapping[str, Sequence[Mapping[str, Any]]]
    results: Mapping[str, Sequence[Mapping[str, Any]]]
    stats: Mapping[str, Sequence[float]]
    paths: Mapping[int, Path] = field(default_factory=dict)
    exif: str | None = None
    training: DataStatistics | None = None
    history: History | None = None


def write_report(folder: Path, given: ReportInput) -> Path:
    """Write the report into a folder, which is created, and return the page's path.

    Raises:
        InputError: the folder cannot be written to.
    """
    with reading_input():
        folder.mkdir(parents=True, exist_ok=True)
    scene = make_scene(given.content, given.results, given.paths)
    kinds = [kind for kind in KINDS if kind in given.results]
    analyses = [analyse(scene, kind) for kind in kinds]
    leading = analyses[0]
    scores = score_images(scene, leading.pairs)
    suspects = find_suspects(scene, leading.overlaps, leading.errors)
    statistics = statistics_of_scene(scene)
    facts = {
        **given.facts,
        "detections": f"{len(scene.detections):,}",
        "code": code_version(),
        "date": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    }

    gallery = Gallery(scene, leading.pairs, given.exif)
    of_images = images_section(scene, leading, scores, gallery)  # these come first into the gallery
    of_suspects = suspects_section(scene, suspects, gallery)
    of_costs = costs_section(scene, analyses, gallery)
    of_confusion, matrices = confusion_section(scene, analyses, gallery)
    of_data, more_matrices = data_section(scene, statistics, given.training)
    sections = [
        head_section(facts, given.stats, given.history),
        classes_section(scene, analyses),
        curves_section(scene, analyses),
        of_confusion,
        of_costs,
        groups_section(analyses),
        of_images,
        of_suspects,
        of_data,
    ]
    data = {"names": scene.class_names, "matrices": matrices | more_matrices, **gallery.content()}
    with reading_input():
        write_atomically(folder / "report.html", page(given.title, kinds, "".join(sections), data))
        summary = {
            "facts": facts,
            "metrics": {kind: dict(zip(METRIC_NAMES, map(float, given.stats[kind]))) for kind in kinds},
        }
        write_tables(folder, scene, analyses, scores, suspects, summary)
    return folder / "report.html"
