"""Score thresholds: read from the command line, found by validation, stored in the checkpoint, used in prediction."""

from pathlib import Path

import numpy as np
import pytest
import torch

from my_dataset_coco import coco_object
from onnx_files.onnx_model import Description
from prediction.options import PredictorSettings
from prediction.predictor import Predictor
from prediction.steps import ScoreThresholds
from report.average_precision import class_results
from report.eval_data import make_eval_data
from report.matching import find_overlaps, match
from tests.helpers.report_cases import random_truth_and_results
from tests.helpers.stub_detector import StubDetector, draw_shapes, stub_trained
from train_utils.classes import ClassTable
from train_utils.errors import InputError
from train_utils.metrics.coco_evaluation import ClassMetrics, Metrics, best_thresholds, score_results
from train_utils.weight_files.weights import read_weight_file, write_thresholds

NAMES = {1: "person", 2: "car", 4: "traffic light"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.3, [0.3, 0.3, 0.3]),
        (["0.3"], [0.3, 0.3, 0.3]),
        ("best", [0.9, 0.8, 0.5]),  # validation knows none for the traffic light
        (["best", "0.2"], [0.9, 0.8, 0.2]),
        (["person=0.7", "traffic light=0.4"], [0.7, 0.5, 0.4]),
        (["car=0.1", "best", "0.6"], [0.9, 0.1, 0.6]),  # in any order
        ({"car": 0.25}, [0.5, 0.25, 0.5]),
    ],
    ids=str,
)
def test_thresholds_per_class(given, expected: list[float]) -> None:
    thresholds = ScoreThresholds(given, NAMES, {1: 0.9, 2: 0.8}, "weights.pth")
    assert thresholds(np.array([1, 2, 4])).tolist() == expected


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("dog=0.5", "weights.pth has no class 'dog'"),
        ("person=1.5", "--box-thresh person=1.5: give a score from 0 to 1"),
        (["0.3", "many"], "--box-thresh many: give a score"),
        ("best", "weights.pth: holds no thresholds.*--save-thresholds"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_named(given, named: str) -> None:
    with pytest.raises(InputError, match=named):
        ScoreThresholds(given, NAMES, {}, "weights.pth")


def test_a_predictor_shows_what_reaches_its_classs_threshold() -> None:
    image = draw_shapes((60, 50), [(5, 5, 30, 30), (35, 10, 55, 40)])
    everything = Predictor.of_trained(stub_trained(StubDetector()), PredictorSettings(box_thresh=0))(image)
    names = set(everything.names)
    assert len(names) == 2 and everything.scores.max() < 1
    chosen = sorted(names)[0]
    trained = stub_trained(StubDetector())
    label = next(label for label, name in trained.classes.names.items() if name == chosen)
    trained.content["score_thresholds"] = {label: 1.0}
    for given in ([0, f"{chosen}=1"], [0, "best"]):
        found = Predictor.of_trained(trained, PredictorSettings(box_thresh=given))(image)
        assert set(found.names) == names - {chosen}


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_of_validation_lies_below_the_best_score_of_the_report(seed: int) -> None:
    truth, results = random_truth_and_results(seed, images=20)
    results = [entry | {"score": (i * 7919 % 10007) / 10007} for i, entry in enumerate(results)]  # no equal scores
    ids = {k: category["id"] for k, category in enumerate(truth["categories"], start=1)}
    table = ClassTable({k: f"class {k}" for k in ids}, ids)
    found = score_results(coco_object(truth), results, "bbox", table)
    data = make_eval_data(truth, {"bbox": results}, {})
    matching = match(data, find_overlaps(data, "bbox"))
    exact = class_results(data, matching)
    assert max(result.objects for result in exact) <= 100 and len(found.classes) == 3
    for k, (of_class, result) in enumerate(zip(found.classes, exact, strict=True)):
        scores = data.detections.scores[data.detections.classes == k]
        assert of_class.threshold == (result.threshold + scores[scores < result.threshold].max(initial=0)) / 2
    # The common score is found among 201 ones, with interpolated precision.
    order = np.argsort(-data.detections.scores)
    hits = (matching.objects[0] >= 0)[order].cumsum()
    counted = (~matching.ignored[0])[order].cumsum()
    f1 = 2 * hits / (sum(result.objects for result in exact) + counted)
    assert f1[(data.detections.scores >= found.threshold).sum() - 1] > 0.85 * f1.max()  # scores are mere chance


def test_a_class_with_few_objects_gets_the_common_score() -> None:
    classes = [ClassMetrics(1, "a", 30, 0.5, 0.5, 0.8), ClassMetrics(2, "b", 29, 0.5, 0.5, 0.7)]
    classes += [ClassMetrics(3, "c", 50, 0.0, 0.0, None), ClassMetrics(4, "d", 0, -1, -1, None)]
    masks = Metrics([0.5] * 12, classes, threshold=0.4)
    assert best_thresholds({"bbox": Metrics([0.5] * 12, []), "segm": masks}) == {1: 0.8, 2: 0.4, 3: 0.4, 4: 0.4}
    assert best_thresholds({"bbox": Metrics([0.0] * 12, classes)}) == {}


def test_thresholds_travel_in_a_checkpoint_and_only_there(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "model_config": {}, "class_names": {1: "a"}}, tmp_path / "model_1.pth")
    write_thresholds(tmp_path / "model_1.pth", {1: 0.25}, tmp_path / "model_best.pth")
    content = read_weight_file(tmp_path / "model_best.pth")
    assert content["score_thresholds"] == {1: 0.25} and content["class_names"] == {1: "a"}
    assert "score_thresholds" not in read_weight_file(tmp_path / "model_1.pth")
    torch.save({"w": torch.ones(2)}, tmp_path / "published.pth")
    with pytest.raises(InputError, match="published.pth: only a checkpoint of train.py"):
        write_thresholds(tmp_path / "published.pth", {1: 0.25}, tmp_path / "published.pth")


def test_thresholds_travel_in_the_metadata_of_an_onnx_file() -> None:
    about = Description({1: "a"}, {1: 7}, {"arch": "v1"}, {"score": 0.05}, False, "apply", {1: 0.25})
    metadata = about.to_metadata()
    assert Description.from_metadata(metadata) == about
    del metadata["class_thresholds"]  # a file of an earlier version
    assert Description.from_metadata(metadata).class_thresholds == {}
