"""The parts of gpu_check.py that compare values: RoIAlign, mask targets, the whole network, precision, resuming."""

import copy
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from common import machine, on_device
from gpu_setup import Photos, Row, Setup, without_tf32
from limit import matrix_rate
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torchvision.ops import MultiScaleRoIAlign, roi_align

from network_files.masks.targets import mask_targets
from network_files.roi_align import PyramidRoIAlign
from train_utils.demo_dataset import make_demo_dataset
from train_utils.device import Precision
from train_utils.distributed import AsyncAllReduce, barrier, gather_objects, share_buffers
from train_utils.engine import Batch, train_step
from train_utils.optimizer import create_momentum
from train_utils.training_state import Training

Gradients = dict[str, Tensor]
SMALLEST_FLOOR = 5e-6  # of gradients: what another order of float32 sums changes
FIRST_SCALE, STEPS = 2.0**24, 20  # each step beyond fp16 halves the scale


def facts(setup: Setup) -> list[Row]:
    rows = [Row("facts", "machine", machine(setup.device))]
    if setup.on_cuda:
        with suppress(OSError, subprocess.CalledProcessError):
            command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
            rows.append(Row("facts", "driver, memory", subprocess.check_output(command, text=True).splitlines()[0]))
    for dtype in (torch.bfloat16, torch.float32):
        rate = "not measured" if setup.small else f"{matrix_rate(dtype, setup.device) / 1e12:.1f} TFLOP/s"
        rows.append(Row("facts", f"matrix rate, {str(dtype).removeprefix('torch.')}", rate))
    return rows


# --- parts of the network


def parts(setup: Setup) -> list[Row]:
    return [*roi_align_rows(setup), *mask_target_rows(setup)]


def roi_align_rows(setup: Setup) -> list[Row]:
    rows, (height, width), rois = [], ((64, 96) if setup.small else (800, 1344)), 16 if setup.small else 512
    torch.manual_seed(0)
    levels = {str(i): torch.randn(2, 256, height >> i + 2, width >> i + 2, device=setup.device) for i in range(4)}
    corner = torch.rand(2, rois, 2, device=setup.device) * torch.tensor([width, height], device=setup.device) * 0.8
    boxes = list(torch.cat((corner, corner + 4 + torch.rand_like(corner) ** 3 * height * 0.9), dim=2))
    sizes = [(height, width)] * 2
    for side in (7, 14):
        outputs = []
        for align in (PyramidRoIAlign(output_size=side), MultiScaleRoIAlign(["0", "1", "2", "3"], side, 2)):
            leaves = {name: level.clone().requires_grad_() for name, level in levels.items()}
            with without_tf32():
                output = align(leaves, boxes, sizes)
                seconds = seconds_of(setup, lambda a=align, x=leaves: a(x, boxes, sizes).sum().backward())
            gradients = torch.autograd.grad(output.square().sum(), list(leaves.values()))
            outputs.append((output.detach(), gradients, seconds))
        (own, own_gradients, own_time), (theirs, gradients, time) = outputs
        worst = (own - theirs).abs().max().item()
        apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(own_gradients, gradients))
        rows.append(Row("parts", f"RoIAlign {side}x{side}, values", f"{worst:.1e}", "1e-5", worst <= 1e-5))
        rows.append(Row("parts", f"RoIAlign {side}x{side}, gradients", f"{apart:.1e}", "1e-5", apart <= 1e-5))
        both = f"{own_time * 1e3:.2f} ms, torchvision {time * 1e3:.2f} ms"
        rows.append(Row("parts", f"RoIAlign {side}x{side}, forward and backward", both))
    return rows


def mask_target_rows(setup: Setup) -> list[Row]:
    _, targets = setup.load(2 if setup.small else 8)
    worst, device = 0.0, setup.device
    for target in targets:
        height, width = target["masks"].size
        masks = target["masks"].resize(int(height * 1.3), int(width * 1.3))
        matched = torch.randint(len(masks), (64,), device=device)
        boxes = target["boxes"].to(device)[matched] * 1.3 + torch.randn(64, 4, device=device)
        found = mask_targets([masks], [boxes], [matched], 28)
        rois = torch.cat((matched[:, None].float(), boxes), dim=1)
        expected = roi_align(masks.dense()[:, None].float().to(device), rois, (28, 28))[:, 0]
        worst = max(worst, (found - expected).abs().max().item())
    return [Row("parts", "mask targets against dense masks", f"{worst:.1e}", "1e-6", worst <= 1e-6)]


