"""Which images belong to which split: divided data, what a checkpoint held out, and images that are on both sides."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataset_files import image_headers
from dataset_files.image_headers import read_header
from dataset_files.splitting import choose_validation, hash_fraction, original_of
from dataset_files.stored_images import ImageForm
from my_dataset_coco import read_image
from prediction.steps import open_image
from tests.helpers.layout_writers import SAMPLES, WRITERS
from train_utils.errors import InputError
from train_utils.loaders import evaluation_loader, fingerprint, training_loader
from train_utils.open_data import held_out_images, open_held_out, open_training_data
from train_utils.options import DataSettings, TrainSettings
from train_utils.run.checkpoints import are_alike

IMAGES = 20


def make_unsplit(folder: Path, images: int = IMAGES) -> Path:
    """One COCO file beside its images, each with one object; files differ in size in bytes."""
    folder.mkdir()
    content: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    for k in range(1, images + 1):
        Image.new("RGB", (32 + k, 32), (9 * k % 256, k, 0)).save(folder / f"{k}.png")
        content["images"].append({"id": k, "file_name": f"{k}.png", "height": 32, "width": 32 + k})
        polygon = [4, 4, 20, 4, 20, 20, 4, 20]
        content["annotations"].append(
            {"id": k, "image_id": k, "category_id": 1 + k % 2, "bbox": [4, 4, 16, 16], "area": 256, "iscrowd": 0,
             "segmentation": [polygon]}
        )  # fmt: skip
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def given(**values: object) -> DataSettings:
    settings = DataSettings(**values)
    settings.given = set(values)
    return settings


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, dict, dict[str, int]]:
    """A folder, the settings of a run on it, and the images that the run held out."""
    folder = make_unsplit(tmp_path / "mine")
    train_set, val_set = open_training_data(given(data_path=str(folder)), seed=0)
    held_out = held_out_images(train_set, val_set)
    assert len(held_out) == len(val_set) and not set(held_out) & set(train_set.image_names())
    return folder, {"data_path": str(folder), "val_fraction": 0.2, "seed": 0}, held_out


@pytest.mark.parametrize("form", ["same", "slash", "relative", "moved", "option"])
def test_held_out_images_are_found_whatever_the_path(trained, form, tmp_path, monkeypatch):
    folder, trained_with, held_out = trained
    path = str(folder)
    if form == "moved":
        shutil.copytree(folder, tmp_path / "elsewhere")
        path = str(tmp_path / "elsewhere")
    if form == "relative":
        monkeypatch.chdir(tmp_path)
        path = "mine"
    settings = given(data_path=path + "/" * (form == "slash"), **({"val_fraction": 0.5} if form == "option" else {}))
    assert set(open_held_out(settings, trained_with, held_out).image_names()) == set(held_out)


@pytest.mark.parametrize("path", ["mine", "mine/", "./mine"])
def test_older_checkpoints_divide_the_data_again_whatever_the_path(trained, path, tmp_path, monkeypatch):
    _, trained_with, held_out = trained
    monkeypatch.chdir(tmp_path)
    assert set(open_held_out(given(data_path=path), trained_with).image_names()) == set(held_out)


def rename_all(folder: Path) -> None:
    for file in folder.glob("*.png"):
        file.rename(folder / f"img_{file.name}")
    edit(folder / "result.json", lambda c: [i.update(file_name=f"img_{i['file_name']}") for i in c["images"]])


def double_all(folder: Path) -> None:
    for file in folder.glob("*.png"):
        image = Image.open(file)
        image.resize((2 * image.width, 2 * image.height)).save(file)
    edit(folder / "result.json", lambda c: [i.update(width=2 * i["width"], height=64) for i in c["images"]])


@pytest.mark.parametrize("change", [rename_all, double_all])
@pytest.mark.parametrize("moved", [False, True])
def test_held_out_images_are_found_after_all_were_renamed_or_resized(trained, change, moved, tmp_path):
    folder, trained_with, held_out = trained
    if moved:
        folder = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    change(folder)
    dataset = open_held_out(given(data_path=str(folder)), trained_with, held_out)
    assert {name.removeprefix("img_") for name in dataset.image_names()} == set(held_out)
    settings = given(data_path=str(folder), val_fraction=0.5)
    train_set, val_set = open_training_data(settings, seed=3, held_out=held_out)
    assert {name.removeprefix("img_") for name in val_set.image_names()} == set(held_out)
    assert len(train_set) == IMAGES - len(held_out)


def test_a_file_named_with_val_json_is_validated_whole_unless_it_holds_the_same_images(trained, tmp_path):
    folder, trained_with, held_out = trained
    same = given(val_json=str(folder / "result.json"))
    assert set(open_held_out(same, trained_with, held_out).image_names()) == set(held_out)
    double_all(other := Path(shutil.copytree(folder, tmp_path / "other")))
    assert len(open_held_out(given(val_json=str(other / "result.json")), trained_with, held_out)) == IMAGES


def test_checkpoints_that_store_sizes_in_bytes_find_their_held_out_images(trained):
    folder, trained_with, held_out = trained
    sizes = {name: (folder / name).stat().st_size for name in held_out}
    assert set(open_held_out(given(data_path=str(folder)), trained_with, sizes).image_names()) == set(held_out)


@pytest.mark.parametrize("number, fraction, told", [(1, 0.2, "one image"), (1, 0.9, "one image"), (0, 0.2, "no image")])
def test_fewer_than_two_images_cannot_be_divided(tmp_path, number, fraction, told):
    folder = make_unsplit(tmp_path / "few", number)
    with pytest.raises(InputError, match=f"result.json: {told} cannot be divided.*--val-json"):
        open_training_data(given(data_path=str(folder), val_fraction=fraction), seed=0)


def test_held_out_images_that_are_missing_are_named_and_other_data_are_taken_whole(trained, tmp_path, capsys):
    folder, trained_with, held_out = trained
    first, *others = sorted(held_out)
    (folder / first).unlink()
    dataset = open_held_out(given(data_path=str(folder)), trained_with, held_out)
    assert set(dataset.image_names()) == set(others)
    assert f"1 of {len(held_out)} images that the training held out" in (err := capsys.readouterr().err)
    assert f"'{first}'" in err
    other = make_unsplit(tmp_path / "other", 5)
    for file in other.glob("*.png"):
        Image.new("RGB", Image.open(file).size).save(file, compress_level=0)
    assert len(open_held_out(given(data_path=str(other)), trained_with, held_out)) == 5
    assert "images that the training held out" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_held_out_images(trained):
    folder, _, held_out = trained
    settings = given(data_path=str(folder), val_fraction=0.7)
    train_set, val_set = open_training_data(settings, seed=5, held_out=held_out)
    assert set(val_set.image_names()) == set(held_out) and len(train_set) == IMAGES - len(held_out)


# --------------------------------------------------------------------------------------------------- images added later


def test_only_what_a_class_or_a_side_needs_moves_when_images_are_added():
    """Every image whose side changes is one that the hash alone had put on the other side, before or after."""
    draw = np.random.default_rng(0)
    moved = 0
    for seed in range(100):
        names = [f"{k}.jpg" for k in range(60)]
        classes = [[1] if draw.random() < 0.95 else [1, 2] for _ in names]
        before, _ = choose_validation(names[:50], classes[:50], 0.2, seed)
        after, _ = choose_validation(names, classes, 0.2, seed)
        by_hash = np.array([hash_fraction(original_of(name), seed) < 0.2 for name in names])
        changed = np.flatnonzero(before != after[:50])
        assert all(before[i] != by_hash[i] or after[i] != by_hash[i] for i in changed)
        assert all(2 in classes[i] for i in changed)
        moved += len(changed) > 0
    assert 0 < moved < 20


# ------------------------------------------------------------------------------------------------ images on both sides


def test_validation_images_that_are_trained_on_are_named(tmp_path: Path, capsys):
    folder = make_unsplit(tmp_path / "mine")
    content = json.loads((folder / "result.json").read_text())
    for key in ("images", "annotations"):
        content[key] = content[key][:4]
    (folder / "val.json").write_text(json.dumps(content))
    open_training_data(given(train_json=str(folder / "result.json"), val_json=str(folder / "val.json")), seed=0)
    assert "val.json: 4 of 4 validation images are also trained on" in capsys.readouterr().err
    open_training_data(given(data_path=str(make_unsplit(tmp_path / "divided"))), seed=0)
    assert "also trained on" not in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- data that change


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_fingerprint_changes_with_any_annotation_but_not_with_the_path(trained, tmp_path):
    folder, _, _ = trained

    def of(path: Path) -> str:
        return fingerprint(open_training_data(given(data_path=str(path)), seed=0)[0])

    before = of(folder)
    shutil.copytree(folder, tmp_path / "moved")
    assert of(tmp_path / "moved") == before
    for older in (", content", ", files"):
        assert are_alike("data", before.partition(older)[0], before)
    shutil.copytree(folder, tmp_path / "edited")
    for file in (tmp_path / "edited").glob("*.png"):
        Image.open(file).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file, compress_level=0)
    edited = of(tmp_path / "edited")
    assert edited != before and edited.partition(", files")[0] == before.partition(", files")[0]
    edit(folder / "result.json", lambda c: [a["bbox"].__setitem__(2, 17) for a in c["annotations"]])
    assert of(folder) != before and of(folder).partition(", content")[0] == before.partition(", content")[0]
    assert not are_alike("data", of(folder), before)


def test_a_label_corrected_during_a_run_changes_nothing_for_it(tmp_path: Path, monkeypatch):
    """The run keeps its conversion; the next one gets another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    WRITERS["YOLO"](tmp_path / "data", SAMPLES)
    labels = sorted((tmp_path / "data").rglob("labels/**/*.txt"))
    running = open_training_data(given(data_path=str(tmp_path / "data")), seed=0)[0]
    targets = [running.target(i)["boxes"].tolist() for i in range(len(running))]
    for path in labels:
        path.write_text("\n".join(path.read_text().splitlines()[:1]) + "\n")
    after = open_training_data(given(data_path=str(tmp_path / "data")), seed=0)[0]
    assert [running.target(i)["boxes"].tolist() for i in range(len(running))] == targets
    assert [after.target(i)["boxes"].tolist() for i in range(len(after))] != targets


