"""Build the ONNX model of a trained network with its description, and write it."""

from pathlib import Path

import onnx

from dataset_files.atomic_files import replacing
from onnx_files.description import Description
from onnx_files.network_graph import GraphOptions, network_graph
from train_utils.trained_model import TrainedModel

MASK_THRESHOLD = 0.5


def build(trained: TrainedModel, options: GraphOptions) -> onnx.ModelProto:
    """Build the model with its metadata; ValueError if the exporter does not support a part of the network."""
    heads, classes = trained.model.roi_heads, trained.classes
    description = Description(
        names=classes.names,
        category_ids=classes.category_ids,
        network=trained.config.to_plain(),
        thresholds={
            "score": heads.score_thresh, "nms": heads.nms_thresh, "detections": heads.detections_per_img,
            "mask": MASK_THRESHOLD,
        },
        continuous_paste=trained.model.continuous_paste,
        exif=trained.trained_with.get("exif") or "apply",
        class_thresholds=trained.thresholds,
    )  # fmt: skip
    return network_graph(trained.model, options, description.to_metadata())


def write(content: onnx.ModelProto, output: Path) -> None:
    """Write a file, replacing an existing one."""
    with replacing(output) as file:
        onnx.save_model(content, file)
