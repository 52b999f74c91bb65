"""Each row of the GPU check that has a bound allows for CUDA's rounding, and does not allow for an error of 1e-2."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from network_files import InstanceMasks, image_transform, roi_align, suppression
from network_files.boxes import pairwise_iou
from tests.helpers.faults import thin_model
from tests.helpers.parity import pair, synthetic_batch
from tests.helpers.project import ROOT
from train_utils.models import ModelConfig

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_network  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_processes  # noqa: E402
import gpu_speed  # noqa: E402
from gpu_setup import Row, Setup  # noqa: E402

CPU = torch.device("cpu")
ERROR = 1e-2
SETUP = Setup(CPU, Path(), Path(), small=True)


def fused_taps(start: Tensor, length: Tensor, size: Tensor, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """`bilinear_taps` whose product of bin and size is not rounded before it is added, as in CUDA's operator."""
    bin_size = (length / bins)[:, None, None]
    bin_ids, sample_ids = torch.arange(bins)[:, None], torch.arange(samples)
    first = (start[:, None, None].double() + bin_ids * bin_size.double()).float()
    position = first + (sample_ids + 0.5) * bin_size / samples
    end = size[:, None, None].to(position.dtype)
    inside = (position >= -1) & (position <= end)
    position = torch.minimum(position.clamp(min=0), end - 1)
    low = position.floor()
    high = position - low
    indices = torch.stack((low, torch.minimum(low + 1, end - 1)), dim=-1).long()
    return indices.flatten(2), (torch.stack((1 - high, high), -1) * inside[..., None] / samples).flatten(2)


def by_reciprocals(self: image_transform.ImageTransform, image: Tensor) -> Tensor:
    """`normalize` that multiplies by the reciprocals of 255 and of the standard deviation."""
    if image.dtype == torch.uint8:
        image = image.float() * torch.tensor(1 / 255)
    return (image - self.pixel_mean) * (1 / self.pixel_std)


@pytest.fixture
def cuda_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """This project's side rounds as CUDA does, torchvision's does not."""
    monkeypatch.setattr(roi_align, "bilinear_taps", fused_taps)
    monkeypatch.setattr(image_transform.ImageTransform, "normalize", by_reciprocals)


def bounds(rows: list[Row]) -> dict[str, bool]:
    return {row.check: row.held for row in rows if row.held is not None}


def all_hold(rows: list[Row]) -> bool:
    assert bounds(rows), rows
    return all(bounds(rows).values())


def none_holds(rows: list[Row]) -> bool:
    assert bounds(rows), rows
    return not any(bounds(rows).values())


# --- single operations


