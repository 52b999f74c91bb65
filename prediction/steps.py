"""Predict images with any network: read and tile them, detect in batches, merge and name the objects. Needs no torch.

`Predictor` adds a network in torch, tools/predict_onnx.py an exported one.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from dataset_files import stored_images
from dataset_files.stored_images import ImageForm
from network_files.masks.encode import encode_masks
from prediction.options import ImageSettings
from prediction.prediction import Classes, Prediction
from prediction.tiles import Detection, Tile, merge_tiles, tiles_of
from train_utils.errors import InputError, reading_input, warn

DEFAULT_OVERLAP = 0.2
Thresholds: TypeAlias = float | str | Sequence[float | str] | Mapping[str, float]
DEFAULT = 0.5
BEST = "best"
ImageLike: TypeAlias = str | Path | Image.Image | np.ndarray


@dataclass
class LoadedImage:
    image: Image.Image  # in RGB, to show and to draw on
    tiles: list[Tile]  # the parts that the network sees; one tile if the image is not cut
    # uint8 [3, H, W]; None if the image is tiled, as its tiles are then cut out one by one. For a network with
    # --channels [C, H, W], uint8 or float32, tiled or not.
    pixels: np.ndarray | None

    def tile_pixels(self, tile: Tile) -> np.ndarray:
        if self.pixels is None:
            return to_pixels(self.image.crop(tile))
        left, top, right, bottom = tile
        return np.ascontiguousarray(self.pixels[:, top:bottom, left:right])


class ImagePredictor:
    """Predict in three steps: `load`, `find`, `describe`. Only `find` runs the network; the others may run in threads.

    Args:
        path: the file of the network, for messages.
        classes: the network's labels.
        best: label -> the score threshold that was best in validation; {} if unknown.
        exif: how training images were read, see `open_image`; `settings` may override it.
        network: the network's `ModelConfig`.
        continuous: how masks are pasted into the image, see `mask_crops`.
        batch_size: the number of images or tiles that the network sees at once.
    """

    def __init__(
        self, path: str | Path, classes: Classes, best: Mapping[int, float], settings: ImageSettings, exif: str | None,
        network: Mapping[str, Any], continuous: bool, batch_size: int = 1,
    ) -> None:  # fmt: skip
        self.path, self.classes, self.best = path, classes, best
        self.batch_size, self.agnostic, self.continuous = batch_size, bool(network.get("agnostic_nms")), continuous
        self.box_thresh, self.mask_thresh = settings.box_thresh, settings.mask_thresh
        with reading_input():
            self.form = ImageForm.of_network(network, settings.exif or exif, settings.show_channels)
        self.tile, self.overlap = settings.tile, DEFAULT_OVERLAP if settings.overlap is None else settings.overlap

    def detect(self, pixels: Sequence[np.ndarray]) -> list[Detection]:
        """Run the network on a batch of images, [C, H, W] each (see `LoadedImage`). Detections come best first."""
        raise NotImplementedError

    def encode(self, masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[dict]:
        """Paste mask probabilities into an image of this height and width. Return the masks as run-length codes."""
        return encode_masks(masks, boxes, size, self.mask_thresh, self.continuous)

    @property
    def box_thresh(self) -> float:
        """The score threshold of classes that have none of their own. Any value of --box-thresh can be assigned."""
        return self.thresholds.default

    @box_thresh.setter
    def box_thresh(self, given: Thresholds) -> None:
        self.thresholds = ScoreThresholds(given, self.classes.names, self.best, self.path)

    @property
    def images_per_step(self) -> int:
        """The number of images to pass to `find`: `batch_size`, but 1 with --tile, as one image then fills batches."""
        return 1 if self.tile else self.batch_size

    def require_rgb(self, what: str | Path) -> None:
        """Raise InputError if the network does not take RGB images. `what` names the video or camera in the message."""
        if self.form.channels is not None:
            raise InputError(f"{what}: the network takes images of --channels {self.form.channels}, no video")

    def load(self, image: ImageLike, size: tuple[int, int] | None = None) -> LoadedImage:
        """Read an image and plan its tiles; see `open_image` and `open_stored` for the arguments and errors."""
        if self.form.channels is not None:
            pixels = open_stored(image, self.form)
            picture = stored_images.to_picture(pixels, self.form.shown)
            return LoadedImage(picture, tiles_of(picture.size, self.tile, self.overlap), pixels)
        opened = open_image(image, self.form.exif, size)
        tiles = tiles_of(opened.size, self.tile, self.overlap)
        return LoadedImage(opened, tiles, to_pixels(opened) if len(tiles) == 1 else None)

    def find(self, images: Sequence[LoadedImage]) -> list[list[Detection]]:
        """Run the network over the tiles of all images in batches; return the detections by image and tile."""
        tiles = [(number, tile) for number, image in enumerate(images) for tile in image.tiles]
        found: list[list[Detection]] = [[] for _ in images]
        for start in range(0, len(tiles), self.batch_size):
            batch = tiles[start : start + self.batch_size]
            detections = self.detect([images[number].tile_pixels(tile) for number, tile in batch])
            for (number, _), detection in zip(batch, detections):
                found[number].append(self.kept(detection))
        return found

    def kept(self, detection: Detection) -> Detection:
        """Drop detections that score below their class's threshold or have no class (a gap in COCO's ids)."""
        labels, scores = detection["labels"], detection["scores"]
        named = np.array([label in self.classes.category_ids for label in labels.tolist()], dtype=bool)
        keep = named & (scores >= self.thresholds(labels).astype(scores.dtype))  # in the precision of the scores
        return {name: value[keep] for name, value in detection.items()}

    def describe(self, loaded: LoadedImage, found: Sequence[Detection]) -> Prediction:
        """Merge the detections in the tiles of an image into a `Prediction`."""
        image = loaded.image
        merged = merge_tiles(loaded.tiles, found, (image.height, image.width), self.encode, self.agnostic)
        boxes, labels, scores, codes = merged
        names = [self.classes.names[label] for label in labels.tolist()]
        ids = [self.classes.category_ids[label] for label in labels.tolist()]
        return Prediction(image, boxes, labels, names, scores, codes, ids)


def to_pixels(image: Image.Image) -> np.ndarray:
    """Convert an RGB image to uint8 [3, H, W]."""
    # not in torch, which would start threads of its own in each calling thread
    return np.array(np.asarray(image).transpose(2, 0, 1), order="C")


class ScoreThresholds:
    """Score thresholds by label. Detections below the threshold are not shown.

    Args:
        given: a number for all classes, "best", "NAME=NUMBER", or several of these; or name -> number. The number of
            a named class takes precedence.
        names: label -> class name.
        best: label -> the score threshold that was best in validation; {} if unknown.
        owner: file of the weights, for messages.

    Raises:
        InputError: a threshold is invalid, a class name is unknown, or "best" is given and `best` is empty.
    """

    def __init__(self, given: Thresholds, names: Mapping[int, str], best: Mapping[int, float], owner: object):
        parts = [f"{n}={v}" for n, v in given.items()] if isinstance(given, Mapping) else given
        parts = [parts] if isinstance(parts, float | int | str) else list(parts)
        self.default = DEFAULT
        self.of_labels = dict(best) if BEST in parts else {}
        if BEST in parts and not best:
            raise InputError(
                f"{owner}: holds no thresholds, which --box-thresh best needs; write them with validation.py "
                "--save-thresholds (model_best.pth has them), or give numbers"
            )
        for part in parts:
            if not isinstance(part, str):
                self.default = float(part)
                continue
            name, is_named, number = part.rpartition("=")
            if is_named:
                labels = [label for label, known in names.items() if known == name]
                if not labels:
                    known = ", ".join(f"'{known}'" for known in list(names.values())[:8])
                    raise InputError(f"--box-thresh {part}: {owner} has no class '{name}' (it has {known}, ...)")
                self.of_labels |= dict.fromkeys(labels, score_of(number, part))
            elif part != BEST:
                self.default = score_of(number, part)

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Return the threshold of each label, int64 [N] -> float64 [N]."""
        return np.array([self.of_labels.get(label, self.default) for label in labels.tolist()], dtype=np.float64)


