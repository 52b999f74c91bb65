"""Two runs in one folder, and runs that diverge: one line, the right status, nothing lost."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from network_files import InstanceMasks
from network_files.image_transform import ImageTransform
from tests.helpers.commands import assert_refused, run_thin
from tests.helpers.faults import All, HangAtStep, ThinNetwork, patch, thin_bodies, thin_model
from tests.helpers.forked import Run, start, wait_until
from train_utils.demo_dataset import make_demo_dataset
from train_utils.models import ModelConfig, build_model

OPTIONS = ["--device", "cpu", "--data-path", "data", "--min-size", "32", "--max-size", "48", "--rois-per-image", "8"]
OPTIONS += ["--batch-size", "2", "--workers", "0", "--print-freq", "1", "--pretrain", "False", "--lr", "0.01"]
OPTIONS += ["--epochs", "2"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("lock")
    make_demo_dataset(folder / "data", num_train=4, num_val=2)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def output(lab: Path, request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "_", request.node.name)


def begin(lab: Path, output: str, *arguments: str, fault=None, name: str = "out") -> Run:
    prepare = All((ThinNetwork(), fault)) if fault else ThinNetwork()
    return start("train.py", [*OPTIONS, "--output-dir", output, *arguments], lab, prepare, name=name)


@pytest.mark.slow
def test_a_second_run_in_a_folder_ends_in_one_line_and_a_killed_one_leaves_no_lock(lab: Path, output: str):
    first = begin(lab, output, "--resume", "auto", "--checkpoint-every", "1", fault=HangAtStep(1), name="first")
    wait_until(lambda: any((lab / output).glob("model_*.pth")))
    before = {file: file.stat().st_mtime_ns for file in (lab / output).iterdir()}
    for words in (["--resume", "auto"], ["--overwrite"]):
        second = begin(lab, output, *words, name="second")
        assert second.wait() == 2
        lines = [line for line in second.said.splitlines() if line.strip()]
        assert len(lines) == 1 and f"is in use by process {first.pid} on " in lines[0], second.said
    assert {file: file.stat().st_mtime_ns for file in (lab / output).iterdir()} == before
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    third = begin(lab, output, "--resume", "auto", name="third")
    assert third.wait() == 0, third.said
    assert (lab / output / "model_1.pth").is_file()


@pytest.mark.slow
def test_where_the_file_system_has_no_locks_a_run_warns_once_and_continues(lab: Path, output: str):
    run = begin(lab, output, fault=NoLocks())
    assert run.wait() == 0, run.said
    assert run.said.count("no locks on this file system") == 1


class NoLocks:
    def __call__(self) -> None:
        import errno
        import fcntl

        def refuse(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        fcntl.lockf = refuse


@pytest.mark.slow
def test_weights_that_a_finite_step_made_infinite_are_never_saved(lab: Path, output: str):
    good = begin(lab, output, "--epochs", "1")
    assert good.wait() == 0, good.said
    kept = (lab / output / "model_0.pth").read_bytes()
    diverged = begin(lab, output, "--resume", "auto", "--checkpoint-every", "1", fault=InfiniteStep())
    assert diverged.wait() == 4, diverged.said
    assert "weights are not finite" in diverged.said and "Traceback" not in diverged.said
    assert [file.name for file in (lab / output).glob("model_?.pth")] == ["model_0.pth"]
    assert (lab / output / "model_0.pth").read_bytes() == kept
    again = begin(lab, output, "--resume", "auto")
    assert again.wait() == 0, again.said


class InfiniteStep:
    """The optimizer leaves an infinite weight."""

    def __call__(self) -> None:
        def make(step):
            def stepping(optimizer, *args, **kwargs):
                step(optimizer, *args, **kwargs)
                optimizer.param_groups[0]["params"][0].data.fill_(float("inf"))

            return stepping

        patch("torch.optim:SGD.step", make)


def test_a_file_of_weights_that_are_not_finite_is_named(tmp_path: Path):
    state = thin_model(ModelConfig(num_classes=3, min_size=32, max_size=48)).state_dict()
    state["backbone.body.conv1.weight"][0] = float("nan")
    torch.save({"model": state}, tmp_path / "bad.pth")
    Image.fromarray(np.zeros((40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    make_demo_dataset(tmp_path / "data", num_train=2, num_val=2)
    for script, *words in (
        ["predict.py", "--img-path", "a.png", "--weights-path"],
        ["validation.py", "--data-path", "data", "--weights-path"],
        ["train.py", "--data-path", "data", "--pretrain"],
    ):
        outcome = run_thin(tmp_path, script, "--device", "cpu", *words, "bad.pth")
        assert_refused(outcome, "bad.pth: 1 of ", "not finite")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["v1", "v2", "detectron2"])
@pytest.mark.parametrize("training", [False, True])
def test_without_proposals_there_are_no_detections_and_no_box_losses(arch: str, training: bool):
    with thin_bodies():
        model = build_model(ModelConfig(num_classes=3, arch=arch, min_size=32, max_size=48)).train(training)
    model.rpn.score_thresh = 2.0  # no objectness is that high
    images = [torch.rand(3, 32, 40), torch.rand(3, 40, 32)]
    if not training:
        with torch.no_grad():
            found = model(images)
        assert [tuple(d["masks"].shape) for d in found] == [(0, 1, 32, 40), (0, 1, 40, 32)]
        return
    empty = [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64),
         "masks": InstanceMasks.from_crops([], tuple(image.shape[1:]))}
        for image in images
    ]  # fmt: skip
    losses = model(images, empty)
    assert [losses[name].item() for name in ("loss_classifier", "loss_box_reg", "loss_mask")] == [0, 0, 0]
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("height", "width", "max_size"), [(2, 3000, 1333), (3000, 2, 1333), (12, 4000, 192)])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_strip_keeps_at_least_one_pixel(height: int, width: int, max_size: int, antialias: bool):
    transform = ImageTransform(800, max_size, [0.5] * 3, [0.2] * 3, antialias=antialias).eval()
    batch, _ = transform([torch.rand(3, height, width)])
    assert min(batch.image_sizes[0]) == 1 and max(batch.image_sizes[0]) <= max_size


@pytest.mark.slow
def test_strips_pass_through_training_and_prediction(tmp_path: Path):
    make_demo_dataset(tmp_path / "data", num_train=2, num_val=2)
    strip_the_data(tmp_path / "data" / "annotations" / "instances_train2017.json", tmp_path / "data" / "train2017")
    strip_the_data(tmp_path / "data" / "annotations" / "instances_val2017.json", tmp_path / "data" / "val2017")
    run = start("train.py", [*OPTIONS, "--epochs", "1", "--output-dir", "out"], tmp_path, ThinNetwork())
    assert run.wait() == 0, run.said
    run = start("predict.py", ["--weights-path", "out/model_0.pth", "--device", "cpu", "--img-path", "data/val2017"],
                tmp_path, ThinNetwork())  # fmt: skip
    assert run.wait() == 0, run.said


def strip_the_data(file: Path, folder: Path) -> None:
    import json

    content = json.loads(file.read_text())
    for image in content["images"]:
        image.update(height=2, width=3000)
        Image.fromarray(np.full((2, 3000, 3), 99, dtype=np.uint8)).save(folder / image["file_name"])
    for a in content["annotations"]:
        a.update(bbox=[100, 0, 900, 2], segmentation=[[100, 0, 1000, 0, 1000, 2, 100, 2]], area=1800)
    file.write_text(json.dumps(content))


@pytest.mark.slow
def test_a_resume_with_another_number_of_threads_warns_in_one_line(lab: Path, output: str):
    first = begin(lab, output, "--epochs", "1")
    assert first.wait() == 0 and "was computed with" not in first.said, first.said
    words = [*OPTIONS, "--output-dir", output, "--resume", "auto"]
    second = start("train.py", words, lab, ThinNetwork(), threads=2)
    assert second.wait() == 0, second.said
    warnings = [line for line in second.said.splitlines() if "was computed with threads 1 -> 2;" in line]
    assert len(warnings) == 1 and warnings[0].startswith("warning: "), second.said
