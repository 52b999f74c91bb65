"""The network as an ONNX graph: image or images -> boxes, labels, scores and 28 x 28 masks.

Each function here repeats the `forward` of the module that it is named after, operator by operator.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from backbone.conv_norm import fold_norms
from backbone.feature_pyramid import FeaturePyramidNetwork, LastLevelMaxPool
from backbone.resnet import Bottleneck, ResNet
from backbone.resnet50_fpn import BackboneWithFPN
from dataset_files.atomic_files import replacing
from network_files import MaskRCNN
from network_files.boxes import size_of
from network_files.image_transform import ImageTransform
from onnx_files.graph import Graph, require_class
from onnx_files.onnx_model import Description
from onnx_files.roi_graph import detections
from onnx_files.rpn_graph import proposals
from onnx_files.size_graph import size_after_resize, twice
from train_utils.trained_model import TrainedModel

OPSET = 17
MASK_THRESHOLD = 0.5
DETAILS = {"boxes": (4,), "labels": (), "scores": (), "masks": (1, 28, 28)}  # output -> shape per detection
PADDED_TO = 32  # the coarsest stage of the backbone has one cell per 32 pixels


@dataclass(frozen=True)
class GraphOptions:
    """Shape and type of the input images, and type of the stored weights."""

    input_type: str = "float32"  # "uint8", or "float32" for images in 0..1 or in the units of image_mean
    batch: int | None = None  # number of images, all of one size; None for one image without a batch dimension
    size: tuple[int, int] | None = None  # height and width of the images; None for any
    weights: str = "float32"  # type in which matrices are stored, "float32" or "float16"; the arithmetic is float32


def build(trained: TrainedModel, options: GraphOptions) -> onnx.ModelProto:
    """Build the ONNX model of a trained network, with a `Description` as metadata. Errors are as in `network_graph`."""
    heads, classes = trained.model.roi_heads, trained.classes
    thresholds = {
        "score": heads.score_thresh, "nms": heads.nms_thresh, "detections": heads.detections_per_img,
        "mask": MASK_THRESHOLD,
    }  # fmt: skip
    description = Description(
        classes.names, classes.category_ids, trained.config.to_plain(), thresholds, trained.model.continuous_paste,
        trained.trained_with.get("exif") or "apply", trained.thresholds,
    )  # fmt: skip
    return network_graph(trained.model, options, description.to_metadata())


def write(content: onnx.ModelProto, output: Path) -> None:
    """Write an ONNX model to a file. An existing file is replaced."""
    with replacing(output) as file:
        onnx.save_model(content, file)


def network_graph(model: MaskRCNN, options: GraphOptions, metadata: dict[str, str]) -> onnx.ModelProto:
    """Build the ONNX model of a network. ValueError names a part that the exporter does not support.

    The model has the input `image` [C, height, width] and the outputs of `MaskRCNN.detect`: `boxes` float32 [N, 4],
    x1y1x2y2 in pixels of the image, `labels` int64 [N], `scores` float32 [N], best first, and `masks` float32
    [N, 1, 28, 28], probabilities. With `options.batch`, all have one more dimension in front. With a batch or a size, N
    is the largest number of detections, and zeros follow the detections, whose labels are 1 or above.
    """
    model = copy.deepcopy(model).eval()
    fold_norms(model)
    g = Graph(OPSET, options.weights)
    batch, image_size, resized_size = transform(g, "image", model.transform, options)
    levels = backbone(g, batch, model)
    strides = [4 << i for i in range(len(levels))]
    ratio = g.op("Div", g.cast(image_size, "float32"), g.cast(resized_size, "float32"))
    ratio = g.op("Gather", ratio, g.integers([1, 0, 1, 0]))
    results = []
    for i in range(options.batch or 1):
        own = [g.columns(level, i, i + 1, 0) for level in levels] if options.batch else levels
        if options.size:
            height, width = g.sizes[batch]
            g.sizes |= {level: (-(-height // stride), -(-width // stride)) for level, stride in zip(own, strides)}
        boxes = proposals(g, own, batch, resized_size, model.rpn)
        found = detections(g, own, boxes, resized_size, model.roi_heads)
        found["boxes"] = g.op("Mul", found["boxes"], ratio)
        results.append(found)

    most: int | str = "N"
    if options.batch or options.size:
        most = model.roi_heads.detections_per_img
        results = [{k: filled_up(g, value, most, DETAILS[k]) for k, value in found.items()} for found in results]
    outputs: dict[str, tuple[str, str, Sequence[int | str]]] = {}
    for name, shape in DETAILS.items():
        value = results[0][name]
        dimensions: list[int | str] = [most, *shape]
        if options.batch:
            stacked = [g.op("Unsqueeze", found[name], g.integers([0])) for found in results]
            value, dimensions = g.op("Concat", *stacked, axis=0), [options.batch, *dimensions]
        outputs[name] = (value, "int64" if name == "labels" else "float32", dimensions)
    channels = len(model.transform.image_mean)
    image_shape = [*([options.batch] if options.batch else []), channels, *(options.size or ("height", "width"))]
    about = "Mask R-CNN: image [channels, height, width] -> boxes x1y1x2y2 in its pixels, labels, scores, masks"
    return g.model({"image": (options.input_type, image_shape)}, outputs, metadata, about)


def filled_up(g: Graph, values: str, count: int, shape: tuple[int, ...]) -> str:
    """[N, *shape] -> [count, *shape], padded with zeros at the end."""
    missing = g.op("Sub", g.integers([count]), g.length(values, 0))
    pads = g.op("Concat", g.integers([0] * (1 + len(shape))), missing, g.integers([0] * len(shape)), axis=0)
    return g.reshape(g.op("Pad", values, pads), count, *shape)


def transform(g: Graph, image: str, module: ImageTransform, options: GraphOptions) -> tuple[str, str, str]:
    """Normalise, resize and pad: [C, H, W] or [B, C, H, W] -> [B, C, H', W'].

    Also returns the image's size before and after the resize, int64 [2] each, height and width. ValueError if
    `fixed_size` is set, or the padding is not to multiples of `PADDED_TO`.
    """
    if module.fixed_size is not None or module.size_divisible != PADDED_TO:
        raise ValueError(f"the ONNX exporter supports neither fixed_size nor a size_divisible other than {PADDED_TO}")
    g.stage = "transform"
    if options.size:
        g.sizes[image] = options.size
    image_size = g.size(image)
    if options.input_type == "uint8":
        image = g.op("Div", g.cast(image, "float32"), g.floats(255))
    mean, std = (g.floats(values.tolist()) for values in (module.pixel_mean, module.pixel_std))
    x = g.op("Div", g.op("Sub", image, mean), std)
    if not options.batch:
        x = g.op("Unsqueeze", x, g.integers([0]))

    if options.size:
        resized = size_of(module.resize(torch.empty(len(module.image_mean), *options.size, device="meta")))
        resized_size = g.integers(resized)
    else:
        resized_size = size_after_resize(g, image_size, module.min_size[-1], module.max_size, rounded=module.antialias)
        resized_size = g.reshape(resized_size, 2)  # onnxruntime 1.18 infers a length of 0
    if module.antialias:
        if options.size:
            rows, columns = (fixed_filter(g, *counts) for counts in zip(options.size, resized))
        else:
            rows, columns = (triangle_filter(g, image_size, resized_size, axis) for axis in (0, 1))
        x = g.op("MatMul", g.op("MatMul", rows, x), g.op("Transpose", columns, perm=[1, 0]))
    else:
        sizes = g.op("Concat", g.integers([options.batch or 1, len(module.image_mean)]), resized_size, axis=0)
        x = g.op("Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")

    short_of = g.op("Mod", g.op("Neg", resized_size), g.integers(PADDED_TO))  # in 0..31, like the divisor
    pads = g.op("Concat", g.integers([0] * 6), short_of, axis=0)
    x = g.op("Pad", x, pads, g.floats(0.0))
    if options.size:
        g.sizes[x] = (resized[0] + -resized[0] % PADDED_TO, resized[1] + -resized[1] % PADDED_TO)
    return x, image_size, resized_size


def triangle_filter(g: Graph, from_size: str, to_size: str, axis: int) -> str:
    """Return Pillow's bilinear filter along one axis as a matrix, float32 [to, from]. onnxruntime's filter differs."""
    # A target's centre (2 i + 1) / 2 lies at (2 i + 1) from / (2 to) of the source. Times 2 to, all are integers.
    source_count, target_count = (g.columns(size, axis, axis + 1, 0) for size in (from_size, to_size))
    sources = g.op("Mul", odd_numbers(g, source_count, 1, -1), target_count)
    targets = g.op("Mul", odd_numbers(g, target_count, -1, 1), source_count)
    reach = twice(g, g.op("Max", source_count, target_count))
    distances = g.op("Abs", g.op("Sub", sources, targets))
    weights = g.op("Relu", g.cast(g.op("Sub", reach, distances), "float32"))
    return g.op("Div", weights, g.op("ReduceSum", weights, g.integers([1]), keepdims=1))


def fixed_filter(g: Graph, source_count: int, target_count: int) -> str:
    """Return the matrix of `triangle_filter` as a constant, for images of one size."""
    sources = (2 * np.arange(source_count) + 1) * target_count
    targets = (2 * np.arange(target_count)[:, None] + 1) * source_count
    weights = np.maximum(2 * max(source_count, target_count) - np.abs(sources - targets), 0).astype(np.float32)
    return g.floats((weights / weights.sum(axis=1, keepdims=True)).tolist())


def odd_numbers(g: Graph, count: str, *shape: int) -> str:
    """Return the first `count` (int64 [1]) odd numbers, 1, 3, 5, ..., reshaped to `shape`."""
    return g.reshape(g.op("Add", twice(g, g.range(count)), g.integers(1)), *shape)


def backbone(g: Graph, x: str, model: MaskRCNN) -> list[str]:
    """[B, C_in, H, W] -> five levels [B, C, H / s, W / s], s = 4, 8, 16, 32, 64, finest first."""
    module = require_class("backbone", model.backbone, BackboneWithFPN)
    body = require_class("backbone.body", module.body, ResNet)
    fpn = require_class("backbone.fpn", module.fpn, FeaturePyramidNetwork)
    require_class("backbone.fpn.extra_blocks", fpn.extra_blocks, LastLevelMaxPool)
    g.stage = "backbone.body"
    x = g.op("Relu", g.conv(x, body.conv1, "backbone.body.conv1"))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    stages = []
    for stage in range(1, body.returned_layers[-1] + 1):
        for i, block in enumerate(getattr(body, f"layer{stage}")):
            x = bottleneck(g, x, block, f"backbone.body.layer{stage}.{i}")
        if stage in body.returned_layers:
            stages.append(x)

    g.stage = "backbone.fpn"
    levels: list[str] = []
    top_down = ""
    for i in reversed(range(len(stages))):
        lateral = g.sequence(stages[i], fpn.inner_blocks[i], f"backbone.fpn.inner_blocks.{i}")
        if top_down:  # padding makes each stage exactly twice as large as the next
            twice = g.op(
                "Resize", top_down, "", g.floats([1, 1, 2, 2]), mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            )  # fmt: skip
            lateral = g.op("Add", lateral, twice)
        top_down = lateral
        levels.insert(0, g.sequence(top_down, fpn.layer_blocks[i], f"backbone.fpn.layer_blocks.{i}"))
    return [*levels, g.op("MaxPool", levels[-1], kernel_shape=[1, 1], strides=[2, 2])]


def bottleneck(g: Graph, x: str, block: Bottleneck, name: str) -> str:
    """Add a residual block, with its normalisations folded into its convolutions."""
    shortcut = x if block.downsample is None else g.sequence(x, block.downsample, f"{name}.downsample")
    for key in ("conv1", "conv2"):
        x = g.op("Relu", g.conv(x, getattr(block, key), f"{name}.{key}"))
    return g.op("Relu", g.op("Add", g.conv(x, block.conv3, f"{name}.conv3"), shortcut))
