"""The parts of gpu_check.py with several processes: waits of a step, process groups, SyncBatchNorm, a resumed run."""

import json
import multiprocessing
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from common import on_device
from gpu_network import Gradients, gradient_row, gradients_of, training_of
from gpu_setup import Photos, Row, Setup, bounded, exact, floats_and_dense, without_tf32
from measured_rows import in_child
from torch import Tensor, nn
from torch.optim import SGD

from network_files import MaskRCNN
from train_utils.device import Precision
from train_utils.distributed import (
    AsyncAllReduce,
    all_reduce,
    barrier,
    gather_objects,
    in_parallel,
    share_buffers,
)
from train_utils.engine import Batch, train_step
from train_utils.sync_batch_norm import use_sync_bn

WAITS = 3  # of a training step, whatever the batch: NMS and the two samplers, as counted by device_waits.py


# --- waits


def waits(setup: Setup) -> list[Row]:
    if not setup.on_cuda:
        return [Row("waits", "of a training step", "skipped: only on CUDA; device_waits.py counts without one")]
    rows = []
    for number in (2, 4):
        photos = setup.load(number)
        images, targets = photos
        pinned = [i.pin_memory() for i in images], [dict(t, masks=t["masks"].pin_memory()) for t in targets]
        ours, theirs = (network.to(setup.device) for network in setup.networks(photos))
        training, batch = training_of(setup, ours, setup.mixed()), Batch(*map(tuple, pinned))
        lines = waits_by_line(lambda t=training, b=batch: train_step(t, b, 1))
        total = sum(lines.values())
        rows += [Row("waits", f"batch {number}: {line}", str(count)) for line, count in lines.most_common(8)]
        rows.append(Row("waits", f"training step of {number}", str(total), f"{WAITS}", total <= WAITS))
        peers = sum(waits_by_line(torchvisions_step(setup, theirs, floats_and_dense(photos))).values())
        rows.append(Row("waits", f"training step of {number}, torchvision", str(peers)))
    return rows


def torchvisions_step(setup: Setup, network: nn.Module, photos: Photos) -> Callable[[], None]:
    """A step of torchvision's reference script."""
    network.train().to(setup.device)
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = SGD(trainable, lr=1e-5, momentum=0.9, weight_decay=1e-4)
    scaler = setup.mixed().scaler()

    def step() -> None:
        images, targets = on_device(network, *photos, setup.device)
        with setup.mixed().autocast():
            loss = sum(network(images, targets).values())
        loss.item()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def waits_by_line(run: Callable[[], object]) -> Counter[str]:
    """Count the waits of the second of two calls by line of source."""
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")
    synchronizing = [w for w in caught if "synchroniz" in str(w.message)]
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in synchronizing)


# --- process groups


def groups(setup: Setup) -> list[Row]:
    """Groups of one and two processes with unequal data. Nothing here may use CUDA, or its children could not."""
    if not setup.on_cuda:
        return in_group(setup, "gloo", 2)
    rows = in_group(setup, "cpu:gloo,cuda:nccl", 1)
    pair = in_group(setup, "cpu:gloo,cuda:nccl", 2)
    if len(pair) == 1 and in_child(torch.cuda.device_count) == 1:  # NCCL refuses two processes on one GPU
        reason = f"not possible here: {pair[0].figure}"
        return [*rows, Row("groups", "two processes with NCCL", reason), *in_group(setup, "gloo", 2)]
    return rows + pair


def in_group(setup: Setup, backend: str, world: int) -> list[Row]:
    """Rows of the first of `world` processes; or a single one that failed."""
    context, name = multiprocessing.get_context("fork"), f"{backend.replace(':', '_').replace(',', '_')}_{world}"
    results, store = setup.out / f"group_{name}.json", setup.out / f"group_{name}.store"
    for path in (results, store):
        path.unlink(missing_ok=True)
    arguments = setup, backend, world, store, results
    children = [context.Process(target=member, args=(rank, *arguments)) for rank in range(world)]
    for child in children:
        child.start()
    ends = time.monotonic() + patience(setup)
    for child in children:
        child.join(max(ends - time.monotonic(), 0))
    for child in (c for c in children if c.is_alive()):
        child.kill()
    title = f"{world} process{'es' if world > 1 else ''}, {backend}"
    content = json.loads(results.read_text()) if results.exists() else "ended without a result"
    if isinstance(content, str):
        return [Row("groups", title, content, "as one", False)]
    return [Row("groups", f"{title}: {check}", *others) for _, check, *others in content]


def patience(setup: Setup) -> int:
    """Seconds to wait for a group; on a CPU beside other work it takes longer."""
    return 600 if setup.small else 60


def member(rank: int, setup: Setup, backend: str, world: int, store: Path, results: Path) -> None:
    """Run one process of a group; the first one writes its rows, and whichever fails the reason."""
    torch.set_num_threads(1)
    try:
        bound = {}
        if setup.on_cuda:
            setup.device = torch.device("cuda", rank % torch.cuda.device_count())
            torch.cuda.set_device(setup.device)
            bound = {"device_id": setup.device} if "nccl" in backend else {}
        file = dist.FileStore(str(store), world)
        limit = timedelta(seconds=patience(setup))
        dist.init_process_group(backend, store=file, rank=rank, world_size=world, timeout=limit, **bound)
        rows = group_rows(setup, rank, world)
        barrier()
        if rank == 0:
            results.write_text(json.dumps([[r.part, r.check, r.figure, r.bound, r.held] for r in rows]))
        dist.destroy_process_group()
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        results.write_text(json.dumps(lines[0][:150]))
        sys.stderr.flush()
        raise SystemExit(1) from None


