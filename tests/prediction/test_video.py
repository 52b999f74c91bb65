"""Videos: the same times, upright, odd sizes, every N-th frame, JSON per frame, Ctrl-C, and files that are none."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from predict import Predictor
from prediction.video import display_matrix, upright
from tests.helpers.commands import Outcome, assert_refused, run, succeeded
from tests.helpers.faults import ThinNetwork
from tests.helpers.forked import start, wait_until
from tests.helpers.thin_weights import noise_image, thin_networks, write_thin_weights
from tests.helpers.video_clips import QUARTER_TURN, cut_clip, frames_of, set_display_matrix, write_clip

pytest.importorskip("av", reason="videos need PyAV: pip install av")
pytestmark = pytest.mark.slow

SIZE = (321, 241)
FRAMES = 23
TIMES = np.cumsum([0, *np.random.default_rng(0).integers(8, 90, FRAMES - 1)]).tolist()  # in 1/600 s
UNIT = Fraction(1, 600)
WORDS = ["--device", "cpu", "--weights-path", "thin.pth", "--box-thresh", "0.3"]
FAST = [*WORDS, "--box-thresh", "0.999"]  # nothing to draw


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


def test_each_tenth_frame_is_predicted_as_the_same_image(lab: Path, predicted, one_thread) -> None:
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


def test_a_cut_video_is_named_with_the_frames_that_it_states_and_holds(lab: Path) -> None:
    cut_clip(lab / "cut.mp4", [noise_image(k, SIZE) for k in range(40)], "mp4", keep=0.5)
    outcome = run(lab, "predict.py", *FAST, "--img-path", "cut.mp4", "--output-dir", "cut")
    assert_refused_after_progress(outcome, "1 of 1 files could not be read")
    read = len(frames_of(lab / "cut" / "cut.mp4")[0])
    assert 10 < read < 30 and f"cut.mp4: is damaged or cut off: {read} of 40 frames could be read" in outcome.out


@pytest.mark.parametrize("frames, stated", [(40, "1.6"), (12, "0.5")])
def test_a_cut_video_that_states_no_frames_is_named_with_both_durations(lab: Path, frames: int, stated: str) -> None:
    cut_clip(lab / "cut.mkv", [noise_image(k, SIZE) for k in range(frames)], "matroska", keep=0.5)
    outcome = run(lab, "predict.py", *FAST, "--img-path", "cut.mkv", "--output-dir", "cut")
    assert_refused_after_progress(outcome, "1 of 1 files could not be read")
    assert re.search(rf"cut.mkv: is damaged or cut off: [01]\.\d of {stated} seconds could be read", outcome.out)


def test_a_video_without_a_readable_frame_is_not_said_to_be_drawn(lab: Path) -> None:
    cut_clip(lab / "head.mkv", [noise_image(k, SIZE) for k in range(40)], "matroska", keep=0.02)
    outcome = run(lab, "predict.py", *FAST, "--img-path", "head.mkv", "--output-dir", "head", "--save", "json")
    assert_refused_after_progress(outcome, "1 of 1 files could not be read")
    assert "drawn in" not in outcome.out and "holds no readable frame" in outcome.out
    assert not (lab / "head" / "head.mp4").exists()


def open_untouched(path: Path) -> Any:
    """A file for packets, with an edit list that hides those before time 0."""
    import av

    return av.open(str(path), "w", options={"avoid_negative_ts": "disabled", "use_editlist": "1"})


def test_frames_that_only_an_edit_list_hides_are_not_missing(lab: Path) -> None:
    """Phones cut the beginning off a video in this way; the file then states more frames than it shows."""
    import av

    write_clip(lab / "whole.mp4", [noise_image(k, (96, 64)) for k in range(40)], range(40), Fraction(1, 25), "libx264")
    with av.open(str(lab / "whole.mp4")) as given, open_untouched(lab / "trimmed.mp4") as written:
        stream = given.streams.video[0]
        cut = int(1 / stream.time_base)
        copy = written.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, copy
                written.mux(packet)
    with av.open(str(lab / "trimmed.mp4")) as container:
        assert container.streams.video[0].frames == 40
    succeeded(run(lab, "predict.py", *FAST, "--img-path", "trimmed.mp4", "--output-dir", "trimmed"))
    assert 0 < len(frames_of(lab / "trimmed" / "trimmed.mp4")[0]) <= 20


def test_a_clock_that_jumps_back_goes_on_from_where_it_was(lab: Path) -> None:
    """As when streams are put behind one another; times are 0, 0.2, ..., 2.2 s, twice."""
    content = b""
    for name in ("one.ts", "other.ts"):
        images = [noise_image(k, (96, 64)) for k in range(12)]
        write_clip(lab / name, images, [120 * k for k in range(12)], UNIT, "libx264")
        content += (lab / name).read_bytes()
    (lab / "jump.ts").write_bytes(content)
    succeeded(run(lab, "predict.py", *FAST, "--img-path", "jump.ts", "--output-dir", "jump"))
    times, _ = frames_of(lab / "jump" / "jump.mp4")
    steps = np.diff([float(time) for time in times])
    assert len(times) == 24 and steps == pytest.approx(0.2, abs=0.17)
    assert sum(steps) == pytest.approx(23 * 0.2, abs=0.4)


def test_an_error_of_the_program_leaves_the_frames_before_it(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find, calls = Predictor.find, []

    def failing(self, images):
        calls.append(images)
        if len(calls) > 5:
            raise ZeroDivisionError("in the sixth frame")
        return find(self, images)

    monkeypatch.setattr(Predictor, "find", failing)
    words = ["--img-path", "clip.mp4", "--output-dir", "failed", "--save", "json", "-b", "1"]
    outcome = run(lab, "predict.py", *WORDS, *words)
    assert outcome.code == 1 and "in the sixth frame" in outcome.err
    assert 0 < len(frames_of(lab / "failed" / "clip.mp4")[0]) == len(lines(lab / "failed" / "clip.jsonl")) <= 5


def test_the_second_of_two_videos_of_one_stem_does_not_get_the_firsts_drawing(lab: Path) -> None:
    (lab / "stems").mkdir()
    for name in ("clip.mkv", "clip.mp4"):
        (lab / "stems" / name).write_bytes((lab / "clip.mp4").read_bytes())
    words = ["--img-path", "stems/clip.mkv", "stems/clip.mp4", "--output-dir", "stems"]
    assert_refused(run(lab, "predict.py", *WORDS, *words), "clip.mp4: would be overwritten")


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
        (["--webcam", "--save", "coco"], "--webcam: videos support --save json only"),
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
