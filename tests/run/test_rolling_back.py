"""A resumed run deletes nothing that was not named, and an evaluation that failed leaves no results."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.commands import run_thin, succeeded
from train_utils.demo_dataset import make_demo_dataset
from train_utils.distributed import run_on_main
from train_utils.errors import InputError
from train_utils.options import TrainSettings
from train_utils.run.checkpoints import read_checkpoint
from train_utils.run.run_folder import RunFolder, checkpoints
from train_utils.run.safe_files import LOCK, lock_folder

CONTENT = {"progress": {"step": 4}, "epoch": 0, "steps_per_epoch": 4, "args": {}}


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three epochs of a run."""
    for epoch in range(3):
        (tmp_path / f"model_{epoch}.pth").write_bytes(b"weights %d" % epoch)
    for name in ("det_results.txt", "seg_results.txt"):
        (tmp_path / name).write_text("".join(f"epoch:{epoch}  0.1  0.2\n" for epoch in range(3)))
    return RunFolder(tmp_path)


def test_an_older_checkpoint_is_resumed_in_its_folder_with_overwrite_only(folder):
    before = files(folder.path)
    with pytest.raises(InputError, match=r"newer checkpoints \(model_1.pth, model_2.pth\).*--overwrite"):
        folder.roll_back_to(folder.path / "model_0.pth", CONTENT, continues=True, overwrite=False)
    assert files(folder.path) == before
    folder.roll_back_to(folder.path / "model_0.pth", CONTENT, continues=True, overwrite=True)
    assert sorted(files(folder.path)) == ["det_results.txt", "model_0.pth", "seg_results.txt"]


@pytest.mark.parametrize(
    "line", [b"my note", b"", b"\0" * 50, b"\xff\xfe", b"{garbage", b'{"epoch": 1}', b"epoch:x  0.1"]
)
def test_lines_that_no_run_writes_are_dropped_with_a_warning_and_kept_aside(folder, capsys, line):
    log = folder.path / "log.jsonl"
    log.write_text('{"epoch": 0, "step": 1, "loss": 1}\n{"epoch": 0, "step": 2, "loss": 1}\n')
    kept = {}
    for file in (log, folder.path / "det_results.txt"):
        first, rest = file.read_bytes().split(b"\n", 1)
        kept[file] = first + b"\n" + line + b"\n" + rest
        file.write_bytes(kept[file] + b"partial")
    folder.roll_back_to(folder.path / "model_0.pth", CONTENT, continues=True, overwrite=True)
    assert len(log.read_text().splitlines()) == 2
    assert (folder.path / "det_results.txt").read_text() == "epoch:0  0.1  0.2\n"
    for file, content in kept.items():
        assert file.with_name(file.name + ".broken").read_bytes() == content + b"partial"
    said = capsys.readouterr().err
    assert said.count("dropped 1 lines that no run writes, first line 2; see ") == 2


INVALID_ENTRIES = {
    "args": [], "facts": None, "computed_with": 3, "model_config": {}, "steps_per_epoch": 0, "epoch": "x",
    "progress": {"step": -5}, "optimizer": None,
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID_ENTRIES)
def test_a_checkpoint_with_an_invalid_entry_is_refused_by_name(tmp_path, name):
    content = {**CONTENT, "model": {"w": torch.zeros(1)}, "optimizer": {}, "lr_scheduler": {}}
    content |= {"model_config": {"num_classes": 2}}
    torch.save(content, tmp_path / "model_0.pth")
    assert read_checkpoint(tmp_path / "model_0.pth").content["epoch"] == 0
    torch.save(content | {name: INVALID_ENTRIES[name]}, tmp_path / "model_0.pth")
    with pytest.raises(InputError, match=f"model_0.pth: broken: invalid (progress|{name})$"):
        read_checkpoint(tmp_path / "model_0.pth")


@pytest.mark.parametrize("resume, told", [
    ("auto", "holds results, but no checkpoint of an epoch: continue it with --resume FILE, such as model_best.pth"),
    ("", r"holds a run \(det_results.txt\): continue it with --resume auto"),
])  # fmt: skip
def test_a_folder_that_cannot_be_continued_names_what_can(folder, resume, told):
    for file in checkpoints(folder.path):
        file.unlink()
    (folder.path / "model_best.pth").write_bytes(b"weights")
    before = files(folder.path)
    settings = TrainSettings(output_dir=str(folder.path), resume=resume)
    with pytest.raises(InputError, match=told):
        RunFolder.open(settings, None, True, None)
    assert files(folder.path).items() >= before.items()


