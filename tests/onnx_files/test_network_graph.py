"""The exported graph against the network: every runtime finds in images what torch finds."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from backbone.conv_norm import fold_norms
from network_files import MaskRCNN
from train_utils.errors import InputError

pytest.importorskip("onnx", reason="needs the packages onnx and onnxruntime")
pytest.importorskip("onnxruntime", reason="needs the packages onnx and onnxruntime")

from onnx_files.network_graph import GraphOptions, network_graph  # noqa: E402
from onnx_files.runtimes import RUNTIMES, is_installed  # noqa: E402
from tests.helpers.exported import (  # noqa: E402
    Detection,
    Reference,
    drawn_image,
    lively_network,
    run_session,
    session_of,
)
from tests.helpers.photos import THREE_PHOTOS, load_photos  # noqa: E402

SMALL = dict(min_size=96, max_size=160, proposals=60)
# Smaller and larger than the network's input, of every shape, and one pixel high or wide.
SIZES = [(64, 64), (97, 301), (240, 131), (480, 640), (800, 1333), (1, 50), (50, 1), (1, 900), (3, 700), (33, 32)]


class Exported:
    """A network in float64, and its graph in every runtime that is installed."""

    def __init__(self, model: MaskRCNN, **settings):
        self.reference = Reference(model)
        self.sessions = [session_of(model, runtime, **settings) for runtime in RUNTIMES if is_installed(runtime)]

    def assert_same(self, image: np.ndarray, least: int = 4) -> Detection:
        """Return what was found in an image."""
        found = [run_session(session, image) for session in self.sessions]
        self.reference.assert_finds(found, image, least)
        return found[0]


@pytest.fixture(scope="module", params=["v1", *(pytest.param(a, marks=pytest.mark.slow) for a in ("v2", "detectron2"))])
def exported(request) -> Exported:
    return Exported(lively_network(request.param, classes=5, **SMALL))


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_drawn_images_of_every_size_give_the_same_detections(exported, size):
    found = exported.assert_same(drawn_image(*size, seed=sum(size)))
    shares = (found["masks"] > 0.5).mean((1, 2, 3))  # masks without edges would show nothing
    assert ((shares > 0.05) & (shares < 0.95)).mean() > 0.5


def test_photos_give_the_same_detections(exported, data_folder):
    images, _ = load_photos(data_folder / "coco_tiny", "val", THREE_PHOTOS)
    for image in images:
        exported.assert_same((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


@pytest.mark.slow
def test_the_hundred_best_of_many_candidates_are_kept():
    model = lively_network("v1", classes=90, min_size=96, max_size=160)
    image = drawn_image(120, 160)
    model.roi_heads.detections_per_img = 1000
    assert len(model.detect([torch.from_numpy(image).permute(2, 0, 1)])[0]["labels"]) > 120
    model.roi_heads.detections_per_img = 100
    assert len(Exported(model).assert_same(image)["labels"]) == 100


def test_with_agnostic_nms_an_object_has_one_label():
    image = drawn_image(97, 301)
    model = lively_network("v1", classes=5, **SMALL)
    by_class = model.detect([torch.from_numpy(image).permute(2, 0, 1)])[0]
    model.roi_heads.agnostic_nms = True
    found = Exported(model).assert_same(image)
    assert len(found["labels"]) < len(by_class["labels"])


@pytest.mark.parametrize("arch", ["v1", pytest.param("v2", marks=pytest.mark.slow)])
def test_other_anchors_are_in_the_graph(arch):
    anchors = {"anchor_sizes": [8, 16, 40, 80, 160], "anchor_ratios": [0.25, 1.0, 1.5, 4.0]}
    model = lively_network(arch, classes=5, **SMALL, **anchors)
    assert model.rpn.head.cls_logits.out_channels == 4
    Exported(model).assert_same(drawn_image(97, 301))


@pytest.mark.slow
def test_nothing_is_found_where_torch_finds_nothing():
    model = lively_network("v2", classes=2, **SMALL)
    nn.init.zeros_(model.roi_heads.box_predictor.cls_score.weight)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([9.0, 0, 0]))
    exported = Exported(model)
    for size in ((64, 64), (1, 50)):
        assert len(exported.assert_same(drawn_image(*size), least=0)["labels"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("side", [17, pytest.param(33, marks=pytest.mark.long), 45, 65])
def test_strides_of_images_smaller_than_the_coarsest_cells_are_those_of_the_network(side):
    """In a network's input of 65 x 65 px the coarsest level has three cells a side, of 22 px each."""
    exported = Exported(lively_network("v1", classes=2, min_size=side, max_size=side, proposals=60))
    for size in ((80, 80), (80, 33)):
        exported.assert_same(drawn_image(*size))


