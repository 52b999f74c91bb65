"""--channels from training to ONNX: the same values and statistics everywhere, on images of 4 channels of 16 bits."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from predict import Predictor
from tests.helpers.commands import assert_refused, run, run_thin, started, succeeded
from tests.helpers.project import ROOT, importing_tests
from tests.helpers.stored_data import write_set
from tests.helpers.thin_weights import noise_image, thin_networks

tifffile = pytest.importorskip("tifffile")
pytestmark = pytest.mark.slow

SIZES = ["--min-size", "64", "--max-size", "96", "--rois-per-image", "8", "--batch-size", "2", "--workers", "0"]
OPTIONS = ["--device", "cpu", "--data-path", "data", "--channels", "4", "--pretrain", "False", "--epochs", "2", *SIZES]
AUGMENTED = ["--data-augmentation", "lsj", "--use-copypaste", "--color-jitter", "0.3", "--show-channels", "3", "0", "1"]
TOLERANCE = {"boxes": 0.05, "scores": 1e-4}


def write(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path, np.moveaxis(pixels, 2, 0), photometric="minisblack")  # a page per channel


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, in `straight`."""
    folder = tmp_path_factory.mktemp("channels")
    write_set(folder / "data", write, ".tif", channels=4)
    with thin_networks():
        done = succeeded(run_thin(folder, "train.py", *OPTIONS, *AUGMENTED, "--output-dir", "straight"))
        assert "images of 16-bit values, 4 channels" in done.out and "channel 3: mean 30" in done.out
        yield folder


def weights(lab: Path, name: str) -> dict:
    return torch.load(lab / name, weights_only=True)


