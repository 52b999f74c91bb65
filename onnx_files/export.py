"""Write a trained network as an ONNX file with its description."""

from pathlib import Path

import onnx

from dataset_files.atomic_files import replacing
from onnx_files.description import Description
from onnx_files.network_graph import network_graph
from train_utils.trained_model import TrainedModel

MASK_THRESHOLD = 0.5


def export(trained: TrainedModel, output: Path, input_type: str) -> Description:
    """Write `output`, replacing an existing file.

    Args:
        input_type: "float32", an image in 0..1, or "uint8".

    Raises:
        ValueError: the network has a part that the exporter does not know.
        OSError: the file cannot be written.
    """
    description = describe(trained)
    content = network_graph(trained.model, input_type, description.to_metadata())
    with replacing(output) as file:
        onnx.save_model(content, file)
    return description


def describe(trained: TrainedModel) -> Description:
    model, classes = trained.model, trained.classes
    heads = model.roi_heads
    thresholds = {
        "score": heads.score_thresh,
        "nms": heads.nms_thresh,
        "detections": heads.detections_per_img,
        "mask": MASK_THRESHOLD,
    }
    return Description(
        names=classes.names,
        category_ids=classes.category_ids,
        network=trained.config.to_plain(),
        thresholds=thresholds,
        continuous_paste=model.continuous_paste,
        exif=trained.trained_with.get("exif") or "apply",
        class_thresholds=trained.thresholds,
    )
