"""Predict videos with PyAV, and write drawn H.264 videos and lines of JSON, one per frame.

Drawn frames keep the times of the original ones. Frames of a camera, which OpenCV reads, are shown as well.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_files.atomic_files import open_new, renaming_to
from dataset_files.problems import printable
from prediction.pipeline import predict_all
from prediction.prediction import Prediction
from prediction.sources import Source
from prediction.steps import ImagePredictor, LoadedImage
from train_utils.errors import INTERRUPTED, InputError, RunEnded, optional_package, warn, writing_output

ENCODER = {"preset": "veryfast", "crf": "20"}
BT601, LIMITED_RANGE = 6, 1  # how PyAV converts from RGB; players of untagged files may assume BT.709
USUAL_RATE = Fraction(25)  # frames per second, if the file does not state it
CLOCK_RESET = 1  # seconds by which times must jump back to count as a new clock, not as frames out of order
SLACK = 0.02  # share of a video's frames or duration that may be missing: files state both imprecisely
WINDOW = "Mask R-CNN (q to stop)"
RATE = Fraction(15)  # frames per second that the recording states
TIME_BASE = Fraction(1, 90_000)  # seconds
STOP_KEYS = (ord("q"), 27)  # q and Esc


@dataclass
class Frame:
    number: int  # from 0
    pts: int  # its time in units of the video's time base
    decoded: Any  # PyAV's frame, not yet upright
    matrix: tuple[int, int, int, int]  # a, b, c, d: pixel x, y is shown at a * x + c * y, b * x + d * y


def predict_video(predictor: ImagePredictor, source: Source, path: Path, json_path: Path | None, every: int) -> str:
    """Draw the objects in every n-th frame of a video, and write the result to `path`.

    This shows a progress bar and prints a line. A line of JSON per frame goes to `json_path`, if given. Ctrl-C leaves
    complete files.

    Returns:
        A description of the fault in the video file, or "". The readable frames of a damaged file are predicted.

    Raises:
        InputError: PyAV is missing, or the output cannot be written.
        RunEnded: after Ctrl-C.
    """
    av = optional_package("av", f"{source.path}: videos need PyAV", "av")
    try:
        video = VideoReader(av, source.path, every)
    except (av.FFmpegError, ValueError) as error:
        return f"{source.path}: cannot be read as a video ({getattr(error, 'strerror', None) or error})"

    def load(frame: Frame) -> LoadedImage:
        return predictor.load(Image.fromarray(upright(frame.decoded.to_ndarray(format="rgb24"), frame.matrix)))

    def finish(frame: Frame, found: Prediction, seconds: float) -> tuple[Image.Image, Prediction]:
        return found.draw(enlarge=False), found

    written, objects, start, stopped, failure = 0, 0, time.perf_counter(), False, None
    bar = tqdm(total=video.length, desc=source.file_name, unit=" frames")
    with recording(av, path, json_path, video.rate, video.time_base) as write, bar:
        try:
            for outcome in predict_all(predictor, video.frames(), load, finish):
                if outcome.error:
                    raise ValueError(outcome.error)
                image, found = outcome.result
                write(outcome.item.number, outcome.item.pts, image, found)
                written, objects = written + 1, objects + len(found)
                bar.update()
        except KeyboardInterrupt:
            stopped = True
        except Exception as error:  # raised below, once both files are complete
            failure = error
    if failure is not None:
        raise failure
    seconds = time.perf_counter() - start
    if written:
        speed = f"{seconds:.1f} s ({written / seconds:.2f} frames per second)"
        print(printable(f"{source.path}: {objects} found in {written} frames in {speed}, drawn in {path}"), flush=True)
    if stopped:
        raise RunEnded(f"stopped: {path} holds the first {written} frames", INTERRUPTED)
    return video.error


class VideoReader:
    """The frames of a video file.

    Attributes:
        time_base: seconds per unit of `Frame.pts`.
        rate: mean frames per second, counting only those that are read.
        length: number of frames to read; None if the file does not state it.
        error: what is wrong with the file, known once it has been read; "" if nothing.
    """

    def __init__(self, av: Any, path: Path, every: int):
        self.av, self.path, self.every = av, path, every
        self.container = av.open(str(path))
        if not self.container.streams.video:
            raise ValueError("it has no video stream")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        rate = self.stream.average_rate or self.stream.guessed_rate or USUAL_RATE
        self.rate = Fraction(rate) / every
        self.time_base = Fraction(self.stream.time_base or 1 / rate)
        if self.stream.duration:
            self.seconds = float(self.stream.duration * self.time_base)
        else:
            self.seconds = (self.container.duration or 0) / self.av.time_base
        # A file may hold more frames than its duration covers: editors on phones only hide what they cut off.
        played = round(self.seconds * float(rate)) if self.seconds else self.stream.frames
        self.stated = min(self.stream.frames, played)
        self.length = -(-self.stated // every) or None
        self.error = ""

    def frames(self) -> Iterator[Frame]:
        """Yield every `every`-th frame. Times increase, even if the file stores no times or its clock restarts."""
        number, first, last, shift, matrix = -1, 0, -1, 0, (1, 0, 0, 1)
        mean = step = max(1, round(1 / (self.rate * self.every) / self.time_base))
        for number, decoded in enumerate(self.decoded()):
            matrix = display_matrix(decoded) or matrix
            time = number * mean if decoded.pts is None else decoded.pts + shift
            if number == 0:
                first = time
            elif time < last - CLOCK_RESET / self.time_base:
                shift, time = shift + last + step - time, last + step
            else:
                time = max(time, last + 1)
                step = time - last
            last = time
            if number % self.every == 0:
                yield Frame(number, time, decoded, matrix)
        self.container.close()
        self.error = self.error or self.shortfall(number + 1, float((last + mean - first) * self.time_base))

    def decoded(self) -> Iterator[Any]:
        try:
            for packet in self.container.demux(self.stream):
                try:
                    yield from packet.decode()
                except self.av.error.InvalidDataError:
                    continue
        except self.av.FFmpegError as error:
            self.error = f"{self.path}: is damaged ({error})"

    def shortfall(self, frames: int, seconds: float) -> str:
        """Describe how much of the stated number of frames or duration could be read; "" if (almost) all."""
        if frames == 0:
            return f"{self.path}: holds no readable frame"
        if frames < (1 - SLACK) * self.stated - 1:
            return f"{self.path}: is damaged or cut off: {frames} of {self.stated} frames could be read"
        if seconds < (1 - SLACK) * self.seconds - min(0.5, self.seconds / 4):
            return f"{self.path}: is damaged or cut off: {seconds:.1f} of {self.seconds:.1f} seconds could be read"
        return ""


def display_matrix(decoded: Any) -> tuple[int, int, int, int] | None:
    """Return the `Frame.matrix` of a decoded frame; None if the frame stores none, or one for an angle like 45°."""
    data = decoded.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.sign(np.frombuffer(bytes(data), dtype="<i4", count=5)).tolist()
    return (a, b, c, d) if (a and d and not b and not c) or (b and c and not a and not d) else None


def upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Rotate or mirror pixels [H, W, 3] according to a display matrix (see `Frame`)."""
    a, b, c, d = matrix
    if b:
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: d or 1, :: a or 1])


