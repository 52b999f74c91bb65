"""tools/export_onnx.py --precision writes smaller files, and none that loses accuracy."""

import re

import pytest

onnx = pytest.importorskip("onnx", reason="needs the packages onnx and onnxruntime")
pytest.importorskip("onnxruntime", reason="needs the packages onnx and onnxruntime")

from onnx_files.precision import FLOAT32_LAYERS  # noqa: E402
from tests.helpers.commands import assert_refused, run, succeeded  # noqa: E402
from tests.helpers.square_finder import write_square_finder, write_squares  # noqa: E402
from tests.helpers.thin_weights import thin_networks  # noqa: E402

pytestmark = pytest.mark.long  # three exports and their evaluations

TOOL = "tools/export_onnx.py"


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Weights that find the squares of an image, and a folder with this image."""
    folder = tmp_path_factory.mktemp("precision")
    write_squares(folder / "data")
    with thin_networks():
        write_square_finder(folder / "s.pth", folder / "data")
        yield folder


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_smaller_file_is_written_with_its_ap(squares, precision):
    outcome = succeeded(run(squares, TOOL, "s.pth", f"{precision}.onnx", "--precision", precision))
    found = re.findall(rf"(\w+) AP: (\S+) in fp32, (\S+) in {precision}", outcome.out)
    assert [kind for kind, _, _ in found] == ["box", "mask"]
    for _, before, after in found:
        assert 0 < float(before) < float(after) + 0.01
    graph = onnx.load(str(squares / f"{precision}.onnx")).graph
    producers = {output: node for node in graph.node for output in node.output}
    of_weights = [node for node in graph.node if any(is_quantised(producers.get(name)) for name in node.input[1:2])]
    kinds = {node.op_type for node in of_weights if node.input[1].startswith(("backbone", "rpn", "roi_heads"))}
    assert kinds - {"Add"} == (set() if precision == "fp16" else {"Conv", "Gemm"})  # Add: shortcuts, in float32
    assert not any(layer in node.input[1] for node in of_weights for layer in FLOAT32_LAYERS)


def is_quantised(node) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def test_a_file_that_loses_too_much_is_not_written(squares):
    words = ("--precision", "fp16", "--max-ap-drop", "-1")
    assert_refused(
        run(squares, TOOL, "s.pth", "refused.onnx", *words), "more than --max-ap-drop -1; nothing is written"
    )
    assert not (squares / "refused.onnx").exists()
    sized = ("--precision", "int8", "--size", "480", "800")
    assert_refused(run(squares, TOOL, "s.pth", "refused.onnx", *sized), "omit --batch and --size")
