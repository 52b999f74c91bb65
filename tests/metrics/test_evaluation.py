"""COCO's metrics come out as the official code gives them, however the images are split."""

import json
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from my_dataset_coco import coco_object
from my_dataset_voc import VOCInstances
from network_files.masks.encode import encode_masks
from tests.helpers.official_metrics import official_evaluation
from train_utils import evaluation
from train_utils.classes import ClassTable
from train_utils.device import Precision
from train_utils.errors import InputError
from train_utils.metrics import coco_evaluation
from train_utils.metrics.coco_evaluation import (
    METRIC_NAMES,
    CocoEvaluator,
    Metrics,
    coco_results,
    explain_missing,
    run_cocoeval,
    score_results,
    tables,
)

IOU_TYPES = ("bbox", "segm")


# --------------------------------------------------------------------------------------------- the official numbers


@pytest.fixture(scope="module")
def demo(real_data_folder: Path) -> Path:
    return real_data_folder / "cocoapi_demo"


@pytest.fixture(scope="module")
def official(demo: Path) -> dict[str, list[float]]:
    """The twelve numbers of each official table, in its order."""
    tables, kind = {}, None
    for line in (demo / "official_results.txt").read_text().splitlines():
        if header := re.fullmatch(r"type=(\w+)", line.strip()):
            kind = header.group(1)
        elif number := re.fullmatch(r" Average (?:Precision|Recall) .*\] = (-?\d\.\d{3})", line.rstrip()):
            tables.setdefault(kind, []).append(float(number.group(1)))
    assert len(tables["bbox"]) == len(tables["segm"]) == len(METRIC_NAMES) == 12
    return tables


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_official_numbers_come_out_as_pycocotools_has_them_to_the_last_bit(demo, official, iou_type):
    truth = demo / "instances_val2014_100.json"
    results = json.loads((demo / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    ours = run_cocoeval(coco_object(str(truth)), results, iou_type)
    theirs = official_evaluation(truth, results, iou_type)
    assert [round(float(s), 3) for s in ours.stats] == official[iou_type]
    for table in ("precision", "recall"):
        assert np.array_equal(ours.eval[table], theirs.eval[table])
    # Means of these tables. pycocotools takes numpy's mean; an older numpy rounds it differently.
    assert [float(s) for s in ours.stats] == pytest.approx([float(s) for s in theirs.stats], rel=1e-15, abs=0)


# ------------------------------------------------------------------------------------------------ a small ground truth

SIZE = (64, 80)
# Labels, category ids and names are three different things, and no order is that of another.
CLASSES = ClassTable({1: "zebra", 2: "yak", 3: "ant"}, {1: 30, 2: 10, 3: 20})
BOXES = {  # image id -> boxes x1y1x2y2 with labels; no object of label 2, the yak
    4: [((5, 5, 25, 30), 1), ((40, 10, 70, 40), 3)],
    2: [((10, 20, 30, 50), 3)],
    9: [],
    7: [((2, 2, 22, 18), 1), ((30, 30, 60, 60), 1), ((62, 4, 78, 20), 3)],
}


def detection(boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float]) -> dict[str, Tensor]:
    """What the network finds in one picture; every mask fills its box."""
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "masks": torch.ones((len(labels), 1, 28, 28)),
    }


def found_exactly(objects: Sequence[tuple[Sequence[float], int]], score: float = 0.9) -> dict[str, Tensor]:
    return detection([box for box, _ in objects], [label for _, label in objects], [score] * len(objects))


def truth_of(boxes: Mapping[int, Sequence[tuple]], classes: ClassTable) -> dict:
    """A COCO file's content whose masks are just those that `found_exactly` detects."""
    annotations = []
    for image_id, objects in boxes.items():
        target = found_exactly(objects)
        for (x1, y1, x2, y2), label, code in zip(
            target["boxes"].tolist(),
            target["labels"].tolist(),
            encode_masks(target["masks"].numpy(), target["boxes"].numpy(), SIZE),
        ):
            annotations.append(
                {
                    "id": 50 + len(annotations),
                    "image_id": image_id,
                    "category_id": classes.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                }
            )
    return {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.jpg"} for i in boxes],
        "annotations": annotations,
        "categories": [{"id": i, "name": classes.names[label]} for label, i in classes.category_ids.items()],
    }


