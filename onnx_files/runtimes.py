"""Run ONNX files in onnxruntime or OpenVINO through one interface. Needs the runtime and NumPy, but not torch."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from train_utils.errors import InputError, optional_package

RUNTIMES = ("onnxruntime", "openvino")
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # to OpenVINO's names
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # in this order, where they are installed


@dataclass
class Session:
    """An ONNX file, opened in one of the runtimes."""

    name: str  # runtime, device and precision, for the user
    metadata: dict[str, str]  # the texts stored in the file
    takes_uint8: bool  # whether the image is uint8, not float32
    shape: list[int | None]  # of the input; None for a dimension of any length
    run: Callable[[np.ndarray], dict[str, np.ndarray]]  # the array of an image or a batch -> outputs by name

    @property
    def batch(self) -> int | None:
        """Number of images that the file takes at once, or None if the input has no batch dimension."""
        return self.shape[0] if len(self.shape) == 4 else None

    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Find the objects in an image.

        The image is RGB, uint8 [3, H, W], or has the channels and type of the training images, uint8 or float32
        [C, H, W]. Returns `boxes` float32 [N, 4], x1y1x2y2 in pixels of the image, `labels` int64 [N], `scores` float32
        [N], best first, and `masks` float32 [N, 1, 28, 28], probabilities.
        """
        (height, width), (own_height, own_width) = self.shape[-2:], image.shape[-2:]
        if (height or own_height, width or own_width) != (own_height, own_width):
            got = f"{own_width} x {own_height}"
            raise InputError(f"the file takes images of {width} x {height} pixels, got {got}; export it without --size")
        pixels = np.ascontiguousarray(image)
        if pixels.dtype == np.uint8 and not self.takes_uint8:
            pixels = pixels.astype(np.float32) / np.float32(255)
        if self.batch:
            found = {name: values[0] for name, values in self.run(pixels[None]).items()}
        else:
            found = self.run(pixels)
        real = found["labels"] > 0  # files for a batch or for one size append zeros
        return {name: values[real] for name, values in found.items()}


def fastest_runtime() -> str:
    """Return the fastest installed runtime: onnxruntime if it can use a GPU, else OpenVINO, else onnxruntime.

    InputError if none is installed.
    """
    if not (installed := [runtime for runtime in RUNTIMES if is_installed(runtime)]):
        raise InputError("no runtime is installed; install one with: pip install onnxruntime (or: openvino)")
    if installed[0] == "onnxruntime":
        import onnxruntime

        if PROVIDERS[0] in onnxruntime.get_available_providers():
            return "onnxruntime"
    return installed[-1]


def open_session(source: str | bytes, runtime: str, threads: int | None = None, precision: str = "fp32") -> Session:
    """Open a model file, given by its path or content.

    `threads` is the number of threads on the CPU, None for all cores. InputError if the runtime is missing, or
    does not support the precision; ValueError if the runtime cannot open the file.
    """
    optional_package(runtime, f"running the file needs the package {runtime}", runtime)
    if runtime == "onnxruntime" and precision != "fp32":
        raise InputError(f"onnxruntime does not compute in {precision}; use --runtime openvino")
    try:
        if runtime == "onnxruntime":
            return open_onnxruntime(source, threads)
        return open_openvino(source, threads, precision)
    except Exception as error:  # onnxruntime has a dozen classes of errors
        lines = [line for line in str(error).splitlines() if line and not line.startswith(("Exception from", "Check"))]
        raise ValueError(f"{runtime} cannot open it ({(lines or [type(error).__name__])[0][:200]})") from error


def is_installed(runtime: str) -> bool:
    try:
        importlib.import_module(runtime)
    except ImportError:
        return False
    return True


def open_onnxruntime(source: str | bytes, threads: int | None) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in PROVIDERS if provider in available]
    session = onnxruntime.InferenceSession(source, options, providers=providers)
    device = "GPU" if PROVIDERS[0] in session.get_providers() else "CPU"
    (image,) = session.get_inputs()
    outputs = [output.name for output in session.get_outputs()]
    return Session(
        name=f"onnxruntime {onnxruntime.__version__}, {device}, fp32",
        metadata=dict(session.get_modelmeta().custom_metadata_map),
        takes_uint8=image.type == "tensor(uint8)",
        shape=[length if isinstance(length, int) else None for length in image.shape],
        run=lambda array: dict(zip(outputs, session.run(outputs, {"image": array}))),
    )


def open_openvino(source: str | bytes, threads: int | None, precision: str) -> Session:
    import openvino

    # Some processors compute in bf16 unless told otherwise.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
    settings |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
    core = openvino.Core()
    model = core.read_model(source)
    compiled = core.compile_model(model, "CPU", settings)
    hint = compiled.get_property("INFERENCE_PRECISION_HINT")
    used = {openvino.Type.f32: "fp32", openvino.Type.bf16: "bf16"}.get(hint, hint)
    texts = model.get_rt_info("framework").astype(dict) if model.has_rt_info("framework") else {}
    image, outputs = model.input(0), [output.get_any_name() for output in model.outputs]

    def run(array: np.ndarray) -> dict[str, np.ndarray]:
        found = compiled({"image": array})
        return {name: np.array(found[name]) for name in outputs}

    return Session(
        name=f"openvino {version('openvino')}, CPU, {used}",
        metadata={name: text.astype(str) for name, text in texts.items()},
        takes_uint8=image.get_element_type() == openvino.Type.u8,
        shape=[None if length.is_dynamic else length.get_length() for length in image.get_partial_shape()],
        run=run,
    )
