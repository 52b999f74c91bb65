"""Options of predict.py, tools/predict_onnx.py and `Predictor`; see train_utils/options.py."""

from dataclasses import dataclass
from typing import Any

from train_utils.errors import InputError
from train_utils.option_parsing import Settings, natural, option, positive, share, strength
from train_utils.options import HELP_SHOW_CHANNELS, InferenceSettings

LARGEST_TILE = 1 << 14  # pixels per side: no image has more pixels than such a tile
SAVE_FORMATS = ("json", "coco", "csv", "masks", "crops", "labelme")


@dataclass
class ImageSettings(Settings):
    """Options for reading images and selecting detections, for networks in torch and in ONNX."""

    box_thresh: Any = option(
        0.5, "minimum score to show: of all classes, per class (person=0.7), or best: as validation found ({default})",
        nargs="+", metavar="SCORE", group="prediction")  # fmt: skip
    mask_thresh: float = option(0.5, "minimum probability of a mask's pixels ({default})", type=strength)
    exif: str | None = option(
        None, "apply the EXIF orientation of images, or ignore it (default: as in training; else apply, but with "
        "--annotation-file only to images that then have the size in that file)", choices=("apply",
        "ignore"))  # fmt: skip
    show_channels: list[int] | None = option(None, HELP_SHOW_CHANNELS, type=natural, nargs="+", metavar="C")
    tile: int | None = option(
        None, "predict large images in overlapping tiles of N x N pixels, and merge their detections", type=positive
    )
    overlap: float | None = option(
        None, "with --tile: share of a tile's side that the next tile overlaps (default: 0.2); objects up to that "
        "size are always whole in some tile", type=share)  # fmt: skip

    def __post_init__(self) -> None:
        """Raise InputError for invalid values, and for --overlap without --tile, which would have no effect."""
        if self.overlap is not None and self.tile is None:
            raise InputError(f"--overlap {self.overlap:g} needs --tile, the size of the tiles in pixels")
        if self.tile is not None and not 1 <= self.tile <= LARGEST_TILE:
            raise InputError(f"--tile {self.tile} is not between 1 and {LARGEST_TILE} pixels")
        if self.overlap is not None and not 0 <= self.overlap <= 0.9:
            raise InputError(f"--overlap {self.overlap:g} is not between 0 and 0.9")
        if self.exif not in (None, "apply", "ignore"):
            raise InputError(f"--exif {self.exif}: give apply or ignore")


@dataclass
class PredictorSettings(ImageSettings, InferenceSettings):
    """Options that predict.py and `Predictor` share."""

    batch_size: int | None = option(
        None, "images or tiles per step (default: 4 on a GPU, else 1)", "-b", type=positive, group="machine"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size} is not a positive number")


@dataclass
class OutputSettings(Settings):
    """Options for the outputs of predict.py and tools/predict_onnx.py: what to write, and where."""

    output_dir: str = option(
        "predictions", "drawn images and saved detections ({default})", metavar="DIR", group="input and output"
    )
    save: list[str] = option(
        (), "also write the detections: COCO results (json), a COCO dataset to train on (coco), a table (csv), 16-bit "
        "instance masks (masks), cut-out objects (crops), files to correct in labelme (labelme)",
        choices=SAVE_FORMATS, nargs="+", action="extend")  # fmt: skip
    save_json: bool = option(False, "the same as --save json")
    annotation_file: str | None = option(
        None, "COCO file with the image ids for saved detections, by file name (default: numbers in the file names, "
        "else 1, 2, 3, ...)", metavar="FILE")  # fmt: skip
    every: int = option(1, "predict and write only every n-th frame of a video ({default})", type=positive)

    @property
    def formats(self) -> list[str]:
        """Return the formats of --save and --save-json without duplicates."""
        return list(dict.fromkeys([*self.save, *(["json"] if self.save_json else [])]))


@dataclass
class SourceSettings(Settings):
    """Options of predict.py that select the input."""

    img_path: list[str] | None = option(
        None, "images, videos, folders of images, or patterns such as 'photos/**/*.jpg', any number (default: an "
        "image from the checkpoint's validation set)", nargs="+", action="extend", metavar="PATH",
        group="input and output")  # fmt: skip
    webcam: int | None = option(
        None, "predict, show and record the images of this camera, until q, Esc or Ctrl-C (default: 0)", type=natural,
        nargs="?", const=0, metavar="N")  # fmt: skip


@dataclass
class PredictSettings(OutputSettings, SourceSettings, PredictorSettings):
    """Options of predict.py."""
