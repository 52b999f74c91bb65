"""YOLO's layout: label lines, the YAML in every style, and bad files named with their line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_files.layouts import yolo_files
from tests.helpers.layout_checks import contents, objects_of, only

# pycocotools' decoder and numpy 2 do not yet agree on what __array__ takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def write_label(root: Path, lines: str | None, yaml: str = "train: images\nnames: [cat, dog]\n") -> None:
    """One image of 40 x 100 in images/ with its label file."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    Image.new("RGB", (100, 40)).save(root / "images" / "a.jpg")
    Image.new("RGB", (100, 40)).save(root / "images" / "b.jpg")
    (root / "labels" / "b.txt").write_text("0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    if lines is not None:
        (root / "labels" / "a.txt").write_text(lines)
    (root / "data.yaml").write_text(yaml)


@pytest.mark.parametrize("lines", [None, "", "\n\n"])
def test_yolo_image_without_labels_has_no_objects(lines: str | None, tmp_path: Path) -> None:
    write_label(tmp_path, lines)
    converted = only(yolo_files, tmp_path)
    assert len(converted.content["images"]) == 2 and objects_of(converted, "a.jpg") == []
    assert converted.problems.counts == {}


def test_yolo_five_numbers_are_a_box_without_mask(tmp_path: Path) -> None:
    write_label(tmp_path, "1 0.5 0.5 0.2 0.5\n1 0.5 0.5 0.2 0.5\n")
    found = objects_of(only(yolo_files, tmp_path), "a.jpg")
    assert len(found) == 2 and found[0]["segmentation"] == [] and found[0]["category_id"] == 2
    assert np.allclose(found[0]["bbox"], [40, 10, 20, 20])


def test_yolo_coordinates_may_leave_the_image(tmp_path: Path) -> None:
    write_label(tmp_path, "0 -0.1 0.25 0.5 0.25 0.5 0.75 -0.1 0.75\n0 0 0 1.0000001 0 1 1\n0 0.9 0.5 0.4 0.5\n")
    converted = only(yolo_files, tmp_path)
    found = objects_of(converted, "a.jpg")
    assert converted.problems.counts == {"clipped": 2}
    assert np.allclose(found[0]["bbox"], [0, 10, 50, 20]) and found[0]["area"] == 1000
    assert np.allclose(found[2]["bbox"], [70, 10, 30, 20])


@pytest.mark.parametrize(
    "line, kind, said",
    [
        ("2 0.1 0.1 0.2 0.1 0.2 0.2", "class id", "2 of 2 classes"),
        ("-1 0.1 0.1 0.2 0.1 0.2 0.2", "label line", "class number"),
        ("0.5 0.1 0.1 0.2 0.1 0.2 0.2", "label line", "class number"),
        ("0 0.1 0.1 0.2 0.1 0.2", "label line", "not 6 numbers"),
        ("0 0.1 0.1", "label line", "not 3 numbers"),
        ("cat 0.1 0.1 0.2 0.1 0.2 0.2", "label line", "expected numbers"),
        ("0 0.1 0.1 0.2 0.1 0.2 nan", "label line", "not finite"),
        ("0 10 10 20 10 20 20", "label line", "fractions"),
        ("0 0.5 0.5 0 0.2", "label line", "width 0"),
    ],
)
def test_yolo_bad_lines_are_named(line: str, kind: str, said: str, tmp_path: Path) -> None:
    write_label(tmp_path, f"0 0.1 0.1 0.2 0.1 0.2 0.2\n{line}\n")
    converted = only(yolo_files, tmp_path)
    assert converted.problems.counts == {kind: 1} and len(objects_of(converted, "a.jpg")) == 1
    assert "labels/a.txt, line 2" in converted.problems.summary() and said in converted.problems.summary()


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images\nnames: [cat, dog]",
        "path: .\ntrain: ./images\nnames:\n- cat\n- 'dog'\n",
        "path: /content/ds\ntrain: /content/ds/images\nnames: {0: cat, 1: dog}",
        "train:\n  - images\nnames:\n  1: dog\n  0: cat",
        "train: [images]\nnames: [cat,\n  dog]  # two\ndownload: |\n  import os\n  x = [1:\n",
        "train: ../images\nnames: ['cat', \"dog\"]",
        "train: list.txt\nnames: [cat, dog]",
        "train: C:\\data\\ds\\images\nnames: [cat, dog]",
    ],
)
def test_yolo_yaml_is_read_in_every_style(yaml: str, tmp_path: Path) -> None:
    write_label(tmp_path, "1 0.1 0.1 0.2 0.1 0.2 0.2\n", yaml)
    (tmp_path / "list.txt").write_text("./images/a.jpg\n/content/ds/images/b.jpg\n")
    (split,) = yolo_files.find(tmp_path)
    content = split.convert().content
    assert (split.name, [c["name"] for c in content["categories"]]) == ("train", ["cat", "dog"])
    assert [i["file_name"] for i in content["images"]] == ["images/a.jpg", "images/b.jpg"]
    assert [a["category_id"] for a in content["annotations"]] == [2, 1]


