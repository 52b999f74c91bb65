"""Predict many images at the network's own rate: reading and drawing run in threads beside it."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from prediction.prediction import Prediction
from prediction.predictor import LoadedImage, Predictor
from prediction.tiles import TileDetections

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = TypeVar("Given")

THREADS = max(2, min(8, os.cpu_count() or 1))


@dataclass
class Loaded(Generic[Item]):
    """An item and its image, or why that cannot be read."""

    item: Item
    image: LoadedImage | None
    error: str


@dataclass
class Found(Generic[Item]):
    """What the network found in an item's image, and its share of the batch's time in seconds."""

    loaded: Loaded[Item]
    tiles: list[TileDetections]
    seconds: float


@dataclass
class Outcome(Generic[Item, Result]):
    """What `finish` made of an item; None, and the reason, if its image could not be read."""

    item: Item
    result: Result | None
    error: str


def predict_all(
    predictor: Predictor,
    items: Iterable[Item],
    load: Callable[[Item], LoadedImage],
    finish: Callable[[Item, Prediction, float], Result],
) -> Iterator[Outcome[Item, Result]]:
    """Predict images in batches, in order.

    Only a few images are in memory at a time, however many there are and however slow a step is.

    Args:
        load: reads an item's image, in a thread; a ValueError is its error in the outcome.
        finish: is called in a thread with the item, its prediction and the seconds that the network took.
    """
    step = predictor.images_per_step
    ahead = 2 if predictor.tile else step + THREADS

    def loaded(item: Item) -> Loaded[Item]:
        try:
            return Loaded(item, load(item), "")
        except ValueError as error:
            return Loaded(item, None, str(error))

    def finished(found: Found[Item]) -> Outcome[Item, Result]:
        item, image = found.loaded.item, found.loaded.image
        if image is None:
            return Outcome(item, None, found.loaded.error)
        return Outcome(item, finish(item, predictor.describe(image, found.tiles), found.seconds), "")

    waiting = in_threads(loaded, items, ahead)
    return in_threads(finished, through_network(predictor, waiting, step), ahead)


def through_network(predictor: Predictor, images: Iterator[Loaded[Item]], step: int) -> Iterator[Found[Item]]:
    """Run the network on batches of `step` images; what could not be read passes through."""
    while batch := list(islice(images, step)):
        readable = [one.image for one in batch if one.image is not None]
        start = time.perf_counter()
        found = iter(predictor.find(readable))
        seconds = (time.perf_counter() - start) / max(len(readable), 1)
        for one in batch:
            yield Found(one, [] if one.image is None else next(found), seconds)


def in_threads(function: Callable[[Given], Result], items: Iterable[Given], ahead: int) -> Iterator[Result]:
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
