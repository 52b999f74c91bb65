"""benchmarks/label_options.py draws, trains and compares, here with a thin network and few images."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from tests.helpers.faults import numbers_instead
from tests.helpers.project import ROOT
from tests.helpers.thin_weights import CATEGORY_IDS, thin_networks, write_thin_weights
from train_utils.run import run_folder

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_both_sides_of_each_case_are_trained_on_the_same_images_and_compared(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import label_options

    monkeypatch.setattr(label_options, "OUTPUT_FOLDER", tmp_path)
    monkeypatch.setattr(label_options, "IMAGES", (4, 2))
    monkeypatch.setattr(label_options, "EPOCHS", dict.fromkeys(label_options.CASES, "1"))
    monkeypatch.setattr(label_options, "OPTIONS", [*label_options.OPTIONS, "--min-size", "40", "--max-size", "56"])
    for name in ("plot_loss_and_lr", "plot_map"):
        monkeypatch.setattr(run_folder, name, numbers_instead)
    with thin_networks():
        start = write_thin_weights(tmp_path / "thin.pth", dict(zip(CATEGORY_IDS, ("circle", "square", "triangle"))))
        label_options.main(Namespace(start=str(start), seeds=[1]))
        printed = capsys.readouterr()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.out.splitlines() if "|" in line]
        assert [row[0] for row in rows[2:]] == ["class", "class", "masks", "masks", "regions", "regions"]
        assert "the rows of 3 of 4 classes are kept" in printed.err and "objects have no mask" in printed.err
        assert "regions of class 'ignore'" in printed.err
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model_0.pth")}
        assert len(times) == 5  # without an option, missing masks are missing labels
        label_options.main(Namespace(start=str(start), seeds=[1]))
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model_0.pth")}
    assert capsys.readouterr().out == printed.out
