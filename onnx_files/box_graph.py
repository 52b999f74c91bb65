"""Boxes in an ONNX graph: decode, clip, and find those that are too small. Boxes are [..., 4], x1y1x2y2 in pixels."""

from network_files.boxes import LARGEST_LOG_SCALE, BoxCoder
from onnx_files.graph import Graph


def decode(g: Graph, deltas: str, references: str, coder: BoxCoder) -> str:
    """`BoxCoder.decode` of [..., 4]; references are broadcast."""
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
    """`clip_boxes_to_image`; the size is int64 [2], height and width."""
    largest = g.op("Gather", g.cast(image_size, "float32"), g.integers([1, 0, 1, 0]))
    return g.op("Min", g.op("Max", boxes, g.floats(0.0)), largest)


def unless_small(g: Graph, scores: str, boxes: str, smallest_side: float) -> str:
    """Scores [...], but -1 where the box [..., 4] is narrower or shorter than `smallest_side`."""
    sides = g.op("Sub", g.columns(boxes, 2, 4), g.columns(boxes, 0, 2))
    shortest = g.op("Min", *(g.column(sides, i) for i in (0, 1)))
    return g.op("Where", g.op("Less", shortest, g.floats(smallest_side)), g.floats(-1.0), scores)
