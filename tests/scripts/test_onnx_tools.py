"""tools/export_onnx.py and tools/predict_onnx.py as a user meets them; the second without torch in the process."""

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps, features
from pycocotools import mask as coco_mask

onnx = pytest.importorskip("onnx", reason="needs the packages onnx and onnxruntime")
pytest.importorskip("onnxruntime", reason="needs the packages onnx and onnxruntime")

from network_files.masks.encode import encode_masks  # noqa: E402
from onnx_files.onnx_model import Description, OnnxModel  # noqa: E402
from onnx_files.runtimes import RUNTIMES  # noqa: E402
from predict import Predictor  # noqa: E402
from prediction.files import predict_files  # noqa: E402
from prediction.options import SAVE_FORMATS, ImageSettings, OutputSettings  # noqa: E402
from tests.helpers.commands import Outcome, assert_refused, run, started, succeeded  # noqa: E402
from tests.helpers.exported import Reference, in_order_of  # noqa: E402
from tests.helpers.project import ROOT, importing_tests  # noqa: E402
from tests.helpers.thin_weights import CATEGORY_IDS, NAMES, noise_image, thin_networks, write_thin_weights  # noqa: E402
from tests.helpers.video_clips import write_clip  # noqa: E402
from train_utils.options import InferenceSettings  # noqa: E402
from train_utils.trained_model import open_trained_model  # noqa: E402

ALL_OTHERS = "torch,torchvision,pycocotools,matplotlib,tqdm,hotcoco,onnx,scipy,cv2,pandas"  # and a runtime
PILLOW = tuple(int(number) for number in PIL.__version__.split(".")[:2])
LOWEST_SCORE = 0.3


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A thin network's weights, both exported files, and a folder of images, one of them turned and one broken."""
    folder = tmp_path_factory.mktemp("onnx")
    for k in range(4):
        path = folder / "photos" / f"day {k % 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if k == 3:
            exif[0x0112] = 6
        noise_image(k, (90 + 17 * k, 70)).save(path, exif=exif)
    (folder / "photos" / "broken.jpg").write_text("no image")
    with thin_networks():
        write_thin_weights(folder / "thin.pth")
        succeeded(run(folder, "tools/export_onnx.py", "thin.pth", "thin.onnx"))
        succeeded(run(folder, "tools/export_onnx.py", "thin.pth", "bytes.onnx", "--uint8"))
        yield folder


@pytest.fixture(scope="module")
def with_torch(lab: Path) -> list[dict]:
    """What predict.py writes."""
    words = ["--weights-path", "thin.pth", "--device", "cpu", "--img-path", "photos", "--save", "json"]
    outcome = run(lab, "predict.py", *words, "--box-thresh", str(LOWEST_SCORE), "--output-dir", "torch")
    assert outcome.code == 2 and "broken.jpg" in outcome.err
    return json.loads((lab / "torch" / "predictions.json").read_text())


@pytest.fixture(scope="module")
def assert_exact(lab: Path) -> Callable[[list[dict]], None]:
    """Assert that results are those of the network in float64, up to rounding; see tests/helpers/exported.py."""
    model = open_trained_model(InferenceSettings(str(lab / "thin.pth"), device="cpu")).model
    reference, expected = Reference(model), {}
    for path in (lab / "photos").rglob("*.png"):
        image = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        exact, bounds = reference.detect(image)
        shown = exact["scores"] >= LOWEST_SCORE
        assert (np.abs(exact["scores"] - LOWEST_SCORE) > bounds["scores"]).all(), "rounding decides what is shown"
        exact = {name: value[shown] for name, value in exact.items()}
        name = path.relative_to(lab / "photos").as_posix()
        expected[name] = exact, bounds, [masks_at(exact, image, 0.5 + k * bounds["masks"]) for k in (1, -1)]

    def check(results: list[dict]) -> None:
        assert {entry["file_name"] for entry in results} == set(expected)
        for name, (exact, bounds, (sure, possible)) in expected.items():
            entries = [entry for entry in results if entry["file_name"] == name]
            boxes = np.array([entry["bbox"] for entry in entries])
            boxes[:, 2:] += boxes[:, :2]
            labels = {category: label for label, category in CATEGORY_IDS.items()}
            found = {
                "boxes": boxes,
                "labels": np.array([labels[entry["category_id"]] for entry in entries]),
                "scores": np.array([entry["score"] for entry in entries]),
            }
            assert len(entries) == len(exact["labels"]) > 2
            ordered = in_order_of(found, exact | {"sure": sure, "possible": possible}, 2 * bounds["scores"])
            np.testing.assert_array_equal(found["labels"], ordered["labels"])
            for key in ("boxes", "scores"):
                np.testing.assert_allclose(found[key], ordered[key], rtol=0, atol=bounds[key], err_msg=key)
            masks = np.stack([coco_mask.decode(entry["segmentation"]) for entry in entries])
            assert (ordered["sure"] <= masks).all() and (masks <= ordered["possible"]).all()

    return check


