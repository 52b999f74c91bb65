"""A run that is stopped, killed or disturbed at any moment goes on as if nothing had been; else it says what is wrong.

The runs are the scripts themselves, in processes of their own, on a tiny dataset with a thin network.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.helpers.comparing import differences
from tests.helpers.faults import (
    All,
    DieAtStep,
    DieIn,
    DieWhileSaving,
    DiskFull,
    HalfPrecision,
    HangAtStep,
    ImpatientWatchdog,
    LargestFile,
    LossNotFiniteAt,
    OutOfMemoryAt,
    Signal,
    ThinNetwork,
    TryAgainAfter,
)
from tests.helpers.forked import Run, processes_of_group, start, start_group, wait_until
from tests.helpers.project import importing_tests
from train_utils.demo_dataset import make_demo_dataset
from train_utils.run.run_folder import CHECKPOINT
from train_utils.run.safe_files import LOCK

pytestmark = pytest.mark.slow

NUM_TRAIN, NUM_VAL, EPOCHS = 8, 2, 2
OPTIONS = ["--device", "cpu", "--data-path", "data", "--min-size", "40", "--max-size", "56", "--rois-per-image", "8"]
OPTIONS += ["--batch-size", "2", "--workers", "0", "--print-freq", "3", "--pretrain", "False", "--lr", "0.01"]
OPTIONS += ["--epochs", str(EPOCHS)]
THIN = All((ThinNetwork(), ImpatientWatchdog()))
STOPPED, NOT_FINITE, LOST_PROCESS, OUT_OF_MEMORY = 3, 4, 5, 6  # as docs/TRAINING.md has them


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("resume")
    make_demo_dataset(folder / "data", num_train=NUM_TRAIN, num_val=NUM_VAL)
    make_incomplete(folder / "data", folder / "incomplete")
    yield folder
    shutil.rmtree(folder)


def make_incomplete(source: Path, folder: Path) -> None:
    """Copy a dataset, with every third training object without a mask and every third a crowd."""
    shutil.copytree(source, folder)
    file = folder / "annotations" / "instances_train2017.json"
    annotations = json.loads(file.read_text())
    for number, annotation in enumerate(annotations["annotations"]):
        annotation.update([{"segmentation": []}, {"iscrowd": 1}, {}][number % 3])
    file.write_text(json.dumps(annotations))


@pytest.fixture
def folder(lab: Path, request: pytest.FixtureRequest) -> Path:
    """A test's own output folder, which is not there yet."""
    return lab / re.sub(r"\W", "_", request.node.name)


def run(folder: Path, *arguments: str | Path, fault=None, status: int = 0, processes: int = 1, told: str = "") -> Run:
    """One start of the run in `folder`, with a fault in its (last) process; checks how it ends and what it says."""
    words = [*OPTIONS, "--output-dir", folder.name, *arguments]
    prepare = All((THIN, fault)) if fault else THIN
    if processes == 1:
        runs = [start("train.py", words, folder.parent, prepare)]
    else:
        everywhere = dict.fromkeys(range(processes), THIN) | {processes - 1: prepare}
        runs = start_group(processes, "train_multi_GPU.py", words, folder.parent, everywhere)
    ends = [each.wait() for each in runs]
    said = "".join(each.said for each in runs)
    assert set(ends) <= {status, LOST_PROCESS} if status == -signal.SIGKILL else set(ends) == {status}, (ends, said)
    assert told in said, said
    return runs[0]


