"""The page is one safe file: it loads nothing, names stay text, curves have the areas of the table, sizes stay sane."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from report import gallery as gallery_module
from report.analysis import analyse
from report.gallery import Gallery, Shot, outline
from report.html_page import small_curves
from tests.helpers.commands import assert_refused, run, succeeded
from tests.helpers.report_cases import IMAGE, draw_image, eval_data_of, every_kind_of_error
from tests.report.conftest import EVIL, EVIL_FILE, EVIL_NAMES
from train_utils.run.first_lines import PROJECT, code_version


class Parts(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.inside: str = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.inside, []).append(data)


@pytest.fixture(scope="module")
def page(evil_report: Path) -> str:
    return (evil_report / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parts(page: str) -> Parts:
    return Parts(page)


def page_data(page: str) -> dict:
    return json.loads(re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL).group(1))


def test_names_never_become_markup(page: str, parts: Parts):
    tags = [tag for tag, _ in parts.elements]
    assert tags.count("script") == 2 and "alert(" not in "".join(parts.texts["script"][1:])
    assert not {"img", "iframe", "object", "link", "base", "form"} & set(tags)
    assert not [name for _, attributes in parts.elements for name in attributes if name.startswith("on")]
    assert page.count("</script") == 2 and EVIL not in page
    assert [name in "".join(parts.texts["td"]) for name in EVIL_NAMES.values()] == [True] * 3
    assert EVIL in "".join(parts.texts["dd"]) and f"{EVIL} on 数据" in parts.texts["h1"]
    assert page_data(page)["names"] == list(EVIL_NAMES.values())
    assert page_data(page)["images"]["0"]["file"] == EVIL_FILE
    assert not set("<>&") & set(re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL).group(1))


def test_the_page_loads_nothing(parts: Parts):
    for tag, attributes in parts.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:image/jpeg;base64,")) or not value, (tag, value)
    policy = next(a["content"] for _, a in parts.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "script-src 'sha256-" in policy
    assert "url(" not in "".join(parts.texts["style"]).replace("url(#", "")


def test_every_figure_has_a_sentence_that_says_how_to_read_it(page: str):
    figures = re.findall(r'<figure class="plot">.*?</figure>', page, re.DOTALL)
    assert len(figures) == 2 * (2 + 1 + 3) + 3
    for figure in figures:
        caption = re.search(r"<figcaption>(.*?)</figcaption>", figure, re.DOTALL).group(1)
        assert caption.endswith(".") and len(caption) > 30
        assert '<svg class="chart"' in figure and "NaN" not in figure and "nan" not in figure.lower()


def test_ids_are_unique_and_what_is_used_is_there(page: str, parts: Parts):
    ids = [attributes["id"] for _, attributes in parts.elements if attributes.get("id")]
    assert len(ids) == len(set(ids)) > 18
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert set(used) <= set(ids) and len(used) > 8


# --------------------------------------------------------------------------------------------------------- the numbers


def test_the_area_under_each_curve_is_the_ap_of_the_table(evil_report: Path, page: str):
    report = json.loads((evil_report / "report.json").read_text(encoding="utf-8"))
    with open(evil_report / "classes.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["compared"] == "masks"]
    for row, of_class in zip(rows, report["segm"]["classes"], strict=True):
        for column, curve in (("AP50", "IoU 0.5"), ("AP75", "IoU 0.75"), ("AP", "IoU 0.5 to 0.95")):
            assert np.mean(of_class["curves"][curve]) == pytest.approx(float(row[column]), abs=1e-6)
    drawn = [area(path) for path in re.findall(r'class="line-\d" d="([^"]*)"', page)]
    by_ap = sorted(report["segm"]["classes"], key=lambda each: -each["ap"])
    expected = [each[key] for each in by_ap for key in ("ap50", "ap75", "ap")]
    assert drawn[:9] == pytest.approx(expected, abs=1e-6)


def test_a_class_in_few_images_has_no_interval(evil_report: Path, page: str):
    report = json.loads((evil_report / "report.json").read_text(encoding="utf-8"))["segm"]
    assert [of_class["ap_interval"] for of_class in report["classes"]] == [[None, None]] * 3
    assert "<small>" not in page
    with open(evil_report / "classes.csv", encoding="utf-8", newline="") as file:
        assert {row["AP_low"] + row["AP_high"] for row in csv.DictReader(file)} == {""}


def area(path: str) -> float:
    """The area below the steps of a path in a frame of 101 x 100 units, as a share of the frame."""
    total, height = 0.0, 0.0
    for command, value in re.findall(r"([MVh])([\d.,e-]+)", path):
        if command == "h":
            total += float(value) * (100 - height)
        else:
            height = float(value.split(",")[-1])
    return total / (101 * 100)


def test_a_small_curve_is_a_step_function():
    curve = np.linspace(1, 0, 101)
    areas = [area(path) for path in small_curves(np.stack((curve, curve**2, curve)))]
    assert areas == pytest.approx([0.5, (curve**2).mean(), 0.5], abs=1e-6)


def test_tables_for_other_programs_have_names_as_they_are(evil_report: Path):
    with open(evil_report / "suspects.csv", encoding="utf-8", newline="") as file:
        suspects = list(csv.DictReader(file))
    assert suspects[0]["kind"] == "wrong class" and suspects[0]["file_name"] == EVIL_FILE
    assert suspects[0]["annotation_id"] == "2" and suspects[0]["annotated_class"] == EVIL
    assert [float(suspects[0][side]) for side in ("x", "y", "width", "height")] == [60, 0, 40, 40]
    missing = next(each for each in suspects if each["kind"] == "missing")
    assert missing["annotation_id"] == "" and missing["detected_class"] == "bird" and float(missing["x"]) == 150
    with open(evil_report / "errors.csv", encoding="utf-8", newline="") as file:
        errors = list(csv.DictReader(file))
    report = json.loads((evil_report / "report.json").read_text(encoding="utf-8"))
    for compared, kind in (("masks", "segm"), ("boxes", "bbox")):
        matrix = np.array(report[kind]["confusion"]["matrix"])
        assert sum(row["compared"] == compared for row in errors) == matrix.sum() - np.trace(matrix)


# ---------------------------------------------------------------------------------------------------------- the images


def test_a_full_gallery_admits_no_further_image(monkeypatch: pytest.MonkeyPatch):
    truth, results = every_kind_of_error()
    truth["images"].append(truth["images"][0] | {"id": 8})
    data = eval_data_of(truth, {"bbox": results["bbox"]})
    monkeypatch.setattr(gallery_module, "MOST_IMAGES", 1)
    gallery = Gallery(data, analyse(data, "bbox").pairs)
    assert gallery.admit(Shot(0, 1, 2)) == 0 and gallery.admit(Shot(1)) is None
    assert gallery.admit_some([Shot(1), Shot(0, 3)], 2) == [1]
    content = gallery.content()
    assert list(content["images"]) == ["0"] and [shot[:3] for shot in content["shots"]] == [[0, 1, 2], [0, 3, -1]]


def test_an_image_of_another_size_is_shown_as_outlines(tmp_path: Path, capsys: pytest.CaptureFixture):
    truth, results = every_kind_of_error()
    data = eval_data_of(truth, results, draw_image(tmp_path / "small.jpg", side=50))
    gallery = Gallery(data, analyse(data, "segm").pairs)
    gallery.admit(Shot(0))
    content = gallery.content()["images"]["0"]
    assert content["src"] is None and len(content["truth"]) == 6
    assert "not of the annotated size, 200x200" in capsys.readouterr().err


@pytest.mark.parametrize("side", [1, 7, 40, 300])
def test_outlines_follow_the_mask(side: int):
    mask = np.zeros((side, 2 * side), dtype=np.uint8)
    mask[:, : side + side // 2] = 1
    points = np.array([pair.split(",") for pair in re.findall(r"\d+,\d+", outline(10, 20, mask))], dtype=int)
    tolerance = max(1, 2 * side / 72)
    assert abs(points.min(axis=0) - (10, 20)).max() <= tolerance
    assert abs(points.max(axis=0) - (10 + side + side // 2, 20 + side)).max() <= tolerance


# ---------------------------------------------------------------------------------------------------------- the script


@pytest.fixture
def files(tmp_path: Path) -> Path:
    truth, results = every_kind_of_error()
    (tmp_path / "images").mkdir()
    draw_image(tmp_path / "images" / "7.jpg")
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for kind, entries in results.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.mark.slow
def test_the_report_of_a_results_file(files: Path):
    given = ("--results-json", "segm.json", "--annotation-file", "truth.json", "--iou-type", "segm")
    outcome = succeeded(run(files, "validation.py", *given, "--image-folder", "images", "--report", "out/report"))
    assert "AP" in outcome.out and outcome.out.splitlines()[-1] == "report in out/report/report.html"
    page = (files / "out/report/report.html").read_text(encoding="utf-8")
    image = page_data(page)["images"]["0"]
    assert image["src"].startswith("data:image/jpeg;base64,") and image["id"] == IMAGE
    assert [each[5].startswith("M") for each in image["truth"]] == [True] * 6
    assert json.loads((files / "out/report/report.json").read_text())["segm"]["errors"]["counts"]["class"] == 1
    again = succeeded(run(files, "validation.py", *given, "--report", "out/report"))  # replaces it; without images
    assert "warning" not in again.err
    page = (files / "out/report/report.html").read_text(encoding="utf-8")
    assert page_data(page)["images"]["0"]["src"] is None


def test_wrong_use_is_refused(files: Path):
    given = ("--results-json", "bbox.json", "--annotation-file", "truth.json")
    refused = run(files, "validation.py", *given, "--image-folder", "images")
    assert_refused(refused, "--image-folder is for --report only")
    assert_refused(run(files, "validation.py", *given, "--report", "truth.json"), "truth.json: exists, and is not a")
    refused = run(files, "validation.py", *given, "--report", "out", "--image-folder", "none")
    assert_refused(refused, "none: no such folder (--image-folder)")
    assert_refused(run(files, "validation.py", "--report", "truth.json"), "truth.json: exists, and is not a")


def test_missing_images_are_named_and_shown_as_outlines(files: Path):
    (files / "images" / "7.jpg").unlink()
    given = ("--results-json", "bbox.json", "--annotation-file", "truth.json", "--report", "out")
    outcome = succeeded(run(files, "validation.py", *given, "--image-folder", "images"))
    assert "images: 1 of 1 images are missing" in outcome.err


@pytest.mark.slow
def test_no_image_outside_of_the_folder_is_shown(files: Path):
    truth = json.loads((files / "truth.json").read_text())
    draw_image(files / "private.jpg")
    for name in ("../private.jpg", str(files / "private.jpg")):
        truth["images"][0]["file_name"] = name
        (files / "truth.json").write_text(json.dumps(truth))
        (files / "images" / "7.jpg").unlink(missing_ok=True)
        given = ("--results-json", "bbox.json", "--annotation-file", "truth.json", "--report", "out")
        succeeded(run(files, "validation.py", *given, "--image-folder", "images"))
        assert "data:image" not in (files / "out" / "report.html").read_text(encoding="utf-8")


def test_the_report_names_the_commit_of_this_checkout():
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout")
    assert re.fullmatch(r"[0-9a-f]{12}(, changed)?", code_version())
