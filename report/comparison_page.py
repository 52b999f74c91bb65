"""Write the page of a comparison, with its numbers as CSV and JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset_files.atomic_files import write_atomically
from dataset_files.stored_images import RGB, ImageForm
from report.bootstrap import RESAMPLES
from report.comparison import Comparison, Row
from report.gallery import Gallery, Shot
from report.html_page import render
from report.tables import as_json, write_table
from train_utils.errors import reading_input

CHANGED_SHOWN = 24
HEAD = (
    "compared", "name", "objects", "A", "A_low", "A_high", "B", "B_low", "B_high", "difference", "difference_low",
    "difference_high", "B_ahead",
)  # fmt: skip


def write_comparison(folder: Path, comparison: Comparison, facts: Mapping[str, str], form: ImageForm = RGB) -> Path:
    """Write report.html, report.json and comparison.csv into a folder; return the page's path."""
    leading = comparison.kinds[0]
    galleries = [Gallery(data, pairs, form) for data, pairs in zip(comparison.data, leading.pairs)]
    captions = {image: caption(comparison, image) for image in leading.changed_most(CHANGED_SHOWN)}
    for gallery in galleries:
        changed = [gallery.admit(Shot(image), words) for image, words in captions.items()]
    content = galleries[0].content()
    for image, shown in content["images"].items():
        shown["other"] = galleries[1].detections_of(int(image), galleries[1].right()[1], set())
    title = " and ".join(f"{letter}: {Path(name).name}" for letter, name in zip("AB", comparison.names))
    page = render(
        "comparison.html", {},
        title=title, comparison=comparison, changed=changed if captions else [], resamples=RESAMPLES,
        scores=[pairs.score for pairs in leading.pairs], data=comparison.data[0],
        facts={"A": comparison.names[0], "B": comparison.names[1], **facts},
        content={"names": comparison.data[0].class_names, "cells": {}, **content},
        shots=content["shots"], images=content["images"],
    )  # fmt: skip
    numbers = {
        each.kind: {"metrics": [plain(row) for row in each.metrics], "classes": [plain(row) for row in each.classes]}
        for each in comparison.kinds
    }
    with reading_input():
        write_atomically(folder / "report.html", page)
        write_table(folder / "comparison.csv", HEAD, csv_rows(comparison))
        verdicts = {each.kind: each.verdict() for each in comparison.kinds}
        write_atomically(folder / "report.json", as_json({"facts": dict(facts), "verdicts": verdicts} | numbers))
    return folder / "report.html"


def caption(comparison: Comparison, image: int) -> str:
    a, b = (f"{scores.f1[image]:.2f}" for scores in comparison.kinds[0].scores)
    return f"{comparison.data[0].file_names[image]} – F1 of A {a}, of B {b}"


def plain(row: Row) -> dict[str, Any]:
    return asdict(row) | {"difference": row.difference}


def csv_rows(comparison: Comparison) -> Iterator[Sequence[Any]]:
    for each in comparison.kinds:
        for row in each.metrics + each.classes:
            sides = (row.a, *row.of_a, row.b, *row.of_b, row.difference, *row.of_difference, row.ahead)
            yield each.kind, row.name, row.objects, *sides