@contextmanager
def recording(
    av: Any, path: Path, json_path: Path | None, rate: Fraction, time_base: Fraction
) -> Iterator[Callable[[int, int, Image.Image, Prediction], None]]:
    """Write a video and, if `json_path` is given, a file of JSON lines. Yield a function that appends a frame to both.

    The function takes a frame's number, time in units of `time_base` seconds, drawing and prediction. The video is
    H.264 at `rate` frames per second. An odd width or height grows by one pixel. Without frames, no video is written.
    """
    with writing_output(), ExitStack() as stack:
        lines = None if json_path is None else stack.enter_context(open_new(json_path))
        temporary = stack.enter_context(renaming_to(path))
        container: Any = None

        def write(number: int, pts: int, image: Image.Image, found: Prediction) -> None:
            nonlocal container
            pixels = np.asarray(image)
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
            if container is None:
                container = stack.enter_context(av.open(str(temporary), "w"))
                stream = container.add_stream("libx264", rate=rate, options=ENCODER)
                stack.callback(lambda: container.mux(stream.encode(None)))
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.colorspace = BT601
                stream.codec_context.color_range = LIMITED_RANGE
                stream.time_base = stream.codec_context.time_base = time_base
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = pts, time_base
            line = "" if lines is None else frame_line(number, float(pts * time_base), found)
            try:
                container.mux(container.streams.video[0].encode(frame))
            finally:  # a written frame has its line, even after Ctrl-C
                if lines is not None:
                    lines.write(line)

        yield write


def frame_line(number: int, seconds: float, found: Prediction) -> str:
    """Return a line of JSON: `frame` (number from 0), `time` (seconds), `width`, `height` and `objects`.

    Each object has `category_id`, `name`, `score`, `bbox` (x, y, width, height in pixels), and `segmentation` in COCO's
    run-length code.
    """
    entries = [{"name": name, **entry} for name, entry in zip(found.names, found.to_coco())]
    for entry in entries:
        del entry["image_id"]
    height, width = found.size
    line = {"frame": number, "time": seconds, "width": width, "height": height, "objects": entries}
    return f"{json.dumps(line, ensure_ascii=False)}\n"


def predict_webcam(predictor: ImagePredictor, number: int, path: Path, json_path: Path | None, every: int) -> None:
    """Show and record camera `number` until q, Esc, Ctrl-C or its last frame. Outputs are as in `predict_video`.

    Raises:
        InputError: OpenCV or PyAV is missing, or the camera cannot be opened.
    """
    cv2 = optional_package("cv2", "--webcam needs OpenCV", "opencv-python")
    av = optional_package("av", "--webcam needs PyAV, which records,", "av")
    camera = cv2.VideoCapture(number)
    if not camera.isOpened():
        raise InputError(f"--webcam {number}: there is no such camera, or another program uses it")
    predicted, start, has_window = 0, time.perf_counter(), True
    with recording(av, path, json_path, RATE, TIME_BASE) as write:
        try:
            while all(camera.grab() for _ in range(every)):
                seconds = time.perf_counter() - start
                is_read, pixels = camera.retrieve()
                if not is_read:
                    break
                loaded = predictor.load(np.ascontiguousarray(pixels[..., ::-1]))
                found = predictor.describe(loaded, predictor.find([loaded])[0])
                drawn = found.draw(enlarge=False)
                write((predicted + 1) * every - 1, int(seconds / TIME_BASE), drawn, found)
                predicted += 1
                try:
                    if has_window and is_stopped(cv2, drawn):
                        break
                except cv2.error:
                    has_window = False
                    warn("OpenCV cannot show a window here; recording only, until Ctrl-C")
        except KeyboardInterrupt:
            pass
        finally:
            camera.release()
            if has_window:
                cv2.destroyAllWindows()
    seconds = time.perf_counter() - start
    print(f"camera {number}: {predicted} frames in {seconds:.1f} s ({predicted / seconds:.2f} per second), in {path}")


def is_stopped(cv2: Any, image: Image.Image) -> bool:
    """Show a frame; return whether a stop key was pressed or the window was closed."""
    cv2.imshow(WINDOW, np.ascontiguousarray(np.asarray(image)[..., ::-1]))
    return cv2.waitKey(1) & 0xFF in STOP_KEYS or cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1
