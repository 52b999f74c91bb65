"""benchmarks/onnx_parity.py judges each way by the AP that it loses."""

import sys

import pytest

from tests.helpers.project import ROOT

pytest.importorskip("onnx", reason="needs the package onnx")


@pytest.mark.slow  # imports torchvision's models, as the benchmarks do
@pytest.mark.parametrize(
    "reference, lost, verdicts",
    [(0.8, 0.005, {"no", "yes"}), (0.8, 0.02, {"no"}), (0.8, 0.0, {"yes"}), (0.0, 0.0, {"-"})],
)
def test_a_loss_within_the_bound_is_held_and_no_ap_shows_nothing(monkeypatch, reference, lost, verdicts):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import onnx_parity

    result = {"bbox": [0.0, 0.0, 9.0, 9.0], "category_id": 1, "score": 0.5}
    found = {way: [{"seconds": 1.0, "results": [result]}] for way in onnx_parity.WAYS}
    ap = iter([[reference - (way != onnx_parity.REFERENCE) * lost] * 2 for way in onnx_parity.WAYS])
    monkeypatch.setattr(onnx_parity, "average_precisions", lambda ground_truth, results: next(ap))
    sizes = {file: 1 for _, _, file in onnx_parity.WAYS.values()}
    printed = onnx_parity.report(None, sizes, dict.fromkeys(found, "a runtime"), found, dict.fromkeys(found, 1))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "|" in line][2:]
    assert {row[-1] for row in rows if row[0] != onnx_parity.REFERENCE} == verdicts
