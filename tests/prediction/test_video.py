"""Videos: the same times, upright, odd sizes, every N-th frame, JSON per frame, Ctrl-C, and files that are none."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from predict import Predictor
from prediction.video import display_matrix, upright
from tests.helpers.commands import Outcome, assert_refused, run, succeeded
from tests.helpers.faults import ThinNetwork
from tests.helpers.forked import start, wait_until
from tests.helpers.thin_weights import noise_image, thin_networks, write_thin_weights
from tests.helpers.video_clips import QUARTER_TURN, frames_of, set_display_matrix, write_clip

pytest.importorskip("av", reason="videos need PyAV: pip install av")

SIZE = (321, 241)
FRAMES = 23
TIMES = np.cumsum([0, *np.random.default_rng(0).integers(8, 90, FRAMES - 1)]).tolist()  # in 1/600 s
UNIT = Fraction(1, 600)
WORDS = ["--device", "cpu", "--weights-path", "thin.pth", "--box-thresh", "0.3"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Weights, and a clip of 321x241 pixels with irregular times that is shown turned."""
    folder = tmp_path_factory.mktemp("video")
    write_clip(folder / "clip.mp4", [noise_image(k, SIZE) for k in range(FRAMES)], TIMES, UNIT)
    set_display_matrix(folder / "clip.mp4", QUARTER_TURN)
    with thin_networks():
        write_thin_weights(folder / "thin.pth")
        yield folder