def test_yolo_list_of_folders_is_one_split(tmp_path: Path) -> None:
    for part in ("one", "two"):
        write_label(tmp_path / part, "0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train:\n  - one/images\n  - two/images\nval: gone\nnames: [cat]\n")
    (split,) = yolo_files.find(tmp_path)
    converted = split.convert()
    assert len(converted.content["annotations"]) == 4 and converted.problems.counts == {"no split": 1}
    assert sorted(i["file_name"] for i in converted.content["images"])[0] == "one/images/a.jpg"


def test_yolo_path_may_lead_beside_the_yaml(tmp_path: Path) -> None:
    write_label(tmp_path / "data" / "mine", None)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "x.yaml").write_text("path: ../data/mine\ntrain: images\nnames: [cat]\n")
    (split,) = yolo_files.find(tmp_path / "configs")
    assert [i["file_name"] for i in split.convert().content["images"]] == ["images/a.jpg", "images/b.jpg"]


def test_yolo_missing_images_of_a_list_and_labels_without_image_are_named(tmp_path: Path) -> None:
    write_label(tmp_path, None, "train: train.txt\nval: images\nnames: [cat]\n")
    (tmp_path / "train.txt").write_text("images/a.jpg\nimages/gone.jpg\nimages/b.jpg\n")
    (tmp_path / "labels" / "c.txt").write_text("0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    found = contents(yolo_files.find(tmp_path))
    assert found["train"].problems.counts["missing"] == 1 and "gone.jpg" in found["train"].problems.summary()
    assert found["val"].problems.examples["no label image"] == ["c.txt"]


@pytest.mark.parametrize(
    "yaml, said",
    [
        ("train: images\nnames: &a [cat]", "line 2: an unsupported anchor"),
        ("train: images\nnames: [cat", "line 2: a bracket"),
        ("train: images\nnames:\n  0: cat\n  2: dog", "expected names"),
        ("train: images\nnames: 2", "expected names"),
        ("train: images\nnames: [cat, cat]", "more than once"),
        ("train: pictures\nnames: [cat]", "no folder that exists"),
        ("train: images\n train: x\nnames: [cat]", "line 2: unexpected indentation"),
        ("train: images\ntrain: images\nnames: [cat]", "line 2: the key 'train' a second time"),
        ("train: /x/one/images\nval: /x/two/images\nnames: [cat]", "both lead to"),
        ("train: {a: b}\nnames: [cat]", "expected 'train: folder'"),
    ],
)
def test_yolo_bad_yaml_is_named_with_its_line(yaml: str, said: str, tmp_path: Path) -> None:
    write_label(tmp_path, None, yaml)
    with pytest.raises(ValueError) as raised:
        yolo_files.find(tmp_path)
    assert "data.yaml" in str(raised.value) and said in str(raised.value) and "\n" not in str(raised.value)


def test_yolo_folder_without_any_label_file_is_named(tmp_path: Path) -> None:
    write_label(tmp_path, None)
    (tmp_path / "labels" / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"data.yaml: no image has a label file; expected .*labels/a.txt"):
        only(yolo_files, tmp_path)
