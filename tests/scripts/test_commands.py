"""The four scripts as a user runs them: what they take, what they leave, how they go on, and how they refuse.

They run with a thin network in the test's process, which spares the seconds that importing torch takes, or in
processes forked from one that has imported it; each script runs as a process of its own with the real network as well.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.models.detection import maskrcnn_resnet50_fpn

from prediction.options import PredictSettings
from tests.helpers.commands import Outcome, assert_refused, run, run_thin, started, succeeded, under_torchrun
from tests.helpers.faults import ThinNetwork, thin_model
from tests.helpers.forked import start_group
from tests.helpers.project import ROOT
from tests.helpers.thin_weights import thin_networks
from train_utils.demo_dataset import CLASS_NAMES, make_demo_dataset
from train_utils.errors import InputError
from train_utils.models import ModelConfig, build_model
from train_utils.option_parsing import (
    boolean,
    boolean_or_decay,
    fraction,
    natural_number,
    positive_number,
    share,
    strength,
)
from train_utils.options import TrainSettings, ValidationSettings
from train_utils.run.safe_files import LOCK
from train_utils.weight_files import weights
from train_utils.weight_files.weights import PublishedFile

SCRIPTS = ("train.py", "train_multi_GPU.py", "validation.py", "predict.py")
PARSERS = {
    "train.py": lambda: TrainSettings.parser(""),
    "train_multi_GPU.py": lambda: TrainSettings.parser(""),
    "validation.py": lambda: ValidationSettings.parser(""),
    "predict.py": lambda: PredictSettings.parser(""),
}
NUM_TRAIN, NUM_VAL = 6, 4
NUM_CLASSES = len(CLASS_NAMES)
STEPS = NUM_TRAIN // 2  # an epoch's, at two pictures a step
# Small enough for a fraction of a second a step. The rate is so low that the weights stay as good as they start.
SMALL = ["--device", "cpu", "--min-size", "64", "--max-size", "96", "--rois-per-image", "16"]
SMALL += ["--batch-size", "2", "--workers", "0", "--lr", "1e-6", "--print-freq", "1", "--data-path", "data"]
ON_CPU = ["--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the scripts run, with a tiny dataset in `data`."""
    folder = tmp_path_factory.mktemp("lab")
    make_demo_dataset(folder / "data", num_train=NUM_TRAIN, num_val=NUM_VAL)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def _thin() -> Iterator[None]:
    with thin_networks():
        yield


