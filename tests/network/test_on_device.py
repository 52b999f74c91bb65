"""What runs on a device without waits gives what the ways of the CPU give, and torchvision."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import roi_align

from network_files import InstanceMasks
from network_files.masks.targets import OBJECTS_AT_ONCE, mask_targets, targets_on_device
from network_files.matching import BalancedSampler
from network_files.on_device import AsyncHostCopy, true_indices
from network_files.roi_align import PyramidRoIAlign, SharedPyramid
from tests.helpers.drawn_masks import blobs, boxes_of_every_kind
from tests.helpers.faults import thin_model
from tests.helpers.parity import synthetic_batch
from train_utils.models import ModelConfig


def test_true_indices_are_those_of_where():
    lengths = [300, 0, 200, 1]
    for share in (0.0, 0.01, 0.5, 1.0):
        mask = torch.rand(501) < share
        indices, counts = true_indices(mask, lengths)
        assert indices.dtype == torch.int64 and torch.equal(indices, torch.where(mask)[0])
        assert counts == [int(part.sum()) for part in mask.split(lengths)]
    assert true_indices(torch.zeros(0, dtype=torch.bool), [0, 0])[1] == [0, 0]


@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 1.0])
def test_a_batch_of_images_is_sampled_as_by_torchvision_with_the_same_draws(share: float):
    labels = torch.where(torch.rand(3, 1000) < share, 7, torch.randint(-1, 1, (3, 1000)))
    labels[2, 40:] = -1
    torch.manual_seed(4)
    positive, negative = BalancedPositiveNegativeSampler(128, 0.25)(list(labels))
    state = torch.random.get_rng_state()
    torch.manual_seed(4)
    sample = BalancedSampler(128, 0.25)(labels)
    assert torch.equal(torch.random.get_rng_state(), state)
    for own, masks in ((sample.positive, positive), (sample.negative, negative)):
        assert own.dtype == torch.int64 and torch.equal(own, torch.where(torch.cat(masks))[0])
    assert sample.numbers == [(int(p.sum()), int(n.sum())) for p, n in zip(positive, negative)]


@pytest.fixture
def levels() -> dict[str, Tensor]:
    return {str(i): torch.randn(2, 6, 64 >> i, 80 >> i, requires_grad=True) for i in range(4)}


@pytest.fixture
def boxes() -> list[Tensor]:
    sides = torch.tensor([56.0, 112, 224, 448, 111.9, 224.1])[:, None]
    corner = torch.rand(6, 2) * 20
    both = boxes_of_every_kind(256, 300, count=12), boxes_of_every_kind(200, 320, count=12)
    return [torch.cat((b, torch.cat((corner, corner + sides), 1))) for b in both]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_reading_all_levels_at_once_equals_reading_each_forward_and_backward(levels, boxes, sampling_ratio, aligned):
    pool = PyramidRoIAlign(output_size=(7, 5), sampling_ratio=sampling_ratio, aligned=aligned)
    by_level = pool(levels, boxes, [(256, 300), (200, 320)])
    pool.read_by_level = pool.read_at_once
    at_once = pool(levels, boxes, [(256, 300), (200, 320)])
    assert torch.equal(at_once, by_level)
    weights = torch.randn_like(by_level)
    expected = torch.autograd.grad((by_level * weights).sum(), list(levels.values()))
    for own, gradient in zip(torch.autograd.grad((at_once * weights).sum(), list(levels.values())), expected):
        assert gradient.abs().max() > 0.1
        torch.testing.assert_close(own, gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("at_once", [False, True])
def test_both_roi_aligns_read_the_same_tables_of_a_shared_pyramid(levels, boxes, at_once):
    shared, sizes = SharedPyramid(levels), [(256, 300), (200, 320)]
    for pool in (PyramidRoIAlign(output_size=7), PyramidRoIAlign(output_size=14)):
        pool.read_by_level = pool.read_at_once if at_once else pool.read_by_level
        before = dict(shared.tables)
        assert torch.equal(pool(shared, boxes, sizes), pool(levels, boxes, sizes))
        assert all(shared.tables[names] is table for names, table in before.items())
    assert list(shared.tables) == ([("0", "1", "2", "3")] if at_once else [("0",), ("1",), ("2",), ("3",)])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("size", "frame"), [((37, 53), None), ((74, 106), None), ((50, 61), None), ((20, 30), (37, 53))], ids=str
)
def test_mask_targets_of_many_objects_equal_those_of_dense_masks_to_the_last_bit(size, frame, aligned: bool):
    masks = InstanceMasks.from_dense(torch.cat((blobs(2 * OBJECTS_AT_ONCE + 3), torch.zeros(1, 37, 53).bool())))
    masks = masks.resize(*size, frame)
    rois = boxes_of_every_kind(*size)
    matched = torch.randint(len(masks), (len(rois),))
    indexed = torch.cat((matched[:, None].float(), rois), dim=1)
    expected = roi_align(masks.dense()[:, None].float(), indexed, (28, 28), aligned=aligned)[:, 0]
    assert 0 < expected.mean() < 1
    for make in (mask_targets, targets_on_device):
        assert torch.equal(make([masks], [rois], [matched], 28, aligned), expected)


@pytest.mark.parametrize("make", [mask_targets, targets_on_device])
def test_images_without_objects_or_pixels_make_no_mask_targets(make):
    nothing = torch.zeros(0, dtype=torch.int64)
    none = InstanceMasks.from_crops([], (20, 30))
    assert make([none], [torch.zeros(0, 4)], [nothing], 28, False).shape == (0, 28, 28)
    empty = InstanceMasks.from_dense(torch.zeros(2, 20, 30, dtype=torch.uint8))
    rois = torch.tensor([[1.0, 2.0, 9.0, 8.0]])
    assert torch.equal(make([empty], [rois], [nothing.new_ones(1)], 28, False), torch.zeros(1, 28, 28))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_roi_align_with_adaptive_samples_takes_features_in_low_precision_beside_float32_boxes(levels, boxes, dtype):
    """As when --deterministic reads on the CPU what CUDA's autocast has made."""
    low = {name: level.detach().to(dtype) for name, level in levels.items()}
    pool, sizes = PyramidRoIAlign(output_size=7, sampling_ratio=0), [(256, 300), (200, 320)]
    for read in ("read_by_level", "read_at_once"):
        pool.read_by_level = getattr(pool, read)
        found = pool(low, boxes, sizes)
        expected = pool({name: level.float() for name, level in low.items()}, boxes, sizes)
        assert found.dtype == dtype and torch.equal(found, expected.to(dtype))


