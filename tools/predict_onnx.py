"""Find instances in images with an exported network, without torch: predict.py for files of tools/export_onnx.py.

    python tools/predict_onnx.py model.onnx photo.jpg
    python tools/predict_onnx.py model.onnx photos/ 'more/**/*.png' --box-thresh 0.7 --save-json

Needs numpy, Pillow and onnxruntime; with matplotlib, labels are drawn in the font of predict.py. Drawn images, and with
--save-json predictions.json, go to --output-dir, as with predict.py.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from network_files.masks.paste_numpy import encode_masks  # noqa: E402 (the path comes first)
from prediction.loading import open_image  # noqa: E402
from prediction.prediction import Prediction  # noqa: E402
from prediction.results_saver import ResultsSaver  # noqa: E402
from prediction.sources import Source, find_sources, result_images  # noqa: E402
from train_utils.errors import InputError, one_line_errors, writing_output  # noqa: E402
from train_utils.option_parsing import positive  # noqa: E402

if TYPE_CHECKING:
    from onnx_files.onnx_model import OnnxModel


def main(args: argparse.Namespace) -> None:
    model = open_model(args.model, args.threads)
    output = Path(args.output_dir)
    images = find_sources(args.images, output)
    videos = [image.path for image in images if image.is_video()]
    if videos:
        raise InputError(f"{videos[0]}: is a video, which only predict.py reads")
    with writing_output():
        output.mkdir(parents=True, exist_ok=True)
    skipped = predict_images(model, images, args, output)
    if skipped:
        raise InputError(f"{len(skipped)} of {len(images)} files could not be read, the first: {skipped[0].path}")


def open_model(path: str, threads: int | None) -> "OnnxModel":
    try:
        from onnx_files.onnx_model import OnnxModel
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise InputError("the package onnxruntime is missing; install it with: pip install onnxruntime") from None
    return OnnxModel(path, threads)


def predict_images(
    model: "OnnxModel", images: Sequence[Source], args: argparse.Namespace, output: Path
) -> list[Source]:
    """Draw and save what is found in each image, and print a line for each; return the unreadable ones."""
    ids = [image.id for image in result_images(images)]
    saver = ResultsSaver(output / "predictions.json", ids) if args.save_json else None
    skipped = []
    for number, source in enumerate(images):
        try:
            image = open_image(source.path, model.description.exif)
        except ValueError as error:
            skipped.append(source)
            print(f"skipped: {error}", flush=True)
            continue
        started = time.perf_counter()
        found = predict(model, image, args.box_thresh, args.mask_thresh)
        seconds = time.perf_counter() - started
        path = output / f"{source.name}.png"
        with writing_output():
            path.parent.mkdir(parents=True, exist_ok=True)
            found.draw().save(path)
        if saver is not None:
            saver.add(number, source, found)
        print(f"{source.path}: {len(found)} found in {seconds:.3f} s ({found.summary()}), drawn in {path}", flush=True)
    if saver is not None:
        with writing_output():
            print(saver.close())
    return skipped


def predict(model: "OnnxModel", image: Image.Image, box_thresh: float, mask_thresh: float) -> Prediction:
    """Find the objects in an RGB image that score at least `box_thresh` and have a class."""
    found = model.detect(np.asarray(image))
    names, category_ids = model.description.names, model.description.category_ids
    named = np.array([label in category_ids for label in found["labels"].tolist()], dtype=bool)
    keep = named & (found["scores"] >= box_thresh)
    boxes, labels, scores, probs = (found[name][keep] for name in ("boxes", "labels", "scores", "masks"))
    size = (image.height, image.width)
    codes = encode_masks(probs, boxes, size, mask_thresh, model.description.continuous_paste)
    return Prediction(
        image,
        boxes,
        labels,
        [names[label] for label in labels.tolist()],
        scores,
        codes,
        [category_ids[label] for label in labels.tolist()],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file of tools/export_onnx.py")
    parser.add_argument("images", nargs="+", help="images, folders of images, or patterns such as 'photos/**/*.jpg'")
    parser.add_argument("--output-dir", default="predictions", help="drawn images and JSON (%(default)s)")
    parser.add_argument("--box-thresh", type=float, default=0.5, help="lowest score that is shown (%(default)s)")
    parser.add_argument(
        "--mask-thresh", type=float, default=0.5, help="lowest probability of an object's pixel (%(default)s)"
    )
    parser.add_argument("--save-json", action="store_true", help="also write the detections, in COCO's results format")
    parser.add_argument("--threads", type=positive, help="threads of the CPU (default: all cores)")
    arguments = parser.parse_args()
    with one_line_errors():
        main(arguments)
