"""labelme's layout: every kind of shape, paths of other machines, and bad files named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_files.conversion_store import open_split_index
from dataset_files.image_headers import check_images
from dataset_files.layouts import labelme_files
from dataset_files.problems import Problems
from my_dataset_coco import CocoDetection
from tests.helpers.layout_checks import DISC, mask_of, only
from tests.helpers.layout_writers import png_base64

# pycocotools' decoder and numpy 2 do not yet agree on what __array__ takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def write_shapes(folder: Path, shapes: list[dict], **fields: object) -> None:
    """One image of 40 x 60 with a labelme JSON; None removes a field."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "a.png").exists():
        Image.new("RGB", (60, 40)).save(folder / "a.png")
    content = {"shapes": shapes, "imagePath": "a.png", "imageData": None, "imageHeight": 40, "imageWidth": 60}
    content = {key: value for key, value in (content | fields).items() if value is not None}
    (folder / "a.json").write_text(json.dumps(content))


def shape(kind: str | None, points: list, label: str = "cat", **fields: object) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None} | fields


def test_labelme_circle_is_a_disc_around_its_first_point(tmp_path: Path) -> None:
    write_shapes(tmp_path, [shape("circle", [[30, 20], [30 + 12 * 0.6, 20 + 12 * 0.8]])])
    (annotation,) = only(labelme_files, tmp_path).content["annotations"]
    assert np.allclose(annotation["bbox"], [18, 8, 24, 24], atol=0.01)
    mask = mask_of(annotation["segmentation"], (40, 60))
    assert (mask & DISC).sum() / (mask | DISC).sum() > 0.97


@pytest.mark.parametrize("points", [[[5, 6], [25, 30]], [[25, 6], [5, 30]], [[25, 30], [5, 6]]])
def test_labelme_rectangle_may_have_its_corners_in_any_order(points: list, tmp_path: Path) -> None:
    write_shapes(tmp_path, [shape("rectangle", points)])
    (annotation,) = only(labelme_files, tmp_path).content["annotations"]
    assert annotation["bbox"] == [5, 6, 20, 24] and annotation["area"] == 480


def test_labelme_rectangles_of_four_points_and_turned_ones(tmp_path: Path) -> None:
    four = [[5, 6], [25, 6], [25, 30], [5, 30]]
    turned = [[30, 10], [40, 20], [30, 30], [20, 20]]
    write_shapes(tmp_path, [shape("rectangle", four), shape("oriented_rectangle", turned), shape(None, turned)])
    annotations = only(labelme_files, tmp_path).content["annotations"]
    assert [a["bbox"] for a in annotations] == [[5, 6, 20, 24], [20, 10, 20, 20], [20, 10, 20, 20]]
    assert annotations[1]["segmentation"] == [[30, 10, 40, 20, 30, 30, 20, 20]]


def test_labelme_parts_of_mixed_kind_are_one_code_and_groups_of_other_labels_apart(tmp_path: Path) -> None:
    pixels = png_base64(np.full((3, 4), 255, dtype=np.uint8))
    write_shapes(
        tmp_path,
        [
            shape("polygon", [[10, 10], [20, 10], [20, 20], [10, 20]], group_id=1),
            shape("mask", [[57, 38], [60, 40]], group_id=1, mask=pixels),
            shape("polygon", [[30, 10], [40, 10], [40, 20]], label="dog", group_id=1),
        ],
    )
    content = only(labelme_files, tmp_path).content
    cat, dog = content["annotations"]
    expected = np.zeros((40, 60), dtype=bool)
    expected[10:20, 10:20] = expected[38:, 57:] = True  # what lies beyond the edge is cut off
    assert np.array_equal(mask_of(cat["segmentation"], (40, 60)), expected)
    assert cat["bbox"] == [10, 10, 50, 30] and isinstance(dog["segmentation"], list)
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]


