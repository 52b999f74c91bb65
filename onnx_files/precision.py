"""Export networks with fp16 weights or with int8 convolutions and matrix products, and measure the loss of AP."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from dataset_files.dataset import InstanceDataset
from network_files.boxes import size_of
from onnx_files.network_graph import GraphOptions, build
from onnx_files.runtimes import fastest_runtime, open_session
from train_utils.errors import InputError, optional_package
from train_utils.metrics.coco_evaluation import CocoEvaluator
from train_utils.open_data import open_training_beside, open_validation_data
from train_utils.options import ValidationSettings
from train_utils.trained_model import TrainedModel

QUANTISED = ("Conv", "Gemm", "MatMul")
# Scores and boxes come straight from these layers, which are small. In int8 they would cost accuracy and save nothing.
FLOAT32_LAYERS = ("cls_logits", "bbox_pred", "cls_score", "mask_fcn_logits")


def build_reduced(
    trained: TrainedModel, options: GraphOptions, precision: str, images: Iterable[torch.Tensor]
) -> onnx.ModelProto:
    """Build the ONNX model of a network in a lower precision, "fp16" or "int8".

    "fp16" stores weights in float16 and leaves the arithmetic to the runtime, usually float32. "int8" quantises
    `QUANTISED`; the ranges of activations are measured on `images`.
    """
    if precision == "fp16":
        return build(trained, replace(options, weights="float16"))
    if options.batch or options.size:
        raise InputError("--precision int8 is for files that take one image of any size; omit --batch and --size")
    return quantise(build(trained, options), ({"image": pixels_of(image, options)} for image in images))


def quantise(content: onnx.ModelProto, inputs: Iterator[dict[str, np.ndarray]]) -> onnx.ModelProto:
    optional_package("onnxruntime", "--precision int8 needs the package onnxruntime", "onnxruntime")
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    weights = {weight.name for weight in content.graph.initializer}
    of_weights = [n for n in content.graph.node if n.op_type in QUANTISED and n.input[1] in weights]
    nodes = [n.name for n in of_weights if not any(layer in n.input[1] for layer in FLOAT32_LAYERS)]
    metadata = {entry.key: entry.value for entry in content.metadata_props}
    with tempfile.TemporaryDirectory() as folder:
        given, path = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(content, str(given))  # onnxruntime 1.18 cannot quantise a model in memory
        kinds = [*QUANTISED, "Softmax"]  # Softmax is not quantised, but onnxruntime 1.18 requires its range
        quantize_static(given, path, Reader(), op_types_to_quantize=kinds, nodes_to_quantize=nodes, per_channel=True)
        quantised = onnx.load(str(path))
    onnx.helper.set_model_props(quantised, metadata)
    return quantised


def open_images(
    trained: TrainedModel, data_path: str | None, with_training: bool
) -> tuple[InstanceDataset, InstanceDataset | None]:
    """Open the validation images and, if requested, the training images. Default: the data of the training run."""
    settings = ValidationSettings(data_path=data_path)
    settings.given = frozenset({"data_path"} if data_path else ())
    validation = open_validation_data(settings, trained.trained_with, trained.held_out)
    trained.classes.require_labels_of(validation, str(trained.path))
    return validation, open_training_beside(settings, validation) if with_training else None


def at_intervals(dataset: InstanceDataset, count: int) -> Iterator[torch.Tensor]:
    """Yield up to `count` images at regular intervals."""
    return (dataset[i][0] for i in range(0, len(dataset), -(-len(dataset) // count)))


def compare_ap(
    trained: TrainedModel, contents: Sequence[onnx.ModelProto], dataset: InstanceDataset
) -> list[tuple[float, float]]:
    """Measure the box AP and mask AP of each ONNX model on a dataset, in the fastest installed runtime."""
    found = []
    for content in contents:
        session = open_session(content.SerializeToString(), fastest_runtime())
        evaluator = CocoEvaluator(dataset.coco, trained.classes, trained.model.continuous_paste)
        for image, target in (dataset[i] for i in range(len(dataset))):
            detections = session.detect(image.numpy())
            tensors = {name: torch.from_numpy(value) for name, value in detections.items()}
            evaluator.update(target["image_id"], size_of(image), tensors)
        metrics = evaluator.score(evaluator.detections)
        found.append((metrics["bbox"].stats[0], metrics["segm"].stats[0]))
    return found


def pixels_of(image: torch.Tensor, options: GraphOptions) -> np.ndarray:
    pixels = image.numpy()
    return pixels if pixels.dtype.name == options.input_type else pixels.astype(np.float32) / np.float32(255)
