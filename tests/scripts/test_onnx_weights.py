"""Weights of every publisher, exported by tools/export_onnx.py, detect in onnxruntime what the network does."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs the packages onnx and onnxruntime")
pytest.importorskip("onnxruntime", reason="needs the packages onnx and onnxruntime")

from onnx_files.onnx_model import OnnxModel  # noqa: E402
from tests.helpers import published_weights as published  # noqa: E402
from tests.helpers.commands import run, succeeded  # noqa: E402
from tests.helpers.detectron2_rows import draw_weights, write_zoo_file  # noqa: E402
from tests.helpers.exported import Reference, lively_network, opened, run_session  # noqa: E402
from tests.helpers.thin_weights import noise_image  # noqa: E402
from train_utils.options import InferenceSettings  # noqa: E402
from train_utils.trained_model import open_trained_model  # noqa: E402


def write_weights(folder: Path, kind: str) -> Path:
    """Weights with random numbers in the form of each publisher."""
    path = folder / f"{kind}.pth"
    sizes = dict(min_size=96, max_size=128)
    if kind == "torchvision v1, older keys":
        torch.save(published.in_older_style(published.published_v1().state_dict()), path)
    elif kind == "torchvision v2":
        torch.save({"model": published.published_v2().state_dict()}, path)
    else:
        model = lively_network("v1", 2, thin=False, **sizes)
        config = {"num_classes": 3, "arch": "v1", "norm": "frozen"}
        torch.save({"model": model.state_dict(), "model_config": config, "class_names": {1: "a", 2: "b"}}, path)
    return path


LONG = [pytest.param(kind, marks=pytest.mark.long) for kind in ("torchvision v2", "own classes")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchvision v1, older keys", *LONG])
def test_all_weights_that_the_project_reads_are_exported(tmp_path, kind):
    path = write_weights(tmp_path, kind)
    sizes = ["--min-size", "96", "--max-size", "128"]
    succeeded(run(tmp_path, "tools/export_onnx.py", path, "model.onnx", *sizes))
    trained = open_trained_model(InferenceSettings(weights_path=str(path), device="cpu", min_size=96, max_size=128))
    image = np.asarray(noise_image(1, (150, 120)))
    Reference(trained.model).assert_finds([run_session(opened(tmp_path / "model.onnx"), image)], image)
    assert OnnxModel(tmp_path / "model.onnx").description.names == trained.classes.names


@pytest.mark.long
def test_files_of_detectron2_are_exported(tmp_path, real_data_folder):
    zoo = real_data_folder / "detectron2_zoo"
    if not zoo.is_dir():
        pytest.skip(f"no {zoo}")
    path = write_zoo_file(tmp_path / "model_final_f10217.pkl", draw_weights(zoo))
    succeeded(run(tmp_path, "tools/export_onnx.py", path, "model.onnx", "--min-size", "96", "--max-size", "128"))
    trained = open_trained_model(InferenceSettings(weights_path=str(path), device="cpu", min_size=96, max_size=128))
    image = np.asarray(noise_image(1, (150, 120)))
    Reference(trained.model).assert_finds([run_session(opened(tmp_path / "model.onnx"), image)], image)
    assert OnnxModel(tmp_path / "model.onnx").description.continuous_paste
