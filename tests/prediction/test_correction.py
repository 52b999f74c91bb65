"""The correction loop: predict, correct in labelme's format, train on it, predict again; and what stops a run."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from predict import Predictor
from tests.helpers.commands import assert_refused, run, run_thin, succeeded
from tests.helpers.thin_weights import NAMES, noise_image, thin_networks, write_thin_weights
from train_utils.weight_files.weights import read_weight_file

WORDS = ["--device", "cpu", "--weights-path", "thin.pth", "--box-thresh", "0.3", "--img-path", "photos"]
TRAIN = ["--device", "cpu", "--min-size", "64", "--max-size", "96", "--rois-per-image", "8", "--batch-size", "2"]
TRAIN += ["--workers", "0", "--pretrain", "thin.pth", "--max-steps", "2"]
IMAGES = 5


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("loop")
    (folder / "photos" / "day 1").mkdir(parents=True)
    for k in range(IMAGES):
        noise_image(k, (90, 70)).save(folder / "photos" / "day 1" / f"{k}.png")
    with thin_networks():
        write_thin_weights(folder / "thin.pth")
        yield folder


@pytest.fixture(scope="module")
def predicted(lab: Path) -> Path:
    succeeded(run(lab, "predict.py", *WORDS, "--save", "labelme", "coco"))
    return lab / "predictions"


@pytest.mark.slow
def test_predictions_are_corrected_and_trained_on_with_the_same_classes(lab: Path, predicted: Path) -> None:
    file = predicted / "labelme" / "day 1" / "2.json"
    content = json.loads(file.read_text())
    corner = [[2.0, 3.0], [30.0, 3.0], [30.0, 40.0]]
    content["shapes"] = [{"label": "pear", "points": corner, "group_id": None, "shape_type": "polygon", "flags": {}}]
    file.write_text(json.dumps(content))
    outcome = succeeded(
        run_thin(lab, "train.py", *TRAIN, "--data-path", predicted / "labelme", "--output-dir", "corrected")
    )
    assert "labelme layout, 3 classes: apple, pear, water melon" in outcome.out
    assert "newly initialised" not in outcome.out
    trained = read_weight_file(lab / "corrected" / "model_0.pth")
    assert trained["class_names"] == NAMES
    words = [
        "--weights-path",
        "corrected/model_0.pth",
        "--device",
        "cpu",
        "--box-thresh",
        "0.1",
        "--output-dir",
        "again",
    ]
    succeeded(run(lab, "predict.py", *words, "--img-path", "photos", "--save", "labelme"))
    assert json.loads((lab / "again" / "labelme" / "day 1" / "2.json").read_text())["shapes"]


@pytest.mark.slow
def test_a_coco_dataset_of_predictions_is_trained_and_evaluated_on(lab: Path, predicted: Path) -> None:
    run_on = ["--data-path", predicted / "coco", "--val-fraction", "0.4"]
    succeeded(run_thin(lab, "train.py", *TRAIN, *run_on, "--output-dir", "from_coco"))
    assert len((lab / "from_coco" / "det_results.txt").read_text().splitlines()) == 1


@pytest.mark.slow
def test_what_was_corrected_is_not_overwritten_by_predicting_again(lab: Path, predicted: Path) -> None:
    before = {path: path.read_bytes() for path in predicted.rglob("*.json")}
    outcome = run(lab, "predict.py", *WORDS, "--save", "labelme")
    assert_refused(outcome, "0.json: exists already, perhaps corrected by hand", "--output-dir")
    assert {path: path.read_bytes() for path in predicted.rglob("*.json")} == before
    succeeded(run(lab, "predict.py", *WORDS, "--save", "coco"))


def test_ctrl_c_leaves_complete_files_of_what_was_done(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find, calls = Predictor.find, []

    def interrupted(self, images):
        calls.append(images)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return find(self, images)

    monkeypatch.setattr(Predictor, "find", interrupted)
    outcome = run(lab, "predict.py", *WORDS, "-b", "1", "--save", "json", "csv", "--output-dir", "stopped")
    assert outcome.code == 130 and "Traceback" not in outcome.err
    names = {entry["file_name"] for entry in json.loads((lab / "stopped" / "predictions.json").read_text())}
    drawn = {f"day 1/{path.stem}.png" for path in (lab / "stopped" / "day 1").iterdir()}
    assert names <= drawn and 0 < len(names) <= 3 and f"of {IMAGES} images" in outcome.err


def test_an_output_folder_that_cannot_be_written_is_named(lab: Path) -> None:
    (lab / "file").write_text("no folder")
    assert_refused(run(lab, "predict.py", *WORDS, "--output-dir", "file"), "file: exists, and is not a folder")
    (lab / "full").mkdir()
    (lab / "full" / "day 1").write_text("no folder either")
    assert_refused(run(lab, "predict.py", *WORDS, "--output-dir", "full"), "full/day 1: exists, and is not a folder")
