"""Predict a camera's frames with OpenCV: show them in a window, and record them with their times."""

import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prediction.predictor import Predictor
from prediction.video import optional_package, recording
from train_utils.errors import InputError, warn

WINDOW = "Mask R-CNN (q to stop)"
RATE = Fraction(15)  # frames per second that the recording states
TIME_BASE = Fraction(1, 90_000)  # seconds
STOP_KEYS = (ord("q"), 27)  # q and Esc


def predict_webcam(predictor: Predictor, number: int, path: Path, json_path: Path | None, every: int) -> None:
    """Show and record until q, Esc or Ctrl-C, or until the camera delivers no more frames.

    Args:
        number: the camera's number, from 0.
        path: the recording.
        json_path: file for a line of JSON per predicted frame; None for no such file.
        every: predict only every n-th frame.

    Raises:
        InputError: OpenCV or PyAV is missing, or the camera cannot be opened.
    """
    cv2 = optional_package("cv2", "--webcam needs OpenCV", "opencv-python")
    av = optional_package("av", "--webcam needs PyAV, which records,", "av")
    camera = cv2.VideoCapture(number)
    if not camera.isOpened():
        raise InputError(f"--webcam {number}: there is no such camera, or another program uses it")
    predicted, start, screen = 0, time.perf_counter(), Screen(cv2)
    with recording(av, path, json_path, RATE, TIME_BASE) as write:
        try:
            while all(camera.grab() for _ in range(every)):
                seconds = time.perf_counter() - start
                is_read, pixels = camera.retrieve()
                if not is_read:
                    break
                found = predictor(np.ascontiguousarray(pixels[..., ::-1]))
                drawn = found.draw(enlarge=False)
                write((predicted + 1) * every - 1, int(seconds / TIME_BASE), drawn, found)
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


class Screen:
    """A window, if OpenCV supports windows and there is a screen."""

    def __init__(self, cv2: Any):
        self.cv2 = cv2
        self.is_available = True

    def show(self, image: Image.Image) -> bool:
        """Show a frame; return whether a stop key was pressed or the window was closed."""
        if not self.is_available:
            return False
        try:
            self.cv2.imshow(WINDOW, np.ascontiguousarray(np.asarray(image)[..., ::-1]))
            key = self.cv2.waitKey(1) & 0xFF
            return key in STOP_KEYS or self.cv2.getWindowProperty(WINDOW, self.cv2.WND_PROP_VISIBLE) < 1
        except self.cv2.error:
            self.is_available = False
            warn("OpenCV cannot show a window here; recording only, until Ctrl-C")
            return False

    def close(self) -> None:
        if self.is_available:
            self.cv2.destroyAllWindows()
