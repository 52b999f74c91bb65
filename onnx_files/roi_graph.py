"""The second stage in an ONNX graph: pyramid and proposals of one image -> its detections."""

import math
from collections.abc import Sequence

from backbone.conv_norm import bias_of
from network_files.heads import FastRCNNPredictor, MaskRCNNPredictor, TwoMLPHead
from network_files.roi_align import CANONICAL_LEVEL, CANONICAL_SIZE, PyramidRoIAlign, RoIPool
from network_files.roi_heads import RoIHeads
from onnx_files.graph import Graph, require_class
from onnx_files.rpn_graph import clip, decode, unless_small

ROI_LEVELS = 4  # the last level of the pyramid is the RPN's alone
LARGEST_EXPONENT = 6  # of a level's stride, log2


def detections(g: Graph, levels: Sequence[str], proposals: str, image_size: str, heads: RoIHeads) -> dict[str, str]:
    """Add the operators of `RoIHeads.detect` for one image: pyramid levels and proposals -> detections.

    Levels are [1, C, H_i, W_i], finest first, and proposals float32 [P, 4]. `image_size`, int64 [2], is height and
    width. Returns `boxes` [D, 4] in the resized image, `labels` [D], `scores` [D] and `masks` [D, 1, 28, 28], best
    first.
    """
    levels = levels[:ROI_LEVELS]
    g.stage = "roi_heads"
    exponents = [stride_exponent(g, level, image_size) for level in levels]

    g.stage = "roi_heads.box"
    predictor = require_class("roi_heads.box_predictor", heads.box_predictor, FastRCNNPredictor)
    features, order = pool(g, levels, exponents, proposals, heads.box_roi_pool, "roi_heads.box_roi_pool")
    x, restore = box_head(g, features, heads), inverse(g, order)
    logits, deltas = (
        g.op("Gather", g.linear(x, getattr(predictor, key), f"roi_heads.box_predictor.{key}"), restore)
        for key in ("cls_score", "bbox_pred")
    )
    found = select_detections(g, logits, deltas, proposals, image_size, heads, predictor.cls_score.out_features - 1)

    g.stage = "roi_heads.mask"
    features, order = pool(g, levels, exponents, found["boxes"], heads.mask_roi_pool, "roi_heads.mask_roi_pool")
    x = g.sequence(features, heads.mask_head, "roi_heads.mask_head")
    masks = masks_of_classes(g, x, g.op("Gather", found["labels"], order), heads)
    return found | {"masks": g.op("Gather", masks, inverse(g, order))}


def stride_exponent(g: Graph, level: str, image_size: str) -> str:
    """Return the base-2 logarithm of a level's stride (see `stride_of`), int64 [1]."""
    cells = g.cast(g.size(level), "float32")
    ratio = g.op("ReduceMax", g.op("Div", g.cast(image_size, "float32"), cells), keepdims=1)
    # 2^k is the nearest power above 2^(k - 1/2). Sides below 10,000 give no ratio within float32's error of that.
    beyond = g.op("Greater", ratio, g.floats([2 ** (k + 0.5) for k in range(LARGEST_EXPONENT)]))
    return g.op("ReduceSum", g.cast(beyond, "int64"), g.integers([0]), keepdims=1)


def pool(
    g: Graph, levels: Sequence[str], exponents: Sequence[str], boxes: str, roi_pool: RoIPool, name: str
) -> tuple[str, str]:
    """Pool the features of boxes [R, 4] as `PyramidRoIAlign` does.

    Returns features [R, C, h, w], those of the finest level first, and the index of each feature's box, int64 [R].
    """
    module = require_class(name, roi_pool, PyramidRoIAlign)
    level_ids = assign_levels(g, boxes, exponents[0], exponents[-1])
    features, owners = [], []
    for i, (level, exponent) in enumerate(zip(levels, exponents)):
        chosen = g.reshape(g.op("NonZero", g.op("Equal", level_ids, g.integers(i))), -1)
        scale = g.op("Gather", g.floats([0.5**k for k in range(LARGEST_EXPONENT + 1)]), exponent)
        rois = g.op("Mul", g.op("Gather", boxes, chosen), scale)
        features.append(
            g.op(
                "RoiAlign", level, rois, g.op("Mul", chosen, g.integers(0)),
                output_height=module.output_size[0], output_width=module.output_size[1],
                sampling_ratio=module.sampling_ratio, spatial_scale=1.0,
                coordinate_transformation_mode="half_pixel" if module.aligned else "output_half_pixel",
            )
        )  # fmt: skip
        owners.append(chosen)
    return g.op("Concat", *features, axis=0), g.op("Concat", *owners, axis=0)