def metrics_of(detections: Mapping[int, dict], classes: ClassTable = CLASSES, truth: dict | None = None):
    evaluator = CocoEvaluator(coco_object(truth or truth_of(BOXES, CLASSES)), classes)
    for image_id, found in detections.items():
        evaluator.update(image_id, SIZE, found)
    return evaluator.metrics()


EXACT = {image_id: found_exactly(objects) for image_id, objects in BOXES.items()}


def test_perfect_detections_have_an_ap_of_one():
    metrics = metrics_of(EXACT)
    for iou_type in IOU_TYPES:
        ap, ap50, ap75, small, medium, large, ar1, ar10, ar100, *_ = metrics[iou_type].stats
        assert ap == ap50 == ap75 == small == ar10 == ar100 == 1.0
        assert large == -1.0 and 0 < ar1 < 1


def test_no_detections_give_zero_and_minus_one_where_there_is_nothing_to_find():
    """All objects are smaller than 32 x 32, so there is nothing to find among medium and large ones."""
    nothing = found_exactly([])
    for detections in ({}, {image_id: nothing for image_id in BOXES}):
        metrics = metrics_of(detections)
        for iou_type in IOU_TYPES:
            assert metrics[iou_type].stats == [0, 0, 0, 0, -1, -1, 0, 0, 0, 0, -1, -1]
            assert [c.ap for c in metrics[iou_type].classes] == [0, -1, 0]


def test_no_detections_and_no_objects_give_minus_one():
    metrics = metrics_of({}, truth=truth_of({4: [], 2: []}, CLASSES))
    assert metrics["bbox"].stats == metrics["segm"].stats == [-1] * 12


def test_each_class_has_its_own_number_and_a_class_without_objects_minus_one():
    """The zebras are all found, the ants never: were names or ids mixed up, another class would have the one."""
    zebras = {i: found_exactly([o for o in objects if o[1] == 1]) for i, objects in BOXES.items()}
    for metrics in metrics_of(zebras).values():
        found = [(c.label, c.name, c.objects, c.ap, c.ap50) for c in metrics.classes]
        assert found == [(1, "zebra", 3, 1.0, 1.0), (2, "yak", 0, -1.0, -1.0), (3, "ant", 3, 0.0, 0.0)]
        assert metrics.stats[0] == 0.5  # the mean of the two that have objects


def test_metrics_that_can_be_reckoned_by_hand():
    """Two pictures with an object each. One picture has no detection; in the other the box is right, the mask a part.

    Box: recall stops at 1/2, and 51 of the 101 recall levels 0, 0.01, ..., 1 are reached with precision 1, at every
    IoU threshold. Mask: 24 of 32 columns are found, IoU 0.75, which passes 6 of the 10 thresholds 0.5, 0.55, ..., 0.95.
    """
    truth = truth_of({4: [((8, 8, 40, 40), 1)], 2: [((10, 20, 30, 50), 1)]}, CLASSES)
    truth["annotations"][0]["segmentation"] = [[8, 8, 40, 8, 40, 40, 8, 40]]
    evaluator = CocoEvaluator(coco_object(truth), CLASSES)
    evaluator.update(4, SIZE, detection([(8, 8, 40, 40)], [1], [0.9]))
    part = np.zeros(SIZE, dtype=np.uint8)
    part[8:40, 8:32] = 1
    evaluator.detections[4]["codes"] = [coco_mask.encode(np.asfortranarray(part))]
    metrics = evaluator.metrics()
    assert metrics["bbox"].stats[0] == pytest.approx(51 / 101) and metrics["bbox"].stats[8] == 0.5
    assert metrics["segm"].stats[0] == pytest.approx(0.6 * 51 / 101) and metrics["segm"].stats[8] == pytest.approx(0.3)
    assert metrics["segm"].stats[2] == pytest.approx(51 / 101)  # AP75: an IoU of just 0.75 passes


