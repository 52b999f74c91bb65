"""Training steps and inferences of thin networks on a pretended GPU, beside the same on the CPU; printed as JSON.

    python -m tests.programs.pretended_steps

A process of its own, as the pretended GPU stays registered. A tensor of the wrong device ends it with an error. By case
it prints waits, losses on both devices, what is left of them where a loss is not a number, and boxes on both.
"""

import copy
import json
import sys
from contextlib import nullcontext
from itertools import cycle, islice

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from network_files import InstanceMasks, MaskRCNN
from network_files.roi_align import PyramidRoIAlign
from tests.helpers.faults import thin_model
from tests.helpers.parity import enliven_norms, synthetic_batch, without_objects
from tests.helpers.project import ROOT
from train_utils.device import Precision
from train_utils.engine import Batch, to_device, train_step
from train_utils.metrics.coco_evaluation import PendingDetections
from train_utils.models import ModelConfig
from train_utils.optimizer import create_momentum
from train_utils.sync_batch_norm import use_sync_bn
from train_utils.training_state import Training

sys.path.insert(0, str(ROOT / "benchmarks"))
from pretended_gpu import NAME, PretendedGPU, pretended_gpu  # noqa: E402
from sync_batch_norm_kernels import two_equal_processes  # noqa: E402

CASES = {
    "frozen": {"norm": "frozen"},
    "synchronised batch norm": {"norm": "batch", "sync": True},
    "adaptive RoIAlign": {"norm": "frozen", "sampling_ratio": 0},
    "bf16": {"norm": "frozen", "amp": True},
    "an image without objects": {"norm": "frozen", "empty": 1},
    "no objects at all": {"norm": "frozen", "empty": 2},
    "incomplete labels": {"norm": "frozen", "incomplete": True},
}


def main() -> None:
    torch.set_num_threads(1)
    results: dict = {}
    with pretended_gpu([ROOT]) as gpu:
        results["mixed devices"] = mixing_is_refused()
        for name, case in CASES.items():
            results[name] = compare(gpu, **case)
        results["more images"] = [counts_of(gpu, images) for images in (2, 6)]
    print(json.dumps(results))


def mixing_is_refused() -> str:
    try:
        torch.ones(3, device=NAME) + torch.ones(3)
    except RuntimeError as error:
        return str(error)
    return ""


def compare(
    gpu: PretendedGPU,
    norm: str,
    sampling_ratio: int = 2,
    amp: bool = False,
    empty: int = 0,
    sync: bool = False,
    incomplete: bool = False,
) -> dict:
    model = lively_model(norm, sampling_ratio)
    batch = batch_of(2, empty)
    if incomplete:
        batch = batch._replace(targets=tuple(map(with_gaps, batch.targets)))
    on_cpu = training_of(copy.deepcopy(model), torch.device("cpu"), amp)
    with two_equal_processes() if sync else nullcontext():
        if sync:
            use_sync_bn(model, torch.device("cuda"))
        return compare_steps(gpu, model, on_cpu, batch, amp)


def compare_steps(gpu: PretendedGPU, model: MaskRCNN, on_cpu: Training, batch: Batch, amp: bool) -> dict:
    on_gpu = training_of(copy.deepcopy(model), torch.device(NAME, 0), amp)
    result = {"cpu": losses_of(on_cpu, batch, 1), "pyramid types": (types := set[str]())}
    for layer in (m for m in on_gpu.model.backbone.fpn.modules() if isinstance(m, nn.Conv2d)):
        layer.register_forward_hook(lambda _, inputs, __: types.add(str(inputs[0].dtype)))
    for number in (1, 2):  # what only the first step does is not counted
        gpu.reset()
        step = train_step(on_gpu, batch, number)
        result.setdefault("waits", sum(gpu.waits.values())) if number == 2 else None
        result.setdefault("gpu", step.read().losses)
    before = {key: value.cpu() for key, value in on_gpu.model.state_dict().items()}
    on_gpu.model.register_forward_hook(lambda _, __, losses: losses | {"loss_mask": losses["loss_mask"] * float("nan")})
    nan = train_step(on_gpu, batch, 3).read()
    after = {key: value.cpu() for key, value in on_gpu.model.state_dict().items()}
    result["nan"] = {"applied": nan.applied, "same": all(torch.equal(after[key], before[key]) for key in before)}
    result |= compare_inference(gpu, model, batch, amp)
    result["pyramid types"] = sorted(types)
    return result


