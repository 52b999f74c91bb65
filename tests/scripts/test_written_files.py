"""Where the tools and validation.py write: never onto the user's files, completely or not at all, one line if not."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.helpers.broken_data import annotation_file, make_coco
from tests.helpers.commands import Outcome, assert_refused, run, run_thin, succeeded
from tests.helpers.thin_weights import thin_networks, write_thin_weights
from tests.weight_files.test_detectron2 import small_state

EXPORTS = {
    "tools/export_torchvision.py": "thin.pth",
    "tools/export_onnx.py": "thin.pth",
    "tools/convert_detectron2.py": "detectron2.pth",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Weights, data and two results files for these."""
    folder = tmp_path_factory.mktemp("written")
    make_coco(folder / "data")
    content = json.loads(annotation_file(folder / "data", "val").read_text())
    found = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in content["annotations"]]
    (folder / "found.json").write_text("\ufeff" + json.dumps(found))  # with a byte order mark, as Windows writes it
    (folder / "fewer.json").write_text(json.dumps(found[1:]))
    torch.save({"model": small_state(3)}, folder / "detectron2.pth")
    with thin_networks():
        write_thin_weights(folder / "thin.pth", {1: "ape", 2: "bear", 3: "cat"})
        content = torch.load(folder / "thin.pth", weights_only=True)
        torch.save(content | {"category_ids": {1: 1, 2: 2, 3: 3}}, folder / "thin.pth")
        yield folder


@pytest.fixture
def lab(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "lab"))


def content_of(folder: Path) -> dict[str, bytes | str]:
    files = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in files}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Context in which no file can have more than `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("tool", EXPORTS)
def test_exported_weights_replace_nothing_that_they_must_not(lab: Path, tool: str) -> None:
    weights = EXPORTS[tool]
    (lab / "protected").write_text("the user's")
    (lab / "protected").chmod(0o444)
    (lab / "old").write_text("an older file")
    before = content_of(lab)
    for output, named in (
        (weights, "would be overwritten"), (f"data/../{weights}", "would be overwritten"),
        ("data", "not a regular file"), ("new/", "new/: is the name of a folder"), ("", "is the name of a folder"),
        ("protected", "write-protected"), ("thin.pth/x", "thin.pth: exists, and is not a folder"),
        ("n" * 300, "File name too long"),
    ):  # fmt: skip
        assert_refused(run(lab, tool, weights, output), named)
    with full_disk(2000):
        assert_refused(run(lab, tool, weights, "old"), "old: File too large")
    assert content_of(lab) == before
    (lab / "link").symlink_to(weights)
    succeeded(run(lab, tool, weights, "link"))
    assert not (lab / "link").is_symlink() and (lab / weights).read_bytes() == before[weights]


def test_a_file_in_lower_precision_replaces_none_of_the_data(lab: Path) -> None:
    before = content_of(lab)
    for output in ("data/annotations/instances_val2017.json", "data/val2017/5.png"):
        words = ["thin.pth", output, "--precision", "fp16", "--data-path", "data"]
        assert_refused(run(lab, "tools/export_onnx.py", *words), f"{output}: would be overwritten")
    assert content_of(lab) == before


VAL = "data/annotations/instances_val2017.json"
SCORED = ["--results-json", "found.json", "--annotation-file", VAL]
COMPARED = ["--compare", "found.json", "fewer.json", "--annotation-file", VAL, "--iou-type", "bbox"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [SCORED, COMPARED], ids=["scored", "compared"])
def test_a_report_replaces_reports_only(lab: Path, words: list[str]) -> None:
    def report(folder: str) -> Outcome:
        return run(lab, "validation.py", *words, "--report", folder)

    for name in ("classes.csv", "report.json", "report.html"):
        (lab / name[7:]).mkdir()
        (lab / name[7:] / name).write_text("the user's")
    (lab / "loop").symlink_to("loop")
    before = content_of(lab)
    for name in ("classes.csv", "report.json", "report.html"):
        assert_refused(report(name[7:]), f"{name[7:]}: has {name}, but no report")
    assert_refused(report("loop"), "loop: exists, and is not a folder")
    assert_refused(report("n" * 300), "File name too long")
    assert content_of(lab) == before
    for _ in range(2):
        succeeded(report("own"))
    (lab / "own" / "report.html").chmod(0o444)
    assert_refused(report("own"), "report.html: exists, and is write-protected")


def test_a_report_replaces_none_of_the_data_and_leaves_no_folder_behind(lab: Path) -> None:
    (lab / VAL).rename(lab / "data" / "report.json")
    before = content_of(lab)
    words = ["--device", "cpu", "--weights-path", "thin.pth", "--val-json", "data/report.json"]
    words += ["--image-folder", "data/val2017", "--report"]
    assert_refused(run(lab, "validation.py", *words, "data"), "data/report.json: would be overwritten")
    (lab / "data" / "report.json").write_text("{")
    assert_refused(run(lab, "validation.py", *words, "new"), "report.json")
    assert content_of(lab).keys() == before.keys() and not (lab / "new").exists()


@pytest.mark.slow
def test_thresholds_are_stored_behind_a_link_and_not_in_a_protected_file(lab: Path) -> None:
    (lab / "latest.pth").symlink_to("thin.pth")
    (lab / "protected.pth").write_bytes((lab / "thin.pth").read_bytes())
    (lab / "protected.pth").chmod(0o444)
    before = content_of(lab)
    words = ["--device", "cpu", "--workers", "0", "--data-path", "data", "--output-dir", ".", "--save-thresholds"]
    refused = run_thin(lab, "validation.py", "--weights-path", "protected.pth", *words)
    assert_refused(refused, "protected.pth: exists, and is write-protected")
    with full_disk(60_000):
        assert_refused(run_thin(lab, "validation.py", "--weights-path", "thin.pth", *words), "thin.pth: File too large")
    assert content_of(lab) == before | {"record_mAP.txt": (lab / "record_mAP.txt").read_bytes()}
    succeeded(run_thin(lab, "validation.py", "--weights-path", "latest.pth", *words))
    assert os.readlink(lab / "latest.pth") == "thin.pth"
    assert torch.load(lab / "thin.pth", weights_only=True)["score_thresholds"]


def test_no_question_about_a_file_ends_in_a_traceback(lab: Path) -> None:
    long, common = "n" * 300, ["--device", "cpu", "--weights-path", "thin.pth"]
    for script, words in {
        "predict.py": ["--device", "cpu", "--weights-path", long],
        "validation.py": [*SCORED, "--image-folder", long, "--report", "new"],
        "train.py": ["--device", "cpu", "--resume", long],
        "train_multi_GPU.py": ["--device", "cpu", "--hooks", long],
        "tools/predict_onnx.py": [long, "data/val2017"],
        "tools/to_coco.py": [long, "-o", "x.json"],
    }.items():
        assert_refused(run(lab, script, *words), "File name too long" if "onnx" not in script else long)
    assert_refused(run(lab, "predict.py", *common, "--img-path", long), "File name too long")
