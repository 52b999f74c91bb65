"""Networks with random weights written as ONNX, and whether a runtime finds in images what torch finds.

Torch computes in float64, runtimes in float32. How much a network amplifies rounding is measured in float64 too: all
weights are changed by a 2^20th, 16 times the largest rounding error of one operation in float32. A runtime's results
may differ from the exact ones by four times what this changes. Thus no bound depends on a machine.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from torch import nn

from network_files import MaskRCNN
from network_files.heads import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    RPNHead,
    TwoMLPHead,
)
from onnx_files.network_graph import GraphOptions, network_graph
from onnx_files.runtimes import Session, open_session
from tests.helpers.parity import enliven_norms, spread_logits, synthetic_batch, thin_backbone
from train_utils.models import ModelConfig, anchors_of, build_model, detectron2_parts

CHANGE = 2.0**-20
COMPARED = ("boxes", "scores", "masks")
ALLOWED = 4  # times the effect of the change
COORDINATE_ROUNDING = 2.0**-20  # of the longer side: 16 roundings in float32
DECIDED = 1e-3  # a change that does more than this swaps objects
DTYPES = {"boxes": "float32", "labels": "int64", "scores": "float32", "masks": "float32"}
Detection = Mapping[str, np.ndarray]


def lively_network(arch: str, classes: int, thin: bool = True, **sizes) -> MaskRCNN:
    """A network with random weights under which boxes, labels, scores and masks vary, in evaluation mode.

    Args:
        thin: whether it has few layers and channels, and runs in milliseconds.
    """
    torch.manual_seed(31)
    config = ModelConfig(classes + 1, arch, norm="frozen", **sizes)
    model = (thin_network(config) if thin else build_model(config)).eval()
    enliven_norms(model)
    heads = model.roi_heads
    nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.02)
    nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.05)
    spread_logits(model.rpn.head.cls_logits, 1.0)
    spread_logits(heads.box_predictor.cls_score, 3.0)
    with torch.no_grad():
        model(synthetic_batch()[0][:1])
        spread_mask_logits(model)
    return model


def thin_network(config: ModelConfig) -> MaskRCNN:
    """The parts of each architecture, with few layers and channels."""
    v2, detectron2, channels = config.arch == "v2", config.arch == "detectron2", 16
    norm = nn.BatchNorm2d if v2 else None
    backbone = thin_backbone(channels, norm, stride_in_1x1=detectron2)
    anchors = anchors_of(config)
    box_head = FastRCNNConvFCHead((channels, 7, 7), [channels] * 2, [32], norm) if v2 else TwoMLPHead(49 * channels, 32)
    parts = dict(
        rpn_head=RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2 if v2 else 1),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(32, config.num_classes),
        mask_head=MaskRCNNHeads(channels, [channels] * 2, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(channels, channels, config.num_classes),
        rpn_anchor_generator=anchors,
        **(detectron2_parts() if detectron2 else {}),
    )  # fmt: skip
    kept = dict.fromkeys(("rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test"), config.proposals or 1000)
    return MaskRCNN(backbone, min_size=config.min_size, max_size=config.max_size, **kept, **parts)


def spread_mask_logits(model: MaskRCNN) -> None:
    """Scale the mask logits so that each mask has pixels on both sides of 0.5, with clear edges."""
    layer = model.roi_heads.mask_predictor.mask_fcn_logits
    nn.init.normal_(layer.weight, std=0.05)
    nn.init.zeros_(layer.bias)
    images, _ = synthetic_batch()
    probs = torch.cat([found["masks"] for found in model.detect(images)])
    logits = probs.logit()
    scale = 3.0 / logits.flatten(1).std(1).mean()
    layer.bias.fill_(-float(logits.mean() * scale))
    layer.weight.mul_(scale)


def session_of(model: MaskRCNN, runtime: str = "onnxruntime", **settings: Any) -> Session:
    return opened(network_graph(model, GraphOptions(**settings), {}), runtime)


def opened(content: onnx.ModelProto | Path, runtime: str = "onnxruntime") -> Session:
    source = str(content) if isinstance(content, Path) else content.SerializeToString()
    return open_session(source, runtime, threads=1)


def run_session(session: Session, image: np.ndarray) -> Detection:
    """Detections in an image uint8 [H, W, 3]."""
    return session.detect(image.transpose(2, 0, 1))


class Reference:
    """A network in float64, and one whose weights differ by a factor of 1 + or - `CHANGE`."""

    def __init__(self, model: MaskRCNN):
        self.exact, self.changed = (copy.deepcopy(model).double() for _ in range(2))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in self.changed.parameters():
                weight *= 1 + CHANGE * (2 * torch.randint(0, 2, weight.shape, generator=generator) - 1)

    @torch.inference_mode()
    def detect(self, image: np.ndarray) -> tuple[Detection, dict[str, float]]:
        """Exact detections in an image uint8 [H, W, 3], and how far a runtime's may be from them."""
        pixels = torch.from_numpy(image).permute(2, 0, 1).double() / 255
        exact, changed = (
            {name: value.numpy() for name, value in model.detect([pixels])[0].items()}
            for model in (self.exact, self.changed)
        )
        tolerances = {name: ALLOWED * value for name, value in deviations(changed, exact).items()}
        tolerances["boxes"] += COORDINATE_ROUNDING * max(pixels.shape)
        return exact, tolerances

    def assert_finds(self, found: Sequence[Detection], image: np.ndarray, least: int = 4) -> None:
        """Assert that runtimes found what the network finds in an image uint8 [H, W, 3]: `least` or more objects."""
        exact, tolerances = self.detect(image)
        assert len(exact["labels"]) >= least
        for each in found:
            assert_same_detections(each, exact, tolerances)