def test_a_folder_in_the_place_of_the_lock_is_named(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(InputError, match=f"{LOCK}: Is a directory"):
        run_on_main(lambda: lock_folder(tmp_path))


def test_a_run_deletes_no_image_that_it_did_not_write(folder):
    images = [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(2)]
    images[0].save(folder.path / "predictions_1.png")
    folder.write_predictions(2, lambda: images[1])
    assert list(folder.sheets()) == []
    folder.results["segm"] = folder.lines("seg_results.txt")
    folder.write_predictions(2, lambda: images[1])
    assert list(folder.sheets()) == [2]
    folder.roll_back_to(folder.path / "model_0.pth", CONTENT, continues=True, overwrite=True)
    assert (folder.path / "predictions_1.png").exists() and not (folder.path / "predictions_2.png").exists()


def test_overwrite_needs_the_settings_of_a_run(folder):
    path = folder.path
    (path / "args.json").write_text(json.dumps(TrainSettings(epochs=3, lr=0.1).to_plain()))
    settings = TrainSettings(output_dir=str(path), overwrite=True, lr=0.1)
    for text in ("[]", "{}", '{"epochs": 3, "output_dir": "of another project"}', "no JSON"):
        kept = (path / "args.json").read_text()
        (path / "args.json").write_text(text)
        with pytest.raises(InputError, match="args.json: was not written by a run"):
            RunFolder.open(settings, None, True, None)
        (path / "args.json").write_text(kept)
    RunFolder.open(settings, None, True, None)
    assert {name for name in files(path) if not name.startswith(".")} == {"args.json"}


@pytest.mark.parametrize(
    "files", [["predictions_7.png"], ["mAP.png"], ["model_3.pth"], ["args.json", "predictions_0.png"]]
)
def test_overwrite_refuses_files_that_no_run_wrote(tmp_path, files):
    for name in files:
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="PNG")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1").write_text("the user's")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"{files[0]}: was not written by a run"):
        RunFolder.open(TrainSettings(output_dir=str(tmp_path), overwrite=True), None, True, None)
    assert sorted(path for path in tmp_path.rglob("*") if not path.name.startswith(".")) == before


def test_temporary_files_of_others_stay(folder):
    theirs = [".notes.tmp", ".cache.0123456789ab.tmp", ".model_0.pth.tmp", "model_0.pth.0123456789ab.tmp"]
    for name in [*theirs, ".mask-rcnn-0123456789ab.pth"]:
        (folder.path / name).write_text("kept?")
    content = CONTENT | {"progress": {"step": 12}, "epoch": 2}
    RunFolder.open(TrainSettings(output_dir=str(folder.path)), (folder.path / "model_2.pth", content), True, None)
    left = {name for name in files(folder.path) if name.startswith(".") or name.endswith(".tmp")}
    assert left == {*theirs, LOCK}


def test_links_to_checkpoints_and_checkpoints_that_are_links_are_those_of_the_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(folder.path / "model_2.pth", elsewhere / "big_disk.pth")
    (folder.path / "model_2.pth").symlink_to(elsewhere / "big_disk.pth")
    (elsewhere / "latest.pth").symlink_to(folder.path / "model_1.pth")
    assert folder.own_path(folder.path / "model_2.pth") == folder.path / "model_2.pth"
    assert folder.own_path(elsewhere / "latest.pth") == folder.path / "model_1.pth"
    assert folder.own_path(elsewhere / "big_disk.pth") is None


@pytest.mark.slow
def test_an_epoch_whose_evaluation_failed_has_no_results_until_the_data_are_back(tmp_path):
    make_demo_dataset(tmp_path / "data", num_train=4, num_val=2)
    shutil.copytree(tmp_path / "data", tmp_path / "kept")
    (tmp_path / "gone.py").write_text(
        "import shutil\ndef after_step(state):\n    shutil.rmtree('data/val2017', ignore_errors=True)\n"
    )
    words = ["--device", "cpu", "--data-path", "data", "--min-size", "32", "--max-size", "48", "--epochs", "1"]
    words += ["--batch-size", "2", "--workers", "0", "--pretrain", "False", "--rois-per-image", "8"]
    failed = run_thin(tmp_path, "train.py", *words, "--output-dir", "run", "--hooks", "gone.py")
    assert failed.code == 2 and "none of the 2 images can be evaluated" in failed.err
    assert (tmp_path / "run" / "model_0.pth").is_file() and not (tmp_path / "run" / "det_results.txt").exists()
    assert re.search(r"^code: (unknown|[0-9a-f]{12}).*; Python 3.*torch 2", failed.out, re.M)
    assert (
        "images: 4, for validation 2; 2 per step, 2 steps per epoch, epochs: 1; sgd, learning rate 0.002" in failed.out
    )
    assert re.search(r"million parameters are trained$", failed.out, re.M) and "device: cpu (1 threads)" in failed.out
    assert re.search(r"step 2/2 .* s per step  data \d\.\d{3} s  ", failed.out)
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(tmp_path / "kept", tmp_path / "data")
    succeeded(run_thin(tmp_path, "train.py", *words, "--output-dir", "run", "--resume", "auto"))
    assert (tmp_path / "run" / "det_results.txt").read_text().startswith("epoch:0  ")
