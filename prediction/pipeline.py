"""Predict many images: threads read images, and draw and save results, while the network runs. Needs no torch.

`predict_images` predicts image files; `predict_all` also predicts the frames of videos.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dataset_files.atomic_files import write_image
from dataset_files.problems import printable
from prediction.prediction import Prediction
from prediction.savers import Saver
from prediction.sources import Source
from prediction.steps import ImagePredictor
from train_utils.errors import INTERRUPTED, RunEnded, warn, writing_output

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = max(2, min(8, os.cpu_count() or 1))
FAST = 1  # compression of drawn images: a fifth of the time of the default, files a tenth larger


class Outcome(NamedTuple):
    """An item (an image file or a video frame) and its result, which is None if the image cannot be read."""

    item: Any
    result: Any
    error: str = ""  # why the image cannot be read


def predict_images(
    predictor: ImagePredictor, images: Sequence[Source], folder: Path, savers: Sequence[Saver]
) -> list[Source]:
    """Predict image files. Draw each prediction into `folder`, give it to the savers, and print a line about it.

    Returns the images that cannot be read. However the run ends, the savers write the predictions made so far.

    Raises:
        RunEnded: after Ctrl-C.
        InputError: an output cannot be written.
    """
    if not images:
        return []

    def load(source: Source) -> Any:
        return predictor.load(source.path, source.size)

    def finish(source: Source, found: Prediction, seconds: float) -> str:
        path = source.drawn_in(folder)
        with writing_output():
            write_image(path, found.draw(), compress_level=FAST)
            for saver in savers:
                saver.add(source, found)
        saved.append(source)
        if source.size not in (None, found.size):
            resized.append(source.path)
        return f"{source.path}: {len(found)} found in {seconds:.3f} s ({found.summary()}), drawn in {path}"

    unreadable, done, start, stopped = [], 0, time.perf_counter(), False
    saved, resized = list[Source](), list[Path]()
    with ExitStack() as at_end:
        for saver in reversed(savers):
            at_end.callback(close, saver, saved)
        try:
            for source, line, error in predict_all(predictor, images, load, finish):
                done += 1
                if error:
                    unreadable.append(source)
                print(printable(line or f"skipped: {error}"), flush=True)
        except KeyboardInterrupt:
            stopped = True
        seconds = time.perf_counter() - start
        if done > 1:
            print(f"{done} images in {seconds:.1f} s, {done / seconds:.2f} per second")
    if resized:
        warn(
            f"{len(resized)} images have another size than in --annotation-file, so their results do not fit it: "
            f"{min(resized)}"
        )
    if stopped:
        raise RunEnded(f"stopped after {done} of {len(images)} images", INTERRUPTED)
    return unreadable


def close(saver: Saver, saved: Sequence[Source]) -> None:
    if not saved:
        return  # keep older results
    with writing_output():
        text = saver.close()
    print(printable(text), flush=True)


def predict_all(
    predictor: ImagePredictor, items: Iterable[Item], load: Callable[[Item], Any],
    finish: Callable[[Item, Prediction, float], Any],
) -> Iterator[Outcome]:  # fmt: skip
    """Predict the images of items (image files or video frames). Yield the `Outcome` of each item in order.

    Only a few images are in memory at a time, even if there are many items or one of the steps is slow.

    Args:
        load: reads an item's image, in a thread; a ValueError becomes the error of the item's outcome.
        finish: turns an item, its prediction and the seconds that the network took into the outcome's result, in a
            thread.
    """

    def loaded(item: Item) -> Outcome:
        try:
            return Outcome(item, load(item))
        except ValueError as error:
            return Outcome(item, None, str(error))

    def through_network(images: Iterator[Outcome]) -> Iterator[tuple[Outcome, Any, float]]:
        while batch := list(islice(images, predictor.images_per_step)):
            readable = [one.result for one in batch if not one.error]
            start = time.perf_counter()
            found = iter(predictor.find(readable) if readable else [])
            seconds = (time.perf_counter() - start) / max(len(readable), 1)
            for one in batch:
                yield one, None if one.error else next(found), seconds

    def finished(step: tuple[Outcome, Any, float]) -> Outcome:
        (item, image, error), found, seconds = step
        return Outcome(item, None if error else finish(item, predictor.describe(image, found), seconds), error)

    ahead = 2 if predictor.tile else predictor.batch_size + THREADS  # tiled images are large
    return in_threads(finished, through_network(in_threads(loaded, items, ahead)), ahead)


def in_threads(function: Callable[[Any], Result], items: Iterable[Any], ahead: int) -> Iterator[Result]:
    """Apply a function to items in threads, with up to `ahead` items in progress. Yield the results in order."""
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(THREADS)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            while pending and (len(pending) >= ahead or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
