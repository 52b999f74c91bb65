"""The pipeline: in order, a bounded number of images at a time, and reading and drawing beside the network."""

import threading
import time
from collections.abc import Iterator

import pytest

from prediction import pipeline
from prediction.options import PredictorSettings
from prediction.pipeline import in_threads, predict_all
from prediction.predictor import Predictor
from prediction.steps import LoadedImage
from tests.helpers.stub_detector import StubDetector, draw_shapes, stub_trained


def test_results_come_in_order_and_few_items_are_begun_ahead() -> None:
    taken, results = 0, []

    def items() -> Iterator[int]:
        nonlocal taken
        for k in range(1, 41):
            taken = k
            yield k

    for result in in_threads(lambda k: (time.sleep(0.002 * (k % 3)), k)[1], items(), ahead=5):
        results.append(result)
        assert taken <= len(results) + 5
    assert results == list(range(1, 41))


def test_a_result_is_given_out_as_soon_as_it_is_there() -> None:
    """Not only once `ahead` items are begun: the line of a first image does not wait for the next ones."""
    given = []

    def slow_items() -> Iterator[int]:
        for k in range(3):
            yield k
            time.sleep(0.1)
            given.append(len(results))

    results: list[int] = []
    for result in in_threads(lambda k: k, slow_items(), ahead=100):
        results.append(result)
    assert results == [0, 1, 2] and given[-1] >= 1


def test_an_error_in_a_thread_ends_all_and_the_rest_is_not_begun() -> None:
    begun = []

    def fail_at_3(k: int) -> int:
        begun.append(k)
        if k == 3:
            raise OSError("disk full")
        return k

    with pytest.raises(OSError, match="disk full"):
        list(in_threads(fail_at_3, range(1000), ahead=4))
    assert len(begun) < 1000


def test_reading_and_drawing_run_beside_the_network_and_one_bad_image_is_passed_over() -> None:
    """A load or finish that waits for the network's thread to be elsewhere would wait forever if it ran in it."""
    predictor = Predictor.of_trained(stub_trained(StubDetector()), PredictorSettings(batch_size=3, box_thresh=0))
    main = threading.get_ident()
    image = draw_shapes((60, 50), [(5, 5, 30, 30), (35, 10, 55, 40)])

    def load(k: int) -> LoadedImage:
        assert threading.get_ident() != main
        if k == 4:
            raise ValueError("image 4: is broken")
        return predictor.load(image)

    def finish(k: int, found, seconds: float) -> tuple[int, int]:
        assert threading.get_ident() != main and seconds > 0
        return k, len(found)

    outcomes = list(predict_all(predictor, range(10), load, finish))
    assert [outcome.item for outcome in outcomes] == list(range(10))
    assert [outcome.result for outcome in outcomes] == [None if k == 4 else (k, 2) for k in range(10)]
    assert [outcome.error for outcome in outcomes if outcome.error] == ["image 4: is broken"]
    assert predictor.network.together == [3, 2, 3, 1]  # images per step; the bad one leaves a place empty


@pytest.mark.slow
def test_a_thousand_images_are_never_in_memory_together() -> None:
    predictor = Predictor.of_trained(stub_trained(StubDetector()), PredictorSettings(batch_size=2, box_thresh=0))
    image = draw_shapes((20, 20), [(5, 5, 15, 15)])
    lock, inside, most = threading.Lock(), 0, 0

    def load(k: int) -> LoadedImage:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        return predictor.load(image)

    def finish(k: int, found, seconds: float) -> int:
        nonlocal inside
        with lock:
            inside -= 1
        return len(found)

    assert sum(outcome.result for outcome in predict_all(predictor, range(1000), load, finish)) == 1000
    assert most <= 2 * (2 + pipeline.THREADS) + 2
