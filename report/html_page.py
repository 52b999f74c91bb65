"""Write the report of an evaluation: a self-contained HTML page, and its numbers as CSV and JSON.

`EvalData` -> `analyse` (masks, boxes, boundaries) -> page and tables. The template is page/report.html;
page/parts.html is shared with the page of a comparison. Templates escape all inserted text, so that no class or file
name becomes markup.
"""

import base64
import datetime
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dataset_files.atomic_files import write_atomically
from report.analysis import Analysis, analyse
from report.average_precision import Calibration, Group
from report.bootstrap import RESAMPLES
from report.confusion import Confusion, ImageScores, describe_errors, score_images
from report.data_statistics import DataStatistics, statistics_of
from report.error_kinds import KINDS, MEANINGS, MISSED
from report.eval_data import EvalData
from report.gallery import Gallery, Shot, as_url
from report.suspects import MEANING, Suspect, find_suspects
from report.tables import write_tables
from train_utils.errors import reading_input
from train_utils.metrics.coco_evaluation import METRIC_NAMES, TITLES
from train_utils.run.first_lines import code_version

PAGE = Path(__file__).parent / "page"
WORST, BEST, RANDOM = 18, 6, 6
SUSPECTS_SHOWN = 200
EXAMPLES_PER_CELL, EXAMPLES_PER_KIND = 4, 8
CELLS_WITH_EXAMPLES = 1500  # the cells with most pairs
POLICY = b"default-src 'none'; img-src data:"  # at the beginning of all pages
LAST = math.inf  # upper end of a histogram's last bin, which its label omits
# Name in DataStatistics, title, edges of the bins, axis label, names of the bins, explanation.
HISTOGRAMS = (
    (
        "per_image", "Objects per image", (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, LAST), "objects per image",
        "0 1 2 3 4-5 6-7 8-11 12-15 16-23 24-31 32+",
        "Each bar is the share of images%s with that number of objects.",
    ),
    (
        "sizes", "Sizes of objects", (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, LAST),
        "square root of the area, px from", "0 8 16 24 32 48 64 96 128 192 256 384",
        "Each bar is the share of objects%s from that size up to the next; COCO's medium is from 32 to 96 pixels.",
    ),
    (
        "shapes", "Shapes of boxes", (0, 0.2, 0.33, 0.5, 0.67, 0.83, 1.2, 1.5, 2, 3, 5, LAST), "width to height, from",
        "0 1:5 1:3 1:2 2:3 1:1 1.2:1 1.5:1 2:1 3:1 5:1",
        "Each bar is the share of boxes%s from that ratio up to the next.",
    ),
)  # fmt: skip


@dataclass
class ReportInput:
    title: str
    facts: dict[str, str]  # name -> value of weights, data and options, shown at the top
    data: EvalData
    stats: Mapping[str, Sequence[float]]  # the kinds to show: "segm", "bbox", "boundary" -> COCO's 12 metrics
    training: DataStatistics | None = None  # of the training split, in the order of the category ids; None if unknown
    curves: Mapping[str, bytes] = field(default_factory=dict)  # title -> PNG file of curves of the run


def is_own_page(path: Path) -> bool:
    """Whether a file is a report page that `render` created."""
    with open(path, "rb") as file:
        return POLICY in file.read(500)


def write_report(folder: Path, given: ReportInput) -> Path:
    """Create the folder, write report.html and its numbers as CSV and JSON into it, and return the page's path.

    Which images and suspects the page shows depends on the first kind: masks if given, else boxes, else boundaries.

    Raises:
        InputError: the folder cannot be written to.
    """
    with reading_input():
        folder.mkdir(parents=True, exist_ok=True)
    data, kinds = given.data, [kind for kind in TITLES if kind in given.stats]
    analyses = [analyse(data, kind) for kind in kinds]
    leading, first = data.of_kind(kinds[0]), analyses[0]
    scores = score_images(leading, first.pairs)
    suspects = find_suspects(leading, first.overlaps, first.errors)
    facts = {
        **given.facts,
        "detections": f"{len(data.detections):,}",
        "code": code_version(),
        "date": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    }
    splits = {"validation": statistics_of(data)} | ({} if given.training is None else {"training": given.training})
    gallery = Gallery(data, first.pairs)
    # The most important sections come first, as the gallery admits a limited number of images.
    context = {
        "image_groups": image_groups(data, first.pairs, scores, gallery),
        "suspects": [suspect_entry(data, s, gallery) for s in suspects[:SUSPECTS_SHOWN]],
        "suspect_kinds": {kind: n for kind in MEANING if (n := sum(s.kind == kind for s in suspects))},
        "examples": {a.kind: {name: examples(data, a, name, gallery) for name in a.errors.costs} for a in analyses},
    }
    cells = {f"confusion-{a.kind}": examples_of_cells(data, a, gallery) for a in analyses}
    page = render(
        "report.html", {"names": data.class_names, "cells": cells, **gallery.content()}, **context,
        given=given, facts=facts, data=data, analyses=analyses, splits=splits, histograms=histograms(splits),
        all_suspects=len(suspects), curves={title: as_url(png, "png") for title, png in given.curves.items()},
        class_rows=class_rows(splits, data), matrix=matrix, most_confused=most_confused, small_curves=small_curves,
        calibration_chart=calibration_chart, cost_chart=cost_chart, group_chart=group_chart,
        metric_names=METRIC_NAMES, error_meanings=MEANINGS, suspect_meanings=MEANING,
    )  # fmt: skip
    metrics = {kind: dict(zip(METRIC_NAMES, map(float, given.stats[kind]))) for kind in kinds}
    with reading_input():
        write_atomically(folder / "report.html", page)
        write_tables(folder, data, analyses, scores, suspects, {"facts": facts, "metrics": metrics})
    return folder / "report.html"


