"""Detectron2's Mask R-CNN: what it computes is computed here, and its files work in every script like any others."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from network_files.anchors import AnchorGenerator
from network_files.image_transform import ImageTransform
from tests.helpers.commands import assert_refused, run, succeeded
from tests.helpers.detectron2_rows import (
    ALLOWED,
    COCO_LABELS,
    NO_OPTIONS,
    PHOTOS,
    Reference,
    as_tensor,
    draw_weights,
    stage_rows,
    whole_way_iou,
    write_zoo_file,
)
from tests.helpers.project import ROOT
from train_utils.classes import ClassTable
from train_utils.errors import InputError
from train_utils.models import ModelConfig, build_training_model, load_trained_model
from train_utils.options import TrainSettings
from train_utils.weight_files.detectron2 import IMPOSSIBLE, from_detectron2, is_detectron2
from train_utils.weight_files.weights import read_weight_file


@pytest.fixture(scope="module")
def zoo(real_data_folder: Path) -> Path:
    folder = real_data_folder / "detectron2_zoo"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="module")
def arrays(zoo: Path) -> dict[str, np.ndarray]:
    return draw_weights(zoo)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the scripts run; it holds gigabytes by the end, so it goes."""
    folder = tmp_path_factory.mktemp("detectron2")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def zoo_file(lab: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A file in the form of the model zoo's."""
    return write_zoo_file(lab / "model_final_f10217.pkl", arrays)


@pytest.fixture(scope="module")
def model(zoo_file: Path):
    return load_trained_model(zoo_file, NO_OPTIONS)[0]


# ------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.slow
@pytest.mark.parametrize("name", [PHOTOS[0], *(pytest.param(name, marks=pytest.mark.long) for name in PHOTOS[1:])])
def test_every_stage_equals_detectron2s(zoo, model, name):
    for row in stage_rows(model, Reference(zoo, name)):
        limit = ALLOWED.get(f"{row.stage} {row.what}", ALLOWED.get(row.stage))
        assert row.count > 0 and row.absolute <= limit, row


@pytest.mark.long
def test_from_the_photo_to_the_masks_only_rounding_differs(zoo, model):
    """Pillow rounds the resized photo to 8 bits, which moves a few of these random networks' detections."""
    assert whole_way_iou(model, Reference(zoo, PHOTOS[0])) > 0.9


# ---------------------------------------------------------------------------------------------------- the conversion


def small_state(classes: int) -> dict[str, Tensor]:
    """What the conversion looks at, with rows that say whose they are."""
    rows = torch.arange(float(classes + 1))
    return {
        "backbone.bottom_up.stem.conv1.weight": torch.randn(64, 3, 7, 7),
        "roi_heads.box_predictor.cls_score.weight": rows[:, None].repeat(1, 8),
        "roi_heads.box_predictor.cls_score.bias": rows,
        "roi_heads.box_predictor.bbox_pred.weight": torch.arange(4.0 * classes)[:, None].repeat(1, 8),
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(4.0 * classes),
        "roi_heads.mask_head.predictor.weight": rows[:-1, None, None, None].repeat(1, 8, 1, 1),
        "roi_heads.mask_head.predictor.bias": rows[:-1],
    }


def converted_rows(content: dict) -> tuple[Tensor, Tensor, Tensor]:
    """The biases of class logits [K], box deltas [K, 4] and masks [K]; the weights say the same."""
    state = content["model"]
    names = "box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits"
    biases = [state[f"roi_heads.{name}.bias"] for name in names]
    for name, bias in zip(names, biases):
        weight = state[f"roi_heads.{name}.weight"].flatten(1)[:, 0]
        assert torch.equal(weight, torch.where(bias == IMPOSSIBLE, 0.0, bias))
    return biases[0], biases[1].view(-1, 4), biases[2]


def test_rows_of_own_classes_move_behind_the_background():
    logits, deltas, masks = converted_rows(content := from_detectron2(small_state(3), "x"))
    assert logits.tolist() == [3, 0, 1, 2]
    assert deltas.tolist() == [[0] * 4, [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert masks.tolist() == [0, 0, 1, 2]
    assert content["model_config"] == {"num_classes": 4, "arch": "detectron2", "norm": "frozen"}
    assert ClassTable.of_weights(content, 4, None).names == {1: "class 1", 2: "class 2", 3: "class 3"}


def test_eighty_classes_are_cocos_and_its_gaps_never_win():
    logits, deltas, masks = converted_rows(content := from_detectron2(small_state(80), "x"))
    assert logits[0] == 80 and logits[COCO_LABELS].tolist() == list(range(80))
    assert deltas[COCO_LABELS, 0].tolist() == [4 * i for i in range(80)]
    assert masks[COCO_LABELS].tolist() == list(range(80))
    gaps = sorted(set(range(1, 91)) - set(COCO_LABELS))
    assert len(gaps) == 10 and logits[gaps].eq(IMPOSSIBLE).all() and not deltas[gaps].any() and not masks[gaps].any()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert logits.mul(0.01).add(logits.eq(IMPOSSIBLE) * IMPOSSIBLE).to(dtype).float().softmax(0)[gaps].eq(0).all()
    table = ClassTable.of_weights(content, 91, None)
    assert len(table.names) == 80 and table.names[90] == "toothbrush"


def test_a_json_names_own_classes_and_says_their_labels(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('{"5": "owl", "2": "cat", "3": "dog"}')
    logits, _, masks = converted_rows(content := from_detectron2(small_state(3), "x", str(path)))
    assert logits.tolist() == [3, IMPOSSIBLE, 0, 1, IMPOSSIBLE, 2] and masks.tolist() == [0, 0, 0, 1, 0, 2]
    assert ClassTable.of_weights(content, 6, str(path)).names == {2: "cat", 3: "dog", 5: "owl"}
    path.write_text(json.dumps({f"thing {i}": i for i in range(1, 81)}))
    content = from_detectron2(small_state(80), "x", str(path))
    assert content["model_config"]["num_classes"] == 81 and content["class_names"][80] == "thing 80"
    for wrong in ({"0": "a", "1": "b"}, {"1": "a", "9": "b"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="names.json.*from 1"):
            from_detectron2(small_state(2), "x", str(path))


def test_the_first_convolution_takes_what_this_network_gives():
    pixels = torch.rand(1, 3, 20, 20)
    for std in ([1.0, 1.0, 1.0], [57.375, 57.12, 58.395]):
        state = small_state(3) | {"pixel_std": torch.tensor(std).view(3, 1, 1)}
        weight = state["backbone.bottom_up.stem.conv1.weight"]
        mean = torch.tensor([103.53, 116.28, 123.675])[:, None, None]
        theirs = F.conv2d((pixels.flip(1) * 255 - mean) / torch.tensor(std)[:, None, None], weight, padding=3)
        transform = ImageTransform(20, 20, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        own = from_detectron2(state, "x")["model"]["backbone.body.conv1.weight"]
        own = F.conv2d(transform.normalize(pixels[0])[None], own, padding=3)
        assert torch.allclose(own, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max())


@pytest.mark.parametrize("classes", [1, 5])
def test_what_older_files_hold_besides_is_taken(classes):
    state = {f"module.{key}": value for key, value in small_state(classes).items()}
    assert is_detectron2(state)
    state = small_state(classes) | {"pixel_mean": torch.tensor([103.530, 116.280, 123.675]).view(3, 1, 1)}
    for level, cell in enumerate(AnchorGenerator(rounded=False).cell_anchors):
        state[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = cell.clone()
    assert from_detectron2(state, "x")["model"].keys() == from_detectron2(small_state(classes), "x")["model"].keys()


OTHER_NETWORKS = {
    "no mask head": ({f"roi_heads.mask_head.predictor.{kind}": None for kind in ("weight", "bias")}, "mask_fcn_logits"),
    "no FPN": ({"roi_heads.box_predictor.cls_score.weight": None}, "cls_score"),
    "boxes that all classes share": ({"roi_heads.box_predictor.bbox_pred.weight": torch.zeros(4, 8)}, "class-agnostic"),
    "masks that all classes share": (
        {"roi_heads.mask_head.predictor.weight": torch.zeros(1, 8, 1, 1)},
        "class-agnostic",
    ),
    "red first": ({"pixel_mean": torch.tensor([123.675, 116.28, 103.53])}, "pixel_mean"),
    "other anchors": ({"proposal_generator.anchor_generator.cell_anchors.1": torch.zeros(3, 4)}, "level 1"),
    "five anchors": ({"proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(5, 4)}, "level 0"),
    "another stem": ({"backbone.bottom_up.stem.conv1.weight": torch.zeros(32)}, "shape"),
    "no classes": ({"roi_heads.box_predictor.cls_score.bias": torch.zeros(1)}, "shape"),
}


@pytest.mark.parametrize("other", OTHER_NETWORKS)
def test_another_network_is_refused_in_one_line(other):
    changes, named = OTHER_NETWORKS[other]
    state = {key: value for key, value in (small_state(3) | changes).items() if value is not None}
    with pytest.raises(InputError, match=f"^net.pkl: .*{named}") as caught:
        from_detectron2(state, "net.pkl")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- the scripts

SMALL = ["--device", "cpu", "--workers", "0", "--min-size", "64", "--max-size", "96"]
CONVERTER = ROOT / "tools" / "convert_detectron2.py"
TRAINING = [*SMALL, "--rois-per-image", "16", "--batch-size", "2", "--print-freq", "1", "--lr", "1e-4"]


@pytest.fixture(scope="module")
def coco(data_folder: Path, lab: Path) -> Path:
    """A few photos of coco_tiny, with all 80 categories."""
    source, folder = data_folder / "coco_tiny", lab / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split, number in (("train2017", 4), ("val2017", 2)):
        content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        content["images"] = content["images"][:number]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (folder / split).symlink_to(source / split)
    return folder


@pytest.fixture(scope="module")
def voc(data_folder: Path, lab: Path) -> Path:
    """voc_tiny with shorter lists."""
    source, folder = data_folder / "voc_tiny" / "VOCdevkit" / "VOC2012", lab / "VOCdevkit" / "VOC2012"
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages", "SegmentationObject", "SegmentationClass"):
        (folder / name).symlink_to(source / name)
    for split, number in (("train.txt", 2), ("val.txt", 1)):
        lines = (source / "ImageSets" / "Segmentation" / split).read_text().splitlines()[:number]
        (folder / "ImageSets" / "Segmentation" / split).write_text("\n".join(lines) + "\n")
    return lab / "VOCdevkit"


@pytest.mark.slow
def test_a_zoo_file_predicts_with_cocos_ids(lab, zoo_file, coco, model, monkeypatch):
    photo = next((coco / "val2017").glob("*.jpg")).resolve()
    arguments = ["--weights-path", zoo_file, "--img-path", photo, "--output-dir", "found", "--min-size", "96"]
    arguments += ["--save-json", "--box-thresh", "0.1", "--detections", "20"]
    outcome = succeeded(run(lab, "predict.py", "--device", "cpu", *arguments))
    detections = json.loads((lab / "found" / "predictions.json").read_text())
    assert len(detections) > 5 and {d["category_id"] for d in detections} <= set(COCO_LABELS)
    names = json.loads((ROOT / "coco91_indices.json").read_text())
    assert all(names[str(d["category_id"])] in outcome.out for d in detections)
    monkeypatch.setattr(model.transform, "min_size", (96,))
    monkeypatch.setattr(model.roi_heads, "detections_per_img", 20)
    with Image.open(photo) as picture, torch.inference_mode():
        (own,) = model.detect([as_tensor(picture.convert("RGB"))])
    assert [d["score"] for d in detections] == pytest.approx(own["scores"][own["scores"] >= 0.1].tolist(), abs=1e-4)


@pytest.mark.slow
def test_a_zoo_file_is_evaluated(lab, zoo_file, coco):
    weights = ["--weights-path", zoo_file, "--data-path", coco, "--detections", "10"]
    succeeded(run(lab, "validation.py", *SMALL, *weights, "--output-dir", "scores"))
    table = (lab / "scores" / "record_mAP.txt").read_text()
    assert "2 images" in table and re.search(r"toothbrush +\d", table) and "N/A" not in table


@pytest.mark.long
def test_fine_tuning_on_coco_goes_on_from_cocos_classes_and_can_be_resumed(lab, zoo_file, coco, model):
    run_at = [*TRAINING, "--data-path", coco, "--output-dir", "tuned"]
    outcome = succeeded(run(lab, "train.py", *run_at, "--pretrain", zoo_file, "--max-steps", "1"))
    assert "newly initialised" not in outcome.out
    tuned, start = read_weight_file(lab / "tuned" / "model_0.pth"), model.state_dict()
    assert tuned["model_config"]["arch"] == "detectron2" and tuned["model_config"]["norm"] == "frozen"
    assert len(tuned["class_names"]) == 80 and tuned["model"].keys() == start.keys()
    changed = {key for key in start if not torch.equal(start[key], tuned["model"][key])}
    assert {"roi_heads.box_predictor.cls_score.weight", "backbone.body.layer4.2.conv3.weight"} <= changed
    assert not any(key.startswith(("backbone.body.conv1", "backbone.body.layer1.")) for key in changed)
    for key in changed:
        moved = (start[key] - tuned["model"][key]).norm() / start[key].norm()
        assert moved < 0.2, f"{key} did not start from the file"
    succeeded(run(lab, "train.py", *run_at, "--resume", "auto", "--max-steps", "2"))
    resumed = read_weight_file(lab / "tuned" / "model_0.pth")
    assert resumed["progress"]["step"] == 2 and resumed["model_config"] == tuned["model_config"]
    photo = next((coco / "val2017").glob("*.jpg")).resolve()
    weights = ["--weights-path", "tuned/model_0.pth", "--img-path", photo, "--output-dir", "tuned_found"]
    succeeded(run(lab, "predict.py", "--device", "cpu", *weights))


@pytest.mark.long
def test_fine_tuning_on_other_classes_starts_their_layers_anew(lab, zoo_file, voc, model):
    run_at = [*TRAINING, "--data-path", voc, "--output-dir", "voc_tuned", "--max-steps", "1", "--amp"]
    outcome = succeeded(run(lab, "train_multi_GPU.py", *run_at, "--pretrain", zoo_file))
    assert re.search(r"the rows of 14 of 20 classes are kept, by name: .*; newly initialised: .*sofa", outcome.out)
    tuned = read_weight_file(lab / "voc_tuned" / "model_0.pth")
    assert tuned["model_config"]["num_classes"] == 21 and tuned["model_config"]["arch"] == "detectron2"
    frozen = "backbone.body.layer1.0.conv1.weight"
    assert torch.equal(tuned["model"][frozen], model.state_dict()[frozen])
    weights = ["--weights-path", "voc_tuned/model_0.pth", "--output-dir", "voc_found"]
    assert "found in" in succeeded(run(lab, "predict.py", "--device", "cpu", *weights)).out


@pytest.mark.slow
def test_the_converter_writes_the_same_weights_and_cocos_names(lab, zoo_file, model):
    """And labels in COCO's gaps do not inherit rows that never win: 90 own classes are as many labels as COCO's."""
    outcome = succeeded(run(lab, str(CONVERTER), zoo_file, "zoo.pth"))
    assert "307 tensors, 90 labels" in outcome.out and "toothbrush" in outcome.out
    own, config, content = load_trained_model(lab / "zoo.pth", NO_OPTIONS)
    assert config == ModelConfig(91, "detectron2", "frozen") and len(content["class_names"]) == 80
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in own.state_dict().items())

    args = TrainSettings.parse("", ["--pretrain", str(lab / "zoo.pth")])
    anew, config = build_training_model(args, 91, None, names={label: f"own {label}" for label in range(1, 91)})
    assert config == ModelConfig(91, "detectron2", "frozen")
    assert not anew.roi_heads.box_predictor.cls_score.bias.any()
    kept, _ = build_training_model(args, 91, None, names={1: "person", 3: "car", 90: "toothbrush"})
    assert kept.roi_heads.box_predictor.cls_score.bias[12] == IMPOSSIBLE
    args.arch = "v1"
    with pytest.raises(InputError, match="zoo.pth.*detectron2.*--arch"):
        build_training_model(args, 91, None)


@pytest.mark.long
def test_own_classes_of_a_torch_file_get_names_and_the_converter_keeps_them(lab, arrays, coco):
    """model_final.pth as Detectron2's trainer leaves it, with three classes; also for data that count from 0."""
    state = {key: torch.from_numpy(array) for key, array in arrays.items()}
    for key, places in (
        ("roi_heads.box_predictor.cls_score", [0, 1, 2, 80]),
        ("roi_heads.box_predictor.bbox_pred", list(range(12))),
        ("roi_heads.mask_head.predictor", [0, 1, 2]),
    ):
        state |= {f"{key}.{kind}": state[f"{key}.{kind}"][places] for kind in ("weight", "bias")}
    torch.save({"model": state, "optimizer": {"state": {}}, "scheduler": {}, "iteration": 9}, lab / "model_final.pth")
    (lab / "names.json").write_text('{"1": "cat", "2": "dog", "3": "owl"}')
    outcome = succeeded(run(lab, str(CONVERTER), "model_final.pth", "mine.pth", "--label-json-path", "names.json"))
    assert "cat, dog, owl" in outcome.out
    expected = read_weight_file(lab / "model_final.pth", str(lab / "names.json"))
    content = torch.load(lab / "mine.pth", weights_only=True)
    assert content["model_config"] == expected["model_config"] and content["class_names"] == expected["class_names"]
    assert all(torch.equal(content["model"][key], value) for key, value in expected["model"].items())

    annotations = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    annotations["categories"] = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "owl"))]
    for annotation in annotations["annotations"]:
        annotation["category_id"] %= 3
    (lab / "zero" / "annotations").mkdir(parents=True)
    (lab / "zero" / "annotations" / "instances_val2017.json").write_text(json.dumps(annotations))
    (lab / "zero" / "val2017").symlink_to(coco / "val2017")
    weights = ["--weights-path", "model_final.pth", "--label-json-path", "names.json", "--data-path", "zero"]
    table = succeeded(run(lab, "validation.py", *SMALL, *weights, "--output-dir", "scores")).out
    assert all(re.search(rf"{name} +[1-9]", table) for name in ("cat", "dog", "owl"))
    assert_refused(run(lab, str(CONVERTER), "mine.pth", "again.pth"), "mine.pth", "not a Detectron2 network")
    assert_refused(run(lab, str(CONVERTER), "model_final.pth", "names.json/mine.pth"), "names.json")
    assert_refused(run(lab, str(ROOT / "tools" / "export_torchvision.py"), "mine.pth", "out.pth"), "detectron2")


@pytest.mark.slow
def test_files_that_cannot_be_used_are_refused_by_the_scripts(lab, coco):
    arrays = {key: value.numpy() for key, value in small_state(3).items()}
    write_zoo_file(lab / "small.pkl", arrays)
    weights = ["--weights-path", "small.pkl", "--data-path", coco]
    assert_refused(run(lab, "validation.py", *SMALL, *weights), "small.pkl", "Mask R-CNN")
    assert_refused(run(lab, "train.py", *TRAINING, "--data-path", coco, "--resume", "small.pkl"), "--pretrain")
    write_zoo_file(lab / "small.pkl", {key: value for key, value in arrays.items() if "mask" not in key})
    assert_refused(run(lab, "train.py", *TRAINING, "--data-path", coco, "--pretrain", "small.pkl"), "not a Mask R-CNN")
    assert_refused(run(lab, "predict.py", "--device", "cpu", *weights[:2], "--img-path", coco), "not a Mask R-CNN")
    assert_refused(run(lab, str(CONVERTER), "small.pkl", "out.pth"), "small.pkl", "not a Mask R-CNN")