@pytest.fixture
def scratch(lab: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for one test beside the others, gone after it."""
    folder = lab / hashlib.md5(request.node.name.encode()).hexdigest()
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def start(lab: Path) -> Path:
    """Weights that find a little: drawn at random, with masks that fill their boxes, so that no metric rests at 0."""
    torch.manual_seed(0)
    model = thin_model(ModelConfig(num_classes=NUM_CLASSES + 1))
    torch.nn.init.constant_(model.roi_heads.mask_predictor.mask_fcn_logits.bias, 2.0)
    torch.save(model.state_dict(), lab / "start.pth")
    return lab / "start.pth"


@pytest.fixture(scope="module")
def first(lab: Path, start: Path) -> tuple[Path, Outcome]:
    """A run of one epoch: the folder it leaves and what it said."""
    arguments = [*SMALL, "--output_dir", "first", "--epochs", "1", "--pretrain", "start.pth"]
    return lab / "first", succeeded(run(lab, "train.py", *arguments))


@pytest.fixture(scope="module")
def checkpoint(first: tuple[Path, Outcome]) -> dict:
    return torch.load(first[0] / "model_0.pth", weights_only=True)


def results(folder: Path, name: str) -> list[list[str]]:
    return [line.split("  ") for line in (folder / name).read_text().splitlines()]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def state_of(folder: Path) -> dict[str, tuple]:
    """Name, time, size and, of small files, the content of all that a folder holds but for the lock."""
    files = sorted(f for f in folder.iterdir() if f.name != LOCK)
    return {
        f.name: (f.stat().st_mtime_ns, f.stat().st_size, f.read_bytes() if f.suffix != ".pth" else b"") for f in files
    }


# ---------------------------------------------------------------------------------------------------------- arguments


def sample_values(action: argparse.Action) -> list[str]:
    """What may stand behind an option and is not its default."""
    if action.choices:
        return [str(next(c for c in action.choices if c != action.default))]
    if action.type is boolean:
        return ["True"]
    is_text = action.type in (None, str) or action.dest == "pretrain"
    if action.type in (boolean_or_decay, fraction, natural_number, positive_number, share, strength):
        return ["0.375"]
    return ["some_place-a"] if is_text else ["7"] * (action.nargs if isinstance(action.nargs, int) else 1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_taken_with_dashes_and_with_underscores(script):
    parser = PARSERS[script]()
    assert vars(parser.parse_args([])) == {}  # what is not given is left to the recipes
    options = [(name, action) for action in parser._actions[1:] for name in action.option_strings if name[1] == "-"]
    assert len(options) >= 10
    for name, action in options:
        values = sample_values(action)
        underscored = "--" + name[2:].replace("-", "_")
        parsed = vars(parser.parse_args([name, *values]))
        assert list(parsed) == [action.dest], name
        assert vars(parser.parse_args([underscored, *values])) == parsed, name
        if len(values) == 1:
            assert vars(parser.parse_args([f"{underscored}={values[0]}"])) == parsed, name


TRAINING_OPTIONS = """--device --data-path --num-classes --output-dir --resume --start_epoch --epochs --lr --momentum
    --wd --weight-decay --lr-steps --lr-gamma --batch_size -b --aspect-ratio-group-factor --pretrain --amp --min-size
    --max-size --max-steps --seed -j --workers --overwrite --print-freq --test-only --sync-bn --dist-url --world-size
    --lr-step-size""".split()
OPTIONS = {
    "train.py": TRAINING_OPTIONS,
    "train_multi_GPU.py": TRAINING_OPTIONS,
    "validation.py": """--device --num-classes --data-path --weights-path --batch-size --label-json-path --min-size
        --max-size -j --workers -b --output-dir --amp""".split(),
    "predict.py": """--device --num-classes --weights-path --img-path --output-dir --box-thresh --mask-thresh
        --save-json --save --batch-size -b --exif --annotation-file --tile --overlap --every --webcam --label-json-path
        --min-size --max-size --amp""".split(),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_options_that_users_know_are_there(script):
    own = {name for action in PARSERS[script]()._actions for name in action.option_strings}
    assert {name.replace("_", "-") for name in OPTIONS[script]} <= own


@pytest.mark.parametrize(
    "arguments, value",
    [
        ([], False),
        (["--amp"], True),
        (["--amp", "True"], True),
        (["--amp", "False"], False),
        (["--amp=false"], False),
        (["--amp", "--seed", "1"], True),
    ],
)
def test_booleans_are_taken_bare_and_with_a_value(arguments, value):
    assert TrainSettings.parse("", arguments).amp is value


@pytest.mark.parametrize(
    "given, meant",
    [
        ([], True),
        (["--pretrain", "False"], False),
        (["--pretrain=0"], False),
        (["--pretrain"], True),
        (["--pretrain", "true"], True),
        (["--pretrain", "my_weights.pth"], "my_weights.pth"),
    ],
)
def test_pretrain_false_means_false(given, meant):
    found = TrainSettings.parse("", given).pretrain
    assert found == meant and type(found) is type(meant)


def test_values_keep_their_underscores():
    args = PARSERS["train.py"]().parse_args(["--output_dir", "my_runs/a_b", "--data_path=/some_data"])
    assert (args.output_dir, args.data_path) == ("my_runs/a_b", "/some_data")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option_and_exits_with_0(lab, script):
    outcome = run(lab, script, "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert f"python {script}" in outcome.out or f"torchrun --nproc_per_node=8 {script}" in outcome.out
    for action in PARSERS[script]()._actions:
        assert action.option_strings[-1] in outcome.out


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_group_of_the_help_fits_on_a_screen(monkeypatch, script):
    """24 lines of 100 columns."""
    monkeypatch.setenv("COLUMNS", "200")
    groups = re.split(r"^(?=[a-z ]+:$)", PARSERS[script]().format_help(), flags=re.MULTILINE)[1:]
    assert len(groups) >= 3
    for group in groups:
        lines = group.rstrip().splitlines()
        assert len(lines) <= 24 and max(map(len, lines)) <= 100, lines[0]


# ------------------------------------------------------------------------------------------------ what a run leaves


@pytest.mark.slow
def test_run_leaves_exactly_the_promised_files(first):
    folder, outcome = first
    assert {f.name for f in folder.iterdir()} == {
        LOCK,
        "model_0.pth", "model_best.pth", "det_results.txt", "seg_results.txt", "args.json", "log.jsonl",
        "loss_and_lr.png", "mAP.png", "predictions_0.png",
    }  # fmt: skip
    assert "model_0.pth" in outcome.out and outcome.err == ""


@pytest.mark.slow
def test_checkpoint_holds_plain_values_for_everything_that_follows(checkpoint):
    assert {"model", "optimizer", "lr_scheduler", "epoch", "args"} <= set(checkpoint)
    assert checkpoint["epoch"] == 0 and checkpoint["args"]["data_path"] == "data"
    assert checkpoint["class_names"] == dict(enumerate(CLASS_NAMES, start=1))
    assert checkpoint["model"]["roi_heads.box_predictor.cls_score.weight"].shape[0] == NUM_CLASSES + 1


LINE_OF_EPOCH_0 = r"epoch:0(  (-1\.0000|[01]\.\d{4})){12}  \d+\.\d{4}  \d\.\d{6}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["det_results.txt", "seg_results.txt"])
def test_results_have_the_promised_form(first, name):
    assert re.fullmatch(LINE_OF_EPOCH_0, (first[0] / name).read_text())


@pytest.mark.slow
def test_results_hold_metrics_loss_and_rate(first):
    folder, outcome = first
    boxes, masks = (results(folder, name)[0] for name in ("det_results.txt", "seg_results.txt"))
    steps = log_of(folder)
    assert float(boxes[13]) == pytest.approx(sum(s["loss"] for s in steps) / len(steps), abs=6e-5)
    assert boxes[13:] == masks[13:] and boxes[14] == f"{steps[-1]['lr']:.6f}"
    assert boxes[1:13] != masks[1:13]
    said = re.search(r"box AP (\S+) \(AP50 (\S+)\), mask AP (\S+) \(AP50 (\S+)\)", outcome.out).groups()
    assert list(said) == boxes[1:3] + masks[1:3]
    assert any(float(v) > 0 for v in boxes[1:13])  # the weights are too random for masks to be right as well


@pytest.mark.slow
def test_log_has_a_line_for_every_printed_step(first):
    steps = log_of(first[0])
    assert [(s["epoch"], s["step"]) for s in steps] == [(0, 1), (0, 2), (0, 3)]
    parts = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
    for step in steps:
        assert set(step) == {"epoch", "step", "lr", "loss", *parts}
        assert step["loss"] == pytest.approx(sum(step[p] for p in parts), abs=1e-5)
    assert steps[0]["lr"] < steps[1]["lr"] < steps[2]["lr"] < 1e-6  # the warm-up


@pytest.mark.slow
def test_arguments_are_kept_as_json(first):
    args = json.loads((first[0] / "args.json").read_text())
    expected = {"data_path": "data", "epochs": 1, "batch_size": 2, "lr": 1e-6, "min_size": 64, "pretrain": "start.pth"}
    assert {key: args[key] for key in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loss_and_lr.png", "mAP.png", "predictions_0.png"])
def test_curves_and_sheets_are_pictures(first, name):
    with Image.open(first[0] / name) as picture:
        assert picture.format == "PNG" and min(picture.size) >= 200
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 10  # not an empty sheet


# ------------------------------------------------------------------------------------------------------------ going on


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.mark.slow
def test_second_run_in_the_same_folder_touches_nothing(lab, first):
    before = state_of(first[0])
    outcome = run_thin(lab, "train.py", *SMALL, "--output-dir", "first", "--pretrain", "False", "--epochs", "1")
    assert_refused(outcome, "first", "--resume auto", "--output-dir", "--overwrite")
    assert state_of(first[0]) == before


@pytest.mark.slow
def test_overwrite_starts_anew(lab, first, scratch):
    folder = copied(first[0], scratch / "copy")
    (folder / "model_7.pth").write_bytes(b"of the old run")
    (folder / "notes.txt").write_text("mine")
    arguments = ["--output-dir", folder, "--pretrain", "False", "--epochs", "1", "--max-steps", "1", "--overwrite"]
    succeeded(run_thin(lab, "train.py", *SMALL, *arguments))
    assert not (folder / "model_7.pth").exists() and (folder / "notes.txt").read_text() == "mine"
    assert len(results(folder, "det_results.txt")) == 1 and [s["step"] for s in log_of(folder)] == [1]


@pytest.mark.slow
def test_resume_auto_appends_the_next_epoch(lab, first, scratch):
    folder = copied(first[0], scratch / "copy")
    succeeded(run_thin(lab, "train.py", *SMALL, "--output-dir", folder, "--resume", "auto", "--epochs", "2"))
    for name in ("det_results.txt", "seg_results.txt"):
        before, after = results(first[0], name), results(folder, name)
        assert after[:1] == before and [line[0] for line in after] == ["epoch:0", "epoch:1"]
    assert log_of(folder)[:STEPS] == log_of(first[0])
    assert [s["step"] for s in log_of(folder)] == [1, 2, 3, 4, 5, 6]
    newer = torch.load(folder / "model_1.pth", weights_only=True)
    assert newer["epoch"] == 1 and newer["progress"]["step"] == 2 * STEPS


@pytest.mark.slow
def test_resume_auto_in_an_empty_folder_starts_a_run(lab, scratch):
    arguments = ["--output-dir", scratch / "new", "--resume", "auto", "--pretrain", "False", "--max-steps", "1"]
    succeeded(run_thin(lab, "train.py", *SMALL, *arguments))
    assert (scratch / "new" / "model_0.pth").is_file()


@pytest.mark.slow
def test_resume_auto_starts_anew_where_a_run_was_stopped_before_its_first_checkpoint(lab, first, scratch):
    folder = scratch / "stopped"
    folder.mkdir()
    for name in ("args.json", "log.jsonl"):
        shutil.copy(first[0] / name, folder)
    arguments = ["--output-dir", folder, "--resume", "auto", "--pretrain", "False", "--max-steps", "1"]
    succeeded(run_thin(lab, "train.py", *SMALL, *arguments))
    assert [s["step"] for s in log_of(folder)] == [1]


@pytest.mark.slow
def test_resume_auto_never_deletes_results(lab, first, scratch):
    """A folder of results whose checkpoints were moved elsewhere is no run that stopped before its first one."""
    folder = copied(first[0], scratch / "copy")
    (folder / "model_0.pth").unlink()
    before = state_of(folder)
    arguments = ["--output-dir", folder, "--resume", "auto", "--pretrain", "False", "--max-steps", "1"]
    assert_refused(run_thin(lab, "train.py", *SMALL, *arguments), "--overwrite")
    assert state_of(folder) == before


@pytest.mark.slow
def test_resuming_a_run_beyond_its_last_step_trains_no_further(lab, first, scratch):
    folder = copied(first[0], scratch / "copy")
    arguments = ["--output-dir", folder, "--resume", "auto", "--epochs", "2", "--max-steps", "2"]
    succeeded(run_thin(lab, "train.py", *SMALL, *arguments))
    assert not (folder / "model_1.pth").exists() and len(log_of(folder)) == STEPS


@pytest.mark.slow
def test_missing_results_of_the_last_epoch_are_made_up_for(lab, first, scratch):
    """The run was stopped between its checkpoint and its results."""
    folder = copied(first[0], scratch / "copy")
    lines = {name: (folder / name).read_text() for name in ("det_results.txt", "seg_results.txt")}
    for name in lines:
        (folder / name).unlink()
    succeeded(run_thin(lab, "train.py", *SMALL, "--output-dir", folder, "--resume", "auto", "--epochs", "1"))
    assert {name: (folder / name).read_text() for name in lines} == lines


@pytest.mark.slow
def test_resuming_another_run_never_overwrites_the_results_in_the_output_folder(lab, first, scratch):
    folder = copied(first[0], scratch / "other")
    extra = "epoch:1" + (folder / "det_results.txt").read_text().removeprefix("epoch:0")
    with open(folder / "det_results.txt", "a") as file:
        file.write(extra)
    before = state_of(folder)
    arguments = ["--output-dir", folder, "--resume", first[0] / "model_0.pth", "--epochs", "2", "--max-steps", "4"]
    assert_refused(run_thin(lab, "train.py", *SMALL, *arguments), "other", "--overwrite")
    assert state_of(folder) == before


@pytest.mark.slow
def test_resuming_an_older_checkpoint_leaves_no_newer_one_to_be_taken_for_its_own(lab, first, scratch):
    """What --resume auto, validation.py and predict.py take next is the newest of the folder."""
    folder = copied(first[0], scratch / "copy")
    (folder / "model_5.pth").write_bytes(b"of the run before")
    arguments = ["--output-dir", folder, "--resume", folder / "model_0.pth", "--epochs", "2", "--max-steps", "4"]
    before = state_of(folder)
    refused = run_thin(lab, "train.py", *SMALL, *arguments)
    assert_refused(refused, "holds newer checkpoints (model_5.pth)", "--resume auto", "--overwrite")
    assert state_of(folder) == before
    succeeded(run_thin(lab, "train.py", *SMALL, *arguments, "--overwrite"))
    assert {f.name for f in folder.glob("model_*.pth")} == {"model_0.pth", "model_1.pth", "model_best.pth"}


def assert_equal_content(one: object, other: object, where: str = "checkpoint") -> None:
    """Equal to the last bit, and of equal types."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal_content(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other)):
            assert_equal_content(a, b, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert one == other, where


# ---------------------------------------------------------------------------------------------------- validation.py


def recorded(path: Path) -> dict[str, list[str]]:
    """The twelve numbers of each table of a record_mAP.txt."""
    tables, title = {}, None
    for line in path.read_text().splitlines():
        if line in ("boxes", "masks"):
            title = line
        elif number := re.fullmatch(r"  A[PR] ?\w* +(-?\d\.\d{4})", line):
            tables.setdefault(title, []).append(number.group(1))
    return tables


def trained(folder: Path) -> dict[str, list[str]]:
    """The same from the last lines of a run's results."""
    files = {"boxes": "det_results.txt", "masks": "seg_results.txt"}
    return {title: results(folder, name)[-1][1:13] for title, name in files.items()}


@pytest.fixture(scope="module")
def validated(lab: Path, first: tuple[Path, Outcome]) -> tuple[dict[str, list[str]], Outcome]:
    """validation.py on the first run's checkpoint, which says itself with which data and sizes."""
    outcome = succeeded(run(lab, "validation.py", *ON_CPU, "--weights-path", "first/model_0.pth"))
    record = first[0] / "record_mAP.txt"
    tables = recorded(record)
    text = record.read_text()
    record.unlink()
    return tables, Outcome(0, outcome.out, text)


@pytest.mark.slow
def test_validation_gives_the_numbers_of_the_training_run(first, validated):
    assert validated[0] == trained(first[0])


@pytest.mark.slow
def test_validation_prints_what_it_records_with_every_class_by_name(validated):
    _, outcome = validated
    assert outcome.err in outcome.out
    for name in CLASS_NAMES:
        assert len(re.findall(rf"^  {name} +\d+ +-?\d\.\d{{4}} +-?\d\.\d{{4}}$", outcome.err, re.MULTILINE)) == 2


@pytest.mark.slow
def test_validation_writes_where_it_is_told(lab, first, validated, scratch):
    before = state_of(first[0])
    arguments = ["--weights-path", "first/model_0.pth", "--output_dir", scratch / "a/b", "--batch_size", "3"]
    succeeded(run(lab, "validation.py", *ON_CPU, *arguments))
    assert len(recorded(scratch / "a" / "b" / "record_mAP.txt")["masks"]) == 12
    assert state_of(first[0]) == before


@pytest.mark.slow
def test_validation_writes_a_report_of_boxes_masks_run_and_data(lab, first, validated, scratch):
    arguments = ["--weights-path", "first/model_0.pth", "--report", scratch / "report", "--output-dir", scratch]
    outcome = succeeded(run(lab, "validation.py", *ON_CPU, *arguments))
    assert outcome.out.splitlines()[-1] == f"report in {scratch / 'report' / 'report.html'}"
    report = json.loads((scratch / "report" / "report.json").read_text())
    for kind, title in (("bbox", "boxes"), ("segm", "masks")):
        assert [f"{value:.4f}" for value in report["metrics"][kind].values()] == validated[0][title]
        aps = [each["ap"] for each in report[kind]["classes"] if each["objects"]]
        assert f"{sum(aps) / len(aps):.4f}" == validated[0][title][0]
    page = (scratch / "report" / "report.html").read_text()
    for words in ("AP over the epochs", "Training loss", f"training: {NUM_TRAIN} images", "first/model_0.pth"):
        assert words in page
    assert page.count("data:image/jpeg;base64,") >= NUM_VAL


@pytest.mark.slow
def test_a_network_is_compared_with_itself_and_with_its_results_file(lab, first, scratch):
    """Their numbers are those of the training run; nothing differs."""
    results = scratch / "found.json"
    words = ["--weights-path", "first/model_0.pth", "--img-path", lab / "data" / "val2017", "--save", "json"]
    words += ["--box-thresh", "0", "--annotation-file", lab / "data" / "annotations" / "instances_val2017.json"]
    succeeded(run(lab, "predict.py", "--device", "cpu", *words, "--output-dir", scratch))
    (scratch / "predictions.json").rename(results)
    ap = trained(first[0])["masks"][0]
    for other in ("first/model_0.pth", results):
        outcome = succeeded(run(lab, "validation.py", *ON_CPU, "--compare", "first/model_0.pth", other, "--boundary"))
        lines = outcome.out.splitlines()
        masks = lines[lines.index("masks") + 2].split()
        assert masks[:2] == ["AP", ap] and abs(float(masks[3])) < (0.01 if other == results else 1e-9)
        assert lines[-1].startswith("this data cannot tell") and "boundaries" in lines
    refused = run(
        lab, "validation.py", *ON_CPU, "--compare", "first/model_0.pth", results, "--annotation-file", results
    )
    assert_refused(refused, "--annotation-file belongs to two results files")


@pytest.mark.slow
def test_thresholds_that_validation_stores_are_used_by_predict(lab, first, scratch):
    """model_best.pth has them after training; another checkpoint gets the same from validation.py."""
    stored = torch.load(first[0] / "model_best.pth", weights_only=True).get("score_thresholds")
    weights = scratch / "model_0.pth"
    shutil.copy(first[0] / "model_0.pth", weights)
    example = ["--img-path", next((lab / "data" / "val2017").iterdir()), "--output-dir", scratch / "out"]
    best = ["--weights-path", weights, *example, "--box-thresh", "best"]
    assert_refused(
        run(lab, "predict.py", "--device", "cpu", *best), "model_0.pth: holds no thresholds", "--save-thresholds"
    )
    order = ["--iou-type", "segm", "boundary", "bbox"]
    outcome = succeeded(run(lab, "validation.py", *ON_CPU, "--weights-path", weights, "--save-thresholds", *order))
    assert [line for line in outcome.out.splitlines() if line in ("masks", "boundaries", "boxes")] == [
        "masks", "boundaries", "boxes"
    ]  # fmt: skip
    written = torch.load(weights, weights_only=True)
    assert written["score_thresholds"] == stored and set(stored) <= set(written["class_names"]) and stored
    succeeded(run(lab, "predict.py", "--device", "cpu", *best))


# ------------------------------------------------------------------------------------------------------- predict.py


@pytest.fixture(scope="module")
def predicted(lab: Path, first: tuple[Path, Outcome]) -> tuple[Path, list[dict], Outcome]:
    """A folder of pictures and one picture more; the output folder, the detections, and what was said."""
    pictures = sorted((lab / "data" / "val2017").iterdir())
    (lab / "pictures").mkdir()
    for picture in pictures[1:]:
        shutil.copy(picture, lab / "pictures")
    (lab / "pictures" / "notes.txt").write_text("no picture")
    arguments = ["--device", "cpu", "--weights-path", "first/model_0.pth", "--output-dir", "drawn", "--save-json"]
    arguments += ["--box-thresh", "0.1", "--img-path", "pictures", str(pictures[0])]
    outcome = succeeded(run(lab, "predict.py", *arguments))
    return lab / "drawn", json.loads((lab / "drawn" / "predictions.json").read_text()), outcome


@pytest.mark.slow
def test_every_picture_of_file_and_folder_is_drawn(lab, predicted):
    folder, _, outcome = predicted
    originals = sorted((lab / "data" / "val2017").iterdir())
    assert {f.name for f in folder.iterdir()} == {"predictions.json", *(f"{f.stem}.png" for f in originals)}
    for original in originals:
        with Image.open(original) as before, Image.open(folder / f"{original.stem}.png") as after:
            assert after.width / after.height == pytest.approx(before.width / before.height, rel=0.02)
            seen = after.convert("RGB").resize(before.size)
            assert seen.tobytes() != before.convert("RGB").tobytes()
        assert original.name in outcome.out


@pytest.mark.slow
def test_predictions_are_in_coco_results_format(lab, predicted):
    _, found, outcome = predicted
    sizes = {int(f.stem): Image.open(f).size for f in (lab / "data" / "val2017").iterdir()}
    assert found and {d["image_id"] for d in found} <= set(sizes)
    for d in found:
        assert set(d) == {"image_id", "category_id", "bbox", "score", "segmentation", "file_name"}
        width, height = sizes[d["image_id"]]
        x, y, w, h = d["bbox"]
        assert 0 <= x and 0 <= y and w >= 0 and h >= 0 and x + w <= width + 1e-3 and y + h <= height + 1e-3
        assert 1 <= d["category_id"] <= NUM_CLASSES and 0.1 <= d["score"] <= 1
        assert d["segmentation"]["size"] == [height, width]
    counts = [int(n) for n in re.findall(r": (\d+) found", outcome.out)]
    assert len(counts) == NUM_VAL and sum(counts) == len(found)


@pytest.mark.slow
def test_pycocotools_loads_the_predictions(lab, predicted):
    _, found, _ = predicted
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(lab / "data" / "annotations" / "instances_val2017.json"))
        loaded = truth.loadRes(str(predicted[0] / "predictions.json"))
    assert len(loaded.getAnnIds()) == len(found)
    for annotation in loaded.loadAnns(loaded.getAnnIds())[:5]:
        assert loaded.annToMask(annotation).sum() > 0


@pytest.mark.slow
def test_unreadable_picture_is_named_and_the_others_are_drawn(lab, predicted, scratch):
    (scratch / "in").mkdir()
    shutil.copy(next((lab / "pictures").glob("*.jpg")), scratch / "in" / "good.jpg")
    (scratch / "in" / "bad.jpg").write_bytes(b"no picture")
    arguments = ["--device", "cpu", "--weights-path", "first/model_0.pth", "--img-path", scratch / "in"]
    outcome = run(lab, "predict.py", *arguments, "--output-dir", scratch / "out")
    assert_refused(outcome, "bad.jpg")
    assert [f.name for f in (scratch / "out").iterdir()] == ["good.png"]


@pytest.mark.slow
def test_without_picture_one_of_the_validation_set_is_taken(lab, first, scratch):
    arguments = ["--device", "cpu", "--weights-path", "first/model_0.pth", "--output-dir", scratch]
    succeeded(run(lab, "predict.py", *arguments))
    (drawn,) = scratch.iterdir()
    assert (lab / "data" / "val2017" / f"{drawn.stem}.jpg").is_file()


# ------------------------------------------------------------------------------------------------ several processes


@pytest.fixture(scope="module")
def together(lab: Path, start: Path) -> tuple[Path, Outcome]:
    """The folder that two processes leave after three steps of two pictures, one each."""
    arguments = [*SMALL, "--batch-size", "1", "--output-dir", "together", "--epochs", "1", "--pretrain", "start.pth"]
    return lab / "together", succeeded(forked_group(2, lab, "train.py", *arguments))


def forked_group(processes: int, folder: Path, script: str, *arguments: str) -> Outcome:
    runs = start_group(processes, script, arguments, folder, dict.fromkeys(range(processes), ThinNetwork()))
    codes = [each.wait() for each in runs]
    said = "".join(each.said for each in runs)
    return Outcome(max(codes, key=abs), said, said)


@pytest.mark.slow
def test_two_processes_write_results_once(together):
    folder, outcome = together
    for name in ("det_results.txt", "seg_results.txt"):
        assert re.fullmatch(LINE_OF_EPOCH_0, (folder / name).read_text())
    assert [s["step"] for s in log_of(folder)] == [1, 2, 3]
    assert outcome.out.count("epoch 0: box AP") == 1 and outcome.out.count("done: ") == 1
    assert {f.name for f in folder.iterdir() if f.suffix in (".pth", ".tmp")} == {"model_0.pth", "model_best.pth"}


@pytest.fixture(scope="module")
def validated_by(lab: Path, together: tuple[Path, Outcome]) -> Callable[[int], dict[str, list[str]]]:
    """The recorded numbers for a number of processes."""
    arguments = [*ON_CPU, "--weights-path", "together/model_0.pth"]
    tables = {}

    def numbers(processes: int) -> dict[str, list[str]]:
        if processes not in tables:
            folder = f"validated_by_{processes}"
            if processes == 1:
                with described_as_the_only_process():
                    succeeded(run(lab, "validation.py", *arguments, "--output-dir", folder))
            else:
                outcome = forked_group(processes, lab, "validation.py", *arguments, "--output-dir", folder)
                assert succeeded(outcome).out.count("written to") == 1
            tables[processes] = recorded(lab / folder / "record_mAP.txt")
        return tables[processes]

    return numbers


@contextlib.contextmanager
def described_as_the_only_process() -> Iterator[None]:
    """What torchrun tells a process that it starts alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_validation_gives_the_same_numbers_with_any_number_of_processes(validated_by, processes):
    assert validated_by(processes) == validated_by(1)


@pytest.mark.slow
def test_training_with_two_processes_reports_what_its_checkpoint_gives(together, validated_by):
    """Both processes evaluate with the weights that are saved, BatchNorm's statistics among them."""
    assert trained(together[0]) == validated_by(1)
    assert any(float(v) > 0 for v in trained(together[0])["boxes"])


# ------------------------------------------------------------------------------------- processes, with the real network


@pytest.mark.long
def test_training_validation_and_prediction_as_processes_and_torchvisions_state_dict_validates_alike(lab, scratch):
    def python(script: str, *arguments: str) -> Outcome:
        return succeeded(started([sys.executable, str(ROOT / script), *arguments], lab))

    python("train.py", *SMALL, "--pretrain", "False", "--max-steps", "1", "--output-dir", str(scratch))
    weights = ["--weights-path", str(scratch / "model_0.pth")]
    python("validation.py", *ON_CPU, *weights)
    assert recorded(scratch / "record_mAP.txt") == trained(scratch)
    python("predict.py", "--device", "cpu", *weights, "--output-dir", str(scratch / "drawn"))
    assert len(list((scratch / "drawn").iterdir())) == 1

    peer = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)
    peer.load_state_dict(torch.load(scratch / "model_0.pth", weights_only=True)["model"], strict=True)
    torch.save(peer.state_dict(), scratch / "peer.pth")
    plain = ["--weights-path", "peer.pth", "--data-path", lab / "data", "--min-size", "64", "--max-size", "96"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_utils.models.build_model", build_model)
        (scratch / "plain").mkdir()
        succeeded(run(scratch, "validation.py", *ON_CPU, *plain, "--output-dir", "plain"))
    assert recorded(scratch / "plain" / "record_mAP.txt") == recorded(scratch / "record_mAP.txt")


@pytest.mark.long
@pytest.mark.parametrize("amp", [[], ["--amp"]], ids=["float32", "amp"])
def test_stopped_and_resumed_under_torchrun_with_the_real_network_it_ends_in_the_very_same_weights(lab, scratch, amp):
    ends = []
    for name, stops in (("straight", [3]), ("stopped", [1, 3])):
        words = [*SMALL, *amp, "--batch-size", "1", "--pretrain", "False", "--lr", "0.001", "--output-dir"]
        for step in stops:
            more = [str(scratch / name), "--resume", "auto", "--max-steps", str(step)]
            succeeded(under_torchrun(2, lab, "train_multi_GPU.py", *words, *more))
        ends.append(torch.load(scratch / name / "model_0.pth", weights_only=True))
    for key in ("model", "optimizer", "progress"):
        assert_equal_content(ends[0][key], ends[1][key], key)


# ----------------------------------------------------------------------------------------------------- wrong input


def demo_copy(lab: Path, folder: Path) -> Path:
    shutil.copytree(lab / "data", folder / "copy")
    return folder / "copy"


def train_on(lab: Path, data: str | Path, *arguments: str | Path) -> Outcome:
    """One step on other data; refused, so that nothing lies in `refused` afterwards."""
    common = ["--pretrain", "False", "--max-steps", "1", "--output-dir", "refused"]
    outcome = run_thin(lab, "train.py", *SMALL, *common, "--data-path", data, *arguments)
    shutil.rmtree(lab / "refused", ignore_errors=True)
    return outcome


@pytest.mark.long
def test_refusal_is_one_line_and_status_2_in_a_process_of_its_own(lab):
    outcome = started([sys.executable, str(ROOT / "train.py"), *SMALL, "--data-path", "nowhere"], lab)
    assert_refused(outcome, "nowhere", "--data-path")
    assert outcome.out == ""


@pytest.mark.slow
def test_folder_that_is_not_there_is_refused(lab, first):
    assert_refused(train_on(lab, "no/such/folder"), "no/such/folder", "--data-path")
    for script, option in (("validation.py", "--data-path"), ("predict.py", "--img-path")):
        outcome = run(lab, script, "--device", "cpu", "--weights-path", "first/model_0.pth", option, "no/such")
        assert_refused(outcome, "no/such")


def test_folder_of_no_layout_is_refused_with_what_it_holds_and_what_is_expected(lab, scratch):
    assert_refused(train_on(lab, scratch), str(scratch), "holds no files", "COCO", "YOLO", "Pascal VOC")


def test_a_validation_split_alone_is_not_trained_on(lab, scratch):
    data = demo_copy(lab, scratch)
    (data / "annotations" / "instances_train2017.json").unlink()
    assert_refused(train_on(lab, data), "instances_val2017.json", "only a val split", "--train-json")


@pytest.mark.slow
def test_a_training_split_alone_is_divided_which_is_said(lab, scratch):
    data = demo_copy(lab, scratch)
    (data / "annotations" / "instances_val2017.json").unlink()
    outcome = succeeded(train_on(lab, data, "--output-dir", scratch / "out", "--max-steps", "1"))
    assert "not split; " in outcome.out and "--val-fraction 0.2" in outcome.out
    assert json.loads((scratch / "out" / "args.json").read_text())["val_fraction"] == 0.2
    again = succeeded(run(lab, "validation.py", *ON_CPU, "--weights-path", scratch / "out" / "model_0.pth"))
    (held_out,) = re.findall(r"not split; ([1-3]) of 6 images", outcome.out)
    assert re.search(rf"{held_out} images? that the training held out (is|are) used for validation", again.out)


@pytest.mark.parametrize("content", ['{"images": [', "[1, 2]", "{}", "\x00\x01"])
def test_broken_annotation_file_is_refused(lab, scratch, content):
    data = demo_copy(lab, scratch)
    (data / "annotations" / "instances_train2017.json").write_text(content)
    assert_refused(train_on(lab, data), "instances_train2017.json")


def test_truncated_annotation_file_is_refused_with_the_place(lab, scratch):
    data = demo_copy(lab, scratch)
    file = data / "annotations" / "instances_val2017.json"
    file.write_bytes(file.read_bytes()[:-500])
    assert_refused(train_on(lab, data), "instances_val2017.json", "char")


def edited(lab: Path, folder: Path, edit: Callable[[dict], None], splits: tuple[str, ...] = ("train", "val")) -> Path:
    data = demo_copy(lab, folder)
    for split in splits:
        file = data / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))
    return data


