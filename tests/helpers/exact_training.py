"""Train weights that detect objects, and compare training from them in torchvision's loop and in ours, as rows."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LinearLR

from network_files import MaskRCNN
from tests.helpers.detectron2_rows import Row
from tests.helpers.exact_rows import Check, absolute, counted, difference, merged, relative
from tests.helpers.exact_stages import as_uint8
from tests.helpers.parity import GRADIENT_TOLERANCE, LOSSES, Batch, in_float64, loss_tolerance
from tests.helpers.photos import with_compact_masks
from train_utils import engine
from train_utils.device import Precision
from train_utils.engine import train_step
from train_utils.loaders import mix_seed
from train_utils.models import ModelConfig, build_model
from train_utils.optimizer import learning_rate, set_learning_rate
from train_utils.options import TrainSettings
from train_utils.training_state import Training
from transforms import RandomHorizontalFlip

TRAJECTORY_TOLERANCE = 1e-9  # relative to a parameter's largest entry
State = dict[str, Tensor]


def trained_weights(batch: Batch, min_size: int, max_size: int, steps: int, seed: int) -> State:
    """Train from random weights, all steps on the same photos, so that the network soon detects their objects."""
    images, targets = as_uint8(batch[0]), with_compact_masks(batch[1])
    torch.manual_seed(seed)
    config = ModelConfig(91, trainable_layers=5, min_size=min_size, max_size=max_size, rois_per_image=16)
    model = build_model(config).to(memory_format=torch.channels_last).train()
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4, fused=True)
    warm_up = LinearLR(optimizer, 0.1, total_iters=10)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(model(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        warm_up.step()
    return model.state_dict()


def gradient_checks(reference: nn.Module, own: MaskRCNN, batch: Batch, seed: int) -> list[Check]:
    """Rows for the five losses, all gradients, the frozen parameters, and the generator after a training step.

    Both networks keep the mode of each module and must have the same memory format. In float32, rounding decides
    whether the gradient of a ReLU with an input near 0 flows: these rows are only measured, those of float64 bounded.
    """
    images, targets = batch
    losses, gradients, _ = training_step(reference, images, targets, seed)
    own_losses, own_gradients, _ = training_step(own, as_uint8(images), with_compact_masks(targets), seed)
    checks = [relative("losses, float32", name, own_losses[name], losses[name], math.inf) for name in sorted(LOSSES)]

    images, targets = in_float64(batch)
    reference.double()
    own.double()
    losses, exact, generator = training_step(reference, images, targets, seed)
    own_losses, own_exact, own_generator = training_step(own, images, with_compact_masks(targets), seed)
    reference.float()
    own.float()
    checks += [
        relative("losses, float64", name, own_losses[name], losses[name], loss_tolerance(name))
        for name in sorted(LOSSES)
    ]
    frozen, own_frozen = ({n for n, p in model.named_parameters() if not p.requires_grad} for model in (reference, own))
    parameters = len(list(reference.parameters()))
    unlike = len(set(gradients) ^ set(own_gradients))
    return [
        *checks,
        of_each("float64", own_exact, exact, GRADIENT_TOLERANCE),
        of_each("float32", own_gradients, gradients, math.inf),
        counted("gradients", "parameters with a gradient in only one network", unlike, parameters),
        counted("frozen", f"{len(frozen)} parameters; unequal", len(frozen ^ own_frozen), parameters),
        absolute("random numbers", "the generator's state", own_generator, generator, 0),
    ]


def training_step(
    model: nn.Module, images: list[Tensor], targets: list[dict], seed: int
) -> tuple[State, State, Tensor]:
    """The losses, the gradients and the generator's state after a step; running statistics are restored."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    losses = model(images, targets)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for name, buffer in model.named_buffers():
        buffer.data.copy_(buffers[name])
    return losses, gradients, torch.random.get_rng_state()


def of_each(precision: str, own: State, reference: State, tolerance: float) -> Check:
    """The row of the parameter whose gradient differs most, relative to its largest entry."""
    rows = [difference("gradients", name, own[name], gradient) for name, gradient in reference.items()]
    what = f"{precision}: all {len(rows)} parameters"
    return Check(merged("gradients", what, rows), tolerance, relative=True)


