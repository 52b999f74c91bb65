"""Train Mask R-CNN on one GPU, or on the CPU.

    python train.py                                       # the demo: draws its own data, ten minutes on two cores
    python train.py --data-path /data/coco2017            # COCO 2017 layout
    python train.py --data-path /data/VOCdevkit --amp     # Pascal VOC 2012 layout, mixed precision
    python train.py --data-path ... --resume auto         # go on where the last run in --output-dir stopped

On several GPUs: torchrun --nproc_per_node=8 train_multi_GPU.py, which runs this same file's `main`.
"""
import sys
from argparse import Namespace
from pathlib import Path

import torch

from train_utils.classes import ClassTable
from train_utils.demo_dataset import make_demo_dataset
from train_utils.distributed import barrier, from_main, here, in_parallel, is_main, on_main, share_buffers, world_size
from train_utils.engine import (
    Precision,
    Progress,
    Training,
    choose_device,
    evaluate,
    learning_rate_schedule,
    require_finite_weights,
    set_schedule,
    train_one_epoch,
    use_deterministic_algorithms,
)
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.loaders import evaluation_loader, fingerprint, num_classes_for, training_loader
from train_utils.models import build_training_model
from train_utils.open_data import open_checked
from train_utils.options import DEMO_FOLDER, fill_from_checkpoint, fill_from_recipe, is_demo_path, train_parser
from train_utils.run.checkpoints import make_checkpoint, restore
from train_utils.run.folder_lock import FolderLock
from train_utils.run.resuming import arithmetic, check_settings, checkpoint_to_resume
from train_utils.run.run_folder import RunFolder
from train_utils.run.signals import StopSignals


def main(args: Namespace) -> None:
    # Arguments
    lock = None if args.test_only else on_main(lambda: FolderLock(Path(args.output_dir)))
    checkpoint = checkpoint_to_resume(args)
    if checkpoint is not None:
        fill_from_checkpoint(args, checkpoint.content["args"])
    fill_from_recipe(args, is_demo_path(args.data_path), world_size())
    device = choose_device(args.device)
    precision = Precision.choose(device, args.amp)
    if args.deterministic:
        use_deterministic_algorithms()
    torch.manual_seed(args.seed)

    # Data
    with reading_input():
        if is_demo_path(args.data_path):
            args.data_path = DEMO_FOLDER
            on_main(lambda: make_demo_dataset(DEMO_FOLDER))
    train_set, val_set = open_checked(args.data_path, (True, False), args.skip_bad)
    classes = ClassTable.of_dataset(train_set)
    num_classes = num_classes_for(train_set, args.num_classes)
    train_loader = training_loader(
        train_set, args.batch_size, args.aspect_ratio_group_factor, args.workers, args.seed, device.type == "cuda"
    )
    val_loader = evaluation_loader(val_set, batch_size=1, workers=args.workers)
    steps_per_epoch = len(train_loader)
    facts = {"data": fingerprint(train_set), "processes": world_size()}

    # Model
    with reading_input():
        model, config = build_training_model(args, num_classes, checkpoint, classes.names)
    if args.sync_bn:
        if device.type != "cuda":
            raise InputError("--sync-bn works between GPUs only; leave it out on the CPU")
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device, memory_format=torch.channels_last)

    # Optimizer
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trainable, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay, fused=True
    )
    schedule = learning_rate_schedule(optimizer, steps_per_epoch, args.lr_steps, args.lr_gamma)
    progress = Progress(step=args.start_epoch * steps_per_epoch)
    set_schedule(schedule, progress.step)
    training = Training(model, optimizer, schedule, precision.scaler(), progress, precision, device, args.seed)
    if checkpoint is not None:
        if not args.test_only:
            check_settings(checkpoint, args, facts)
        restore(checkpoint, training, steps_per_epoch, args.force or args.test_only)
    training.parallel = in_parallel(model, device, args.deterministic)

    if args.test_only:
        metrics = evaluate(model, val_loader, val_set.coco if is_main() else None, classes, device, precision)
        if is_main():
            print(metrics["bbox"].table("boxes"), metrics["segm"].table("masks"), sep="\n")
        return

    # Results
    last_step = min(args.epochs * steps_per_epoch, args.max_steps or sys.maxsize)
    run = on_main(lambda: RunFolder.open(args, checkpoint, goes_on=progress.step < last_step, lock=lock))

    def save_checkpoint() -> None:
        here("writing a checkpoint", progress.step)
        require_finite_weights(model, progress.step)
        if run:
            content = make_checkpoint(
                training, steps_per_epoch, args, config, classes, facts, arithmetic(args.device)
            )
            run.save_checkpoint(content, last=progress.step == last_step, keep=args.keep)

    def evaluate_epoch(epoch: int) -> None:
        share_buffers(model)
        with stop.at_once():  # the checkpoint is there, and a resumed run makes up for the results
            metrics = evaluate(
                model, val_loader, val_set.coco if is_main() else None, classes, device, precision, unreadable=[]
            )
        if run:
            run.write_results(epoch, metrics, progress.mean_loss(), progress.lr)
            run.draw_curves()
            print(summary(epoch, metrics), flush=True)

    # Epochs
    with StopSignals() as stop:
        if checkpoint is not None and (progress.step % steps_per_epoch == 0 or progress.step >= last_step):
            if from_main(run and not run.has_results(checkpoint.content["epoch"])):
                evaluate_epoch(checkpoint.content["epoch"])  # the run was stopped before it came to that
        while progress.step < last_step:
            epoch = progress.step // steps_per_epoch
            stopped = train_one_epoch(
                training, train_loader, epoch, last_step, run, save_checkpoint, stop,
                args.max_bad_steps, args.max_bad_pictures, args.checkpoint_every, args.print_freq,
            )  # fmt: skip
            save_checkpoint()
            if stopped:
                barrier()  # no process leaves while the main one writes
                on_main(lambda: run.require_saved())
                stop.end()
            evaluate_epoch(epoch)
    if run:
        if run.unsaved_since is not None:
            save_checkpoint()
        run.finish()


def summary(epoch: int, metrics: dict) -> str:
    box, mask = metrics["bbox"].stats, metrics["segm"].stats
    return f"epoch {epoch}: box AP {box[0]:.4f} (AP50 {box[1]:.4f}), mask AP {mask[0]:.4f} (AP50 {mask[1]:.4f})"


if __name__ == "__main__":
    with one_line_errors():
        main(train_parser(multi_gpu=False, description=__doc__).parse_args())