def seconds_of(setup: Setup, run: Callable[[], object], rounds: int = 5) -> float:
    import time

    run()
    setup.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        run()
    setup.synchronize()
    return (time.perf_counter() - start) / rounds


# --- the whole network


def parity(setup: Setup) -> list[Row]:
    photos = setup.load(2)
    ours, theirs = (network.to(setup.device) for network in setup.networks(photos))
    with without_tf32():
        own = outcome(setup, ours, photos)
        expected = outcome(setup, theirs, setup.dense(photos))
        again = outcome(setup, theirs, setup.dense(photos))
    (own_losses, own_gradients, own_samples), (losses, gradients, samples) = own, expected
    same = len(own_samples) == len(samples) and all(torch.equal(a, b) for a, b in zip(own_samples, samples))
    loss = largest_relative(own_losses, losses, smallest=1e-6)
    floor = max(largest_difference(again[1], gradients), SMALLEST_FLOOR)
    apart = largest_difference(own_gradients, gradients)
    rows = [
        Row("parity", "sampled anchors and proposals", "the same" if same else "others", "the same", same),
        Row("parity", "losses, relative", f"{loss:.1e}", "1e-4", loss <= 1e-4),
        Row("parity", "gradients, relative to the largest entry", f"{apart:.1e}", f"{3 * floor:.1e}, three times "
            "torchvision against itself", apart <= 3 * floor),
    ]  # fmt: skip
    with torch.no_grad(), without_tf32():
        found = ours.eval()([image.to(setup.device) for image in photos[0]])
        reference = theirs.eval()([image.to(setup.device) for image in setup.dense(photos)[0]])
    counts = [(len(a["scores"]), len(b["scores"])) for a, b in zip(found, reference)]
    equal = all(a == b for a, b in counts)
    score = max(((a["scores"] - b["scores"]).abs().max().item() if len(a["scores"]) == len(b["scores"]) > 0 else 0.0)
                for a, b in zip(found, reference))  # fmt: skip
    rows.append(Row("parity", "detections, ranked scores", f"{score:.1e}, {counts}", "1e-3, as many", equal))
    return rows


def outcome(setup: Setup, network: nn.Module, photos: Photos) -> tuple[dict[str, float], Gradients, list[Tensor]]:
    """Losses, gradients and sampled indices (positive and negative together) of one training step."""
    network.train()
    network.zero_grad(set_to_none=True)
    images, targets = on_device(network, *photos, setup.device)
    with recorded_samples(network) as samples:
        torch.manual_seed(1)
        losses = network(images, targets)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in losses.items()}, gradients, samples