def assign_levels(g: Graph, boxes: str, finest: str, coarsest: str) -> str:
    """Assign boxes to levels as `network_files.roi_align.assign_levels` does: [R, 4] -> int64 [R]."""
    sides = g.op("Sub", g.columns(boxes, 2, 4), g.columns(boxes, 0, 2))
    size = g.op("Sqrt", g.op("Mul", g.column(sides, 0), g.column(sides, 1)))
    octaves = g.op("Div", g.op("Log", g.op("Div", size, g.floats(CANONICAL_SIZE))), g.floats(math.log(2)))
    level = g.op("Floor", g.op("Add", g.op("Add", octaves, g.floats(CANONICAL_LEVEL)), g.floats(1e-6)))
    finest, coarsest = g.cast(finest, "float32"), g.cast(coarsest, "float32")
    level = g.op("Min", g.op("Max", level, finest), coarsest)
    return g.cast(g.op("Sub", level, finest), "int64")


def inverse(g: Graph, order: str) -> str:
    """Return the permutation that undoes `order`, int64 [R]."""
    places = g.range(g.op("Shape", order))
    return g.op("ScatterElements", g.op("Mul", order, g.integers(0)), order, places, axis=0)


def box_head(g: Graph, features: str, heads: RoIHeads) -> str:
    """RoI features [R, C, h, w] -> vectors [R, F]."""
    if not isinstance(heads.box_head, TwoMLPHead):
        return g.sequence(features, heads.box_head, "roi_heads.box_head")
    x = g.op("Flatten", features, axis=1)
    for key in ("fc6", "fc7"):
        x = g.op("Relu", g.linear(x, getattr(heads.box_head, key), f"roi_heads.box_head.{key}"))
    return x


def select_detections(
    g: Graph, logits: str, deltas: str, proposals: str, image_size: str, heads: RoIHeads, classes: int
) -> dict[str, str]:
    """Add `RoIHeads.select_detections`: logits [P, K], deltas [P, 4 * K], proposals [P, 4] -> boxes, labels, scores."""
    probs = g.columns(g.op("Softmax", logits, axis=1), 1, classes + 1)
    deltas = g.columns(g.reshape(deltas, -1, classes + 1, 4), 1, classes + 1, 1)
    boxes = decode(g, deltas, g.op("Unsqueeze", proposals, g.integers([1])), heads.box_coder)
    boxes = clip(g, boxes, image_size)
    probs = unless_small(g, probs, boxes, heads.smallest_side)

    # Each class is an image of the operator's batch. No more than `detections_per_img` of a class can be kept.
    if heads.agnostic_nms:
        candidate_boxes, candidate_probs = g.reshape(boxes, 1, -1, 4), g.reshape(probs, 1, 1, -1)
    else:
        candidate_boxes = g.op("Transpose", boxes, perm=[1, 0, 2])
        candidate_probs = g.op("Unsqueeze", g.op("Transpose", probs, perm=[1, 0]), g.integers([1]))
    kept = g.op(
        "NonMaxSuppression", candidate_boxes, candidate_probs, g.integers([heads.detections_per_img]),
        g.floats([heads.nms_thresh]), g.floats([max(heads.score_thresh, 0.0)]),
    )  # fmt: skip
    column, row = g.column(kept, 0), g.column(kept, 2)
    places = row if heads.agnostic_nms else g.op("Add", g.op("Mul", row, g.integers(classes)), column)

    # Sorted among the places of all candidates: equal scores stay in the order of the proposals.
    flat = g.reshape(probs, -1)
    nothing = g.op("Sub", g.op("Mul", flat, g.floats(0.0)), g.floats(1.0))
    candidates = g.op("ScatterElements", nothing, places, g.op("Gather", flat, places), axis=0)
    scores, best = g.ops("TopK", 2, candidates, g.at_most(heads.detections_per_img, places))
    labels = g.op("Add", g.op("Mod", best, g.integers(classes)), g.integers(1))
    return {"boxes": g.op("Gather", g.reshape(boxes, -1, 4), best), "labels": labels, "scores": scores}


def masks_of_classes(g: Graph, x: str, labels: str, heads: RoIHeads) -> str:
    """Predict the mask of each RoI's label: [R, C, 14, 14] and labels int64 [R] -> probabilities [R, 1, 28, 28]."""
    name = "roi_heads.mask_predictor"
    predictor = require_class(name, heads.mask_predictor, MaskRCNNPredictor)
    upsample, last = predictor.conv5_mask, predictor.mask_fcn_logits
    x = g.op(
        "ConvTranspose", x, *g.parameters(upsample, f"{name}.conv5_mask"),
        kernel_shape=upsample.kernel_size, strides=upsample.stride,
    )  # fmt: skip
    x = g.op("Relu", x)
    weight = g.weight(f"{name}.mask_fcn_logits.weight", last.weight.flatten(1))
    bias = g.weight(f"{name}.mask_fcn_logits.bias", bias_of(last)[:, None, None])
    channels = last.in_channels
    weights = g.op("Unsqueeze", g.op("Gather", weight, labels), g.integers([1]))
    logits = g.op("MatMul", weights, g.reshape(x, 0, channels, 784))
    return g.op("Sigmoid", g.reshape(g.op("Add", logits, g.op("Gather", bias, labels)), 0, 1, 28, 28))
