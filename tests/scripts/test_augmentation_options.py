"""The options of augmentation as a user meets them: batch.png, several input sizes, and what is refused."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.commands import assert_refused, run, succeeded
from tests.helpers.thin_weights import thin_networks
from train_utils.demo_dataset import make_demo_dataset
from train_utils.run.safe_files import LOCK

SMALL = ["--device", "cpu", "--max-size", "96", "--rois-per-image", "8", "--proposals", "20", "--batch-size", "2"]
SMALL += ["--workers", "0", "--pretrain", "False", "--data-path", "data"]
ALL = ["--data-augmentation", "lsj", "--use-copypaste", "--vflip", "--color-jitter", "0.3", "--min-size", "100"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("augmentation")
    make_demo_dataset(folder / "data", num_train=4, num_val=2)
    with thin_networks():
        yield folder


def sheet(lab: Path, *options: str) -> Image.Image:
    folder = lab / hashlib.md5(repr(options).encode()).hexdigest()
    outcome = succeeded(run(lab, "train.py", *SMALL, *options, "--show-batch", "--output-dir", folder))
    assert f"is drawn in {folder / 'batch.png'}" in outcome.out
    assert {file.name for file in folder.iterdir()} == {"batch.png"}
    with Image.open(folder / "batch.png") as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def test_show_batch_draws_what_the_network_will_see_and_trains_nothing(lab):
    flipped, augmented = sheet(lab, "--min-size", "64"), sheet(lab, *ALL)
    assert flipped.size == augmented.size == (2 * 640, 640)
    assert flipped.tobytes() != augmented.tobytes()
    assert sheet(lab, *ALL, "--seed", "1").tobytes() != augmented.tobytes()
    again = run(lab, "train.py", *SMALL, *ALL, "--show-batch", "--output-dir", "again", "--workers", "1")
    with Image.open(lab / "again" / "batch.png") as image:
        assert succeeded(again) and image.convert("RGB").tobytes() == augmented.tobytes()


def test_show_batch_leaves_a_run_in_the_folder_alone(lab):
    folder = lab / "taken"
    folder.mkdir()
    (folder / "model_0.pth").write_bytes(b"weights")
    (folder / LOCK).touch()
    succeeded(run(lab, "train.py", *SMALL, "--min-size", "64", "--show-batch", "--output-dir", folder))
    assert (folder / "model_0.pth").read_bytes() == b"weights" and (folder / "batch.png").is_file()


@pytest.mark.parametrize(
    "options, named",
    [
        (["--use-copypaste"], "--use-copypaste needs --data-augmentation lsj, not hflip"),
        (["--use-copypaste", "--data-augmentation", "lsj", "--batch-size", "1"], "--batch-size 2 or more"),
        (["--data-augmentation", "lsj", "--min-size", "64", "96"], "--min-size 64 96"),
    ],
)
def test_options_that_contradict_one_another_are_refused_in_one_line(lab, options, named):
    assert_refused(run(lab, "train.py", *SMALL, *options, "--output-dir", "refused"), named)
    assert not (lab / "refused").exists()


@pytest.mark.slow
def test_several_sizes_are_kept_in_the_checkpoint_and_evaluation_uses_the_last(lab):
    sizes = ["--min-size", "48", "56", "64"]
    words = [*SMALL, "--output-dir", "sizes", "--max-steps"]
    succeeded(run(lab, "train.py", *words, "1", *sizes))
    content = torch.load(lab / "sizes" / "model_0.pth", weights_only=True)
    assert content["args"]["min_size"] == content["model_config"]["min_size"] == [48, 56, 64]
    succeeded(run(lab, "train.py", *words, "2", "--resume", "auto"))
    assert_refused(run(lab, "train.py", *words, "2", "--resume", "auto", "--min-size", "64"), "min_size", "--force")
    weights = ["--device", "cpu", "--workers", "0", "--weights-path", "sizes/model_0.pth"]
    found = [
        succeeded(run(lab, "validation.py", *weights, *size)).out.splitlines()[:16]
        for size in ([], ["--min-size", "64"])
    ]
    assert found[0] == found[1]
