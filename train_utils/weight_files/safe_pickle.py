"""Pickled numpy arrays, as Detectron2's model zoo has them, read without running anything that the file may name.

A pickle is a program: it names functions and calls them. Here the four names that an array needs are answered by
methods that only keep what they are given; any other name is refused, so there is nothing else to call. Before any
pickle is read, also one of torch's, `check_words` looks at the program without running it.
"""
import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from train_utils.errors import InputError

# What torch.save wrote before 2020 is a pickle too: of this number first.
TORCH_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}
ARRAY_MODULES = {"numpy.core.multiarray", "numpy._core.multiarray"}
# What containers, numbers and texts, and objects that are made of them, are written with. The others ask for memory
# before they give what fills it, or reach for what a weight file has no need of.
WORDS = set(
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT "
    "BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE SHORT_BINUNICODE "
    "BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT "
    "SETITEM SETITEMS EMPTY_SET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE "
    "BUILD NEWOBJ PERSID BINPERSID".split()
)
# What torch.save names for tensors and plain values; training scripts add their options and milestones.
TORCH_NAMES = re.compile(
    r"collections (OrderedDict|Counter)|argparse Namespace|_codecs encode|(__builtin__|builtins) (set|complex)|"
    r"torch._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)|"
    r"torch (\w+Storage|Size|device|(b?float|q?u?int|complex)[0-9]\w*|bool)|"
    r"torch.(storage (Untyped|Typed)Storage|nn.parameter Parameter|_tensor Tensor|serialization _get_layout)"
)


def is_pickle(path: Path) -> bool:
    """Whether a file is a bare pickle rather than what torch.save writes."""
    with path.open("rb") as file:
        start = file.read(len(TORCH_START))
    return start[:1] == b"\x80" and start != TORCH_START


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a pickled {"model": {name: array}}.

    Raises:
        InputError: the file is broken, has another structure, or names anything but arrays.
    """
    try:
        file = io.BytesIO(path.read_bytes())
        check_words(file)
        file.seek(0)
        content = ArrayUnpickler(file, encoding="latin1").load()
        arrays = content["model"] if isinstance(content, dict) else None
        if not isinstance(arrays, dict):
            raise ValueError('no {"model": {name: array, ...}}')
        return {checked_name(name): as_tensor(name, value) for name, value in arrays.items()}
    except Refused as error:
        raise InputError(f"{path}: refused, it names {error}, which no file of arrays needs") from error
    except Exception as error:  # a damaged program stumbles over anything
        message = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path}: broken, or no pickle of arrays ({message})") from error


class Refused(Exception):
    """A pickle names something that is not part of an array, or of what torch.save writes."""


def check_words(file: BinaryIO, names: re.Pattern | None = None) -> None:
    """Look through one pickle, from where the file stands to its end, without running it.

    Args:
        names: what it may name, as "module name"; None where whoever reads it asks for each name.

    Raises:
        Refused: it names something else.
        ValueError: it is broken, or has words that no file of tensors or arrays needs.
    """
    kept = 0
    for word, argument, _ in pickletools.genops(file):
        if word.name == "GLOBAL" and names is not None and not names.fullmatch(argument):
            raise Refused(argument.replace(" ", ".", 1))
        if word.name not in WORDS or (word.name == "STACK_GLOBAL" and names is not None):
            raise ValueError(f"holds the pickle word {word.name}, which no file of arrays needs")
        kept += word.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
        if "PUT" in word.name and int(argument) > kept:  # places are counted from 0 or 1 on
            raise ValueError(f"asks for {argument} places where it keeps {kept} things")


class ArrayUnpickler(pickle.Unpickler):
    """Builds plain containers and `PickledArray`s."""

    def find_class(self, module: str, name: str) -> Any:
        # Bound methods and a string: a pickle can set no attribute on these, as it could on classes and functions.
        if module in ARRAY_MODULES and name == "_reconstruct":
            return self.new_array
        if (module, name) == ("numpy", "ndarray"):
            return "numpy.ndarray"
        if (module, name) == ("numpy", "dtype"):
            return self.new_dtype
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        if (module, name) == ("collections", "OrderedDict"):
            return self.new_dict
        raise Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused(f"a persistent object {pid!r}")

    def new_array(self, *_) -> "PickledArray":
        return PickledArray()

    def new_dtype(self, code: str, *_) -> "PickledDtype":
        return PickledDtype(code)

    def new_dict(self, *pairs) -> dict:
        return dict(*pairs)

    def encode(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in protocol 2."""
        if encoding != "latin1":
            raise Refused(f"the encoding {encoding!r}")
        return str.encode(text, "latin1")


class PickledDtype:
    """numpy's code of a number's kind and size, and the order of its bytes."""

    def __init__(self, code: str):
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class PickledArray:
    """What a pickle says of an array: version, shape, dtype, whether columns come first, bytes."""

    state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state


def checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"an array's name is {name!r}")
    return name


def as_tensor(name: str, array: Any) -> Tensor:
    """Checked before anything is made of it: numbers only, and as many bytes as the shape says."""
    if not isinstance(array, PickledArray) or len(array.state) != 5:
        raise ValueError(f"{name} is a {type(array).__name__}, not an array")
    _, shape, dtype, fortran, data = array.state
    if not isinstance(dtype, PickledDtype) or dtype.code not in DTYPES or dtype.order not in ("<", ">", "|", "="):
        raise ValueError(f"{name} is no array of numbers, but of {getattr(dtype, 'code', dtype)!r}")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"{name} has the shape {shape!r}")
    data = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 wrote it
    kind = np.dtype(dtype.order + dtype.code)
    count = 1
    for n in shape:
        count *= n
    if not isinstance(data, bytes) or len(data) != count * kind.itemsize:
        raise ValueError(f"{name} has the shape {list(shape)}, but not the bytes for it")
    values = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(values, dtype=kind.newbyteorder("="), order="C"))