def test_annotation_of_an_unknown_category_is_refused(lab, scratch):
    data = edited(lab, scratch, lambda c: c["annotations"][0].update(category_id=99), ("train",))
    assert_refused(train_on(lab, data), "instances_train2017.json", "annotation", "categories that are not in", "99")


def test_data_without_categories_are_refused(lab, scratch):
    data = edited(lab, scratch, lambda c: c.update(categories=[], annotations=[]))
    assert_refused(train_on(lab, data), "instances_train2017.json")


def test_data_without_usable_objects_are_refused(lab, scratch):
    data = edited(lab, scratch, lambda c: c.update(annotations=[]), ("train",))
    assert_refused(train_on(lab, data), "no image with a usable object")


def test_class_beyond_num_classes_is_refused(lab):
    assert_refused(train_on(lab, "data", "--num-classes", str(NUM_CLASSES - 1)), CLASS_NAMES[-1], "--num-classes")


def test_missing_picture_is_refused_by_name(lab, scratch):
    data = demo_copy(lab, scratch)
    for picture in (data / "train2017").iterdir():
        picture.unlink()
    assert_refused(train_on(lab, data), ".jpg", "train2017")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_unreadable_picture_is_refused_by_name(lab, scratch, workers):
    data = demo_copy(lab, scratch)
    for picture in (data / "train2017").iterdir():
        picture.write_bytes(b"no picture")
    assert_refused(train_on(lab, data, "-j", workers), ".jpg", "train2017")


