"""Which pictures a process sees, in which order, and that nothing but seed, epoch and picture decides it."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from train_utils import loaders
from train_utils.loaders import (
    AspectRatioBatchSampler,
    SeededItems,
    default_workers,
    evaluation_loader,
    mix_seed,
    repeat_factors,
    training_loader,
)
from train_utils.options import TrainSettings
from transforms import collate_fn

# 60 pictures: far wider than high, wide, square, high, far higher than wide, in no order.
RATIOS = np.random.default_rng(0).permutation([3.0] * 11 + [1.5] * 17 + [1.0] * 9 + [0.7] * 16 + [0.3] * 7).tolist()


def sampler(number: int = 60, batch_size: int = 4, factor: int = 3, seed: int = 0, rank: int = 0, world: int = 1):
    return AspectRatioBatchSampler(RATIOS[:number], batch_size, factor, seed, rank, world)


def drawn(batches: AspectRatioBatchSampler, epoch: int = 0, first: int = 0) -> list[list[int]]:
    """The pictures of each batch of an epoch."""
    batches.start_at(epoch, first)
    keys = list(batches)
    assert {key[0] for batch in keys for key in batch} <= {epoch}
    return [[index for _, index in batch] for batch in keys]


def drawn_by_all(world: int, epoch: int = 0, **settings) -> list[list[list[int]]]:
    return [drawn(sampler(rank=rank, world=world, **settings), epoch) for rank in range(world)]


# ------------------------------------------------------------------------------------------------------- the sampler


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 64])
@pytest.mark.parametrize("number", [1, 5, 59, 60])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_picture_comes_in_every_epoch_in_full_batches(world, number, batch_size):
    for epoch in (0, 5):
        shares = drawn_by_all(world, epoch, number=number, batch_size=batch_size)
        counts = Counter(index for share in shares for batch in share for index in batch)
        assert set(counts) == set(range(number))
        assert all(len(batch) == batch_size for share in shares for batch in share)
        # filled up with as little as full batches and equal shares need
        assert sum(counts.values()) - number < batch_size * world


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_processes_are_equally_long_and_as_long_as_they_say(world):
    lengths = {len(share) for share in drawn_by_all(world)}
    assert lengths == {len(sampler(world=world))} == {-(-15 // world)}


@pytest.mark.parametrize("world", [3, 5, 15])
def test_processes_have_no_picture_in_common(world):
    """60 pictures are 15 batches of 4, which these numbers of processes share without remainder."""
    counts = Counter(index for share in drawn_by_all(world) for batch in share for index in batch)
    assert set(counts.values()) == {1} and len(counts) == 60


def test_processes_together_draw_what_one_process_draws():
    (whole,) = drawn_by_all(1)
    shares = drawn_by_all(3)
    assert [shares[i % 3][i // 3] for i in range(15)] == whole


def test_more_processes_than_pictures_all_get_a_batch():
    shares = drawn_by_all(8, number=3, batch_size=2)
    assert [len(share) for share in shares] == [1] * 8
    assert {index for share in shares for batch in share for index in batch} == {0, 1, 2}


@pytest.mark.parametrize("batch_size", [2, 4, 6])
def test_batches_hold_one_shape_except_for_leftovers(batch_size):
    groups = {ratio: RATIOS.count(ratio) for ratio in set(RATIOS)}
    whole = sum(count // batch_size for count in groups.values())
    assert whole < 60 // batch_size  # there are leftovers, or this would be no test of them
    for epoch in range(4):
        shapes = [{RATIOS[index] for index in batch} for batch in drawn(sampler(batch_size=batch_size), epoch)]
        assert sum(len(found) == 1 for found in shapes) >= whole


def test_without_groups_shapes_are_mixed():
    shapes = [{RATIOS[index] for index in batch} for batch in drawn(sampler(factor=0))]
    assert sum(len(found) > 1 for found in shapes) >= 10


def test_near_shapes_share_a_group_and_a_higher_factor_parts_them():
    ratios = [1.05] * 30 + [1.2] * 30
    coarse, fine = (AspectRatioBatchSampler(ratios, 2, factor, 0) for factor in (1, 6))
    assert len(set(coarse.groups)) == 1 and len(set(fine.groups)) == 2


def test_order_changes_with_epoch_and_seed_and_with_nothing_else():
    first = drawn(sampler(), epoch=0)
    assert drawn(sampler(), epoch=0) == first
    assert drawn(sampler(), epoch=1) != first
    assert drawn(sampler(seed=1), epoch=0) != first
    torch.manual_seed(99)
    np.random.seed(99)
    assert drawn(sampler(), epoch=0) == first


@pytest.mark.parametrize("world, rank", [(1, 0), (2, 0), (2, 1)])
def test_starting_within_an_epoch_gives_just_its_rest(world, rank):
    batches = sampler(rank=rank, world=world)
    whole = drawn(batches, epoch=3)
    for first in range(len(whole) + 1):
        assert drawn(batches, epoch=3, first=first) == whole[first:]
    assert len(batches) == len(whole)  # the length stays that of a whole epoch
    assert drawn(batches, epoch=4) != whole and len(drawn(batches, epoch=4)) == len(whole)


# --------------------------------------------------------------------------------------------------- rare classes

RARE = {3: [7, 1], 20: [7], 41: [9]}  # image -> classes; all others have class 1 alone
CLASSES = [RARE.get(i, [1]) for i in range(60)]


def test_factors_are_those_of_lvis():
    """Class 7 is in 2 of 60 images, class 9 in 1; class 1 in 58."""
    factors = repeat_factors(CLASSES, 0.1)
    expected = [(0.1 * 60 / 2) ** 0.5 if i in (3, 20) else 6**0.5 if i == 41 else 1 for i in range(60)]
    assert factors.tolist() == pytest.approx(expected)
    assert repeat_factors([[], [4], [4, 5]], 0.5).tolist() == pytest.approx([1, 1, 1.5**0.5])
    assert repeat_factors(CLASSES, 0.01).tolist() == [1] * 60


@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("world", [1, 3])
def test_images_come_as_often_as_their_factors_say(batch_size, world):
    factors = np.where(np.arange(60) % 10 == 0, 2.3, 1.0)  # 67.8 in all
    counts, sizes = Counter(), set()
    for epoch in range(200):
        shares = []
        for rank in range(world):
            batches = AspectRatioBatchSampler(RATIOS, batch_size, 3, 0, rank, world, factors)
            batches.start_at(epoch)
            shares.append(list(batches))
        assert (
            {len(share) for share in shares}
            == {len(batches)}
            == {-(-68 // batch_size) // world + (-(-68 // batch_size) % world > 0)}
        )
        keys = [key[1:] for share in shares for batch in share for key in batch]
        assert all(len(batch) == batch_size for share in shares for batch in share)
        sizes.add(len(set(keys)))
        counts.update(key[0] for key in set(keys))
        assert all(n in (1, 2) for _, *again in keys for n in again)
    assert sizes == {67, 68}
    assert all(counts[i] == 200 for i in range(60) if i % 10)
    assert all(counts[i] / 200 == pytest.approx(2.3, abs=0.15) for i in range(0, 60, 10))


def test_an_epoch_with_repetitions_can_be_entered_anywhere():
    factors = np.linspace(1, 3, 60)
    batches = AspectRatioBatchSampler(RATIOS, 4, 3, 0, repeats=factors)
    batches.start_at(2)
    whole = list(batches)
    batches.start_at(2, 5)
    assert list(batches) == whole[5:]
    batches.start_at(3)
    assert list(batches) != whole


def test_the_second_time_in_an_epoch_an_image_is_drawn_anew():
    items = SeededItems(RandomPictures(), 0)
    first, again, third = (items[key][0] for key in ((4, 7), (4, 7, 1), (4, 7, 2)))
    assert torch.equal(items[4, 7][0], first) and torch.equal(items[4, 7, 1][0], again)
    assert not torch.equal(first, again) and not torch.equal(again, third)


# ------------------------------------------------------------------------------------------------- items and workers


class RandomPictures(torch.utils.data.Dataset):
    """Pictures of noise from torch's RNG, as a random transform would draw it."""

    collate_fn = staticmethod(collate_fn)

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        return torch.rand(3, 2, 2), {"image_id": index, "draw": torch.rand(1).item()}

    def get_height_and_width(self, index: int) -> tuple[int, int]:
        return 100, int(100 * RATIOS[index])


