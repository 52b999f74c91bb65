"""The command lines of the four scripts, and the two recipes that fill in what is not given."""
import argparse
import sys
from pathlib import Path

DEMO_FOLDER = "demo_data"
OUTPUT_FOLDER = "save_weights"

# What both recipes share.
COMMON = {
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "aspect_ratio_group_factor": 3,
    "seed": 0,
    "num_classes": None,
    "sync_bn": False,
    "deterministic": False,
    "checkpoint_every": None,
    "skip_bad": False,
}
# Mask R-CNN's usual schedule on COCO or VOC; the learning rate is per image of the total batch.
FULL_RECIPE = COMMON | {
    "epochs": 26,
    "batch_size": 4,
    "lr_per_image": 0.001,
    "lr_steps": [16, 22],
    "lr_gamma": 0.1,
    "min_size": 800,
    "max_size": 1333,
    "rois_per_image": 512,
    "proposals": None,
    "pretrain": True,
    "amp": False,
    "keep": None,
}
# From scratch on the small drawn pictures, within ten minutes on two CPU cores.
DEMO_RECIPE = COMMON | {
    "epochs": 6,
    "batch_size": 5,
    "lr_per_image": 0.004,
    "lr_steps": [4, 5],
    "lr_gamma": 0.3,
    "min_size": 128,
    "max_size": 160,
    "rois_per_image": 32,
    "proposals": 300,
    "pretrain": False,
    "amp": True,
    "keep": 2,
}


class Parser(argparse.ArgumentParser):
    """Takes every long option with `-` and with `_` in its name."""

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([dashed(a) for a in args], namespace)


def dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, separator, value = argument.partition("=")
    return name.replace("_", "-") + separator + value


