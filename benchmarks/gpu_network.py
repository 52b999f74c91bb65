"""The parts of gpu_check.py that compare the whole network with torchvision's on one device, and training steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
from common import counterparts, on_device
from gpu_setup import Photos, Row, Setup, bounded, exact, floats_and_dense, without_tf32
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from network_files import MaskRCNN
from network_files.image_transform import ImageTransform
from train_utils.device import Precision
from train_utils.engine import Batch, train_step
from train_utils.loaders import mix_seed
from train_utils.optimizer import create_momentum
from train_utils.training_state import Training

Gradients = dict[str, Tensor]
Detections = Sequence[Mapping[str, Tensor]]
# Of the same float images: pixels, and relative.
PIXELS, LOSSES, GRADIENTS = 1e-3, 1e-4, 3e-3
# Of detections: pixels, probabilities, and the share without a counterpart.
BOXES, PROBABILITIES, UNMATCHED = 5e-3, 1e-3, 0.02
TIMES_TORCHVISIONS = 1.5  # distance from float32 in low precision
FIRST_SCALE, STEPS = 2.0**24, 20  # each step beyond fp16 halves the scale


class Outcome(NamedTuple):
    """A training step: losses, gradients, indices of the sampled anchors, boxes and labels of the sampled proposals."""

    losses: dict[str, float]
    gradients: Gradients
    anchors: list[Tensor]
    proposals: list[Tensor]
    labels: list[Tensor]


def parity(setup: Setup) -> list[Row]:
    rows = []
    for arch in ("v1", "v2"):
        photos = setup.load(2)
        ours, theirs = (network.to(setup.device) for network in setup.networks(photos, arch))
        dense = floats_and_dense(photos)
        with without_tf32():
            own = outcome(setup.device, ours, (dense[0], photos[1]))
            rows += outcome_rows(arch, own, outcome(setup.device, theirs, dense))
            images = [image.to(setup.device) for image in dense[0]]
            rows += detection_rows(arch, *detections_of(ours.eval(), theirs.eval(), images))
    return [*rows, uint8_row(ours.transform, photos[0], setup.device)]


def outcome(device: torch.device, network: nn.Module, photos: Photos) -> Outcome:
    network.train()
    network.zero_grad(set_to_none=True)
    images, targets = on_device(network, *photos, device)
    with recorded_samples(network) as (anchors, proposals, labels):
        torch.manual_seed(1)
        losses = network(images, targets)
    sum(losses.values()).backward()
    return Outcome({k: v.item() for k, v in losses.items()}, gradients_of(network), anchors, proposals, labels)


def gradients_of(network: nn.Module) -> Gradients:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@contextmanager
def recorded_samples(network: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Context in which both samples are recorded, of this project's network or of torchvision's."""
    anchors: list[Tensor] = []
    proposals: list[Tensor] = []
    labels: list[Tensor] = []
    own = isinstance(network, MaskRCNN)
    sampler_name, select_name = ("sampler", "sample_proposals") if own else ("fg_bg_sampler", "select_training_samples")
    sampler, select = getattr(network.rpn, sampler_name), getattr(network.roi_heads, select_name)

    def sampled(given: Any) -> Any:
        chosen = sampler(given)
        if own:
            anchors.extend((chosen.positive, chosen.negative))
        else:
            anchors.extend(torch.where(torch.cat(masks) > 0)[0] for masks in chosen)
        return chosen

    def selected(*given: Any) -> Any:
        chosen = select(*given)
        proposals.append(chosen.boxes if own else torch.cat(chosen[0]))
        labels.append(chosen.labels if own else torch.cat(chosen[2]))
        return chosen

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(network.rpn, sampler_name, sampled))
        patches.enter_context(mock.patch.object(network.roi_heads, select_name, selected))
        yield anchors, proposals, labels