def trajectory_checks(
    reference: nn.Module, own: MaskRCNN, batch: Batch, lr: float, steps: int, seed: int, only_float64: bool
) -> list[Check]:
    """Rows for SGD steps with warm-up and flips from the given weights, in float64, float32 and bf16.

    In float64 every parameter must end equal to torchvision's. In float32 and bf16, rounding occasionally decides
    whether a proposal passes NMS; the samples then differ and two runs diverge, even two of torchvision's that differ
    only in the memory format. Those rows are only measured. The measure is the norm of all parameters' differences, as
    a share of the distance that torchvision's float32 run has covered.
    """
    start = copy.deepcopy(reference.state_dict())

    def ending(model: nn.Module, train, dtype: torch.dtype | None, layout=torch.contiguous_format) -> State:
        model.load_state_dict(start)
        model.to(memory_format=layout)
        train(model, batch, lr, dtype, steps, seed)
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        model.load_state_dict(start)
        return trained

    reference.double()
    own.double()
    theirs, ours = ending(reference, train_theirs, torch.float64), ending(own, train_ours, torch.float64)
    reference.float()
    own.float()
    rows = [difference("", name, ours[name], expected) for name, expected in theirs.items()]
    count = sum(row.count for row in rows)
    if not any((theirs[name] != start[name]).any() for name in theirs):
        raise ValueError("nothing was trained")
    what = f"float64: all {len(rows)} parameters"
    checks = [Check(merged(f"{steps} steps", what, rows), TRAJECTORY_TOLERANCE, relative=True)]
    if only_float64:
        return checks

    channels_last, bf16 = torch.channels_last, torch.bfloat16
    full, full_other = ending(reference, train_theirs, None), ending(reference, train_theirs, None, channels_last)
    way = length({name: full[name] - start[name] for name in full})

    def apart(what: str, one: State, other: State) -> Check:
        distance = length({name: one[name] - other[name] for name in other})
        return Check(Row(f"{steps} steps", what, count, distance, distance / way), math.inf, relative=True)

    ours_full = ending(own, train_ours, None)
    half, half_other = ending(reference, train_theirs, bf16), ending(reference, train_theirs, bf16, channels_last)
    ours_half = ending(own, train_ours, bf16, channels_last)
    reference.to(memory_format=torch.contiguous_format)
    return [
        *checks,
        apart("float32: torchvision's in two layouts", full_other, full),
        apart("float32: ours from torchvision's", ours_full, full),
        apart("bf16: torchvision's from its float32", half, full),
        apart("bf16: torchvision's in two layouts", half, half_other),
        apart("bf16: ours from torchvision's float32", ours_half, full),
        apart("bf16: ours from torchvision's bf16", ours_half, half),
    ]


def in_precision(batch: Batch, dtype: torch.dtype | None) -> tuple[Batch, torch.dtype | None]:
    """The batch, in float64 if `dtype` says so, and the type that remains for autocast."""
    return (in_float64(batch), None) if dtype == torch.float64 else (batch, dtype)


def length(differences: State) -> float:
    return sum(d.double().square().sum().item() for d in differences.values()) ** 0.5


def train_theirs(model: nn.Module, batch: Batch, lr: float, dtype: torch.dtype | None, steps: int, seed: int) -> None:
    """Train as torchvision's reference scripts do: SGD, warm-up from 1/1000, flips of dense masks."""
    batch, dtype = in_precision(batch, dtype)
    model.train()
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9, weight_decay=1e-4)
    warm_up = LinearLR(optimizer, 1e-3, total_iters=steps)
    for step, chosen in enumerate(pairs_of_photos(steps, len(batch[0]))):
        images, targets = [], []
        for i in chosen:
            image, target = batch[0][i], batch[1][i]
            torch.manual_seed(mix_seed(seed, step, i))
            if torch.rand(1).item() < 0.5:
                width = image.shape[-1]
                boxes = target["boxes"].clone()
                boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
                image, target = image.flip(-1), dict(target, boxes=boxes, masks=target["masks"].flip(-1))
            images.append(image)
            targets.append(target)
        torch.manual_seed(mix_seed(seed, step, 0))
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()


def train_ours(model: MaskRCNN, batch: Batch, lr: float, dtype: torch.dtype | None, steps: int, seed: int) -> None:
    """Train with the project's own flip, step and schedule."""
    (images, targets), dtype = in_precision(batch, dtype)
    if images[0].dtype == torch.float32:
        images = as_uint8(images)  # as the datasets give them
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-4, fused=True)
    schedule = TrainSettings(lr=lr, lr_steps=[])
    precision = Precision("cpu", dtype)
    training = Training(model, model, optimizer, precision, torch.device("cpu"), seed)
    flip = RandomHorizontalFlip()
    targets = [dict(t, image_id=i) for i, t in enumerate(with_compact_masks(targets))]
    for step, chosen in enumerate(pairs_of_photos(steps, len(images))):
        items = []
        for i in chosen:
            torch.manual_seed(mix_seed(seed, step, i))
            items.append(flip(images[i], targets[i]))
        set_learning_rate(optimizer, learning_rate(step, schedule, steps))
        done = train_step(training, engine.Batch(*zip(*items)), step + 1).read()
        if not done.applied:
            raise ValueError(f"step {step} was not applied: {done.losses}")


def pairs_of_photos(steps: int, count: int) -> Iterator[tuple[int, int]]:
    """The indices of the two photos of each step."""
    for step in range(steps):
        yield step % count, (step + 1) % count