def masks_at(detection: dict[str, np.ndarray], image: np.ndarray, threshold: float) -> np.ndarray:
    """The masks of a detection as planes, uint8 [N, H, W]."""
    codes = encode_masks(detection["masks"], detection["boxes"], image.shape[:2], threshold)
    return coco_mask.decode(codes).transpose(2, 0, 1)


def without(packages: str, lab: Path, *arguments: str) -> Outcome:
    """tools/predict_onnx.py in a process in which these packages cannot be imported."""
    command = [sys.executable, "-m", "tests.helpers.without_packages", packages, str(ROOT / "tools/predict_onnx.py")]
    return started([*command, *arguments], lab, **importing_tests({}))


@pytest.mark.slow
@pytest.mark.skipif(not features.check("freetype2") or PILLOW < (10, 1), reason="Pillow has no font of its own")
@pytest.mark.parametrize("model, runtime, other", [("thin.onnx", *RUNTIMES), ("bytes.onnx", *reversed(RUNTIMES))])
def test_without_torch_or_any_other_package_the_same_json_is_written(
    lab, with_torch, assert_exact, model, runtime, other
):
    pytest.importorskip(runtime)
    arguments = [model, "photos", "--save-json", "--box-thresh", str(LOWEST_SCORE), "--output-dir", "bare"]
    outcome = without(f"{ALL_OTHERS},{other}", lab, *arguments)
    assert outcome.out.startswith(f"{model}: {runtime} {version(runtime)}, CPU, fp32, all threads\n")
    assert outcome.out.splitlines()[-1] == "imported:"
    assert outcome.code == 2 and "broken.jpg" in outcome.err
    written = json.loads((lab / "bare" / "predictions.json").read_text())
    assert [list(entry) for entry in written] == [list(entry) for entry in with_torch]
    assert_exact(written)
    assert_exact(with_torch)
    assert {path.relative_to(lab / "bare") for path in (lab / "bare").rglob("*.png")} == {
        path.relative_to(lab / "torch") for path in (lab / "torch").rglob("*.png")
    }


@pytest.mark.slow
def test_with_matplotlib_the_drawn_images_are_those_of_predict(lab, with_torch):
    outcome = without("torch,torchvision", lab, "thin.onnx", "photos", "--box-thresh", "0.3", "--output-dir", "drawn")
    assert outcome.out.splitlines()[-1] == "imported:"
    drawn = sorted((lab / "torch").rglob("*.png"))
    assert len(drawn) == 4
    for path in drawn:
        ours = np.asarray(Image.open(lab / "drawn" / path.relative_to(lab / "torch"))).astype(int)
        assert (np.abs(ours - np.asarray(Image.open(path))).max(axis=2) > 0).mean() < 0.002


class SameDetections:
    """Stands in for an exported network: finds exactly what a `Predictor` finds."""

    def __init__(self, lab: Path, predictor: Predictor):
        self.description, self.predictor = OnnxModel(lab / "thin.onnx").description, predictor

    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return self.predictor.detect([image])[0]


@pytest.mark.slow
def test_given_equal_detections_all_outputs_equal_those_of_predict_byte_for_byte(lab, tmp_path):
    pytest.importorskip("av", reason="videos need PyAV")
    write_clip(tmp_path / "clip.mp4", [noise_image(k) for k in range(3)], [0, 1, 2], Fraction(1, 25))
    noise_image(7, (150, 110)).save(tmp_path / "tiled.png")
    predictor = Predictor(lab / "thin.pth", device="cpu", box_thresh=0.6, tile=80)
    tool = runpy.run_path(str(ROOT / "tools" / "predict_onnx.py"))
    options = ImageSettings(box_thresh=0.6, tile=80)
    exported = tool["OnnxPredictor"]("thin.onnx", SameDetections(lab, predictor), options)
    images = [lab / "photos" / "day 0" / "0.png", tmp_path / "tiled.png"]
    for given, formats in ((images, SAVE_FORMATS), ([tmp_path / "clip.mp4"], ["json"])):
        written = []
        for name, each in (("torch", predictor), ("onnx", exported)):
            folder = tmp_path / name
            predict_files(each, given, OutputSettings(output_dir=str(folder), save=formats), [])
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            written.append({path.relative_to(folder): path.read_bytes() for path in files})
        assert written[0].keys() == written[1].keys() and len(written[0]) > 2
        assert [path for path in written[0] if written[0][path] != written[1][path]] == []