def boolean(text: str) -> bool:
    """`True`, `false`, `1`, `no`, ... as a bool."""
    if text.lower() in ("true", "t", "yes", "y", "on", "1"):
        return True
    if text.lower() in ("false", "f", "no", "n", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")


def boolean_or_path(text: str) -> bool | str:
    try:
        return boolean(text)
    except argparse.ArgumentTypeError:
        return text


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is below 0")
    return value


def add_flag(parser: argparse.ArgumentParser, name: str, help: str, default: bool | None = False) -> None:
    """An option that is given bare or with True or False."""
    parser.add_argument(name, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help)


def add_arch(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--arch", choices=("v1", "v2"), help="the network of torchvision's maskrcnn_resnet50_fpn, or that of "
        f"maskrcnn_resnet50_fpn_v2 with BatchNorm in FPN and heads (default: {default})",
    )  # fmt: skip


def add_skip_bad(parser: argparse.ArgumentParser, default: bool | None) -> None:
    add_flag(parser, "--skip-bad", "leave out pictures and annotations that would make results wrong, and say how many "
             "these are, instead of stopping", default)  # fmt: skip


def train_parser(multi_gpu: bool, description: str) -> Parser:
    """Options of train.py, and with `multi_gpu` those of train_multi_GPU.py besides."""
    p = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data-path", help=f"COCO or VOC folder; without it the demo dataset, drawn into {DEMO_FOLDER}/")
    p.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda, else cpu with a warning)")
    p.add_argument("--num-classes", type=positive, help="without background (default: from the data; COCO 90, VOC 20)")
    p.add_argument("--output-dir", default=OUTPUT_FOLDER, help="weights, results, curves (default: %(default)s)")
    p.add_argument("--resume", default="", help="checkpoint to go on from; 'auto': the newest in --output-dir, if any")
    add_flag(p, "--force", "resume although settings differ that change what the run means")
    add_flag(p, "--overwrite", "start anew in an --output-dir that holds a run, whose files are deleted")
    p.add_argument("--start-epoch", type=natural, default=0, help="number of a new run's first epoch (default: 0)")
    p.add_argument("--epochs", type=positive, help="(default: 26, demo 6)")
    p.add_argument("--max-steps", type=positive, help="stop cleanly after this many optimizer steps in all")
    p.add_argument("-b", "--batch-size", type=positive, help="images a step and process (default: 4, demo 5)")
    p.add_argument("-j", "--workers", type=natural, help="loader processes (default: by the number of cores)")
    p.add_argument("--lr", type=float, help="learning rate (default: 0.001 an image of the total batch, demo 0.004)")
    p.add_argument("--momentum", type=float, help="of SGD (default: 0.9)")
    p.add_argument("--wd", "--weight-decay", dest="weight_decay", type=float, help="(default: 1e-4)")
    p.add_argument("--lr-steps", type=int, nargs="+", help="epochs at which the rate drops (default: 16 22, demo 4 5)")
    p.add_argument("--lr-gamma", type=float, help="factor of a drop (default: 0.1, demo 0.3)")
    p.add_argument("--aspect-ratio-group-factor", type=int, help="shape groups of a batch (default: 3); below 1: none")
    p.add_argument(
        "--pretrain",
        type=boolean_or_path,
        nargs="?",
        const=True,
        metavar="True|False|FILE",
        help="start from published weights: maskrcnn_resnet50_fpn_coco.pth, else resnet50.pth, else downloaded; "
        "or from a file (default: True, demo False)",
    )
    add_arch(p, "told by the weights, else v1")
    p.add_argument("--trainable-backbone-layers", type=int, choices=range(6), help="(default: 3; 5 from scratch)")
    p.add_argument(
        "--norm", choices=("batch", "frozen"), help="backbone's BatchNorm (default: batch; frozen if v1 and pretrained)"
    )
    add_flag(p, "--amp", "mixed precision: bf16, or fp16 where a GPU lacks it", default=None)
    p.add_argument("--min-size", type=positive, help="short side of the network's input (default: 800, demo 128)")
    p.add_argument("--max-size", type=positive, help="long side's limit (default: 1333, demo 160)")
    p.add_argument("--rois-per-image", type=positive, help="proposals an image for the heads (default: 512, demo 32)")
    p.add_argument(
        "--proposals",
        type=positive,
        help="boxes an image that the RPN keeps (default: 2000 in training, 1000 in evaluation; demo 300)",
    )
    p.add_argument("--checkpoint-every", type=positive, help="also write a checkpoint after every so many steps")
    p.add_argument("--keep", type=positive, help="delete all checkpoints but the newest N (default: none, demo 2)")
    p.add_argument("--print-freq", type=positive, default=20, help="steps between two log lines (default: %(default)s)")
    p.add_argument("--seed", type=natural, help="(default: 0)")
    add_flag(p, "--deterministic", "the same bits in every run, also on CUDA and in many processes", default=None)
    p.add_argument(
        "--max-bad-steps", type=positive, default=10, help="stop after so many losses in a row that are not finite "
        "(default: %(default)s); such steps are not applied",
    )  # fmt: skip
    p.add_argument(
        "--max-bad-pictures", type=natural, default=100, help="stop when more pictures than that could not be read in "
        "an epoch (default: %(default)s); others take their place",
    )  # fmt: skip
    add_skip_bad(p, default=None)
    add_flag(p, "--test-only", "only evaluate what --resume or --pretrain names")
    if multi_gpu:
        p.add_argument("--lr-step-size", type=positive, help="drop the rate every so many epochs, unless --lr-steps")
        add_flag(p, "--sync-bn", "BatchNorm over the batches of all processes", default=None)
        p.add_argument("--world-size", type=positive, default=1, help="processes in all, where torchrun does not say")
        p.add_argument("--dist-url", default="env://", help="where processes meet (default: what torchrun says)")
        p.add_argument(
            "--timeout", type=positive, default=600, help="seconds after which a process that stands still ends "
            "the run (default: %(default)s)",
        )  # fmt: skip
    else:
        p.set_defaults(lr_step_size=None, sync_bn=None)
    return p