def outcome_rows(arch: str, own: Outcome, reference: Outcome) -> list[Row]:
    same = len(own.anchors) == len(reference.anchors) == 2 and all(map(torch.equal, own.anchors, reference.anchors))
    labels = all(map(torch.equal, own.labels, reference.labels))
    pixels = max((largest_or_inf(a, b) for a, b in zip(own.proposals, reference.proposals)), default=float("inf"))
    loss = max(abs(own.losses[k] - v) / max(abs(v), 1e-6) for k, v in reference.losses.items())
    return [
        exact("parity", f"{arch}, sampled anchors", same),
        exact("parity", f"{arch}, labels of the sampled proposals", labels),
        bounded("parity", f"{arch}, boxes of the sampled proposals, px", pixels, PIXELS),
        bounded("parity", f"{arch}, losses, relative", loss, LOSSES),
        gradient_row("parity", f"{arch}, gradients", own.gradients, reference.gradients),
    ]


def largest_or_inf(own: Tensor, reference: Tensor) -> float:
    return (own - reference).abs().max().item() if own.shape == reference.shape and own.numel() else float("inf")


def gradient_row(part: str, check: str, own: Gradients, reference: Gradients, bound: float = GRADIENTS) -> Row:
    """Compare gradients by the largest distance, relative to a tensor's length.

    Entries alone would not do: a ReLU at 0, which rounding switches, changes some by a hundredth of the largest.
    """
    if own.keys() != reference.keys() or not own:
        return Row(part, check, "of other parameters", f"{bound:.0e}", False)
    apart = {k: ((own[k] - v).norm() / v.norm().clamp(min=1e-12)).item() for k, v in reference.items()}
    worst = max(apart, key=lambda k: apart[k])
    return bounded(part, f"{check}, relative", apart[worst], bound, f" ({worst})")


@torch.no_grad()
def detections_of(ours: MaskRCNN, theirs: nn.Module, images: list[Tensor]) -> tuple[Detections, Detections]:
    """Detections of both with masks of 28x28."""
    found: list[Tensor] = []
    hook = theirs.roi_heads.register_forward_hook(lambda *values: found.extend(d["masks"] for d in values[2][0]))
    expected = theirs(images)
    hook.remove()
    return ours.detect(images), [dict(d, masks=masks) for d, masks in zip(expected, found)]


def detection_rows(arch: str, own: Detections, reference: Detections) -> list[Row]:
    """Compare detections with those of the same label at the same place."""
    apart = {"boxes": [0.0], "scores": [0.0], "masks": [0.0]}
    without, number = 0, 0
    for a, b in zip(own, reference):
        i, j = counterparts(a, b, within=0.1)
        number += len(b["labels"])
        without += len(a["labels"]) + len(b["labels"]) - 2 * len(i)
        for key in apart if len(i) else ():
            apart[key].append((a[key][i] - b[key][j]).abs().max().item())
    share = without / number if number else float("inf")
    bounds = {"boxes": BOXES, "scores": PROBABILITIES, "masks": PROBABILITIES}
    return [
        bounded("parity", f"{arch}, detections without a counterpart, share of {number}", share, UNMATCHED),
        *(bounded("parity", f"{arch}, {key} of detections", max(apart[key]), bounds[key]) for key in apart),
    ]


def uint8_row(transform: ImageTransform, images: Sequence[Tensor], device: torch.device) -> Row:
    """Compare the batch made of uint8 images with that of the same divided by 255 on the CPU."""
    given = [image.to(device) for image in images], [(image / 255).to(device) for image in images]
    own, reference = (transform.eval()(images)[0].tensors for images in given)
    return bounded("parity", "uint8 images, normalised and resized", largest_or_inf(own, reference), 1e-5)


# --- low precision


