"""Make short videos in tests, and read videos with PyAV alone."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

QUARTER_TURN = (0, 1, 0, -1, 0, 0, 0, 0)  # display matrix a, b, u, c, d, v, x, y: shown turned clockwise
SMALLEST = 1 << 16  # 1.0 in the matrix, but for its last entry


def write_clip(
    path: Path, images: Sequence[Image.Image], times: Sequence[int], time_base: Fraction, codec: str = "mpeg4"
) -> None:
    """Write images, as MPEG-4, which permits odd sizes, at times in units of `time_base`."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        stream.time_base = stream.codec_context.time_base = time_base
        for image, pts in zip(images, times):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = pts, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cut_clip(path: Path, images: Sequence[Image.Image], format: str, keep: float) -> None:
    """Write images as a video whose header comes first, and cut the file off."""
    import av

    with av.open(str(path), "w", format=format, options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def set_display_matrix(path: Path, matrix: Sequence[int]) -> None:
    """Write a display matrix, its first eight numbers, into the track header of an MP4 file."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    assert data[header] == 0  # version 0: times of 32 bits
    values = [SMALLEST * value for value in matrix] + [1 << 30]
    data[header + 40 : header + 76] = struct.pack(">9i", *values)
    path.write_bytes(data)


def frames_of(path: Path) -> tuple[list[Fraction], list[np.ndarray]]:
    """The times of all frames in seconds, and their pixels as they are stored, uint8 [H, W, 3]."""
    import av

    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [frame.pts * frame.time_base for frame in frames], [np.asarray(frame.to_image()) for frame in frames]
