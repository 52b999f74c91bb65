"""Foreign layouts: the same images and objects arrive from every one, and bad files are named in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from layout_writers import CLASSES, ONE_CLASS, SAMPLES, SPLIT, WITH_CROWDS, WRITERS, Sample
from PIL import Image
from pycocotools import mask as coco_mask

from dataset_files import labelme_files, mask_folders, via_files, voc_variants, yolo_files
from dataset_files.conversion import Converted, SplitFiles

MODULES = {
    "labelme": labelme_files, "labelme in split folders": labelme_files, "YOLO": yolo_files,
    "YOLO by Roboflow": yolo_files, "VIA 1": via_files, "VIA 2": via_files, "labelme2voc": voc_variants,
    "CVAT segmentation mask": voc_variants, "VOC with own classes": voc_variants, "Penn-Fudan": mask_folders,
    "masks per class": mask_folders, "masks per object": mask_folders,
}  # fmt: skip
# pycocotools' decoder and numpy 2 do not yet agree on what __array__ takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def mask_of(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W], by pycocotools."""
    if isinstance(segmentation, dict):
        return coco_mask.decode(segmentation).astype(bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))).astype(bool)


def contents(splits: list[SplitFiles]) -> dict[str, Converted]:
    return {split.name: split.convert() for split in splits}


def only(module, root: Path, **options) -> Converted:
    """The content of a folder without splits."""
    (split,) = module.find(root, **options)
    return split.convert()


def check_same(converted: Converted, folder: Path, samples: list[Sample], layout: str) -> None:
    """The content is that of `samples`: images, sizes, and for each object class, box, mask, area and crowd."""
    content = converted.content
    assert converted.problems.wrong() == []
    images = {Path(image["file_name"]).name: image for image in content["images"]}
    assert sorted(images) == sorted(sample.name for sample in samples)
    assert [image["id"] for image in content["images"]] == list(range(1, len(images) + 1))
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    names = {category["id"]: category["name"] for category in content["categories"]}
    for sample in samples:
        image = images[sample.name]
        assert (image["height"], image["width"]) == sample.size
        assert (folder / image["file_name"]).is_file() and "\\" not in image["file_name"]
        found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert len(found) == len(sample.things)
        for thing in sample.things:
            (annotation,) = (a for a in found if np.abs(np.subtract(a["bbox"], thing.box())).max() < 0.01)
            assert names[annotation["category_id"]] == ONE_CLASS.get(layout, thing.class_name)
            assert np.array_equal(mask_of(annotation["segmentation"], sample.size), thing.mask(sample.size))
            assert annotation["area"] == thing.mask(sample.size).sum()
            assert annotation["iscrowd"] == (thing.crowd and layout in WITH_CROWDS)


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_holds_the_same_images_and_objects(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, SAMPLES)
    splits = MODULES[layout].find(tmp_path)
    assert [split.name for split in splits] == (["train", "val"] if layout in SPLIT else [""])
    parts = [SAMPLES[:4], SAMPLES[4:]] if layout in SPLIT else [SAMPLES]
    for split, samples in zip(splits, parts):
        check_same(split.convert(), split.image_folder, samples, layout)
        assert split.source.exists() and all(path.exists() for path in split.inputs())


@pytest.mark.parametrize("layout", WRITERS)
def test_no_other_reader_claims_a_layout(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, SAMPLES)
    for module in set(MODULES.values()) - {MODULES[layout]}:
        assert module.find(tmp_path) == []


def test_no_reader_claims_coco_or_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    coco = tmp_path / "coco"
    for folder in ("train2017", "val2017", "annotations"):
        (coco / folder).mkdir(parents=True)
    images = [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}]
    content = {"images": images, "annotations": [], "categories": []}
    roboflow = tmp_path / "roboflow" / "train"
    roboflow.mkdir(parents=True)
    for path in (coco / "annotations" / "instances_train2017.json", roboflow / "_annotations.coco.json"):
        path.write_text(json.dumps(content))
    for module in set(MODULES.values()):
        for folder in ("empty", "coco", "roboflow", "missing"):
            assert module.find(tmp_path / folder) == []


# ------------------------------------------------------------------------------------------------------------ labelme


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


DISC = np.add.outer((np.arange(40) + 0.5 - 20) ** 2, (np.arange(60) + 0.5 - 30) ** 2) <= 144


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
    from layout_writers import png_base64

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


def test_labelme_embedded_image_without_a_file_is_named(tmp_path: Path) -> None:
    write_shapes(tmp_path, [], imageData="aGFsbG8=")
    (tmp_path / "a.png").unlink()
    converted = only(labelme_files, tmp_path)
    assert converted.problems.wrong() == ["embedded"] and "a.json" in converted.problems.summary()


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


