"""Choose the device, the floating-point type, the memory allocation and the determinism of a run."""

import ctypes
import os
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import torch

from train_utils.distributed import is_main
from train_utils.errors import InputError, warn

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)


@dataclass
class Precision:
    """Floating-point type of the network: float32, or with --amp bf16 or fp16."""

    device_type: str
    dtype: torch.dtype | None  # of autocast; None for float32 throughout

    @classmethod
    def choose(cls, device: torch.device, amp: bool) -> "Precision":
        """Choose float32, or with `amp` bf16. GPUs without bf16 use fp16, which needs a GradScaler."""
        dtype = None
        if amp:
            bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = torch.bfloat16 if bf16 else torch.float16
        return cls(device.type, dtype)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)


def choose_device(name: str, deterministic: bool = False) -> torch.device:
    """Return the requested device. Without CUDA, warn and return the CPU. An unknown device raises InputError."""
    if deterministic:
        use_deterministic_algorithms()
    if name.startswith("cuda") and not torch.cuda.is_available():
        if is_main():
            warn(f"no CUDA device is available, --device {name} becomes cpu")
        name = "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: no such device; give cuda, cuda:N or cpu") from None
    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise InputError(f"--device {name}: this machine has only {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device)  # before anything uses the current device
        # Some convolutions are computed as matrix products (fc6, the mask deconvolution), so both use one precision.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    return device


def use_deterministic_algorithms() -> None:
    """Make every run compute the same bits, on CUDA too. Call this before the first use of the device."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # No code here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Stop malloc from returning memory to the system, as a network allocates the same sizes again and again.

    By default, glibc unmaps each large tensor that is freed. The system then zeroes and maps its pages again, one by
    one, which takes a tenth or more of a network's time on the CPU. The process stays at its peak memory instead.
    """
    set_malloc({MMAP_MAX: 0, TRIM_THRESHOLD: -1})


def set_malloc(parameters: dict[int, int]) -> None:
    """Set parameters of mallopt(3) if the C library has it."""
    with suppress(AttributeError, OSError, TypeError):
        for parameter, value in parameters.items():
            ctypes.CDLL(None).mallopt(parameter, value)