def test_a_false_detection_costs_only_where_it_ranks_above_a_right_one():
    """One object; right at 0.8, wrong at 0.9: precision 1/2 at every recall. Wrong at 0.7: precision 1."""
    truth = truth_of({4: [((8, 8, 40, 40), 1)]}, CLASSES)
    for wrong, ap in ((0.9, 0.5), (0.7, 1.0)):
        found = detection([(8, 8, 40, 40), (42, 8, 74, 40)], [1, 1], [0.8, wrong])
        metrics = metrics_of({4: found}, truth=truth)
        assert metrics["bbox"].stats[0] == pytest.approx(ap) and metrics["segm"].stats[0] == pytest.approx(ap)


def test_voc_is_scored_on_the_boxes_and_masks_of_its_files(data_folder):
    """The files' own objects as detections score 1; difficult ones count neither way, found or not."""
    dataset = VOCInstances(data_folder / "voc_tiny", txt_name="val.txt")
    classes = ClassTable.of_dataset(dataset)
    evaluator = CocoEvaluator(coco_object(dataset.coco.dataset), classes)
    objects: dict[str, int] = {}
    for i in range(len(dataset)):
        target, (height, width) = dataset.target(i), dataset.get_height_and_width(i)
        usable = [k for k, crowd in enumerate(target["iscrowd"].tolist()) if not crowd]
        planes = target["masks"].dense()[usable].numpy()
        found = detection(target["boxes"][usable].tolist(), target["labels"][usable].tolist(), [0.9] * len(usable))
        evaluator.update(int(target["image_id"]), (height, width), found)
        codes = [coco_mask.encode(np.asfortranarray(plane.astype(np.uint8))) for plane in planes]
        evaluator.detections[int(target["image_id"])]["codes"] = codes
        for label in target["labels"][usable].tolist():
            objects[classes.names[label]] = objects.get(classes.names[label], 0) + 1
    metrics = evaluator.metrics()
    assert metrics["bbox"].stats[0] == pytest.approx(1) and metrics["segm"].stats[0] == pytest.approx(1)
    assert [c.name for c in metrics["bbox"].classes] == list(classes.names.values())
    assert len(metrics["bbox"].classes) == 20
    assert {c.name: c.objects for c in metrics["segm"].classes if c.objects} == objects
    assert {round(c.ap, 9) for c in metrics["segm"].classes} == {1.0, -1.0}


def test_class_that_the_data_has_never_heard_of_is_minus_one():
    more = ClassTable({**CLASSES.names, 4: "newt"}, {**CLASSES.category_ids, 4: 15})
    detections = dict(EXACT)
    detections[9] = found_exactly([((3, 3, 20, 20), 4)])
    metrics = metrics_of(detections, classes=more)
    assert [(c.name, c.ap) for c in metrics["bbox"].classes] == [("zebra", 1), ("yak", -1), ("ant", 1), ("newt", -1)]
    assert metrics["bbox"].stats[0] == 1.0


def test_table_has_each_number_behind_its_name():
    zebras = {i: found_exactly([o for o in objects if o[1] == 1]) for i, objects in BOXES.items()}
    metrics = metrics_of(zebras)["segm"]
    lines = [line.split() for line in metrics.table("masks").splitlines()]
    assert lines[0] == ["masks"]
    written = [(" ".join(line[:-1]), line[-1]) for line in lines[1:13]]
    assert written == [(name, f"{value:.4f}") for name, value in zip(METRIC_NAMES, metrics.stats)]
    assert lines[14:] == [
        ["zebra", "3", "1.0000", "1.0000"],
        ["yak", "0", "-1.0000", "-1.0000"],
        ["ant", "3", "0.0000", "0.0000"],
    ]


def test_numbers_of_minus_one_are_explained():
    zebras = {i: found_exactly([o for o in objects if o[1] == 1]) for i, objects in BOXES.items()}
    line = tables(metrics_of(zebras)).splitlines()[-1]
    assert line == "-1: the validation images have no medium or large objects and no objects of 1 of the 3 classes"
    empty = tables(metrics_of({}, truth=truth_of({4: []}, CLASSES)))
    assert empty.splitlines()[-1].startswith("-1: the validation images have no objects to find")
    assert explain_missing([0.5] * 12) == ""


def test_crowds_neither_count_nor_punish():
    truth = truth_of(BOXES, CLASSES)
    crowd = truth["annotations"][0]  # image 4, a zebra
    crowd["iscrowd"] = 1
    without = {**EXACT, 4: found_exactly(BOXES[4][1:])}
    for detections in (EXACT, without):
        metrics = metrics_of(detections, truth=truth)
        assert metrics["bbox"].stats[0] == pytest.approx(1) and metrics["segm"].stats[0] == pytest.approx(1)
        assert [c.objects for c in metrics["bbox"].classes] == [2, 0, 3]


