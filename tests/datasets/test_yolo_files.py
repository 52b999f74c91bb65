"""YOLO's layout: label lines, the YAML in every style, and bad files named with their line."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dataset_files.conversion_store import open_split_index
from dataset_files.layouts import yolo_files
from dataset_files.layouts.find import READERS
from my_dataset_coco import CocoDetection
from tests.helpers.layout_checks import classes_of, contents, objects_of, only

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
        "train: images\nval: ~\ntest: null\nnames: [cat, dog]",
        'train: "im\\x61ges"\nnames: ["c\\u0061t", dog]',
        "path: .\ntrain: ./images\nnames:\n- cat\n- 'dog'\n",
        "path: /content/ds\ntrain: /content/ds/images\nnames: {0: cat, 1: dog}",
        "train:\n  - images\nnames:\n  1: dog\n  0: cat",
        "train: [images]\nnames: [cat,\n  dog]  # two\ndownload: |\n  import os\n  x = [1:\n",
        "train: ../images\nnames: ['cat', \"dog\"]",
        "train: mine-1/images\nnames: [cat, dog]",
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
    assert len(converted.content["annotations"]) == 4 and split.problems.counts == {"no split": 1}
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
    assert found["val"].problems.examples["no label image"] == ["labels/c.txt"]


@pytest.mark.parametrize(
    "yaml, said",
    [
        ("train: &a images\nnames: [*a]", "line 2: aliases are not supported"),
        ("train: images\nnames: [cat", "expected ',' or ']'"),
        ('train: images\nnames: ["caf\\q"]', "line 2: found unknown escape character 'q'"),
        ("train: images\nnames: \x07", "not readable as YAML"),
        ("names: [cat]\ntrain: " + "[" * 2000, "not readable as YAML"),
        ("train: images\nnames:\n  0: cat\n  2: dog", "expected names"),
        ("train: images\nnames: 2", "expected names"),
        ("train: images\nnames: [cat, cat]", "more than once"),
        ("train: pictures\nnames: [cat]", "no folder that exists"),
        ("train: images\n train: x\nnames: [cat]", "line 2: mapping values are not allowed here"),
        ("train: images\ntrain: images\nnames: [cat]", "line 2: 'train' is repeated"),
        ("train: /x/one/images\nval: /x/two/images\nnames: [cat]", "both lead to"),
        ("train: {a: b}\nnames: [cat]", "expected 'train: folder'"),
    ],
)
def test_yolo_bad_yaml_is_named_with_its_line(yaml: str, said: str, tmp_path: Path) -> None:
    write_label(tmp_path, None, yaml)
    with pytest.raises(ValueError) as raised:
        yolo_files.find(tmp_path)
    assert "data.yaml" in str(raised.value) and said in str(raised.value) and "\n" not in str(raised.value)


def test_yolo_names_with_escapes_are_read_as_pyyaml_writes_them(tmp_path: Path) -> None:
    write_label(tmp_path, None, yaml.dump({"train": "images", "names": ["caf\xe9", "\u7ea2\u8272", "on", "1"]}))
    names = [category["name"] for category in only(yolo_files, tmp_path).content["categories"]]
    assert names == ["caf\xe9", "\u7ea2\u8272", "on", "1"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
def test_yolo_files_may_be_in_encodings_of_windows(encoding: str, tmp_path: Path) -> None:
    write_label(tmp_path, None)
    (tmp_path / "data.yaml").write_bytes("train: images\nnames: [\u7ea2\u8272, \u7eff]\n".encode(encoding))
    assert [c["name"] for c in only(yolo_files, tmp_path).content["categories"]] == ["\u7ea2\u8272", "\u7eff"]


def test_yolo_text_in_an_unknown_encoding_is_named(tmp_path: Path) -> None:
    write_label(tmp_path, None)
    (tmp_path / "data.yaml").write_bytes("train: images\nnames: [caf\xe9]\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"data.yaml: not text in UTF-8"):
        yolo_files.find(tmp_path)


def pose(x: float, y: float, width: float, height: float, numbers: int) -> str:
    """A label line of a box with four key points near its corners, the last of them not labelled."""
    points = [(x + dx * width * 0.45, y + dy * height * 0.45) for dx, dy in ((-1, -1), (1, -1), (1, 1))] + [(0, 0)]
    seen = [(*point, 0 if point == (0, 0) else 2)[:numbers] for point in points]
    return " ".join(str(round(v, 4)) for v in (0, x, y, width, height, *(v for point in seen for v in point)))


@pytest.mark.parametrize("numbers", [2, 3])
def test_yolo_poses_are_refused(numbers: int, tmp_path: Path) -> None:
    boxes = [(0.5, 0.5, 0.6, 0.9), (0.7, 0.2, 0.1, 0.3), (0.2, 0.4, 0.3, 0.2)]
    write_label(tmp_path, "\n".join(pose(*box, numbers) for box in boxes))
    (tmp_path / "labels" / "b.txt").unlink()
    with pytest.raises(ValueError, match="data.yaml: each label is a box followed by points inside it.*no outlines"):
        only(yolo_files, tmp_path)
    with open(tmp_path / "data.yaml", "a") as file:
        file.write(f"kpt_shape: [4, {numbers}]\n")
    with pytest.raises(ValueError, match="data.yaml: has kpt_shape.*no outlines"):
        yolo_files.find(tmp_path)


def test_yolo_outlines_of_four_corners_are_no_poses(tmp_path: Path) -> None:
    """Each line alone could be a box and two points inside it."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 30):
        folder = tmp_path / str(count)
        corners = rng.uniform(0.4, 0.6, (count, 1, 2)) + rng.uniform(0.02, 0.05, (count, 1, 2)) * [
            [-1, -1], [1, -1], [1, 1], [-1, 1]
        ]  # fmt: skip
        write_label(folder, "".join(f"0 {' '.join(map(str, one.ravel()))}\n" for one in corners))
        (folder / "labels" / "b.txt").unlink()
        assert len(objects_of(only(yolo_files, folder), "a.jpg")) == count


