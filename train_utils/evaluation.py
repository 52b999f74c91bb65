"""Evaluate a network: COCO metrics, and the training losses on the validation images."""

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from tqdm import tqdm

from backbone.conv_norm import fold_norms
from dataset_files.dataset import InstanceDataset
from network_files import MaskRCNN
from network_files.boxes import size_of
from network_files.image_transform import ImageTransform
from train_utils.classes import ClassTable
from train_utils.device import Precision
from train_utils.distributed import AsyncAllReduce, all_reduce, is_main, report_activity, share_buffers
from train_utils.engine import to_device
from train_utils.errors import InputError, naming_batch, warn
from train_utils.loaders import mix_seed
from train_utils.metrics.coco_evaluation import CocoEvaluator, PendingDetections, explain_missing, tables
from train_utils.run.signals import StopSignals
from train_utils.training_state import RunState, Training
from transforms import select_objects

LOSS_NAMES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
REMEDY = "lower --min-size, or --batch-size of validation.py"


def evaluate_only(training: Training, loader: DataLoader, dataset: InstanceDataset, classes: ClassTable) -> None:
    ground_truth = dataset.coco if is_main() else None
    with training.evaluation_weights():
        found = detect_all(training.model, loader, ground_truth, classes, training.device, training.precision)
    if (metrics := found.metrics()) is not None:
        print(tables(metrics))


def evaluate_epoch(
    epoch: int, state: RunState, loader: DataLoader, dataset: InstanceDataset, classes: ClassTable, stop: StopSignals
) -> None:
    """Evaluate on the validation set, and write and print the results. A signal meanwhile ends the run immediately."""
    training, settings, run = state.training, state.settings, state.run
    model, device, precision = training.model, training.device, training.precision
    ground_truth, unreadable = dataset.coco if is_main() else None, list[str]()
    share_buffers(model)
    # The checkpoint is written, and a resumed run repeats the evaluation.
    with stop.at_once(), training.evaluation_weights():
        if training.ema is not None:
            share_buffers(model)  # the averaged ones
        metrics = detect_all(model, loader, ground_truth, classes, device, precision, unreadable).metrics()
        (number,) = AsyncAllReduce(len(unreadable)).read()
        if number > settings.max_bad_pictures or len(dataset) and number == len(dataset):
            raise InputError(
                f"{number} of {len(dataset)} validation images could not be read (named above): no results are "
                "written; fix the data and continue with --resume auto, which evaluates again"
            )
        losses = dict[str, float]()
        if settings.val_loss:
            losses = validation_losses(training, loader, settings.keep_empty)
    if metrics is not None:
        if losses:
            of_epoch = {"epoch": epoch, "step": training.progress.step}
            run.log(of_epoch | {f"val_{name}": round(value, 7) for name, value in losses.items()})
        run.write_results(epoch, metrics, training.progress.mean_loss(), training.progress.lr)
        run.draw_curves()
        (box, box_all), (mask, mask_all) = ((metrics[kind].stats, metrics[kind].of_all) for kind in ("bbox", "segm"))
        line = f"epoch {epoch}: box AP {box[0]:.4f} (AP50 {box[1]:.4f}), mask AP {mask[0]:.4f} (AP50 {mask[1]:.4f})"
        if box_all is not None and mask_all is not None:
            line += (
                f"; with up to {box_all.most} detections per image: box AP {box_all.ap:.4f}, recall "
                f"{box_all.recall:.4f}, mask AP {mask_all.ap:.4f}, recall {mask_all.recall:.4f}"
            )
        line += f"; validation loss {losses['loss']:.4f}" if losses else ""
        print(line + (f"\n{explain_missing(box)}" if box[0] == -1 else ""), flush=True)


