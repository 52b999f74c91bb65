"""Bad input ends a run, or is left out of it, exactly as the list in bad_inputs.py says; and what that list cannot say.

That is: odd pictures give the pixels that they should, nothing outside the image folder is opened, the check of a
dataset reads no header twice, and output stays in its folder.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dataset_files import image_headers
from dataset_files.dataset import InstanceDataset, ItemPlan
from dataset_files.image_headers import check_images
from dataset_files.layouts.text_files import parse_xml
from dataset_files.problems import Problems
from dataset_files.stored_images import as_rgb, is_turned
from my_dataset_coco import CocoDetection, read_image
from prediction.sources import unique_names
from tests.helpers.broken_data import LAUGHS, SIZE, annotation_file, edit, make_coco, nothing, picture, renamed, turned
from tests.helpers.commands import Outcome
from tests.helpers.project import ROOT
from tests.programs import bad_inputs
from tests.programs.bad_inputs import CASES, Case, faults_of
from train_utils.data_check import check, check_and_drop
from train_utils.errors import InputError, reading_input
from train_utils.open_data import choose_splits, open_files
from train_utils.options import DataSettings


def parameter(case: Case):
    """Cases in which the run trains and evaluates are left out of `make test-fast`."""
    marks = [pytest.mark.slow] if case.status == 0 else []
    return pytest.param(case, id=case.name.replace(" ", "_"), marks=marks)


@pytest.mark.parametrize("case", [parameter(case) for case in CASES])
def test_case_ends_as_the_list_says(tmp_path, case):
    assert faults_of(bad_inputs.run(case, tmp_path), case) == []


def open_split(data_path: str, training: bool, skip_bad: bool = False) -> InstanceDataset:
    """Open the training or validation split of a folder, unchecked."""
    settings = DataSettings(data_path=data_path)
    with reading_input():
        opened = open_files(choose_splits(settings, training)[1 if training else 2], settings)
    return CocoDetection(opened, "train" if training else "val", plan=ItemPlan(skip_bad=skip_bad))


def open_checked(data_path: str, splits, skip_bad: bool):
    with reading_input():
        datasets = [open_split(data_path, training, skip_bad=True) for training in splits]
    return check_and_drop(datasets, DataSettings(skip_bad=skip_bad))


def test_list_has_every_case_once():
    assert len(CASES) >= 45 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "status, said",
    [(1, "error: x"), (0, "x"), (2, "error: y"), (2, "x"), (2, "x\nerror: x"), (2, "Traceback\nerror: x"), (2, "")],
)
def test_cases_can_fail(status, said):
    case = Case("", nothing, 2, ["x"])
    assert faults_of(Outcome(2, "", "warning: y\nerror: x"), case) == []
    assert faults_of(Outcome(status, "", said), case) != []


@pytest.mark.parametrize("skip_bad", [False, True])
def test_boxes_of_another_format_stop_a_run_also_with_skip_bad(tmp_path, skip_bad):
    make_coco(tmp_path)
    path = annotation_file(tmp_path, "train")
    content = json.loads(path.read_text())
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w, y + h]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="boxes look like x1, y1, x2, y2 .*--boxes-from-masks$"):
        open_checked(str(tmp_path), [True, False], skip_bad)


def test_what_cannot_be_skipped_stops_the_check_whoever_found_it(tmp_path):
    make_coco(tmp_path)
    dataset = open_split(str(tmp_path), True)
    dataset.problems.add("fractions", "all of them")
    with pytest.raises(InputError, match="not pixels .*all of them$"):
        check([dataset], skip_bad=True)


def test_git_lfs_pointers_are_named(tmp_path):
    make_coco(tmp_path)
    dataset = open_split(str(tmp_path), True)
    dataset.image_path(0).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    problems, items = check_images(dataset)
    assert problems.counts == {"lfs": 1} and items == [0] and "git lfs pull" in problems.describe("lfs")


# ---------------------------------------------------------------------------------------------- pixels of odd pictures


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"])
def test_every_mode_becomes_three_channels(mode):
    image = Image.new(mode, (5, 4), 30000) if mode.startswith("I") else picture(mode).crop((0, 0, 5, 4))
    assert as_rgb(image).mode == "RGB" and as_rgb(image).size == (5, 4)
    if not mode.startswith("I"):
        assert as_rgb(image).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "mode, form, options",
    [("L", "PNG", {}), ("P", "PNG", {}), ("P", "PNG", {"transparency": 3}), ("CMYK", "JPEG", {}), ("RGBA", "PNG", {}),
     ("LA", "PNG", {}), ("RGB", "JPEG", {"progressive": True}), ("RGB", "TIFF", {}), ("RGB", "WEBP", {})],
)  # fmt: skip
def test_odd_pictures_have_pillows_pixels(tmp_path, mode, form, options):
    picture(mode).save(tmp_path / "x", form, **options)
    with Image.open(tmp_path / "x") as image:
        assert np.array_equal(read_image(tmp_path / "x").permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_cut_off(tmp_path):
    values = np.array([[0, 128, 129, 257, 4095, 32768, 65535]], dtype=np.uint16)
    for form in ("PNG", "TIFF"):
        Image.fromarray(values).save(tmp_path / "x", form)
        found = read_image(tmp_path / "x")
        assert found.tolist() == [[[0, 0, 1, 1, 16, 128, 255]]] * 3


def test_formats_that_run_other_programs_are_never_tried(tmp_path):
    picture().save(tmp_path / "1.jpg", "EPS")
    with pytest.raises(ValueError, match="1.jpg: .*cannot identify image file"):
        read_image(tmp_path / "1.jpg")


@pytest.mark.parametrize(
    "stored, orientation, annotated, expected",
    [
        ((64, 32), 6, (64, 32), True),  # annotated: height and width
        ((64, 32), 6, (32, 64), False),
        ((64, 32), 5, (64, 32), True),
        ((64, 32), 8, (64, 32), True),
        ((64, 32), 1, (64, 32), False),
        ((64, 32), 3, (32, 64), False),
        ((64, 32), 3, (64, 32), False),
        ((64, 32), 9, (64, 32), False),
        ((64, 64), 6, (64, 64), False),  # both fit: as it is stored
        ((64, 32), 6, (64, 33), False),
    ],
)
def test_pictures_are_turned_only_where_nothing_else_fits(stored, orientation, annotated, expected):
    assert is_turned(stored, orientation, annotated) is expected


@pytest.mark.parametrize("wide", [True, False])
def test_turned_pictures_have_the_pixels_of_their_annotations(tmp_path, wide):
    make_coco(tmp_path / "data")
    turned(wide)(tmp_path)
    path = tmp_path / "data" / "train2017" / "1.png"
    image = Image.open(path)
    image.load()
    expected = image if wide else ImageOps.exif_transpose(image)
    dataset = open_split(str(tmp_path / "data"), training=True)
    assert np.array_equal(dataset[0][0].permute(1, 2, 0).numpy(), np.array(expected.convert("RGB")))


# -------------------------------------------------------------------------------------- what is opened, and how often


@pytest.mark.parametrize("name", ["../1.png", "a/../../1.png", "OUTSIDE/1.png"])
def test_nothing_outside_the_image_folder_is_opened(tmp_path, monkeypatch, name, capsys):
    make_coco(tmp_path / "data")
    renamed(name)(tmp_path)
    looked_at = []
    for module, function in ((Image, "open"), (os, "scandir"), (os, "stat")):
        old = getattr(module, function)

        def noting(path, *args, old=old, **options):
            looked_at.append(os.path.normpath(path) if isinstance(path, (str, os.PathLike)) else "")
            return old(path, *args, **options)

        monkeypatch.setattr(module, function, noting)
    (dataset,) = open_checked(str(tmp_path / "data"), (True,), skip_bad=True)
    assert [dataset[i][1]["image_id"] for i in range(len(dataset))] == [2, 3, 4]
    assert any(path.endswith("train2017/2.png") for path in looked_at)
    assert not any(path.endswith("/1.png") for path in looked_at)


def test_left_out_pictures_leave_the_ground_truth_too(tmp_path, capsys):
    make_coco(tmp_path / "data")
    (tmp_path / "data" / "val2017" / "5.png").write_bytes(b"")
    (dataset,) = open_checked(str(tmp_path / "data"), (False,), skip_bad=True)
    assert dataset.coco.getImgIds() == [6] and sorted(dataset.coco.getAnnIds()) == [60, 61]
    assert [dataset[i][1]["image_id"] for i in range(len(dataset))] == [6]
    assert "empty files (1), left out" in capsys.readouterr().err


def test_left_out_annotations_leave_the_ground_truth_too(tmp_path, capsys):
    make_coco(tmp_path / "data")
    edit(lambda content: content["annotations"][-1].update(bbox=[0, 0, 4, 4]), "val")(tmp_path)
    (dataset,) = open_checked(str(tmp_path / "data"), (False,), skip_bad=True)
    assert dataset.coco.getImgIds() == [5, 6] and sorted(dataset.coco.getAnnIds()) == [50, 51, 60]
    assert "hardly overlap (1), left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key, field, value",
    [("images", "license", "x"), ("images", "date_captured", 5), ("annotations", "keypoints", "x"),
     ("categories", "name", 5), ("annotations", "id", -3), ("annotations", "iscrowd", None)],
)  # fmt: skip
def test_fields_that_nothing_needs_do_not_end_the_evaluation(tmp_path, key, field, value):
    make_coco(tmp_path / "data")
    edit(lambda content: content[key][0].update({field: value}), "val")(tmp_path)
    (dataset,) = open_checked(str(tmp_path / "data"), (False,), skip_bad=False)
    assert dataset.coco.getImgIds() == [5, 6] and len(dataset.coco.getAnnIds()) == 4


def test_headers_are_read_once_and_again_only_where_a_file_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(image_headers, "STORED_FROM", 0)
    make_coco(tmp_path / "data")
    images, read = tmp_path / "data" / "train2017", []
    header = image_headers.read_header

    def noting(path, **form):
        read.append(Path(path).name)
        return header(path, **form)

    def check() -> tuple[Problems, list[int]]:
        read.clear()
        return check_images(open_split(str(tmp_path / "data"), training=True))

    monkeypatch.setattr(image_headers, "read_header", noting)
    assert check() == (Problems(), []) and sorted(read) == ["1.png", "2.png", "3.png", "4.png"]
    assert check() == (Problems(), []) and read == []
    Image.new("RGB", (SIZE, SIZE + 1)).save(images / "3.png")
    os.utime(images / "3.png", ns=(0, 5))
    (images / "4.png").unlink()
    problems, items = check()
    assert items == [2, 3] and problems.counts == {"size": 1, "missing": 1} and read == ["3.png"]
    assert check() == (problems, items) and read == []
    stored = annotation_file(tmp_path / "data", "train").with_suffix(".mask-rcnn.training")
    stored.write_bytes(stored.read_bytes()[:-1])  # damaged
    assert check() == (problems, items) and sorted(read) == ["1.png", "2.png", "3.png"]


def test_small_datasets_leave_no_headers_behind(tmp_path):
    make_coco(tmp_path / "data")
    check_images(open_split(str(tmp_path / "data"), training=True))
    assert sorted(os.listdir(tmp_path / "data" / "annotations")) == [
        "instances_train2017.json", "instances_val2017.json",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ XML and output


def test_entity_bomb_is_refused_before_anything_grows(tmp_path):
    (tmp_path / "a.xml").write_text(f"{LAUGHS}<annotation>&l11;</annotation>")
    started = time.perf_counter()
    with pytest.raises(ValueError, match="document type"):
        parse_xml(tmp_path / "a.xml")
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_declared_entities_are_refused_in_any_encoding(tmp_path, encoding):
    (tmp_path / "secret.txt").write_text("secret")
    xml = f"<!DOCTYPE a [<!ENTITY x SYSTEM '{tmp_path / 'secret.txt'}'>]><a><b>&x;</b></a>"
    (tmp_path / "a.xml").write_text(xml, encoding=encoding)
    with pytest.raises(ValueError, match="document type"):
        parse_xml(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text("<a><b>ä</b></a>", encoding=encoding)
    assert parse_xml(tmp_path / "a.xml").findtext("b") == "ä"


def test_xml_that_is_far_too_long_is_not_read(tmp_path):
    with open(tmp_path / "a.xml", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="bytes"):
        parse_xml(tmp_path / "a.xml")


@pytest.mark.parametrize(
    "names", [["a.jpg", "b/a.jpg"], ["..jpg", "...png", "../x.png"], ["/etc/a b.png", "图.jpg", ".png", "-x.png"]]
)
def test_drawn_pictures_stay_in_the_output_folder(tmp_path, names):
    drawn = [tmp_path / "out" / f"{name}.png" for name in unique_names(Path(name).name for name in names)]
    assert len(set(drawn)) == len(names)
    assert all(path.resolve().parent == (tmp_path / "out").resolve() and path.suffix == ".png" for path in drawn)


def test_checkpoint_holds_nothing_but_tensors_and_plain_values(tmp_path):
    (tmp_path / "x.pth").write_bytes(bad_inputs.good_weights())
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    waiting, kinds = [content], set()
    while waiting:
        value = waiting.pop()
        kinds.add(type(value).__name__)
        waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else []
        waiting += list(value) if isinstance(value, (list, tuple)) else []
    assert kinds <= {"dict", "OrderedDict", "list", "tuple", "Tensor", "str", "int", "float", "bool", "NoneType"}


def test_every_weight_file_is_read_without_running_what_it_holds():
    """There is no other way to load a pickle in the product than these."""
    root = ROOT
    packages = ("train_utils", "dataset_files", "network_files", "backbone", "tools")
    files = [*root.glob("*.py"), *(file for package in packages for file in (root / package).rglob("*.py"))]
    found = 0
    for file in files:
        for line in file.read_text().splitlines():
            assert "pickle.load" not in line and "allow_pickle=True" not in line, (file, line)
            if "torch.load(" in line:
                assert "weights_only=True" in line, (file, line)
                found += 1
    assert found >= 2


def test_download_of_another_content_is_not_kept(tmp_path, monkeypatch):
    from train_utils.errors import InputError
    from train_utils.weight_files.weights import PublishedFile, download

    monkeypatch.chdir(tmp_path)
    (tmp_path / "source-00000000.pth").write_bytes(b"not what was published")
    address = (tmp_path / "source-00000000.pth").as_uri()
    with pytest.raises(InputError, match="hash"):
        download(PublishedFile("weights.pth", address))
    assert not (tmp_path / "weights.pth").exists()
