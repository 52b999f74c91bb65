"""Predict many images at the network's own rate: reading, drawing and saving run in threads beside it. Without torch.

`predict_images` serves predict.py and tools/predict_onnx.py, `predict_all` below it videos as well.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from dataset_files.atomic_files import write_image
from dataset_files.problems import printable
from prediction.prediction import Prediction
from prediction.savers import Saver
from prediction.sources import ResultImage, Source
from train_utils.errors import INTERRUPTED, RunEnded, writing_output

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = max(2, min(8, os.cpu_count() or 1))
FAST = 1  # compression of drawn images: a fifth of the time of the default, files a tenth larger


class Steps(Protocol):
    """The three steps of a prediction. Only `find` runs the network; the others may run in other threads beside it."""

    @property
    def images_per_step(self) -> int:
        """The number of images that `find` takes at once."""

    @property
    def images_ahead(self) -> int:
        """The number of images to load before the first of them is waited for."""

    def load(self, image: Path, size: tuple[int, int] | None = None) -> Any:
        """Read an image; ValueError if that is impossible. `size`: height and width in its annotations."""

    def find(self, images: Sequence[Any]) -> list[Any]:
        """Detect in loaded images."""

    def describe(self, image: Any, found: Any) -> Prediction:
        """Turn the detections of one loaded image into a prediction."""


class Found(NamedTuple):
    """An item on its way: its image or why it cannot be read, its detections and its share of the step's seconds."""

    item: Any
    image: Any
    error: str
    found: Any = None
    seconds: float = 0.0


class Outcome(NamedTuple):
    """The result of `finish` for an item; None, and the reason, if its image could not be read."""

    item: Any
    result: Any
    error: str


def predict_images(
    steps: Steps, images: Sequence[Source], known: Sequence[ResultImage], output: Path, savers: Sequence[Saver]
) -> list[Source]:
    """Draw and save the predictions of images, and print a line for each; return the unreadable ones.

    Whatever ends the prediction, savers write what was predicted until then.

    Args:
        known: of each image its size in annotations, if there are any.
        output: the folder for drawn images.

    Raises:
        RunEnded: after Ctrl-C.
        InputError: an output cannot be written.
    """
    if not images:
        return []

    def load(numbered: tuple[int, Source]) -> Any:
        number, source = numbered
        return steps.load(source.path, known[number].size)

    def finish(numbered: tuple[int, Source], found: Prediction, seconds: float) -> str:
        number, source = numbered
        path = source.drawn_in(output)
        with writing_output():
            write_image(path, found.draw(), compress_level=FAST)
            for saver in savers:
                saver.add(number, source, found)
        return f"{source.path}: {len(found)} found in {seconds:.3f} s ({found.summary()}), drawn in {path}"

    skipped, done, start, stopped = [], 0, time.perf_counter(), False
    with ExitStack() as at_end:
        for saver in reversed(savers):
            at_end.callback(close, saver)
        try:
            for outcome in predict_all(steps, enumerate(images), load, finish):
                done += 1
                if outcome.result is None:
                    skipped.append(outcome.item[1])
                print(printable(outcome.result or f"skipped: {outcome.error}"), flush=True)
        except KeyboardInterrupt:
            stopped = True
        seconds = time.perf_counter() - start
        if done > 1:
            print(f"{done} images in {seconds:.1f} s, {done / seconds:.2f} per second")
    if stopped:
        raise RunEnded(f"stopped after {done} of {len(images)} images", INTERRUPTED)
    return skipped


def close(saver: Saver) -> None:
    with writing_output():
        text = saver.close()
    print(text, flush=True)


def predict_all(
    steps: Steps, items: Iterable[Item], load: Callable[[Item], Any], finish: Callable[[Item, Prediction, float], Any]
) -> Iterator[Outcome]:
    """Predict images in batches, in order.

    Only a few images are in memory at a time, however many there are and however slow a step is.

    Args:
        load: reads an item's image, in a thread; a ValueError is its error in the outcome.
        finish: is called in a thread with the item, its prediction and the seconds that the network took.
    """

    def loaded(item: Item) -> Found:
        try:
            return Found(item, load(item), "")
        except ValueError as error:
            return Found(item, None, str(error))

    def finished(one: Found) -> Outcome:
        if one.error:
            return Outcome(one.item, None, one.error)
        return Outcome(one.item, finish(one.item, steps.describe(one.image, one.found), one.seconds), "")

    return in_threads(
        finished, through_network(steps, in_threads(loaded, items, steps.images_ahead)), steps.images_ahead
    )


def through_network(steps: Steps, images: Iterator[Found]) -> Iterator[Found]:
    """Run the network on batches of images; what could not be read passes through."""
    while batch := list(islice(images, steps.images_per_step)):
        readable = [one.image for one in batch if not one.error]
        start = time.perf_counter()
        found = iter(steps.find(readable) if readable else [])
        seconds = (time.perf_counter() - start) / max(len(readable), 1)
        for one in batch:
            yield one if one.error else one._replace(found=next(found), seconds=seconds)


def in_threads(function: Callable[[Any], Result], items: Iterable[Any], ahead: int) -> Iterator[Result]:
    """Apply a function in threads beside the caller; yield the results in order, each as soon as it is there.

    Args:
        ahead: number of items that are begun before the first result is waited for.
    """
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