@torch.inference_mode()
def detect_all(
    model: MaskRCNN, loader: DataLoader, ground_truth: Any, classes: ClassTable, device: torch.device,
    precision: Precision, unreadable: list[str] | None = None,
) -> CocoEvaluator:  # fmt: skip
    """Detect objects in this process's share of the images. Return an evaluator, which computes COCO metrics.

    `unreadable` collects messages about unreadable images, which then count as images without detections. Without that
    list, an unreadable image raises InputError.
    """
    network = ready_for_inference(model, precision)
    evaluator = CocoEvaluator(ground_truth, classes, model.continuous_paste)
    # New threads use GPU 0; without this every process would create a context there.
    own_gpu = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    with ThreadPoolExecutor(max_workers=1, initializer=own_gpu) as coder:
        coding: Future | None = None
        for images, targets in tqdm(loader, desc="evaluation", unit="batch", disable=None if is_main() else True):
            report_activity("evaluating")
            for message in [message for target in targets for message in target.get("unreadable", ())]:
                if unreadable is None:
                    raise InputError(message)
                unreadable.append(message)
                warn(f"{message}; it counts as an image without detections")
            images = [image for image in images if image is not None]
            ids = [target["image_id"] for target in targets if "unreadable" not in target]
            if not images:
                continue
            with precision.autocast(), naming_batch(images, REMEDY):
                found = PendingDetections(network.detect(to_device(images, device)))
            if coding is not None:
                coding.result()  # keep at most one batch waiting
            coding = coder.submit(evaluator.update_batch, ids, [size_of(image) for image in images], found)
        if coding is not None:
            coding.result()
    if unreadable and len(unreadable) == len(loader.dataset):  # type: ignore[arg-type]  # it has a length
        raise InputError(f"{unreadable[0]}; none of the {len(unreadable)} images can be evaluated")
    report_activity("gathering")
    return evaluator


def ready_for_inference(model: MaskRCNN, precision: Precision) -> MaskRCNN:
    """Return a copy of the network for inference: BatchNorm folded into convolutions, weights cast to `precision`."""
    network = copy.deepcopy(model).eval()
    fold_norms(network)
    if precision.dtype is not None:
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                module.to(precision.dtype)
    return network


@torch.no_grad()
def validation_losses(training: Training, loader: DataLoader, with_empty: bool) -> dict[str, float]:
    """Return the mean of each training loss over the images of all processes, and the sum of these means as "loss".

    The losses are computed as in training, but with BatchNorm's running statistics and at the image size of evaluation.
    The random samples depend on seed and images only, and the random state of the training is restored. `with_empty`
    includes images without objects, as --keep-empty does. If there are no images, the result is {}.
    """
    network, device = copy.deepcopy(training.model).train(), training.device
    for module in network.modules():
        if isinstance(module, _BatchNorm | ImageTransform):
            module.eval()
    sums = torch.zeros(len(LOSS_NAMES) + 1, dtype=torch.float64)  # sums of the losses, and the number of images
    bar = tqdm(loader, desc="validation loss", unit="batch", disable=None if is_main() else True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for images, targets in bar:
            report_activity("computing the validation loss")
            kept = []  # without the objects that training ignores: crowds, and objects without a box
            for image, target in zip(images, targets):
                if "unreadable" not in target:
                    has_box = (target["boxes"][:, 2:] > target["boxes"][:, :2]).all(dim=1)
                    target = select_objects(target, (target["iscrowd"] == 0) & has_box)
                    kept += [(image, target)] if with_empty or len(target["labels"]) else []
            if not kept:
                continue
            images, targets = zip(*kept)
            torch.manual_seed(mix_seed(training.seed, *(abs(target["image_id"]) for target in targets)))
            with training.precision.autocast(), naming_batch(images, REMEDY):
                losses = network.losses(to_device(images, device), targets)
            values = torch.stack([losses[name].double() for name in LOSS_NAMES]).cpu()
            sums += len(kept) * torch.cat((values, values.new_ones(1)))
    *totals, count = all_reduce(sums.to(device)).tolist()
    means = {name: total / count for name, total in zip(LOSS_NAMES, totals) if count}
    return {"loss": sum(means.values()), **means} if means else {}
