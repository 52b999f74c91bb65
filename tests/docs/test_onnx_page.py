"""docs/ONNX.md states what the exported files are: names, types and shapes in Triton's recipe, and their operators."""

import re

import pytest

onnx = pytest.importorskip("onnx", reason="needs the package onnx")

from onnx_files.network_graph import GraphOptions, network_graph  # noqa: E402
from tests.helpers.exported import thin_network  # noqa: E402
from tests.helpers.project import ROOT  # noqa: E402
from train_utils.models import ModelConfig  # noqa: E402

PAGE = (ROOT / "docs" / "ONNX.md").read_text(encoding="utf-8")
TRITON_TYPES = {
    "TYPE_UINT8": onnx.TensorProto.UINT8,
    "TYPE_FP32": onnx.TensorProto.FLOAT,
    "TYPE_INT64": onnx.TensorProto.INT64,
}


def exported_graph(arch: str, **settings) -> onnx.GraphProto:
    model = thin_network(ModelConfig(3, arch, norm="frozen")).eval()
    return network_graph(model, GraphOptions(**settings), {}).graph


def test_the_configuration_for_triton_names_inputs_and_outputs_as_the_file_does():
    graph = exported_graph("v1", input_type="uint8")
    config = re.search(r'```\n(name: "maskrcnn"\n.*?)```', PAGE, re.DOTALL)[1]
    for kind, values in (("input", graph.input), ("output", graph.output)):
        block = re.search(rf"^{kind} \[(.*?)^\]$", config, re.DOTALL | re.MULTILINE)[1]
        stated = re.findall(r'\{ name: "(\w+)" data_type: (\w+) dims: \[([^]]*)\] \}', block)
        assert len(stated) == block.count("name:")
        assert [(name, TRITON_TYPES[dtype], [int(d) for d in dims.split(",")]) for name, dtype, dims in stated] == [
            (v.name, v.type.tensor_type.elem_type, [d.dim_value or -1 for d in v.type.tensor_type.shape.dim])
            for v in values
        ]


@pytest.mark.parametrize("arch", ["v1", "v2", "detectron2"])
def test_the_operators_listed_for_tensorrt_are_those_of_the_files(arch):
    section = PAGE.split("## TensorRT")[1]
    listed = set(re.search(r"`(Add And [^`]*)`", section)[1].split())
    assert "Detectron2's variant also `Abs`" in " ".join(section.split())
    used = {node.op_type for node in exported_graph(arch).node}
    assert used == listed | ({"Abs"} if arch == "detectron2" else set())
