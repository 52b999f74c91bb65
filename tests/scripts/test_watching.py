"""What a run shows of itself and does on the way: validation loss, patience, TensorBoard, a user's functions."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tests.helpers.commands import Outcome, assert_refused, run, run_thin, succeeded
from tests.helpers.comparing import scalars, unlike
from tests.helpers.fenced_blocks import python_blocks
from tests.helpers.project import ROOT
from train_utils.demo_dataset import make_demo_dataset

OPTIONS = ["--device", "cpu", "--data-path", "data", "--min-size", "32", "--max-size", "48", "--rois-per-image", "8"]
OPTIONS += ["--batch-size", "2", "--workers", "0", "--print-freq", "3", "--pretrain", "False", "--lr", "0.01"]
EPOCHS = ["--epochs", "2"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("watching")
    make_demo_dataset(folder / "data", num_train=8, num_val=3)
    yield folder
    shutil.rmtree(folder)


def trained(lab: Path, output: str, *words: str) -> Outcome:
    return succeeded(run_thin(lab, "train.py", *OPTIONS, *words, "--output-dir", output))


@pytest.fixture(scope="module")
def plain(lab: Path) -> Path:
    """A run without any of the options."""
    trained(lab, "plain", *EPOCHS)
    return lab / "plain"


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def differing_weights(one: Path, other: Path) -> list[str]:
    contents = [torch.load(folder / "model_1.pth", weights_only=True) for folder in (one, other)]
    return unlike(*({key: c[key] for key in ("model", "optimizer", "progress")} for c in contents), "model_1.pth")


# ------------------------------------------------------------------------------------------------------ validation loss


@pytest.mark.slow
def test_validation_loss_leaves_the_bits_of_the_run_as_they_are(lab, plain):
    said = trained(lab, "val_loss", *EPOCHS, "--val-loss").out
    folder = lab / "val_loss"
    assert differing_weights(folder, plain) == []
    assert (folder / "seg_results.txt").read_text() == (plain / "seg_results.txt").read_text()
    measured = [entry for entry in log_of(folder) if "val_loss" in entry]
    assert [entry for entry in log_of(folder) if "loss" in entry] == log_of(plain)
    assert [(entry["epoch"], entry["step"]) for entry in measured] == [(0, 4), (1, 8)]
    for entry in measured:
        parts = [value for name, value in entry.items() if name.startswith("val_loss_")]
        assert len(parts) == 5 and entry["val_loss"] == pytest.approx(sum(parts), rel=1e-5) and min(parts) >= 0
        assert f"validation loss {entry['val_loss']:.4f}" in said
    assert repr({4: measured[0]["val_loss"], 8: measured[1]["val_loss"]}) in (folder / "loss_and_lr.png").read_text()


@pytest.mark.slow
def test_validation_loss_is_the_same_twice_and_changes_neither_generator_nor_running_statistics(lab, plain):
    from tests.helpers.faults import thin_model
    from train_utils.device import Precision
    from train_utils.evaluation import validation_losses
    from train_utils.loaders import evaluation_loader
    from train_utils.models import ModelConfig
    from train_utils.open_data import open_training_data
    from train_utils.options import TrainSettings

    settings = TrainSettings.parse("", ["--data-path", str(lab / "data")])
    _, dataset = open_training_data(settings, 0)
    content = torch.load(plain / "model_1.pth", weights_only=True)
    model = thin_model(ModelConfig(**content["model_config"]))
    model.load_state_dict(content["model"])
    loader = evaluation_loader(dataset, None, 0)
    before = torch.random.get_rng_state()
    training = SimpleNamespace(model=model, device=torch.device("cpu"), precision=Precision("cpu", None), seed=5)
    found = [validation_losses(training, loader, False) for _ in "ab"]
    assert found[0] == found[1] and torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, content["model"][name]) for name, value in model.state_dict().items())
    training.seed = 6
    other = validation_losses(training, loader, False)
    assert other != found[0] and other["loss"] == pytest.approx(found[0]["loss"], rel=0.5)  # samples of other boxes


# ------------------------------------------------------------------------------------------------------------- patience


@pytest.mark.slow
def test_patience_ends_a_run_whose_mask_ap_does_not_rise_and_a_resumed_one_at_once(lab):
    words = ["--epochs", "9", "--patience", "2", "--lr", "0"]  # nothing is learnt
    said = trained(lab, "patience", *words).out
    assert "ended before its last epoch: mask AP has not risen for 2 epochs (--patience)" in said
    results = (lab / "patience" / "seg_results.txt").read_text().splitlines()
    assert [line.split()[0] for line in results] == ["epoch:0", "epoch:1", "epoch:2"]
    again = trained(lab, "patience", *words, "--resume", "auto").out
    assert "ended before its last epoch" in again and not re.search(r"step \d+/", again)
    trained(lab, "patience", *words[:2], "--lr", "0", "--resume", "auto", "--patience", "3")
    assert len((lab / "patience" / "seg_results.txt").read_text().splitlines()) == 4


# ---------------------------------------------------------------------------------------------------------- TensorBoard


def tensorboard() -> None:
    pytest.importorskip("tensorboard", reason="only with the package tensorboard")


@pytest.mark.slow
def test_tensorboard_holds_log_results_and_sheets_once_each_also_after_a_resume(lab, plain):
    tensorboard()
    folder = lab / "board"
    trained(lab, "board", *EPOCHS, "--tensorboard", "--val-loss", "--max-steps", "3")
    assert scalars(folder)["training/loss"][-1][0] == 3
    trained(lab, "board", *EPOCHS, "--resume", "auto")  # it is an option of the run: no need to give it again
    found = scalars(folder)
    assert len(list((folder / "tensorboard").iterdir())) == 2  # the second run adds to the first one's
    log = log_of(folder)
    for name in ("loss", "loss_mask", "lr"):
        logged = [(entry["step"], pytest.approx(entry[name])) for entry in log if name in entry]
        assert len(logged) == 4 and found[f"training/{name}"] == logged
    assert found["validation/loss"] == [(e["step"], pytest.approx(e["val_loss"])) for e in log if "val_loss" in e]
    for kind, file in (("box", "det_results.txt"), ("mask", "seg_results.txt")):
        ap50 = [float(line.split()[2]) for line in (folder / file).read_text().splitlines()]
        assert found[f"{kind}/AP50"] == list(zip((4, 8), map(pytest.approx, ap50)))
    assert f"{kind}/AP_large" not in found  # there are no large objects: -1
    assert [step for step, _ in found["predictions"]] == [4, 8]
    assert differing_weights(folder, plain) == []


def test_without_the_package_tensorboard_is_refused_in_one_line(lab):
    with mock.patch.dict("sys.modules", {"torch.utils.tensorboard": None}):
        outcome = run(lab, "train.py", *OPTIONS, "--tensorboard", "--output-dir", "none")
    assert_refused(outcome, "--tensorboard", "pip install tensorboard")
    assert not (lab / "none").exists()


@pytest.mark.slow
def test_a_new_run_leaves_nothing_of_the_old_one_in_tensorboard(lab):
    tensorboard()
    trained(lab, "anew", "--max-steps", "3", "--tensorboard")
    trained(lab, "anew", "--max-steps", "1", "--overwrite")
    assert list((lab / "anew" / "tensorboard").iterdir()) == []


# --------------------------------------------------------------------------------------------------- a user's functions

RECORDER = """
calls = []