def test_a_resumed_run_has_the_same_bits_and_statistics(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    succeeded(run_thin(lab, "train.py", *OPTIONS, *AUGMENTED, "--output-dir", "parts", "--max-steps", "4"))
    monkeypatch.setattr("train_utils.models.pixel_statistics", lambda _: pytest.fail("computed again"))
    resume = ["--resume", "auto", "--device", "cpu", "--workers", "0", "--output-dir", "parts"]
    succeeded(run_thin(lab, "train.py", *resume))
    one, other = weights(lab, "straight/model_1.pth"), weights(lab, "parts/model_1.pth")
    assert one["model_config"] == other["model_config"] and one["model_config"]["values"] == "uint16"
    assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
    again = run_thin(lab, "train.py", *resume, "--channels", "3", "--show-channels", "0")
    assert_refused(again, "number of channels than --channels", "1.tif")


def test_validation_and_report_take_the_networks_images(lab: Path) -> None:
    words = ["--weights-path", "straight/model_1.pth", "--device", "cpu", "--workers", "0"]
    done = succeeded(run(lab, "validation.py", *words, "--report", "page"))
    assert "images are not shown" not in done.err
    page = (lab / "page/report.html").read_text()
    assert page.count("data:image/jpeg;base64") >= 2
    assert_refused(run(lab, "validation.py", *words, "--data-path", "data", "--channels", "3"), "--channels 3")
    batch = succeeded(run(lab, "train.py", *OPTIONS, *AUGMENTED, "--show-batch", "--output-dir", "batch"))
    assert "batch.png" in batch.out and np.asarray(Image.open(lab / "batch/batch.png")).std() > 20


@pytest.fixture(scope="module")
def predictor(lab: Path) -> Predictor:
    return Predictor(lab / "straight/model_1.pth", device="cpu", box_thresh=0.05, show_channels=[2])


def test_the_predictor_takes_files_arrays_and_tiles(lab: Path, predictor: Predictor) -> None:
    path = lab / "data/val2017/1.tif"
    pixels = tifffile.imread(path)
    found = predictor([path, pixels, np.moveaxis(pixels, 0, 2)])
    assert len(found[0]) > 0
    for other in found[1:]:
        assert np.array_equal(found[0].scores, other.scores) and found[0].codes == other.codes
    shown = np.asarray(found[0].image)
    assert shown.shape == (64, 64, 3) and (shown[..., 0] == shown[..., 1]).all()
    order = np.argsort(pixels[2].ravel(), kind="stable")
    assert (np.diff(shown[..., 0].ravel()[order].astype(int)) >= 0).all()
    with torch.inference_mode():
        (expected,) = predictor.network.detect([torch.from_numpy(pixels.astype(np.float32))])
    assert np.array_equal(found[0].scores, expected["scores"][: len(found[0])].numpy())
    tiled = Predictor.of_trained(predictor.trained, settings(tile=64))
    assert np.array_equal(tiled(pixels).scores, found[0].scores)
    assert len(Predictor(lab / "straight/model_1.pth", device="cpu", box_thresh=0.05, tta=True)(pixels)) > 0
    wide = np.concatenate((pixels, pixels), axis=2)
    assert len(Predictor.of_trained(predictor.trained, settings(tile=64, overlap=0.0))(wide)) > 0
    for wrong in (pixels[:3], pixels.astype(np.uint8), noise_image(1)):
        with pytest.raises(ValueError, match="not 16-bit values, 4"):
            predictor(wrong)


def settings(**options):
    from prediction.options import PredictorSettings

    return PredictorSettings(box_thresh=0.05, **options)


def test_every_format_is_saved_with_the_stored_images(lab: Path) -> None:
    words = [
        "--weights-path",
        "straight/model_1.pth",
        "--device",
        "cpu",
        "--img-path",
        "data/val2017",
        "--box-thresh",
        "0.05",
    ]
    formats = ["--save", "json", "coco", "csv", "masks", "crops", "labelme"]
    succeeded(run(lab, "predict.py", *words, *formats, "--output-dir", "found"))
    assert (lab / "found/coco/images/1.tif").read_bytes() == (lab / "data/val2017/1.tif").read_bytes()
    assert Image.open(lab / "found/1.png").mode == "RGB"
    noise_image(1).save(lab / "photo.png")
    assert_refused(run(lab, "predict.py", *words[:4], "--img-path", "photo.png"), "photo.png")
    assert_refused(run(lab, "predict.py", *words[:4], "--webcam"), "no video")
    assert_refused(run(lab, "predict.py", *words, "--show-channels", "4"), "--show-channels 4")


def test_an_onnx_file_finds_the_same_without_torch(lab: Path, predictor: Predictor) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx_files.onnx_model import OnnxModel

    succeeded(run(lab, "tools/export_onnx.py", "straight/model_1.pth", "four.onnx"))
    assert_refused(run(lab, "tools/export_onnx.py", "straight/model_1.pth", "x.onnx", "--uint8"), "uint16")
    model = OnnxModel(lab / "four.onnx", runtime="onnxruntime")
    stored = weights(lab, "straight/model_1.pth")["model_config"]
    assert {name: model.description.network[name] for name in ("channels", "values", "image_mean", "image_std")} == {
        name: stored[name] for name in ("channels", "values", "image_mean", "image_std")
    }
    pixels = tifffile.imread(lab / "data/val2017/1.tif").astype(np.float32)
    found = model.detect(pixels)
    with torch.inference_mode():
        (expected,) = predictor.network.detect([torch.from_numpy(pixels)])
    assert len(found["labels"]) == len(expected["labels"]) > 0
    for name, tolerance in TOLERANCE.items():
        np.testing.assert_allclose(found[name], expected[name].numpy(), atol=tolerance)

    others = "torch,torchvision,pycocotools,matplotlib,tqdm,hotcoco,onnx,scipy,cv2,pandas,openvino"
    command = [sys.executable, "-m", "tests.helpers.without_packages", others, str(ROOT / "tools/predict_onnx.py")]
    words = ["four.onnx", "data/val2017", "--save", "json", "--box-thresh", "0.05", "--output-dir", "onnx"]
    succeeded(started([*command, *words, "--show-channels", "0", "1", "3"], lab, **importing_tests({})))
    entries = json.loads((lab / "onnx/predictions.json").read_text())
    by_torch = predictor(lab / "data/val2017/1.tif")
    scores = [entry["score"] for entry in entries if entry["file_name"] == "1.tif"]
    np.testing.assert_allclose(scores, by_torch.scores, atol=1e-4)


def test_torchvision_gets_no_network_of_other_channels(lab: Path) -> None:
    assert_refused(run(lab, "tools/export_torchvision.py", "straight/model_1.pth", "tv.pth"), "--channels 4")
