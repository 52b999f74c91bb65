"""CVAT's XML and ISAT's JSON: every kind of shape, tracks of videos, and bad files named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_files.layouts import cvat_files
from tests.helpers.layout_checks import ISAT, classes_of, contents, mask_of, only
from tests.helpers.layout_writers import SAMPLES, WRITERS, write_cvat_xml

# pycocotools' decoder and numpy 2 do not yet agree on what __array__ takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def write_cvat(root: Path, shapes: str, name: str = "a.png") -> None:
    """One image of 40 x 60."""
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40)).save(root / "a.png")
    write_cvat_xml(root / "annotations.xml", f'<image id="0" name="{name}" width="60" height="40">{shapes}</image>')


def masks_of(shapes: str, root: Path) -> list[np.ndarray]:
    write_cvat(root, shapes)
    converted = only(cvat_files, root)
    assert converted.problems.counts == {}
    return [mask_of(a["segmentation"], (40, 60)) for a in converted.content["annotations"]]


def test_cvat_boxes_and_ellipses_may_be_turned(tmp_path: Path) -> None:
    """Clockwise by a quarter, and by 30 degrees: in the image, the right end goes down."""
    box = '<box label="cat" xtl="20" ytl="15" xbr="40" ybr="25" rotation="90.0"/>'
    ellipse = '<ellipse label="cat" cx="30" cy="20" rx="20" ry="4" rotation="30"/>'
    turned, tilted = masks_of(box + ellipse, tmp_path)
    expected = np.zeros((40, 60), dtype=bool)
    expected[10:30, 25:35] = True
    assert np.array_equal(turned, expected)
    y, x = np.indices((40, 60)) + 0.5
    u = (x - 30) * np.cos(np.pi / 6) + (y - 20) * np.sin(np.pi / 6)
    v = (y - 20) * np.cos(np.pi / 6) - (x - 30) * np.sin(np.pi / 6)
    inside = (u / 20) ** 2 + (v / 4) ** 2 <= 1
    assert (tilted & inside).sum() / (tilted | inside).sum() > 0.9


def test_cvat_masks_are_run_lengths_along_rows(tmp_path: Path) -> None:
    place = 'left="58" top="38" width="3" height="3"'  # one column and one row lie outside
    first, second = masks_of(
        f'<mask label="cat" rle="1, 2, 2, 4" {place}/><mask label="dog" rle="0,9" {place}/>', tmp_path
    )
    assert first[38:, 58:].tolist() == [[False, True], [False, False]] and first.sum() == 1
    assert second.sum() == 4


def test_cvat_shapes_without_area_are_counted_and_groups_of_other_labels_apart(tmp_path: Path) -> None:
    points = 'points="1,1;9,1;9,9"'
    shapes = f'<polyline label="cat" {points}/><points label="cat" {points}/><tag label="cat"/>'
    shapes += f'<polygon label="cat" {points} group_id="1"/><polygon label="dog" {points} group_id="1"/>'
    shapes += f'<polygon label="cat" {points} group_id="0"/><polygon label="cat" {points} group_id="0"/>'
    write_cvat(tmp_path, shapes)
    converted = only(cvat_files, tmp_path)
    assert converted.problems.counts == {"not an area": 2} and classes_of(converted) == ["cat", "dog", "cat", "cat"]
    assert [c["name"] for c in converted.content["categories"]] == ["cat", "dog", "traffic light"]


@pytest.mark.parametrize(
    "bad, kind",
    [
        ('<polygon label="cat" points="1,1;2,2"/>', "outline"),
        ('<polygon label="cat" points="1,1;2,2;x,3"/>', "outline"),
        ('<polygon label="cat" points="1,1;2,2;nan,3"/>', "outline"),
        ('<box label="cat" xtl="1" ytl="1" xbr="9"/>', "outline"),
        ('<mask label="cat" rle="1, 2" left="0" top="0" width="9" height="9"/>', "outline"),
        ('<mask label="cat" rle="-1, 82" left="0" top="0" width="9" height="9"/>', "outline"),
        ('<mask label="cat" rle="" left="0" top="0" width="9" height="9"/>', "outline"),
        ('<mask label="cat" rle="9" left="0" top="0" width="999999" height="999999"/>', "outline"),
        ('<star label="cat"/>', "outline"),
        ('<polygon label="" points="1,1;9,1;9,9"/>', "no class"),
    ],
)
def test_cvat_bad_shapes_are_named(bad: str, kind: str, tmp_path: Path) -> None:
    write_cvat(tmp_path, f'<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/>{bad}')
    converted = only(cvat_files, tmp_path)
    assert converted.problems.counts == {kind: 1} and len(converted.content["annotations"]) == 1
    assert "a.png, shape 2" in converted.problems.summary() and "\n" not in converted.problems.summary()


def test_cvat_names_what_is_missing_or_broken(tmp_path: Path) -> None:
    write_cvat(tmp_path, "", name="gone.png")
    assert only(cvat_files, tmp_path).problems.examples == {"missing": ["'gone.png'"]}
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match="annotations.xml: not readable as XML"):
        only(cvat_files, tmp_path)
    (tmp_path / "second.xml").write_text(path.read_text())
    with pytest.raises(ValueError, match="several XML files of CVAT"):
        cvat_files.find(tmp_path)


def test_cvat_file_itself_split_folders_and_names_of_files(tmp_path: Path) -> None:
    write_cvat(tmp_path / "train", "")
    write_cvat(tmp_path / "val", "")
    assert list(contents(cvat_files.find(tmp_path))) == ["train", "val"]
    assert list(contents(cvat_files.find(tmp_path / "train" / "annotations.xml"))) == [""]
    for name in ("train", "val"):
        (tmp_path / name / "annotations.xml").rename(tmp_path / "train" / f"my_{name}.xml")
    assert list(contents(cvat_files.find(tmp_path / "train"))) == ["train", "val"]


def test_cvat_subsets_are_all_named_like_splits_or_none(tmp_path: Path) -> None:
    WRITERS["CVAT for images"](tmp_path, SAMPLES)
    path = tmp_path / "annotations.xml"
    text = path.read_text()
    path.write_text(text.replace('subset="Validation"', 'subset="more"'))
    with pytest.raises(ValueError, match="some of its subsets"):
        cvat_files.find(tmp_path)
    path.write_text(path.read_text().replace('subset="Train"', 'subset="default"'))
    assert len(only(cvat_files, tmp_path).content["images"]) == 6


def write_video(root: Path, frames: dict[int, bool]) -> None:
    """Four frames as images, and a track of a box that moves a pixel per frame: frame -> outside."""
    (root / "images").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (60, 40)).save(root / "images" / f"frame_{number:06d}.PNG")
    boxes = "".join(
        f'<box frame="{k}" outside="{int(gone)}" keyframe="1" xtl="{k}" ytl="5" xbr="{10 + k}" ybr="9"/>'
        for k, gone in frames.items()
    )
    write_cvat_xml(root / "annotations.xml", f'<track id="0" label="cat">{boxes}</track>')


def test_cvat_tracks_are_objects_of_their_frames(tmp_path: Path) -> None:
    write_video(tmp_path, {0: False, 1: False, 2: True})
    converted = only(cvat_files, tmp_path)
    assert converted.problems.counts == {}
    assert [i["file_name"] for i in converted.content["images"]] == [f"images/frame_{k:06d}.PNG" for k in range(4)]
    found = [(a["image_id"], a["bbox"]) for a in converted.content["annotations"]]
    assert found == [(1, [0, 5, 10, 4]), (2, [1, 5, 10, 4])]


def test_cvat_tracks_with_gaps_and_frames_without_images_are_named(tmp_path: Path) -> None:
    write_video(tmp_path, {0: False, 2: False, 9: False})
    problems = only(cvat_files, tmp_path).problems
    assert problems.counts == {"track gap": 2, "missing": 1} and problems.wrong() == ["track gap", "missing"]
    assert problems.examples["missing"] == ["'frame_000009.png'"]


# ------------------------------------------------------------------------------------------------------------- ISAT


def test_isat_bad_objects_are_named_and_background_is_no_class(tmp_path: Path) -> None:
    WRITERS["ISAT"](tmp_path, SAMPLES[:1])
    path = tmp_path / "a.json"
    content = json.loads(path.read_text())
    triangle = [[1, 1], [9, 1], [9, 9]]
    content["objects"] += [
        {"category": "__background__", "group": 7, "segmentation": triangle},
        {"category": None, "group": 8, "segmentation": triangle},
        {"category": "cat", "group": 9, "segmentation": triangle[:2]},
        "x",
    ]
    path.write_text(json.dumps(content))
    converted = only(ISAT, tmp_path)
    assert converted.problems.counts == {"ignored": 1, "no class": 2, "outline": 1}
    assert sorted(classes_of(converted)) == ["cat", "dog"]


def test_isat_groups_of_other_categories_are_apart(tmp_path: Path) -> None:
    WRITERS["ISAT"](tmp_path, SAMPLES[:1])
    path = tmp_path / "a.json"
    path.write_text(path.read_text().replace('"group": 2', '"group": 1'))
    assert len(only(ISAT, tmp_path).content["annotations"]) == 2
