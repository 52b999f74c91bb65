"""Networks with random weights written as ONNX, and whether onnxruntime finds in images what torch finds."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from torch import nn

from network_files import MaskRCNN
from network_files.anchors import AnchorGenerator
from network_files.heads import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    MaskRCNNHeads,
    MaskRCNNPredictor,
    RPNHead,
    TwoMLPHead,
)
from network_files.masks.paste import mask_crops
from onnx_files.network_graph import network_graph
from tests.helpers.parity import enliven_norms, spread_logits, synthetic_batch, thin_backbone
from train_utils.models import ModelConfig, build_model, detectron2_parts

BOX_TOLERANCE = 0.05  # pixels (2e-4 measured)
SCORE_TOLERANCE = 1e-4  # (6e-5)
LEAST_IOU = 0.999  # of masks after pasting
TIED = 2e-5  # scores that differ by less have no order
Detection = Mapping[str, np.ndarray]


def lively_network(arch: str, classes: int, thin: bool = True, **sizes: int) -> MaskRCNN:
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
    anchors = AnchorGenerator(rounded=not detectron2)
    box_head = FastRCNNConvFCHead((channels, 7, 7), [channels] * 2, [32], norm) if v2 else TwoMLPHead(49 * channels, 32)
    parts = dict(
        rpn_head=RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2 if v2 else 1),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(32, config.num_classes),
        mask_head=MaskRCNNHeads(channels, [channels] * 2, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(channels, channels, config.num_classes),
        **(detectron2_parts() if detectron2 else {"rpn_anchor_generator": anchors}),
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


def session_of(model: MaskRCNN, input_type: str = "float32") -> onnxruntime.InferenceSession:
    return opened(network_graph(model, input_type, {}))


def opened(content: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    source = str(content) if isinstance(content, Path) else content.SerializeToString()
    return onnxruntime.InferenceSession(source, options)


def run_session(session: onnxruntime.InferenceSession, image: np.ndarray) -> Detection:
    """Detections in an image uint8 [H, W, 3]."""
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
    if session.get_inputs()[0].type != "tensor(uint8)":
        pixels = pixels.astype(np.float32) / np.float32(255)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": pixels})))


@torch.inference_mode()
def run_torch(model: MaskRCNN, image: np.ndarray) -> Detection:
    (found,) = model.detect([torch.from_numpy(image).permute(2, 0, 1)])
    return {name: value.numpy() for name, value in found.items()}


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


def assert_same_detections(found: Detection, reference: Detection, size: tuple[int, int], continuous: bool) -> None:
    """The same labels in the same order, but for tied scores; boxes, scores and pasted masks within the tolerances."""
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        name: (value.dtype, value.shape) for name, value in reference.items()
    }
    order = partners(found, reference)
    reference = {name: value[order] for name, value in reference.items()}
    np.testing.assert_array_equal(found["labels"], reference["labels"])
    np.testing.assert_allclose(found["boxes"], reference["boxes"], rtol=0, atol=BOX_TOLERANCE)
    np.testing.assert_allclose(found["scores"], reference["scores"], rtol=0, atol=SCORE_TOLERANCE)
    ours, theirs = (pasted(each, reference["boxes"], size, continuous) for each in (found, reference))
    for own, other in zip(ours, theirs, strict=True):
        assert (own & other).sum() >= LEAST_IOU * (own | other).sum(), ((own & other).sum(), (own | other).sum())


def partners(found: Detection, reference: Detection) -> list[int]:
    """The reference's detection for each one found: that of the same rank, or one of the same score that fits."""
    free, order = set(range(len(reference["labels"]))), []
    for i, (label, score, box) in enumerate(zip(found["labels"], found["scores"], found["boxes"])):
        tied = [j for j in free if abs(reference["scores"][j] - score) < TIED and reference["labels"][j] == label]
        tied.sort(key=lambda j: (np.abs(reference["boxes"][j] - box).max() > BOX_TOLERANCE, abs(i - j)))
        order.append(tied[0] if tied else min(free, key=lambda j: abs(i - j)))
        free.remove(order[-1])
    return order


def pasted(detection: Detection, boxes: np.ndarray, size: tuple[int, int], continuous: bool) -> list[np.ndarray]:
    """Each mask within its box in the image, bool [h, w]."""
    masks, boxes = (torch.from_numpy(np.array(each)) for each in (detection["masks"], boxes))
    return [crop.numpy() > 0.5 for _, _, crop in mask_crops(masks, boxes, size, continuous)]