def batches_with(workers: int, epoch: int = 0, first: int = 0, seed: int = 0) -> list[tuple[list[int], torch.Tensor]]:
    """Each batch's pictures and pixels."""
    loader = training_loader(RandomPictures(), TrainSettings(workers=workers, seed=seed), pin_memory=False)
    loader.batch_sampler.start_at(epoch, first)
    return [([t["image_id"] for t in targets], torch.stack(images)) for images, targets in loader]


def assert_same(one: list, other: list) -> None:
    assert len(one) == len(other) > 0
    for (ids, pixels), (other_ids, other_pixels) in zip(one, other):
        assert ids == other_ids and torch.equal(pixels, other_pixels)


def test_items_are_the_same_whatever_the_number_of_workers():
    alone = batches_with(workers=0, epoch=2)
    torch.manual_seed(12345)
    for workers in (1, 2):
        assert_same(batches_with(workers, epoch=2), alone)


def test_the_rest_of_an_epoch_has_the_same_items():
    assert_same(batches_with(workers=0, epoch=2, first=9), batches_with(workers=0, epoch=2)[9:])


def test_items_differ_from_epoch_to_epoch_seed_to_seed_and_picture_to_picture():
    items = [SeededItems(RandomPictures(), seed)[epoch, index] for seed, epoch, index in np.ndindex(3, 3, 3)]
    draws = {target["draw"] for _, target in items}
    assert len(draws) == 27
    assert SeededItems(RandomPictures(), 2)[1, 0][1]["draw"] in draws