def test_yolo_images_that_share_a_label_file_are_named(tmp_path: Path) -> None:
    write_label(tmp_path, "0 0.1 0.1 0.2 0.1 0.2 0.2\n", "train: list.txt\nnames: [cat]\n")
    Image.new("RGB", (100, 40)).save(tmp_path / "images" / "a.png")
    (tmp_path / "list.txt").write_text("images/a.jpg\nimages/b.jpg\n")  # the other may belong to another split
    converted = only(yolo_files, tmp_path)
    assert converted.problems.wrong() == ["shared labels"] and len(converted.content["images"]) == 1
    assert converted.problems.examples["shared labels"] == ["labels/a.txt of a.jpg and a.png"]
    (tmp_path / "labels" / "a.txt").unlink()
    assert only(yolo_files, tmp_path).problems.counts == {}


def test_yolo_labels_beside_images_are_read_although_there_is_a_folder_of_labels(tmp_path: Path) -> None:
    write_label(tmp_path, None)
    (tmp_path / "images" / "a.txt").write_text("1 0.1 0.1 0.2 0.1 0.2 0.2\n")
    (tmp_path / "images" / "b.txt").write_text("a photo of two cats\n")
    converted = only(yolo_files, tmp_path)
    assert converted.problems.counts == {"labels beside": 1} and not converted.problems.wrong()
    assert converted.problems.examples["labels beside"] == ["images/a.txt"]
    assert [a["category_id"] for a in objects_of(converted, "a.jpg")] == [2]
    (split,) = yolo_files.find(tmp_path)
    assert tmp_path / "images" / "a.txt" in [file for _, file in split.files()]


