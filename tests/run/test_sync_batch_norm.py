"""--sync-bn computes what torch's SyncBatchNorm computes, and BatchNorm of the undivided batch, for any share of it."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from torch.nn.modules._functions import SyncBatchNorm as TorchsFunction

from tests.helpers.forked import ensure_server
from tests.helpers.project import ROOT
from train_utils.errors import InputError
from train_utils.sync_batch_norm import SyncBatchNorm2d, use_sync_bn

SHARES = {"equal": (2, 2), "unequal": (3, 1), "the first empty": (0, 4), "the last empty": (4, 0)}


def batch_of(share: str) -> tuple[Tensor, Tensor]:
    """Maps and the gradient of what becomes of them, for both processes: [4, 5, 6, 7]."""
    generator = torch.Generator().manual_seed(len(share))
    maps, gradient = torch.randn(2, 4, 5, 6, 7, generator=generator)
    return maps * 3 + 1, gradient


def layer() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    return norm


def results(norm: nn.BatchNorm2d, maps: Tensor, output: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    output.backward(gradient)
    of_maps = torch.zeros_like(maps) if maps.grad is None else maps.grad
    found = {"output": output.detach(), "of maps": of_maps, "mean": norm.running_mean, "var": norm.running_var}
    for name, parameter in norm.named_parameters():
        found[f"of {name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return found


def in_group(rank: int, folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from sync_batch_norm_kernels import register_kernels

    torch.set_num_threads(1)
    register_kernels()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for share, sizes in SHARES.items():
        for channels_last in (False, True):
            own, theirs = layer(), layer()
            use_sync_bn(own, torch.device("cuda"))
            assert type(own) is SyncBatchNorm2d
            maps, gradient = (values.split(sizes)[rank] for values in batch_of(share))
            if channels_last:
                maps = maps.contiguous(memory_format=torch.channels_last)
            one, other = maps.clone().requires_grad_(), maps.clone().requires_grad_()
            expected = TorchsFunction.apply(
                other, theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var, 1e-5, 0.1,
                dist.group.WORLD, 2,
            )  # fmt: skip
            found[share, channels_last] = (
                results(own, one, own(one), gradient),
                results(theirs, other, expected, gradient),
            )
            assert own.num_batches_tracked == 1
    torch.save(found, folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("group")
    ensure_server()
    start_processes(in_group, (folder,), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("share", SHARES)
def test_two_processes_normalise_as_torchs_layer_to_the_last_bit(found, share: str, channels_last: bool):
    for own, expected in (of_process[share, channels_last] for of_process in found):
        for name, values in expected.items():
            assert torch.equal(own[name], values), name


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
def test_two_processes_normalise_as_one_with_the_undivided_batch(found, share: str):
    norm, (maps, gradient) = layer(), batch_of(share)
    expected = results(norm, maps.requires_grad_(), norm(maps), gradient)
    (first, _), (second, _) = (of_process[share, False] for of_process in found)
    for name, values in expected.items():
        if name in ("output", "of maps"):
            own = torch.cat((first[name], second[name]))
        else:
            own = first[name] + second[name] if name.startswith("of ") else second[name]
        torch.testing.assert_close(own, values, rtol=1e-4, atol=1e-4, msg=name)


def test_the_synchronised_network_has_the_same_keys_and_is_for_gpus_only():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), layer())
    keys = list(model.state_dict())
    with pytest.raises(InputError, match="--sync-bn works on GPUs only"):
        use_sync_bn(model, torch.device("cpu"))
    assert type(model[1]) is nn.BatchNorm2d
    use_sync_bn(model, torch.device("cuda"))
    assert type(model[1]) is SyncBatchNorm2d and list(model.state_dict()) == keys
    maps = torch.randn(2, 3, 6, 7)  # alone, in training and in evaluation, it is BatchNorm2d
    assert torch.equal(model(maps), layer()(model[0](maps)))