def test_labelme_broken_json_and_images_without_one_are_named(tmp_path: Path) -> None:
    write_shapes(tmp_path, [])
    (tmp_path / "b.json").write_text('{"shapes": [')
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    problems = only(labelme_files, tmp_path).problems
    assert problems.counts == {"json": 1, "unlabelled": 1}
    assert "b.json" in problems.examples["json"][0] and problems.examples["unlabelled"] == ["c.png"]


# --------------------------------------------------------------------------------------------------------------- YOLO


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


def objects_of(converted: Converted, file_name: str) -> list[dict]:
    ids = [i["id"] for i in converted.content["images"] if i["file_name"].endswith(file_name)]
    return [a for a in converted.content["annotations"] if a["image_id"] in ids]


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


# ---------------------------------------------------------------------------------------------------------------- VIA


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


def classes_of(converted: Converted) -> list[str]:
    names = {c["id"]: c["name"] for c in converted.content["categories"]}
    return [names[a["category_id"]] for a in converted.content["annotations"]]


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
    (tmp_path / "second.json").write_text(text)
    with pytest.raises(ValueError, match=r"several VIA files \(second.json, via.json\)"):
        via_files.find(tmp_path)
    assert via_files.find(tmp_path / "second.json")[0].source.name == "second.json"


# -------------------------------------------------------------------------------------------------------- VOC's kinds


def test_standard_voc_is_left_to_its_own_reader(data_folder: Path) -> None:
    root = data_folder / "voc_tiny"
    for folder in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        assert voc_variants.is_standard(folder) and voc_variants.find(folder) == []


def test_voc_own_classes_without_lists_and_with_objects_without_mask(tmp_path: Path) -> None:
    WRITERS["VOC with own classes"](tmp_path, SAMPLES)
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for path in (folder / "ImageSets" / "Segmentation").iterdir():
        path.unlink()
    xml = folder / "Annotations" / "a.xml"
    box = "<bndbox><xmin>55</xmin><ymin>40</ymin><xmax>70</xmax><ymax>60</ymax></bndbox>"
    extra = f"<object><name>ape</name>{box}</object></annotation>"
    xml.write_text(xml.read_text().replace("</annotation>", extra))
    converted = only(voc_variants, tmp_path)
    assert len(converted.content["images"]) == 6 and classes_of(converted).count("ape") == 1
    assert [a["bbox"] for a in converted.content["annotations"] if not a["segmentation"]] == [[54, 39, 16, 21]]


def test_voc_lists_may_lie_in_main(tmp_path: Path) -> None:
    WRITERS["VOC with own classes"](tmp_path, SAMPLES)
    sets = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets"
    (sets / "Segmentation").rename(sets / "Main")
    (sets / "Main" / "cat_train.txt").write_text("a 1\n")
    assert [split.name for split in voc_variants.find(tmp_path)] == ["train", "val"]


def test_voc_older_labelme2voc_keeps_its_pictures_in_folders_of_their_own(tmp_path: Path) -> None:
    WRITERS["labelme2voc"](tmp_path, SAMPLES)
    for name in ("SegmentationObject", "SegmentationClass"):
        (tmp_path / name).rename(tmp_path / f"{name}PNG")
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.npy").write_bytes(b"")
    check_same(only(voc_variants, tmp_path), tmp_path / "JPEGImages", SAMPLES, "labelme2voc")


def test_voc_void_pixels_belong_to_nobody_and_unknown_colours_are_named(tmp_path: Path) -> None:
    WRITERS["CVAT segmentation mask"](tmp_path, SAMPLES)
    for kind in ("Object", "Class"):
        path = tmp_path / f"Segmentation{kind}" / "a.png"
        pixels = np.array(Image.open(path))
        pixels[:5] = (224, 224, 192)
        Image.fromarray(pixels).save(path)
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n")
    converted = only(voc_variants, tmp_path)
    boxes = [a["bbox"] for a in objects_of(converted, "a.jpg")]
    assert [10, 5, 40, 40] in boxes and [60, 5, 19, 15] in boxes and len(boxes) == 2
    assert converted.problems.counts == {"colour": 2} and "128,128,0" in converted.problems.summary()


def test_voc_classes_by_index_also_where_masks_are_coloured(tmp_path: Path) -> None:
    WRITERS["CVAT segmentation mask"](tmp_path, SAMPLES)
    (tmp_path / "labelmap.txt").unlink()
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\n" + "\n".join(CLASSES))
    check_same(only(voc_variants, tmp_path), tmp_path / "JPEGImages", SAMPLES, "CVAT segmentation mask")


