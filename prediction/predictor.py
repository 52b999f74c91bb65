"""Predict from Python: weights and images in, a `Prediction` per image out."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from network_files.masks.paste import encode_masks
from network_files.test_time_augmentation import with_tta
from prediction.options import PredictorSettings
from prediction.prediction import Prediction
from prediction.steps import ImageLike, ImagePredictor
from prediction.tiles import Detection
from train_utils.errors import naming_batch
from train_utils.evaluation import ready_for_inference
from train_utils.trained_model import TrainedModel, open_trained_model

BATCH_ON_GPU = 4


class Predictor(ImagePredictor):
    """A trained network that finds objects in images.

        predictor = Predictor("save_weights/model_25.pth")
        found = predictor("photo.jpg")        # or a Pillow image, or an RGB array uint8 [H, W, 3]
        found.boxes, found.labels, found.names, found.scores, found.masks
        found.draw().save("drawn.png")
        both = predictor(["a.jpg", "b.jpg"])  # a list gives a list

    Several threads may call one predictor at the same time; the network takes their batches in turn. Images in one
    batch are padded to the largest of them, which changes scores in their last digits.

    Args:
        weights_path: a checkpoint, or weights of torchvision or Detectron2; by default the newest in save_weights/.
        options: those of predict.py that concern the network and the image, with underscores: `device`, `box_thresh`,
            `mask_thresh`, `batch_size`, `exif`, `tile`, `overlap`, `min_size`, `max_size`, `tta`, `amp`, ...

    Raises:
        InputError: the weights do not exist, or the weights or the options cannot be used.
        TypeError: an option is unknown.
    """

    def __init__(self, weights_path: str | Path | None = None, **options: Any):
        settings = PredictorSettings(None if weights_path is None else str(weights_path), **options)
        self.set_up(open_trained_model(settings), settings)

    @classmethod
    def of_trained(cls, trained: TrainedModel, settings: PredictorSettings) -> "Predictor":
        """Return a predictor for a loaded model. Of `settings`, only ImageSettings, `batch_size` and `tta` are used."""
        predictor = cls.__new__(cls)
        predictor.set_up(trained, settings)
        return predictor

    def set_up(self, trained: TrainedModel, settings: PredictorSettings) -> None:
        batch_size = settings.batch_size or (BATCH_ON_GPU if trained.device.type == "cuda" else 1)
        exif, network = trained.trained_with.get("exif"), trained.config.to_plain()
        super().__init__(
            trained.path, trained.classes, trained.thresholds, settings, exif, network,
            trained.model.continuous_paste, batch_size,
        )  # fmt: skip
        self.trained = trained
        model = with_tta(trained.model) if settings.tta else trained.model
        self.network = ready_for_inference(model, trained.precision)
        self.one_at_a_time = threading.Lock()

    @overload
    def __call__(self, images: ImageLike) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is a sequence

    @overload
    def __call__(self, images: Sequence[ImageLike]) -> list[Prediction]: ...

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Prediction | list[Prediction]:
        """Find the objects in an image, or in each image of a list.

        Args:
            images: a file, whose EXIF orientation is applied unless `exif` is "ignore"; a Pillow image or an RGB array
                uint8 [H, W, 3], whose orientation is kept; or a list of these, predicted in batches of `batch_size`. A
                network with --channels takes files, and arrays [H, W, C] of the values that it was trained on.

        Raises:
            ValueError: an image cannot be read; the message names it.
            TypeError: an image is of another type.
        """
        if isinstance(images, (str, Path, Image.Image, np.ndarray)):
            return self([images])[0]
        if not isinstance(images, Sequence):
            given = type(images).__name__
            raise TypeError(f"images are a path, a Pillow image, an array or a list of them, not {given}")
        predictions: list[Prediction] = []
        for start in range(0, len(images), self.images_per_step):
            loaded = [self.load(image) for image in images[start : start + self.images_per_step]]
            predictions += map(self.describe, loaded, self.find(loaded))
        return predictions

    @torch.inference_mode()
    def detect(self, pixels: Sequence[np.ndarray]) -> list[Detection]:
        with (
            self.one_at_a_time,
            self.trained.precision.autocast(),
            naming_batch(pixels, "lower --batch-size or --min-size"),
        ):
            found = self.network.detect([torch.from_numpy(image).to(self.trained.device) for image in pixels])
            return [
                {name: (v.float() if v.is_floating_point() else v).cpu().numpy() for name, v in detection.items()}
                for detection in found
            ]

    def encode(self, masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[dict]:
        return encode_masks(torch.from_numpy(masks), torch.from_numpy(boxes), size, self.mask_thresh, self.continuous)
