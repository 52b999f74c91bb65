"""Train Mask R-CNN on one GPU, on several, or on the CPU.

python train.py                                       # demo on generated data, ten minutes on two cores
python train.py --data-path /data/coco2017            # COCO 2017 layout
python train.py --data-path /data/VOCdevkit --amp     # Pascal VOC 2012 layout, mixed precision
python train.py --data-path ... --resume auto         # continue where the last run in --output-dir stopped
torchrun --nproc_per_node=8 train.py --data-path ...  # on eight GPUs, one process each; so does train_multi_GPU.py
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dataset_files.dataset import InstanceDataset
from train_utils.augmentation import batch_transform, training_transforms
from train_utils.classes import ClassTable
from train_utils.data_check import num_classes_for
from train_utils.demo_dataset import make_demo_dataset
from train_utils.device import Precision, choose_device
from train_utils.distributed import (
    barrier,
    in_parallel,
    is_main,
    process_group,
    run_on_main,
    share_buffers,
    world_size,
)
from train_utils.engine import train_one_epoch
from train_utils.errors import one_line_errors, reading_input
from train_utils.evaluation import evaluate, require_readable, validation_losses
from train_utils.hooks import Hooks, load_hooks
from train_utils.loaders import evaluation_loader, fingerprint, training_loader
from train_utils.metrics.coco_evaluation import explain_missing, tables
from train_utils.model_ema import ModelEma
from train_utils.models import build_training_model
from train_utils.open_data import held_out_images, open_training_data
from train_utils.optimizer import build_optimizer
from train_utils.options import DEMO_FOLDER, TrainSettings
from train_utils.run.checkpoints import write_checkpoint
from train_utils.run.first_lines import print_first_lines
from train_utils.run.folder_lock import FolderLock
from train_utils.run.resuming import checkpoint_to_resume, resume
from train_utils.run.run_folder import RunFolder
from train_utils.run.signals import StopSignals
from train_utils.run.tensorboard import TensorBoard
from train_utils.step_log import StepLog
from train_utils.sync_batch_norm import use_sync_bn
from train_utils.training_state import Progress, RunState, Training
from train_utils.visual.sheets import PredictionSheets, write_batch_sheet


def main(settings: TrainSettings) -> None:
    # Settings
    only_looks = settings.test_only or settings.show_batch
    lock = None if only_looks else run_on_main(lambda: FolderLock.of_existing(Path(settings.output_dir)))
    checkpoint = checkpoint_to_resume(settings)
    settings.resolve(world_size(), checkpoint.content["args"] if checkpoint else None)
    device = choose_device(settings.device, settings.deterministic)
    precision = Precision.choose(device, settings.amp)
    torch.manual_seed(settings.seed)
    augmentation = training_transforms(settings)
    optional_hooks = [*([TensorBoard()] if settings.tensorboard else []), *load_hooks(settings.hooks)]

    # Data
    if settings.is_demo():
        settings.data_path = DEMO_FOLDER
        run_on_main(lambda: make_demo_dataset(DEMO_FOLDER))
    held_out = checkpoint.content.get("facts", {}).get("held_out") if checkpoint else None
    train_set, val_set = open_training_data(settings, settings.seed, settings.detections, held_out)
    train_set.transforms = augmentation
    classes = ClassTable.of_dataset(train_set)
    train_loader = training_loader(
        train_set, settings.images_per_step(), settings.aspect_ratio_group_factor, settings.workers, settings.seed,
        device.type == "cuda", batch_transform(settings), settings.repeat_threshold,
    )  # fmt: skip
    val_loader = evaluation_loader(val_set, batch_size=None, workers=settings.workers, device=device)
    steps_per_epoch = len(train_loader)
    facts = {"data": fingerprint(train_set), "validation": fingerprint(val_set), "processes": world_size()}
    facts["held_out"] = held_out_images(train_set, val_set)
    if settings.show_batch:
        return write_batch_sheet(train_loader, train_set, settings, classes.names)

    # Model
    with reading_input():
        num_classes = num_classes_for(train_set, settings.num_classes)
        model, config = build_training_model(settings, num_classes, checkpoint, classes.names, train_set)
    if settings.sync_bn:
        use_sync_bn(model, device)
    model.to(device).to(memory_format=torch.channels_last)

    # Optimizer
    training = Training(
        model, in_parallel(model, device, settings.deterministic), build_optimizer(model, settings), precision, device,
        settings.seed, settings.accumulate, settings.clip_grad_norm, Progress(settings.start_epoch * steps_per_epoch),
        ModelEma.of_run(model, settings, steps_per_epoch),
    )  # fmt: skip
    if checkpoint is not None:
        resume(checkpoint, training, settings, facts, steps_per_epoch)
    if settings.test_only:
        return evaluate_only(training, val_loader, val_set, classes)

    # Results
    progress = training.progress
    last_step = min(settings.epochs * steps_per_epoch, settings.max_steps or sys.maxsize)
    run = RunFolder.open(settings, checkpoint, continues=progress.step < last_step, lock=lock)
    state = RunState(training, settings, run, steps_per_epoch, last_step, progress.step)
    print_first_lines(state, train_set, len(val_set))
    hooks = Hooks(StepLog(), PredictionSheets(val_set, classes), *optional_hooks)
    save_checkpoint = partial(write_checkpoint, state, config, classes, facts)

    # Epochs
    with StopSignals() as stop:
        hooks.call("before_train", state)
        if checkpoint is not None and (progress.step % steps_per_epoch == 0 or progress.step >= last_step):
            if run.lacks_results(checkpoint.content["epoch"]):  # the run was stopped before this evaluation
                evaluate_epoch(checkpoint.content["epoch"], state, val_loader, val_set, classes, stop)
        while progress.step < last_step and not run.has_stalled(settings.patience):
            stopped = train_one_epoch(state, train_loader, hooks, save_checkpoint, stop)
            save_checkpoint()
            if stopped:
                barrier()  # no process exits while the main one writes
                run.require_saved()
                stop.end()
            evaluate_epoch(state.epoch_of(progress.step), state, val_loader, val_set, classes, stop)
    if run.unsaved_since is not None:
        save_checkpoint()
    hooks.call("after_train", state)
    run.finish(settings.patience if progress.step < last_step else None)


def evaluate_only(training: Training, val_loader: DataLoader, val_set: InstanceDataset, classes: ClassTable) -> None:
    """Print the metrics of --test-only."""
    ground_truth = val_set.coco if is_main() else None
    with training.evaluated():
        metrics = evaluate(training.model, val_loader, ground_truth, classes, training.device, training.precision)
    if metrics is not None:
        print(tables(metrics))


def evaluate_epoch(
    epoch: int,
    state: RunState,
    val_loader: DataLoader,
    val_set: InstanceDataset,
    classes: ClassTable,
    stop: StopSignals,
) -> None:
    """Evaluate on the validation set, and write and print the results; a signal ends the run immediately."""
    training, settings, run = state.training, state.settings, state.run
    model, device, precision = training.model, training.device, training.precision
    share_buffers(model)
    ground_truth = val_set.coco if is_main() else None
    with stop.at_once(), training.evaluated():  # the checkpoint is written, and a resumed run repeats the evaluation
        if training.ema is not None:
            share_buffers(model)  # the averaged ones
        unreadable: list[str] = []
        metrics = evaluate(model, val_loader, ground_truth, classes, device, precision, unreadable)
        require_readable(len(unreadable), len(val_set), settings.max_bad_pictures)
        losses = dict[str, float]()
        if settings.val_loss:
            losses = validation_losses(model, val_loader, device, precision, settings.seed, settings.keep_empty)
    if metrics is not None:
        run.log_validation(epoch, training.progress.step, losses)
        run.write_results(epoch, metrics, training.progress.mean_loss(), training.progress.lr)
        run.draw_curves()
        print(summary(epoch, metrics, losses), flush=True)


def summary(epoch: int, metrics: dict, losses: dict[str, float]) -> str:
    box, mask = metrics["bbox"].stats, metrics["segm"].stats
    line = f"epoch {epoch}: box AP {box[0]:.4f} (AP50 {box[1]:.4f}), mask AP {mask[0]:.4f} (AP50 {mask[1]:.4f})"
    box_all, mask_all = metrics["bbox"].of_all, metrics["segm"].of_all
    if box_all is not None and mask_all is not None:
        line += (
            f"; with up to {box_all.most} detections per image: box AP {box_all.ap:.4f}, recall {box_all.recall:.4f}, "
            f"mask AP {mask_all.ap:.4f}, recall {mask_all.recall:.4f}"
        )
    line += f"; validation loss {losses['loss']:.4f}" if losses else ""
    return line + (f"\n{explain_missing(box)}" if box[0] == -1 else "")


if __name__ == "__main__":
    with one_line_errors():
        settings = TrainSettings.parse(__doc__)
        with process_group(settings):
            main(settings)