@pytest.mark.slow
def test_bytes_give_what_fractions_give():
    exported = Exported(lively_network("v1", classes=2, **SMALL), input_type="uint8")
    assert all(session.takes_uint8 for session in exported.sessions)
    exported.assert_same(drawn_image(97, 131))


@pytest.mark.parametrize("arch", ["v1", pytest.param("detectron2", marks=pytest.mark.long)])
def test_a_batch_of_a_fixed_size_gives_what_each_image_gives(arch):
    exported = Exported(lively_network(arch, classes=2, **SMALL), batch=2, size=(97, 131))
    images = [drawn_image(97, 131, seed) for seed in (1, 2)]
    pixels = np.stack([image.transpose(2, 0, 1) for image in images]).astype(np.float32) / np.float32(255)
    for session in exported.sessions:
        assert session.shape == [2, 3, 97, 131]
        found = session.run(pixels)
        assert {name: value.shape for name, value in found.items()} == {
            "boxes": (2, 100, 4), "labels": (2, 100), "scores": (2, 100), "masks": (2, 100, 1, 28, 28),
        }  # fmt: skip
        for i, image in enumerate(images):
            count = int((found["labels"][i] > 0).sum())
            assert count < 100 and not any(value[i, count:].any() for value in found.values())
            exported.reference.assert_finds([{name: value[i, :count] for name, value in found.items()}], image)


def test_a_file_for_one_size_takes_no_other():
    exported = Exported(lively_network("v1", classes=2, **SMALL), size=(97, 131), input_type="uint8")
    exported.assert_same(drawn_image(97, 131))
    with pytest.raises(InputError, match="takes images of 131 x 97 pixels, got 97 x 131"):
        run_session(exported.sessions[0], drawn_image(131, 97))


def test_weights_in_float16_give_what_the_rounded_network_gives():
    model = lively_network("v1", classes=5, **SMALL)
    session = session_of(model, weights="float16")
    fold_norms(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(weight.half())
    image = drawn_image(240, 131)
    Reference(model).assert_finds([run_session(session, image)], image)


@pytest.mark.long
@pytest.mark.parametrize("arch", ["v1", "v2", "detectron2"])
def test_networks_of_full_size_give_the_same_detections(arch):
    """Those that `build_model` makes, with the thin one's number of proposals."""
    Exported(lively_network(arch, classes=3, thin=False, **SMALL)).assert_same(drawn_image(240, 320))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["v1", pytest.param("detectron2", marks=pytest.mark.long)])
def test_the_usual_input_size_gives_the_same_detections(arch):
    """800 to 1333 px, 1000 proposals."""
    Exported(lively_network(arch, classes=3)).assert_same(drawn_image(480, 640))


def test_a_part_that_the_exporter_does_not_know_is_named():
    model = lively_network("v1", classes=2, **SMALL)
    model.roi_heads.mask_head = nn.Sequential(nn.GELU())
    with pytest.raises(ValueError, match=r"roi_heads.mask_head.0 is a GELU"):
        network_graph(model, GraphOptions(), {})
    model.roi_heads.mask_roi_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
    with pytest.raises(ValueError, match=r"roi_heads.mask_roi_pool is a MultiScaleRoIAlign; .* only PyramidRoIAlign"):
        network_graph(model, GraphOptions(), {})
    model.rpn.head = nn.Identity()
    with pytest.raises(ValueError, match="rpn.head is a Identity; .* only RPNHead"):
        network_graph(model, GraphOptions(), {})
    model.backbone = nn.Identity()
    with pytest.raises(ValueError, match="backbone is a Identity"):
        network_graph(model, GraphOptions(), {})


def test_the_network_stays_as_it_is():
    model = lively_network("v1", classes=2, **SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network_graph(model, GraphOptions(), {})
    assert list(before) == list(model.state_dict())
    assert all(np.array_equal(value.numpy(), before[name].numpy()) for name, value in model.state_dict().items())
