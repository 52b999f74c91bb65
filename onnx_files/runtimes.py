"""Run a file in onnxruntime or OpenVINO behind one interface. Needs that package and NumPy, not torch."""

import importlib
from importlib.metadata import version
from typing import Protocol

import numpy as np

from train_utils.errors import InputError

RUNTIMES = ("onnxruntime", "openvino")
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # to OpenVINO's names
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # in this order, where they are installed


class Session(Protocol):
    """An opened file.

    Attributes:
        name: runtime, device and precision, for the user.
        metadata: the texts stored in the file.
        takes_uint8: whether the image is uint8, not float32.
        shape: of the input; None for a dimension of any length.
    """

    name: str
    metadata: dict[str, str]
    takes_uint8: bool
    shape: list[int | None]

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]: ...


def fastest_runtime() -> str:
    """The fastest runtime that is installed: onnxruntime if it can use a GPU, else OpenVINO, else onnxruntime.

    Raises:
        InputError: none is installed.
    """
    installed = [runtime for runtime in RUNTIMES if is_installed(runtime)]
    if not installed:
        raise InputError("no runtime is installed; install one with: pip install onnxruntime (or: openvino)")
    if installed[0] == "onnxruntime":
        import onnxruntime

        if PROVIDERS[0] in onnxruntime.get_available_providers():
            return "onnxruntime"
    return installed[-1]


def open_session(source: str | bytes, runtime: str, threads: int | None = None, precision: str = "fp32") -> Session:
    """Open a file, given by its path or content.

    Args:
        runtime: one of `RUNTIMES`.
        threads: of the CPU; None for all cores.
        precision: of the arithmetic, one of `PRECISIONS`.

    Raises:
        InputError: the runtime is not installed, or lacks this precision.
        ValueError: the runtime cannot open the file.
    """
    if not is_installed(runtime):
        raise InputError(f"the package {runtime} is missing; install it with: pip install {runtime}")
    if runtime == "onnxruntime" and precision != "fp32":
        raise InputError(f"onnxruntime does not compute in {precision}; use --runtime openvino")
    try:
        if runtime == "onnxruntime":
            return OnnxRuntimeSession(source, threads)
        return OpenVinoSession(source, threads, precision)
    except Exception as error:  # onnxruntime has a dozen classes of errors
        lines = [line for line in str(error).splitlines() if line and not line.startswith(("Exception from", "Check"))]
        raise ValueError(f"{runtime} cannot open it ({(lines or [type(error).__name__])[0][:200]})") from error


def is_installed(runtime: str) -> bool:
    try:
        importlib.import_module(runtime)
    except ImportError:
        return False
    return True


class OnnxRuntimeSession:
    def __init__(self, source: str | bytes, threads: int | None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        available = onnxruntime.get_available_providers()
        providers = [provider for provider in PROVIDERS if provider in available]
        self.session = onnxruntime.InferenceSession(source, options, providers=providers)
        device = "GPU" if PROVIDERS[0] in self.session.get_providers() else "CPU"
        self.name = f"onnxruntime {onnxruntime.__version__}, {device}, fp32"
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        (image,) = self.session.get_inputs()
        self.takes_uint8 = image.type == "tensor(uint8)"
        self.shape = [length if isinstance(length, int) else None for length in image.shape]
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, {"image": image})))


class OpenVinoSession:
    def __init__(self, source: str | bytes, threads: int | None, precision: str):
        import openvino

        # Some processors compute in bf16 unless told otherwise.
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
        settings |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
        core = openvino.Core()
        model = core.read_model(source)
        self.compiled = core.compile_model(model, "CPU", settings)
        used = {openvino.Type.f32: "fp32", openvino.Type.bf16: "bf16"}
        hint = self.compiled.get_property("INFERENCE_PRECISION_HINT")
        self.name = f"openvino {version('openvino')}, CPU, {used.get(hint, hint)}"
        texts = model.get_rt_info("framework").astype(dict) if model.has_rt_info("framework") else {}
        self.metadata = {name: text.astype(str) for name, text in texts.items()}
        image = model.input(0)
        self.takes_uint8 = image.get_element_type() == openvino.Type.u8
        self.shape = [None if length.is_dynamic else length.get_length() for length in image.get_partial_shape()]
        self.outputs = [output.get_any_name() for output in model.outputs]

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        found = self.compiled({"image": image})
        return {name: np.array(found[name]) for name in self.outputs}
