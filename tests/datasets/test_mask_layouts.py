"""Masks as images: folders like VOC's, and a folder of images beside a folder of masks."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dataset_files.layouts import mask_folders, voc_variants
from tests.helpers.layout_checks import check_same, classes_of, contents, objects_of, only
from tests.helpers.layout_writers import (
    CLASSES,
    SAMPLES,
    WRITERS,
    instance_values,
    save_colours,
    save_palette,
    write_image,
)

# pycocotools' decoder and numpy 2 do not yet agree on what __array__ takes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# ------------------------------------------------------------------------------------------------------ VOC's kinds


def test_standard_voc_is_left_to_its_own_reader(data_folder: Path) -> None:
    root = data_folder / "voc_tiny"
    for folder in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        assert voc_variants.is_standard(voc_variants.variant_folder(folder)) and voc_variants.find(folder) == []


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


def test_voc_object_with_pixels_of_two_classes_is_counted(tmp_path: Path) -> None:
    WRITERS["labelme2voc"](tmp_path, SAMPLES)
    path = tmp_path / "SegmentationClass" / "a.png"
    picture = Image.open(path)
    picture.paste(2, (10, 5, 50, 15))
    picture.save(path)
    converted = only(voc_variants, tmp_path)
    assert converted.problems.counts == {"two classes": 1} and not converted.problems.wrong()
    assert classes_of(converted)[:2] == ["cat", "dog"]


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
        ("ImageSets/Segmentation/default.txt", "\n", "lists no image"),
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


# ------------------------------------------------------------------------------------------------ masks as pictures


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    "layout, module, path",
    [
        ("Penn-Fudan", mask_folders, "PedMasks/a_mask.png"),
        ("CVAT segmentation mask", voc_variants, "SegmentationObject/a.png"),
    ],
)
def test_broken_masks_are_named(layout: str, module: ModuleType, path: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, SAMPLES)
    break_file(tmp_path / path)
    converted = only(module, tmp_path)
    assert converted.problems.wrong() == ["masks"]
    assert Path(path).name in converted.problems.describe("masks")


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


@pytest.mark.parametrize("layout", ["Penn-Fudan", "masks per class", "masks per object", "Data Science Bowl 2018"])
def test_strays_in_folders_of_masks_are_left_out_and_counted(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, SAMPLES)
    masks = sorted(path for path in tmp_path.rglob("*") if path.is_dir() and path.name in ("masks", "PedMasks"))
    for folder in masks:
        for name in ("Thumbs.db", ".DS_Store", "notes.txt", "old/readme.txt", "empty/Thumbs.db"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")
        Image.new("L", (9, 9), 1).save(folder / "old" / "x.png")
    converted = only(mask_folders, tmp_path)
    assert converted.problems.counts.pop("no mask image") == len(masks)
    assert "old/x.png" in converted.problems.examples["no mask image"][0]
    converted.problems.counts.pop("single value", None)
    assert not converted.problems.counts
    (split,) = mask_folders.find(tmp_path)
    check_same(converted, split.image_folder, SAMPLES, layout)


def test_masks_of_images_in_sub_folders_are_no_classes(tmp_path: Path) -> None:
    WRITERS["Penn-Fudan"](tmp_path / "scene", SAMPLES)
    for name in ("PNGImages", "PedMasks"):
        (tmp_path / name).mkdir()
        (tmp_path / "scene" / name).rename(tmp_path / name / "scene")
    check_same(only(mask_folders, tmp_path), tmp_path / "PNGImages", SAMPLES, "Penn-Fudan")


def test_data_science_bowl_with_its_stages(tmp_path: Path) -> None:
    WRITERS["Data Science Bowl 2018"](tmp_path / "stage1_train", SAMPLES)
    (tmp_path / "stage1_train_labels.csv").write_text("ImageId,EncodedPixels\n")
    for sample in SAMPLES:
        write_image(tmp_path / "stage1_test" / sample.stem / "images" / sample.name, sample)
    (tmp_path / "stage1_train" / "a" / "masks" / "0.png").rename(tmp_path / "0.png")
    (split,) = mask_folders.find(tmp_path)
    assert split.name == "train"
    converted = split.convert()
    assert len(converted.content["images"]) == 6 and len(converted.content["annotations"]) == 7
    for path in (tmp_path / "stage1_train" / "a" / "masks").iterdir():
        path.unlink()
    assert only(mask_folders, tmp_path).problems.counts == {"unlabelled": 1}
    (tmp_path / "stage1_train").rename(tmp_path / "train_1")
    WRITERS["Data Science Bowl 2018"](tmp_path / "train_2", SAMPLES)
    with pytest.raises(ValueError, match="train_1 and train_2 are both named like a train split"):
        mask_folders.find(tmp_path)


# ------------------------------------------------------------------------------------------- masks that are not sharp


def saved_as_jpeg(mask: Image.Image) -> Image.Image:
    file = io.BytesIO()
    mask.save(file, "JPEG", quality=85)
    return Image.open(file)


BLURS = {
    "anti-aliased": lambda mask: mask.resize((80, 60), Image.Resampling.BILINEAR),
    "enlarged": lambda mask: mask.resize((240, 180), Image.Resampling.BICUBIC),
    "JPEG": saved_as_jpeg,
    "coloured": lambda mask: mask.convert("RGB").resize((80, 60), Image.Resampling.BILINEAR),
}


def write_mask(root: Path, values: Sequence[int], blur: Callable[[Image.Image], Image.Image] | None) -> Path:
    """An image with a mask of two discs."""
    mask = Image.new("L", (160, 120))
    for value, box in zip(values, ((10, 10, 60, 50), (80, 50, 140, 100))):
        ImageDraw.Draw(mask).ellipse(box, fill=value)
    mask = blur(mask) if blur else mask
    path = root / "masks" / "a.png"
    for folder in (root / "images", path.parent):
        folder.mkdir(parents=True)
    Image.new("RGB", mask.size).save(root / "images" / "a.png")
    mask.save(path)
    return path


@pytest.mark.parametrize("blur", BLURS)
@pytest.mark.parametrize("values", [(100, 200), (20, 40), (4, 8), (1, 2)])
def test_masks_with_blurred_edges_are_named(values: tuple[int, int], blur: str, tmp_path: Path) -> None:
    if blur == "JPEG":  # it hardly changes low values
        values = (10 * values[0], 10 * values[1]) if values[1] < 20 else values
    write_mask(tmp_path, values, BLURS[blur])
    converted = only(mask_folders, tmp_path)
    assert converted.problems.wrong() == ["blurred masks"] and converted.content["annotations"] == []
    assert converted.problems.examples["blurred masks"][0].startswith("a.png: values ")


@pytest.mark.parametrize("blur", [blur for blur in BLURS if blur != "coloured"])
def test_a_mask_of_one_object_with_blurred_edges_is_cut_at_half_its_value(blur: str, tmp_path: Path) -> None:
    write_mask(tmp_path, (255, 255), BLURS[blur])
    converted = only(mask_folders, tmp_path)
    assert converted.problems.counts == {"blurred edges": 1, "single value": 1}
    (annotation,) = converted.content["annotations"]
    scale = converted.content["images"][0]["width"] / 160
    sharp = write_mask(tmp_path / "sharp", (255, 255), None)
    assert annotation["area"] == pytest.approx(np.count_nonzero(np.array(Image.open(sharp))) * scale**2, rel=0.03)


def test_sharp_masks_of_crowded_objects_are_read(tmp_path: Path) -> None:
    """Objects that touch, lie on others, surround others, and are as thin as a blurred edge."""
    path = write_mask(tmp_path, (7, 200), None)
    mask = Image.open(path)
    draw = ImageDraw.Draw(mask)
    for number in range(10):
        draw.rectangle((90 + 4 * number, 70, 93 + 4 * number, 73), fill=100 + number)
    draw.rectangle((20, 20, 30, 30), fill=3)
    draw.line((20, 19, 30, 19), fill=9)
    mask.save(path)
    converted = only(mask_folders, tmp_path)
    assert converted.problems.counts == {} and len(converted.content["annotations"]) == 14


def test_masks_of_several_pages_are_named(tmp_path: Path) -> None:
    path = write_mask(tmp_path, (1, 2), None)
    page = Image.open(path)
    page.save(path.with_suffix(".tif"), save_all=True, append_images=[page, page])
    path.unlink()
    converted = only(mask_folders, tmp_path)
    assert converted.problems.examples["masks"] == ["a.tif: not readable as a mask in PNG or TIFF (holds 3 pages; "
                                                    "save each as a file of its own)"]  # fmt: skip


def test_images_that_share_a_mask_are_named(tmp_path: Path) -> None:
    path = write_mask(tmp_path, (1, 2), None)
    Image.new("RGB", (160, 120)).save(tmp_path / "images" / "a.jpg")
    converted = only(mask_folders, tmp_path)
    assert converted.problems.examples == {"shared labels": [f"{path.name} of a.jpg and a.png"]}
    assert converted.content["images"] == []


def write_semantic(root: Path, places: list[tuple[int, int]]) -> None:
    """Three images with squares of value 1 at x = 4 and 60, and of value 2 at the given places."""
    for number in range(3):
        values = np.zeros((40, 80), dtype=np.uint8)
        for value, x in [(1, 4), (1, 60), *places]:
            values[5 + 10 * value : 12 + 10 * value, x : x + 8] = value
        for folder, pixels in (("images", np.zeros((40, 80, 3), dtype=np.uint8)), ("masks", values)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")


def test_masks_of_classes_in_place_of_objects_are_named(tmp_path: Path) -> None:
    write_semantic(tmp_path / "classes", [(2, 10), (2, 40)])
    problems = only(mask_folders, tmp_path / "classes").problems
    assert "6 of 6 values lie in several places" in problems.describe("semantic masks") and not problems.wrong()
    write_semantic(tmp_path / "objects", [(2, 10)])  # an object behind another one lies in two places, too
    assert only(mask_folders, tmp_path / "objects").problems.counts == {}
