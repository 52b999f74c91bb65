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

from train_utils.augmentation import training_transforms
from train_utils.classes import ClassTable
from train_utils.data_check import num_classes_for
from train_utils.demo_dataset import make_demo_dataset
from train_utils.device import Precision, choose_device
from train_utils.distributed import barrier, in_parallel, process_group, run_on_main, world_size
from train_utils.engine import train_one_epoch
from train_utils.errors import one_line_errors, reading_input
from train_utils.evaluation import evaluate_epoch, evaluate_only
from train_utils.loaders import evaluation_loader, fingerprint, training_loader
from train_utils.model_ema import ModelEma
from train_utils.models import build_training_model
from train_utils.open_data import held_out_images, open_training_data
from train_utils.optimizer import build_optimizer
from train_utils.options import DEMO_FOLDER, TrainSettings
from train_utils.run.checkpoints import checkpoint_to_resume, resume, write_checkpoint
from train_utils.run.first_lines import print_first_lines
from train_utils.run.run_folder import RunFolder
from train_utils.run.safe_files import lock_folder
from train_utils.run.signals import StopSignals
from train_utils.run.tensorboard import TensorBoard
from train_utils.step_log import StepLog
from train_utils.sync_batch_norm import use_sync_bn
from train_utils.training_state import Progress, RunState, Training, call_hooks, load_hooks
from train_utils.visual.sheets import PredictionSheets, write_batch_sheet


def main(settings: TrainSettings) -> None:
    # Settings
    only_looks = settings.test_only or settings.show_batch
    folder = Path(settings.output_dir)
    lock = None if only_looks else run_on_main(lambda: lock_folder(folder) if folder.is_dir() else None)
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
    train_loader = training_loader(train_set, settings, pin_memory=device.type == "cuda")
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
    opened = run_on_main(lambda: RunFolder.open(settings, checkpoint, progress.step < last_step, lock))
    run = opened or RunFolder(settings.output_dir, writes=False)
    state = RunState(training, settings, run, steps_per_epoch, last_step, progress.step)
    print_first_lines(state, train_set, len(val_set))
    hooks = [StepLog(), PredictionSheets(val_set, classes), *optional_hooks]
    save_checkpoint = partial(write_checkpoint, state, config, classes, facts)

    # Epochs
    with StopSignals() as stop:
        call_hooks(hooks, "before_train", state)
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
    call_hooks(hooks, "after_train", state)
    run.finish(settings.patience if progress.step < last_step else None)


if __name__ == "__main__":
    with one_line_errors():
        settings = TrainSettings.parse(__doc__)
        with process_group(settings):
            main(settings)