def group_rows(setup: Setup, rank: int, world: int) -> list[Row]:
    photos = share_of(setup.load(world + 1), rank, world)
    network = setup.networks(setup.load(2))[0].to(setup.device, memory_format=torch.channels_last)
    with warnings.catch_warnings(record=True) as caught, without_tf32():
        warnings.simplefilter("always")
        parallel = in_parallel(network, setup.device, fixed_buckets=False)
        expected = {name: all_reduce(g) / world for name, g in gradients(network, network, photos, rank).items()}
        found = gradients(network, parallel, photos, rank)
        training = training_of(setup, network, Precision(setup.device.type, None))
        training.parallel = parallel
        step = train_step(training, Batch(*map(tuple, photos)), 1).read()
    sums = gather_objects(sum(p.double().sum().item() for p in network.parameters()))
    share_buffers(network)
    numbers = AsyncAllReduce(1, rank).read()
    rows = [
        gradient_row("groups", "gradients through DDP of unequal batches", found, expected, 1e-3),
        exact("groups", "weights of all processes after a step", sums is not None and len(set(sums)) == 1),
        exact("groups", "sums over the processes", numbers == [world, sum(range(world))] and step.applied),
        exact("groups", "no warning about strides", not any("stride" in str(w.message) for w in caught), "warned"),
    ]
    return rows + (sync_bn_rows(setup, rank, world) if setup.on_cuda and world > 1 else [])


def share_of(photos: Photos, rank: int, world: int) -> Photos:
    """One photo for the first process and the others for the last, the very last of which has no objects."""
    images, targets = photos
    nothing = torch.zeros(0, dtype=torch.int64)
    last = targets[-1]
    targets[-1] = last | {"boxes": last["boxes"][:0], "labels": nothing, "masks": last["masks"][nothing]}
    chosen = slice(rank, None if rank == world - 1 else rank + 1)
    return images[chosen], targets[chosen]


def gradients(network: MaskRCNN, parallel: nn.Module, photos: Photos, rank: int) -> Gradients:
    network.train().zero_grad(set_to_none=True)
    images, targets = on_device(network, *photos, next(network.parameters()).device)
    torch.manual_seed(rank)
    sum(parallel(images, targets).values()).backward()
    return gradients_of(network)


def sync_bn_rows(setup: Setup, rank: int, world: int) -> list[Row]:
    """SyncBatchNorm over unequal batches against BatchNorm over all images, forward and backward."""
    torch.manual_seed(0)
    images = torch.rand(world + 1, 3, 128, 160, device=setup.device)
    direction = torch.rand(world + 1, 256, 32, 40, device=setup.device)
    chosen = slice(rank, None if rank == world - 1 else rank + 1)
    values = []
    for synced in (True, False):
        network = setup.networks(setup.load(2), "v2")[0].to(setup.device).train()
        if synced:
            use_sync_bn(network, setup.device)
        part = chosen if synced else slice(None)
        features = network.backbone(images[part])["0"]
        (features * direction[part]).sum().backward()
        weight, norm = network.backbone.body.conv1.weight, network.backbone.body.bn1
        gradient = all_reduce(weight.grad) if synced else weight.grad
        values.append((features.detach() if synced else features.detach()[chosen], norm.running_mean, gradient))
    return sync_bn_row(*values)


def sync_bn_row(own: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Row]:
    names = ("features", "running means", "gradients of the first weights")
    apart = [((a - b).norm() / b.norm()).item() for a, b in zip(own, reference)]
    return [bounded("groups", f"SyncBatchNorm, {name}, relative", found, 3e-3) for name, found in zip(names, apart)]


# --- resuming


def resume(setup: Setup) -> list[Row]:
    """4 steps straight, and 2 and 2: the same weights and momentum to the last bit. Each run is a process."""
    common = ["--data-path", str(setup.photos), "--device", str(setup.device), "--deterministic", "--batch-size", "2"]
    common += ["--pretrain", "False", "--workers", "0", "--min-size", "96", "--max-size", "128", "--epochs", "1"]
    common += ["--amp"] if setup.on_cuda else []
    straight, resumed = setup.out / "resume_straight", setup.out / "resume_twice"
    runs = [(straight, "4", ["--overwrite"]), (resumed, "2", ["--overwrite"]), (resumed, "4", ["--resume", "auto"])]
    for folder, steps, how in runs:
        train_in_child([*common, "--output-dir", str(folder), "--max-steps", steps, *how])
    a, b = (torch.load(folder / "model_0.pth", map_location="cpu", weights_only=True) for folder in (straight, resumed))
    different = [name for name in a["model"] if not torch.equal(a["model"][name], b["model"][name])]
    moments, others = (
        [state["momentum_buffer"] for state in content["optimizer"]["state"].values()] for content in (a, b)
    )
    same = not different and all(map(torch.equal, moments, others))
    return [exact("resume", "4 steps, and 2 + 2, --deterministic", same, f"{len(different)} tensors differ")]


def train_in_child(words: list[str]) -> None:
    child = multiprocessing.get_context("fork").Process(target=train_without_evaluation, args=(words,))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"train.py {' '.join(words)} ended with {child.exitcode}")


def train_without_evaluation(words: list[str]) -> None:
    """Run train.py with this command line, but without its evaluation, which may take long and needs hotcoco."""
    import train
    from train_utils.options import TrainSettings

    train.evaluate_epoch = lambda *_, **__: None
    train.main(TrainSettings.parse("", words))