@pytest.fixture(scope="module")
def predicted(lab: Path) -> tuple[list[dict], Outcome]:
    outcome = succeeded(run(lab, "predict.py", *WORDS, "--img-path", "clip.mp4", "--save", "json", "-b", "1"))
    return lines(lab / "predictions" / "clip.jsonl"), outcome


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_drawn_video_keeps_number_and_times_of_frames_and_is_upright(lab: Path, predicted) -> None:
    times, pixels = frames_of(lab / "predictions" / "clip.mp4")
    assert times == [t * UNIT for t in TIMES] == frames_of(lab / "clip.mp4")[0]
    assert {p.shape for p in pixels} == {(322, 242, 3)}
    import av

    with av.open(str(lab / "predictions" / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.frames == FRAMES
        with av.open(str(lab / "clip.mp4")) as original:
            assert float(stream.average_rate) == pytest.approx(float(original.streams.video[0].average_rate), rel=0.05)


def upright_images(path: Path) -> list[Image.Image]:
    """The frames as images, turned clockwise by Pillow."""
    return [Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_270) for pixels in frames_of(path)[1]]


def test_each_tenth_frame_is_predicted_as_the_same_image(lab: Path, predicted) -> None:
    predictor = Predictor(lab / "thin.pth", device="cpu", box_thresh=0.3)
    found, outcome = predicted
    assert [line["frame"] for line in found] == list(range(FRAMES))
    assert [line["time"] for line in found] == pytest.approx([float(t * UNIT) for t in TIMES])
    images = upright_images(lab / "clip.mp4")
    for number in range(0, FRAMES, 10):
        expected, line = predictor(images[number]), found[number]
        assert (line["width"], line["height"]) == images[number].size == SIZE[::-1]
        assert [entry.pop("name") for entry in line["objects"]] == expected.names
        assert line["objects"] == [{k: v for k, v in e.items() if k != "image_id"} for e in expected.to_coco()]
        assert len(expected) > 0
    assert f"{sum(len(line['objects']) for line in found)} found in {FRAMES} frames" in outcome.out
    assert "frames per second" in outcome.out and "frames/s" in outcome.err.replace(" frames", "frames")


def test_the_frames_of_the_drawn_video_are_drawn_like_images(lab: Path, predicted) -> None:
    predictor = Predictor(lab / "thin.pth", device="cpu", box_thresh=0.3)
    for number in (0, 11, FRAMES - 1):
        expected = np.asarray(predictor(upright_images(lab / "clip.mp4")[number]).draw(enlarge=False)).astype(int)
        drawn = frames_of(lab / "predictions" / "clip.mp4")[1][number].astype(int)
        others = frames_of(lab / "predictions" / "clip.mp4")[1][(number + 5) % FRAMES].astype(int)
        difference = np.abs(drawn[:321, :241] - expected).mean()
        assert difference < 20 and 2 * difference < np.abs(others[:321, :241] - expected).mean()


def test_every_nth_frame_alone_is_written_at_its_own_time(lab: Path) -> None:
    words = ["--img-path", "clip.mp4", "--every", "10", "--save-json", "--output-dir", "tenth", "-b", "2"]
    succeeded(run(lab, "predict.py", *WORDS, *words))
    assert frames_of(lab / "tenth" / "clip.mp4")[0] == [TIMES[k] * UNIT for k in (0, 10, 20)]
    assert [line["frame"] for line in lines(lab / "tenth" / "clip.jsonl")] == [0, 10, 20]


def test_without_save_no_json_is_written(lab: Path) -> None:
    succeeded(run(lab, "predict.py", *WORDS, "--img-path", "clip.mp4", "--every", "20", "--output-dir", "plain"))
    assert [path.name for path in (lab / "plain").iterdir()] == ["clip.mp4"]


def test_ctrl_c_leaves_a_playable_file(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find, calls = Predictor.find, []

    def interrupted(self, images):
        calls.append(images)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return find(self, images)

    monkeypatch.setattr(Predictor, "find", interrupted)
    words = ["--img-path", "clip.mp4", "--output-dir", "stopped", "--save", "json", "-b", "1"]
    outcome = run(lab, "predict.py", *WORDS, *words)
    assert outcome.code == 130 and "stopped: stopped/clip.mp4 holds the first" in outcome.err
    times, _ = frames_of(lab / "stopped" / "clip.mp4")
    assert 0 < len(times) <= 9 and times == [t * UNIT for t in TIMES[: len(times)]]
    assert len(lines(lab / "stopped" / "clip.jsonl")) == len(times)


@pytest.mark.slow
def test_a_signal_from_the_keyboard_leaves_a_playable_file(lab: Path) -> None:
    images = [noise_image(k, SIZE) for k in range(400)]
    write_clip(lab / "long.mp4", images, [24 * k for k in range(400)], UNIT)
    process = start("predict.py", [*WORDS, "--img-path", "long.mp4", "--save", "json"], lab, ThinNetwork())
    written = lab / "predictions" / "long.jsonl"
    wait_until(lambda: written.is_file() and len(written.read_bytes()) > 0)

    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130, process.said
    assert "Traceback" not in process.said and "stopped: predictions/long.mp4" in process.said
    times, _ = frames_of(lab / "predictions" / "long.mp4")
    assert 0 < len(times) < 400 and len(lines(written)) == len(times)


def test_images_and_videos_are_predicted_together(lab: Path) -> None:
    (lab / "mixed").mkdir()
    (lab / "mixed" / "clip.MP4").write_bytes((lab / "clip.mp4").read_bytes())
    noise_image(1).save(lab / "mixed" / "photo.png")
    words = ["--img-path", "mixed/*", "--every", "20", "--save", "json", "--output-dir", "both"]
    succeeded(run(lab, "predict.py", *WORDS, *words))
    names = {path.name for path in (lab / "both").iterdir()}
    assert names == {"clip.mp4", "clip.jsonl", "photo.png", "predictions.json"}


def test_a_video_that_cannot_be_read_is_named(lab: Path) -> None:
    (lab / "none.mp4").write_text("no video")
    outcome = run(lab, "predict.py", *WORDS, "--img-path", "none.mp4", "clip.mp4", "--every", "20")
    assert_refused_after_progress(outcome, "1 of 2 files could not be read, the first: none.mp4")
    assert "skipped: none.mp4: cannot be read as a video" in outcome.out and "clip.mp4: " in outcome.out


def assert_refused_after_progress(outcome: Outcome, words: str) -> None:
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ") and words in outcome.err.splitlines()[-1]


def test_without_pyav_one_line_says_so(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    outcome = run(lab, "predict.py", *WORDS, "--img-path", "clip.mp4")
    assert_refused(outcome, "clip.mp4: videos need PyAV", "pip install av")


def test_options_without_a_meaning_are_refused(lab: Path) -> None:
    noise_image(1).save(lab / "photo.png")
    for words, named in (
        (["--img-path", "photo.png", "--every", "3"], "--every 3 is for videos"),
        (["--img-path", "clip.mp4", "--save", "json", "masks", "csv"], "not masks csv"),
        (["--img-path", "clip.mp4", "--output-dir", "."], "clip.mp4: would be overwritten"),
        (["--img-path", "photo.png", "--output-dir", "."], "photo.png: would be overwritten"),
        (["--img-path", "photo.png", "--webcam"], "--webcam and --img-path"),
        (["--webcam", "--save", "coco"], "--webcam: of videos only --save json"),
    ):
        assert_refused(run(lab, "predict.py", *WORDS, *words), named)


@pytest.mark.parametrize(
    "matrix, operation",
    [
        ((1, 0, 0, 1), None),
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
        ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
        ((0, 1, 1, 0), Image.Transpose.TRANSPOSE),
        ((0, -1, -1, 0), Image.Transpose.TRANSVERSE),
    ],
)
def test_each_display_matrix_turns_as_pillow_does(matrix, operation) -> None:
    """A pixel x, y is shown at a * x + c * y, b * x + d * y, moved to begin at 0."""
    image = noise_image(1, (5, 3))
    expected = image if operation is None else image.transpose(operation)
    shown = upright(np.asarray(image), matrix)
    assert np.array_equal(shown, np.asarray(expected))
    a, b, c, d = matrix
    places = {(x, y): (a * x + c * y, b * x + d * y) for x in range(5) for y in range(3)}
    left, top = (min(place[k] for place in places.values()) for k in (0, 1))
    assert all(tuple(shown[v - top, u - left]) == image.getpixel(at) for at, (u, v) in places.items())


def test_a_matrix_that_is_no_quarter_turn_is_passed_over() -> None:
    class Picture:
        side_data = {
            "DISPLAYMATRIX": np.array([46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30], dtype="<i4").tobytes()
        }

    assert display_matrix(Picture()) is None
