"""A step waits for a GPU no more often than it must, and mixes no devices; found without a GPU, on a pretended one."""

import json

import pytest
import torch.utils.backend_registration as backend

from tests.helpers.forked import start

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
# Of a batch: normalising, resizing, drawing the samples, painting and reading mask targets; resizing the boxes found.
OPERATIONS_PER_IMAGE = {"training": 30, "inference": 15}
CASES = (
    "frozen",
    "synchronised batch norm",
    "adaptive RoIAlign",
    "bf16",
    "an image without objects",
    "no objects at all",
    "incomplete labels",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    run = start("tests/programs/pretended_steps.py", [], tmp_path_factory.mktemp("steps"))
    assert run.wait(900) == 0, run.said
    return json.loads(run.said.splitlines()[-1])


def test_tensors_of_two_devices_are_an_error(results):
    assert "tensors on pretended:0 and cpu" in results["mixed devices"]


def test_the_pyramid_is_computed_in_low_precision_throughout(results):
    assert results["bf16"]["pyramid types"] == ["torch.bfloat16"]
    assert results["frozen"]["pyramid types"] == ["torch.float32"]


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_of_two_images_waits_no_more_often_than_it_must(results, case):
    assert results[case]["waits"] <= TRAINING_WAITS


@pytest.mark.parametrize("what", OPERATIONS_PER_IMAGE)
def test_more_images_take_no_more_waits_and_few_more_operations(results, what):
    (waits, operations), (more_waits, more_operations) = (counts[what] for counts in results["more images"])
    assert more_waits == waits
    assert 0 < (more_operations - operations) / 4 <= OPERATIONS_PER_IMAGE[what]


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
