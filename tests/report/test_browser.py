"""The page in a real browser: no errors, nothing overflows, and sorting, filtering and choosing cells work."""

import base64
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.browser import browser, show
from tests.report.conftest import EVIL_NAMES

pytestmark = pytest.mark.slow

# Elements that reach beyond the window, but for those in boxes of their own that scroll.
OVERFLOWING = """
const found = [];
for (const each of document.querySelectorAll("body *")) {
  if (each.closest(".scroll, .matrix, svg") && !each.matches(".scroll, .matrix")) continue;
  const box = each.getBoundingClientRect();
  if (box.width && box.right > window.innerWidth + 1) found.push(each.tagName + "." + each.className);
}
return [Math.max(document.documentElement.scrollWidth - window.innerWidth, 0), found];
"""
COLUMN = """
const rows = [...document.getElementById(arguments[0]).tBodies[0].rows];
return rows.filter(row => !row.hidden).map(row => row.cells[arguments[1]].textContent);
"""
DRAWN_IMAGES = """
const shown = [...document.querySelectorAll(arguments[0])].filter(each => each.offsetParent !== null);
return shown.map(each => each.querySelectorAll("svg image[href^='data:image/jpeg']").length);
"""


@pytest.fixture(scope="module")
def opened() -> Iterator:
    with browser() as driver:
        yield driver


@pytest.fixture
def at_desk(opened, evil_report: Path):
    show(opened, evil_report / "report.html", 1280)
    return opened


def click(opened, target) -> None:
    """Click in the middle of the window; at its top the bar with boxes and masks may lie over the target."""
    opened.execute_script("arguments[0].scrollIntoView({ block: 'center' })", target)
    target.click()


def column(opened, table: str, number: int) -> list[str]:
    return opened.execute_script(COLUMN, table, number)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_the_console_is_silent(opened, evil_report: Path, width: int, dark: bool):
    opened.get_log("browser")
    show(opened, evil_report / "report.html", width, dark)
    assert opened.execute_script("return window.innerWidth") == width
    assert opened.execute_script(OVERFLOWING) == [0, []]
    assert opened.get_log("browser") == []
    background = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_comparison_fits_and_draws_each_image_three_times(opened, comparison_page: Path, width: int):
    opened.get_log("browser")
    show(opened, comparison_page, width)
    assert opened.execute_script(OVERFLOWING) == [0, []] and opened.get_log("browser") == []
    drawn = "return [...document.querySelectorAll('.triple svg')].map(e => e.querySelectorAll('.box, path').length)"
    # Six objects, eight detections of A, and one of B that reaches its best score; each over a pale line.
    assert opened.execute_script(drawn) == [2 * 6, 2 * 8, 2 * 1]


def test_tables_sort_by_each_column_both_ways(at_desk):
    head = at_desk.find_elements("css selector", "#classes-segm thead button")
    click(at_desk, head[2])
    assert column(at_desk, "classes-segm", 2) == sorted(column(at_desk, "classes-segm", 2), reverse=True)
    click(at_desk, head[2])
    assert column(at_desk, "classes-segm", 2) == sorted(column(at_desk, "classes-segm", 2))
    click(at_desk, head[0])
    by_name = column(at_desk, "classes-segm", 0)
    click(at_desk, head[0])
    assert sorted(by_name) == sorted(EVIL_NAMES.values()) and column(at_desk, "classes-segm", 0) == by_name[::-1]
    states = [each.get_attribute("aria-sort") for each in at_desk.find_elements("css selector", "#classes-segm th")]
    assert states == ["descending"] + [None] * 9


def test_a_column_without_a_number_sorts_below_all(at_desk):
    head = at_desk.find_elements("css selector", "#classes-segm thead button")
    click(at_desk, head[9])
    assert column(at_desk, "classes-segm", 9) == ["0.900", "0.300", "–"]


def test_the_filter_leaves_matching_classes(at_desk):
    field = at_desk.find_element("css selector", 'input[data-table="classes-segm"]')
    field.send_keys("猫")
    assert column(at_desk, "classes-segm", 0) == [EVIL_NAMES[1]]
    assert at_desk.find_element("css selector", '[data-count="classes-segm"]').text == "1 of 3"
    field.clear()
    field.send_keys("NONE OF THEM")
    assert column(at_desk, "classes-segm", 0) == []


