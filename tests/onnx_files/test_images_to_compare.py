"""What smaller files need: the images on which they are compared with the float32 file, and a package."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

onnx = pytest.importorskip("onnx", reason="needs the packages onnx and onnxruntime")
pytest.importorskip("onnxruntime", reason="needs the packages onnx and onnxruntime")

from dataset_files.dataset import files_of  # noqa: E402
from onnx_files.precision import open_images, quantise  # noqa: E402
from tests.helpers.square_finder import write_squares  # noqa: E402
from train_utils.errors import InputError  # noqa: E402


def test_a_given_data_path_replaces_that_of_the_run(tmp_path: Path):
    for name in ("of the run", "given"):
        write_squares(tmp_path / name)
    classes = SimpleNamespace(require_labels_of=lambda *_: None)
    trained_with = {"data_path": str(tmp_path / "of the run")}
    trained = SimpleNamespace(path=tmp_path / "w.pth", trained_with=trained_with, held_out={}, classes=classes)
    for path, expected in ((None, "of the run"), (str(tmp_path / "given"), "given")):
        validation, training = open_images(trained, path, with_training=False)
        assert training is None and len(validation) > 0
        assert {Path(file).relative_to(tmp_path).parts[0] for file in files_of(validation)} == {expected}


def test_int8_without_onnxruntime_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="--precision int8 needs .* pip install onnxruntime"):
        quantise(onnx.ModelProto(), iter(()))
