"""The region proposal network in an ONNX graph: pyramid -> proposals of one image. Boxes are [..., 4], x1y1x2y2."""

from collections.abc import Sequence

import numpy as np

from network_files.anchors import AnchorGenerator
from network_files.boxes import LARGEST_LOG_SCALE, BoxCoder
from network_files.heads import RPNHead
from network_files.rpn import RegionProposalNetwork
from onnx_files.graph import Graph, require_class

FINEST_STRIDE = 4


def proposals(g: Graph, levels: Sequence[str], batch: str, image_size: str, rpn: RegionProposalNetwork) -> str:
    """Return the proposals of one image, best first: float32 [P, 4], at most `post_nms_top_n`.

    Levels are [1, C, H_i, W_i], and `batch` is the padded network input [B, C_in, H, W]. `image_size`, int64 [2], is
    height and width without the padding.
    """
    head = require_class("rpn.head", rpn.head, RPNHead)
    post_nms_top_n = rpn.post_nms_top_n["testing"]
    boxes, scores = [], []
    for i, level in enumerate(levels):
        g.stage = f"rpn.{i}"
        hidden = g.sequence(level, head.conv, "rpn.head.conv")
        logits, deltas = (
            g.op("Transpose", g.conv(hidden, getattr(head, key), f"rpn.head.{key}"), perm=[0, 2, 3, 1])
            for key in ("cls_logits", "bbox_pred")
        )
        logits = g.reshape(logits, -1)
        best, chosen = g.ops("TopK", 2, logits, g.at_most(rpn.pre_nms_top_n["testing"], logits))
        chosen_deltas, chosen_anchors = (
            g.op("Gather", g.reshape(values, -1, 4), chosen)
            for values in (deltas, anchors(g, level, batch, i, rpn.anchor_generator))
        )
        decoded = clip(g, decode(g, chosen_deltas, chosen_anchors, rpn.box_coder), image_size)
        probs = unless_small(g, g.op("Sigmoid", best), decoded, rpn.smallest_side)
        kept = suppress(g, decoded, probs, post_nms_top_n, rpn.nms_thresh, rpn.score_thresh)
        boxes.append(g.op("Gather", decoded, kept))
        scores.append(g.op("Gather", probs, kept))
    g.stage = "rpn"
    joined = g.op("Concat", *scores, axis=0)
    _, best = g.ops("TopK", 2, joined, g.at_most(post_nms_top_n, joined))
    return g.op("Gather", g.op("Concat", *boxes, axis=0), best)


def suppress(g: Graph, boxes: str, scores: str, most: int, nms_thresh: float, score_thresh: float) -> str:
    """Apply NMS to a level's boxes [N, 4] whose scores [N] reach `score_thresh`. Returns indices, int64 [M <= most]."""
    # The operator keeps scores above its threshold, the network also those equal to it. Small boxes have the score -1.
    threshold = score_thresh - 1e-6 if score_thresh > 0 else -0.5
    kept = g.op(
        "NonMaxSuppression", g.op("Unsqueeze", boxes, g.integers([0])), g.op("Unsqueeze", scores, g.integers([0, 1])),
        g.integers([most]), g.floats([nms_thresh]), g.floats([threshold]),
    )  # fmt: skip
    return g.column(kept, 2)


def anchors(g: Graph, level: str, batch: str, i: int, generator: AnchorGenerator) -> str:
    """Return the anchors of one level: float32 [H_i, W_i, A, 4], x1y1x2y2 in pixels of the padded image."""
    shifts = []
    for axis, pattern in ((2, [0.0, 1, 0, 1]), (3, [1.0, 0, 1, 0])):
        fixed = FINEST_STRIDE << i
        if level in g.sizes:
            count, whole = g.sizes[level][axis - 2], g.sizes[batch][axis - 2]
            pixels = g.floats((np.arange(count) * (whole // count if generator.rounded else fixed)).tolist())
        else:
            cells = g.length(level, axis)
            stride = g.op("Div", g.length(batch, axis), cells) if generator.rounded else g.integers([fixed])
            pixels = g.cast(g.op("Mul", g.range(cells), stride), "float32")
        pixels = g.reshape(pixels, *((-1, 1, 1, 1) if axis == 2 else (1, -1, 1, 1)))
        shifts.append(g.op("Mul", pixels, g.floats(pattern)))
    return g.op("Add", g.op("Add", *shifts), g.floats(generator.cell_anchors[i].tolist()))


def decode(g: Graph, deltas: str, references: str, coder: BoxCoder) -> str:
    """Apply deltas [..., 4] to `references` [..., 4], which are broadcast, as `BoxCoder.decode` does."""
    low, high = g.columns(references, 0, 2), g.columns(references, 2, 4)
    size = g.op("Sub", high, low)
    centre = g.op("Add", low, g.op("Mul", size, g.floats(0.5)))
    shift = g.op("Div", g.columns(deltas, 0, 2), g.floats(coder.weights[:2]))
    centre = g.op("Add", g.op("Mul", shift, size), centre)
    growth = g.op("Div", g.columns(deltas, 2, 4), g.floats(coder.weights[2:]))
    growth = g.op("Exp", g.op("Min", growth, g.floats(LARGEST_LOG_SCALE)))
    half = g.op("Mul", g.op("Mul", growth, size), g.floats(0.5))
    return g.op("Concat", g.op("Sub", centre, half), g.op("Add", centre, half), axis=-1)


def clip(g: Graph, boxes: str, image_size: str) -> str:
    """Clip boxes [..., 4] to the image. `image_size`, int64 [2], is height and width."""
    largest = g.op("Gather", g.cast(image_size, "float32"), g.integers([1, 0, 1, 0]))
    return g.op("Min", g.op("Max", boxes, g.floats(0.0)), largest)


def unless_small(g: Graph, scores: str, boxes: str, smallest_side: float) -> str:
    """Return scores [...], replaced by -1 where a side of the box [..., 4] is shorter than `smallest_side`."""
    sides = g.op("Sub", g.columns(boxes, 2, 4), g.columns(boxes, 0, 2))
    shortest = g.op("Min", *(g.column(sides, i) for i in (0, 1)))
    return g.op("Where", g.op("Less", shortest, g.floats(smallest_side)), g.floats(-1.0), scores)