def precision(setup: Setup) -> list[Row]:
    photos = setup.load(2)
    ours, theirs = (network.to(setup.device) for network in setup.networks(photos))
    dense = floats_and_dense(photos)
    own_photos = dense[0], photos[1]
    with without_tf32():
        reference, proposals = values_of_step(setup, theirs, dense, torch.float32, [])
    rows = []
    for dtype in (torch.bfloat16, torch.float16) if setup.on_cuda else (torch.bfloat16,):  # fp16 takes a CPU minutes
        theirs_low, _ = values_of_step(setup, theirs, dense, dtype, proposals)
        own, _ = values_of_step(setup, ours, own_photos, dtype, proposals)
        rows += distance_rows(str(dtype).removeprefix("torch."), own, theirs_low, reference)
    return rows


Values = dict[str, list[Tensor]]


def values_of_step(
    setup: Setup, network: nn.Module, photos: Photos, dtype: torch.dtype, proposals: list[Tensor]
) -> tuple[Values, list[Tensor]]:
    """What a training step computes on the way, and the proposals used: the given ones, if any, in place of the RPN's.

    In low precision rounding decides which proposals remain: with their own, two right networks sample other boxes.
    """
    network.train().zero_grad(set_to_none=True)
    images, targets = on_device(network, *photos, setup.device)
    values: Values = {}
    used = list(proposals)

    def keep(name: str) -> Callable:
        return lambda _module, _inputs, output: values.update({name: [v.detach().float() for v in flat(output)]})

    def after_rpn(_module: nn.Module, _inputs: tuple, output: tuple) -> tuple:
        used.extend(output[0] if not used else [])
        return used, output[1]

    heads = network.roi_heads
    modules = {"pyramid": network.backbone, "RPN's predictions": network.rpn.head, "mask features": heads.mask_head,
               "class logits and deltas": heads.box_predictor}  # fmt: skip
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    hooks.append(network.rpn.register_forward_hook(after_rpn))
    torch.manual_seed(1)
    with torch.autocast(setup.device.type, dtype, enabled=dtype != torch.float32):
        losses = network(images, targets)
    scale = 1024 if dtype == torch.float16 else 1  # smaller gradients would vanish
    (sum(losses.values()) * scale).backward()
    for hook in hooks:
        hook.remove()
    values["gradients"] = [gradient / scale for _, gradient in sorted(gradients_of(network).items())]
    return values, used


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [t for part in (output.values() if isinstance(output, Mapping) else output) for t in flat(part)]


def distance_rows(dtype: str, own: Values, theirs: Values, reference: Values) -> list[Row]:
    """Rows that hold if this project's values are about as near to those in float32 as torchvision's."""
    rows = []
    for name, exact_values in reference.items():
        a, b = (distance(values[name], exact_values) for values in (own, theirs))
        figure = f"{a:.1e}, torchvision {b:.1e}"
        check = f"{dtype}, {name}: distance from float32"
        rows.append(Row("precision", check, figure, f"{TIMES_TORCHVISIONS:g}x", a <= TIMES_TORCHVISIONS * b))
    return rows


