"""Build an ONNX graph one operator at a time: values are names, constants are stored once, weights keep their names."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

IR_VERSION = 8  # that of ONNX 1.12, the first with opset 17; a newer one would shut out older runtimes
PRODUCER = "mask-rcnn-resnet50-fpn"
Module = TypeVar("Module")
DTYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}


class Graph:
    """An ONNX graph under construction.

    Args:
        opset: version of the operators.
        weights: type in which weights of two or more dimensions are stored, "float32" or "float16".

    Attributes:
        stage: prefix of the names of the operators that are added.
        sizes: height and width of values [B, C, H, W] for which they are known.
    """

    def __init__(self, opset: int, weights: str = "float32"):
        self.opset, self.weight_type = opset, weights
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.unpacked: dict[str, str] = {}
        self.stage = ""
        self.sizes: dict[str, tuple[int, int]] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output, and return the output's name. The name "" omits an optional input."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add an operator with several outputs, and return the outputs' names."""
        name = f"{self.stage}/{kind}_{len(self.nodes)}"
        names = [name if i == 0 else f"{name}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name, **attributes))
        return names

    def constant(self, values: Any, dtype: str) -> str:
        """Store a constant, and return its name. Equal constants are stored once."""
        array = np.asarray(values, dtype=dtype)
        name = f"{dtype}{list(array.shape)}:{array.tobytes().hex()}"
        if array.size > 8:
            name = f"{self.stage}/constant_{len(self.weights)}"
        return self.store(name, array)

    def floats(self, values: float | Sequence[Any]) -> str:
        return self.constant(values, "float32")

    def integers(self, values: int | Sequence[int]) -> str:
        # Use scalars for arithmetic, and lists for axes and shapes: OpenVINO 2025 turns lists that are added into
        # scalars, and fails where an axis is the same constant.
        return self.constant(values, "int64")

    def weight(self, name: str, tensor: Tensor) -> str:
        """Store a weight under `name`, its key in the state dict, and return the name of its float32 value."""
        array = tensor.detach().cpu().float().numpy()
        if self.weight_type == "float32" or array.ndim < 2:
            return self.store(name, array)
        if name not in self.unpacked:  # the heads of several levels and images share their weights
            self.unpacked[name] = self.cast(self.store(name, array.astype(self.weight_type)), "float32")
        return self.unpacked[name]

    def store(self, name: str, array: np.ndarray) -> str:
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def cast(self, x: str, dtype: str) -> str:
        return self.op("Cast", x, to=DTYPES[dtype])

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape to `shape`, in which 0 keeps a dimension and -1 is computed."""
        return self.op("Reshape", x, self.integers(shape))

    def columns(self, x: str, start: int, end: int, axis: int = -1) -> str:
        """Return x[..., start:end], or the same slice of another axis."""
        return self.op("Slice", x, *(self.integers([value]) for value in (start, end, axis)))

    def column(self, x: str, i: int) -> str:
        """Return x[..., i]."""
        return self.op("Squeeze", self.columns(x, i, i + 1), self.integers([-1]))

    def range(self, count: str) -> str:
        """Return 0, 1, ..., count - 1, where `count` is int64 [1]."""
        return self.op("Range", self.integers(0), self.op("Squeeze", count, self.integers([0])), self.integers(1))

    def at_most(self, limit: int, values: str) -> str:
        """Return the smaller of `limit` and the length of `values`, int64 [1]: a valid k for TopK."""
        return self.op("Min", self.op("Shape", values), self.integers([limit]))

    def length(self, x: str, axis: int) -> str:
        """Return the size of `x` along an axis, int64 [1]."""
        return self.columns(self.op("Shape", x), axis, axis + 1, 0)

    def size(self, x: str) -> str:
        """Return height and width of `x`, [..., H, W], int64 [2]. They are a constant if `sizes` contains them."""
        if x in self.sizes:
            return self.integers(self.sizes[x])
        return self.columns(self.op("Shape", x), -2, 2**31 - 1, 0)

    def conv(self, x: str, module: nn.Conv2d, name: str) -> str:
        """[B, C_in, H, W] -> [B, C_out, H', W']."""
        return self.op(
            "Conv", x, *self.parameters(module, name), kernel_shape=module.kernel_size, strides=module.stride,
            pads=[*module.padding, *module.padding], dilations=module.dilation, group=module.groups,
        )  # fmt: skip

    def linear(self, x: str, module: nn.Linear, name: str) -> str:
        """[R, in_features] -> [R, out_features]."""
        return self.op("Gemm", x, *self.parameters(module, name), transB=1)

    def parameters(self, module: nn.Module, name: str) -> list[str]:
        """Store the weight and, if there is one, the bias of a module, and return their names."""
        return [self.weight(f"{name}.{kind}", value) for kind, value in module.named_parameters(recurse=False)]

    def sequence(self, x: str, modules: nn.Module, name: str) -> str:
        """Add a sequence of layers, possibly nested. ValueError for a layer that the exporter does not support."""
        for key, module in modules.named_children():
            where = f"{name}.{key}"
            if isinstance(module, nn.Sequential):
                x = self.sequence(x, module, where)
            elif isinstance(module, nn.Conv2d):
                x = self.conv(x, module, where)
            elif isinstance(module, nn.Linear):
                x = self.linear(x, module, where)
            elif isinstance(module, nn.ReLU):
                x = self.op("Relu", x)
            elif isinstance(module, nn.Flatten):
                x = self.op("Flatten", x, axis=1)
            elif not isinstance(module, nn.Identity):
                raise ValueError(f"{where} is a {type(module).__name__}, which the ONNX exporter does not support")
        return x

    def model(
        self, inputs: dict[str, tuple[str, Sequence[int | str]]],
        outputs: dict[str, tuple[str, str, Sequence[int | str]]], metadata: dict[str, str], description: str,
    ) -> onnx.ModelProto:  # fmt: skip
        """Return the finished, checked model.

        Inputs map a name to type and shape, outputs to value, type and shape. In a shape, a name stands for any length.
        """
        for name, (value, _, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name], name))
        takes, gives = (
            [helper.make_tensor_value_info(name, DTYPES[dtype], shape) for name, (dtype, shape) in each.items()]
            for each in (inputs, {name: (dtype, shape) for name, (_, dtype, shape) in outputs.items()})
        )
        graph = helper.make_graph(self.nodes, "mask_rcnn", takes, gives, list(self.weights.values()))
        model = helper.make_model(
            graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", self.opset)],
            producer_name=PRODUCER, doc_string=description,
        )  # fmt: skip
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model


def require_class(name: str, module: object, kind: type[Module]) -> Module:
    """Return a module of the network if it is of the supported class `kind`, and raise ValueError otherwise."""
    if not isinstance(module, kind):
        raise ValueError(f"{name} is a {type(module).__name__}; the ONNX exporter supports only {kind.__name__}")
    return module
