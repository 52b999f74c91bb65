"""A step over several parts of a batch (--accumulate) computes what the whole batch, or as many processes, would."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import start_processes

from network_files import MaskRCNN
from tests.helpers.faults import thin_model
from tests.helpers.forked import ensure_server
from tests.helpers.parity import enliven_norms, synthetic_batch
from tests.helpers.photos import with_compact_masks
from train_utils.device import Precision
from train_utils.distributed import in_parallel
from train_utils.engine import Batch, train_step
from train_utils.models import ModelConfig
from train_utils.optimizer import create_momentum
from train_utils.training_state import StepResult, Training

CPU = torch.device("cpu")
LOSSES = ("loss", "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return model_without_draws()


def model_without_draws() -> MaskRCNN:
    """A thin network with frozen BatchNorm that samples every anchor and proposal, so that nothing is drawn."""
    torch.manual_seed(0)
    network = thin_model(ModelConfig(91, norm="frozen", min_size=64, max_size=96, rois_per_image=100_000, proposals=30))
    network.rpn.sampler.batch_size_per_image = 100_000
    enliven_norms(network)
    return network.train()


@pytest.fixture(scope="module")
def photos() -> list[tuple[Tensor, dict]]:
    images, targets = synthetic_batch()
    return [(i, dict(t, image_id=n)) for n, (i, t) in enumerate(zip(images, with_compact_masks(targets)))]


def one_step(model: MaskRCNN, items: list, accumulate: int, **settings) -> tuple[StepResult, Training]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, fused=True)
    parallel = in_parallel(model, CPU, fixed_buckets=False)
    training = Training(model, parallel, optimizer, Precision("cpu", None), CPU, accumulate=accumulate, **settings)
    create_momentum(optimizer)
    return train_step(training, Batch(*zip(*items)), 1).read(), training


def gradients(training: Training) -> dict[str, Tensor]:
    return {name: p.grad for name, p in training.model.named_parameters() if p.grad is not None}


def assert_equal_within_rounding(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys() and len(found) > 20
    for name, value in found.items():
        scale = wanted[name].abs().max().item()
        assert (value - wanted[name]).abs().max().item() <= 1e-5 * scale + 1e-9, name


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_with_as_many_samples_each_equal_the_whole_batch(model: MaskRCNN, photos: list, parts: int) -> None:
    items = [photos[0], photos[1]] * parts
    whole, training = one_step(model, items, 1)
    divided, training_in_parts = one_step(model, items, parts)
    assert divided.applied and tuple(divided.losses) == LOSSES
    assert list(divided.losses.values()) == pytest.approx(list(whole.losses.values()), rel=1e-5)
    assert_equal_within_rounding(gradients(training_in_parts), gradients(training))
    assert_equal_within_rounding(training_in_parts.model.state_dict(), training.model.state_dict())


def test_parts_with_other_numbers_of_samples_equal_one_process_each(model: MaskRCNN, photos: list) -> None:
    divided, training = one_step(model, photos, 3)
    alone = [one_step(model, [photo], 1) for photo in photos]
    for name in LOSSES:
        assert divided.losses[name] == pytest.approx(sum(step.losses[name] for step, _ in alone) / 3, rel=1e-5)
    theirs = [gradients(other) for _, other in alone]
    means = {name: sum(each[name] for each in theirs) / 3 for name in theirs[0]}
    assert_equal_within_rounding(gradients(training), means)


def test_gradients_of_all_parts_are_clipped_together(model: MaskRCNN, photos: list) -> None:
    _, free = one_step(model, photos, 3)
    norm = torch.stack([g.norm() for g in gradients(free).values()]).norm().item()
    _, clipped = one_step(model, photos, 3, clip_grad_norm=norm / 4)
    assert_equal_within_rounding(
        {name: 4 * g for name, g in gradients(clipped).items()}, {name: g for name, g in gradients(free).items()}
    )
    _, spared = one_step(model, photos, 3, clip_grad_norm=norm * 2)
    assert all(torch.equal(g, gradients(free)[name]) for name, g in gradients(spared).items())


@pytest.mark.slow
def test_several_processes_exchange_the_gradients_of_all_parts(model: MaskRCNN, photos: list, tmp_path: Path) -> None:
    """Two processes with two parts each come to the same weights as one process with four."""
    shares = [[photos[0], photos[1]], [photos[2], photos[0]]]
    ensure_server()
    start_processes(step_in_group, (tmp_path, shares), nprocs=2, start_method="forkserver")
    found = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    _, alone = one_step(model, [*shares[0], *shares[1]], 4)
    assert_equal_within_rounding(found[0], alone.model.state_dict())


def step_in_group(rank: int, folder: Path, shares: list[list]) -> None:
    torch.set_num_threads(1)
    model = model_without_draws()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    _, training = one_step(model, shares[rank], 2)
    torch.save(training.model.state_dict(), folder / f"{rank}.pth")
    dist.destroy_process_group()