def before_train(state):
    calls.append(("before_train", state.number, state.training.progress.step))

def before_step(state):
    calls.append(("before_step", state.number))

def after_step(state):
    calls.append(("after_step", state.step.number, state.step.losses["loss"] > 0))

def after_train(state):
    state.run.path.joinpath("calls.txt").write_text(repr(calls))
"""


def hooks_file(lab: Path, name: str, text: str) -> str:
    (lab / name).write_text(text)
    return name


@pytest.mark.slow
def test_own_functions_are_called_at_the_four_moments_and_change_nothing(lab, plain):
    trained(lab, "hooks", *EPOCHS, "--hooks", hooks_file(lab, "recorder.py", RECORDER))
    calls = eval((lab / "hooks" / "calls.txt").read_text())
    assert calls[0] == ("before_train", 0, 0)
    assert [call for call in calls if call[0] == "before_step"] == [("before_step", n) for n in range(8)]
    assert [call for call in calls if call[0] == "after_step"] == [("after_step", n, True) for n in range(1, 9)]
    for n in range(1, 9):  # a step's result is there at the latest when the one after it has been started
        assert calls.index(("before_step", n - 1)) < calls.index(("after_step", n, True))
        assert n > 6 or calls.index(("after_step", n, True)) < calls.index(("before_step", n + 1))
    assert differing_weights(lab / "hooks", plain) == []
    trained(lab, "hooks", *EPOCHS, "--resume", "auto", "--hooks", "recorder.py")  # nothing is left to do
    assert eval((lab / "hooks" / "calls.txt").read_text()) == [("before_train", 8, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/TRAINING.md", "docs/GUIDE.zh-CN.md"])
def test_the_example_of_the_page_writes_its_file(lab, page):
    (block,) = [block for block in python_blocks(ROOT / page) if "def after_step" in block]
    output = f"example_{Path(page).stem}"
    trained(lab, output, "--max-steps", "4", "--hooks", hooks_file(lab, "my_hooks.py", block))
    lines = (lab / output / "largest.txt").read_text().splitlines()
    assert len(lines) == 1 and re.fullmatch(r"step [1-4]: loss \d+\.\d{4}", lines[0])


@pytest.mark.slow
def test_an_error_in_an_own_function_keeps_its_traceback(lab):
    name = hooks_file(lab, "faulty.py", "def after_step(state):\n    return 1 / (state.step.number - 2)\n")
    outcome = run_thin(lab, "train.py", *OPTIONS, "--hooks", name, "--output-dir", "faulty")
    assert outcome.code == 1 and "ZeroDivisionError" in outcome.err and re.search(r'faulty\.py", line 2', outcome.err)


@pytest.mark.parametrize(
    "text, named",
    [
        (None, ["--hooks absent.py: no such file"]),
        ("def after_steps(state): ...", ["--hooks wrong.py", "before_train, after_train, before_step, after_step"]),
        ("after_step = 3", ["--hooks wrong.py", "before_train, after_train, before_step, after_step"]),
    ],
)
def test_a_file_without_such_functions_is_refused_before_anything_is_read(lab, text, named):
    name = "absent.py" if text is None else hooks_file(lab, "wrong.py", text)
    assert_refused(run(lab, "train.py", *OPTIONS, "--hooks", name, "--output-dir", "none"), *named)
    assert not (lab / "none").exists()