SIZE_IN_XML = "<size><width>9</width><height>9</height></size>"


def make_voc_list(folder: Path, xml: str) -> Path:
    base = folder / "VOCdevkit" / "VOC2012"
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    (base / "Annotations").mkdir()
    for kind in ("SegmentationObject", "SegmentationClass"):
        (base / kind).mkdir()
        Image.new("P", (9, 9)).save(base / kind / "2007_000001.png")
    (base / "JPEGImages").mkdir()
    Image.new("RGB", (9, 9)).save(base / "JPEGImages" / "2007_000001.jpg")
    for split in ("train", "val"):
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("2007_000001\n")
    (base / "Annotations" / "2007_000001.xml").write_text(xml)
    return folder


@pytest.mark.parametrize(
    "xml, named",
    [
        ("<annotation><size><width>5</width>", "not readable as XML"),
        ("<annotation></annotation>", "size"),
        (f"<annotation>{SIZE_IN_XML}<object><name>cow</name></object></annotation>", "no bndbox"),
        (f"<annotation>{SIZE_IN_XML}<object><name>dog</name></object></annotation>", "dog"),
    ],
)
def test_broken_xml_is_refused(lab, scratch, xml, named):
    assert_refused(train_on(lab, make_voc_list(scratch, xml)), "2007_000001.xml", named)


