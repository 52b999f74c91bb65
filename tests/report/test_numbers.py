"""The report's numbers: hand-made cases worked out on paper, and COCO's own code as an oracle."""

import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from my_dataset_coco import coco_object
from report.analysis import Analysis, analyse
from report.average_precision import all_groups, calibration, class_results, mean_curves
from report.confusion import confusion, describe_errors, score_images
from report.data_statistics import statistics_of
from report.error_kinds import BACKGROUND, BOTH, CLASS, DUPLICATE, LOCATION, RIGHT
from report.eval_data import EvalData
from report.matching import Matching, find_overlaps, match
from report.suspects import DOUBLED, MISSING, NOTHING_THERE, OUTLINE, WRONG_CLASS, find_suspects
from tests.helpers.official_metrics import official_evaluation
from tests.helpers.report_cases import CAT, DOG, OBJECTS, eval_data_of, every_kind_of_error, random_truth_and_results
from tests.helpers.wrong_labels import KINDS as WRONG_KINDS
from tests.helpers.wrong_labels import make_wrong, named
from train_utils.metrics.coco_evaluation import run_cocoeval

KINDS = ("bbox", "segm")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def data(kind: str) -> EvalData:
    truth, results = every_kind_of_error()
    return eval_data_of(truth, {kind: results[kind]})


@pytest.fixture
def analysis(data: EvalData, kind: str) -> Analysis:
    return analyse(data, kind)


def matching_of(data: EvalData, kind: str) -> Matching:
    return match(data, find_overlaps(data, kind))


# ------------------------------------------------------------------------------------------- each kind of error once


def test_each_detection_has_its_kind_of_error(data: EvalData, analysis: Analysis):
    kinds = analysis.errors.kinds.tolist()
    assert kinds == [RIGHT, DUPLICATE, CLASS, LOCATION, BOTH, RIGHT, BACKGROUND, RIGHT]
    assert analysis.errors.targets.tolist() == [0, 0, 1, 2, 3, 4, -1, 5]
    assert analysis.errors.ious == pytest.approx([1, 0.8, 1, 1 / 3, 1 / 3, 1, 0, 1])
    assert analysis.errors.missed.tolist() == [False, False, False, True, False, False]
    assert set(analysis.errors.counts().values()) == {1}


def test_repairs_gain_what_they_gain_on_paper(analysis: Analysis):
    """Cats: right, duplicate, class, both, right: precision 1 to recall 0.5, then 2/5. Dogs: 0. Birds: 1/2 to 0.5."""
    cats, birds = 51 + 50 * 2 / 5, 51 / 2  # sums over the 101 recalls
    assert analysis.errors.ap50 == pytest.approx((cats + birds) / 101 / 3)
    fewer_cats = 50 * (2 / 4 - 2 / 5)
    on_paper = {
        "class": fewer_cats + 51,  # a false cat becomes a right dog, the better of two
        "location": 51,
        "both": fewer_cats,
        "duplicate": fewer_cats,
        "background": 51 / 2,  # the one found bird of two then has precision 1
        "missed": 101 / 2 - birds,  # it is the only bird
    }
    assert analysis.errors.costs == pytest.approx({name: value / 303 for name, value in on_paper.items()})


def test_hotcoco_agrees_on_the_costs(data: EvalData, analysis: Analysis, kind: str):
    pytest.importorskip("hotcoco")
    if tuple(map(int, version("hotcoco").split(".")[:2])) < (1, 3):
        pytest.skip("hotcoco before 1.3 removes an error of class instead of giving the detection its object's class")
    truth, results = every_kind_of_error()
    tide = run_cocoeval(coco_object(truth), results[kind], kind).tide_errors()
    theirs = dict(class_="Cls", location="Loc", both="Both", duplicate="Dupe", background="Bkg", missed="Miss")
    for name, title in theirs.items():
        assert analysis.errors.costs[name.rstrip("_")] == pytest.approx(tide["delta_ap"][title])
        assert tide["counts"][title] == 1


