"""Read pickled numpy arrays, as in Detectron2's model zoo, without running any code that the file names.

A pickle is a program that names functions and calls them. Here, the names that an array needs resolve to methods that
only store their arguments, and any other name is rejected. Before any pickle is read, including those of torch.save,
`check_opcodes` compares its opcodes with an allow-list, without running them.
"""

import io
import math
import mmap
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from train_utils.errors import InputError, first_line

# Files that torch.save wrote before 2020 are pickles too, and begin with this number.
TORCH_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}
# Opcodes of containers, numbers, strings and objects made of them. The others allocate memory before they read the data
# for it, or are never needed in a weight file.
ALLOWED_OPCODES = set(
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT "
    "BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE SHORT_BINUNICODE "
    "BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT "
    "SETITEM SETITEMS EMPTY_SET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE "
    "BUILD NEWOBJ PERSID BINPERSID".split()
)
# Names that torch.save writes for tensors and plain values, and for the options and milestones of training scripts.
TORCH_NAMES = re.compile(
    r"collections (OrderedDict|Counter)|argparse Namespace|_codecs encode|(__builtin__|builtins) (set|complex)|"
    r"torch._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)|"
    r"torch (\w+Storage|Size|device|(b?float|q?u?int|complex)[0-9]\w*|bool)|"
    r"torch.(storage (Untyped|Typed)Storage|nn.parameter Parameter|_tensor Tensor|serialization _get_layout)"
)


def is_pickle(path: Path) -> bool:
    """Whether a file is a bare pickle rather than a file that torch.save wrote."""
    with path.open("rb") as file:
        start = file.read(len(TORCH_START))
    return start[:1] == b"\x80" and start != TORCH_START


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Read a pickled {"model": {name: array}} as tensors by name; InputError if the file holds anything else."""
    try:
        file = io.BytesIO(path.read_bytes())
        check_opcodes(file)
        file.seek(0)
        content = ArrayUnpickler(file, encoding="latin1").load()
        arrays = content["model"] if isinstance(content, dict) else None
        if not isinstance(arrays, dict):
            raise ValueError('not {"model": {name: array, ...}}')
        if invalid := [name for name in arrays if not isinstance(name, str)]:
            raise ValueError(f"{invalid[0]!r} is not a valid array name")
        return {name: as_tensor(name, value) for name, value in arrays.items()}
    except Refused as error:
        raise InputError(f"{path}: refused: it names {error}, which no file of arrays needs") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path}: broken, or not a pickle of arrays ({first_line(error)})") from error


class Refused(Exception):
    """A pickle names a function or class that neither arrays nor the files of torch.save need."""


def check_opcodes(file: BinaryIO | mmap.mmap, names: re.Pattern | None = None) -> None:
    """Check the pickle at the file's position without running it. Afterwards, the position is the pickle's end.

    ValueError if the pickle is broken, or has opcodes that no file of tensors or arrays needs. Refused if a "module
    name" in the pickle does not match `names`; with None, the unpickler has to check the names.
    """
    stored = 0
    argument: Any
    # pickletools only reads and seeks; its stubs know no mmap.
    for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
        if opcode.name == "GLOBAL" and names is not None and not names.fullmatch(argument):
            raise Refused(argument.replace(" ", ".", 1))
        if opcode.name not in ALLOWED_OPCODES or (opcode.name == "STACK_GLOBAL" and names is not None):
            raise ValueError(f"it has the pickle opcode {opcode.name}, which no weight file needs")
        stored += opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
        if "PUT" in opcode.name and int(argument) > stored:  # memo indices begin at 0 or 1
            raise ValueError(f"it uses memo index {argument} after storing {stored} objects")


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler that builds only plain containers, plain values and `Stored` objects, which run nothing."""

    def find_class(self, module: str, name: str) -> Any:
        # Bound methods and a string: unlike on classes and functions, a pickle cannot set attributes on them.
        known = {
            "numpy.core.multiarray._reconstruct": self.store,
            "numpy._core.multiarray._reconstruct": self.store,
            "numpy.ndarray": "numpy.ndarray",
            "numpy.dtype": self.store,
            "_codecs.encode": self.encode,
            "collections.OrderedDict": self.new_dict,
        }
        if f"{module}.{name}" not in known:
            raise Refused(f"{module}.{name}")
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused(f"a persistent object {pid!r}")

    def store(self, code: str, *_: object) -> "Stored":
        return Stored(code)

    def new_dict(self, *pairs: Any) -> dict:
        return dict(*pairs)

    def encode(self, text: str, encoding: str) -> bytes:
        """Stand in for `_codecs.encode`, with which pickles of protocol 2 restore bytes from latin1 text."""
        if encoding != "latin1":
            raise Refused(f"the encoding {encoding!r}")
        return str.encode(text, "latin1")


class Stored:
    """Arguments from which a pickle would build an array or a data type; `as_tensor` builds a tensor from them.

    `code` is the numpy code of a data type, such as f4. `state` is None if the pickle sets none.
    """

    state: tuple | None = None

    def __init__(self, code: str):
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        self.state = state


def as_tensor(name: str, array: Any) -> Tensor:
    """Convert a pickled array to a tensor. ValueError if it holds no numbers, or the wrong number of bytes."""
    if not isinstance(array, Stored) or array.state is None or len(array.state) != 5:
        raise ValueError(f"{name} is a {type(array).__name__}, not an array")
    _, shape, dtype, fortran, data = array.state
    order = dtype.state[1] if isinstance(dtype, Stored) and dtype.state is not None else "<"
    if not isinstance(dtype, Stored) or dtype.code not in DTYPES or order not in ("<", ">", "|", "="):
        raise ValueError(f"{name} is an array of {getattr(dtype, 'code', dtype)!r}, not of numbers")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"{name} has the invalid shape {shape!r}")
    data = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 wrote it
    kind = np.dtype(f"{order}{dtype.code}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{name} has shape {list(shape)}, but not the bytes for it")
    values = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(values, dtype=kind.newbyteorder("="), order="C"))