def test_annotations_that_change_during_a_run_end_it_and_are_no_unreadable_images(trained):
    folder, _, _ = trained
    train_set, val_set = open_training_data(given(data_path=str(folder)), seed=0)
    edit(folder / "result.json", lambda c: c["annotations"].pop())
    with pytest.raises(InputError, match="result.json: has changed since it was opened"):
        next(iter(evaluation_loader(val_set, None, workers=0)))
    with pytest.raises(InputError, match="result.json: has changed since it was opened"):
        next(iter(training_loader(train_set, TrainSettings(batch_size=2, workers=0), pin_memory=False)))


LATE = [name for name in WRITERS if not name.startswith("labelme")]


@pytest.mark.parametrize("layout", LATE)
def test_a_conversion_is_made_again_when_a_missing_image_appears(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    WRITERS[layout](tmp_path / "data", SAMPLES)
    (image,) = (tmp_path / "data").rglob("a.jpg")
    image.rename(tmp_path / "aside")
    before = count_or_error(tmp_path / "data")
    (tmp_path / "aside").rename(image)
    assert count_or_error(tmp_path / "data") in (5, 6) != before


def count_or_error(folder: Path) -> int | str:
    try:
        return sum(map(len, open_training_data(given(data_path=str(folder)), seed=0)))
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("layout", ["VIA 1", "YOLO", "COCO without sizes"])
def test_sizes_are_read_again_when_images_are_resized(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if layout in WRITERS:
        WRITERS[layout](tmp_path / "data", SAMPLES)
    else:
        make_unsplit(tmp_path / "data", 6)
        edit(tmp_path / "data" / "result.json", lambda c: [i.pop("width") + i.pop("height") for i in c["images"]])

    def sizes() -> list[tuple[int, int]]:
        dataset = open_training_data(given(data_path=str(tmp_path / "data")), seed=0)[0]
        return [dataset.get_height_and_width(i) for i in range(len(dataset))]

    before = sizes()
    for file in (tmp_path / "data").rglob("*.*"):
        if file.suffix in (".jpg", ".png", ".jpeg", ".bmp"):
            image = Image.open(file)
            image.resize((2 * image.width, 2 * image.height)).save(file)
    assert sizes() == [(2 * h, 2 * w) for h, w in before]


def test_repaired_files_are_stored_for_each_image_folder(tmp_path):
    folder = make_unsplit(tmp_path / "mine", 6)
    edit(folder / "result.json", lambda c: [i.pop("width") + i.pop("height") for i in c["images"]])
    (tmp_path / "large").mkdir()
    for file in folder.glob("*.png"):
        image = Image.open(file)
        image.resize((2 * image.width, 64)).save(tmp_path / "large" / file.name)
    for place, height in ((folder, 32), (tmp_path / "large", 64)):
        settings = given(train_json=str(folder / "result.json"), image_folder=str(place))
        assert open_training_data(settings, seed=0)[0].get_height_and_width(0)[0] == height


def test_a_damaged_conversion_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    WRITERS["YOLO"](tmp_path / "data", SAMPLES)
    before = count_or_error(tmp_path / "data")
    stored = list((tmp_path / "cache" / "mask-rcnn" / "converted").iterdir())
    assert len(stored) == 4
    for path in stored:
        path.write_bytes(path.read_bytes().replace(b"1", b"\0"))
    assert count_or_error(tmp_path / "data") == before == 5


@pytest.mark.parametrize("name", ["s" * 240, os.fsdecode(b"caf\xe9"), "a[b]*"])
def test_names_of_any_length_and_encoding_have_a_place_in_the_cache(name, tmp_path):
    folder = make_unsplit(tmp_path / (name if len(name) < 99 else "mine"), 6)
    edit(folder / "result.json", lambda c: [a.pop("bbox") for a in c["annotations"]])
    (folder / "result.json").rename(folder / f"{name}.json")
    assert count_or_error(folder) == 6


def test_headers_of_data_that_are_not_split_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(image_headers, "STORED_FROM", 1)
    folder = make_unsplit(tmp_path / "mine", 8)
    (folder / "result.index").write_text("a file of the user")
    count_or_error(folder)
    monkeypatch.setattr(image_headers, "read_header", None)
    assert count_or_error(folder) == 8 and (folder / "result.index").read_text() == "a file of the user"


def test_a_broken_link_is_missing_and_not_found_elsewhere(tmp_path, capsys):
    folder = make_unsplit(tmp_path / "mine", 6)
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to("nowhere")
    assert "images that are missing (1)" in str(count_or_error(folder))
    assert "found in the image folder" not in capsys.readouterr().err


def test_equal_names_in_several_image_folders_are_named(tmp_path, capsys):
    folder = make_unsplit(tmp_path / "mine", 6)
    for name in ("left", "right"):
        shutil.copytree(folder, folder / name, ignore=lambda *_: ["result.json", "left"])
    for file in folder.glob("*.png"):
        file.unlink()
    assert count_or_error(folder) == 6 and "several folders" not in capsys.readouterr().err
    for file in (folder / "right").glob("*.png"):
        Image.open(file).save(file, compress_level=0)
    assert count_or_error(folder) == 6
    assert f"result.json in {folder / 'left'}, not in {folder / 'right'}" in capsys.readouterr().err
    (folder / "left").rename(folder / "images")
    assert count_or_error(folder) == 6 and "several folders" not in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "inner/"])