def content(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def checkpoints(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.suffix == ".pth"}


def assert_same_run(folder: Path, straight: Path) -> None:
    """The same files with the same content, to the last bit of the weights."""
    assert differences(folder, straight) == []


AUGMENTED = ["--data-augmentation", "lsj", "--use-copypaste", "--vflip", "--color-jitter", "0.4"]
RECIPE = ["--opt", "adamw", "--lr", "0.001", "--norm-weight-decay", "0", "--lr-scheduler", "cosineannealinglr"]
IN_PARTS = ["--batch-size", "1", "--accumulate", "2", "--min-size", "64", "--max-size", "96"]  # for BatchNorm of one
RECIPE += [*IN_PARTS, "--clip-grad-norm", "0.5", "--val-loss", "--model-ema", "0.9"]
RECIPE += ["--data-path", "incomplete", "--ignore-regions", "--boxes-without-masks", "--agnostic-nms"]
RECIPE += ["--anchor-sizes", "8", "16", "32", "64", "128", "--anchor-ratios", "0.4", "1", "2.5"]
RECIPE += ["--tensorboard"] if find_spec("tensorboard") else []
# Number of processes, further options.
MODES = {
    "one": (1, []),
    "two": (2, ["--amp", "--model-ema", *IN_PARTS]),
    "augmented": (1, AUGMENTED),
    "sizes": (1, ["--min-size", "24", "32", "--channels", "3"]),
    "recipe": (1, RECIPE),
}


class StraightRuns(dict[str, Path]):
    """Runs that were never stopped, by mode; each is made when it is first asked for."""

    def __init__(self, lab: Path):
        super().__init__()
        self.lab = lab

    def __missing__(self, mode: str) -> Path:
        processes, options = MODES[mode]
        self[mode] = self.lab / f"straight_{mode}"
        run(self[mode], *options, processes=processes)
        return self[mode]


@pytest.fixture(scope="module")
def straight_runs(lab: Path) -> StraightRuns:
    return StraightRuns(lab)


# ------------------------------------------------------------------------------------------------ killed and stopped

SAVE = "train_utils.run.run_folder:RunFolder.save_checkpoint"
RESULTS = "train_utils.run.run_folder:RunFolder.write_results"
KILLS = {
    "one": [
        DieAtStep(1),  # before the first checkpoint
        DieAtStep(3),
        DieWhileSaving(200_000),
        DieIn("dataset_files.atomic_files:os.replace", number=2),  # the checkpoint is whole, and has not its name yet
        DieIn("train_utils.run.run_folder:RunFolder.drop_old_checkpoints"),
        DieIn(RESULTS),
        DieIn("train_utils.run.run_folder:RunFolder.mark_best", after=True),
        DieIn("train_utils.run.run_folder:plot_map"),
        DieAtStep(0),
        DieIn(RESULTS, after=True),
    ],
    "two": [DieAtStep(3), DieWhileSaving(200_000), DieIn("train_utils.evaluation:detect_all")],
    "augmented": [DieAtStep(3), DieAtStep(2), DieIn(RESULTS)],
    "sizes": [DieAtStep(3), DieAtStep(2)],
    "recipe": [DieAtStep(3), DieAtStep(2), DieIn(RESULTS)],
}


@pytest.mark.parametrize(
    "mode", ["one", "recipe", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("two", "augmented", "sizes"))]
)
def test_killed_at_any_moment_and_resumed_it_ends_bit_for_bit_the_same(folder, straight_runs, mode):
    processes, options = MODES[mode]
    # Other workers too: who loads a picture has no say in it.
    common = [*options, "--resume", "auto", "--checkpoint-every", "2"]
    for i, fault in enumerate(KILLS[mode]):
        fatal = {0: All((THIN, fault)), 1: THIN} if processes == 2 else All((THIN, fault))
        words = [*OPTIONS, *common, "--output-dir", folder.name, "--workers", str(i % 2)]
        if processes == 2:
            runs = start_group(2, "train_multi_GPU.py", words, folder.parent, fatal)
        else:
            runs = [start("train.py", words, folder.parent, fatal)]
        assert runs[0].wait() == -signal.SIGKILL, (fault, runs[0].said)
        for other in runs[1:]:
            other.kill()
    run(folder, *common, processes=processes)
    assert_same_run(folder, straight_runs[mode])


def test_scale_of_fp16_is_resumed(folder, lab):
    straight = folder.with_name("straight_fp16")
    words = ["--epochs", "1", "--checkpoint-every", "1"]
    run(straight, *words, fault=HalfPrecision())
    run(folder, *words, fault=All((HalfPrecision(), DieAtStep(3))), status=-signal.SIGKILL)
    scale = content(folder / "model_0_step3.pth")["scaler"]["scale"]
    assert scale != 2.0**8  # else a new one would do as well
    run(folder, *words, "--resume", "auto", fault=HalfPrecision())
    assert_same_run(folder, straight)


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [[], ["--amp"]])
def test_on_cuda_a_resumed_run_ends_bit_for_bit_the_same_with_deterministic_algorithms(folder, lab, amp):
    straight = folder.with_name(f"{folder.name}_straight")
    words = ["--device", "cuda", "--deterministic", "--checkpoint-every", "1", *amp]
    run(straight, *words)
    for at in (1, 3):
        run(folder, *words, "--resume", "auto", fault=DieAtStep(at), status=-signal.SIGKILL)
    run(folder, *words, "--resume", "auto")
    assert_same_run(folder, straight)