# ------------------------------------------------------------------------------------------------- the results format


def collected(image_id: int, found: Mapping[str, Tensor]) -> dict[int, dict]:
    evaluator = CocoEvaluator(None, CLASSES)
    evaluator.update(image_id, SIZE, found)
    return evaluator.detections


def test_labels_become_category_ids_and_boxes_become_widths():
    results = coco_results(collected(4, found_exactly(BOXES[4], 0.25)), CLASSES.category_ids)
    assert [r["category_id"] for r in results["bbox"]] == [30, 20]
    assert [r["bbox"] for r in results["bbox"]] == [[5, 5, 20, 25], [40, 10, 30, 30]]
    assert [r["category_id"] for r in results["segm"]] == [30, 20]
    assert {r["image_id"] for kind in IOU_TYPES for r in results[kind]} == {4}
    assert json.loads(json.dumps(results)) == results


def test_masks_and_boxes_are_scored_apart():
    """With both in one entry the libraries would sort masks into sizes by the areas of boxes."""
    results = coco_results(collected(4, EXACT[4]), CLASSES.category_ids)
    assert all("segmentation" not in r for r in results["bbox"])
    assert all("bbox" not in r and "area" not in r for r in results["segm"])


def test_detections_of_labels_without_category_are_left_out():
    found = detection([[1, 1, 9, 9]] * 3, [1, 5, 3], [0.9, 0.8, 0.7])
    results = coco_results(collected(4, found), CLASSES.category_ids)
    assert [r["category_id"] for r in results["segm"]] == [30, 20]
    assert [r["score"] for r in results["bbox"]] == pytest.approx([0.9, 0.7])


def test_scores_that_differ_in_the_sixth_decimal_rank_right():
    """The right one comes second in the list, so that a tie would put it behind the wrong one."""
    scores = [0.500001, 0.500002]
    found = detection([[60, 0, 79, 19], [10, 20, 30, 50]], [3, 3], scores)
    metrics = metrics_of({2: found}, truth=truth_of({2: BOXES[2]}, CLASSES))
    for iou_type in IOU_TYPES:
        assert metrics[iou_type].stats[0] == pytest.approx(1.0)
    written = coco_results(collected(2, found), CLASSES.category_ids)["bbox"]
    assert [r["score"] for r in written] == [float(np.float32(s)) for s in scores]


# ------------------------------------------------------------------------------------------------------- the sharding


@pytest.fixture(scope="module")
def many() -> tuple[dict, dict[int, dict]]:
    """Ground truth of 23 pictures, and detections with many equal scores, whose order decides the metrics."""
    rng = np.random.default_rng(5)
    boxes, detections = {}, {}
    for image_id in rng.permutation(100)[:23].tolist():
        corners = rng.integers(0, (SIZE[1] - 24, SIZE[0] - 24), size=(rng.integers(0, 6), 2))
        extents = rng.integers(8, 24, size=corners.shape)
        objects = np.concatenate([corners, corners + extents], axis=1)
        labels = rng.integers(1, 4, size=len(objects))
        boxes[image_id] = [(box, label) for box, label in zip(objects.tolist(), labels.tolist())]
        moved = np.concatenate([objects + rng.integers(-3, 4, size=objects.shape), objects]).clip(0, 79)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        scores = rng.integers(1, 5, size=len(moved)) / 4
        detections[image_id] = detection(moved.tolist(), np.tile(labels, 2).tolist(), scores.tolist())
    return truth_of(boxes, CLASSES), detections


def numbers(metrics: Mapping[str, Metrics]) -> dict[str, tuple]:
    return {kind: (m.stats, [(c.name, c.objects, c.ap, c.ap50) for c in m.classes]) for kind, m in metrics.items()}


def gathered(monkeypatch, truth: dict, shards: Sequence[Mapping[int, dict]]) -> dict[str, tuple]:
    """The metrics that the main process finds for these shards, one a process."""
    evaluators = [CocoEvaluator(coco_object(truth), CLASSES) for _ in shards]
    for evaluator, shard in zip(evaluators, shards):
        for image_id, found in shard.items():
            evaluator.update(image_id, SIZE, found)
    monkeypatch.setattr(coco_evaluation, "gather_objects", lambda own: [e.detections for e in evaluators])
    return numbers(evaluators[0].metrics())


