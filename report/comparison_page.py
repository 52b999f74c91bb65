"""Write the page of a comparison, with its numbers as CSV and JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset_files.atomic_files import write_atomically
from report.comparison import Comparison
from report.gallery import Gallery, Shot
from report.html_page import render
from report.tables import write_json, write_table
from train_utils.errors import reading_input

CHANGED_SHOWN = 24
HEAD = (
    "compared", "name", "objects", "A", "A_low", "A_high", "B", "B_low", "B_high", "difference", "difference_low",
    "difference_high", "B_ahead",
)  # fmt: skip


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
    if titles[0] == titles[1]:
        titles = list(comparison.names)
    page = render(
        "comparison.html", {},
        title=" and ".join(f"{letter}: {name}" for letter, name in zip("AB", titles)),
        facts={"A": comparison.names[0], "B": comparison.names[1], **facts}, comparison=comparison, data=data,
        changed=changed, scores=[pairs.score for pairs in leading.pairs],
        content={"names": data.class_names, "cells": {}, **content},
    )  # fmt: skip
    numbers: dict[str, Any] = {"facts": facts, "verdicts": {each.kind: each.verdict() for each in comparison.kinds}}
    for each in comparison.kinds:
        rows = {"metrics": each.metrics, "classes": each.classes}
        numbers[each.kind] = {name: [asdict(r) | {"difference": r.difference} for r in of] for name, of in rows.items()}
    with reading_input():
        write_atomically(folder / "report.html", page)
        write_table(folder / "comparison.csv", HEAD, csv_rows(comparison))
        write_json(folder / "report.json", numbers)
    return folder / "report.html"


def csv_rows(comparison: Comparison) -> Iterator[Sequence[Any]]:
    for each in comparison.kinds:
        for row in each.metrics + each.classes:
            sides = (row.a, *row.of_a, row.b, *row.of_b, row.difference, *row.of_difference, row.ahead)
            yield each.kind, row.name, row.objects, *sides
