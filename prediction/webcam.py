"""Predict the images of a camera with OpenCV: show them in a window, and record them in real time."""

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
    """Show and record until q, Esc or Ctrl-C, or until the camera delivers no more frames.

    Args:
        number: the camera's number, from 0.
        path: the recording.
        json_path: file for a line of JSON per predicted frame; None for no such file.
        every: predict every n-th frame.

    Raises:
        InputError: OpenCV is missing, or the camera cannot be opened.
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
    """Skip `every` - 1 frames and return the next, uint8 BGR [H, W, 3]; None if the camera delivers none."""
    for _ in range(every - 1):
        camera.grab()
    is_read, pixels = camera.read()
    return pixels if is_read else None


class Screen:
    """A window, if OpenCV supports windows and there is a screen."""

    def __init__(self, cv2: ModuleType):
        self.cv2 = cv2
        self.is_available = True

    def show(self, pixels: np.ndarray) -> bool:
        """Show a frame in BGR; return whether a stop key was pressed or the window was closed."""
        if not self.is_available:
            return False
        try:
            self.cv2.imshow(WINDOW, pixels)
            key = self.cv2.waitKey(1) & 0xFF
            return key in STOP_KEYS or self.cv2.getWindowProperty(WINDOW, self.cv2.WND_PROP_VISIBLE) < 1
        except self.cv2.error:
            self.is_available = False
            warn("OpenCV cannot show a window here; recording only, until Ctrl-C")
            return False

    def close(self) -> None:
        if self.is_available:
            self.cv2.destroyAllWindows()


class Recording:
    """Context that writes a video of RATE frames per second, repeating each frame until the next one was taken."""

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
        """Add a frame in BGR that was taken `seconds` after the start."""
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
