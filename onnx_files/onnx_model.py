"""Find objects with an exported network: RGB image -> detections. Needs NumPy and a runtime, not torch."""

from pathlib import Path

import numpy as np

from onnx_files.description import Description
from onnx_files.runtimes import fastest_runtime, open_session
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

    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Find the objects in one image.

        Args:
            image: uint8 [H, W, 3], RGB.

        Returns:
            `boxes` float32 [N, 4], x1y1x2y2 in pixels of the image, `labels` int64 [N], `scores` float32 [N], best
            first, and `masks` float32 [N, 1, 28, 28], probabilities.
        """
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        if not self.session.takes_uint8:
            pixels = pixels.astype(np.float32) / np.float32(255)
        return self.session.run(pixels)
