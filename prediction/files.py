"""Run a prediction command: check options and outputs, then predict all images and videos. Needs no torch."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset_files.atomic_files import refuse_overwriting
from dataset_files.problems import printable
from prediction.options import OutputSettings
from prediction.pipeline import predict_images
from prediction.savers import Saver, open_savers
from prediction.sources import Source, find_sources, with_ids
from prediction.steps import ImagePredictor
from train_utils.errors import InputError, reading_input


def predict_files(
    predictor: ImagePredictor, given: Iterable[str | Path], settings: OutputSettings, inputs: Iterable[str | None]
) -> None:
    """Predict images and videos, given as files, folders or patterns; draw and save the results.

    Raises:
        InputError: an option or a file cannot be used, or an output would replace a source or one of `inputs`.
        RunEnded: after Ctrl-C.
    """
    folder = Path(settings.output_dir)
    sources = find_sources(given, folder)
    images = [source for source in sources if not source.is_video()]
    videos = [source for source in sources if source.is_video()]
    if videos:
        require_json_only(settings, videos[0].path)
        predictor.require_rgb(videos[0].path)
    elif settings.every > 1:
        raise InputError(f"--every {settings.every} is for videos, and none is given")
    images = with_ids(images, settings.annotation_file)
    savers = open_savers(settings.formats, folder, images, predictor.classes) if images else []
    lines = [path for video in videos if (path := lines_path(settings, video.drawn_in(folder)))]
    check_outputs([*inputs, settings.annotation_file], sources, folder, lines, savers)
    unreadable = predict_images(predictor, images, folder, savers)
    for video in videos:
        from prediction.video import predict_video  # needs tqdm, unlike the others

        path = video.drawn_in(folder)
        if error := predict_video(predictor, video, path, lines_path(settings, path), settings.every):
            unreadable.append(video)
            print(printable(f"skipped: {error}"), flush=True)
    if unreadable:
        raise InputError(
            f"{len(unreadable)} of {len(sources)} files could not be read, the first: {unreadable[0].path}"
        )


def require_json_only(settings: OutputSettings, video: str | Path) -> None:
    others = [name for name in settings.formats if name != "json"]
    if others:
        raise InputError(f"{video}: videos support --save json only, a line per frame; not {' '.join(others)}")


def lines_path(settings: OutputSettings, drawn: Path) -> Path | None:
    """Return the path of a video's JSON lines, beside the drawn video; None without --save json."""
    return drawn.with_name(f"{drawn.name.removesuffix('.mp4')}.jsonl") if settings.formats else None


def check_outputs(
    inputs: Iterable[str | None], sources: Sequence[Source], folder: Path, files: Iterable[Path],
    savers: Sequence[Saver] = (),
) -> None:  # fmt: skip
    """Raise InputError if an output cannot be written or would replace an input.

    `inputs` are other files that are read (None: not given), `files` other files that are written.
    """
    outputs = [*files, *(source.drawn_in(folder) for source in sources)]
    for saver in savers:
        outputs += [source.output(saver.path, suffix) for source in sources for suffix in saver.suffixes]
    outputs += [saver.path for saver in savers if saver.path.suffix]
    read = [*(Path(path) for path in inputs if path), *(source.path for source in sources)]
    with reading_input():
        refuse_overwriting(read, outputs, [saver.path for saver in savers if not saver.path.suffix])