def distance(values: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The median over the tensors of the distance, relative to the reference's length."""
    if [v.shape for v in values] != [v.shape for v in reference]:
        return float("inf")
    return median(((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in zip(values, reference))


def overflow(setup: Setup) -> list[Row]:
    """fp16 whose first step overflows: nothing of it reaches the weights, and soon a step is applied."""
    if setup.small:
        return [Row("overflow", "fp16", "skipped: a CPU takes minutes")]
    photos = setup.load(2)
    network = setup.networks(photos)[0].to(setup.device)
    scaler = torch.amp.GradScaler(setup.device.type, init_scale=FIRST_SCALE)
    training = training_of(setup, network, Precision(setup.device.type, torch.float16), scaler)
    before = deepcopy(network.state_dict())
    batch = Batch(*map(tuple, photos))
    first = train_step(training, batch, 1).read()
    rows = [
        exact("overflow", "fp16 at scale 2^24: the weights after the first step", same_state(before, network)),
        exact("overflow", "that step counts as not applied", not first.applied),
    ]
    applied = sum(train_step(training, batch, i).read().applied for i in range(2, 2 + STEPS))
    held = applied > 0 and all_finite(network, training.optimizer)
    return [*rows, Row("overflow", f"the {STEPS} steps after it", f"{applied} applied", "some, all finite", held)]


def same_state(before: Mapping[str, Tensor], network: nn.Module) -> bool:
    return all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def all_finite(network: nn.Module, optimizer: Optimizer) -> bool:
    """Whether weights, running statistics and the optimizer's state are."""
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return all(bool(v.isfinite().all()) for v in (*network.state_dict().values(), *states) if v.is_floating_point())


# --- training steps with other settings


def training_of(
    setup: Setup, network: MaskRCNN, how: Precision, scaler: torch.amp.GradScaler | None = None, **settings: Any
) -> Training:
    network.train()
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = SGD(trainable, lr=1e-8, momentum=0.9, weight_decay=1e-4, fused=True)
    create_momentum(optimizer)
    return Training(network, network, optimizer, how, setup.device, scaler=scaler or how.scaler(), **settings)


def settings(setup: Setup) -> list[Row]:
    """AdamW, clipping and accumulation in `train_step`, each against the same computed plainly."""
    photos = setup.load(2)
    network = setup.networks(photos)[0].to(setup.device)
    batch, full = Batch(*map(tuple, photos)), Precision(setup.device.type, None)
    with without_tf32():
        plain = plain_gradients(setup, network, batch, parts=1)
        in_parts = plain_gradients(setup, network, batch, parts=2)
        train_step(training_of(setup, network, full, accumulate=2), batch, 1).read()
        rows = [gradient_row("settings", "accumulated over 2 parts, gradients", gradients_of(network), in_parts, 1e-3)]
        limit = 0.5 * norm_of(plain)
        train_step(training_of(setup, network, full, clip_grad_norm=limit), batch, 1).read()
        rows.append(clipped_row(gradients_of(network), limit))
        return [*rows, adamw_row(setup, network, batch)]


def plain_gradients(setup: Setup, network: MaskRCNN, batch: Batch, parts: int) -> Gradients:
    """The gradients of a step with the random samples of step 1."""
    network.train().zero_grad(set_to_none=True)
    torch.manual_seed(mix_seed(0, 0, 0))
    for part in batch.parts(parts):
        images = [image.to(setup.device) for image in part.images]
        (sum(network(images, part.targets).values()) / parts).backward()
    return gradients_of(network)


def norm_of(gradients: Gradients) -> float:
    return torch.stack([g.norm() for g in gradients.values()]).norm().item()


def clipped_row(gradients: Gradients, limit: float) -> Row:
    return bounded("settings", "--clip-grad-norm, norm, relative", abs(norm_of(gradients) / limit - 1), 1e-4)


def adamw_row(setup: Setup, network: MaskRCNN, batch: Batch) -> Row:
    """Compare the fused optimizer's step with that of the plain one from the same gradients."""
    rate = 1e-3
    training = training_of(setup, network, Precision(setup.device.type, None))
    parameters = training.optimizer.param_groups[0]["params"]
    copies = [p.detach().clone() for p in parameters]
    training.optimizer = AdamW(parameters, lr=rate, weight_decay=0.05, fused=True)
    train_step(training, batch, 1).read()
    for copy, parameter in zip(copies, parameters):
        copy.grad = parameter.grad
    AdamW(copies, lr=rate, weight_decay=0.05, foreach=False).step()
    return weights_row([p.detach() for p in parameters], copies, rate)


def weights_row(own: Sequence[Tensor], reference: Sequence[Tensor], rate: float) -> Row:
    apart = max((a - b).abs().max().item() for a, b in zip(own, reference)) / rate
    return bounded("settings", "AdamW, weights after a step, relative to the rate", apart, 1e-3)