def score_of(text: str, part: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise InputError(f"--box-thresh {part}: give a score from 0 to 1, best, or NAME=SCORE")


def open_image(source: ImageLike, exif: str | None = None, size: tuple[int, int] | None = None) -> Image.Image:
    """Open a file, a Pillow image or an RGB array uint8 [H, W, 3] as an RGB image.

    Only files are rotated by their EXIF orientation (see `upright_rgb`), always if `exif` and `size` are None. Raises
    ValueError for an unreadable file, which the message names, or an array that is not an image, and TypeError for
    any other type.
    """
    if isinstance(source, Image.Image):
        return stored_images.as_rgb(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise ValueError(f"an array must be RGB, uint8 [H, W, 3]; got {source.dtype} {list(source.shape)}")
        return Image.fromarray(source)
    if not isinstance(source, (str, Path)):
        raise TypeError(f"an image is a path, a Pillow image or an array uint8 [H, W, 3], not {type(source).__name__}")
    path = existing(source)
    with stored_images.naming_image(path), stored_images.open_image(path) as image:
        pages = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # pages of MPO: smaller copies
        if pages > 1:
            warn(f"{path}: has {pages} pages or frames; only the first one is read")
        return stored_images.upright_rgb(image, size, exif or ("apply" if size is None else None))


def open_stored(source: ImageLike, form: ImageForm) -> np.ndarray:
    """Read a file, a Pillow image or an array as uint8 or float32 [C, H, W], with the channels and values of `form`.

    An array is [H, W], [H, W, C] or [C, H, W]. Raises ValueError, which names the file, if the source cannot be
    read or has other channels or values.
    """
    if not isinstance(source, (str, Path)):
        array = stored_images.pillow_array(source) if isinstance(source, Image.Image) else np.asarray(source)
        return stored_images.in_form(array, form)
    path = existing(source)
    with stored_images.naming_image(path):
        return stored_images.read_stored(path, form)


def existing(source: str | Path) -> Path:
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    return path