def test_names_of_folders_are_no_names_of_images(name, tmp_path):
    folder = make_unsplit(tmp_path / "mine", 6)
    (folder / "inner").mkdir()
    edit(folder / "result.json", lambda c: c["images"][0].update(file_name=name))
    assert (
        f"file names that are folders or lead out of the image folder, which are never opened (1): image 1, '{name}'"
        in (str(count_or_error(folder)))
    )


def test_old_conversions_that_no_run_uses_are_deleted(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_unsplit(tmp_path / "data", 4)
    edit(tmp_path / "data" / "result.json", lambda c: [a.pop("bbox") for a in c["annotations"]])
    folder = tmp_path / "cache" / "mask-rcnn" / "converted"

    def stored() -> set[str]:
        open_training_data(given(data_path=str(tmp_path / "data")), seed=0)
        return {path.name for path in folder.glob("*.json")}

    first = stored()
    edit(tmp_path / "data" / "result.json", lambda c: c["annotations"][0].update(area=99))
    second = stored()
    assert first < second
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    edit(tmp_path / "data" / "result.json", lambda c: c["annotations"][0].update(area=9))
    assert len(stored()) == 2 and not stored() & second


# --------------------------------------------------------------------------------------------------- equal class names


def test_two_categories_of_one_name_stay_apart_or_stop(tmp_path: Path):
    folder = make_unsplit(tmp_path / "mine")
    both = [{"id": 1, "name": "bat", "supercategory": "animal"}, {"id": 2, "name": "bat", "supercategory": "sports"}]
    edit(folder / "result.json", lambda c: c.update(categories=both))
    for dataset in open_training_data(given(data_path=str(folder)), seed=0):
        assert dataset.class_names == {1: "bat (animal)", 2: "bat (sports)"}
        assert {int(dataset.target(i)["labels"][0]) for i in range(len(dataset))} == {1, 2}
    edit(folder / "result.json", lambda c: [each.pop("supercategory") for each in c["categories"]])
    with pytest.raises(InputError, match="names that several categories share.*'bat', ids 1, 2"):
        open_training_data(given(data_path=str(folder), skip_bad=True), seed=0)


# --------------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("place", ["exif", "xmp", "raw profile"])
def test_one_function_decides_about_orientation_everywhere(tmp_path: Path, place):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).repeat(3).reshape(4, 6, 3))
    path = tmp_path / "x.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    notes = PngInfo()
    if place == "xmp":
        notes.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="3"/></x:xmpmeta>')
    if place == "raw profile":
        text = exif.tobytes().hex()
        notes.add_text("Raw profile type exif", f"\nexif\n{len(text) // 2:8}\n{text}\n")
    image.save(path, pnginfo=notes, **({"exif": exif} if place == "exif" else {}))
    turned = np.array(image)[::-1, ::-1]
    assert read_header(str(path))[2] == 3
    assert np.array_equal(read_image(path, form=ImageForm("apply")).permute(1, 2, 0).numpy(), turned)
    assert np.array_equal(read_image(path, (4, 6)).permute(1, 2, 0).numpy(), np.array(image))
    assert np.array_equal(np.array(open_image(path)), turned)
    assert np.array_equal(np.array(open_image(path, exif="ignore")), np.array(image))
