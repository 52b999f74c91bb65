"""More than 100 objects in an image: found with --detections, scored beside COCO's metrics, and named in a warning."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from my_dataset_coco import coco_object
from network_files.test_time_augmentation import TestTimeAugmentation
from tests.helpers.commands import run, succeeded
from tests.helpers.official_metrics import official_evaluation
from tests.helpers.square_finder import PITCH, SQUARES, corners, write_square_finder, write_squares
from tests.helpers.thin_weights import thin_networks
from train_utils.classes import ClassTable
from train_utils.metrics.coco_evaluation import CocoEvaluator, MetricsOfAll, coco_results

ON_CPU = ["--device", "cpu", "--workers", "0"]
WARNING = f"up to {SQUARES} objects in an image; the network stops at 100 detections per image; --detections allows"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder / "data")
    with thin_networks():
        write_square_finder(folder / "finder.pth", folder / "data")
        yield folder


def numbers(text: str) -> dict[str, list[float]]:
    """The values of the rows of both tables, boxes' first, by the name of the row."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name, _, rest = line.strip().rpartition("  ") if "of up to" not in line else line.strip().partition("  ")
        if name.strip() in ("AP", "AR 100", "AP all", "AR all"):
            found.setdefault(name.strip(), []).append(float(rest.split()[0]))
    return found


@pytest.mark.slow
def test_all_squares_are_scored_with_the_option_and_cocos_metrics_stay(lab):
    words = ["--weights-path", "finder.pth", *ON_CPU]
    plain, more = (succeeded(run(lab, "validation.py", *words, *d)) for d in ([], ["--detections", "300"]))
    assert WARNING in plain.err and "objects in an image" not in more.err
    before, after = numbers(plain.out), numbers(more.out)
    assert before.keys() == {"AP", "AR 100"} and after.keys() == {"AP", "AR 100", "AP all", "AR all"}
    assert {name: after[name] for name in before} == before
    assert before["AR 100"][0] == pytest.approx(100 / SQUARES, abs=1e-4)
    assert after["AR all"][0] == after["AP all"][0] == 1.0 and after["AR all"][1] > 0.75
    assert f"of up to {SQUARES} detections per image" in more.out


@pytest.mark.slow
def test_train_py_warns_and_keeps_the_number_in_the_checkpoint(lab):
    words = ["--pretrain", "finder.pth", "--data-path", "data", "--test-only", *ON_CPU]
    words += ["--min-size", "480", "--max-size", "800", "--proposals", "1000"]
    plain = succeeded(run(lab, "train.py", *words))
    assert plain.err.count(WARNING) == 2  # of both splits
    more = succeeded(run(lab, "train.py", *words, "--detections", "300"))
    assert "objects in an image" not in more.err and numbers(more.out)["AR all"][0] == 1.0


@pytest.mark.slow
def test_predict_py_finds_more_than_200_squares(lab):
    words = ["--weights-path", "finder.pth", "--device", "cpu", "--img-path", "data/val2017/1.png", "--save-json"]
    for options, expected in ([], 100), (["--detections", "300"], SQUARES):
        succeeded(run(lab, "predict.py", *words, *options))
        found = json.loads((lab / "predictions" / "predictions.json").read_text())
        assert len(found) == expected
    places = {tuple(round(v) for v in entry["bbox"][:2]) for entry in found}
    assert places == set(corners()) and len(places) > 200


def test_metrics_of_all_detections_are_the_same_from_both_libraries(lab):
    """Of detections that are partly wrong, in an order that is not that of their scores' quality."""
    rng = np.random.default_rng(0)
    boxes = np.array([(x, y, x + 32, y + 32) for x, y in corners()]) + rng.integers(-6, 7, (SQUARES, 4))
    codes = [{"size": [480, 800], "counts": b"0"}] * SQUARES
    scores = np.sort(rng.random(SQUARES))[::-1]
    detections = {1: {"boxes": boxes, "labels": np.ones(SQUARES, dtype=int), "scores": scores, "codes": codes}}
    assert len(coco_results(detections, {1: 1}, 100)["bbox"]) == 100
    results = coco_results(detections, {1: 1})["bbox"]
    file = str(lab / "data" / "annotations" / "instances_val2017.json")
    evaluator = CocoEvaluator(coco_object(file), ClassTable({1: "square"}, {1: 1}))
    found = evaluator.score(detections, ["bbox"])["bbox"].of_all
    theirs = official_evaluation(Path(file), results, "bbox", most=SQUARES).eval
    assert isinstance(found, MetricsOfAll) and 0.1 < found.ap < found.recall < 0.95
    expected = [float(theirs[name][..., 0, -1].mean()) for name in ("precision", "recall")]
    assert (found.ap, found.recall) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_tta_looks_at_each_image_in_six_versions_and_finds_all_squares(lab, monkeypatch):
    seen = []
    versions = TestTimeAugmentation.versions

    def counted(self, image):
        for version in versions(self, image):
            seen.append((version.is_mirrored, version.size))
            yield version

    monkeypatch.setattr(TestTimeAugmentation, "versions", counted)
    words = ["--weights-path", "finder.pth", "--device", "cpu", "--detections", "300", "--tta"]
    more = succeeded(run(lab, "validation.py", *words, "--workers", "0"))
    sizes = ((360, 600), (480, 800), (600, 1000))
    assert seen == [(is_mirrored, size) for size in sizes for is_mirrored in (False, True)]
    assert numbers(more.out)["AR all"][0] > 0.2  # boxes of other sizes are looser: the weights are made for one
    succeeded(run(lab, "predict.py", *words, "--img-path", "data/val2017/1.png", "--save-json"))
    assert len(seen) == 12
    found = json.loads((lab / "predictions" / "predictions.json").read_text())
    distances = np.array([entry["bbox"][:2] for entry in found])[:, None] - np.array(corners())
    assert np.abs(distances).max(2).min(0).max() < PITCH / 4
