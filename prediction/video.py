"""Predict videos with PyAV: frames in, a drawn H.264 video with the same times out, and a line of JSON per frame."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from prediction.pipeline import predict_all
from prediction.prediction import Prediction
from prediction.predictor import LoadedImage, Predictor
from prediction.sources import Source
from train_utils.errors import INTERRUPTED, InputError, RunEnded, writing_output

ENCODER = {"preset": "veryfast", "crf": "20"}
BT601, LIMITED_RANGE = 6, 1  # how PyAV converts from RGB; players of untagged files may assume BT.709
USUAL_RATE = Fraction(25)  # frames per second, of a file that does not say


@dataclass
class Frame:
    """A frame of a video.

    Attributes:
        number: in the video, from 0.
        pts: its time in units of the video's time base.
        picture: PyAV's frame, not yet upright.
        matrix: a, b, c, d of the display matrix: pixel x, y is shown at a * x + c * y, b * x + d * y.
    """

    number: int
    pts: int
    picture: Any
    matrix: tuple[int, int, int, int]

    def image(self) -> Image.Image:
        """The frame in RGB, upright."""
        return Image.fromarray(upright(self.picture.to_ndarray(format="rgb24"), self.matrix))


def predict_video(predictor: Predictor, source: Source, path: Path, json_path: Path | None, every: int) -> str:
    """Draw a video's objects into the video `path`, with a progress bar, and print a line.

    Ctrl-C ends both files in order.

    Args:
        json_path: where a line of JSON per frame goes, if anywhere.
        every: 1 for all frames, N for each N-th one; the others are left out.

    Returns:
        What is wrong with the video's file; "" if nothing is.

    Raises:
        InputError: PyAV is missing, or the output cannot be written.
        RunEnded: after Ctrl-C.
    """
    av = import_pyav(source.path)
    try:
        video = VideoReader(av, source.path, every)
    except (av.FFmpegError, ValueError) as error:
        return f"{source.path}: cannot be read as a video ({error})"

    def load(frame: Frame) -> LoadedImage:
        return predictor.load(frame.image())

    def finish(frame: Frame, found: Prediction, seconds: float) -> tuple[Image.Image, Prediction]:
        return found.draw(enlarge=False), found

    written, objects, start, stopped = 0, 0, time.perf_counter(), False
    bar = tqdm(total=video.length, desc=source.file_name, unit=" frames")
    with writing_output(), FrameLines(json_path) as lines, VideoWriter(av, path, video) as drawn, bar:
        try:
            for outcome in predict_all(predictor, video.frames(), load, finish):
                if outcome.result is None:
                    raise ValueError(outcome.error)
                image, found = outcome.result
                drawn.write(image, outcome.item.pts)
                lines.write(outcome.item.number, float(outcome.item.pts * video.time_base), found)
                written, objects = written + 1, objects + len(found)
                bar.update()
        except KeyboardInterrupt:
            stopped = True
    seconds = time.perf_counter() - start
    print(
        f"{source.path}: {objects} found in {written} frames in {seconds:.1f} s ({written / seconds:.2f} frames per "
        f"second), drawn in {path}",
        flush=True,
    )
    if stopped:
        raise RunEnded(f"stopped: {path} holds the first {written} frames", INTERRUPTED)
    return video.error


def import_pyav(path: Path) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise InputError(f"{path}: videos need PyAV, which is not installed: pip install av ({error})") from None
    return av


class VideoReader:
    """The frames of a video file.

    Attributes:
        time_base: seconds per unit of `Frame.pts`.
        rate: mean frames per second of what is read.
        length: number of frames that are read, if the file says how many it has.
        error: why reading ended before the end, if it did.
    """

    def __init__(self, av: ModuleType, path: Path, every: int):
        self.av, self.path, self.every = av, path, every
        self.container = av.open(str(path))
        if not self.container.streams.video:
            raise ValueError("it has no video")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        rate = self.stream.average_rate or self.stream.guessed_rate or USUAL_RATE
        self.rate = Fraction(rate) / every
        self.time_base = Fraction(self.stream.time_base or 1 / rate)
        self.length = -(-self.stream.frames // every) or None
        self.error = ""

    def frames(self) -> Iterator[Frame]:
        """Every so many-th frame; times increase, also where the file has none."""
        last, number, matrix = -1, -1, (1, 0, 0, 1)
        try:
            for number, picture in enumerate(self.container.decode(self.stream)):
                matrix = display_matrix(picture) or matrix
                if number % self.every:
                    continue
                pts = picture.pts
                if pts is None:
                    pts = round(number / (self.rate * self.every) / self.time_base)
                last = pts if number == 0 else max(pts, last + 1)
                yield Frame(number, last, picture, matrix)
        except self.av.FFmpegError as error:
            self.error = f"{self.path}: is damaged after {number + 1} frames ({error})"
        finally:
            self.container.close()
        if number < 0 and not self.error:
            self.error = f"{self.path}: holds no frame"


def display_matrix(picture: Any) -> tuple[int, int, int, int] | None:
    """How a frame is meant to be turned: a, b, c, d of its display matrix as -1, 0 or 1; None if it does not say."""
    data = picture.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.sign(np.frombuffer(bytes(data), dtype="<i4", count=5)).tolist()
    return (a, b, c, d) if (a and d and not b and not c) or (b and c and not a and not d) else None


def upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror pixels [H, W, 3] as a display matrix says."""
    a, b, c, d = matrix
    if b:
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: d or 1, :: a or 1])


class VideoWriter:
    """Context that writes an H.264 video with the times of another one; odd sides get one more row or column.

    Args:
        like: gives time base and rate.
    """

    def __init__(self, av: ModuleType, path: Path, like: VideoReader):
        self.av, self.path, self.like = av, path, like
        self.stream: Any = None

    def __enter__(self) -> "VideoWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.container = self.av.open(str(self.path), "w")
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode(None))
        self.container.close()
        if self.stream is None:
            self.path.unlink(missing_ok=True)

    def write(self, image: Image.Image, pts: int) -> None:
        """Append a frame at a time in units of the time base."""
        pixels = np.asarray(image)
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        if self.stream is None:
            self.stream = self.container.add_stream("libx264", rate=self.like.rate, options=ENCODER)
            self.stream.height, self.stream.width = pixels.shape[:2]
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.colorspace = BT601
            self.stream.codec_context.color_range = LIMITED_RANGE
            self.stream.time_base = self.stream.codec_context.time_base = self.like.time_base
        frame = self.av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = pts, self.like.time_base
        self.container.mux(self.stream.encode(frame))


class FrameLines:
    """Context that writes a line of JSON per frame, as soon as it is known.

    A line has `frame`, its number from 0, `time` in seconds, `width`, `height`, and `objects`, each with `category_id`,
    `name`, `score`, `bbox` (x, y, width, height in pixels) and `segmentation`, a COCO run-length code.

    Args:
        path: None writes nothing.
    """

    def __init__(self, path: Path | None):
        self.path = path

    def __enter__(self) -> "FrameLines":
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            self.file.close()

    def write(self, number: int, seconds: float, found: Prediction) -> None:
        if self.path is None:
            return
        entries = [{"name": name, **entry} for name, entry in zip(found.names, found.to_coco())]
        for entry in entries:
            del entry["image_id"]
        height, width = found.size
        line = {"frame": number, "time": seconds, "width": width, "height": height, "objects": entries}
        self.file.write(f"{json.dumps(line, ensure_ascii=False)}\n")
        self.file.flush()
