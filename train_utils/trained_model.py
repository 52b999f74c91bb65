"""Open weights for evaluation and prediction; used by validation.py, predict.py, the exporter and Python code."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dataset_files.stored_images import ImageForm
from network_files import MaskRCNN
from train_utils.classes import ClassTable
from train_utils.device import Precision, choose_device
from train_utils.errors import InputError
from train_utils.models import ModelConfig, load_trained_model
from train_utils.options import OUTPUT_FOLDER, InferenceSettings
from train_utils.run.checkpoints import stored_settings
from train_utils.run.run_folder import checkpoints
from train_utils.weight_files.weights import THRESHOLDS


@dataclass
class TrainedModel:
    """A network in evaluation mode on its device, with the other content of its weight file."""

    path: Path
    model: MaskRCNN
    config: ModelConfig
    content: dict[str, Any]  # of the file, without the weights
    classes: ClassTable  # from the file, --label-json-path or COCO
    device: torch.device
    precision: Precision
    trained_with: dict[str, Any]  # the settings of the run that wrote the file; {} for published weights
    held_out: dict[str, str | int] = field(default_factory=dict)  # the validation images, see `held_out_images`

    @property
    def form(self) -> ImageForm:
        """How images are read for this network: orientation, channels and type of values."""
        return ImageForm(self.trained_with.get("exif"), self.config.channels, self.config.values)

    @property
    def thresholds(self) -> dict[int, float]:
        """Score threshold by label, chosen for the best F1 on the validation images; {} if the weight file has none."""
        return dict(self.content.get(THRESHOLDS, {}))


def open_trained_model(settings: InferenceSettings) -> TrainedModel:
    """Open the weights of `--weights-path`, or the newest checkpoint; InputError if they are missing or invalid."""
    path = settings.weights_path or next(reversed(checkpoints(OUTPUT_FOLDER)), None)
    if path is None:
        raise InputError(f"no weights: {OUTPUT_FOLDER}/ holds no checkpoint; train first or give --weights-path")
    model, config, content = load_trained_model(path, settings)
    is_own = "model_config" in content  # a file of this project
    trained_with = stored_settings(content, Path(path)) if is_own else {}
    held_out = content.get("facts", {}).get("held_out") or {} if is_own else {}
    device = choose_device(settings.device)
    precision = Precision.choose(device, trained_with.get("amp", False) if settings.amp is None else settings.amp)
    classes = ClassTable.of_weights(content, config.num_classes, settings.label_json_path)
    model.to(device).to(memory_format=torch.channels_last)
    return TrainedModel(Path(path), model, config, content, classes, device, precision, trained_with, held_out)
