"""The camera, with OpenCV on a clip in its place: recorded with its times, shown, and stopped by key or Ctrl-C."""

import json
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import Outcome, assert_refused, run, succeeded
from tests.helpers.thin_weights import noise_image, thin_networks, write_thin_weights
from tests.helpers.video_clips import frames_of, write_clip

cv2 = pytest.importorskip("cv2", reason="the camera needs OpenCV: pip install opencv-python")
pytest.importorskip("av", reason="the clip in the camera's place is made with PyAV: pip install av")

CAPTURE = cv2.VideoCapture  # the real one
FRAMES = 8
SIZE = (96, 64)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("webcam")
    write_clip(folder / "seen.mp4", [noise_image(k, SIZE) for k in range(FRAMES)], range(FRAMES), Fraction(1, 25))
    with thin_networks():
        write_thin_weights(folder / "thin.pth")
        yield folder


@pytest.fixture(autouse=True)
def camera(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Camera 2 gives the clip's frames, and there is no other."""
    place = {2: str(lab / "seen.mp4")}
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: CAPTURE(place.get(number, str(lab / "none.mp4"))))


class Window:
    """What is shown, and the key that is pressed at a frame."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, key: str = "", at: int = 0, closed_at: int = 99):
        self.shown: list[np.ndarray] = []
        pressed = {at: ord(key)} if key else {}
        monkeypatch.setattr(cv2, "imshow", lambda _, pixels: self.shown.append(pixels))
        monkeypatch.setattr(cv2, "waitKey", lambda _: pressed.get(len(self.shown), -1))
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: float(len(self.shown) < closed_at))
        monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)


def filmed(lab: Path, output: str, *words: str) -> tuple[Outcome, list[dict]]:
    common = ["--device", "cpu", "--weights-path", "thin.pth", "--box-thresh", "0.3", "--save", "json"]
    outcome = run(lab, "predict.py", *common, "--webcam", "2", "--output-dir", output, *words)
    return outcome, [json.loads(line) for line in (lab / output / "webcam.jsonl").read_text().splitlines()]


def recorded(path: Path) -> list[np.ndarray]:
    video, frames = CAPTURE(str(path)), []
    while (given := video.read())[0]:
        frames.append(given[1])
    return frames


def test_frames_are_shown_predicted_and_recorded(lab: Path, monkeypatch) -> None:
    window = Window(monkeypatch)
    outcome, lines = filmed(lab, "all")
    succeeded(outcome)
    assert len(window.shown) == len(lines) == FRAMES and {pixels.shape for pixels in window.shown} == {(64, 96, 3)}
    assert f"camera 2: {FRAMES} frames in " in outcome.out
    assert [line["frame"] for line in lines] == list(range(FRAMES)) and all(line["objects"] for line in lines)
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    frames = recorded(lab / "all" / "webcam.mp4")
    # The file rounds the time of its first frame to milliseconds.
    assert [float(t) for t in frames_of(lab / "all" / "webcam.mp4")[0]] == pytest.approx(times, abs=2e-3)
    assert len(frames) == FRAMES and np.abs(frames[-1].astype(int) - window.shown[-1]).mean() < 25


@pytest.mark.parametrize("key", ["q", "\x1b"])
def test_a_key_stops(lab: Path, monkeypatch, key: str) -> None:
    window = Window(monkeypatch, key, at=3)
    outcome, lines = filmed(lab, "key")
    succeeded(outcome)
    assert len(window.shown) == len(lines) == 3 and recorded(lab / "key" / "webcam.mp4")


def test_closing_the_window_stops(lab: Path, monkeypatch) -> None:
    Window(monkeypatch, closed_at=4)
    assert len(filmed(lab, "closed")[1]) == 4


def test_ctrl_c_leaves_a_playable_file(lab: Path, monkeypatch) -> None:
    Window(monkeypatch)

    def interrupt(_: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cv2, "waitKey", interrupt)
    outcome, lines = filmed(lab, "interrupted")
    succeeded(outcome)
    assert len(lines) == 1 and recorded(lab / "interrupted" / "webcam.mp4")


def test_without_windows_it_records_only(lab: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "imshow", refuse)
    outcome, lines = filmed(lab, "headless")
    succeeded(outcome)
    assert len(lines) == FRAMES and outcome.err.count("recording only") == 1


def test_every_nth_frame_alone_is_predicted(lab: Path, monkeypatch) -> None:
    Window(monkeypatch)
    assert [line["frame"] for line in filmed(lab, "third", "--every", "3")[1]] == [2, 5]


def test_a_camera_that_is_not_there_is_named(lab: Path) -> None:
    common = ["--device", "cpu", "--weights-path", "thin.pth"]
    words = [*common, "--webcam", "--output-dir", "none", "--save", "json"]
    assert_refused(run(lab, "predict.py", *words), "--webcam 0: there is no such camera")
    assert not (lab / "none").exists()


@pytest.mark.parametrize("module, need", [("cv2", "OpenCV"), ("av", "PyAV")])
def test_without_its_packages_one_line_says_so(lab: Path, monkeypatch, module: str, need: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    common = ["--device", "cpu", "--weights-path", "thin.pth"]
    assert_refused(run(lab, "predict.py", *common, "--webcam", "2"), f"--webcam needs {need}", "pip install")