class Shifted(nn.Module):
    """A module whose first value is wrong, and with it the gradients of the same RoI."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *given: object) -> Tensor:
        output = self.module(*given)
        return output * (1 + ERROR)


class InDouble(nn.Module):
    """torchvision's operator without any rounding, more than CUDA's fused operations omit."""

    def forward(self, levels: dict[str, Tensor], boxes: list[Tensor], sizes: object) -> Tensor:
        reader = gpu_parts.Detectron2sRoIAlign(7)
        with_doubles = {key: level.double() for key, level in levels.items()}
        with torch.random.fork_rng():
            return self.read(reader, with_doubles, [b.double() for b in boxes], sizes).float()

    @staticmethod
    def read(reader: nn.Module, levels: dict, boxes: list[Tensor], sizes: object) -> Tensor:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return reader(levels, boxes, sizes)
        finally:
            torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", ["torchvision", "detectron2"])
def test_roi_align(kind: str, cuda_rounding: None) -> None:
    if kind == "torchvision":
        own = roi_align.PyramidRoIAlign(output_size=7)
        peer = gpu_parts.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    else:
        own, peer = roi_align.PyramidRoIAlign(output_size=7, sampling_ratio=0, aligned=True), InDouble()
    assert all_hold(gpu_parts.roi_align_rows(SETUP, "", own, peer))
    assert none_holds(gpu_parts.roi_align_rows(SETUP, "", Shifted(own), peer))


def test_mask_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, operator = gpu_parts.mask_targets, gpu_parts.roi_align
    unrounded = lambda planes, rois, *size, **how: operator(planes.double(), rois.double(), *size, **how)  # noqa: E731
    monkeypatch.setattr(gpu_parts, "roi_align", unrounded)
    assert all_hold(gpu_parts.mask_target_rows(CPU))
    monkeypatch.setattr(gpu_parts, "mask_targets", lambda *given: plain(*given) + ERROR)
    assert none_holds(gpu_parts.mask_target_rows(CPU))


def test_nms(monkeypatch: pytest.MonkeyPatch) -> None:
    in_double: Callable = lambda a, b: pairwise_iou(a.double(), b.double())  # noqa: E731
    monkeypatch.setattr(suppression, "pairwise_iou", in_double)
    assert all_hold(gpu_parts.nms_rows(SETUP))
    monkeypatch.setattr(suppression, "pairwise_iou", lambda a, b: pairwise_iou(a, b) + ERROR)
    assert none_holds(gpu_parts.nms_rows(SETUP))


def test_pasted_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    paste = gpu_parts.paste_masks
    monkeypatch.setattr(gpu_parts, "paste_masks", lambda masks, *given: paste(masks.double(), *given).float())
    assert all_hold(gpu_parts.paste_rows(CPU))
    monkeypatch.setattr(gpu_parts, "paste_masks", lambda *given: paste(*given) + ERROR)
    assert none_holds(gpu_parts.paste_rows(CPU))


# --- the network


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """This project's thin network and torchvision's, in float32."""
    theirs, ours = pair(dtype=torch.float32)
    return ours, theirs


@contextmanager
def rounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(roi_align, "bilinear_taps", fused_taps)
        patch.setattr(image_transform.ImageTransform, "normalize", by_reciprocals)
        yield


def test_losses_gradients_and_samples(networks: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = networks
    photos = synthetic_batch()
    with rounded(monkeypatch):
        own = gpu_network.outcome(CPU, ours, photos)
    reference = gpu_network.outcome(CPU, theirs, photos)
    assert len(reference.labels[0]) > 40 and bool((reference.labels[0] > 0).any())
    rows = gpu_network.outcome_rows("", own, reference)
    assert all_hold(rows), rows
    wrong = own._replace(
        losses={k: v * (1 + ERROR) for k, v in own.losses.items()},
        gradients={k: v * (1 + ERROR) for k, v in own.gradients.items()},
        anchors=[a[: int(len(a) * (1 - ERROR))] for a in own.anchors],
        proposals=[boxes + ERROR for boxes in own.proposals],
        labels=[labels.roll(1) for labels in own.labels],
    )
    assert none_holds(gpu_network.outcome_rows("", wrong, reference))


def test_detections(networks: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (network.eval() for network in networks)
    images = synthetic_batch()[0]
    with rounded(monkeypatch):
        own, reference = gpu_network.detections_of(ours, theirs, images)
    rows = gpu_network.detection_rows("", own, reference)
    assert all_hold(rows), rows
    wrong = [{k: v + ERROR if v.is_floating_point() else v for k, v in d.items()} for d in own]
    names = {"boxes", "scores", "masks"}
    failed = [check for check, held in bounds(gpu_network.detection_rows("", wrong, reference)).items() if not held]
    assert {check.split()[1] for check in failed} == names
    wrong = [d | {"boxes": d["boxes"] * (1 + ERROR)} for d in own]
    assert not gpu_network.detection_rows("", wrong, reference)[0].held


def test_uint8_images(networks: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [(image * 255).to(torch.uint8) for image in synthetic_batch()[0]]
    with rounded(monkeypatch):
        assert gpu_network.uint8_row(networks[0].transform, images, CPU).held
    plain = image_transform.ImageTransform.normalize
    only_uint8 = lambda self, image: plain(self, image) + (ERROR if image.dtype == torch.uint8 else 0)  # noqa: E731
    monkeypatch.setattr(image_transform.ImageTransform, "normalize", only_uint8)
    assert not gpu_network.uint8_row(networks[0].transform, images, CPU).held


def test_low_precision(networks: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = networks
    photos = synthetic_batch()
    reference, proposals = gpu_network.values_of_step(SETUP, theirs, photos, torch.float32, [])
    low, _ = gpu_network.values_of_step(SETUP, theirs, photos, torch.bfloat16, proposals)
    with rounded(monkeypatch):
        own, _ = gpu_network.values_of_step(SETUP, ours, photos, torch.bfloat16, proposals)
    rows = gpu_network.distance_rows("bfloat16", own, low, reference)
    assert len(rows) == 5 and all_hold(rows), rows
    wrong = {name: [v + ERROR * v.abs().max() for v in values] for name, values in own.items()}
    assert none_holds(gpu_network.distance_rows("bfloat16", wrong, low, reference))


class ThinSetup(Setup):
    """Parts of the check on a thin network and synthetic images."""

    def load(self, count: int) -> tuple[list[Tensor], list[dict]]:
        images, targets = (values[:count] for values in synthetic_batch())
        masks = [InstanceMasks.from_dense(t["masks"]) for t in targets]
        images = [(image * 255).to(torch.uint8) for image in images]
        return images, [dict(t, masks=m, image_id=0) for t, m in zip(targets, masks)]

    def networks(self, photos: object, arch: str = "v1") -> tuple[nn.Module, nn.Module]:
        return pair(dtype=torch.float32)[::-1]


class ThinnerSetup(ThinSetup):
    """A network that a CPU computes in fp16 in no time, with statistics that a step which is not applied restores."""

    def load(self, count: int) -> tuple[list[Tensor], list[dict]]:
        return super().load(1)

    def networks(self, photos: object, arch: str = "v1") -> tuple[nn.Module, None]:
        return thin_model(ModelConfig(91, norm="batch", min_size=32, max_size=48, rois_per_image=8)), None


@pytest.mark.slow
@pytest.mark.parametrize(("part", "kind"), [(gpu_network.settings, ThinSetup), (gpu_network.overflow, ThinnerSetup)])
def test_training_steps(part: Callable, kind: type[Setup]) -> None:
    rows = part(kind(CPU, Path(), Path(), small=False))
    assert len(rows) == 3 and all_hold(rows), rows


def test_steps_that_overflow(networks: tuple) -> None:
    network = networks[0]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = SimpleNamespace(state={})
    assert gpu_network.same_state(before, network) and gpu_network.all_finite(network, optimizer)
    key = next(iter(before))
    assert not gpu_network.same_state(before | {key: before[key] + ERROR}, network)
    optimizer.state = {0: {"momentum_buffer": torch.tensor([1.0, float("nan")])}}
    assert not gpu_network.all_finite(network, optimizer)


def test_settings_of_steps() -> None:
    gradients = {"a": torch.randn(50), "b": torch.randn(9)}
    norm = gpu_network.norm_of(gradients)
    assert gpu_network.clipped_row(gradients, norm * (1 + 1e-6)).held
    assert not gpu_network.clipped_row(gradients, norm * (1 + ERROR)).held
    weights = [torch.randn(50)]
    rounding = [w.double().mul(1 + 2**-25).float() for w in weights]
    assert gpu_network.weights_row(rounding, weights, 1e-3).held
    assert not gpu_network.weights_row([w + ERROR * 1e-3 for w in weights], weights, 1e-3).held


def test_process_groups() -> None:
    values = [torch.randn(2, 4, 8, 8), torch.randn(4), torch.randn(4, 3, 7, 7)]
    almost = [v.double().mul(1 + 2**-22).float() for v in values]
    assert all_hold(gpu_processes.sync_bn_row(almost, values))
    assert none_holds(gpu_processes.sync_bn_row([v * (1 + ERROR) for v in values], values))
    gradients = {"a": torch.randn(50)}
    assert not gpu_network.gradient_row("", "", {"a": gradients["a"] * (1 + ERROR)}, gradients).held
    assert not gpu_network.gradient_row("", "", {}, {}).held


def test_an_annotation_is_no_kernel() -> None:
    on = torch.autograd.DeviceType
    events = [
        SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(start=start, end=end))
        for name, kind, start, end in (
            ("Optimizer.step#SGD", on.CPU, 0, 100), ("Optimizer.step#SGD", on.CUDA, 0, 100),
            ("sgemm", on.CUDA, 0, 20), ("relu", on.CUDA, 60, 100),
        )
    ]  # fmt: skip
    figures = dict(gpu_speed.kernel_figures(events))
    assert figures["share of time in which the device works"] == "0.600"
    assert "gap before relu" in figures and not any("Optimizer" in name for name in figures)


def test_the_cpu_holds_no_speed_to_a_bound() -> None:
    assert SETUP.speed_goal(0.1, 2) == {}
    assert Setup(torch.device("cuda"), Path(), Path(), False).speed_goal(1.9, 2) == {"bound": "2", "held": False}