def test_labelme_points_and_lines_are_counted_and_background_is_no_class(tmp_path: Path) -> None:
    triangle = [[1, 1], [9, 1], [9, 9]]
    shapes = [shape("point", [[3, 3]]), shape("line", [[3, 3], [5, 5]]), shape("linestrip", triangle)]
    shapes += [shape("polygon", triangle, "__ignore__"), shape("polygon", triangle, "_background_")]
    write_shapes(tmp_path, [*shapes, shape("polygon", triangle)])
    converted = only(labelme_files, tmp_path)
    assert [c["name"] for c in converted.content["categories"]] == ["cat"]
    assert len(converted.content["annotations"]) == 1
    assert converted.problems.counts == {"not an area": 3, "ignored": 2} and not converted.problems.wrong()


def test_labelme_labels_txt_gives_the_order_and_new_labels_are_said(tmp_path: Path) -> None:
    write_shapes(tmp_path, [shape("polygon", [[1, 1], [9, 1], [9, 9]], name) for name in ("ape", "zebra")])
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nzebra\nyak\n")
    converted = only(labelme_files, tmp_path)
    assert [c["name"] for c in converted.content["categories"]] == ["zebra", "yak", "ape"]
    assert converted.problems.counts == {"new class": 1}


@pytest.mark.parametrize(
    "path", ["..\\photos\\a.png", "C:\\Users\\me\\a.png", "/home/me/a.png", "../../x/old.png", "A.PNG"]
)
def test_labelme_image_path_may_be_of_another_machine(path: str, tmp_path: Path) -> None:
    write_shapes(tmp_path / "in" / "side", [], imagePath=path)
    assert [i["file_name"] for i in only(labelme_files, tmp_path).content["images"]] == ["in/side/a.png"]


def test_labelme_image_path_may_lead_to_a_folder_beside(tmp_path: Path) -> None:
    write_shapes(tmp_path / "images", [])
    write_shapes(tmp_path / "json", [], imagePath="..\\images\\a.png")
    (tmp_path / "images" / "a.json").unlink()
    (tmp_path / "json" / "a.png").unlink()
    assert [i["file_name"] for i in only(labelme_files, tmp_path).content["images"]] == ["images/a.png"]


