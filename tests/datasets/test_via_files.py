"""VIA's layouts: which attribute is the class, every shape, and bad files named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_files.layouts import via_files
from tests.helpers.layout_checks import DISC, classes_of, mask_of, only

# pycocotools' decoder and numpy 2 do not yet agree on what __array__ takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def write_regions(root: Path, regions: object, **project: object) -> Path:
    """One image of 40 x 60; with `project` a project of version 2, else version 1's or an export's dict."""
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40)).save(root / "a.png")
    entries = {"a.png123": {"filename": "a.png", "size": 123, "regions": regions, "file_attributes": {}}}
    (root / "via.json").write_text(json.dumps({"_via_img_metadata": entries, **project} if project else entries))
    return root / "via.json"


def region(attributes: dict, **fields: object) -> dict:
    fields = fields or {"name": "rect", "x": 5, "y": 6, "width": 20, "height": 10}
    return {"shape_attributes": fields, "region_attributes": attributes}


def test_via_regions_without_attribute_are_one_class(tmp_path: Path) -> None:
    write_regions(tmp_path, [region({}), region({"unused": ""})])
    assert classes_of(only(via_files, tmp_path)) == ["object", "object"]


def test_via_several_attributes_need_one_to_be_named(tmp_path: Path) -> None:
    write_regions(tmp_path, {"0": region({"kind": "cat", "colour": "red"}), "1": region({"kind": "dog"})})
    with pytest.raises(ValueError, match=r"via.json: .*\(colour, kind\).*--class-attribute"):
        only(via_files, tmp_path)
    assert classes_of(only(via_files, tmp_path, class_attribute="kind")) == ["cat", "dog"]
    with pytest.raises(ValueError, match="no region has the attribute 'size'; there are: colour, kind"):
        only(via_files, tmp_path, class_attribute="size")
    problems = only(via_files, tmp_path, class_attribute="colour").problems
    assert problems.counts == {"no class": 1} and "a.png, region 2" in problems.summary()


def test_via_checkboxes_and_options(tmp_path: Path) -> None:
    options = {"region": {"kind": {"type": "dropdown", "options": {"1": "cat", "2": "", "dog": "big dog"}}}}
    ticked = [region({"kind": {"2": True, "1": False}}), region({"kind": {"1": True, "2": True}})]
    write_regions(tmp_path, [region({"kind": "1"}), region({"kind": "dog"}), *ticked], _via_attributes=options)
    converted = only(via_files, tmp_path)
    assert classes_of(converted) == ["cat", "big dog", "2"]
    assert converted.problems.counts == {"no class": 1}


def ellipse_mask(angle: float) -> np.ndarray:
    y, x = np.indices((40, 60)) + 0.5
    u = (x - 30) * np.cos(angle) + (y - 20) * np.sin(angle)
    v = (y - 20) * np.cos(angle) - (x - 30) * np.sin(angle)
    return (u / 16) ** 2 + (v / 7) ** 2 <= 1


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"name": "circle", "cx": 30, "cy": 20, "r": 12}, DISC),
        ({"name": "ellipse", "cx": 30, "cy": 20, "rx": 16, "ry": 7}, ellipse_mask(0)),
        ({"name": "ellipse", "cx": 30, "cy": 20, "rx": 16, "ry": 7, "theta": 0.6}, ellipse_mask(0.6)),
    ],
)
def test_via_round_shapes_cover_what_they_should(fields: dict, expected: np.ndarray, tmp_path: Path) -> None:
    write_regions(tmp_path, [region({}, **fields)])
    (annotation,) = only(via_files, tmp_path).content["annotations"]
    mask = mask_of(annotation["segmentation"], (40, 60))
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95


def test_via_polyline_is_closed_and_points_are_counted(tmp_path: Path) -> None:
    line = {"name": "polyline", "all_points_x": [10, 30, 30, 10], "all_points_y": [5, 5, 25, 25]}
    write_regions(tmp_path, [region({}, **line), region({}, name="point", cx=3, cy=4)])
    converted = only(via_files, tmp_path)
    (annotation,) = converted.content["annotations"]
    assert annotation["area"] == 400 and converted.problems.counts == {"not an area": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]},
        {"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]},
        {"name": "polygon", "all_points_x": "x", "all_points_y": [1, 2]},
        {"name": "rect", "x": 1, "y": None, "width": 2, "height": 3},
        {"name": "circle", "cx": 1, "cy": 1},
        {"name": "ellipse", "cx": 1, "cy": 1, "rx": 2, "ry": 2, "theta": "x"},
        {"name": ["rect"]},
        {"name": "star"},
    ],
)
def test_via_bad_shapes_are_named(fields: dict, tmp_path: Path) -> None:
    write_regions(tmp_path, [region({}), region({}, **fields)])
    converted = only(via_files, tmp_path)
    assert converted.problems.counts == {"outline": 1} and "a.png, region 2" in converted.problems.summary()
    assert len(converted.content["annotations"]) == 1


def test_via_missing_images_broken_files_and_several_files_are_named(tmp_path: Path) -> None:
    path = write_regions(tmp_path, [region({})])
    (tmp_path / "a.png").unlink()
    assert only(via_files, tmp_path).problems.examples == {"missing": ["'a.png'"]}
    text = path.read_text()
    path.write_text(text[:-5])
    with pytest.raises(ValueError, match="via.json: not readable as JSON"):
        only(via_files, tmp_path)
    write_regions(tmp_path / "other", 7)
    with pytest.raises(ValueError, match="via.json: 'a.png' has the regions 7; expected a list"):
        only(via_files, tmp_path / "other")
    (tmp_path / "second.json").write_text(text)
    with pytest.raises(ValueError, match=r"several VIA files \(second.json, via.json\)"):
        via_files.find(tmp_path)
    assert via_files.find(tmp_path / "second.json")[0].source.name == "second.json"