def test_gradients_have_the_strides_of_channels_last_weights_or_ddp_would_copy_each():
    torch.manual_seed(0)
    model = thin_model(ModelConfig(91, norm="frozen", min_size=96, max_size=160, rois_per_image=32)).train()
    model.to(memory_format=torch.channels_last)
    sum(model(*synthetic_batch()).values()).backward()
    strides = {n: (p.stride(), p.grad.stride()) for n, p in model.named_parameters() if p.grad is not None}
    assert len(strides) > 40
    assert {name: pair for name, pair in strides.items() if pair[0] != pair[1]} == {}


class OnSecondGPU(SimpleNamespace):
    """What a copy to the host asks of a tensor on "cuda:1"."""

    is_cuda, device = True, torch.device("cuda", 1)

    def detach(self) -> "OnSecondGPU":
        return self

    def to(self, device: str, non_blocking: bool) -> Tensor:
        assert device == "cpu" and non_blocking
        return torch.ones(2)


def test_a_copy_to_the_host_has_arrived_when_the_stream_of_its_own_device_has_reached_it(monkeypatch):
    events = []
    event = SimpleNamespace(record=lambda stream: events.append(stream), synchronize=lambda: events.append("waited"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    copy = AsyncHostCopy(OnSecondGPU())
    assert events == ["stream of cuda:1"]
    assert torch.equal(copy.read(), torch.ones(2)) and events == ["stream of cuda:1", "waited"]


def test_masks_move_as_a_whole():
    masks = InstanceMasks.from_dense(blobs(3)).resize(60, 70, frame=(80, 90))
    away = masks.to("meta")
    assert away.pixels.device.type == away.crops.device.type == "meta"
    assert (away.size, away.content_size, away.source_size) == ((80, 90), (60, 70), (37, 53))
