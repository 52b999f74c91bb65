"""Predict from Python: weights and images in, a `Prediction` per image out.

An image, or each of its tiles, goes through the network with those of other images in one batch; the 28x28 masks then
become run-length codes in the image's frame.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from network_files.masks.paste import encode_masks
from prediction.loading import ImageLike, open_image
from prediction.pipeline import THREADS
from prediction.prediction import Prediction
from prediction.test_time_augmentation import with_tta
from prediction.thresholds import ScoreThresholds, Thresholds
from prediction.tiles import Tile, TileDetections, merge_tiles, tiles_of
from train_utils.errors import InputError, naming_batch
from train_utils.evaluation import ready_for_inference
from train_utils.options import PredictorSettings
from train_utils.trained_model import TrainedModel, open_trained_model

DEFAULT_OVERLAP = 0.2
BATCH_ON_GPU = 4
LARGEST_TILE = 9000  # pixels a side: Pillow cuts out no more without a warning


@dataclass
class LoadedImage:
    """An image that is ready for the network.

    Attributes:
        image: in RGB.
        tiles: that go through the network; one, if the image goes through as a whole.
        pixels: uint8 [3, H, W]; None if the image is tiled, as its tiles are then cut out one by one.
    """

    image: Image.Image
    tiles: list[Tile]
    pixels: Tensor | None

    def tile_pixels(self, tile: Tile) -> Tensor:
        return to_pixels(self.image.crop(tile)) if self.pixels is None else self.pixels


class Predictor:
    """A trained network that finds objects in images.

        predictor = Predictor("save_weights/model_25.pth")
        found = predictor("photo.jpg")        # or a Pillow image, or an RGB array uint8 [H, W, 3]
        found.boxes, found.labels, found.names, found.scores, found.masks
        found.draw().save("drawn.png")
        both = predictor(["a.jpg", "b.jpg"])  # a list gives a list

    Several threads may call one predictor at the same time; the network takes their batches in turn. Images that go
    through it together are padded to the largest of them, which changes scores in their last digits.

    Args:
        weights_path: a checkpoint, or weights of torchvision or Detectron2; by default the newest in save_weights/.
        options: those of predict.py that concern the network and the image, with underscores: `device`, `box_thresh`,
            `mask_thresh`, `batch_size`, `exif`, `tile`, `overlap`, `min_size`, `max_size`, `tta`, `amp`, ...

    Raises:
        InputError: there are no such weights, or they or the options cannot be used.
        TypeError: an option is unknown.
    """

    def __init__(self, weights_path: str | Path | None = None, **options: Any):
        settings = PredictorSettings(None if weights_path is None else str(weights_path), **options)
        check_options(settings)
        self.set_up(open_trained_model(settings), settings)

    @classmethod
    def of_trained(cls, trained: TrainedModel, settings: PredictorSettings) -> "Predictor":
        """A predictor of weights that are open already; of `settings` only what concerns images is used."""
        predictor = cls.__new__(cls)
        check_options(settings)
        predictor.set_up(trained, settings)
        return predictor

    def set_up(self, trained: TrainedModel, settings: PredictorSettings) -> None:
        self.trained = trained
        self.classes = trained.classes
        self.device, self.precision = trained.device, trained.precision
        model = with_tta(trained.model) if settings.tta else trained.model
        self.network = ready_for_inference(model, trained.precision)
        self.continuous_paste = trained.model.continuous_paste
        self.agnostic_nms = trained.config.agnostic_nms
        self.box_thresh = settings.box_thresh
        self.mask_thresh = settings.mask_thresh
        self.exif = settings.exif or trained.trained_with.get("exif")
        self.tile = settings.tile
        self.overlap = DEFAULT_OVERLAP if settings.overlap is None else settings.overlap
        self.batch_size = settings.batch_size or (BATCH_ON_GPU if self.device.type == "cuda" else 1)
        self.one_at_a_time = threading.Lock()

    @overload
    def __call__(self, images: ImageLike) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is a sequence

    @overload
    def __call__(self, images: Sequence[ImageLike]) -> list[Prediction]: ...

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Prediction | list[Prediction]:
        """Find the objects in an image, or in each image of a list.

        Args:
            images: a file, which is turned as its EXIF orientation says (`exif`); a Pillow image or an RGB array uint8
                [H, W, 3], which are taken as they are; or a list of these, which goes through the network in batches of
                `batch_size`.

        Raises:
            ValueError: an image cannot be read; the message names it.
            TypeError: it is of another type.
        """
        if isinstance(images, (str, Path, Image.Image, np.ndarray)):
            return self.predict_together([images])[0]
        if not isinstance(images, Sequence):
            raise TypeError(
                f"images are a path, a Pillow image, an array or a list of them, not {type(images).__name__}"
            )
        step = self.images_per_step
        batches = (images[start : start + step] for start in range(0, len(images), step))
        return [prediction for batch in batches for prediction in self.predict_together(batch)]

    @property
    def box_thresh(self) -> float:
        """The lowest score to show, of classes without one of their own; set it as in the options."""
        return self.thresholds.default

    @box_thresh.setter
    def box_thresh(self, given: Thresholds) -> None:
        self.thresholds = ScoreThresholds(given, self.classes.names, self.trained.thresholds, self.trained.path)

    @property
    def images_per_step(self) -> int:
        """The number of images to load before a step; one that is tiled fills steps by itself."""
        return 1 if self.tile else self.batch_size

    @property
    def images_ahead(self) -> int:
        """The number of images to load ahead of the network; those that are tiled are large."""
        return 2 if self.tile else self.batch_size + THREADS

    def predict_together(self, images: Sequence[ImageLike]) -> list[Prediction]:
        loaded = [self.load(image) for image in images]
        return [self.describe(one, found) for one, found in zip(loaded, self.find(loaded))]

    # The three steps of a prediction: loading and describing may run in other threads beside the network.

    def load(self, image: ImageLike, size: tuple[int, int] | None = None) -> LoadedImage:
        """Read an image and plan its tiles.

        Args:
            size: height and width that its annotations say, which decide whether its EXIF orientation is meant.
        """
        opened = open_image(image, self.exif, large=self.tile is not None, size=size)
        tiles = tiles_of(opened.size, self.tile, self.overlap)
        return LoadedImage(opened, tiles, to_pixels(opened) if len(tiles) == 1 else None)

    def find(self, images: Sequence[LoadedImage]) -> list[list[TileDetections]]:
        """Run the network over the tiles of all images in batches; return the detections by image and tile."""
        tiles = [(number, tile) for number, image in enumerate(images) for tile in image.tiles]
        found: list[list[TileDetections]] = [[] for _ in images]
        for start in range(0, len(tiles), self.batch_size):
            batch = tiles[start : start + self.batch_size]
            detections = self.detect([images[number].tile_pixels(tile) for number, tile in batch])
            for (number, tile), detection in zip(batch, detections):
                found[number].append(TileDetections(tile, detection))
        return found

    @torch.inference_mode()
    def detect(self, pixels: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Run the network on one batch.

        Args:
            pixels: uint8 [3, H, W] each.

        Returns:
            Per image, on the CPU, what scores at least `box_thresh` and has a class: `boxes` float [N, 4], `labels`
            int64 [N], `scores` float [N] and `masks`, probabilities float [N, 1, 28, 28].
        """
        with self.one_at_a_time, self.precision.autocast(), naming_batch(pixels, "lower --batch-size or --min-size"):
            found = self.network.detect([image.to(self.device) for image in pixels])
            on_cpu = [{name: value.cpu() for name, value in detection.items()} for detection in found]
        return [self.kept(detection) for detection in on_cpu]

    def kept(self, detection: dict[str, Tensor]) -> dict[str, Tensor]:
        """What scores at least its class's `box_thresh`, without labels that no class has (gaps in COCO's ids)."""
        named = torch.tensor([label in self.classes.category_ids for label in detection["labels"].tolist()])
        scores = detection["scores"]
        lowest = torch.from_numpy(self.thresholds(detection["labels"].numpy())).to(scores.dtype)  # as float32 0.5 is
        keep = (scores >= lowest) & named.to(torch.bool)
        return {name: value[keep] for name, value in detection.items()}

    def describe(self, image: LoadedImage, found: Sequence[TileDetections]) -> Prediction:
        """Make a prediction of the detections in the tiles of an image."""
        size = (image.image.height, image.image.width)
        if len(found) == 1:
            boxes, labels, scores, probs = (found[0].detection[k] for k in ("boxes", "labels", "scores", "masks"))
            codes = encode_masks(probs, boxes, size, self.mask_thresh, self.continuous_paste)
            values = boxes.float().numpy(), labels.numpy(), scores.float().numpy(), codes
        else:
            values = merge_tiles(found, size, self.mask_thresh, self.continuous_paste, self.agnostic_nms)
        return self.prediction(image.image, *values)

    def prediction(
        self, image: Image.Image, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, codes: list[dict]
    ) -> Prediction:
        names = [self.classes.names[label] for label in labels.tolist()]
        ids = [self.classes.category_ids[label] for label in labels.tolist()]
        return Prediction(image, boxes, labels, names, scores, codes, ids)


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [3, H, W], by NumPy: each thread that copies with torch would start threads of its own."""
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


def check_options(settings: PredictorSettings) -> None:
    """Raise InputError for values that the command line would refuse as well, or that have no effect."""
    if settings.overlap is not None and settings.tile is None:
        raise InputError(f"--overlap {settings.overlap:g} needs --tile, the size of the tiles in pixels")
    if settings.tile is not None and not 1 <= settings.tile <= LARGEST_TILE:
        raise InputError(f"--tile {settings.tile} is not between 1 and {LARGEST_TILE} pixels")
    if settings.overlap is not None and not 0 <= settings.overlap <= 0.9:
        raise InputError(f"--overlap {settings.overlap:g} is not between 0 and 0.9")
    if settings.batch_size is not None and settings.batch_size < 1:
        raise InputError(f"--batch-size {settings.batch_size} is not a positive number")
    if settings.exif not in (None, "apply", "ignore"):
        raise InputError(f"--exif {settings.exif}: give apply or ignore")
