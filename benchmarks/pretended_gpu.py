"""A GPU that is not there: tensors that report a device "pretended:0" and hold their values on the CPU.

Code that depends on data then takes the way that it takes on a GPU, and three things show that otherwise need one:

- waits: operations after which the host knows something of the device's results, or that block by themselves (`item`,
  `nonzero`, boolean indexing, NMS, copies that are not `non_blocking`), by line of source;
- operations started on the device, without views and allocations: a lower bound of the kernel launches;
- tensors of two devices in one operation: an error, as on a GPU.

What a CUDA kernel does inside is not seen (a sort that synchronises, cuDNN's choice of an algorithm), nor are values
that a GPU rounds otherwise. On a GPU, `torch.cuda.set_sync_debug_mode("warn")` counts most of the same waits.

A backend of this kind needs `torch.utils.backend_registration._setup_privateuseone_for_python_backend`, which recent
releases of torch have.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.utils.backend_registration as backend
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
aten = torch.ops.aten
Wait = tuple[str, str]  # kind, place in the source

# Operations that start no kernel, besides views.
FREE = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.detach, aten.detach_,
    aten._local_scalar_dense, aten.lift_fresh, aten.alias, aten._unsafe_view, aten.lift, aten.is_same_size,
    aten.sym_size, aten.set_, aten.resize_, aten.is_pinned, aten._pin_memory,
}  # fmt: skip
# Operations that wait for the size or value of their result.
WAITING = {
    aten._local_scalar_dense: "scalar", aten.nonzero: "nonzero", aten.masked_select: "masked_select",
    aten.unique_dim: "unique", aten._unique2: "unique", aten.unique_consecutive: "unique", aten.equal: "equal",
    aten.is_nonzero: "is_nonzero", aten.bincount: "bincount",
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class PretendedTensor(torch.Tensor):
    """A tensor that reports to be on the pretended GPU; `values` holds its values on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "PretendedTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            layout=values.layout, device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip
        made.values = values
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendedTensor({list(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return GPU.run(func, args, kwargs or {})


class PretendedGPU(TorchDispatchMode):
    """Runs the operations of pretended tensors on their values and keeps the counts.

    Attributes:
        part: the part of a step that is being run, set by the caller: "forward", "backward", ...
        waits: (kind, place) -> times.
        copies: place -> copies that nothing waits for.
        operations: part -> operations started.
        kinds: operator -> times.
        roots: folders whose lines count as places, the most important first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.roots: Sequence[Path] = ()
        self.reset()

    def reset(self) -> None:
        self.part = "forward"
        self.waits: Counter[Wait] = Counter()
        self.copies: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        leaves = tree_leaves((args, kwargs))
        on_device = any(isinstance(leaf, PretendedTensor) for leaf in leaves)
        target = kwargs.get("device") or next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        target = None if target is None else torch.device(target)
        if not on_device and (target is None or target.type != NAME):
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self if _get_current_dispatch_mode() is None else nullcontext():
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        name = func.overloadpacket
        if name is aten._to_copy and isinstance(args[0], PretendedTensor) != (target is None or target.type == NAME):
            return self.copy_between(func, args, kwargs, target)
        if name is aten.copy_ and isinstance(args[0], PretendedTensor) != isinstance(args[1], PretendedTensor):
            return self.copy_into(args, kwargs)
        self.count_waits(func, args, kwargs)
        self.refuse_mixed_devices(func, leaves)
        return self.compute(func, args, kwargs, target)

    def compute(self, func: Any, args: tuple, kwargs: dict, target: torch.device | None) -> Any:
        known = {id(t.values): t for t in tree_leaves((args, kwargs)) if isinstance(t, PretendedTensor)}
        args, kwargs = tree_map(values_of, (args, kwargs))
        if target is not None:
            kwargs = kwargs | {"device": "cpu"}
        if kwargs.get("pin_memory"):
            kwargs = kwargs | {"pin_memory": False}
        result = func(*args, **kwargs)
        if not (func.is_view or func.overloadpacket in FREE):
            self.start(func)
        return tree_map(lambda v: known.get(id(v), pretended(v)) if isinstance(v, Tensor) else v, result)

    # --- copies between host and device

    def copy_between(self, func: Any, args: tuple, kwargs: dict, target: torch.device | None) -> Tensor:
        source = args[0]
        kwargs = kwargs | {"device": "cpu"}
        if isinstance(source, PretendedTensor):
            self.count_copy("copy to the host", kwargs.get("non_blocking", False))
            return func(source.values, *args[1:], **kwargs)
        self.count_copy("copy to the device", kwargs.get("non_blocking", False))
        return pretended(func(source, *args[1:], **kwargs))

    def copy_into(self, args: tuple, kwargs: dict) -> Tensor:
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
        to_device = isinstance(args[0], PretendedTensor)
        self.count_copy("copy to the device" if to_device else "copy to the host", non_blocking)
        values_of(args[0]).copy_(values_of(args[1]))
        return args[0]

    # --- counts

    def start(self, func: Any) -> None:
        self.operations[self.part] += 1
        self.kinds[str(func).removeprefix("aten.")] += 1

    def wait(self, kind: str) -> None:
        self.waits[kind, self.place()] += 1

    def count_copy(self, kind: str, non_blocking: bool) -> None:
        if non_blocking:
            self.copies[self.place()] += 1
        else:
            self.wait(kind)
        self.operations[self.part] += 1
        self.kinds[kind] += 1

    def count_waits(self, func: Any, args: tuple, kwargs: dict) -> None:
        name = func.overloadpacket
        if name in WAITING:
            self.wait(WAITING[name])
        elif name is aten.repeat_interleave and "Tensor" in func._overloadname and kwargs.get("output_size") is None:
            self.wait("repeat_interleave")
        elif name is torch.ops.torchvision.nms and len(args[0]):
            self.wait("nms")
        elif name in INDEXING:
            indices = [i for i in args[1] if i is not None]
            masks = [i for i in indices if i.dtype in (torch.bool, torch.uint8)]
            scalar = name is not aten.index and not isinstance(args[2], PretendedTensor) and args[2].numel() == 1
            if masks and not (scalar and len(indices) == 1):  # with a scalar it is a masked_fill
                self.wait("boolean index")
            for _ in (i for i in indices if not isinstance(i, PretendedTensor)):
                self.wait("index from the host")
            if scalar and not masks:
                self.wait("value from the host")

    def refuse_mixed_devices(self, func: Any, leaves: Sequence[Any]) -> None:
        """Raise RuntimeError for a tensor of the host, as a GPU does; it accepts scalars, and indices as copies."""
        if func.overloadpacket in INDEXING:
            return
        for leaf in leaves:
            if isinstance(leaf, Tensor) and not isinstance(leaf, PretendedTensor) and leaf.dim():
                raise RuntimeError(f"{func}: tensors on {NAME}:0 and cpu ({list(leaf.shape)}) at {self.place()}")

    def place(self) -> str:
        """Return the innermost line within the roots, else of torch's optimizers or autocast, else "?"."""
        frame, fallback = sys._getframe(1), "?"
        while frame is not None:
            file = frame.f_code.co_filename
            for root in self.roots:
                if file != __file__ and file.startswith(f"{root}/"):
                    return f"{file[len(str(root)) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}"
            if fallback == "?" and ("/torch/optim/" in file or "/torch/amp/" in file):
                fallback = f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back
        return fallback


GPU = PretendedGPU()


def pretended(value: Any) -> Any:
    return PretendedTensor(value) if isinstance(value, Tensor) and not isinstance(value, PretendedTensor) else value


def values_of(value: Any) -> Any:
    return value.values if isinstance(value, PretendedTensor) else value


@contextmanager
def pretended_gpu(roots: Sequence[Path]) -> Iterator[PretendedGPU]:
    """Context in which the device "pretended" exists. It stays registered: use a process of its own.

    Args:
        roots: folders whose lines are named as places of waits, the most important first.
    """
    if not hasattr(torch, NAME):
        backend._setup_privateuseone_for_python_backend(NAME)
        torch.pretended.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
        register_autocast()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is then seen as a copy
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    GPU.roots = [Path(root) for root in roots]
    GPU.reset()
    with GPU, torch.autograd.set_multithreading_enabled(False):
        yield GPU


# --- autocast, with CUDA's lists

casts: dict[int, tuple[Tensor, Tensor]] = {}  # of weights, as autocast keeps them until its context ends
LIBRARIES: list[torch.library.Library] = []


def register_autocast() -> None:
    """Let the pretended GPU cast as CUDA's autocast does; weights are cast once per context."""
    aten_library, vision = torch.library.Library("aten", "IMPL"), torch.library.Library("torchvision", "IMPL")
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    LIBRARIES.extend((aten_library, vision, others))
    for name, rule in (("LOWER_PRECISION_FP", lower), ("FP32", to_float32), ("FP32_SET_OPT_DTYPE", to_float32),
                       ("PROMOTE", to_widest)):  # fmt: skip
        for op in autocast_list(name):
            register(aten_library, op, rule)
    register(vision, torch.ops.torchvision.roi_align.default, to_float32)
    register(vision, torch.ops.torchvision.nms.default, to_float32)
    forget = torch.clear_autocast_cache

    def clear() -> None:
        casts.clear()
        forget()

    torch.clear_autocast_cache = clear


def autocast_list(name: str) -> Iterator[Any]:
    """Yield the operators of one of the lists by which CUDA's autocast chooses types, read from torch's own header."""
    header = (Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h").read_text()
    macro = header[header.index(f"define AT_FORALL_{name}(_)") :]
    macro = macro[: macro.index("\n\n")].partition("\n")[2]
    for packet, overload in re.findall(r"_\((\w+)(?:, (\w+))?\)", macro):
        op = getattr(getattr(aten, packet, None), overload or "default", None)
        if op is not None:
            yield op


def register(library: torch.library.Library, op: Any, rule: Callable[[Any], Any]) -> None:
    outside = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(outside):
            return op(*rule(args), **rule(kwargs))

    library.impl(op.name().partition("::")[2], run, "AutocastPrivateUse1")


def lower(arguments: Any) -> Any:
    return tree_map(lambda v: cast(v, torch.get_autocast_dtype(NAME)), arguments)


def to_float32(arguments: Any) -> Any:
    return tree_map(lambda v: cast(v, torch.float32), arguments)


def to_widest(arguments: Any) -> Any:
    found = {v.dtype for v in tree_leaves(arguments) if isinstance(v, Tensor) and v.is_floating_point()}
    return to_float32(arguments) if len(found) > 1 else arguments


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast a floating-point tensor; a weight that needs gradients only once per autocast context."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype in (dtype, torch.float64):
        return value
    if not (value.is_leaf and value.requires_grad):
        return value.to(dtype)
    if id(value) not in casts:
        casts[id(value)] = (value, value.to(dtype))
    return casts[id(value)][1]


def by_line(waits: Counter[Wait]) -> list[str]:
    """Return the waits as lines of text, most frequent first."""
    ordered = sorted(waits.items(), key=lambda item: (-item[1], item[0]))
    return [f"{count:5d}  {kind:<20} {place}" for (kind, place), count in ordered]


def torchvision_root() -> Path:
    return Path(torchvision.__file__).resolve().parent