def validation_parser(description: str) -> Parser:
    p = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--weights-path", help="checkpoint, or torchvision's or Detectron2's weights "
        f"(default: newest in {OUTPUT_FOLDER}/)",
    )  # fmt: skip
    p.add_argument("--data-path", help="COCO or VOC folder (default: the one that the checkpoint was trained on)")
    add_skip_bad(p, default=False)
    p.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda, else cpu with a warning)")
    add_arch(p, "told by the weights")
    p.add_argument("--num-classes", type=positive, help="without background (default: from the checkpoint)")
    p.add_argument("-b", "--batch-size", type=positive, default=1, help="images a step (default: %(default)s)")
    p.add_argument("-j", "--workers", type=natural, help="loader processes (default: by the number of cores)")
    p.add_argument("--label-json-path", help="JSON with the class names, label -> name or name -> label")
    p.set_defaults(world_size=1, dist_url="env://", timeout=1800)
    p.add_argument("--output-dir", help="where record_mAP.txt goes (default: beside the weights)")
    p.add_argument("--results-json", help="score these detections, in COCO's results format, instead of a network's")
    p.add_argument("--annotation-file", help="with --results-json: the ground truth, in COCO's annotation format")
    p.add_argument("--iou-type", choices=("bbox", "segm"), help="with --results-json: what is compared (default: bbox)")
    add_flag(p, "--amp", "mixed precision (default: as in training)", default=None)
    p.add_argument("--min-size", type=positive, help="short side of the network's input (default: as in training)")
    p.add_argument("--max-size", type=positive, help="long side's limit (default: as in training)")
    return p


def predict_parser(description: str) -> Parser:
    p = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--weights-path", help="checkpoint, or torchvision's or Detectron2's weights "
        f"(default: newest in {OUTPUT_FOLDER}/)",
    )  # fmt: skip
    p.add_argument(
        "--img-path", nargs="+", action="extend", help="picture or folder of pictures, any number (default: one of "
        "the validation set that the checkpoint was trained with)",
    )  # fmt: skip
    p.add_argument("--output-dir", default="predictions", help="drawn pictures and JSON (default: %(default)s)")
    p.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda, else cpu with a warning)")
    add_arch(p, "told by the weights")
    p.add_argument("--num-classes", type=positive, help="without background (default: from the checkpoint)")
    p.add_argument("--label-json-path", help="JSON with the class names, label -> name or name -> label")
    p.add_argument("--box-thresh", type=float, default=0.5, help="lowest score that is shown (default: %(default)s)")
    p.add_argument("--mask-thresh", type=float, default=0.5, help="lowest probability of an object's pixel (0.5)")
    add_flag(p, "--save-json", "also write the detections as predictions.json, in COCO's results format")
    add_flag(p, "--amp", "mixed precision (default: as in training)", default=None)
    p.add_argument("--min-size", type=positive, help="short side of the network's input (default: as in training)")
    p.add_argument("--max-size", type=positive, help="long side's limit (default: as in training)")
    return p


def fill_from_checkpoint(args: argparse.Namespace, trained_with: dict) -> None:
    """Give every option that was not given the value of the run that is resumed, in place."""
    for name in ("data_path", "lr", *FULL_RECIPE):
        if getattr(args, name, 0) is None and name in trained_with and not (name == "lr_steps" and args.lr_step_size):
            setattr(args, name, trained_with[name])


def fill_from_recipe(args: argparse.Namespace, is_demo: bool, world_size: int) -> None:
    """Give every option that was not given its recipe's value, in place."""
    recipe = dict(DEMO_RECIPE if is_demo else FULL_RECIPE)
    lr_per_image = recipe.pop("lr_per_image")
    for name, value in recipe.items():
        if name != "lr_steps" and getattr(args, name) is None:
            setattr(args, name, value)
    if args.lr is None:
        args.lr = lr_per_image * args.batch_size * world_size
    if args.lr_steps is None:
        args.lr_steps = recipe["lr_steps"]
        if args.lr_step_size:
            args.lr_steps = list(range(args.lr_step_size, args.epochs, args.lr_step_size))


def is_demo_path(data_path: str | None) -> bool:
    return data_path is None or Path(data_path).resolve() == Path(DEMO_FOLDER).resolve()
