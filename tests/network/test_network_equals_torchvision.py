"""With the same weights, input and random numbers, the network computes what torchvision's Mask R-CNN computes.

Both compute in float64, where it can be asserted to nine digits on every processor: in float32, rounding decides at
thresholds, ranks and ReLUs. Stages in float32, each on the same input, are compared by test_exactness.py.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN as ReferenceMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from backbone import resnet50_fpn_backbone
from network_files import MaskRCNN
from network_files.heads import FastRCNNConvFCHead, FastRCNNPredictor, MaskRCNNHeads, RPNHead
from tests.helpers.parity import (
    DIFFERENT_ARGUMENTS,
    GRADIENT_TOLERANCE,
    OLDER_KEYS,
    SMALL,
    Batch,
    assert_same_detections,
    assert_same_losses,
    backbones,
    detections_of,
    edge_cases,
    enliven_norms,
    in_float64,
    lively_state,
    losses_of,
    pair,
    synthetic_batch,
    without_objects,
)
from tests.helpers.photos import with_compact_masks


@pytest.fixture(scope="module", params=["synthetic", "photos"])
def batch(request: pytest.FixtureRequest) -> Batch:
    """Three images with dense masks, drawn ones and real ones."""
    return drawn() if request.param == "synthetic" else in_float64(request.getfixturevalue("photos"))


def drawn(count: int = 3) -> Batch:
    images, targets = in_float64(synthetic_batch())
    return images[:count], targets[:count]


@pytest.fixture(scope="module")
def default_pair() -> tuple[ReferenceMaskRCNN, MaskRCNN]:
    return pair()


# --- losses, gradients, detections ------------------------------------------------------------------------------

Step = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


def training_steps(networks: tuple[ReferenceMaskRCNN, MaskRCNN], batch: Batch) -> tuple[Step, Step]:
    """Losses, the gradient of every parameter and the generator's state, of torchvision's network and of ours."""
    images, targets = batch
    results = []
    for model, model_targets in zip(networks, (targets, with_compact_masks(targets))):
        model.zero_grad(set_to_none=True)
        losses = losses_of(model, images, model_targets)
        sum(losses.values()).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        losses = {name: loss.detach() for name, loss in losses.items()}
        results.append((losses, gradients, torch.random.get_rng_state()))
        model.zero_grad(set_to_none=True)
    return results[0], results[1]


@pytest.fixture(scope="module")
def steps(batch, default_pair) -> tuple[Step, Step]:
    return training_steps(default_pair, batch)


def test_losses_equal_torchvision(steps):
    (reference, _, _), (own, _, _) = steps
    assert all(0.01 < loss < 20 for loss in reference.values())
    assert_same_losses(own, reference)


def test_both_draw_the_same_random_numbers(steps):
    """After a step the generators stand at the same place, so that a whole run stays in step."""
    (_, _, reference), (_, _, own) = steps
    assert torch.equal(own, reference)


def test_gradients_of_every_parameter_equal_torchvision(steps):
    (_, reference, _), (_, own, _) = steps
    assert_same_gradients(own, reference)


def assert_same_gradients(own: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert set(own) == set(reference)
    for name, gradient in reference.items():
        largest = gradient.abs().max()
        assert largest > 0, name
        apart = ((own[name] - gradient).abs().max() / largest).item()
        assert apart < GRADIENT_TOLERANCE, f"{name}: {apart:.1e} of its largest entry"


def test_detections_equal_torchvision(batch, default_pair):
    reference, own = (detections_of(model, batch[0]) for model in default_pair)
    assert len(torch.cat([d["labels"] for d in reference]).unique()) > 5
    assert all(d["scores"].max() > 0.3 for d in reference)
    assert all(0 < (d["masks"] > 0.5).double().mean() < 1 for d in reference)
    assert_same_detections(own, reference, least=12)


@pytest.mark.slow
def test_the_whole_resnet50_steps_and_detects_as_torchvision():
    networks = pair(full=True, min_size=64, box_batch_size_per_image=8)
    (expected, gradients, generator), (losses, own_gradients, own_generator) = training_steps(networks, drawn(2))
    assert_same_losses(losses, expected)
    assert_same_gradients(own_gradients, gradients)
    assert len(gradients) > 80 and torch.equal(own_generator, generator)
    reference, own = (detections_of(model, drawn(1)[0]) for model in networks)
    assert_same_detections(own, reference, least=5)


def test_in_evaluation_gradients_reach_boxes_scores_and_masks_as_in_torchvision(default_pair):
    """Without `no_grad`, as for attributions and adversarial images."""
    found = []
    for model in default_pair:
        images = [image.requires_grad_() for image in drawn(2)[0]]
        detections = model.eval()(images)
        gradients = {}
        for name in ("boxes", "scores", "masks"):
            values = torch.cat([detection[name].flatten() for detection in detections])
            assert values.requires_grad
            weights = torch.linspace(0.5, 1.5, len(values), dtype=values.dtype)
            grads = torch.autograd.grad((values * weights).sum(), images, retain_graph=True)
            gradients |= {f"{name}, image {i}": grad for i, grad in enumerate(grads)}
        found.append(gradients)
    assert_same_gradients(found[1], found[0])


@pytest.mark.slow
def test_a_hundred_detections_equal_torchvision():
    image = drawn()[0][1]
    reference, own = pair(box_detections_per_img=100, box_score_thresh=0.0, min_size=64)
    assert_same_detections(detections_of(own, [image]), detections_of(reference, [image]), least=100)


def test_images_without_detections_equal_torchvision():
    images = drawn(2)[0]
    reference, own = (detections_of(model, images) for model in pair(box_score_thresh=1.0, min_size=64))
    assert [len(detection["boxes"]) for detection in reference] == [0, 0]
    for ours, theirs in zip(own, reference):
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", list(edge_cases()))
def test_edge_cases_equal_torchvision(default_pair, case):
    images, targets = in_float64(edge_cases()[case])
    reference, own = default_pair
    detections_of(reference, drawn()[0])  # it keeps the strides that it guesses from its first batch
    expected = losses_of(reference, images, targets)
    assert (expected["loss_mask"] == 0) == (expected["loss_box_reg"] == 0) == (case == "no object at all")
    assert_same_losses(losses_of(own, images, targets), expected)
    assert_same_losses(losses_of(own, images, with_compact_masks(targets)), expected)
    assert_same_detections(detections_of(own, images), detections_of(reference, images), least=5)


def test_a_batch_without_objects_still_gives_every_parameter_a_gradient(default_pair):
    """As with torchvision: under DistributedDataParallel a parameter without one would hang or stop the run."""
    image = drawn()[0][0]
    gradients = []
    for model in default_pair:
        sum(losses_of(model, [image], [without_objects(image)]).values()).backward()
        gradients.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
        model.zero_grad(set_to_none=True)
    reference, own = gradients
    assert own == reference


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("arguments", DIFFERENT_ARGUMENTS.values(), ids=DIFFERENT_ARGUMENTS)
def test_other_arguments_equal_torchvision(arguments):
    images, targets = drawn(2)
    if arguments.get("num_classes") == 2:
        targets = [dict(target, labels=torch.ones_like(target["labels"])) for target in targets]
    reference, own = pair(**({"min_size": 64} | arguments))
    assert_same_losses(losses_of(own, images, targets), losses_of(reference, images, targets))
    assert_same_detections(detections_of(own, images), detections_of(reference, images), least=3)


@pytest.mark.slow
@torch.no_grad()
def test_torchvisions_roi_align_may_stand_in_the_place_of_ours():
    images = drawn(1)[0]
    pools = dict(
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 0), mask_roi_pool=MultiScaleRoIAlign(["0", "1"], 14, 1)
    )
    reference, own = pair(min_size=64, **pools)
    assert own.roi_heads.box_roi_pool is pools["box_roi_pool"]
    assert_same_detections(detections_of(own, images), detections_of(reference, images), least=5)


@pytest.mark.slow
@torch.no_grad()
def test_torchvisions_mask_predictor_may_stand_in_the_place_of_ours():
    images, targets = drawn(1)
    reference, own = pair(min_size=64)
    standing_in = copy.deepcopy(own)
    standing_in.roi_heads.mask_predictor = copy.deepcopy(reference.roi_heads.mask_predictor)
    assert_same_losses(losses_of(standing_in, images, targets), losses_of(own, images, targets))
    assert_same_detections(detections_of(standing_in, images), detections_of(own, images), least=5)


# --- what goes in -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_uint8_images_equal_float_images(default_pair):
    images = [(image * 255).to(torch.uint8) for image in synthetic_batch()[0][:2]]
    own = copy.deepcopy(default_pair[1]).float()
    from_uint8, from_float = detections_of(own, images), detections_of(own, [image / 255 for image in images])
    for ours, expected in zip(from_uint8, from_float):
        assert len(expected["boxes"]) and all(torch.equal(ours[key], expected[key]) for key in expected)


@torch.no_grad()
def test_compact_uint8_and_bool_masks_give_the_same_losses(default_pair):
    images, targets = drawn(1)
    _, own = default_pair
    expected = losses_of(own, images, targets)
    for other in (with_compact_masks(targets), [dict(targets[0], masks=targets[0]["masks"].bool())]):
        assert losses_of(own, images, other) == expected


@torch.no_grad()
def test_neither_images_nor_targets_are_changed(default_pair):
    images, targets = drawn(1)
    before = copy.deepcopy((images, targets))
    losses_of(default_pair[1], images, targets)
    torch.testing.assert_close((images, targets), before, rtol=0, atol=0)


# Case: (the targets a and b of two images -> wrong ones, error, message).
WRONG_TARGETS = {
    "none at all": (lambda a, b: None, ValueError, "a target for each of the 2 images"),
    "one of two": (lambda a, b: [a], ValueError, "a target for each of the 2 images"),
    "no masks": (lambda a, b: [a, without(b, "masks")], ValueError, r"target 1 lacks \['masks'\]"),
    "boxes of five": (lambda a, b: [dict(a, boxes=torch.rand(3, 5)), b], TypeError, r"target 0: boxes .*\[3, 5\]"),
    "int boxes": (lambda a, b: [dict(a, boxes=a["boxes"].long()), b], TypeError, "target 0: boxes .*int64"),
    "boxes in a list": (lambda a, b: [dict(a, boxes=a["boxes"].tolist()), b], TypeError, "target 0: boxes .*list"),
    "float labels": (lambda a, b: [a, dict(b, labels=b["labels"].float())], TypeError, "target 1: labels .*float32"),
    "fewer labels": (lambda a, b: [a, dict(b, labels=b["labels"][1:])], ValueError, "5 boxes, 4 labels and 5 masks"),
    "fewer masks": (lambda a, b: [dict(a, masks=a["masks"][1:]), b], ValueError, "3 boxes, 3 labels and 2 masks"),
    "an empty box": (lambda a, b: [a, box_that_ends_at(b, 2)], ValueError, "target 1: box .* no width or height"),
    "a box of NaN": (lambda a, b: [a, box_that_ends_at(b, float("nan"))], ValueError, "target 1: box .*nan"),
    "label 0": (lambda a, b: [dict(a, labels=a["labels"] * 0), b], ValueError, "target 0: label 0 .*1.*90"),
    "label 91": (lambda a, b: [a, dict(b, labels=b["labels"] * 0 + 91)], ValueError, "target 1: label 91 .*1.*90"),
    "float masks": (lambda a, b: [dict(a, masks=a["masks"].float()), b], ValueError, "masks must be uint8 or bool"),
    "masks of another picture": (
        lambda a, b: [a, dict(b, masks=b["masks"][:, :100])], ValueError, "target 1: masks .*100x110.*171x110"
    ),
}  # fmt: skip


def without(target: dict, key: str) -> dict:
    return {k: v for k, v in target.items() if k != key}


def box_that_ends_at(target: dict, right: float) -> dict:
    boxes = target["boxes"].clone()
    boxes[3] = torch.tensor([2, 5, right, 9])
    return dict(target, boxes=boxes)


@pytest.mark.parametrize(("change", "error", "message"), WRONG_TARGETS.values(), ids=WRONG_TARGETS)
def test_wrong_targets_are_refused_and_named(default_pair, change, error, message):
    images, targets = drawn(2)
    with pytest.raises(error, match=message):
        losses_of(default_pair[1], images, change(*targets))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [(torch.rand(1, 3, 64, 64), ValueError, r"\[C, H, W\], got \[1, 3, 64, 64\]"),
     (torch.ones(3, 64, 64, dtype=torch.int32), TypeError, "float or uint8, got torch.int32")],
)  # fmt: skip
def test_wrong_images_are_refused_and_named(default_pair, image, error, message):
    with pytest.raises(error, match=message):
        detections_of(default_pair[1], [image])


def test_either_the_number_of_classes_or_both_predictors_are_given():
    with pytest.raises(ValueError, match="num_classes or box_predictor"):
        MaskRCNN(backbones()[1])
    with pytest.raises(ValueError, match="num_classes or box_predictor"):
        MaskRCNN(backbones()[1], 5, box_predictor=FastRCNNPredictor(1024, 5))


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_pair() -> tuple[nn.Module, MaskRCNN]:
    """What `maskrcnn_resnet50_fpn` builds and what we build with nothing but defaults: BatchNorm2d, 91 classes."""
    torch.manual_seed(13)
    small = SMALL | dict(min_size=64, box_batch_size_per_image=8)
    reference = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **small)
    enliven_norms(reference.backbone)
    missing, unexpected = reference.load_state_dict(without_norms(lively_state(full=True)), strict=False)
    assert not unexpected and all("bn" in key or "downsample.1" in key for key in missing)
    own = MaskRCNN(resnet50_fpn_backbone(trainable_layers=5), 91, **small)
    return reference.double(), own.double()


def without_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if ".bn" not in key and "downsample.1" not in key}


@pytest.mark.slow
def test_state_dicts_go_both_ways(published_pair):
    reference, own = published_pair
    assert list(own.state_dict()) == list(reference.state_dict())
    own.load_state_dict(reference.state_dict(), strict=True)
    with torch.device("meta"):  # which spares drawing weights
        other = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    other.load_state_dict(own.state_dict(), strict=True, assign=True)
    for key, value in reference.state_dict().items():
        assert torch.equal(own.state_dict()[key], value) and torch.equal(other.state_dict()[key], value), key


@pytest.mark.slow
def test_the_same_parameters_are_trained_with_the_defaults(published_pair):
    reference, own = ({n for n, p in model.named_parameters() if p.requires_grad} for model in published_pair)
    assert own == reference


@pytest.mark.slow
@torch.no_grad()
def test_losses_and_running_statistics_with_batch_norm_equal_torchvision(published_pair):
    reference, own = published_pair
    own.load_state_dict(reference.state_dict(), strict=True)
    images, targets = drawn(2)
    before = copy.deepcopy(reference.state_dict())
    try:
        expected = losses_of(reference, images, targets)
        assert_same_losses(losses_of(own, images, targets), expected)
        ours, theirs = own.state_dict(), reference.state_dict()
        assert not torch.equal(theirs["backbone.body.bn1.running_mean"], before["backbone.body.bn1.running_mean"])
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    finally:
        reference.load_state_dict(before)
        own.load_state_dict(before)


@pytest.mark.slow
@torch.no_grad()
def test_detections_with_batch_norm_equal_torchvision(published_pair):
    reference, own = published_pair
    own.load_state_dict(reference.state_dict(), strict=True)
    images = drawn(1)[0]
    assert_same_detections(detections_of(own, images), detections_of(reference, images), least=5)


def test_state_dicts_of_the_published_files_older_style_load(default_pair):
    reference, own = default_pair
    state = reference.state_dict()
    older = {}
    for key, value in state.items():
        for pattern, replacement in OLDER_KEYS:
            key = re.sub(pattern, replacement, key)
        older[key] = value + 1
    assert {"backbone.fpn.inner_blocks.0.weight", "backbone.fpn.layer_blocks.0.weight", "rpn.head.conv.weight",
            "roi_heads.mask_head.mask_fcn1.weight"} <= set(older)  # fmt: skip
    assert len(set(older) - set(state)) == 8 + 8 + 2 + 8
    keys = list(older)
    _, fresh = pair()
    fresh.load_state_dict(older, strict=True)
    assert list(older) == keys
    for key, value in state.items():
        assert torch.equal(fresh.state_dict()[key], value + 1), key


def test_keys_that_do_not_belong_are_named(default_pair):
    _, own = default_pair
    state = dict(own.state_dict(), **{"rpn.head.convolution.weight": torch.zeros(1)})
    del state["roi_heads.box_head.fc6.bias"]
    with pytest.raises(RuntimeError, match=r"fc6\.bias(.|\n)*rpn\.head\.convolution\.weight"):
        own.load_state_dict(state, strict=True)


@torch.no_grad()
def test_channels_last_weights_give_the_same_detections(default_pair):
    _, own = default_pair
    images = drawn(1)[0]
    channels_last = copy.deepcopy(own).to(memory_format=torch.channels_last)
    assert channels_last.backbone.body.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same_detections(detections_of(channels_last, images), detections_of(own, images), least=5)


@pytest.mark.slow
@torch.no_grad()
def test_the_second_versions_parts_equal_torchvision():
    """`maskrcnn_resnet50_fpn_v2`, put together by hand: normalised FPN and heads, a deeper RPN head, a box head of
    convolutions."""
    arguments = SMALL | dict(min_size=64, rpn_post_nms_top_n_test=25, box_detections_per_img=8, box_score_thresh=0.0)
    reference = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **arguments)
    enliven_norms(reference)
    own = MaskRCNN(
        resnet50_fpn_backbone(trainable_layers=5, fpn_norm_layer=nn.BatchNorm2d),
        91,
        rpn_head=RPNHead(256, 3, conv_depth=2),
        box_head=FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], nn.BatchNorm2d),
        mask_head=MaskRCNNHeads(256, [256] * 4, 1, nn.BatchNorm2d),
        **arguments,
    )
    own.load_state_dict(reference.state_dict(), strict=True)
    images = drawn(1)[0]
    assert_same_detections(detections_of(own.double(), images), detections_of(reference.double(), images), least=8)


# --- the backbone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, FrozenBatchNorm2d])
@pytest.mark.parametrize("trainable_layers", range(6))
def test_trainable_layers_freeze_what_torchvision_freezes(trainable_layers, norm_layer):
    with torch.device("meta"):
        reference = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=norm_layer, trainable_layers=trainable_layers
        )
        own = resnet50_fpn_backbone(norm_layer=norm_layer, trainable_layers=trainable_layers)
    frozen, expected = ({n for n, p in m.named_parameters() if not p.requires_grad} for m in (own, reference))
    assert frozen == expected and bool(expected) == (trainable_layers < 5)


@pytest.mark.parametrize("trainable_layers", [-1, 6])
def test_trainable_layers_beyond_0_to_5_are_refused(trainable_layers):
    with torch.device("meta"), pytest.raises(ValueError, match=f"0..5, got {trainable_layers}"):
        resnet50_fpn_backbone(trainable_layers=trainable_layers)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("returned_layers", [[1, 2, 3, 4], [2, 3, 4], [1, 3], [4]], ids=str)
def test_returned_layers_and_extra_blocks_equal_torchvision(returned_layers):
    extra = LastLevelP6P7(256, 256) if returned_layers == [2, 3, 4] else None
    reference = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d, returned_layers=returned_layers,
        extra_blocks=extra,
    )  # fmt: skip
    enliven_norms(reference)
    own = resnet50_fpn_backbone(returned_layers=returned_layers, extra_blocks=copy.deepcopy(extra))
    own.load_state_dict(reference.state_dict(), strict=True)
    image = torch.rand(1, 3, 96, 64, dtype=torch.float64)
    levels, expected = own.double().eval()(image), reference.double().eval()(image)
    assert list(levels) == list(expected)
    for name, level in expected.items():
        torch.testing.assert_close(levels[name], level, rtol=0, atol=1e-9)


@pytest.mark.parametrize("returned_layers", [[0, 1], [4, 5], []], ids=str)
def test_returned_layers_beyond_1_to_4_are_refused(returned_layers):
    with torch.device("meta"), pytest.raises(ValueError, match="stages out of 1..4"):
        resnet50_fpn_backbone(returned_layers=returned_layers)


@pytest.fixture(scope="module")
def classifier_state() -> dict[str, Tensor]:
    """The state dict of torchvision's ResNet-50 with random numbers in every tensor."""
    with torch.device("meta"):
        state = resnet50(weights=None).state_dict()
    generator = torch.Generator().manual_seed(4)
    return {
        k: torch.rand(v.shape, generator=generator) if v.is_floating_point() else torch.tensor(7)
        for k, v in state.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_pretrain_path_loads_a_classification_resnet50(tmp_path, classifier_state, norm_layer):
    body = resnet50_fpn_backbone(saved(classifier_state, tmp_path / "resnet50.pth"), norm_layer).body.state_dict()
    left_out = {key for key in set(classifier_state) - set(body) if not key.endswith("num_batches_tracked")}
    assert left_out == {"fc.weight", "fc.bias"}
    for key, value in body.items():
        assert torch.equal(value, classifier_state[key]), key


@pytest.mark.slow
def test_pretrain_path_loads_into_fewer_stages(tmp_path, classifier_state):
    path = str(saved(classifier_state, tmp_path / "resnet50.pth"))
    body = resnet50_fpn_backbone(path, returned_layers=[1, 2]).body.state_dict()
    assert not any(key.startswith(("layer3", "layer4")) for key in body)
    assert all(torch.equal(value, classifier_state[key]) for key, value in body.items())


ANOTHER_BLOCK = {"layer1.3.conv1.weight": torch.rand(64, 256, 1, 1)}
WRONG_WEIGHTS = {
    "truncated": (lambda s: {k: s[k] for k in s if not k.startswith("layer1.2")}, "missing .*layer1.2.conv1"),
    "foreign": (lambda s: {"stem.0.weight": torch.rand(64)}, "missing .*conv1.*unexpected .*stem.0.weight"),
    "another depth": (lambda s: s | ANOTHER_BLOCK, "unexpected .*layer1.3"),
    "another shape": (lambda s: s | {"conv1.weight": torch.rand(32, 3, 7, 7)}, "other shapes .*conv1.weight"),
    "wrapped": (lambda s: {"model": s}, "missing .*conv1.*unexpected .*model"),
    "a list": (lambda s: list(s.values())[:3], "list"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_pretrain_path_refuses_other_weights_and_names_keys(tmp_path, classifier_state, change, message):
    path = tmp_path / "other.pth"
    one_stage = {k: v for k, v in classifier_state.items() if not k.startswith(("layer2", "layer3", "layer4"))}
    resnet50_fpn_backbone(saved(one_stage, path), returned_layers=[1])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{message}"):
        resnet50_fpn_backbone(saved(change(one_stage), path), returned_layers=[1])


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_pretrain_path_refuses_a_file_cut_short(tmp_path):
    path = saved({"conv1.weight": torch.rand(64, 3, 7, 7)}, tmp_path / "cut.pth")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        resnet50_fpn_backbone(path)


def test_pretrain_path_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.pth: no such file"):
        resnet50_fpn_backbone(tmp_path / "absent.pth")


# --- the accelerator --------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_losses_and_detections_on_a_gpu_equal_torchvision(default_pair):
    images, targets = drawn(2)
    images = [image.cuda() for image in images]
    on_gpu = [{key: value.cuda() for key, value in target.items()} for target in targets]
    compact = [dict(t, masks=m["masks"]) for t, m in zip(on_gpu, with_compact_masks(targets))]
    reference, own = (copy.deepcopy(model).cuda() for model in default_pair)
    with torch.no_grad():
        assert_same_losses(losses_of(own, images, compact), losses_of(reference, images, on_gpu))
    assert_same_detections(detections_of(own, images), detections_of(reference, images), least=12)