def test_a_class_whose_objects_are_all_missed_is_perfect_once_they_are_repaired():
    """Nothing is left to find; hotcoco would leave its AP at 0."""
    truth, results = every_kind_of_error()
    only_cats = [entry for entry in results["bbox"] if entry["category_id"] == CAT]
    costs = analyse(eval_data_of(truth, {"bbox": only_cats}), "bbox").errors
    # The second dog and both birds are missed, the first dog has an error of class: birds become perfect, dogs stay.
    assert costs.missed.tolist() == [False, False, True, True, False, True]
    assert costs.costs["missed"] == pytest.approx(1 / 3)


def test_the_interval_of_ap_is_around_it():
    truth, results = random_truth_and_results(0, images=30)
    found = analyse(eval_data_of(truth, {"bbox": results}), "bbox")
    aps = [*(result.ap for result in found.classes), float(found.curves[2].mean())]
    for ap, (low, high) in zip(aps, found.intervals[0], strict=True):
        assert 0 < low < ap < high < 1


def test_calibration_of_the_hand_made_case(analysis: Analysis):
    """Right: 0.9, 0.45 and 0.3; wrong: 0.8, 0.7, 0.6, 0.5 and 0.4, which shares its range with 0.45."""
    found = analysis.calibration
    assert found.counts.tolist() == [0, 0, 0, 1, 2, 1, 1, 1, 1, 1]
    assert found.right[3:].tolist() == [1, 0.5, 0, 0, 0, 0, 1]
    assert found.error == pytest.approx((0.7 + 2 * 0.075 + 0.5 + 0.6 + 0.7 + 0.8 + 0.1) / 8)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_equals_hotcocos(seed: int):
    truth, results = random_truth_and_results(seed)
    theirs = run_cocoeval(coco_object(truth), results, "bbox").calibration()
    data = eval_data_of(truth, {"bbox": results})
    found = calibration(data, matching_of(data, "bbox"))
    assert found.error == pytest.approx(theirs["ece"], abs=1e-12) and 0 < found.error < 1
    assert found.counts.tolist() == [each["count"] for each in theirs["bins"]]


def test_results_per_class(analysis: Analysis):
    cat, dog, bird = analysis.classes
    assert (cat.objects, dog.objects, bird.objects) == (2, 2, 2)
    assert cat.ap50 == pytest.approx(71 / 101) and dog.ap50 == 0 and bird.ap50 == pytest.approx(25.5 / 101)
    assert (cat.threshold, cat.precision, cat.recall) == (0.9, 1, 0.5)
    assert (bird.threshold, bird.precision, bird.recall, bird.f1) == (0.3, 0.5, 0.5, 0.5)
    assert math.isnan(dog.threshold) and (dog.precision, dog.recall, dog.f1) == (0, 0, 0)


def test_confusion_matrix(data: EvalData, kind: str):
    overlaps = find_overlaps(data, kind)
    pairs = confusion(data, overlaps, match(data, overlaps), score=0.35)  # the bird of 0.3 is below
    assert pairs.matrix.tolist() == [
        [2, 0, 0, 0],
        [1, 0, 0, 1],  # a dog taken for a cat, and one that is found at no IoU of 0.5
        [0, 0, 0, 2],
        [2, 1, 1, 0],
    ]
    words = describe_errors(data, pairs, 0)
    assert words == "dog taken for cat; missed: 2 bird, dog; false: 2 cat, dog, bird"
    scores = score_images(data, pairs)
    assert (scores.right[0], scores.false[0], scores.missed[0]) == (2, 5, 4)
    assert scores.f1[0] == pytest.approx(4 / 13)


def test_a_detection_in_a_crowd_is_no_confusion():
    truth, results = every_kind_of_error()
    crowd = {"id": 9, "image_id": 7, "category_id": DOG, "bbox": [140, 140, 60, 60], "area": 3600, "iscrowd": 1}
    truth["annotations"].append(crowd)
    data = eval_data_of(truth, {"bbox": results["bbox"]})
    overlaps = find_overlaps(data, "bbox")
    pairs = confusion(data, overlaps, match(data, overlaps), score=0.0)
    assert pairs.matrix[3].tolist() == [2, 1, 0, 0]  # the bird on background lies in the crowd
    assert pairs.matrix.sum(axis=1).tolist()[:3] == [2, 2, 2]