def test_drawing_an_item_leaves_the_random_state_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    SeededItems(RandomPictures(), 0)[0, 0]
    assert torch.equal(torch.get_rng_state(), before)


def test_mixed_seeds_are_valid_and_do_not_collide_between_neighbours():
    seeds = [mix_seed(*numbers) for numbers in np.ndindex(12, 12, 12)]
    assert len(set(seeds)) == 12**3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 2, 3) == mix_seed(1, 2, 3)


# ------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 7, 80])
def test_evaluation_shares_every_picture_out_once_in_the_same_batches(monkeypatch, world, batch_size):
    shares = []
    for rank in range(world):
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(loaders, "world_size", lambda: world)
        loader = evaluation_loader(RandomPictures(), batch_size, workers=0)
        shares.append([tuple(t["image_id"] for t in targets) for _, targets in loader])
    batches = [batch for share in shares for batch in share]
    assert sorted(index for batch in batches for index in batch) == list(range(60))
    assert all(len({RATIOS[index] for index in batch}) == 1 for batch in batches)
    if batch_size == 1:
        assert sorted(batches) == [(i,) for i in range(60)]
    else:
        assert len(batches) == sum(-(-count // batch_size) for count in (11, 17, 9, 16, 7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_evaluation_keeps_a_last_batch_that_is_not_full(monkeypatch):
    loader = evaluation_loader(RandomPictures(), 7, workers=0)
    assert sorted(len(images) for images, _ in loader) == [2, 2, 3, 4, 7, 7, 7, 7, 7, 7, 7]


def test_evaluation_takes_batches_on_a_gpu_unless_it_is_told():
    sizes = []
    for batch_size, device in ((None, "cpu"), (None, "pretended"), (4, "cpu")):
        loader = evaluation_loader(RandomPictures(), batch_size, 0, SimpleNamespace(type=device))
        sizes.append(max(map(len, loader.batch_sampler)))
    assert sizes == [1, 8, 4]


@pytest.mark.parametrize("cores, world, workers", [(2, 1, 2), (2, 4, 1), (64, 1, 8), (64, 4, 8), (16, 4, 4)])
def test_workers_share_the_cores_between_processes(monkeypatch, cores, world, workers):
    monkeypatch.setattr(loaders.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(loaders, "world_size", lambda: world)
    assert default_workers() == workers
