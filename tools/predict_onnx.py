"""Find instances in images and videos with a network that tools/export_onnx.py exported. Needs no torch.

    python tools/predict_onnx.py model.onnx photo.jpg
    python tools/predict_onnx.py model.onnx photos/ 'more/**/*.png' --box-thresh 0.7 --save json csv

Needs numpy, Pillow, and onnxruntime or openvino; with matplotlib, labels are drawn in the font of predict.py. Outputs
are those of predict.py; videos need the packages av and tqdm, --save coco and labelme need pycocotools and contourpy,
networks with --channels need tifffile to read TIFF files.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from onnx_files.onnx_model import OnnxModel
from onnx_files.runtimes import PRECISIONS, RUNTIMES
from prediction.files import predict_files
from prediction.options import ImageSettings, OutputSettings
from prediction.steps import ImagePredictor
from prediction.tiles import Detection
from train_utils.errors import InputError, one_line_errors
from train_utils.option_parsing import option, positive

OPTIONAL = ("tqdm", "pycocotools", "contourpy")  # packages that not every use needs


@dataclass
class OnnxSettings(OutputSettings, ImageSettings):
    runtime: str | None = option(
        None, "(default: onnxruntime on a GPU; on the CPU openvino if it is installed)", choices=RUNTIMES,
        group="machine")  # fmt: skip
    precision: str = option("fp32", "bf16 needs openvino ({default})", choices=PRECISIONS)
    threads: int | None = option(None, "CPU threads (default: all cores)", type=positive)


class OnnxPredictor(ImagePredictor):
    def __init__(self, path: str, model: OnnxModel, settings: ImageSettings):
        about = model.description
        network, continuous = about.network, about.continuous_paste
        super().__init__(path, about, about.class_thresholds, settings, about.exif, network, continuous)
        self.model = model

    def detect(self, pixels: Sequence[np.ndarray]) -> list[Detection]:
        return [self.model.detect(image) for image in pixels]


def main(path: str, images: list[str], settings: OnnxSettings) -> None:
    model = OnnxModel(path, settings.threads, settings.runtime, settings.precision)
    threads = "all threads" if settings.threads is None else f"{settings.threads} threads"
    print(f"{path}: {model.session.name}, {threads}", flush=True)
    try:
        predict_files(OnnxPredictor(path, model, settings), images, settings, [path])
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        raise InputError(f"the package {error.name} is missing; install it with: pip install {error.name}") from error


if __name__ == "__main__":
    with one_line_errors():
        parser = OnnxSettings.parser(__doc__)
        parser.usage, parser.epilog = "%(prog)s MODEL IMAGE [IMAGE ...] [options]", None
        parser.add_argument("model", metavar="MODEL", help="a file of tools/export_onnx.py")
        parser.add_argument(
            "images", metavar="IMAGE", nargs="+",
            help="images, videos, folders of images, or patterns such as 'photos/**/*.jpg'",
        )  # fmt: skip
        given = vars(parser.parse_args())
        main(given.pop("model"), given.pop("images"), OnnxSettings(**given))
