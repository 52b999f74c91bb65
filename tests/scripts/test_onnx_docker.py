"""The Dockerfile of docs/ONNX.md holds all that tools/predict_onnx.py imports."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers.project import ROOT

PAGE = (ROOT / "docs" / "ONNX.md").read_text(encoding="utf-8")
DOCKERFILE = re.search(r"```dockerfile\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.mark.slow
def test_what_the_image_copies_is_all_that_the_tool_needs(tmp_path):
    for source, target in re.findall(r"^COPY (\S+) (\S+)$", DOCKERFILE, re.MULTILINE):
        place = tmp_path / target / (source.rpartition("/")[2] if target.endswith("/") else "")
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    command = [sys.executable, "-m", "tests.helpers.without_packages", "torch", str(tmp_path / "tools/predict_onnx.py")]
    done = subprocess.run([*command, "none.onnx", "x.jpg"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (2, "imported:")
    assert done.stderr.startswith("error: none.onnx: no such file")


@pytest.mark.long
def test_the_image_is_built_and_runs(tmp_path):
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon")
    build = [docker, "build", "-q", "-t", "maskrcnn-onnx-test", "-f", "-", str(ROOT)]
    subprocess.run(build, input=DOCKERFILE, text=True, check=True, capture_output=True)
    done = subprocess.run(
        [docker, "run", "--rm", "maskrcnn-onnx-test", "none.onnx", "x.jpg"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "none.onnx: no such file" in done.stderr