def test_labelme_never_opens_an_image_outside(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "secret.png")
    write_shapes(tmp_path / "data", [], imagePath="../secret.png")
    (tmp_path / "data" / "a.png").unlink()
    converted = only(labelme_files, tmp_path / "data")
    assert converted.content["images"] == [] and converted.problems.wrong() == ["no image"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_labelme_image_is_read_from_inside_its_json(encoding: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pixels = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    for sizes in ({}, {"imageHeight": None, "imageWidth": None}):
        triangle = shape("polygon", [[1, 1], [9, 1], [9, 9]], label="\u7ea2\u8272")
        write_shapes(tmp_path / "data", [triangle], imageData=png_base64(pixels), **sizes)
        path = tmp_path / "data" / "a.json"
        path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode(encoding))
        (tmp_path / "data" / "a.png").unlink()
        (split,) = labelme_files.find(tmp_path / "data")
        dataset = CocoDetection(open_split_index(split))
        assumed = {"assumed encoding": 1} if encoding == "gb18030" else {}
        assert dataset.problems.counts == assumed | {"embedded": 1} and not dataset.problems.wrong()
        assert list(dataset.class_names.values()) == ["\u7ea2\u8272"] and check_images(dataset) == (Problems(), [])
        assert np.array_equal(dataset[0][0].permute(1, 2, 0).numpy(), pixels)


def test_labelme_text_in_another_encoding_says_as_what_it_was_read(tmp_path: Path) -> None:
    write_shapes(tmp_path, [shape("polygon", [[1, 1], [9, 1], [9, 9]], label="\u306d\u3053")])
    text = json.dumps(json.loads((tmp_path / "a.json").read_text()), ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(text.encode("shift-jis"))
    problems = only(labelme_files, tmp_path).problems
    wrong = text.encode("shift-jis").decode("gb18030").partition('"label": "')[2].partition('"')[0]
    assert f"a.json as GB 18030, e.g. '{wrong}'" in problems.describe("assumed encoding") and not problems.wrong()


def test_labelme_broken_image_inside_a_json_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shapes(tmp_path / "data", [shape("polygon", [[1, 1], [9, 1], [9, 9]])], imageData="aGFsbG8=")
    (tmp_path / "data" / "a.png").unlink()
    (split,) = labelme_files.find(tmp_path / "data")
    assert check_images(CocoDetection(open_split_index(split)))[0].counts == {"not an image": 1}


@pytest.mark.parametrize("json_folder", ["json", "json/train"])
def test_labelme_images_may_lie_in_a_folder_beside_the_one_that_is_given(
    json_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = "../" * len(Path(json_folder).parts)
    write_shapes(tmp_path / json_folder, [], imagePath=f"{up}images/a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / json_folder / "a.png").rename(tmp_path / "images" / "a.png")
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "json", Path("json")):
        (split,) = labelme_files.find(root)
        (image,) = split.convert().content["images"]
        assert split.image_folder == tmp_path and image["file_name"] == "images/a.png"


def test_labelme_size_is_read_from_the_turned_image_where_it_is_missing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png", exif=exif)
    write_shapes(tmp_path, [], imageHeight=None, imageWidth=None)
    assert only(labelme_files, tmp_path).content["images"][0]["height"] == 60


@pytest.mark.parametrize(
    "bad, kind",
    [
        (shape("polygon", [[1, 1], [2, 2]]), "outline"),
        (shape("polygon", [[1, 1], [2, 2], [3, float("nan")]]), "outline"),
        (shape("polygon", [[1, 1], [2, 2], [3, 1e9]]), "outline"),
        (shape("polygon", [[1, 1], [2, 2], "x"]), "outline"),
        (shape("polygon", {"x": 1}), "outline"),
        (shape("star", [[1, 1], [2, 2], [3, 1]]), "outline"),
        (shape(["polygon"], [[1, 1], [2, 2], [3, 1]]), "outline"),
        (shape("circle", [[1, 1]]), "outline"),
        (shape("mask", [[1, 1], [2, 2]]), "outline"),
        (shape("mask", [[1, 1], [2, 2]], mask="aGFsbG8="), "outline"),
        (shape("polygon", [[1, 1], [2, 2], [3, 1]], label=""), "no class"),
        (7, "no class"),
    ],
)
def test_labelme_bad_shapes_are_named(bad: object, kind: str, tmp_path: Path) -> None:
    write_shapes(tmp_path, [shape("rectangle", [[1, 1], [9, 9]]), bad])
    converted = only(labelme_files, tmp_path)
    assert converted.problems.counts == {kind: 1}
    assert "a.json, shape 2" in converted.problems.summary() and "\n" not in converted.problems.summary()
    assert len(converted.content["annotations"]) == 1


def test_labelme_second_json_of_an_image_is_named(tmp_path: Path) -> None:
    write_shapes(tmp_path, [shape("rectangle", [[1, 1], [9, 9]])])
    (tmp_path / "b.json").write_text((tmp_path / "a.json").read_text())
    converted = only(labelme_files, tmp_path)
    assert converted.problems.counts == {"same image": 1} and len(converted.content["annotations"]) == 1


def test_labelme_is_recognised_behind_an_embedded_image(tmp_path: Path) -> None:
    write_shapes(tmp_path, [])
    content = {"imageData": "A" * 100_000, **json.loads((tmp_path / "a.json").read_text())}
    (tmp_path / "a.json").write_text(json.dumps(content | {"imageData": "A" * 100_000}))
    assert len(only(labelme_files, tmp_path).content["images"]) == 1


def test_labelme_broken_json_and_images_without_one_are_named(tmp_path: Path) -> None:
    write_shapes(tmp_path, [])
    (tmp_path / "b.json").write_text('{"shapes": [')
    (tmp_path / "d.json").write_text('{"shapes": 7}')
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    for name, text in (("args.json", '{"epochs": 3}'), ("predictions.json", "[]")):  # of a run in this folder
        (tmp_path / name).write_text(text)
    problems = only(labelme_files, tmp_path).problems
    assert problems.counts == {"json": 2, "unlabelled": 1, "other json": 2}
    assert problems.wrong() == ["json"]
    assert "b.json" in problems.examples["json"][0] and problems.examples["unlabelled"] == ["c.png"]
