"""Images that --channels reads as they are stored: every form against the array that was written."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_files.image_files import images_below, read_size
from dataset_files.stored_images import ImageForm, stored_header, to_picture
from my_dataset_coco import read_image
from tests.helpers.stored_data import write_set
from train_utils.errors import InputError
from train_utils.open_data import open_training_data
from train_utils.options import DataSettings
from train_utils.sampled_images import pixel_statistics

tifffile = pytest.importorskip("tifffile")
cv2 = pytest.importorskip("cv2")

SHAPE = (9, 13)  # no axis is one of up to 8 channels


def array(dtype: str, channels: int = 1) -> np.ndarray:
    """[H, W, C] with values over the whole range of the type."""
    numbers = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        return numbers.normal(-5, 1e3, (*SHAPE, channels)).astype(dtype)
    limits = np.iinfo(dtype)
    return numbers.integers(limits.min, limits.max, (*SHAPE, channels), dtype, endpoint=True)


def write_tiff_pages(path: Path, pixels: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as file:
        for channel in np.moveaxis(pixels, 2, 0):
            file.write(channel, photometric="minisblack")


def write_planes(path: Path, pixels: np.ndarray, **settings) -> None:
    planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate", **settings)


def write_png(path: Path, pixels: np.ndarray) -> None:
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    path.write_bytes(cv2.imencode(".png", pixels[..., order])[1].tobytes())


def write_tiff(path: Path, pixels: np.ndarray, **settings) -> None:
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", **settings)


FORMS = {
    "png grey 16": ("uint16", 1, ".png", lambda p, a: Image.fromarray(a[..., 0]).save(p)),
    "png grey 8": ("uint8", 1, ".png", lambda p, a: Image.fromarray(a[..., 0]).save(p)),
    "png colour 16": ("uint16", 3, ".png", write_png),
    "png colour and alpha 16": ("uint16", 4, ".png", write_png),
    "png grey and alpha 8": ("uint8", 2, ".png", lambda p, a: Image.fromarray(a, "LA").save(p)),
    "png colour 8": ("uint8", 3, ".png", lambda p, a: Image.fromarray(a).save(p)),
    "tiff grey 16, by Pillow": ("uint16", 1, ".tif", lambda p, a: Image.fromarray(a[..., 0]).save(p)),
    "tiff float, by Pillow": ("float32", 1, ".tiff", lambda p, a: Image.fromarray(a[..., 0]).save(p)),
    "tiff big-endian": ("uint16", 2, ".tif", lambda p, a: write_tiff(p, a, byteorder=">")),
    "tiff tiled, compressed": ("uint16", 5, ".tif", lambda p, a: write_tiff(p, a, tile=(16, 16), compression="zlib")),
    "big tiff": ("float32", 8, ".tif", lambda p, a: write_tiff(p, a, bigtiff=True)),
    "tiff pages": ("uint16", 7, ".tif", write_tiff_pages),
    "tiff planes": ("uint8", 4, ".tif", write_planes),
    "tiff signed": ("int16", 3, ".tif", write_tiff),
    "tiff double": ("float64", 2, ".tif", write_tiff),
    "npy last": ("float32", 6, ".npy", np.save),
    "npy first": ("uint16", 6, ".npy", lambda p, a: np.save(p, np.moveaxis(a, 2, 0))),
    "npy grey": ("uint8", 1, ".npy", lambda p, a: np.save(p, a[..., 0])),
    "npy half": ("float16", 2, ".npy", np.save),
}  # fmt: skip
TYPES = {"int16": "float32", "float64": "float32", "float16": "float32"}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_to_the_bit(form: str, tmp_path: Path):
    dtype, channels, suffix, write = FORMS[form]
    pixels, path = array(dtype, channels), tmp_path / f"a{suffix}"
    write(path, pixels)
    values = TYPES.get(dtype, dtype)
    assert stored_header(path) == (*SHAPE, channels, values)
    read = read_image(path, form=ImageForm(channels=channels, values=values))
    assert read.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert np.array_equal(read.numpy(), np.moveaxis(pixels, 2, 0).astype(read.numpy().dtype))
    assert read_size(path) == SHAPE


def refusal(path: Path, **form) -> str:
    with pytest.raises(ValueError) as raised:
        read_image(path, form=ImageForm(**form))
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.tif"
    write_tiff(path, array("uint16", 3))
    assert "has 16-bit values, 3 channels, not 4" in refusal(path, channels=4)
    assert "not 8-bit values, 3" in refusal(path, channels=3, values="uint8")
    for wrong in (np.nan, np.inf):
        holed = array("float32", 2)
        holed[3, 4, 1] = wrong
        write_tiff(path, holed)
        assert "not finite" in refusal(path, channels=2)
    np.save(tmp_path / "b.npy", array("uint16", 9))
    assert "[9, 13, 9] is not" in refusal(tmp_path / "b.npy", channels=8)
    np.save(tmp_path / "b.npy", np.zeros((4, 9, 4)))
    assert "[4, 9, 4] is not" in refusal(tmp_path / "b.npy", channels=4)
    np.save(tmp_path / "b.npy", array("uint32", 2))
    assert "uint32" in refusal(tmp_path / "b.npy", channels=2)
    np.save(tmp_path / "b.npy", np.array([[{}] * 9] * 9))
    assert "Python objects" in refusal(tmp_path / "b.npy", channels=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array("uint8", 3)).save(tmp_path / "c.png", exif=exif)
    assert "EXIF orientation" in refusal(tmp_path / "c.png", channels=3)
    assert read_image(tmp_path / "c.png", form=ImageForm("ignore", 3)).shape == (3, *SHAPE)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert "pip install tifffile" in refusal(path, channels=2)


def test_arrays_beside_images_are_other_tools_caches(tmp_path: Path):
    np.save(tmp_path / "a.npy", array("uint8"))
    assert images_below(tmp_path) == [tmp_path / "a.npy"]
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    assert images_below(tmp_path) == [tmp_path / "a.png"]


def settings(root: Path, **given) -> DataSettings:
    made = DataSettings(data_path=str(root), **given)
    made.given = {"data_path", *given}
    return made


def opened(root: Path, **given):
    return open_training_data(settings(root, **given), seed=0)


def pixels_of(dataset, items, channels: int) -> np.ndarray:
    return np.concatenate([np.load(dataset.image_path(i)).reshape(-1, channels) for i in items]).astype(float)


def test_statistics_are_those_of_all_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_set(tmp_path, np.save, ".npy", channels=3)
    train_set, val_set = opened(tmp_path, channels=3)
    assert train_set.form.values == val_set.form.values == "uint16"
    pixels = np.concatenate([np.load(train_set.image_path(i)).reshape(-1, 3) for i in range(len(train_set))]).astype(
        float
    )
    mean, deviation = pixel_statistics(train_set)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-9)
    monkeypatch.setattr("train_utils.sampled_images.MOST_FOR_PIXELS", 3)
    few = pixels_of(train_set, (0, 2, 5), 3)
    np.testing.assert_allclose(pixel_statistics(train_set)[1], few.std(0), rtol=1e-9)


def test_bytes_are_measured_in_the_units_of_the_network(tmp_path: Path):
    write_set(tmp_path, lambda p, a: np.save(p, (a % 256).astype(np.uint8)), ".npy", channels=2)
    train_set, _ = opened(tmp_path, channels=2)
    pixels = pixels_of(train_set, range(len(train_set)), 2) / 255
    np.testing.assert_allclose(pixel_statistics(train_set), (pixels.mean(0), pixels.std(0)), rtol=1e-9)


def test_the_check_says_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_set(tmp_path, lambda p, a: Image.fromarray(a[..., 0]).save(p), ".png", channels=1)
    opened(tmp_path, channels=1)
    assert capsys.readouterr().out.count("images of 16-bit grey, 1 channel") == 2


def test_without_the_option_the_check_says_that_values_are_lost(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_set(tmp_path, lambda p, a: Image.fromarray(a[..., 0]).save(p), ".png", channels=1)
    opened(tmp_path)
    assert capsys.readouterr().err.count("16-bit grey, read as 8-bit RGB; --channels 1 keeps") == 2


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_set(tmp_path, write_tiff, ".tif", channels=2)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(InputError, match="TIFF files need the package tifffile: pip install tifffile"):
        opened(tmp_path, channels=2)


def test_masks_may_belong_to_arrays(tmp_path: Path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        np.save(tmp_path / "images" / f"{i}.npy", array("float32", 6))
        plane = np.zeros(SHAPE, np.uint8)
        plane[2:7, 3 : 7 + i] = 1
        Image.fromarray(plane).save(tmp_path / "masks" / f"{i}.png")
    train_set, val_set = opened(tmp_path, channels=6)
    assert len(train_set) + len(val_set) == 4 and train_set[0][0].shape == (6, *SHAPE)


def test_the_check_names_images_that_differ(tmp_path: Path):
    write_set(tmp_path, np.save, ".npy", channels=4)
    np.save(tmp_path / "train2017" / "3.npy", np.zeros((64, 64, 3), np.uint16))
    with pytest.raises(InputError, match=r"number of channels.*3\.npy \(image 3\) has 16-bit values, 3 channels"):
        opened(tmp_path, channels=4)
    np.save(tmp_path / "train2017" / "3.npy", np.zeros((64, 64, 4), np.float32))
    np.save(tmp_path / "val2017" / "1.npy", np.zeros((64, 64, 4), np.uint8))
    with pytest.raises(InputError, match=r"another type.*3\.npy \(image 3\) has fl.*1\.npy \(image 1\) has 8-bit"):
        opened(tmp_path, channels=4)
    kept, _ = opened(tmp_path, channels=4, skip_bad=True)
    assert len(kept) == 5
    np.save(tmp_path / "train2017" / "3.npy", np.zeros((64, 64, 12), np.uint16))
    np.save(tmp_path / "val2017" / "1.npy", np.zeros((64, 64, 4), np.uint16))
    with pytest.raises(InputError, match=r"cannot be read as stored.*3\.npy \(image 3\): its shape \[64, 64, 12\]"):
        opened(tmp_path, channels=4)
    with pytest.raises(InputError, match="give --channels N"):
        opened(tmp_path)
    with pytest.raises(InputError, match="--show-channels 1 4: give one or three of 0..3"):
        opened(tmp_path, channels=4, show_channels=[1, 4])


def test_a_broken_first_image_is_named(tmp_path: Path):
    write_set(tmp_path, np.save, ".npy", channels=2)
    (tmp_path / "train2017" / "1.npy").write_bytes(b"II*\0 and nothing more")
    with pytest.raises(InputError, match=r"not images \(1\): .*1\.npy"):
        opened(tmp_path, channels=2)


def test_large_data_keep_the_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_set(tmp_path, np.save, ".npy", channels=2)
    monkeypatch.setattr("dataset_files.image_headers.STORED_FROM", 2)
    opened(tmp_path, channels=2)
    monkeypatch.setattr("dataset_files.image_headers.read_header", lambda *_, **__: pytest.fail("read again"))
    opened(tmp_path, channels=2)


def test_sizes_come_from_headers_where_annotations_lack_them(tmp_path: Path):
    write_set(tmp_path, lambda p, a: write_planes(p, a), ".tif", channels=6)
    path = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    path.write_text(json.dumps(content))
    train_set, _ = opened(tmp_path, channels=6)
    assert train_set.get_height_and_width(0) == (64, 64) and train_set[0][0].shape == (6, 64, 64)


def test_pictures_for_people():
    pixels = np.moveaxis(array("uint8", 4), 2, 0)
    assert np.array_equal(np.asarray(to_picture(pixels)), np.moveaxis(pixels[:3], 0, 2))
    assert np.array_equal(np.asarray(to_picture(pixels, (3, 0, 1))), np.moveaxis(pixels[[3, 0, 1]], 0, 2))
    assert np.array_equal(np.asarray(to_picture(pixels, (2,))), np.repeat(pixels[2, ..., None], 3, axis=2))
    ramp = (30_000 + np.arange(200, dtype=np.float32)).reshape(1, 1, 200).repeat(8, axis=1)
    shown = np.asarray(to_picture(ramp))
    assert (shown.min(), shown.max()) == (0, 255) and np.all(np.diff(shown[0, :, 0].astype(int)) >= 0)
    assert np.asarray(to_picture(ramp[:, :, :1])).max() == 0  # one value alone
