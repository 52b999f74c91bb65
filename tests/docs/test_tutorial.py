"""docs/TUTORIAL.md runs from its first line to its last, with thin networks, and the notebook has the same content."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.commands import run, succeeded
from tests.helpers.thin_weights import thin_networks, write_thin_weights
from tests.programs.tutorial import NOTEBOOK, blocks, notebook
from train_utils.demo_dataset import make_demo_dataset

SHAPES = {1: "circle", 2: "square", 3: "triangle"}
# Shorter trainings, and the names of their files.
SHORTER = {"--epochs 10": "--epochs 1", "model_9": "model_0", "--epochs 20": "--epochs 2", "model_19": "model_1"}


def test_the_notebook_is_the_page() -> None:
    assert json.loads(NOTEBOOK.read_text(encoding="utf-8")) == notebook(), "run python -m tests.programs.tutorial"


@pytest.mark.slow
def test_every_block_of_the_page_runs_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "save_weights").mkdir()
    make_demo_dataset("demo_data", 2, 3)
    ran = []
    with thin_networks():
        write_thin_weights(tmp_path / "save_weights" / "model_best.pth", SHAPES)
        for language, code in blocks()[1:]:  # the first one activates the environment
            for long, short in SHORTER.items():
                code = re.sub(rf"{long}\b", short, code)
            if language == "python":
                exec(code, {"__name__": "tutorial"})
            else:
                for line in code.splitlines():
                    program, script, *arguments = shlex.split(line)
                    assert program == "python"
                    succeeded(run(tmp_path, script, *arguments))
                    ran.append(script)
    assert ran.count("train.py") == 2
    assert "validation.py" in ran and "tools/predict_onnx.py" in ran
    for made in (
        "labels.png", "first/report/report.html", "first/mAP.png", "first/predictions_0.png", "things.onnx",
        "next/labelme/000001000001.json", "shipped/000001000003.png",
    ):  # fmt: skip
        assert (tmp_path / "tutorial" / made).is_file(), made
    labels = json.loads((tmp_path / "tutorial" / "photos" / "table_13.json").read_text())
    assert [shape["label"] for shape in labels["shapes"]] == ["coin", "tile"]