def test_yolo_labels_without_image_are_counted_in_all_folders_of_labels(tmp_path: Path) -> None:
    """Labels are flat, images in folders."""
    write_label(tmp_path, None)
    (tmp_path / "images" / "cam").mkdir()
    (tmp_path / "images" / "a.jpg").rename(tmp_path / "images" / "cam" / "a.jpg")
    (tmp_path / "labels" / "a.txt").write_text("0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    assert only(yolo_files, tmp_path).problems.examples == {"no label image": ["labels/a.txt"]}


def test_yolo_image_resized_in_place_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_label(tmp_path / "data", None)
    for size in ((100, 40), (200, 80)):
        Image.new("RGB", size).save(tmp_path / "data" / "images" / "b.jpg")
        (split,) = yolo_files.find(tmp_path / "data")
        dataset = CocoDetection(open_split_index(split))
        assert (dataset.get_height_and_width(0), dataset[0][1]["boxes"][0, 0]) == (size[::-1], size[0] / 10)


def test_yolo_folder_without_any_label_file_is_named(tmp_path: Path) -> None:
    write_label(tmp_path, None)
    (tmp_path / "labels" / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"data.yaml: no image has a label file; expected .*labels/a.txt"):
        only(yolo_files, tmp_path)


# ----------------------------------------------------------------------------------------- a list of classes, no YAML

LINE = "1 0.1 0.1 0.2 0.1 0.2 0.2\n"


def write_pairs(root: Path, *pairs: str) -> None:
    """Images with label files, given as "folder of images:folder of labels/stem"."""
    for pair in pairs:
        images, _, labels = pair.partition(":")
        stem = Path(labels).name
        for folder in (images, Path(labels).parent):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 40)).save(root / images / f"{stem}.jpg")
        (root / f"{labels}.txt").write_text(LINE)


@pytest.mark.parametrize(
    "class_list, pairs, expected",
    [
        ("classes.txt", ["images:labels/a"], {"": ["images/a.jpg"]}),  # Label Studio
        ("labels/classes.txt", ["images:labels/a"], {"": ["images/a.jpg"]}),
        ("classes.txt", [".:a"], {"": ["a.jpg"]}),  # labelImg
        ("classes.txt", ["images:images/a"], {"": ["images/a.jpg"]}),
        ("classes.txt", ["images/train:labels/train/a", "images/val:labels/val/b"],
         {"train": ["images/train/a.jpg"], "val": ["images/val/b.jpg"]}),
        ("obj.names", ["train/images:train/labels/a", "valid/images:valid/labels/b"],
         {"train": ["train/images/a.jpg"], "val": ["valid/images/b.jpg"]}),
        ("classes.txt", ["train:train/a", "test:test/b"], {"train": ["train/a.jpg"], "test": ["test/b.jpg"]}),
        ("data/obj.names", ["data/obj_train_data:data/obj_train_data/a"], {"": ["data/obj_train_data/a.jpg"]}),
    ],
)  # fmt: skip
def test_yolo_classes_may_be_listed_without_a_yaml(
    class_list: str, pairs: list[str], expected: dict[str, list[str]], tmp_path: Path
) -> None:
    write_pairs(tmp_path, *pairs)
    (tmp_path / class_list).parent.mkdir(exist_ok=True)
    (tmp_path / class_list).write_text("cat\ndog\n\n")
    assert [name for name, find in READERS.items() if find(tmp_path)] == ["YOLO"]
    found = contents(yolo_files.find(tmp_path))
    assert {name: [i["file_name"] for i in c.content["images"]] for name, c in found.items()} == expected
    for converted in found.values():
        assert converted.problems.counts == {} and classes_of(converted) == ["dog"]


def test_yolo_lists_of_images_beside_a_list_of_classes(tmp_path: Path) -> None:
    """As CVAT writes them."""
    write_pairs(tmp_path, "obj_train_data:obj_train_data/a", "obj_train_data:obj_train_data/b")
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\n")
    (tmp_path / "valid.txt").write_text("data/obj_train_data/b.jpg\n")
    found = contents(yolo_files.find(tmp_path))
    assert [c.content["images"][0]["file_name"] for c in found.values()] == [f"obj_train_data/{n}.jpg" for n in "ab"]
    assert list(found) == ["train", "val"] and all(c.problems.counts == {} for c in found.values())


def test_yolo_lists_of_classes_may_grow_but_not_differ(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/train:labels/train/a", "images/val:labels/val/b")
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat\n")
    (tmp_path / "labels" / "val" / "classes.txt").write_text("cat\ndog\n")
    assert [classes_of(c) for c in contents(yolo_files.find(tmp_path)).values()] == [["dog"], ["dog"]]
    (tmp_path / "labels" / "train" / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(ValueError, match="classes.txt: numbers the classes differently"):
        yolo_files.find(tmp_path)
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match="expected one class name per line"):
        yolo_files.find(tmp_path)


def test_list_of_classes_beside_another_layout_is_not_yolo(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images:images/a")
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "images" / "a.txt").write_text("a note on this image\n")
    assert yolo_files.find(tmp_path) == []
