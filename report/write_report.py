"""Write the report of an evaluation: report.html, a self-contained file, and its numbers as CSV and JSON.

`EvalData` -> `analyse` (masks, boxes, boundaries) -> page and tables.
"""

import datetime
from pathlib import Path

from dataset_files.atomic_files import write_atomically
from report.analysis import analyse
from report.confusion import score_images
from report.data_statistics import statistics_of
from report.html_page import ReportInput, render_page
from report.suspects import find_suspects
from report.tables import write_tables
from train_utils.errors import reading_input
from train_utils.metrics.coco_evaluation import METRIC_NAMES, TITLES
from train_utils.run.first_lines import code_version


def write_report(folder: Path, given: ReportInput) -> Path:
    """Create the folder, write the report into it, and return the page's path.

    Masks come first if there are any. The first kind determines images and suspects.

    Raises:
        InputError: the folder cannot be written to.
    """
    with reading_input():
        folder.mkdir(parents=True, exist_ok=True)
    data, kinds = given.data, [kind for kind in TITLES if kind in given.stats]
    analyses = [analyse(data, kind) for kind in kinds]
    scores = score_images(data.of_kind(kinds[0]), analyses[0].pairs)
    suspects = find_suspects(data.of_kind(kinds[0]), analyses[0].overlaps, analyses[0].errors)
    facts = {
        **given.facts,
        "detections": f"{len(data.detections):,}",
        "code": code_version(),
        "date": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    }
    splits = {"validation": statistics_of(data)} | ({} if given.training is None else {"training": given.training})
    page = render_page(given, facts, analyses, scores, suspects, splits)
    metrics = {kind: dict(zip(METRIC_NAMES, map(float, given.stats[kind]))) for kind in kinds}
    with reading_input():
        write_atomically(folder / "report.html", page)
        write_tables(folder, data, analyses, scores, suspects, {"facts": facts, "metrics": metrics})
    return folder / "report.html"
