"""Reports that several test files look at."""

from pathlib import Path

import pytest

from report.comparison import compare, write_comparison
from report.eval_data import make_eval_data
from report.html_page import ReportInput, write_report
from tests.helpers.report_cases import BIRD, CAT, DOG, IMAGE, draw_image, every_kind_of_error

EVIL = '</script><script>alert("x")</script>'
EVIL_NAMES = {CAT: "猫 <b>&'\"", DOG: EVIL, BIRD: "bird"}
EVIL_FILE = '<img src=x onerror=alert(1)>&".jpg'


@pytest.fixture(scope="session")
def evil_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of boxes and masks, with class and file names that try to become markup."""
    folder = tmp_path_factory.mktemp("report")
    truth, results = every_kind_of_error(EVIL_NAMES, EVIL_FILE)
    given = ReportInput(
        title=f"{EVIL} on 数据",
        facts={"weights": EVIL, "data": EVIL_FILE},
        data=make_eval_data(truth, results, {IMAGE: draw_image(folder / "image.jpg")}),
        stats={kind: [0.5] * 12 for kind in results},
    )
    write_report(folder / "out", given)
    return folder / "out"


@pytest.fixture(scope="session")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that compares all detections of the hand-made image with half of them."""
    folder = tmp_path_factory.mktemp("comparison")
    truth, results = every_kind_of_error(EVIL_NAMES, EVIL_FILE)
    half = {kind: entries[::2] for kind, entries in results.items()}
    paths = {IMAGE: draw_image(folder / "image.jpg")}
    found = compare(truth, (EVIL, "b.json"), (results, half), ["segm", "bbox"], paths)
    return write_comparison(folder, found, {"data": EVIL_FILE})
