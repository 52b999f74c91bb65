"""The program that checks the project on a GPU runs on the CPU from end to end, and its comparisons hold there."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import run, started
from tests.helpers.forked import start
from tests.helpers.project import ROOT

BLOCKED = ("pycocotools", "hotcoco", "tqdm", "matplotlib", "contourpy", "jinja2", "yaml")
# A program that imports the check as a machine does that has none of these packages, nor has imported the project.
IMPORTING_WITHOUT = f"""
import importlib.util, sys
sys.path[:0] = [{str(ROOT / "benchmarks")!r}, {str(ROOT)!r}]
for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None) or ""
    ours = file.startswith({str(ROOT)!r}) and "site-packages" not in file  # the environment may lie inside the project
    if ours or name.partition(".")[0] in {BLOCKED!r}:
        del sys.modules[name]
class Nothing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
known = importlib.util.find_spec
importlib.util.find_spec = lambda name, *_: None if name in {BLOCKED!r} else known(name)
import gpu_check, train
print(gpu_check.MISSING, *gpu_check.PARTS)
"""
COMPARISONS = {"parts", "parity", "precision", "groups", "resume", "settings"}
PARTS = COMPARISONS | {
    "facts", "waits", "training", "inference", "loading", "whole", "profile", "overflow", "step_times",
}  # fmt: skip


@pytest.mark.long
def test_every_part_runs_and_what_is_compared_agrees(tmp_path: Path):
    script = str(ROOT / "benchmarks" / "gpu_check.py")
    words = ["--out", "out", "--device", "cpu", "--small", "--patience", "10", "--minutes", "60"]
    done = started([sys.executable, script, *words], tmp_path)
    rows = json.loads((tmp_path / "out" / "result.json").read_text())
    failed = [row for row in rows if row["held"] is False]
    assert not failed and done.code == 0, (failed, done.err[-2000:])
    assert {row["part"] for row in rows} == PARTS | {"prepare"}
    assert {row["part"] for row in rows if row["held"]} >= COMPARISONS
    assert PARTS <= {row["part"] for row in rows if row["check"] == "time of the part"}
    assert all(f"| {row['part']} | {row['check']} |" in done.out for row in rows)


@pytest.mark.slow
def test_it_starts_without_the_packages_that_it_has_stand_ins_for(tmp_path: Path):
    (tmp_path / "importing.py").write_text(IMPORTING_WITHOUT)
    process = start(str(tmp_path / "importing.py"), [], tmp_path)
    assert process.wait() == 0, process.said[-2000:]
    assert "pycocotools" in process.said and PARTS <= set(process.said.split())


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    done = run(tmp_path, "benchmarks/gpu_check.py", "--out", "out")
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(errors) == 1 and "no CUDA device" in errors[0]
    assert not (tmp_path / "out").exists()