def test_missing_xml_is_refused(lab, scratch):
    (make_voc_list(scratch, "") / "VOCdevkit/VOC2012/Annotations/2007_000001.xml").unlink()
    assert_refused(train_on(lab, scratch), "VOC2012", "Annotations/*.xml")


@pytest.mark.parametrize(
    "option, value",
    [
        ("--seed", "-1"),
        ("--workers", "-1"),
        ("--start-epoch", "-1"),
        ("--epochs", "0"),
        ("--batch-size", "0"),
        ("--max-steps", "0"),
        ("--amp", "maybe"),
        ("--device", "abacus"),
    ],
)
def test_value_that_makes_no_sense_is_refused_with_its_option(lab, option, value):
    outcome = train_on(lab, "data", option, value)
    assert outcome.code == 2 and "Traceback" not in outcome.err, outcome.err[-2000:]
    last = outcome.err.splitlines()[-1]
    assert "error: " in last and option in last


# ---------------------------------------------------------------------------------------------------- wrong weights


@pytest.mark.slow
def test_checkpoint_of_another_class_count_is_refused(lab, first, scratch):
    def add(content: dict) -> None:
        content["categories"].append({"id": NUM_CLASSES + 1, "name": "ring"})

    data = edited(lab, scratch, add)
    weights_path = first[0] / "model_0.pth"
    assert_refused(
        train_on(lab, data, "--resume", weights_path), "model_0.pth", f"{NUM_CLASSES} classes", f"{NUM_CLASSES + 1}"
    )
    succeeded(run(lab, "validation.py", *ON_CPU, "--weights-path", weights_path, "--data-path", data))  # no ring occurs
    for script in ("validation.py", "predict.py"):
        outcome = run(lab, script, "--device", "cpu", "--weights-path", weights_path, "--num-classes", "7")
        assert_refused(outcome, "model_0.pth", f"{NUM_CLASSES} classes", "--num-classes")


