"""Find instances in images, videos or before a camera, draw them, and save them for other tools.

    python predict.py                                             # newest weights, an image of their validation set
    python predict.py --weights-path save_weights/model_25.pth --img-path photo.jpg
    python predict.py --img-path photos/ 'more/**/*.png' --box-thresh 0.7 --save json csv
    python predict.py --img-path photos/ --save labelme           # correct them in labelme, then train again on them
    python predict.py --img-path scan.tif --tile 1024             # large images in tiles
    python predict.py --img-path clip.mp4 --every 5               # needs PyAV
    python predict.py --webcam                                    # needs OpenCV

Everything goes to --output-dir, images under their names in the folders that they come from. In Python:

    from predict import Predictor

    found = Predictor("save_weights/model_25.pth")("photo.jpg")
"""

from collections.abc import Sequence
from pathlib import Path

from dataset_files.atomic_files import refuse_overwriting
from dataset_files.problems import printable
from prediction.pipeline import predict_images
from prediction.predictor import Predictor
from prediction.savers import open_savers
from prediction.sources import Source, find_sources, result_images
from prediction.video import predict_video
from prediction.webcam import predict_webcam
from train_utils.errors import InputError, one_line_errors, reading_input, writing_output
from train_utils.open_data import open_held_out
from train_utils.options import DataSettings, PredictSettings
from train_utils.trained_model import TrainedModel, open_trained_model


def main(settings: PredictSettings) -> None:
    check_camera(settings)
    predictor = Predictor.of_trained(open_trained_model(settings), settings)
    output = Path(settings.output_dir)

    # A camera
    if settings.webcam is not None:
        path = output / "webcam.mp4"
        check_outputs([], [path, lines_path(settings, path)], settings)
        predict_webcam(predictor, settings.webcam, path, lines_path(settings, path), settings.every)
        return

    # Images and videos
    sources = find_sources(settings.img_path or [example_image(predictor.trained)], output)
    images = [source for source in sources if not source.is_video()]
    videos = [source for source in sources if source.is_video()]
    check_videos(videos, settings)
    known = result_images(images, settings.annotation_file)
    savers = open_savers(settings.formats, output, images, [image.id for image in known], predictor.classes)
    drawn = [source.drawn_in(output) for source in sources]
    lines = [lines_path(settings, video.drawn_in(output)) for video in videos]
    check_outputs(sources, [*drawn, *lines, *(saver.path for saver in savers)], settings)
    unreadable = predict_images(predictor, images, known, output, savers if images else [])
    unreadable += predict_videos(predictor, videos, settings)
    if unreadable:
        raise InputError(
            f"{len(unreadable)} of {len(sources)} files could not be read, the first: {unreadable[0].path}"
        )


def example_image(trained: TrainedModel) -> Path:
    """An image of the validation set that belongs to the weights: the first with at least three objects."""
    if not trained.trained_with.get("data_path") and not trained.trained_with.get("train_json"):
        raise InputError(f"{trained.path}: does not say which data it was trained on; give --img-path")
    with reading_input():
        dataset = open_held_out(DataSettings(), trained.trained_with, trained.held_out)
    best = max(range(min(len(dataset), 20)), key=lambda i: min(len(dataset.target(i)["labels"]), 4))
    return dataset.image_path(best)


def predict_videos(predictor: Predictor, videos: Sequence[Source], settings: PredictSettings) -> list[Source]:
    """Draw and save what is found in each video; return the unreadable and damaged ones."""
    skipped = []
    for video in videos:
        path = video.drawn_in(Path(settings.output_dir))
        error = predict_video(predictor, video, path, lines_path(settings, path), settings.every)
        if error:
            skipped.append(video)
            print(printable(f"skipped: {error}"), flush=True)
    return skipped


def lines_path(settings: PredictSettings, drawn: Path) -> Path | None:
    """The file for the JSON lines of a video; None without --save json."""
    return drawn.with_name(f"{drawn.name.removesuffix('.mp4')}.jsonl") if settings.formats else None


# ---------------------------------------------------------------------------------------------------------- the checks


def check_outputs(inputs: Sequence[Source], outputs: Sequence[Path | None], settings: PredictSettings) -> None:
    """Raise InputError where a file that this command reads would be overwritten."""
    options = (settings.weights_path, settings.annotation_file, settings.label_json_path)
    paths = [*(source.path for source in inputs), *(Path(option) for option in options if option)]
    with reading_input():
        refuse_overwriting(paths, [path for path in outputs if path])
    with writing_output():
        Path(settings.output_dir).mkdir(parents=True, exist_ok=True)


def check_videos(videos: Sequence[Source], settings: PredictSettings) -> None:
    """Raise InputError for options that have no meaning for these files."""
    if videos:
        require_json_only(settings, videos[0].path)
    elif settings.every > 1:
        raise InputError(f"--every {settings.every} is for videos, and --img-path names none")


def check_camera(settings: PredictSettings) -> None:
    if settings.webcam is not None:
        require_json_only(settings, "--webcam")
        if settings.img_path:
            raise InputError("--webcam and --img-path cannot be given together")


def require_json_only(settings: PredictSettings, what: str | Path) -> None:
    others = [name for name in settings.formats if name != "json"]
    if others:
        raise InputError(f"{what}: of videos only --save json is written, a line per frame; not {' '.join(others)}")


if __name__ == "__main__":
    with one_line_errors():
        main(PredictSettings.parse(__doc__))
