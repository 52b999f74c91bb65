"""The exported graph against the network: onnxruntime finds in images what torch finds."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

pytest.importorskip("onnx", reason="needs the packages onnx and onnxruntime")
pytest.importorskip("onnxruntime", reason="needs the packages onnx and onnxruntime")

from onnx_files.network_graph import network_graph  # noqa: E402
from tests.helpers.exported import (  # noqa: E402
    assert_same_detections,
    drawn_image,
    lively_network,
    run_session,
    run_torch,
    session_of,
)
from tests.helpers.photos import THREE_PHOTOS, load_photos  # noqa: E402

SMALL = dict(min_size=96, max_size=160, proposals=60)
# Smaller and larger than the network's input, of every shape, and one pixel high or wide.
SIZES = [(64, 64), (97, 301), (240, 131), (480, 640), (800, 1333), (1, 50), (50, 1), (1, 900), (3, 700), (33, 32)]


@pytest.fixture(scope="module", params=["v1", "v2", "detectron2"])
def exported(request):
    model = lively_network(request.param, classes=5, **SMALL)
    return model, session_of(model)


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_drawn_images_of_every_size_give_the_same_detections(exported, size):
    model, session = exported
    image = drawn_image(*size, seed=sum(size))
    reference = run_torch(model, image)
    assert len(reference["labels"]) > 3
    assert_same_detections(run_session(session, image), reference, size, model.continuous_paste)


def test_photos_give_the_same_detections(exported, data_folder):
    model, session = exported
    images, _ = load_photos(data_folder / "coco_tiny", "val", THREE_PHOTOS)
    for image in images:
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        reference = run_torch(model, pixels)
        assert len(reference["labels"]) > 3
        assert_same_detections(run_session(session, pixels), reference, pixels.shape[:2], model.continuous_paste)


def test_the_masks_that_are_compared_have_edges(exported):
    """Else their IoU could not tell anything."""
    model, _ = exported
    inside = run_torch(model, drawn_image(97, 301))["masks"] > 0.5
    shares = inside.mean((1, 2, 3))
    assert ((shares > 0.05) & (shares < 0.95)).mean() > 0.5


def test_the_hundred_best_of_many_candidates_are_kept():
    model = lively_network("v1", classes=90, min_size=96, max_size=160)
    image = drawn_image(120, 160)
    model.roi_heads.detections_per_img = 1000
    assert len(run_torch(model, image)["labels"]) > 120
    model.roi_heads.detections_per_img = 100
    found = run_session(session_of(model), image)
    assert len(found["labels"]) == 100
    assert_same_detections(found, run_torch(model, image), (120, 160), False)


def test_with_agnostic_nms_an_object_has_one_label():
    model = lively_network("v1", classes=5, **SMALL)
    image = drawn_image(97, 301)
    by_class = run_torch(model, image)
    model.roi_heads.agnostic_nms = True
    found = run_session(session_of(model), image)
    assert 3 < len(found["labels"]) < len(by_class["labels"])
    assert_same_detections(found, run_torch(model, image), (97, 301), False)


def test_nothing_is_found_where_torch_finds_nothing():
    model = lively_network("v2", classes=2, **SMALL)
    nn.init.zeros_(model.roi_heads.box_predictor.cls_score.weight)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([9.0, 0, 0]))
    session = session_of(model)
    for size in ((64, 64), (1, 50)):
        image = drawn_image(*size)
        reference, found = run_torch(model, image), run_session(session, image)
        assert len(reference["labels"]) == 0
        assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
            name: (value.dtype, value.shape) for name, value in reference.items()
        }


@pytest.mark.parametrize("side", [17, 33, 45, 65])
def test_strides_of_images_smaller_than_the_coarsest_cells_are_those_of_the_network(side):
    """In a network's input of 65 x 65 px the coarsest level has three cells a side, of 22 px each."""
    model = lively_network("v1", classes=2, min_size=side, max_size=side, proposals=60)
    session = session_of(model)
    for size in ((80, 80), (80, 33)):
        image = drawn_image(*size)
        assert_same_detections(run_session(session, image), run_torch(model, image), size, False)


def test_bytes_give_what_fractions_give():
    model = lively_network("v1", classes=2, **SMALL)
    image = drawn_image(97, 131)
    bytes_found, found = (run_session(session_of(model, kind), image) for kind in ("uint8", "float32"))
    assert_same_detections(bytes_found, found, (97, 131), False)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["v1", *(pytest.param(arch, marks=pytest.mark.long) for arch in ("v2", "detectron2"))])
def test_networks_of_full_size_give_the_same_detections(arch):
    """Those that `build_model` makes, with the thin one's number of proposals."""
    model = lively_network(arch, classes=3, thin=False, **SMALL)
    image = drawn_image(240, 320)
    found, reference = run_session(session_of(model), image), run_torch(model, image)
    assert len(reference["labels"]) > 3
    assert_same_detections(found, reference, (240, 320), model.continuous_paste)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["v1", pytest.param("detectron2", marks=pytest.mark.long)])
def test_the_usual_input_size_gives_the_same_detections(arch):
    """800 to 1333 px, 1000 proposals."""
    model = lively_network(arch, classes=3)
    session = session_of(model)
    for size in ((480, 640), (1333, 800)):
        image = drawn_image(*size)
        assert_same_detections(run_session(session, image), run_torch(model, image), size, model.continuous_paste)


def test_a_part_that_the_exporter_does_not_know_is_named():
    model = lively_network("v1", classes=2, **SMALL)
    model.roi_heads.mask_head = nn.Sequential(nn.GELU())
    with pytest.raises(ValueError, match=r"roi_heads.mask_head.0 is a GELU"):
        network_graph(model, "float32", {})
    model.roi_heads.mask_roi_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
    with pytest.raises(ValueError, match=r"roi_heads.mask_roi_pool is a MultiScaleRoIAlign; .* only PyramidRoIAlign"):
        network_graph(model, "float32", {})
    model.rpn.head = nn.Identity()
    with pytest.raises(ValueError, match="rpn.head is a Identity; .* only RPNHead"):
        network_graph(model, "float32", {})
    model.backbone = nn.Identity()
    with pytest.raises(ValueError, match="backbone is a Identity"):
        network_graph(model, "float32", {})


def test_the_network_stays_as_it_is():
    model = lively_network("v1", classes=2, **SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network_graph(model, "float32", {})
    assert list(before) == list(model.state_dict())
    assert all(np.array_equal(value.numpy(), before[name].numpy()) for name, value in model.state_dict().items())
