"""Write a trained network as an ONNX file with its description."""

from pathlib import Path

import onnx

from dataset_files.atomic_files import replacing
from onnx_files.description import Description
from onnx_files.network_graph import GraphOptions, network_graph
from train_utils.trained_model import TrainedModel

MASK_THRESHOLD = 0.5


def export(trained: TrainedModel, output: Path, options: GraphOptions = GraphOptions()) -> None:  # noqa: B008
    """Write `output`, replacing an existing file; see `build` and `write` for errors."""
    write(build(trained, options), output)


def build(trained: TrainedModel, options: GraphOptions) -> onnx.ModelProto:
    """Raises ValueError if the network has a part that the exporter does not know."""
    return network_graph(trained.model, options, describe(trained).to_metadata())


def write(content: onnx.ModelProto, output: Path) -> None:
    with replacing(output) as file:
        onnx.save_model(content, file)


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
