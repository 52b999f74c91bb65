"""Predict what a camera sees, with OpenCV: show it in a window, and record it at the speed at which it happened."""

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dataset_files.atomic_files import renaming_to
from prediction.predictor import Predictor
from prediction.video import frame_line, open_lines
from train_utils.errors import InputError, warn, writing_output

WINDOW = "Mask R-CNN (q to stop)"
RATE = 15  # frames per second of the recording
STOP_KEYS = (ord("q"), 27)  # q and Esc


def predict_webcam(predictor: Predictor, number: int, path: Path, json_path: Path | None, every: int) -> None:
    """Show and record until q, Esc or Ctrl-C, or until the camera gives no more.

    Args:
        number: of the camera, from 0.
        path: of the recording.
        json_path: where a line of JSON per predicted frame goes, if anywhere.
        every: predict every n-th frame that the camera gives.

    Raises:
        InputError: OpenCV is missing, or there is no such camera.
    """
    cv2 = import_opencv()
    camera = cv2.VideoCapture(number)
    if not camera.isOpened():
        raise InputError(f"--webcam {number}: there is no such camera, or another program uses it")
    predicted, start = 0, time.perf_counter()
    screen = Screen(cv2)
    with (
        writing_output(), open_lines(json_path) as lines, renaming_to(path) as temporary,
        Recording(cv2, temporary) as recording,
    ):  # fmt: skip
        try:
            while (pixels := next_frame(camera, every)) is not None:
                seconds = time.perf_counter() - start
                found = predictor(np.ascontiguousarray(pixels[..., ::-1]))
                drawn = np.ascontiguousarray(np.asarray(found.draw(enlarge=False))[..., ::-1])
                recording.write(drawn, seconds)
                if lines is not None:
                    lines.write(frame_line((predicted + 1) * every - 1, seconds, found))
                predicted += 1
                if screen.show(drawn):
                    break
        except KeyboardInterrupt:
            pass
        finally:
            camera.release()
            screen.close()
    seconds = time.perf_counter() - start
    print(f"camera {number}: {predicted} frames in {seconds:.1f} s ({predicted / seconds:.2f} per second), in {path}")


def import_opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"--webcam needs OpenCV, which is not installed: pip install opencv-python ({error})"
        ) from None
    return cv2


def next_frame(camera: Any, every: int) -> np.ndarray | None:
    """The next frame, uint8 BGR [H, W, 3], after `every` - 1 others; None if the camera gives none."""
    for _ in range(every - 1):
        camera.grab()
    given, pixels = camera.read()
    return pixels if given else None


class Screen:
    """A window, where OpenCV has windows and there is a screen."""

    def __init__(self, cv2: ModuleType):
        self.cv2 = cv2
        self.is_there = True

    def show(self, pixels: np.ndarray) -> bool:
        """Show a frame in BGR; return whether a key asks to stop, or the window was closed."""
        if not self.is_there:
            return False
        try:
            self.cv2.imshow(WINDOW, pixels)
            key = self.cv2.waitKey(1) & 0xFF
            return key in STOP_KEYS or self.cv2.getWindowProperty(WINDOW, self.cv2.WND_PROP_VISIBLE) < 1
        except self.cv2.error:
            self.is_there = False
            warn("OpenCV can show no window here; recording only, until Ctrl-C")
            return False

    def close(self) -> None:
        if self.is_there:
            self.cv2.destroyAllWindows()


class Recording:
    """Context that writes a video of RATE frames per second; a frame is repeated until the next one was taken."""

    def __init__(self, cv2: ModuleType, path: Path):
        self.cv2, self.path = cv2, path
        self.video: Any = None
        self.written = 0

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *_: object) -> None:
        if self.video is not None:
            self.video.write(self.last)
            self.video.release()

    def write(self, pixels: np.ndarray, seconds: float) -> None:
        """Add a frame in BGR that was taken so many seconds after the start."""
        if self.video is None:
            height, width = pixels.shape[:2]
            code = self.cv2.VideoWriter_fourcc(*"mp4v")
            self.video = self.cv2.VideoWriter(str(self.path), code, RATE, (width, height))
            if not self.video.isOpened():
                raise OSError(None, "OpenCV cannot write this video", str(self.path))
            self.last = pixels
        while self.written < int(seconds * RATE):
            self.video.write(self.last)
            self.written += 1
        self.last = pixels