def test_voc_image_without_masks_is_without_objects_only_in_cvats_layout(tmp_path: Path) -> None:
    for layout, folder in (("CVAT segmentation mask", tmp_path / "c"), ("VOC with own classes", tmp_path / "v")):
        WRITERS[layout](folder, SAMPLES)
        for path in folder.rglob("Segmentation*/a.png"):
            path.unlink()
    converted = only(voc_variants, tmp_path / "c")
    assert not converted.problems.counts and objects_of(converted, "a.jpg") == []
    converted = contents(voc_variants.find(tmp_path / "v"))["train"]
    assert converted.problems.wrong() == ["masks"] and "SegmentationObject/a.png" in converted.problems.summary()


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("labelmap.txt", "cat;128,0,0", "expected lines such as"),
        ("labelmap.txt", "cat:1,0,0::\ndog:1,0,0::", "same colour"),
        ("ImageSets/Segmentation/default.txt", "\n", "lists no picture"),
    ],
)
def test_voc_bad_text_files_are_named(name: str, content: str, said: str, tmp_path: Path) -> None:
    WRITERS["CVAT segmentation mask"](tmp_path, SAMPLES)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said) as raised:
        only(voc_variants, tmp_path)
    assert Path(name).name in str(raised.value)


def test_voc_folder_in_which_nothing_names_the_classes_is_refused(tmp_path: Path) -> None:
    WRITERS["labelme2voc"](tmp_path, SAMPLES)
    (tmp_path / "class_names.txt").unlink()
    with pytest.raises(ValueError, match="nothing names the classes"):
        voc_variants.find(tmp_path)


# -------------------------------------------------------------------------------------------------- masks as pictures


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    "layout, path",
    [("Penn-Fudan", "PedMasks/a_mask.png"), ("CVAT segmentation mask", "SegmentationObject/a.png")],
)
def test_broken_masks_are_named(layout: str, path: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, SAMPLES)
    break_file(tmp_path / path)
    converted = only(MODULES[layout], tmp_path)
    assert converted.problems.wrong() in (["masks"], ["missing", "masks"])
    assert Path(path).name in converted.problems.in_words("masks")


def test_masks_with_a_single_value_are_counted_and_images_without_mask_left_out(tmp_path: Path) -> None:
    WRITERS["Penn-Fudan"](tmp_path, SAMPLES)
    (tmp_path / "PedMasks" / "c c_mask.png").unlink()
    mask = np.zeros((70, 70), dtype=np.uint8)
    mask[3:9, 3:9] = mask[50:60, 50:60] = 255
    Image.fromarray(mask).save(tmp_path / "PedMasks" / "e_mask.png")
    converted = only(mask_folders, tmp_path)
    assert converted.problems.counts == {"single value": 2, "unlabelled": 1} and not converted.problems.wrong()
    (annotation,) = objects_of(converted, "e.jpeg")
    assert annotation["area"] == 136


@pytest.mark.parametrize("kind", ["palette", "colour", "16 bit", "32 bit", "TIFF"])
def test_masks_of_every_kind_hold_the_same_instances(kind: str, tmp_path: Path) -> None:
    from layout_writers import instance_values, save_colours, save_palette, write_image

    for sample in SAMPLES:
        write_image(tmp_path / "images" / sample.name, sample)
        values, path = instance_values(sample), tmp_path / "masks" / f"{sample.stem}.png"
        path.parent.mkdir(exist_ok=True)
        if kind == "palette":
            save_palette(path, values)
        elif kind == "colour":
            save_colours(path, values)
        elif kind == "TIFF":
            Image.fromarray(values).save(path.with_suffix(".tif"))
        else:
            wide = values.astype({"16 bit": np.uint16, "32 bit": np.int32}[kind]) * 257
            Image.fromarray(wide).save(path if kind == "16 bit" else path.with_suffix(".tif"))
    check_same(only(mask_folders, tmp_path), tmp_path / "images", SAMPLES, "masks per object")


@pytest.mark.parametrize("order", ["train/{}", "{}/train"])
def test_mask_folders_may_be_split_in_either_nesting(order: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        WRITERS["Penn-Fudan"](tmp_path / split, SAMPLES)
        for old, new in (("PNGImages", "images"), ("PedMasks", "masks")):
            target = tmp_path / "new" / order.format(new).replace("train", split)
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / split / old).rename(target)
    splits = mask_folders.find(tmp_path / "new")
    assert [split.name for split in splits] == ["train", "val"]
    for split in splits:
        check_same(split.convert(), split.image_folder, SAMPLES, "masks per object")


def test_masks_in_jpeg_are_no_masks(tmp_path: Path) -> None:
    WRITERS["Penn-Fudan"](tmp_path, SAMPLES)
    path = tmp_path / "PedMasks" / "a_mask.png"
    Image.open(path).save(path, "JPEG")
    assert only(mask_folders, tmp_path).problems.wrong() == ["masks"]


def test_outlines_cover_the_same_pixels_as_masks() -> None:
    """The writers' own claim: the outline with corridors covers the same pixels."""
    things = [(thing, sample.size) for sample in SAMPLES for thing in sample.things]
    assert len(things) == 8
    for thing, size in things:
        flat = [float(v) for point in thing.outline() for v in point]
        assert np.array_equal(mask_of([flat], size), thing.mask(size))
