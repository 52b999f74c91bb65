"""Options of training and validation, each with its name, type, defaults, help, and role in a resumed run.

The options of predictions are in prediction/options.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_files.stored_images import MOST_CHANNELS, ImageForm
from train_utils.option_parsing import (
    KEPT,
    RESULT,
    SAME,
    START,
    Settings,
    boolean_or_decay,
    boolean_or_path,
    fraction,
    integer,
    natural,
    natural_number,
    option,
    positive,
    positive_number,
    seed_number,
    share,
    strength,
)

HELP_SHOW_CHANNELS = (
    "with --channels: what drawings show as red, green and blue, counted from 0, or the one channel to show in grey "
    "(default: the first three, or the first)"
)
DEMO_FOLDER = "demo_data"
OUTPUT_FOLDER = "save_weights"
RATE_PER_IMAGE = 1e-3  # SGD's learning rate is proportional to the total batch size
ADAMW_RATE = 1e-4  # for any batch size: Adam's steps do not grow with the gradient


@dataclass
class DataSettings(Settings):
    """Options for finding and reading the data. Checkpoints store them, so that validation uses the same ones."""

    # fmt: off
    data_path: str | None = option(None, "folder of images and annotations as the labelling tool wrote it, or its "
        f"annotation file (default: the checkpoint's; for a new run the demo's, drawn into {DEMO_FOLDER}/)",
        metavar="PATH", group="data", role=KEPT)
    train_json: str | None = option(None, "COCO file of the training images, instead of --data-path", metavar="FILE",
        role=KEPT)
    val_json: str | None = option(None, "COCO file of the validation images", metavar="FILE", role=KEPT)
    image_folder: str | None = option(None, "folder of the images of --train-json and --val-json (default: found "
        "beside them)", metavar="DIR", role=KEPT)
    class_attribute: str | None = option(None, "region attribute with the class, in VIA's files (default: the only "
        "one)", metavar="NAME", role=KEPT)
    val_fraction: float = option(0.2, "share of the images for validation, where the data are not split ({default})",
        type=fraction, role=RESULT)
    exif: str | None = option(None, "apply the EXIF orientation of images, or ignore it (default: apply it if only "
        "then an image has its annotated size)", choices=("apply", "ignore"), role=RESULT)
    channels: int | None = option(None, "read images as they are stored, with this number of channels, 1 to 8, of 8 or "
        "16 bits or floating-point values: PNG, TIFF, .npy (default: convert them to 8-bit RGB)", type=int,
        choices=range(1, MOST_CHANNELS + 1), metavar="N", role=RESULT)
    show_channels: list[int] | None = option(None, HELP_SHOW_CHANNELS, type=natural, nargs="+", metavar="C",
        role=KEPT)
    skip_bad: bool = option(False, "drop images and annotations that would make results wrong, and report how many, "
        "instead of stopping", group="annotations", role=KEPT)
    keep_empty: bool = option(False, "also train on images without annotations, as examples of background", role=RESULT)
    boxes_from_masks: bool = option(False, "compute the box of each object with a mask from its mask", role=RESULT)
    crowds_are_objects: bool = option(False, "treat annotations with iscrowd: 1 as single objects, as exports of brush "
        "masks mean them", role=RESULT)
    ignore_regions: bool = option(False, "crowds, VOC's void pixels and objects of a class named ignore are regions in "
        "which nothing is taken as background", role=RESULT)
    boxes_without_masks: bool = option(False, "also use objects with a box and no mask: they train the boxes, and "
        "count in evaluation for boxes alone", role=RESULT)
    # fmt: on

    def form(self) -> ImageForm:
        """Return how to read and show images; ValueError if --show-channels names a channel that does not exist."""
        return ImageForm(self.exif, self.channels, shown=tuple(self.show_channels or ())).checked()

    def is_demo(self) -> bool:
        """Whether the data are the demo's: no path is given, or the demo's folder."""
        if self.train_json or self.val_json:
            return False
        return self.data_path is None or Path(self.data_path).resolve() == Path(DEMO_FOLDER).resolve()


@dataclass
class TrainSettings(DataSettings):
    """Options of train.py and train_multi_GPU.py. `resolve` fills in what depends on the data or on a resumed run."""

    # fmt: off
    num_classes: int | None = option(None, "without background (default: from the data; COCO 90, VOC 20)",
        type=positive, group="model", role=KEPT)
    pretrain: bool | str = option(True, "start from published weights: maskrcnn_resnet50_fpn_coco.pth, else "
        "resnet50.pth, else downloaded; or from a file ({default})", type=boolean_or_path, nargs="?", const=True,
        metavar="True|False|FILE", demo=False, role=KEPT)
    arch: str | None = option(None, "torchvision's maskrcnn_resnet50_fpn, or its v2 with BatchNorm in FPN and heads "
        "(default: detected from the weights, else v1)", choices=("v1", "v2"))
    norm: str | None = option(None, "BatchNorm of the backbone (default: batch; frozen if v1 and pretrained)",
        choices=("batch", "frozen"))
    trainable_backbone_layers: int | None = option(None, "(default: 3; 5 from scratch)", type=int, choices=range(6))
    min_size: int | list[int] = option(800, "short side of the network's input ({default}); if several, training draws "
        "one per image, and evaluation uses the last", type=positive, nargs="+", demo=128, role=RESULT)
    max_size: int = option(1333, "limit of the long side ({default})", type=positive, demo=160, role=RESULT)
    anchor_sizes: list[int] | None = option(None, "sides of the anchors, one per pyramid level, for small or large "
        "objects (default: 32 64 128 256 512)", type=positive, nargs=5, group="proposals and detections", role=RESULT)
    anchor_ratios: list[float] | None = option(None, "height over width of the anchors, for slender objects (default: "
        "0.5 1 2)", type=positive_number, nargs="+", role=RESULT)
    rois_per_image: int = option(512, "proposals per image that the heads learn from ({default})", type=positive,
        demo=40, role=RESULT)
    proposals: int | None = option(None, "boxes per image that the RPN keeps (default: 2000 in training, 1000 in "
        "evaluation; demo 100)", type=positive, demo=100, role=RESULT)
    detections: int = option(100, "maximum detections per image, in evaluation and in the finished network ({default})",
        type=positive, role=KEPT)
    nms_thresh: float = option(0.5, "of two detections of a class with a higher IoU, keep the better ({default})",
        type=strength, demo=0.3, role=KEPT)
    agnostic_nms: bool = option(False, "one label per object: detections of different classes suppress one another "
        "too, in evaluation and in the finished network", role=KEPT)

    epochs: int = option(26, "({default})", type=positive, demo=5, group="training", role=KEPT)
    start_epoch: int = option(0, "number of a new run's first epoch ({default})", type=natural)
    max_steps: int | None = option(None, "stop cleanly after this many optimizer steps in all", type=positive)
    batch_size: int = option(4, "images per batch and process ({default})", "-b", type=positive, demo=5, role=RESULT)
    accumulate: int = option(1, "batches per step, whose gradients are accumulated, for larger steps than fit in "
        "memory ({default})", type=positive, role=RESULT)
    opt: str = option("sgd", "the optimizer ({default})", type=str.lower, choices=("sgd", "adamw"), demo="adamw",
        role=RESULT)
    lr: float = option(None, f"learning rate (default: {RATE_PER_IMAGE:g} per image of the total batch, demo 0.0005; "
        f"adamw {ADAMW_RATE:g})", type=natural_number, demo=5e-4, role=RESULT)
    lr_scheduler: str = option("multisteplr", "after the warm-up, drop the rate at --lr-steps, or lower it after each "
        "epoch by a cosine to 0 ({default})", type=str.lower, choices=("multisteplr", "cosineannealinglr"),
        demo="cosineannealinglr", role=RESULT)
    lr_steps: list[int] = option((16, 22), "epochs at which the rate drops ({default})", type=natural, nargs="+",
        role=RESULT)
    lr_step_size: int | None = option(None, "drop the rate every N epochs, unless --lr-steps is given", type=positive)
    lr_gamma: float = option(0.1, "factor of a drop ({default})", type=natural_number, role=RESULT)
    momentum: float = option(0.9, "of SGD ({default})", type=strength, role=RESULT)
    weight_decay: float = option(1e-4, "({default})", "--wd", type=natural_number, demo=0.02, role=RESULT)
    norm_weight_decay: float | None = option(None, "of normalisation layers (default: as --wd)", type=natural_number,
        role=RESULT)
    clip_grad_norm: float | None = option(None, "clip the norm of the gradients, over all weights, to this value",
        type=positive_number, role=RESULT)
    model_ema: bool | float = option(False, "also average the weights over the steps, for evaluation and prediction; "
        "with this decay per step (default: off; bare: over the last 25th of the run)", type=boolean_or_decay,
        nargs="?", const=True, metavar="DECAY", role=RESULT)
    patience: int | None = option(None, "end the run when mask AP has not risen for N epochs", type=positive, role=KEPT)

    data_augmentation: str = option("hflip", "hflip: flips; multiscale: also six sizes from 0.8 times --min-size to "
        "--min-size (640 to 800); lsj: flips and large-scale jitter, 0.1 to 2 times a square of 1.28 times --min-size "
        "(1024), for long schedules; none ({default})", choices=("hflip", "multiscale", "lsj", "none"),
        group="augmentation", role=RESULT)
    use_copypaste: bool = option(False, "with lsj: paste objects of another image of the batch into each; published "
        "gains are for schedules of 100 epochs and more", role=RESULT)
    vflip: bool = option(False, "also turn half of the images upside down, for aerial, medical and industrial images",
        role=RESULT)
    color_jitter: float = option(0.0, "change brightness, contrast and saturation by factors from 1 - X to 1 + X "
        "({default})", type=strength, role=RESULT)
    repeat_threshold: float = option(0.0, "show images of rare classes more often: a class in a share f of the images "
        "sqrt(T / f) times, if f is below T (LVIS: 0.001; {default}: never)", type=share, metavar="T", role=RESULT)
    aspect_ratio_group_factor: int = option(3, "groups of aspect ratios for batches ({default}); below 1: none",
        type=integer, role=RESULT)

    output_dir: str = option(OUTPUT_FOLDER, "weights, results, curves ({default})", metavar="DIR", group="output")
    resume: str = option("", "checkpoint to resume from; 'auto': the newest in --output-dir, if any",
        metavar="FILE|auto", role=START)
    force: bool = option(False, "resume even if settings that change the result differ", role=START)
    overwrite: bool = option(False, "delete what --output-dir holds: the run, or what came after the checkpoint of "
        "--resume", role=START)
    config: str | None = option(None, "JSON file with options, such as args.json of an earlier run, for those not "
        "given here (except --resume, --force, --overwrite, --hooks, --test-only, --show-batch)", metavar="FILE",
        role=START)
    test_only: bool = option(False, "only evaluate the weights that --resume or --pretrain names", role=START)
    show_batch: bool = option(False, "only write the first batch, as the network sees it, as batch.png", role=START)
    checkpoint_every: int | None = option(None, "also write a checkpoint every N steps", type=positive, role=KEPT)
    keep: int | None = option(None, "delete all checkpoints but the newest N and model_best.pth ({default})",
        type=positive, demo=2, role=KEPT)
    print_freq: int = option(20, "steps between two log lines ({default})", type=positive)
    val_loss: bool = option(False, "also compute the losses on the validation images, for log.jsonl and the curves",
        role=KEPT)
    tensorboard: bool = option(False, "also write losses, metrics and sheets for TensorBoard, to "
        "--output-dir/tensorboard", role=KEPT)
    hooks: str | None = option(None, "Python file with functions before_train, after_train, before_step or after_step, "
        "called with the state of the run; give it again when resuming", metavar="FILE", role=START)

    device: str = option("cuda", "cuda, cuda:N or cpu (default: cuda, else cpu with a warning)", metavar="DEVICE",
        group="machine")
    amp: bool = option(False, "mixed precision: bf16, or fp16 where a GPU lacks it ({default})", demo=True, role=RESULT)
    workers: int | None = option(None, "loader processes (default: by the number of cores)", "-j", type=natural)
    seed: int = option(0, "({default})", type=seed_number, role=RESULT)
    deterministic: bool = option(False, "compute the same bits in every run, on CUDA and with several processes too",
        role=KEPT)
    max_bad_steps: int = option(10, "stop after N consecutive losses that are not finite ({default}); such steps are "
        "not applied", type=positive)
    max_bad_pictures: int = option(100, "stop when more than N images of an epoch could not be read ({default}); "
        "others replace them", type=natural)
    sync_bn: bool = option(False, "BatchNorm over the batches of all processes", role=RESULT)
    world_size: int = option(1, "number of processes, if not started by torchrun", type=positive)
    dist_url: str = option("env://", "where processes meet (default: from torchrun)", metavar="URL")
    timeout: int = option(600, "seconds without progress after which a process is blamed and the run ends ({default})",
        type=positive)
    # fmt: on

    def images_per_step(self) -> int:
        """Return the number of images per step and process."""
        return self.batch_size * self.accumulate

    def resolve(self, processes: int, stopped_run: Mapping[str, Any] | None = None) -> None:
        """Fill in the options that the user did not give, from the run to resume or from defaults.

        `stopped_run` holds the options of the run to resume; those of role RESULT or KEPT are taken from it. The demo
        has its own defaults, and SGD's default learning rate depends on the images per step of all `processes`.
        """
        kept = {} if stopped_run is None else dict(stopped_run)
        if self.lr_step_size:
            kept.pop("lr_steps", None)
        missing = [each for each in self.options() if each.name not in self.given]
        from_run = [each for each in missing if stopped_run is not None and each.metadata["role"] in (RESULT, KEPT)]
        for each in from_run:
            if kept.get(each.name) is not None:
                setattr(self, each.name, kept[each.name])
        for each in missing if self.is_demo() else ():
            if each not in from_run and each.metadata["demo"] is not SAME:
                setattr(self, each.name, each.metadata["demo"])
        if self.lr is None:
            rate = RATE_PER_IMAGE * self.images_per_step() * processes
            self.lr = ADAMW_RATE if self.opt == "adamw" else rate
        if self.lr_step_size and "lr_steps" not in self.given:
            self.lr_steps = list(range(self.lr_step_size, self.epochs, self.lr_step_size))
        self.lr_steps = list(self.lr_steps)
        if isinstance(self.min_size, list) and len(self.min_size) == 1:
            self.min_size = self.min_size[0]


def result_settings(settings: TrainSettings) -> set[str]:
    """Return the names of the options that affect the result of a run."""
    names = {each.name for each in settings.options() if each.metadata["role"] == RESULT}
    return names | ({"epochs"} if settings.lr_scheduler == "cosineannealinglr" else set())


HELP_WEIGHTS = f"checkpoint, or torchvision's or Detectron2's weights (default: newest in {OUTPUT_FOLDER}/)"


@dataclass
class InferenceSettings(Settings):
    """Options that validation.py and predict.py share: the weights, and how to run them."""

    # fmt: off
    weights_path: str | None = option(None, HELP_WEIGHTS, metavar="FILE", group="model")
    arch: str | None = option(None, "(default: detected from the weights)", choices=("v1", "v2"))
    num_classes: int | None = option(None, "without background (default: from the checkpoint)", type=positive)
    label_json_path: str | None = option(None, "JSON with the class names, label -> name or name -> label",
        metavar="FILE")
    min_size: int | None = option(None, "short side of the network's input (default: as in training)", type=positive)
    max_size: int | None = option(None, "limit of the long side (default: as in training)", type=positive)
    detections: int | None = option(None, "maximum number of detections per image (default: as in training, else 100)",
        type=positive)
    nms_thresh: float | None = option(None, "of two detections of a class with a higher IoU, keep the better (default: "
        "as in training, else 0.5)", type=strength)
    agnostic_nms: bool | None = option(None, "one label per object: detections of different classes suppress one "
        "another too (default: as in training, else off)")
    tta: bool = option(False, "test-time augmentation: three sizes of each image, plain and mirrored, merged; six "
        "times as slow")
    device: str = option("cuda", "cuda, cuda:N or cpu (default: cuda, else cpu with a warning)", metavar="DEVICE",
        group="machine")
    amp: bool | None = option(None, "mixed precision (default: as in training)")
    # fmt: on


@dataclass
class ValidationSettings(DataSettings, InferenceSettings):
    # fmt: off
    batch_size: int | None = option(None, "images per step (default: 8 on a GPU, 1 on the CPU)", "-b", type=positive,
        group="machine")
    workers: int | None = option(None, "loader processes (default: by the number of cores)", "-j", type=natural)
    output_dir: str | None = option(None, "where record_mAP.txt goes (default: beside the weights)", metavar="DIR",
        group="output")
    compare: list[str] | None = option(None, "compare two on the same images, with 95 %% intervals: weights or results "
        "files (.json), or one of each", nargs="+", metavar=("A", "B"))
    results_json: str | None = option(None, "score these detections, in COCO's results format, instead of a network's",
        metavar="FILE")
    annotation_file: str | None = option(None, "with --results-json or two results files: the ground truth, in COCO's "
        "annotation format", metavar="FILE")
    iou_type: list[str] | None = option(None, "what to compute, in this order: boxes, masks, boundaries (default: bbox "
        "segm; with --results-json bbox; with --compare, which decides by the first, segm bbox)",
        choices=("bbox", "segm", "boundary"), nargs="+")
    boundary: bool = option(False, "also compute boundary AP, in which the outlines of large objects count")
    save_thresholds: bool = option(False, "store each class's best score, by F1, for predict.py --box-thresh best")
    report: str | None = option(None, "also write report.html into this folder, a page about classes, errors, images "
        "and suspect labels, and its numbers as CSV and JSON; with results files, --image-folder holds the images to "
        "show", metavar="DIR")
    world_size: int = 1
    dist_url: str = "env://"
    timeout: int = 1800
    # fmt: on

    def kinds(self, *default: str) -> list[str]:
        """Return the IoU types to compute: those of --iou-type or else `default`, and "boundary" with --boundary."""
        return list(dict.fromkeys([*(self.iou_type or default), *(["boundary"] if self.boundary else [])]))