def test_checkpoints_inside_an_epoch_come_every_n_steps_and_go_with_its_end(folder, lab):
    run(folder, "--checkpoint-every", "1", fault=DieAtStep(7), status=-signal.SIGKILL)
    # Four steps an epoch; inside an epoch the newest two stay.
    assert checkpoints(folder) == {"model_0.pth", "model_best.pth", "model_1_step6.pth", "model_1_step7.pth"}
    assert content(folder / "model_1_step6.pth")["progress"]["step"] == 6


def test_keep_leaves_the_newest_and_the_best(folder, lab):
    run(folder, "--epochs", "3", "--keep", "1")
    assert checkpoints(folder) == {"model_2.pth", "model_best.pth"}
    ap = [float(line.split()[1]) for line in (folder / "seg_results.txt").read_text().splitlines()]
    assert len(ap) == 3 and content(folder / "model_best.pth")["epoch"] == ap.index(max(ap))


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"), (2, "SIGINT")])
def test_signal_stops_after_the_step_with_a_checkpoint(folder, straight_runs, number, name):
    run(folder, fault=Signal(number, 5), status=STOPPED, told=f"stopped by {name}")
    assert checkpoints(folder) == {"model_0.pth", "model_best.pth", "model_1_step6.pth"}
    if number == signal.SIGTERM:
        run(folder, "--resume", "auto")
        assert_same_run(folder, straight_runs["one"])


def test_signal_to_one_process_stops_both_after_the_same_step(folder, straight_runs):
    run(folder, *MODES["two"][1], fault=Signal(signal.SIGUSR1, 0), processes=2, status=STOPPED)
    assert checkpoints(folder) == {"model_0_step1.pth"}
    run(folder, *MODES["two"][1], "--resume", "auto", processes=2)
    assert_same_run(folder, straight_runs["two"])


def test_ctrl_c_twice_stops_at_once(folder, lab):
    run(folder, fault=Signal(signal.SIGINT, 1, again_after=1.5), status=130, told="stopped at once")
    assert checkpoints(folder) == set()


def test_signal_to_the_loader_workers_does_not_end_them(folder, lab):
    """Schedulers signal every process of a job."""
    words = [*OPTIONS, "--output-dir", folder.name, "--workers", "2", "--print-freq", "1", "--epochs", "20"]
    job = start("train.py", words, lab, THIN)
    while not (folder / "log.jsonl").exists():
        assert job.alive(), job.said
    os.killpg(job.pid, signal.SIGTERM)
    assert job.wait() == STOPPED and "Traceback" not in job.said, job.said


# --------------------------------------------------------------------------------------------------- what is resumed


@pytest.fixture(scope="module")
def run_with_three_checkpoints(lab: Path) -> Path:
    folder = lab / "three_checkpoints"
    run(folder, "--checkpoint-every", "1", fault=DieAtStep(6), status=-signal.SIGKILL)
    assert checkpoints(folder) == {"model_0.pth", "model_best.pth", "model_1_step5.pth", "model_1_step6.pth"}
    return folder


