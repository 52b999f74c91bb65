"""Run an exported network with onnxruntime: RGB image -> detections. Needs NumPy and onnxruntime, not torch."""

from pathlib import Path

import numpy as np
import onnxruntime

from onnx_files.description import Description
from train_utils.errors import InputError

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # in this order, where they are installed
OUTPUTS = ("boxes", "labels", "scores", "masks")


class OnnxModel:
    """A file that tools/export_onnx.py wrote.

    Args:
        path: the file.
        threads: of the CPU; None for all cores.

    Raises:
        InputError: the file is missing or is not such a file.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        available = onnxruntime.get_available_providers()
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=[provider for provider in PROVIDERS if provider in available]
            )
        except Exception as error:  # onnxruntime has a dozen classes of errors
            raise InputError(f"{path}: onnxruntime cannot open it ({first_line(error)})") from error
        try:
            self.description = Description.from_metadata(self.session.get_modelmeta().custom_metadata_map)
        except ValueError as error:
            raise InputError(f"{path}: {error}; write it with tools/export_onnx.py") from error
        self.takes_uint8 = self.session.get_inputs()[0].type == "tensor(uint8)"

    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Find the objects in one image.

        Args:
            image: uint8 [H, W, 3], RGB.

        Returns:
            `boxes` float32 [N, 4], x1y1x2y2 in pixels of the image, `labels` int64 [N], `scores` float32 [N], best
            first, and `masks` float32 [N, 1, 28, 28], probabilities.
        """
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        if not self.takes_uint8:
            pixels = pixels.astype(np.float32) / np.float32(255)
        return dict(zip(OUTPUTS, self.session.run(OUTPUTS, {"image": pixels})))


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