@contextmanager
def recorded_samples(network: nn.Module):
    """Context in which the samplers' indices are recorded, of this project's network or of torchvision's."""
    recorded: list[Tensor] = []

    def ours(sampler):
        def sample(labels):
            chosen = sampler(labels)
            both = torch.cat((chosen.positive, chosen.negative)).sort().values.cpu()
            length = labels.shape[1]
            recorded.extend(both[both // length == image] % length for image in range(len(labels)))
            return chosen

        return sample

    def torchvisions(sampler):
        def sample(labels):
            positive, negative = sampler(labels)
            recorded.extend(torch.where(p | n)[0].cpu() for p, n in zip(positive, negative))
            return positive, negative

        return sample

    own = hasattr(network.rpn, "sampler")
    name, wrap = ("sampler", ours) if own else ("fg_bg_sampler", torchvisions)
    owners = (network.rpn, network.roi_heads)
    kept = [getattr(owner, name) for owner in owners]
    for owner, sampler in zip(owners, kept):
        setattr(owner, name, wrap(sampler))
    try:
        yield recorded
    finally:
        for owner, sampler in zip(owners, kept):
            setattr(owner, name, sampler)


def largest_difference(own: Gradients, reference: Gradients) -> float:
    return max(((own[k] - v).abs().max() / v.abs().max().clamp(min=1e-12)).item() for k, v in reference.items())


# --- low precision


def precision(setup: Setup) -> list[Row]:
    photos = setup.load(1 if setup.small else 2)  # a CPU takes many seconds for a step in fp16
    ours, theirs = (network.to(setup.device) for network in setup.networks(photos))
    rows = []
    with torch.no_grad(), without_tf32():
        exact, proposals = losses_and_proposals(setup, theirs, setup.dense(photos))
    bound = 0.2 if setup.small else 0.05  # of one small image with random weights, bf16 changes losses by 3 to 8 %
    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast(setup.device.type, dtype):
            expected, _ = losses_and_proposals(setup, theirs, setup.dense(photos), proposals)
            found, _ = losses_and_proposals(setup, ours, photos, proposals)
        apart, floor = largest_relative(found, expected, 0.05), largest_relative(expected, exact, 0.05)
        name = str(dtype).removeprefix("torch.")
        figure = f"{apart:.1e}; torchvision's from its own in float32 {floor:.1e}"
        check = f"losses in {name} against torchvision's on the same proposals, relative"
        rows.append(Row("precision", check, figure, f"{bound:.0e}", apart <= bound))
    return [*rows, *overflow_rows(setup, ours, photos)]


def largest_relative(losses: dict[str, float], reference: dict[str, float], smallest: float) -> float:
    """Largest difference, relative to the reference's values; those below `smallest` count as that."""
    return max(abs(losses[k] - v) / max(abs(v), smallest) for k, v in reference.items())


def losses_and_proposals(
    setup: Setup, network: nn.Module, photos: Photos, proposals: list[Tensor] | None = None
) -> tuple[dict[str, float], list[Tensor]]:
    """Losses of one training step and the RPN's proposals, or the given ones in their place.

    In low precision rounding decides which proposals remain: with their own, two right networks sample other boxes,
    and their losses cannot be compared.
    """
    images, targets = on_device(network.train(), *photos, setup.device)
    used: list[Tensor] = []

    def after_rpn(_module: nn.Module, _inputs: tuple, output: tuple) -> tuple:
        used.extend(output[0] if proposals is None else proposals)
        return used, output[1]

    hook = network.rpn.register_forward_hook(after_rpn)
    torch.manual_seed(1)
    losses = {name: value.item() for name, value in network(images, targets).items()}
    hook.remove()
    return losses, used


def overflow_rows(setup: Setup, network: nn.Module, photos: Photos) -> list[Row]:
    """fp16 whose first step overflows: the weights stay, and soon a step is applied and all is finite."""
    scaler = torch.amp.GradScaler(setup.device.type, init_scale=FIRST_SCALE)
    training = training_of(setup, network, Precision(setup.device.type, torch.float16), scaler)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    batch, after = Batch(*map(tuple, photos)), 1 if setup.small else STEPS
    first = train_step(training, batch, 1).read()
    same = all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    steps = [train_step(training, batch, i).read().applied for i in range(2, 2 + after)]
    finite = all(bool(v.isfinite().all()) for v in network.state_dict().values() if v.is_floating_point())
    return [
        Row("precision", "fp16 at scale 2^24, first step", "weights unchanged" if same else "weights changed",
            "unchanged, not applied", same and not first.applied),
        Row("precision", f"the {after} steps after it", f"{sum(steps)} applied, {'' if finite else 'NOT '}finite",
            "some applied, finite", finite and (any(steps) or setup.small)),
    ]  # fmt: skip


def training_of(
    setup: Setup, network: nn.Module, how: Precision, scaler: torch.amp.GradScaler | None = None, lr: float = 1e-8
) -> Training:
    network.train()
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = SGD(trainable, lr=lr, momentum=0.9, weight_decay=1e-4, fused=True)
    create_momentum(optimizer)
    return Training(network, network, optimizer, how, setup.device, scaler=scaler or how.scaler())


# --- waits


def waits(setup: Setup) -> list[Row]:
    if not setup.on_cuda:
        return [Row("waits", "of a training step", "only on CUDA; see device_waits.py")]
    photos = setup.load(2)
    pinned = [image.pin_memory() for image in photos[0]], [dict(t, masks=t["masks"].pin_memory()) for t in photos[1]]
    ours, theirs = (network.to(setup.device) for network in setup.networks(photos))
    training = training_of(setup, ours, setup.mixed())
    batch = Batch(*map(tuple, pinned))
    rows = []
    dense = setup.dense(photos)
    optimizer = SGD([p for p in theirs.parameters() if p.requires_grad], lr=1e-5)

    def torchvisions() -> None:
        images, targets = on_device(theirs.train(), *dense, setup.device)
        with setup.mixed().autocast():
            loss = sum(theirs(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for name, run in (("", lambda: train_step(training, batch, 1)), (", torchvision", torchvisions)):
        run()
        lines = waits_by_line(run)
        total = sum(lines.values())
        for line, count in lines.most_common() if not name else ():
            rows.append(Row("waits", line, str(count)))
        bound = {} if name else {"bound": "5, as counted on the CPU", "held": total <= 5}
        rows.append(Row("waits", f"training step of 2{name}", str(total), **bound))
    return rows


def waits_by_line(run: Callable[[], object]) -> Counter[str]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")
    synchronizing = [w for w in caught if "synchroniz" in str(w.message)]
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in synchronizing)


# --- several processes, resuming


def nccl(setup: Setup) -> list[Row]:
    """A group of one process: what the collectives do, and that DDP's gradients are the plain ones."""
    backend = "cpu:gloo,cuda:nccl" if setup.on_cuda else "gloo"
    bound = {"device_id": setup.device} if setup.on_cuda else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, **bound)
        photos = setup.load(1)
        network, _ = setup.networks(photos)
        network.to(setup.device)
        plain = outcome(setup, network, photos)[1]
        parallel = DistributedDataParallel(network, gradient_as_bucket_view=True)
        network.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        sum(parallel(*on_device(network, *photos, setup.device)).values()).backward()
        own = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        apart = largest_difference(own, plain)
        share_buffers(network)
        gathered, sums = gather_objects({"a": 1}), AsyncAllReduce(1, 2).read()
        barrier()
        dist.destroy_process_group()
    said = Counter(str(w.message).splitlines()[0][:90] for w in caught if "synchroniz" not in str(w.message))
    works = gathered == [{"a": 1}] and sums == [1, 2]
    return [
        Row("nccl", "gradients through DDP, relative", f"{apart:.1e}", "1e-4", apart <= 1e-4),
        Row("nccl", "broadcast, gather, sums, barrier", "as expected" if works else "wrong", "as expected", works),
        *(Row("nccl", "warning", f"{count} x {text}") for text, count in said.most_common(5)),
    ]


def resume(setup: Setup) -> list[Row]:
    """4 steps straight, and 2 and 2: the same weights and momentum to the last bit."""
    data = setup.out / "resume_data"
    if not data.exists():
        make_demo_dataset(data, num_train=8, num_val=2)
    common = ["--data-path", str(data), "--device", str(setup.device), "--deterministic", "--batch-size", "2"]
    common += ["--pretrain", "False", "--workers", "0", "--min-size", "96", "--max-size", "128", "--epochs", "1"]
    if setup.on_cuda:
        common += ["--amp"]
    straight, resumed = setup.out / "resume_straight", setup.out / "resume_twice"
    runs = [(straight, "4", "--overwrite"), (resumed, "2", "--overwrite"), (resumed, "4", "--resume")]
    for folder, steps, how in runs:
        words = ["--output-dir", str(folder), "--max-steps", steps, how, *(["auto"] if how == "--resume" else [])]
        run_script("train.py", [*common, *words])
    a, b = (torch.load(folder / "model_0.pth", map_location="cpu", weights_only=True) for folder in (straight, resumed))
    different = [name for name in a["model"] if not torch.equal(a["model"][name], b["model"][name])]
    moments = [state["momentum_buffer"] for state in a["optimizer"]["state"].values()]
    others = [state["momentum_buffer"] for state in b["optimizer"]["state"].values()]
    same = not different and all(torch.equal(x, y) for x, y in zip(moments, others))
    figure = "the same bits" if same else f"{len(different)} tensors differ, {different[:2]}"
    return [Row("resume", "4 steps, and 2 + 2, --deterministic", figure, "the same bits", same)]


def run_script(name: str, words: list[str]) -> None:
    """Run a script of the project in a process of its own, with stand-ins for what is missing there."""
    benchmarks = Path(__file__).resolve().parent
    code = "import sys, runpy; sys.path[:0] = [sys.argv[1], sys.argv[2]]; import stand_ins; stand_ins.install(); "
    code += "sys.argv = sys.argv[3:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    script = str(benchmarks.parent / name)
    command = [sys.executable, "-c", code, str(benchmarks.parent), str(benchmarks), script, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=copy.copy(dict(os.environ)))
    if done.returncode != 0:
        raise RuntimeError(f"{name} {' '.join(words)} ended with {done.returncode}: {done.stderr[-1500:]}")