def compare_inference(gpu: PretendedGPU, model: MaskRCNN, batch: Batch, amp: bool) -> dict:
    found = {}
    for device in ("cpu", NAME):
        network = copy.deepcopy(model).eval().to(device)
        gpu.reset()
        with torch.no_grad(), Precision(device, torch.bfloat16 if amp else None).autocast():
            pending = PendingDetections(network.detect(to_device(batch.images, torch.device(device))))
        found[device] = [d["boxes"].shape[0] for d in pending.read()]
        scores = [round(s, 3) for d in pending.read() for s in d["scores"].tolist()[:5]]
        found[device].append(scores)
    return {"detections": found, "detection waits": sum(gpu.waits.values())}


def lively_model(norm: str, sampling_ratio: int) -> MaskRCNN:
    torch.manual_seed(0)
    model = thin_model(ModelConfig(91, norm=norm, min_size=96, max_size=160, rois_per_image=32))
    enliven_norms(model.backbone)
    model.rpn.pre_nms_top_n = {"training": 100, "testing": 100}  # NMS on the CPU would take most of the time
    heads = model.roi_heads
    heads.box_roi_pool = PyramidRoIAlign(output_size=7, sampling_ratio=sampling_ratio)
    heads.mask_roi_pool = PyramidRoIAlign(output_size=14, sampling_ratio=sampling_ratio)
    for layer, std in ((model.rpn.head.cls_logits, 0.3), (heads.box_predictor.cls_score, 3.0)):
        nn.init.normal_(layer.weight, std=std)
    assert any(isinstance(m, FrozenBatchNorm2d) for m in model.modules()) == (norm == "frozen")
    return model


def counts_of(gpu: PretendedGPU, images: int) -> dict[str, list[int]]:
    """Waits and operations of a training step, and of an inference, of several images."""
    batch = batch_of(images)
    training = training_of(lively_model("frozen", 2), torch.device(NAME, 0), amp=False)
    for number in (1, 2):
        gpu.reset()
        train_step(training, batch, number)
    counts = {"training": [sum(gpu.waits.values()), sum(gpu.operations.values())]}
    gpu.reset()
    with torch.no_grad():
        PendingDetections(training.model.eval().detect(to_device(batch.images, training.device)))
    return counts | {"inference": [sum(gpu.waits.values()), sum(gpu.operations.values())]}


def batch_of(number: int, empty: int = 0) -> Batch:
    images, targets = (list(islice(cycle(values), number)) for values in synthetic_batch())
    for i in range(empty):
        targets[i] = without_objects(images[i])
    targets = [
        dict(t, masks=InstanceMasks.from_dense(t["masks"]), image_id=i, area=torch.zeros(len(t["labels"])))
        for i, t in enumerate(targets)
    ]
    return Batch(tuple((image * 255).to(torch.uint8) for image in images), tuple(targets))


def with_gaps(target: dict) -> dict:
    """The target with an ignore region, and without every other mask."""
    has_mask = torch.arange(len(target["labels"])) % 2 == 1
    return target | {"ignore_regions": target["masks"][:1], "has_mask": has_mask}


def training_of(model: MaskRCNN, device: torch.device, amp: bool) -> Training:
    model.train().to(device, memory_format=torch.channels_last)
    precision = Precision(device.type, torch.bfloat16 if amp else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)
    create_momentum(optimizer)
    return Training(model, model, optimizer, precision, device)


def losses_of(training: Training, batch: Batch, number: int) -> dict[str, Tensor]:
    return train_step(training, batch, number).read().losses


if __name__ == "__main__":
    main()