@pytest.mark.slow
def test_metadata_describe_the_network(lab):
    metadata = {entry.key: entry.value for entry in onnx.load(str(lab / "thin.onnx")).metadata_props}
    description = Description.from_metadata(metadata)
    assert description == OnnxModel(lab / "thin.onnx").description
    assert (description.names, description.category_ids) == (NAMES, CATEGORY_IDS)
    assert description.network["arch"] == "v1" and description.network["max_size"] == 96
    assert description.thresholds == {"score": 0.05, "nms": 0.5, "detections": 100, "mask": 0.5}
    assert (description.continuous_paste, description.exif) == (False, "apply")
    assert json.loads(metadata["names"]) == {str(label): name for label, name in NAMES.items()}


@pytest.mark.slow
def test_the_input_size_can_be_chosen(lab):
    outcome = succeeded(run(lab, "tools/export_onnx.py", "thin.pth", "larger.onnx", "--min-size", "100"))
    assert "tools/predict_onnx.py larger.onnx" in outcome.out
    assert OnnxModel(lab / "larger.onnx").description.network["min_size"] == 100


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.slow
def test_wrong_input_of_the_exporter_is_named(lab, monkeypatch):
    assert_refused(run(lab, "tools/export_onnx.py", "none.pth", "x.onnx"), "none.pth: no such weight file")
    assert_refused(run(lab, "tools/export_onnx.py", "thin.pth", "thin.pth"), "thin.pth: would be overwritten")
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in [name for name in sys.modules if name.startswith("onnx_files.")]:
        monkeypatch.delitem(sys.modules, name)
    assert_refused(run(lab, "tools/export_onnx.py", "thin.pth", "x.onnx"), "pip install onnx")
    assert not (lab / "x.onnx").exists()


@pytest.mark.slow
def test_wrong_input_of_the_predictor_is_named(lab, tmp_path):
    tool = "tools/predict_onnx.py"
    photo = str(lab / "photos" / "day 0" / "0.png")
    assert_refused(run(tmp_path, tool, "none.onnx", photo), "none.onnx: no such file")
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    assert_refused(run(tmp_path, tool, "broken.onnx", photo), "broken.onnx", "cannot open it")
    foreign = onnx.load(str(lab / "thin.onnx"))
    del foreign.metadata_props[:]
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    assert_refused(run(tmp_path, tool, "foreign.onnx", photo), "foreign.onnx", "tools/export_onnx.py")
    assert_refused(run(tmp_path, tool, lab / "thin.onnx", "none.jpg"), "none.jpg: no such file or folder")
    for name in ("x.jpg", "x.png"):
        noise_image(1).save(tmp_path / name)
    before = (tmp_path / "x.png").read_bytes()
    assert_refused(run(tmp_path, tool, lab / "thin.onnx", ".", "--output-dir", "."), "x.png: would be overwritten")
    assert (tmp_path / "x.png").read_bytes() == before
    assert_refused(run(tmp_path, tool, lab / "thin.onnx", "x.jpg", "--overlap", "0.5"), "--overlap 0.5 needs --tile")
    assert run(tmp_path, tool, lab / "thin.onnx", "x.jpg", "--box-thresh", "nan").code == 2


@pytest.mark.slow
def test_runtimes_that_are_missing_or_lack_the_precision_are_named(lab, monkeypatch):
    call = ("tools/predict_onnx.py", "thin.onnx", "photos")
    words = ("--runtime", "onnxruntime", "--precision", "bf16")
    assert_refused(run(lab, *call, *words), "onnxruntime does not compute in bf16; use --runtime openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert_refused(run(lab, *call, "--runtime", "openvino"), "pip install openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_refused(run(lab, *call), "no runtime is installed; install one with: pip install onnxruntime")


@pytest.mark.slow
def test_threads_precision_and_runtime_are_stated_first(lab):
    pytest.importorskip("openvino")
    call = ("tools/predict_onnx.py", "thin.onnx", lab / "photos" / "day 0" / "0.png", "--output-dir", "stated")
    for words, stated in (((), "openvino"), (("--runtime", "onnxruntime"), "onnxruntime")):
        outcome = succeeded(run(lab, *call, "--threads", "1", *words))
        assert outcome.out.startswith(f"thin.onnx: {stated} {version(stated)}, CPU, fp32, 1 threads\n")
