"""What was edited or replaced between two starts of a run ends in one line, or is named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.broken_data import annotation_file, make_coco, picture
from tests.helpers.commands import assert_refused, run_thin, succeeded
from train_utils.models import stored_fields
from train_utils.options import TrainSettings

WORDS = ["--device", "cpu", "--data-path", "data", "--min-size", "32", "--max-size", "48", "--batch-size", "2"]
WORDS += ["--workers", "0", "--pretrain", "False", "--rois-per-image", "8", "--epochs", "1"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, and a run of one epoch on them."""
    folder = tmp_path_factory.mktemp("edited")
    make_coco(folder / "data")
    succeeded(run_thin(folder, "train.py", *WORDS, "--output-dir", "run"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def own(lab: Path, tmp_path: Path) -> Path:
    """A copy of the lab."""
    return Path(shutil.copytree(lab, tmp_path / "own"))


def edited(folder: Path, entry: str, **values: object) -> dict:
    """Change values of an entry in the run's checkpoint; None removes a value."""
    content = torch.load(folder / "run" / "model_0.pth", weights_only=True)
    content[entry] = {k: v for k, v in (content[entry] | values).items() if v is not None}
    torch.save(content, folder / "run" / "model_0.pth")
    return content


EDITS = {
    "args": [{"lr": "abc"}, {"opt": 7}, {"lr_steps": {}}, {"min_size": [32, "a"]}, {"amp": "perhaps"}],
    "model_config": [{"num_classes": "x"}, {"min_size": "a"}, {"anchor_sizes": [None]}, {"num_classes": None}],
    "facts": [{"held_out": 5}, {"held_out": {"1.png": []}}],
    "class_names": [{"x": "y"}],
}


@pytest.mark.parametrize("entry, values", [(entry, values) for entry, edits in EDITS.items() for values in edits])
def test_an_entry_edited_by_hand_is_named_by_all_scripts(own, entry, values):
    edited(own, entry, **values)
    (name,) = values
    named = ["model_0.pth: broken: invalid ", name if entry in ("args", "model_config") and values[name] else ""]
    weights = ["--device", "cpu", "--weights-path", "run/model_0.pth"]
    assert_refused(run_thin(own, "train.py", "--device", "cpu", "--resume", "run/model_0.pth"), *named)
    assert_refused(run_thin(own, "validation.py", *weights), *named)
    assert_refused(run_thin(own, "predict.py", *weights, "--img-path", "data/val2017"), *named)
    assert not (own / "predictions").exists()


def test_stored_options_are_read_as_they_were_written():
    settings = TrainSettings(
        lr=0.1 + 0.2, lr_steps=[], min_size=[24, 32], anchor_ratios=[0.5], model_ema=0.9, pretrain="a b.pth", amp=True
    )
    plain = settings.to_plain()
    assert stored_fields(TrainSettings, {"args": plain}, "args", "x.pth") == plain
    args = {"of_a_newer_version": 3, "lr_steps": (16, 22), "device": None, "norm": None}
    assert stored_fields(TrainSettings, {"args": args}, "args", "x.pth") == {"lr_steps": [16, 22], "norm": None}


@pytest.mark.slow
def test_options_that_an_older_checkpoint_lacks_are_those_of_today(own):
    edited(own, "args", print_freq=None, device=None, opt=None, skip_bad=None, nms_thresh=None)
    words = ["--device", "cpu", "--resume", "auto", "--output-dir", "run", "--epochs", "2", "--workers", "0"]
    succeeded(run_thin(own, "train.py", *words))
    assert "epoch:1" in (own / "run" / "det_results.txt").read_text()


@pytest.mark.slow
def test_replaced_training_images_stop_a_resumed_run_and_changed_validation_labels_are_named(own):
    words = ["--device", "cpu", "--resume", "auto", "--output-dir", "run", "--epochs", "2", "--workers", "0"]
    file = annotation_file(own / "data", "val")
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 2
    file.write_text(json.dumps(content))
    outcome = succeeded(run_thin(own, "train.py", *words))
    assert "continuing with other settings: " in outcome.out
    assert "validation data (changed: annotations or file names)" in outcome.out
    picture(seed=99).convert("L").save(own / "data" / "train2017" / "1.png")
    again = [*words, "--epochs", "3"]
    assert_refused(run_thin(own, "train.py", *again), "training data (changed: image files)", "--force")
    succeeded(run_thin(own, "train.py", *again, "--force"))


@pytest.mark.slow
def test_batch_norm_over_a_single_value_is_refused_with_the_remedy(own):
    words = [*WORDS, "--max-size", "32", "--batch-size", "1", "--output-dir", "one"]
    assert_refused(run_thin(own, "train.py", *words), "step 1: BatchNorm", "larger --batch-size", "--min-size")
