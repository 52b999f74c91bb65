"""Train Mask R-CNN on one GPU, or on the CPU.

    python train.py                                       # the demo: draws its own data, ten minutes on two cores
    python train.py --data-path /data/coco2017            # COCO 2017 layout
    python train.py --data-path /data/VOCdevkit --amp     # Pascal VOC 2012 layout, mixed precision
    python train.py --data-path ... --resume auto         # go on where the last run in --output-dir stopped

On several GPUs: torchrun --nproc_per_node=8 train_multi_GPU.py, which runs this same file's `main`.
"""
import sys
from argparse import Namespace

import torch
from torch.nn.parallel import DistributedDataParallel

from train_utils.arguments import DEMO_FOLDER, fill_from_checkpoint, fill_from_recipe, is_demo_path, train_parser
from train_utils.checkpoints import checkpoint_to_resume, make_checkpoint, restore
from train_utils.classes import ClassTable
from train_utils.data import evaluation_loader, num_classes_for, open_split, training_loader
from train_utils.demo_dataset import make_demo_dataset
from train_utils.distributed import barrier, from_main, is_main, mean_over_processes, share_buffers, world_size
from train_utils.engine import Precision, Progress, choose_device, evaluate, learning_rate_schedule, train_one_epoch
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.models import build_training_model
from train_utils.run_folder import RunFolder


def main(args: Namespace) -> None:
    # Arguments
    checkpoint = checkpoint_to_resume(args)
    if checkpoint is not None:
        fill_from_checkpoint(args, checkpoint[1]["args"])
    fill_from_recipe(args, is_demo_path(args.data_path), world_size())
    device = choose_device(args.device)
    precision = Precision.choose(device, args.amp)
    torch.manual_seed(args.seed)

    # Data
    with reading_input():
        if is_demo_path(args.data_path):
            args.data_path = DEMO_FOLDER
            if is_main():
                make_demo_dataset(DEMO_FOLDER)
            barrier()
        train_set = open_split(args.data_path, training=True)
        val_set = open_split(args.data_path, training=False)
    classes = ClassTable.of_dataset(train_set)
    num_classes = num_classes_for(train_set, args.num_classes)
    train_loader = training_loader(
        train_set, args.batch_size, args.aspect_ratio_group_factor, args.workers, args.seed, device.type == "cuda"
    )
    val_loader = evaluation_loader(val_set, batch_size=1, workers=args.workers)
    steps_per_epoch = len(train_loader)

    # Model
    with reading_input():
        model, config = build_training_model(args, num_classes, checkpoint, classes.names)
    if args.sync_bn:
        if device.type != "cuda":
            raise InputError("--sync-bn works between GPUs only; leave it out on the CPU")
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device, memory_format=torch.channels_last)
    parallel = model
    if world_size() > 1:
        parallel = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    # Optimizer
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trainable, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay, fused=True
    )
    progress = Progress(step=args.start_epoch * steps_per_epoch)
    scaler = precision.scaler()
    if checkpoint is not None:
        restore(checkpoint, model, optimizer, scaler, progress, steps_per_epoch)
    schedule = learning_rate_schedule(optimizer, steps_per_epoch, args.lr_steps, args.lr_gamma, progress.step)

    if args.test_only:
        metrics = evaluate(model, val_loader, val_set.coco if is_main() else None, classes, device, precision)
        if is_main():
            print(metrics["bbox"].table("boxes"), metrics["segm"].table("masks"), sep="\n")
        return

    # Results of an epoch
    run = RunFolder.open(args, checkpoint) if is_main() else None

    def evaluate_epoch(epoch: int) -> None:
        share_buffers(model)
        metrics = evaluate(model, val_loader, val_set.coco if is_main() else None, classes, device, precision)
        mean_loss = mean_over_processes(progress.mean_loss(), device)
        if run:
            run.write_results(epoch, metrics, mean_loss, progress.lr)
            run.draw_curves()
            print(summary(epoch, metrics), flush=True)

    # Epochs
    last_step = min(args.epochs * steps_per_epoch, args.max_steps or sys.maxsize)
    if checkpoint is not None and from_main(run and not run.has_results(checkpoint[1]["epoch"])):
        evaluate_epoch(checkpoint[1]["epoch"])  # the run was stopped before it came to that
    while progress.step < last_step:
        epoch = progress.step // steps_per_epoch
        train_one_epoch(
            parallel, optimizer, schedule, scaler, train_loader, device, precision, epoch, progress, run,
            args.print_freq, args.seed, last_step,
        )  # fmt: skip
        if run:
            content = make_checkpoint(
                model, optimizer, schedule, scaler, progress, epoch, steps_per_epoch, args, config, classes
            )
            run.save_checkpoint(epoch, content, args.keep)
        evaluate_epoch(epoch)
    if run:
        run.say_what_next()


def summary(epoch: int, metrics: dict) -> str:
    box, mask = metrics["bbox"].stats, metrics["segm"].stats
    return f"epoch {epoch}: box AP {box[0]:.4f} (AP50 {box[1]:.4f}), mask AP {mask[0]:.4f} (AP50 {mask[1]:.4f})"


if __name__ == "__main__":
    with one_line_errors():
        main(train_parser(multi_gpu=False, description=__doc__).parse_args())