def test_boxes_and_masks_change_places(at_desk):
    shown = "return getComputedStyle(document.querySelector(`#classes .of-kind[data-kind=${arguments[0]}]`)).display"
    assert [at_desk.execute_script(shown, kind) for kind in ("segm", "bbox")] == ["block", "none"]
    click(at_desk, at_desk.find_element("id", "show-bbox"))
    assert [at_desk.execute_script(shown, kind) for kind in ("segm", "bbox")] == ["none", "block"]


def test_a_cell_of_the_confusion_matrix_shows_its_images(at_desk):
    frame = at_desk.find_element("css selector", '[data-matrix="confusion-segm"]')
    cell = frame.find_element("css selector", 'td[data-cell="1,0"]')
    assert cell.text == "1"
    click(at_desk, cell)
    panel = at_desk.find_element("css selector", '[data-matrix="confusion-segm"] + .behind')
    assert panel.text.startswith(f"{EVIL_NAMES[2]} detected as {EVIL_NAMES[1]}: 1")
    at_desk.execute_script("arguments[0].scrollIntoView()", panel)
    at_desk.execute_async_script("setTimeout(arguments[0], 200)")
    assert len(panel.find_elements("css selector", "svg image")) == 1
    assert len(panel.find_elements("css selector", "svg .truth, svg .found")) == 2


def test_the_matrix_follows_the_arrow_keys(at_desk):
    from selenium.webdriver.common.keys import Keys

    cell = at_desk.find_element("css selector", '[data-matrix="confusion-segm"] td[tabindex="0"]')
    cell.send_keys(Keys.ARROW_DOWN)
    active = at_desk.switch_to.active_element
    assert active.get_attribute("data-cell") == "1,0"
    active.send_keys(Keys.ENTER)
    assert active.get_attribute("aria-selected") == "true"
    panel = at_desk.find_element("css selector", '[data-matrix="confusion-segm"] + .behind')
    assert "detected as" in panel.text


def test_a_button_of_the_most_confused_pairs_chooses_its_cell(at_desk):
    button = at_desk.find_element("css selector", '#confusion [data-kind="segm"] [data-chooses]')
    words = button.text
    click(at_desk, button)
    chosen = at_desk.find_element("css selector", '[data-matrix="confusion-segm"] td[aria-selected="true"]')
    assert words.endswith(chosen.text)


def test_suspects_can_be_chosen_by_kind(at_desk):
    from selenium.webdriver.support.select import Select

    Select(at_desk.find_element("id", "suspect-kind")).select_by_visible_text("missing")
    shown = [each for each in at_desk.find_elements("css selector", ".suspects li") if each.is_displayed()]
    assert len(shown) == int(at_desk.find_element("id", "suspect-count").text.split()[0]) > 0
    assert all("missing" in each.text for each in shown)


def test_images_of_all_kinds_are_drawn(at_desk):
    pairs = at_desk.execute_script(DRAWN_IMAGES, ".shot.pair")
    assert pairs and set(pairs) == {2}
    for css in (".shot.crop", "#costs .shot.zoom"):
        single = at_desk.execute_script(DRAWN_IMAGES, css)
        assert single and set(single) == {1}


@pytest.mark.parametrize("width", [1280, 390])
def test_links_land_where_they_point_before_and_after_images_are_drawn(opened, evil_report: Path, width: int):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    place = "return document.getElementById(arguments[0]).getBoundingClientRect().top + window.scrollY"
    opened.get((evil_report / "report.html").as_uri())
    before = [opened.execute_script(place, name) for name in ("images", "suspects", "data")]
    assert not opened.find_elements("css selector", ".shot.crop image")
    opened.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.find_elements("css selector", ".shot.crop image")
    assert [opened.execute_script(place, name) for name in ("images", "suspects", "data")] == before


def test_a_pdf_of_the_page_has_its_images_and_matrices(opened, evil_report: Path, tmp_path: Path):
    """Nothing was scrolled to before printing; masks are shown, boxes are not."""
    if shutil.which("pdfimages") is None:
        pytest.skip("needs pdfimages and pdftotext (Debian: apt-get install poppler-utils)")
    opened.get((evil_report / "report.html").as_uri())
    shown = len(opened.find_elements("css selector", ".shot.pair"))
    shown += len(opened.find_elements("css selector", ".shot.crop"))
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {})["data"]))

    def output(*command: str) -> str:
        return subprocess.run([*command, str(pdf), *(["-"] if command[0] == "pdftotext" else [])],
                              check=True, capture_output=True, text=True).stdout  # fmt: skip

    assert output("pdfimages", "-list").count(" image ") >= shown > 3
    assert output("pdftotext", "-layout").split("annotated \\", 1)[1].split()[0] == "detected"
