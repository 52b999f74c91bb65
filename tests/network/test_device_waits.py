"""A step waits for a GPU no more often than it must, and mixes no devices; found without a GPU, on a pretended one."""

import json
import subprocess
import sys

import pytest
import torch.utils.backend_registration as backend

from tests.helpers.project import ROOT, importing_tests

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(backend, "_setup_privateuseone_for_python_backend"),
        reason="this release of torch cannot register a backend in Python",
    ),
]
# Whatever the batch: one for NMS, and one for each sampler.
TRAINING_WAITS = 3
# Whatever the batch: one for each NMS, and one for the likely detections.
INFERENCE_WAITS = 3
CASES = ("frozen", "batch norm", "adaptive RoIAlign", "bf16", "an image without objects", "no objects at all")


@pytest.fixture(scope="module")
def results() -> dict:
    import os

    command = [sys.executable, "-m", "tests.programs.pretended_steps"]
    done = subprocess.run(
        command, cwd=ROOT, env=importing_tests(os.environ), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tensors_of_two_devices_are_an_error(results):
    assert "tensors on pretended:0 and cpu" in results["mixed devices"]


def test_the_pyramid_is_computed_in_low_precision_throughout(results):
    assert results["bf16"]["pyramid types"] == ["torch.bfloat16"]
    assert results["frozen"]["pyramid types"] == ["torch.float32"]


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_of_two_images_waits_no_more_often_than_it_must(results, case):
    assert results[case]["waits"] <= TRAINING_WAITS


@pytest.mark.parametrize("case", CASES)
def test_losses_on_a_device_equal_those_on_the_cpu(results, case):
    own, expected = results[case]["gpu"], results[case]["cpu"]
    assert set(own) == set(expected) and len(own) == 6
    for name, value in expected.items():
        assert own[name] == pytest.approx(value, rel=0.03 if case == "bf16" else 1e-4, abs=1e-5), name


@pytest.mark.parametrize("case", CASES)
def test_a_loss_that_is_not_finite_leaves_weights_and_statistics_on_a_device_alone(results, case):
    assert results[case]["nan"] == {"applied": False, "same": True}


@pytest.mark.parametrize("case", CASES)
def test_inference_on_a_device_finds_what_it_finds_on_the_cpu(results, case):
    found = results[case]["detections"]
    assert results[case]["detection waits"] <= INFERENCE_WAITS
    if case != "bf16":
        assert found["pretended"][:2] == found["cpu"][:2] and min(found["cpu"][:2]) > 0
        assert found["pretended"][2] == pytest.approx(found["cpu"][2], abs=0.002)