def test_suspects_of_the_hand_made_case(data: EvalData, analysis: Analysis):
    suspects = find_suspects(data, analysis.overlaps, analysis.errors)
    found = [(s.kind, round(s.confidence, 3), s.object, s.detection) for s in suspects]
    assert found == [
        (WRONG_CLASS, 0.7, 1, 2),
        (OUTLINE, 0.4, 2, 3),
        (MISSING, 0.4, -1, 6),
        (MISSING, 0.333, -1, 4),
    ]


def test_doubled_annotations_and_annotations_of_nothing_are_suspect():
    boxes = [(CAT, 60 * (i % 3), 60 * (i // 3), 40, 40) for i in range(9)]
    truth, _ = every_kind_of_error()
    template = truth["annotations"][0]
    boxes.append((CAT, 1, 0, 40, 40))  # the first once more
    truth["annotations"] = [
        template | {"id": 100 + i, "category_id": label, "bbox": box, "area": box[2] * box[3]}
        for i, (label, *box) in enumerate(boxes)
    ]
    results = [{"image_id": 7, "category_id": CAT, "score": 0.9, "bbox": list(box)} for _, *box in boxes[:8]]
    data = eval_data_of(truth, {"bbox": results})
    made = analyse(data, "bbox")
    found = {s.kind: s for s in find_suspects(data, made.overlaps, made.errors)}
    assert set(found) == {DOUBLED, NOTHING_THERE}
    assert data.objects.ids[found[DOUBLED].object] == 109
    assert found[DOUBLED].confidence == pytest.approx(39 / 41)
    assert data.objects.ids[found[NOTHING_THERE].object] == 108
    assert found[NOTHING_THERE].confidence == pytest.approx(2 / 3)  # of its third of the sizes


def test_groups_of_objects():
    """Two sizes at two distances from the border: the large ones are found, the small ones are not."""
    truth, _ = every_kind_of_error()
    template = truth["annotations"][0]
    boxes = [(0, 0, 100, 100), (100, 100, 90, 90), (190, 5, 10, 10), (150, 20, 10, 10)]
    truth["annotations"] = [
        template | {"id": i, "bbox": list(box), "area": box[2] * box[3]} for i, box in enumerate(boxes, start=1)
    ]
    results = [{"image_id": 7, "category_id": CAT, "score": 0.9, "bbox": list(box)} for box in boxes[:2]]
    data = eval_data_of(truth, {"bbox": results})
    found = all_groups(data, matching_of(data, "bbox"), "bbox")
    sizes = {g.name: (g.objects, g.ap) for g in found["size"] if g.objects}
    assert sizes == {"under 16": (2, 0), "64-96": (1, pytest.approx(1)), "96-128": (1, pytest.approx(1))}
    borders = {g.name: (g.objects, g.ap) for g in found["border"]}
    assert borders["touches it"] == (2, pytest.approx(51 / 101))
    assert borders["5-15 %"] == (2, pytest.approx(51 / 101))
    crowding = [g.objects for g in found["crowding"]]
    assert crowding == [0, 0, 4, 0, 0]


def test_statistics_of_the_data(data: EvalData):
    statistics = statistics_of(data)
    assert statistics.class_counts.tolist() == [2, 2, 2] and statistics.class_images.tolist() == [1, 1, 1]
    assert statistics.together.tolist() == [[1, 1, 1]] * 3
    assert statistics.per_image.tolist() == [6]
    assert statistics.sizes.tolist() == [40.0] * 6 and statistics.shapes.tolist() == [1.0] * 6


# ------------------------------------------------------------------------------------------------------ COCO's oracle


@pytest.mark.parametrize("seed", range(12))
def test_aps_equal_those_of_cocoeval(seed: int):
    """With crowds, equal scores, and images with more than 100 detections of a class."""
    truth, results = random_truth_and_results(seed)
    data = eval_data_of(truth, {"bbox": results})
    assert_equals_cocoeval(data, truth, results, "bbox")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_official_example_comes_out(real_data_folder: Path, kind: str):
    folder = real_data_folder / "cocoapi_demo"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    data = eval_data_of(truth, {kind: results})
    curves = assert_equals_cocoeval(data, truth, results, kind)
    official = {"bbox": [0.697, 0.573, 0.505], "segm": [0.562, 0.299, 0.320]}[kind]
    assert np.round(curves.mean(axis=1), 3).tolist() == official


def assert_equals_cocoeval(data: EvalData, truth: dict, results: list[dict], kind: str) -> np.ndarray:
    evaluation = official_evaluation(truth, results, kind)
    assert np.array_equal(
        run_cocoeval(coco_object(truth), results, kind).eval["precision"], evaluation.eval["precision"]
    )
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # [IoU, recall, class]
    found = class_results(data, matching_of(data, kind))
    for k, result in enumerate(found):
        theirs = precision[:, :, k]
        if not result.objects:
            assert (theirs == -1).all() and math.isnan(result.ap)
            continue
        expected = np.stack((theirs[0], theirs[5], theirs.mean(axis=0)))
        assert result.curves == pytest.approx(expected, abs=1e-9)
        assert (result.ap50, result.ap75, result.ap) == pytest.approx(expected.mean(axis=1), abs=1e-9)
    assert float(mean_curves(found)[2].mean()) == pytest.approx(float(evaluation.stats[0]), abs=1e-9)
    return mean_curves(found)


def test_an_evaluation_without_detections_or_objects_has_numbers():
    truth, results = every_kind_of_error()
    nothing_found = analyse(eval_data_of(truth, {"bbox": []}), "bbox")
    assert nothing_found.errors.counts()["missed"] == len(OBJECTS)
    assert nothing_found.pairs.matrix[:, 3].tolist() == [2, 2, 2, 0] and nothing_found.classes[0].ap == 0
    nothing_there = analyse(eval_data_of(truth | {"annotations": []}, {"bbox": results["bbox"]}), "bbox")
    assert math.isnan(nothing_there.classes[0].ap) and nothing_there.errors.counts()["background"] == 8
    empty = analyse(eval_data_of(truth | {"annotations": []}, {"bbox": []}), "bbox")
    assert empty.pairs.matrix.sum() == 0


# ------------------------------------------------------------------------------------- the program that counts suspects


def test_labels_are_made_wrong_and_recognised():
    truth, _ = every_kind_of_error()
    template = truth["annotations"]
    content = {
        "images": [truth["images"][0] | {"id": i} for i in range(20)],
        "categories": truth["categories"],
        "annotations": [a | {"id": 10 * i + a["id"], "image_id": i} for i in range(20) for a in template],
    }
    before = json.dumps(content)
    changed, wrong = make_wrong(content, share=5 / 120, seed=0)
    assert json.dumps(content) == before and [w.kind for w in wrong] == list(WRONG_KINDS)
    assert len(changed["annotations"]) == 120 - 1 + 2
    by_id = {a["id"]: a for a in changed["annotations"]}
    originals = {a["id"]: a for a in content["annotations"]}
    of_class, removed, moved, added, doubled = wrong
    original = originals[of_class.annotation]
    assert (
        by_id[of_class.annotation] == original | {"category_id": by_id[of_class.annotation]["category_id"]} != original
    )
    assert removed.annotation is None and len([a for a in by_id.values() if a["image_id"] == removed.image]) == 5
    assert abs(by_id[moved.annotation]["bbox"][0] - moved.box[0]) == 28  # 0.7 of 40
    assert by_id[added.annotation]["image_id"] == added.image and added.annotation not in originals
    assert by_id[doubled.annotation]["bbox"][:2] != by_id[doubled.annotation - 1]["bbox"][:2]

    def suspect(annotation: object, image: int, box: list[float]) -> dict[str, str]:
        sides = dict(zip(("x", "y", "width", "height"), map(str, box)))
        return {"annotation_id": str(annotation), "image_id": str(image)} | sides

    suspects = [
        suspect(of_class.annotation, of_class.image, of_class.box),
        suspect("", removed.image, removed.box),
        suspect("", removed.image, [0, 150, 10, 10]),
        suspect("", removed.image + 100, removed.box),
        suspect(originals[of_class.annotation]["id"] + 1000, of_class.image, of_class.box),
    ]
    assert named(suspects, wrong) == [0, 1, -1, -1, -1]