def test_metrics_do_not_depend_on_how_pictures_are_split(monkeypatch, many):
    truth, detections = many
    whole = numbers(metrics_of(detections, truth=truth))
    assert 0.1 < whole["bbox"][0][0] < 0.9 and 0.1 < whole["segm"][0][0] < 0.9
    ids = list(detections)
    for processes in (2, 3, 7, 40):
        shards = [{i: detections[i] for i in ids[rank::processes]} for rank in range(processes)]
        assert gathered(monkeypatch, truth, shards) == whole
    backwards = [{i: detections[i] for i in reversed(ids)}]
    assert gathered(monkeypatch, truth, backwards) == whole


def test_pictures_that_two_processes_evaluated_count_once(monkeypatch, many):
    truth, detections = many
    ids = list(detections)
    shards = [{i: detections[i] for i in part} for part in (ids[:15], ids[10:])]
    whole = numbers(metrics_of(detections, truth=truth))
    assert gathered(monkeypatch, truth, shards) == whole


def test_only_the_main_process_scores(monkeypatch):
    monkeypatch.setattr(coco_evaluation, "gather_objects", lambda own: None)
    assert metrics_of(EXACT) is None


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_pycocotools_agrees_on_every_class(many, iou_type):
    truth, detections = many
    results = coco_results(
        {i: d for image_id, found in detections.items() for i, d in collected(image_id, found).items()},
        CLASSES.category_ids,
    )[iou_type]
    ours = score_results(coco_object(truth), results, iou_type, CLASSES)
    theirs = official_evaluation(truth, results, iou_type)
    assert ours.stats == pytest.approx(theirs.stats.tolist(), rel=1e-15, abs=0)
    precision = dict(zip(theirs.params.catIds, theirs.eval["precision"][:, :, :, 0, -1].transpose(2, 0, 1)))
    expected = [float(precision[CLASSES.category_ids[c.label]].mean()) for c in ours.classes]
    assert [c.ap for c in ours.classes] == pytest.approx(expected, rel=1e-15)


def test_an_evaluation_without_a_readable_image_ends_with_the_first_reason(monkeypatch):
    class Loader(list):
        dataset = ("a.png", "b.png")

    batches = [([None], [{"image_id": k, "unreadable": [f"{name}: broken"]}]) for k, name in enumerate(Loader.dataset)]
    monkeypatch.setattr(evaluation, "ready_for_inference", lambda model, precision: model)
    monkeypatch.setattr(evaluation, "CocoEvaluator", lambda *_: None)
    arguments = (Loader(batches), None, None, torch.device("cpu"), None)
    with pytest.raises(InputError, match="a.png: broken; none of the 2 images can be evaluated"):
        evaluation.detect_all(SimpleNamespace(continuous_paste=False), *arguments, [])
    with pytest.raises(InputError, match="^a.png: broken$"):
        evaluation.detect_all(SimpleNamespace(continuous_paste=False), *arguments)


def test_the_thread_that_codes_masks_uses_the_gpu_of_its_process(monkeypatch):
    """A new thread would use GPU 0, on which every process would then open a context."""
    gpu, seen = torch.device("cuda", 3), []
    network = SimpleNamespace(continuous_paste=False, detect=lambda images: [])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append((device, threading.get_ident())))
    monkeypatch.setattr(CocoEvaluator, "update_batch", lambda *_: seen.append(("coding", threading.get_ident())))
    monkeypatch.setattr(evaluation, "ready_for_inference", lambda *_: network)
    for name in ("to_device", "PendingDetections"):
        monkeypatch.setattr(evaluation, name, lambda given, *_: given)
    loader = [([torch.zeros(3, 4, 4)], [{"image_id": 1}])] * 2
    evaluation.detect_all(network, loader, None, ClassTable({1: "thing"}, {1: 1}), gpu, Precision("cpu", None))
    thread = seen[0][1]
    assert seen == [(gpu, thread), ("coding", thread), ("coding", thread)] and thread != threading.get_ident()
