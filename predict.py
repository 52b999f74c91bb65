"""Find instances in images, videos or a camera's frames, draw them, and save them for other tools.

    python predict.py                                             # newest weights, an image of their validation set
    python predict.py --weights-path save_weights/model_25.pth --img-path photo.jpg
    python predict.py --img-path photos/ 'more/**/*.png' --box-thresh 0.7 --save json csv
    python predict.py --img-path photos/ --save labelme           # correct them in labelme, then train again on them
    python predict.py --img-path scan.tif --tile 1024             # large images in tiles
    python predict.py --img-path clip.mp4 --every 5               # needs PyAV
    python predict.py --webcam                                    # needs OpenCV and PyAV

All outputs are written to --output-dir, images under their names in the folders that they come from. In Python:

    from predict import Predictor

    found = Predictor("save_weights/model_25.pth")("photo.jpg")
"""

from pathlib import Path

from prediction.files import check_outputs, lines_path, predict_files, require_json_only
from prediction.options import PredictSettings
from prediction.predictor import Predictor
from prediction.video import predict_webcam
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.open_data import open_held_out
from train_utils.options import DataSettings
from train_utils.trained_model import TrainedModel, open_trained_model


def main(settings: PredictSettings) -> None:
    if settings.webcam is not None:
        if settings.img_path:
            raise InputError("--webcam and --img-path cannot be given together")
        require_json_only(settings, "--webcam")

    predictor = Predictor.of_trained(open_trained_model(settings), settings)
    inputs = settings.weights_path, settings.label_json_path
    if settings.webcam is None:
        given = settings.img_path or [str(example_image(predictor.trained))]
        predict_files(predictor, given, settings, inputs)
    else:
        predictor.require_rgb("--webcam")
        path = Path(settings.output_dir, "webcam.mp4")
        lines = lines_path(settings, path)
        check_outputs(inputs, [], path.parent, [path, lines] if lines else [path])
        predict_webcam(predictor, settings.webcam, path, lines, settings.every)


def example_image(trained: TrainedModel) -> Path:
    """Return an image of the validation split that the weights name, preferably one with four or more objects."""
    if not trained.trained_with.get("data_path") and not trained.trained_with.get("train_json"):
        raise InputError(f"{trained.path}: does not store which data it was trained on; give --img-path")
    with reading_input():
        dataset = open_held_out(DataSettings(), trained.trained_with, trained.held_out)
    best = max(range(min(len(dataset), 20)), key=lambda i: min(len(dataset.target(i)["labels"]), 4))
    return dataset.image_path(best)


if __name__ == "__main__":
    with one_line_errors():
        main(PredictSettings.parse(__doc__))