def render(template: str, content: Mapping[str, Any], **context: Any) -> str:
    """Render a template of page/ with `context`. The page embeds `content` as JSON, which the page's script reads."""
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    as_script = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.policies["json.dumps_kwargs"] = as_script
    environment.filters |= {"fixed": fixed, "finite": math.isfinite}
    return environment.get_template(template).render(
        context, content=content, shots=content["shots"], images=content["images"], resamples=RESAMPLES,
        kind_names=TITLES, style=Markup(style), script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def fixed(value: float, digits: int = 3) -> str:
    """Format a number; NaN and COCO's -1 become a dash."""
    return f"{value:.{digits}f}" if math.isfinite(value) and value >= 0 else "–"


def image_groups(data: EvalData, pairs: Confusion, scores: ImageScores, gallery: Gallery) -> dict[str, list[int]]:
    chosen = {"Worst": scores.worst(WORST), "Best": scores.best(BEST), "Drawn at random": scores.sample(RANDOM)}
    groups: dict[str, list[int]] = {}
    for title, images in chosen.items():
        for image in images:
            wrong = describe_errors(data, pairs, image)
            caption = f"{data.file_names[image]} – F1 {scores.f1[image]:.2f} – {wrong}"
            if (number := gallery.admit(Shot(image), caption)) is not None:
                groups.setdefault(title, []).append(number)
    return groups


def suspect_entry(data: EvalData, suspect: Suspect, gallery: Gallery) -> dict[str, Any]:
    annotated = detected = "–"
    if suspect.object >= 0:
        name = data.class_names[data.objects.classes[suspect.object]]
        annotated = f"{name} (annotation {data.objects.ids[suspect.object]})"
    if suspect.detection >= 0:
        name = data.class_names[data.detections.classes[suspect.detection]]
        detected = f"{name} {data.detections.scores[suspect.detection]:.2f}"
    shot = gallery.admit(Shot(suspect.image, suspect.object, suspect.detection), crop=True)
    return {
        "kind": suspect.kind, "confidence": suspect.confidence, "shot": shot, "file": data.file_names[suspect.image],
        "annotated": annotated, "detected": detected,
    }  # fmt: skip


def examples(data: EvalData, analysis: Analysis, name: str, gallery: Gallery) -> list[int]:
    """Add examples of the kind of error `name` to the gallery, and return their indices there.

    They are the errors with the highest scores, or the largest of the missed objects.
    """
    errors, found, objects = analysis.errors, data.detections, data.objects
    if name == MISSED:
        missed = np.flatnonzero(errors.missed)
        missed = missed[np.argsort(-objects.areas[missed], kind="stable")][:50]
        shots = [Shot(int(objects.images[g]), int(g)) for g in missed]
    else:
        kind = next(number for number, title in KINDS.items() if title == name)
        wrong = np.flatnonzero(errors.kinds == kind)
        wrong = wrong[np.argsort(-found.scores[wrong], kind="stable")][:50]
        shots = [Shot(int(found.images[d]), int(errors.targets[d]), int(d)) for d in wrong]
    return gallery.admit_some(shots, EXAMPLES_PER_KIND)


def examples_of_cells(data: EvalData, analysis: Analysis, gallery: Gallery) -> dict[str, list[int]]:
    """Add examples of the confusion matrix's cells to the gallery, errors first. Return "row,column" -> indices."""
    pairs = analysis.pairs
    keys = pairs.rows * len(pairs.matrix) + pairs.columns
    order = np.lexsort((-np.append(data.detections.scores, 0)[pairs.detections], keys))
    groups = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(order) else []
    groups.sort(key=lambda g: (pairs.rows[g[0]] == pairs.columns[g[0]], -len(g)))
    found = {}
    for group in groups[:CELLS_WITH_EXAMPLES]:
        shots = [Shot(int(pairs.images[p]), int(pairs.objects[p]), int(pairs.detections[p])) for p in group[:100]]
        found[f"{pairs.rows[group[0]]},{pairs.columns[group[0]]}"] = gallery.admit_some(shots, EXAMPLES_PER_CELL)
    return found


def most_confused(matrix: np.ndarray) -> list[tuple[int, int, int]]:
    """Return row, column and number of the 12 largest off-diagonal cells; empty ones are left out."""
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    places = np.argsort(-off, axis=None, kind="stable")[:12]
    cells = np.stack((*np.unravel_index(places, off.shape), off.flat[places]), axis=1)
    return [tuple(cell) for cell in cells.tolist() if cell[2]]


def matrix(numbers: np.ndarray, totals: np.ndarray) -> dict[str, Any]:
    """Convert a matrix over classes for the template. Classes whose row and column are all 0 are left out.

    Returns the `used` classes, and `rows` of (class, [(class, number, colour strength)]). `totals`, int64 [K], is the
    number in each row of `numbers`, [K, K], that gets the strongest colour.
    """
    used = np.flatnonzero(numbers.any(axis=0) | numbers.any(axis=1))
    shares = np.sqrt(numbers / np.maximum(totals, 1)[:, None])
    rows = [[(c, int(numbers[r, c]), float(shares[r, c])) for c in used.tolist()] for r in used]
    return {"used": used.tolist(), "rows": list(zip(used.tolist(), rows))}


def small_curves(curves: np.ndarray) -> list[str]:
    """Convert curves [3, 101] to stepped SVG paths. Each value is one unit wide, and precision 1 is 100 units high."""
    paths = []
    for curve in curves:
        heights = [f"{100 * (1 - value):.6g}" for value in curve.tolist()]
        steps = "".join(f"V{height}h{len(list(run))}" for height, run in itertools.groupby(heights))
        paths.append(f"M0,{heights[0]}{steps}")
    return paths


def class_rows(splits: Mapping[str, DataStatistics], data: EvalData) -> list[list[Any]]:
    """Return a row per class: name, then objects and images in each split. Classes without objects come last."""
    counts = np.stack([counts for s in splits.values() for counts in (s.class_counts, s.class_images)], axis=1)
    rows = [[name, *numbers] for name, numbers in zip(data.class_names, counts.tolist())]
    return sorted(rows, key=lambda row: not any(row[1:]))


class BarGroup(NamedTuple):
    """The bars at one tick of the axis, one bar per series."""

    tick: Sequence[str]  # lines of text
    heights: Sequence[float]
    text: str = ""  # above the bars


class Chart(NamedTuple):
    bars: list[BarGroup]
    across: str  # label of the axis
    upwards: str
    top: float  # upper end of the axis


def calibration_chart(found: Calibration) -> Chart:
    """Chart the share of correct detections over their scores, with the number of detections above each bar."""
    number = len(found.counts)
    bars = [
        BarGroup([f"{k / number:.1f}"], [right], short(count) if count else "")
        for k, (right, count) in enumerate(zip(np.nan_to_num(found.right).tolist(), found.counts.tolist()))
    ]
    return Chart(bars, "score, from", "share that is right", 1)


def cost_chart(costs: Mapping[str, float]) -> Chart:
    """Chart how much AP50 rises if the errors of each kind are repaired."""
    bars = [BarGroup([name], [max(100 * cost, 0)], f"{100 * cost:.1f}") for name, cost in costs.items()]
    return Chart(bars, "kind of error", "points of AP50 to be gained", round_top(bars))


def group_chart(groups: Sequence[Group], label: str) -> Chart:
    """Chart the AP of each group, with its number of objects below."""
    names = [g.name.replace("under ", "<").replace("over ", ">").replace(" and more", "+") for g in groups]
    bars = [
        BarGroup([name, f"n={short(g.objects)}"], [0.0 if math.isnan(g.ap) else g.ap], fixed(g.ap, 2))
        for name, g in zip(names, groups)
    ]
    return Chart(bars, label, "AP", 1)


def histograms(splits: Mapping[str, DataStatistics]) -> list[tuple[Chart, str, str]]:
    """Return the chart, title and explanation of each histogram. The bars of two splits stand side by side."""
    beside, charts = " beside those of training" if "training" in splits else "", []
    for name, title, edges, label, ticks, reading in HISTOGRAMS:
        shares = []
        for values in (getattr(of_split, name) for of_split in splits.values()):
            shares.append(100 * np.histogram(values, edges)[0] / max(len(values), 1))
        bars = [BarGroup([tick], heights) for tick, heights in zip(ticks.split(), np.stack(shares, axis=1).tolist())]
        charts.append((Chart(bars, label, "percent", round_top(bars)), title, reading % beside))
    return charts


def round_top(bars: Sequence[BarGroup]) -> float:
    """Return a round number that is at least 1 and not below any bar."""
    highest = max(1.0, *(height for bar in bars for height in bar.heights))
    power = 10 ** math.floor(math.log10(highest))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= highest)


def short(number: int) -> str:
    """Abbreviate a number: 1234 -> "1.2k"."""
    return str(number) if number < 1000 else f"{number / 1000:.1f}k" if number < 10_000 else f"{number // 1000}k"
