"""Find objects with an exported network: image -> detections. Needs NumPy and a runtime, not torch."""

from pathlib import Path

import numpy as np

from onnx_files.description import Description
from onnx_files.runtimes import Session, fastest_runtime, open_session
from train_utils.errors import InputError


class OnnxModel:
    """A file that tools/export_onnx.py wrote.

    Args:
        path: the file.
        threads: of the CPU; None for all cores.
        runtime: "onnxruntime" or "openvino"; None for the fastest one installed.
        precision: of the arithmetic, "fp32" or "bf16".

    Raises:
        InputError: the file is missing or is not such a file, or the runtime is missing.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, runtime: str | None = None, precision: str = "fp32"
    ):
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        try:
            self.session = open_session(str(path), runtime or fastest_runtime(), threads, precision)
            self.description = Description.from_metadata(self.session.metadata)
        except ValueError as error:
            raise InputError(f"{path}: {error}; write it with tools/export_onnx.py") from error
        batch = self.session.shape[0] if len(self.session.shape) == 4 else 1
        if batch != 1:
            raise InputError(f"{path}: takes {batch} images at a time; export it without --batch to run it here")

    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Find the objects in one image.

        Args:
            image: uint8 [H, W, 3], RGB, or as the network was trained, [H, W, C], uint8 or float32.

        Returns:
            `boxes` float32 [N, 4], x1y1x2y2 in pixels of the image, `labels` int64 [N], `scores` float32 [N], best
            first, and `masks` float32 [N, 1, 28, 28], probabilities.
        """
        return detect(self.session, image)


def detect(session: Session, image: np.ndarray) -> dict[str, np.ndarray]:
    """`OnnxModel.detect` in an opened file."""
    height, width = session.shape[-2:]
    if (height or len(image), width or image.shape[1]) != image.shape[:2]:
        got = f"{image.shape[1]} x {image.shape[0]}"
        raise InputError(f"the file takes images of {width} x {height} pixels, got {got}; export it without --size")
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
    if pixels.dtype == np.uint8 and not session.takes_uint8:
        pixels = pixels.astype(np.float32) / np.float32(255)
    if len(session.shape) == 3:
        found = session.run(pixels)
    else:
        found = {name: values[0] for name, values in session.run(pixels[None]).items()}
    real = found["labels"] > 0  # a file for a batch or for one size fills up with zeros
    return {name: values[real] for name, values in found.items()}
