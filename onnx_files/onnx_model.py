"""Find objects with an exported network: image -> detections. Needs NumPy and a runtime, not torch."""

from pathlib import Path

from onnx_files.description import Description
from onnx_files.runtimes import fastest_runtime, open_session
from train_utils.errors import InputError


class OnnxModel:
    """A network that tools/export_onnx.py exported; `detect` is the one of `Session`.

    Args:
        path: the file.
        threads, runtime, precision: as for `open_session`; without a runtime, the fastest one installed.

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
        if self.session.batch and self.session.batch > 1:
            raise InputError(
                f"{path}: takes {self.session.batch} images at a time; export it without --batch to run it here"
            )
        self.detect = self.session.detect