@pytest.fixture
def stopped(run_with_three_checkpoints: Path, folder: Path) -> Path:
    """A copy of that run, with its times and hard links; model_1_step6.pth is the newest."""
    subprocess.run(["cp", "-a", run_with_three_checkpoints, folder], check=True)
    return folder


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    elif how == "a bit flipped":
        with zipfile.ZipFile(path) as archive:  # in the largest record, not in the padding between two
            record = max(archive.infolist(), key=lambda each: each.file_size)
        data[record.header_offset + 200 + record.file_size // 2] ^= 1
    elif how == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
        return
    path.unlink()  # model_best.pth may be the same file
    path.write_bytes(data)


def test_auto_names_what_is_broken_and_goes_on_from_the_one_before(stopped, straight_runs):
    damage(stopped / "model_1_step6.pth", "a bit flipped")
    damage(stopped / "model_1_step5.pth", "truncated")
    said = run(stopped, "--resume", "auto", told="resuming from").said
    assert re.search(r"model_1_step6.pth: broken .* set aside", said) and re.search(r"model_1_step5.pth: broken", said)
    assert re.search(r"resuming from \S+model_0.pth", said)
    for name in ("model_1_step6.pth.broken", "model_1_step5.pth.broken"):
        (stopped / name).unlink()
    assert_same_run(stopped, straight_runs["one"])


def test_broken_checkpoint_of_the_best_epoch_is_made_anew(stopped, straight_runs):
    damage(stopped / "model_best.pth", "truncated")
    run(stopped, "--resume", "auto")
    assert_same_run(stopped, straight_runs["one"])


def test_checkpoint_that_is_none_is_refused_by_name(stopped):
    damage(stopped / "model_1_step6.pth", "foreign")
    run(stopped, "--resume", stopped / "model_1_step6.pth", status=2, told="model_1_step6.pth: lacks ")
    for name in ("model_1_step5.pth", "model_0.pth"):
        damage(stopped / name, "truncated")
    run(stopped, "--resume", "auto", status=2, told="no checkpoint in")
    assert len(checkpoints(stopped)) == 4  # nothing was thrown away


def test_other_settings_are_listed_and_those_that_change_the_meaning_need_force(stopped):
    other = ["--resume", "auto", "--lr", "0.02", "--seed", "5", "--epochs", "3", "--print-freq", "1"]
    before = {f.name: f.read_bytes() for f in stopped.iterdir() if f.name != LOCK}
    told = "with other settings, which change the result: lr 0.01 -> 0.02, seed 0 -> 5; "
    run(stopped, *other, status=2, told=told)
    assert {f.name: f.read_bytes() for f in stopped.iterdir() if f.name != LOCK} == before
    said = run(stopped, *other, "--force").said
    assert re.search(r"continuing with other settings: .*epochs 2 -> 3", said) and "seed 0 -> 5" in said
    assert content(stopped / "model_2.pth")["args"]["lr"] == 0.02


def test_other_number_of_epochs_needs_force_under_a_cosine_and_the_optimizer_stays(folder, lab):
    run(folder, *RECIPE, "--max-steps", "1")
    told = "with other settings, which change the result: epochs 2 -> 3; "
    again = [*RECIPE, "--resume", "auto", "--epochs", "3"]
    run(folder, *again, status=2, told=told)
    told = "was trained with --opt adamw, which a resumed run cannot change"
    run(folder, *again, "--opt", "sgd", "--force", status=2, told=told)
    run(folder, *again, "--force", "--max-steps", "5")
    assert content(folder / "model_1.pth")["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.00075)  # of 0.001


def test_other_batch_size_goes_on_at_the_same_part_of_the_epoch_if_forced(stopped):
    run(stopped, "--resume", "auto", "--batch-size", "4", status=2, told="batch_size 2 -> 4")
    run(stopped, "--resume", "auto", "--batch-size", "4", "--force")
    assert content(stopped / "model_1.pth")["progress"]["step"] == 4
    steps = [json.loads(line)["step"] for line in (stopped / "log.jsonl").read_text().splitlines()]
    assert steps == [3, 4, 6, 4]  # six steps of two pictures are three of four, then comes the last one


def test_other_data_under_the_same_name_need_force(stopped, lab):
    file = lab / "data" / "annotations" / "instances_train2017.json"
    kept = file.read_text()
    annotations = json.loads(kept)
    annotations["categories"][0]["name"] = "ring"
    try:
        file.write_text(json.dumps(annotations))
        run(stopped, "--resume", "auto", status=2, told="training data (changed: ")
    finally:
        file.write_text(kept)


def test_options_that_are_not_given_are_those_of_the_stopped_run(folder, lab):
    run(folder, "--momentum", "0.5", "--seed", "3", "--wd", "0.01", "--max-steps", "1")
    run(folder, "--resume", "auto", "--max-steps", "2")
    args = content(folder / "model_0.pth")["args"]
    assert (args["momentum"], args["seed"], args["weight_decay"]) == (0.5, 3, 0.01)


# ---------------------------------------------------------------------------------------------------------- full disk


def test_full_disk_is_said_and_the_checkpoint_tried_again(folder, straight_runs):
    run(folder, "--checkpoint-every", "2", fault=DiskFull(1), told="model_0_step2.pth could not be written (No space")
    assert_same_run(folder, straight_runs["one"])


def test_checkpoint_that_found_no_room_is_tried_again_some_steps_later(folder, lab):
    fault = All((DiskFull(1), TryAgainAfter(2), DieAtStep(7)))  # four steps an epoch, without others inside it
    run(folder, fault=fault, status=-signal.SIGKILL, told="model_0.pth could not be written (No space")
    assert checkpoints(folder) == {"model_1_step6.pth"}


def test_checkpoint_before_stays_where_the_next_one_finds_no_room(folder, straight_runs):
    run(folder, "--max-steps", "4")
    fault = LargestFile(200_000)  # the system's own refusal
    run(folder, "--resume", "auto", fault=fault, status=2, told="the checkpoint of step 8 could not be written")
    assert checkpoints(folder) == {"model_0.pth", "model_best.pth"}
    run(folder, "--resume", "auto")
    assert_same_run(folder, straight_runs["one"])


# ---------------------------------------------------------------------------------------------------- out of memory


def test_without_memory_for_a_step_the_state_before_it_is_saved_and_resumed_to_the_same_bits(folder, straight_runs):
    fault = OutOfMemoryAt(5, "builtins:RuntimeError", "[enforce fail at alloc_cpu.cpp:117] can't allocate memory: 9 GB")
    said = run(folder, fault=fault, status=OUT_OF_MEMORY).said
    errors = [line for line in said.splitlines() if "memory" in line or "Traceback" in line]
    assert len(errors) == 1 and re.search(
        r"out of memory in step 6: 2 images of up to \d+ x \d+ pixels, \d+ objects \(\[enforce .*; a checkpoint of "
        "step 5 was written; continue with --resume auto --force and half the --batch-size with twice the "
        "--accumulate, or a smaller --min-size", errors[0]), said  # fmt: skip
    assert checkpoints(folder) == {"model_0.pth", "model_best.pth", "model_1_step5.pth"}
    run(folder, "--resume", "auto")
    assert_same_run(folder, straight_runs["one"])


@pytest.mark.parametrize("failing, options", [(0, []), (1, ["--norm", "frozen"]), (1, [])])
def test_all_processes_end_where_one_has_no_memory(folder, straight_runs, failing, options):
    """One whose running statistics differ from the main process's cannot write the run's state."""
    words = [*MODES["two"][1], *options]
    group = {0: THIN, 1: THIN} | {failing: All((THIN, OutOfMemoryAt(2)))}  # two passes a step
    all_words = [*OPTIONS, *words, "--output-dir", folder.name]
    runs = start_group(2, "train_multi_GPU.py", all_words, folder.parent, group)
    assert [each.wait(60) for each in runs] == [OUT_OF_MEMORY if rank == failing else LOST_PROCESS for rank in (0, 1)]
    assert "out of memory in step 2: 2 images" in runs[failing].said and "in 2 parts" in runs[failing].said
    assert f"process {failing} (pid {runs[failing].pid}" in runs[1 - failing].said
    assert "out of memory" in runs[1 - failing].said
    if failing == 1 and not options:
        assert checkpoints(folder) == set() and "the last checkpoint stays" in runs[1].said
        return
    assert checkpoints(folder) == {"model_0_step1.pth"}
    if not options:
        run(folder, *words, "--resume", "auto", processes=2)
        assert_same_run(folder, straight_runs["two"])


# ------------------------------------------------------------------------------------------------- losses and pictures


@pytest.mark.parametrize("processes, opt", [(1, "sgd"), (2, "sgd"), (1, "adamw")])
def test_step_whose_loss_is_not_finite_is_named_and_not_applied(folder, lab, processes, opt):
    words = ["--print-freq", "1", "--opt", opt]
    said = run(folder, *words, fault=LossNotFiniteAt((1, 2)), processes=processes).said
    said += "".join((folder.parent / f"out{rank}.txt").read_text() for rank in range(processes) if processes > 1)
    where = f"on process {processes - 1}"
    named = re.findall(rf"step (\d) is not applied: the loss is nan {where}, images \[[\d, ]+\]", said)
    assert named[:2] == ["2", "3"] and "loss_mask nan" in said and "learning rate 0.00" in said
    assert "steps were not applied" in said
    after = content(folder / "model_1.pth")
    assert all(t.isfinite().all() for t in after["model"].values() if t.is_floating_point())
    applied = NUM_TRAIN // 2 * EPOCHS // processes - 2
    assert after["model"]["backbone.body.bn1.num_batches_tracked"] == applied
    assert all(state["step"] == applied for state in after["optimizer"]["state"].values() if opt == "adamw")
    logged = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [loss is None for loss in logged[:4]] == [False, True, True, False]


def test_run_of_losses_that_are_not_finite_ends_with_a_checkpoint_from_before(folder, lab):
    fault = LossNotFiniteAt(tuple(range(5, 100)))
    run(folder, "--max-bad-steps", "3", fault=fault, status=NOT_FINITE, told="3 losses in a row were not finite")
    assert checkpoints(folder) == {"model_0.pth", "model_best.pth", "model_1_step5.pth"}
    assert content(folder / "model_1_step5.pth")["progress"]["step"] == 5
    run(folder, "--resume", "auto")  # nothing was wrong with the data: it goes on


@pytest.fixture
def broken_picture(lab: Path) -> Iterator[str]:
    picture = sorted((lab / "data" / "train2017").iterdir())[2]
    kept = picture.read_bytes()
    picture.write_bytes(kept[: len(kept) // 2])
    yield picture.name
    picture.write_bytes(kept)


@pytest.mark.parametrize("processes", [1, 2])
def test_picture_that_fails_in_a_worker_is_named_replaced_and_counted(folder, broken_picture, processes):
    run(folder, "--workers", "1", processes=processes)
    files = ["out.txt"] if processes == 1 else ["out0.txt", "out1.txt"]
    said = "".join((folder.parent / name).read_text() for name in files)
    assert said.count(f"{broken_picture}: cannot be read as an image") == EPOCHS
    assert said.count("1 images could not be read and were replaced by others") == EPOCHS
    assert content(folder / "model_1.pth")["progress"]["step"] == NUM_TRAIN // 2 * EPOCHS // processes


def test_too_many_pictures_that_fail_end_the_run_with_a_checkpoint(folder, broken_picture):
    words = ["--workers", "1", "--max-bad-pictures", "0"]
    run(folder, *words, processes=2, status=2, told="more than --max-bad-pictures 0")
    assert any(CHECKPOINT.match(name) for name in checkpoints(folder))


# ------------------------------------------------------------------------------------------------- several processes


def test_killed_process_is_named_by_the_others_which_end_too(folder, lab):
    run(folder, "--workers", "1", fault=DieAtStep(1), processes=3, status=-signal.SIGKILL)
    pids = [
        (folder.parent / f"out{rank}.txt").read_text().split("lost the connection to process 2 (pid ")[1].split()[0]
        for rank in range(2)
    ]
    assert pids[0] == pids[1]
    # Its loader worker, which nobody ends, notices it by itself.
    wait_until(lambda: not processes_of_group(int(pids[0])), seconds=30)


def test_killed_process_is_named_by_one_whose_main_thread_waits_for_something_else(folder, lab):
    """As with nccl, where a process that waits for its device notices no broken connection."""
    words = [*OPTIONS, "--output-dir", folder.name]
    faults = {0: All((THIN, HangAtStep(1))), 1: All((THIN, DieAtStep(1)))}
    waiting, killed = start_group(2, "train_multi_GPU.py", words, folder.parent, faults)
    assert killed.wait() == -signal.SIGKILL
    assert waiting.wait(seconds=60) == LOST_PROCESS  # --timeout is 600
    assert f"lost the connection to process 1 (pid {killed.pid} on " in waiting.said, waiting.said


def test_process_that_hangs_is_named_and_all_end_within_the_timeout(folder, lab):
    words = ["--timeout", "3"]
    run(folder, *words, fault=HangAtStep(1), processes=2, status=LOST_PROCESS, told="no progress for 3 s")
    said = (folder.parent / "out0.txt").read_text()
    assert re.search(r"by process 1 \(pid \d+ on \S+, loading images, step 1\);", said), said


@pytest.mark.parametrize("num_train, num_val", [(1, 1), (5, 2)])
def test_more_processes_than_pictures_do_not_hang(folder, lab, num_train, num_val):
    data = lab / f"data_{num_train}"
    make_demo_dataset(data, num_train=num_train, num_val=num_val)
    run(folder, "--data-path", data, "--epochs", "1", processes=3)
    assert len((folder / "seg_results.txt").read_text().splitlines()) == 1


@pytest.mark.long
def test_torchrun_brings_a_killed_process_back_without_a_person(folder, straight_runs):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    command += ["-m", "tests.programs.with_fault", "train_multi_GPU.py", *OPTIONS, *MODES["two"][1]]
    command += ["--output-dir", folder.name, "--resume", "auto", "--checkpoint-every", "1"]
    fault = {"THIN": "1", "FAULT": "DieAtStep(3)", "FAULT_RANK": "1", "OMP_NUM_THREADS": "1"}
    variables = importing_tests(os.environ) | fault
    done = subprocess.run(command, cwd=folder.parent, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lost the connection to process 1" in done.stderr
    assert re.search(r"resuming from \S+model_1_step3.pth", done.stdout)
    assert_same_run(folder, straight_runs["two"])