@pytest.mark.slow
def test_classes_that_the_weights_lack_are_named_and_others_matched_by_name(lab, first, scratch):
    data = edited(lab, scratch, lambda c: c["categories"][1].update(name="hexagon"))
    words = ["--weights-path", "first/model_0.pth", "--output-dir", scratch / "out"]
    outcome = succeeded(run(lab, "validation.py", *ON_CPU, *words, "--data-path", data))
    assert "lacks are left out: 'hexagon'" in outcome.err


@pytest.mark.slow
def test_weights_without_a_class_of_the_data_are_refused(lab, first, scratch):
    data = edited(lab, scratch, lambda c: [each.update(name=f"x{each['id']}") for each in c["categories"]])
    outcome = run(lab, "validation.py", *ON_CPU, "--weights-path", "first/model_0.pth", "--data-path", data)
    assert_refused(outcome, "none of its classes ('x1', 'x2', 'x3') is known to first/model_0.pth")


@pytest.fixture(scope="module")
def truncated(lab: Path, first: tuple[Path, Outcome]) -> Path:
    data = (first[0] / "model_0.pth").read_bytes()
    (lab / "truncated.pth").write_bytes(data[: len(data) // 2])
    return lab / "truncated.pth"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--resume", "--pretrain"])
def test_truncated_checkpoint_is_refused_by_training(lab, truncated, option):
    assert_refused(train_on(lab, "data", option, truncated), "truncated.pth", "broken")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["validation.py", "predict.py"])
def test_truncated_checkpoint_is_refused(lab, truncated, script):
    assert_refused(run(lab, script, "--device", "cpu", "--weights-path", truncated), "truncated.pth", "broken")


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04"])
def test_file_that_is_no_weight_file_is_refused(lab, scratch, content):
    (scratch / "junk.pth").write_bytes(content)
    assert_refused(run(lab, "validation.py", *ON_CPU, "--weights-path", scratch / "junk.pth"), "junk.pth")


class Trap:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_weight_file_is_refused_and_does_not_run(lab, scratch, form):
    sprung, path = scratch / "sprung", scratch / "trap.pth"
    content = {"model": {"weight": Trap(sprung)}}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for script, option in (("train.py", "--pretrain"), ("train.py", "--resume"), ("validation.py", "--weights-path")):
        common = [*SMALL, "--output-dir", scratch / "out"] if script == "train.py" else ON_CPU
        assert_refused(run(lab, script, *common, option, path), "trap.pth")
    assert_refused(run(lab, "predict.py", "--device", "cpu", "--weights-path", path), "trap.pth")
    assert not sprung.exists()
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert sprung.exists()  # it was a trap


def test_weights_that_are_not_there_are_refused(lab, scratch):
    assert_refused(train_on(lab, "data", "--pretrain", "gone.pth"), "gone.pth", "--pretrain")
    assert_refused(train_on(lab, "data", "--resume", "gone.pth"), "gone.pth")
    for script in ("validation.py", "predict.py"):
        assert_refused(run(lab, script, "--device", "cpu", "--weights-path", "gone.pth"), "gone.pth")
        assert_refused(run(scratch, script, "--device", "cpu"), "save_weights", "--weights-path")


def test_weights_of_a_classifier_are_refused_where_a_detector_is_needed(lab, scratch):
    torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, scratch / "classifier.pth")
    outcome = run(lab, "validation.py", *ON_CPU, "--weights-path", scratch / "classifier.pth")
    assert_refused(outcome, "classifier.pth", "Mask R-CNN")


@pytest.mark.slow
def test_without_network_published_weights_are_named_with_their_address(lab, scratch, monkeypatch):
    """The address leads nowhere, so that nothing is fetched where there is a network."""
    published = weights.MASK_RCNN_COCO
    address = "https://weights.invalid/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    assert published.name == "maskrcnn_resnet50_fpn_coco.pth" and published.url.endswith(address.rpartition("/")[2])
    monkeypatch.setattr(weights, "MASK_RCNN_COCO", PublishedFile(published.name, address))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    outcome = run(scratch, "train.py", *SMALL, "--data-path", lab / "data", "--pretrain", "True")
    assert_refused(outcome, address, published.name, "--pretrain False")
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_published_weights_are_looked_for_unless_told_otherwise(lab, scratch, monkeypatch):
    """On data that are not the demo's."""

    def looked_for(published: PublishedFile) -> None:
        raise InputError(f"looked for {published.name}")

    monkeypatch.setattr(weights, "download", looked_for)
    assert_refused(run(scratch, "train.py", *SMALL, "--data-path", lab / "data"), "looked for maskrcnn_resnet50")
