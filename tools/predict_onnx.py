"""Find instances in images with an exported network, without torch: predict.py for files of tools/export_onnx.py.

    python tools/predict_onnx.py model.onnx photo.jpg
    python tools/predict_onnx.py model.onnx photos/ 'more/**/*.png' --box-thresh 0.7 --save-json

Needs numpy, Pillow, and onnxruntime or openvino; with matplotlib, labels are drawn in the font of predict.py. As
predict.py does, it writes drawn images, and with --save-json predictions.json, to --output-dir.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files.atomic_files import refuse_overwriting  # noqa: E402 (the path comes first)
from network_files.masks.paste_numpy import encode_masks  # noqa: E402
from onnx_files.onnx_model import OnnxModel  # noqa: E402
from onnx_files.runtimes import PRECISIONS, RUNTIMES  # noqa: E402
from prediction.loading import open_image  # noqa: E402
from prediction.pipeline import THREADS, predict_images  # noqa: E402
from prediction.prediction import Prediction  # noqa: E402
from prediction.savers import ResultsSaver  # noqa: E402
from prediction.sources import find_sources, result_images  # noqa: E402
from prediction.thresholds import DEFAULT, ScoreThresholds  # noqa: E402
from train_utils.errors import InputError, one_line_errors, reading_input, writing_output  # noqa: E402
from train_utils.option_parsing import positive  # noqa: E402


def main(args: argparse.Namespace) -> None:
    model = OnnxModel(args.model, args.threads, args.runtime, args.precision)
    threads = "all threads" if args.threads is None else f"{args.threads} threads"
    print(f"{args.model}: {model.session.name}, {threads}", flush=True)
    output = Path(args.output_dir)
    images = find_sources(args.images, output)
    video = next((image.path for image in images if image.is_video()), None)
    if video is not None:
        raise InputError(f"{video}: is a video, which only predict.py reads")
    known = result_images(images)
    savers = [ResultsSaver(output / "predictions.json", [image.id for image in known])] if args.save_json else []
    with reading_input():
        inputs = [Path(args.model), *(image.path for image in images)]
        refuse_overwriting(inputs, [*(image.drawn_in(output) for image in images), *(saver.path for saver in savers)])
    with writing_output():
        output.mkdir(parents=True, exist_ok=True)
    about = model.description
    thresholds = ScoreThresholds(args.box_thresh, about.names, about.class_thresholds, args.model)
    steps = OnnxSteps(model, thresholds, args.mask_thresh)
    skipped = predict_images(steps, images, known, output, savers)
    if skipped:
        raise InputError(f"{len(skipped)} of {len(images)} files could not be read, the first: {skipped[0].path}")


class OnnxSteps:
    """Steps of a prediction with an exported network, for `predict_images`."""

    images_per_step = 1
    images_ahead = 1 + THREADS

    def __init__(self, model: OnnxModel, box_thresh: ScoreThresholds, mask_thresh: float):
        self.model, self.box_thresh, self.mask_thresh = model, box_thresh, mask_thresh

    def load(self, image: Path, size: tuple[int, int] | None = None) -> Image.Image:
        return open_image(image, self.model.description.exif, size=size)

    def find(self, images: Sequence[Image.Image]) -> list[dict[str, np.ndarray]]:
        return [self.model.detect(np.asarray(image)) for image in images]

    def describe(self, image: Image.Image, found: dict[str, np.ndarray]) -> Prediction:
        """Describe the detections that score at least their class's `box_thresh` and have a class."""
        about = self.model.description
        named = np.array([label in about.category_ids for label in found["labels"].tolist()], dtype=bool)
        keep = named & (found["scores"] >= self.box_thresh(found["labels"]).astype(np.float32))
        boxes, labels, scores, probs = (found[name][keep] for name in ("boxes", "labels", "scores", "masks"))
        codes = encode_masks(probs, boxes, (image.height, image.width), self.mask_thresh, about.continuous_paste)
        names = [about.names[label] for label in labels.tolist()]
        ids = [about.category_ids[label] for label in labels.tolist()]
        return Prediction(image, boxes, labels, names, scores, codes, ids)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file of tools/export_onnx.py")
    parser.add_argument("images", nargs="+", help="images, folders of images, or patterns such as 'photos/**/*.jpg'")
    parser.add_argument("--output-dir", default="predictions", help="drawn images and JSON (%(default)s)")
    parser.add_argument(
        "--box-thresh", nargs="+", default=[str(DEFAULT)], metavar="SCORE",
        help="minimum score to show: for all classes, per class (person=0.7), or best, the scores with the best F1 in "
        f"validation, if the file holds them ({DEFAULT})",
    )  # fmt: skip
    parser.add_argument(
        "--mask-thresh", type=float, default=0.5, help="minimum probability of a mask's pixels (%(default)s)"
    )
    parser.add_argument("--save-json", action="store_true", help="also write the detections, in COCO's results format")
    parser.add_argument(
        "--runtime", choices=RUNTIMES, help="(default: onnxruntime on a GPU; on the CPU openvino if it is installed)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16 needs openvino (%(default)s)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: all cores)")
    arguments = parser.parse_args()
    with one_line_errors():
        main(arguments)
