"""Write the report of an evaluation: report.html, a self-contained file, and its numbers as CSV and JSON.

Ground truth and results -> `EvalData` -> `analyse` (boxes, masks) -> page and tables.
"""

import datetime
from pathlib import Path

from dataset_files.atomic_files import write_atomically
from report.analysis import KIND_NAMES, analyse
from report.confusion import score_images
from report.data_statistics import statistics_of
from report.eval_data import make_eval_data
from report.html_page import ReportInput, render_page
from report.suspects import find_suspects
from report.tables import write_tables
from train_utils.errors import reading_input
from train_utils.metrics.coco_evaluation import METRIC_NAMES
from train_utils.run.first_lines import code_version


def write_report(folder: Path, given: ReportInput) -> Path:
    """Create the folder, write the report into it, and return the page's path.

    Raises:
        InputError: the folder cannot be written to.
    """
    with reading_input():
        folder.mkdir(parents=True, exist_ok=True)
    data = make_eval_data(given.content, given.results, given.paths)
    kinds = [kind for kind in KIND_NAMES if kind in given.stats]
    analyses = [analyse(data, kind) for kind in kinds]
    leading = analyses[0]
    scores = score_images(data.of_kind(leading.kind), leading.pairs)
    suspects = find_suspects(data.of_kind(leading.kind), leading.overlaps, leading.errors)
    facts = {
        **given.facts,
        "detections": f"{len(data.detections):,}",
        "code": code_version(),
        "date": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    }

    page = render_page(given, facts, data, analyses, scores, suspects, statistics_of(data))
    with reading_input():
        write_atomically(folder / "report.html", page)
        summary = {
            "facts": facts,
            "metrics": {kind: dict(zip(METRIC_NAMES, map(float, given.stats[kind]))) for kind in kinds},
        }
        write_tables(folder, data, analyses, scores, suspects, summary)
    return folder / "report.html"
