"""The device that is asked for is the one that is used, before anything else asks about one."""

from collections.abc import Iterator

import pytest
import torch

from train_utils import device
from train_utils.device import choose_device
from train_utils.errors import InputError


@pytest.fixture
def two_gpus(monkeypatch) -> list[torch.device]:
    """Two CUDA devices, of which the second is the current one; the list holds what becomes the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.fixture
def tf32() -> Iterator[None]:
    """Puts both settings back; monkeypatch would delete them, as they are properties of a kind."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("allowed", [True, False])
def test_products_on_a_gpu_are_as_precise_as_convolutions(two_gpus, tf32, allowed):
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed, not allowed
    choose_device("cuda")
    assert torch.backends.cuda.matmul.allow_tf32 is allowed


@pytest.mark.parametrize(("name", "index"), [("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_cuda_device_becomes_the_current_one(two_gpus, name, index):
    assert choose_device(name) == torch.device("cuda", index)
    assert two_gpus == [torch.device("cuda", index)]


def test_a_cuda_device_that_does_not_exist_is_named(two_gpus):
    with pytest.raises(InputError, match="--device cuda:2: this machine has only 2 CUDA devices"):
        choose_device("cuda:2")
    assert two_gpus == []


@pytest.mark.parametrize("name", ["gpu", "cuda:x"])
def test_a_device_of_no_kind_is_named(two_gpus, name):
    with pytest.raises(InputError, match=f"--device {name}: no such device"):
        choose_device(name)


def test_deterministic_algorithms_do_not_fill_memory(monkeypatch):
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    device.use_deterministic_algorithms()
    assert torch.utils.deterministic.fill_uninitialized_memory is False