def deviations(found: Detection, reference: Detection) -> dict[str, float]:
    """The largest differences between boxes, scores and masks of the same objects."""
    assert len(found["labels"]) == len(reference["labels"]), "rounding decides here; choose another image"
    reference = in_order_of(found, reference, DECIDED)
    values = {
        name: float(np.abs(found[name] - reference[name]).max(initial=0)) for name in ("boxes", "scores", "masks")
    }
    assert max(values.values()) < DECIDED, "rounding decides here; choose another image"
    return values


def drawn_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft colours, discs and noise, uint8 [height, width, 3]."""
    numbers = np.random.default_rng(seed)
    soft = Image.fromarray(numbers.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height), 2)
    image = np.array(soft)
    y, x = np.ogrid[:height, :width]
    for _ in range(7):
        cy, cx, radius = numbers.random(3) * (height, width, 0.4 * max(height, width)) + (0, 0, 1)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = numbers.integers(0, 256, 3)
    noise = numbers.integers(-12, 13, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def assert_same_detections(found: Detection, reference: Detection, tolerances: Mapping[str, float]) -> None:
    """The same labels in the same order, but for tied scores; boxes, scores and masks within tolerances."""
    shapes = [{name: value.shape for name, value in each.items()} for each in (found, reference)]
    assert shapes[0] == shapes[1]
    assert {name: str(value.dtype) for name, value in found.items()} == DTYPES
    reference = in_order_of(found, reference, 2 * tolerances["scores"])
    np.testing.assert_array_equal(found["labels"], reference["labels"])
    for name, tolerance in tolerances.items():
        np.testing.assert_allclose(found[name], reference[name], rtol=0, atol=tolerance, err_msg=name)


def in_order_of(found: Detection, reference: Detection, tied: float) -> Detection:
    """The reference in the order of what was found: those of the same rank, or of nearly the same score that fit."""
    free, order = set(range(len(reference["labels"]))), []
    for i, (label, score, box) in enumerate(zip(found["labels"], found["scores"], found["boxes"])):
        fitting = [j for j in free if abs(reference["scores"][j] - score) <= tied and reference["labels"][j] == label]
        nearest = min(fitting or free, key=lambda j: (np.abs(reference["boxes"][j] - box).max(), abs(i - j)))
        order.append(nearest)
        free.remove(nearest)
    return {name: value[order] for name, value in reference.items()}
