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

import time
from collections.abc import Sequence
from pathlib import Path

from prediction.pipeline import predict_all
from prediction.prediction import Prediction
from prediction.predictor import LoadedImage, Predictor
from prediction.savers import open_savers
from prediction.sources import Source, find_sources, result_images
from prediction.video import predict_video
from prediction.webcam import predict_webcam
from train_utils.errors import INTERRUPTED, InputError, RunEnded, one_line_errors, reading_input, writing_output
from train_utils.open_data import open_held_out
from train_utils.options import DataSettings, PredictSettings
from train_utils.trained_model import TrainedModel

FAST = 1  # compression of drawn images: a fifth of the time of the default, files a tenth larger


def main(settings: PredictSettings) -> None:
    check_camera(settings)
    predictor = Predictor.of_settings(settings)
    output = Path(settings.output_dir)

    # A camera
    if settings.webcam is not None:
        predict_webcam(
            predictor, settings.webcam, output / "webcam.mp4", lines_path(settings, "webcam"), settings.every
        )
        return

    # Images and videos
    sources = find_sources(settings.img_path or [example_image(predictor.trained)], output)
    check_sources(sources, settings)
    with writing_output():
        output.mkdir(parents=True, exist_ok=True)
    skipped = predict_images(predictor, [source for source in sources if not source.is_video()], settings)
    skipped += predict_videos(predictor, [source for source in sources if source.is_video()], settings)
    if skipped:
        raise InputError(f"{len(skipped)} of {len(sources)} files could not be read, the first: {skipped[0].path}")


def example_image(trained: TrainedModel) -> Path:
    """An image of the validation set that belongs to the weights: the first with at least three objects."""
    if not trained.trained_with.get("data_path") and not trained.trained_with.get("train_json"):
        raise InputError(f"{trained.path}: does not say which data it was trained on; give --img-path")
    with reading_input():
        dataset = open_held_out(DataSettings(), trained.trained_with, trained.held_out)
    best = max(range(min(len(dataset), 20)), key=lambda i: min(len(dataset.target(i)["labels"]), 4))
    return dataset.image_path(best)


def predict_images(predictor: Predictor, images: Sequence[Source], settings: PredictSettings) -> list[Source]:
    """Draw and save what is found in each image, and print a line for each; return the unreadable ones."""
    if not images:
        return []
    output = Path(settings.output_dir)
    known = result_images(images, settings.annotation_file)
    savers = open_savers(settings.formats, output, images, [image.id for image in known], predictor.classes)

    def load(numbered: tuple[int, Source]) -> LoadedImage:
        number, source = numbered
        return predictor.load(source.path, known[number].size)

    def finish(numbered: tuple[int, Source], found: Prediction, seconds: float) -> str:
        number, source = numbered
        with writing_output():
            path = drawn_path(settings, source)
            path.parent.mkdir(parents=True, exist_ok=True)
            found.draw().save(path, compress_level=FAST)
            for saver in savers:
                saver.add(number, source, found)
        return f"{source.path}: {len(found)} found in {seconds:.3f} s ({found.summary()}), drawn in {path}"

    skipped, done, start, stopped = [], 0, time.perf_counter(), False
    try:
        for outcome in predict_all(predictor, list(enumerate(images)), load, finish):
            done += 1
            if outcome.result is None:
                skipped.append(outcome.item[1])
            print(outcome.result or f"skipped: {outcome.error}", flush=True)
    except KeyboardInterrupt:
        stopped = True
    seconds = time.perf_counter() - start
    if done > 1:
        print(f"{done} images in {seconds:.1f} s, {done / seconds:.2f} per second")
    with writing_output():
        for saver in savers:
            print(saver.close(), flush=True)
    if stopped:
        raise RunEnded(f"stopped after {done} of {len(images)} images", INTERRUPTED)
    return skipped


def predict_videos(predictor: Predictor, videos: Sequence[Source], settings: PredictSettings) -> list[Source]:
    """Draw and save what is found in each video; return the unreadable and damaged ones."""
    skipped = []
    for video in videos:
        lines = lines_path(settings, video.name)
        error = predict_video(predictor, video, drawn_path(settings, video), lines, settings.every)
        if error:
            skipped.append(video)
            print(f"skipped: {error}", flush=True)
    return skipped


def drawn_path(settings: PredictSettings, source: Source) -> Path:
    return Path(settings.output_dir) / f"{source.name}{'.mp4' if source.is_video() else '.png'}"


def lines_path(settings: PredictSettings, name: str) -> Path | None:
    """Where the lines of JSON about a video go; None without --save json."""
    return Path(settings.output_dir) / f"{name}.jsonl" if settings.formats else None


def check_sources(sources: Sequence[Source], settings: PredictSettings) -> None:
    """Raise InputError for options that have no meaning for these files, and before a file would be overwritten."""
    video = next((source for source in sources if source.is_video()), None)
    if video is None and settings.every > 1:
        raise InputError(f"--every {settings.every} is for videos, and --img-path names none")
    if video is not None:
        require_json_only(settings, video.path)
    for source in sources:
        if drawn_path(settings, source).resolve() == source.path.resolve():
            raise InputError(f"{source.path}: would be overwritten by its drawing; give another --output-dir")


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
