"""Overfit to real photos: train from random weights on 8 photos of COCO, and evaluate on the same 8.

    python benchmarks/overfit.py                                              # about ten minutes on two cores
    python benchmarks/overfit.py --device cuda --min-size 320 --max-size 480
    python benchmarks/overfit.py --steps 2 --min-size 64 --max-size 96        # only to check that it runs

The photos: those of coco_tiny's training split with 1 to 8 objects, without crowds and without boxes that overlap by
more than NMS permits (IoU 0.5), whose smallest object covers the largest share of the image. Every step's batch is all
of them, unflipped, so a network that learns at all gets them almost right. The folder --output-dir then has one image
per photo with predictions beside ground truth, the weights, and the photos in COCO's layout. The exit status is 1 if
the mask AP is below 0.80.
"""

import json
import shutil
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch
from common import PROJECT, coco_tiny, machine, parser
from PIL import Image
from torch.optim import SGD
from torchvision.ops import box_convert, box_iou

from my_dataset_coco import CocoDetection
from predict import Predictor
from prediction.options import PredictorSettings
from train_utils.classes import ClassTable
from train_utils.data_check import num_classes_for
from train_utils.device import Precision, choose_device
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.evaluation import detect_all
from train_utils.loaders import evaluation_loader, mix_seed
from train_utils.metrics.coco_evaluation import Metrics
from train_utils.models import ModelConfig, build_model
from train_utils.optimizer import learning_rate, set_learning_rate
from train_utils.option_parsing import add_flag, positive
from train_utils.options import TrainSettings
from train_utils.trained_model import TrainedModel
from train_utils.visual.drawing import draw_instances

OUTPUT_FOLDER = PROJECT / "benchmarks" / "out" / "overfit"
REQUIRED_MASK_AP = 0.80
MOST_OBJECTS = 8
NMS_THRESHOLD = 0.5  # the detector's: of two objects whose boxes overlap more, it can find only one
ANNOTATIONS = Path("annotations") / "instances_train2017.json"


def main(args: Namespace) -> None:
    device = choose_device(args.device)
    precision = Precision.choose(device, args.amp)
    torch.manual_seed(args.seed)
    folder = Path(args.output_dir)
    print(machine(device))

    # Data: a separate COCO folder, read like any other
    with reading_input():
        content = json.loads((coco_tiny() / ANNOTATIONS).read_text())
        write_subset(coco_tiny(), folder / "data", content, photos_with_large_objects(content, args.batch_size))
        dataset = CocoDetection(folder / "data", "train")
    classes = ClassTable.of_dataset(dataset)
    images, targets = dataset.collate_fn([dataset[i] for i in range(len(dataset))])
    images = [image.to(device) for image in images]
    loader = evaluation_loader(dataset, batch_size=1, workers=0)
    for target in targets:
        print(f"{target['image_id']:012d}: {', '.join(dataset.class_names[i] for i in target['labels'].tolist())}")

    # Model
    config = ModelConfig(
        num_classes_for(dataset, None),
        trainable_layers=5,
        min_size=args.min_size,
        max_size=args.max_size,
        rois_per_image=args.rois_per_image,
    )
    model = build_model(config).to(device, memory_format=torch.channels_last)

    # Optimizer: the schedule counts in epochs of the warm-up's length, and accepts fractions
    optimizer = SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay, fused=True)
    warm_up = min(args.warm_up, args.steps)
    drops = [share * args.steps / warm_up for share in args.lr_drops]
    schedule = TrainSettings(lr=args.lr, lr_steps=drops, lr_gamma=0.1)
    scaler = precision.scaler()

    # Steps
    start = time.perf_counter()
    for step in range(1, args.steps + 1):
        set_learning_rate(optimizer, learning_rate(step - 1, schedule, warm_up))
        model.train()
        torch.manual_seed(mix_seed(args.seed, step))
        with precision.autocast():
            losses = model(images, targets)
            loss = sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if step % args.print_freq == 0 or step == 1:
            parts = "  ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
            print(f"{minutes_since(start)}  step {step}/{args.steps}  loss {loss.item():.4f}  {parts}", flush=True)
        if step % args.eval_freq == 0 or step == args.steps:
            metrics = detect_all(model, loader, dataset.coco, classes, device, precision).metrics()
            box_ap, mask_ap = metrics["bbox"].stats[0], metrics["segm"].stats[0]
            print(f"{minutes_since(start)}  step {step}: box AP {box_ap:.4f}, mask AP {mask_ap:.4f}", flush=True)

    # Results
    print_classes(metrics)
    trained = TrainedModel(folder, model, config, {}, classes, device, precision, {})
    content = {"model": model.state_dict(), "model_config": config.to_plain()}
    content |= {"class_names": classes.names, "category_ids": classes.category_ids}
    torch.save(content, folder / "model.pth")
    draw_all(Predictor.of_trained(trained, PredictorSettings()), dataset, folder)
    print(f"weights, for validation.py --report and predict.py: {folder}/model.pth")
    print(f"predictions (left) beside the ground truth (right): {folder}/*.png")
    if mask_ap < REQUIRED_MASK_AP:
        print(f"mask AP {mask_ap:.4f} is below {REQUIRED_MASK_AP}", file=sys.stderr)
        sys.exit(1)


def photos_with_large_objects(content: dict, count: int) -> list[int]:
    """Select image ids by the rule in the module's docstring, the largest share first.

    Args:
        content: of a COCO instances file.
    """
    share = {}
    for photo in content["images"]:
        objects = [a for a in content["annotations"] if a["image_id"] == photo["id"]]
        boxes = box_convert(torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4), "xywh", "xyxy")
        separable = not (box_iou(boxes, boxes).triu(diagonal=1) > NMS_THRESHOLD).any()
        if 1 <= len(objects) <= MOST_OBJECTS and separable and not any(a["iscrowd"] for a in objects):
            share[photo["id"]] = min(a["area"] for a in objects) / (photo["width"] * photo["height"])
    if count > len(share):
        raise InputError(f"--batch-size {count}: {len(share)} photos have 1 to {MOST_OBJECTS} objects and no crowd")
    return sorted(share, key=share.get, reverse=True)[:count]


def write_subset(source: Path, folder: Path, content: dict, image_ids: list[int]) -> None:
    """Write a folder in COCO's layout with these photos of `source` as its training split."""
    photos = [photo for photo in content["images"] if photo["id"] in image_ids]
    annotations = [a for a in content["annotations"] if a["image_id"] in image_ids]
    for name in ("annotations", "train2017"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for photo in photos:
        shutil.copy(source / "train2017" / photo["file_name"], folder / "train2017")
    (folder / ANNOTATIONS).write_text(json.dumps(dict(content, images=photos, annotations=annotations)))


def draw_all(predictor: Predictor, dataset: CocoDetection, folder: Path) -> None:
    """Draw an image per photo: detections with a score of at least 0.5 on the left, ground truth on the right."""
    for i in range(len(dataset)):
        image, target = dataset[i]
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        found = predictor(photo).draw()
        names = [dataset.class_names[label] for label in target["labels"].tolist()]
        masks = [(left, top, crop.astype(bool)) for left, top, crop in target["masks"].all_crops()]
        truth = draw_instances(photo, target["boxes"].numpy(), names, masks=masks)
        both = Image.new("RGB", (found.width + truth.width, found.height))
        both.paste(found, (0, 0))
        both.paste(truth, (found.width, 0))
        both.save(folder / f"{target['image_id']:012d}.png")


def print_classes(metrics: dict[str, Metrics]) -> None:
    """Print the AP of the classes in the photos."""
    print(f"  {'class':<16}objects   box AP  mask AP")
    for box, mask in zip(metrics["bbox"].classes, metrics["segm"].classes):
        if box.objects:
            print(f"  {box.name:<16}{box.objects:7d}{box.ap:9.4f}{mask.ap:9.4f}")


def minutes_since(start: float) -> str:
    return f"{(time.perf_counter() - start) / 60:5.1f} min"


def parse_arguments() -> Namespace:
    p = parser(__doc__)
    p.add_argument("--device", default="cpu", help="cuda, cuda:N or cpu (default: %(default)s)")
    p.add_argument("--output-dir", default=str(OUTPUT_FOLDER), help="(default: benchmarks/out/overfit)")
    p.add_argument("--steps", type=positive, default=400, help="(default: %(default)s)")
    p.add_argument("-b", "--batch-size", type=positive, default=8, help="photos, all in each step (default: 8)")
    p.add_argument("--min-size", type=positive, default=144, help="short side of the input (default: %(default)s)")
    p.add_argument("--max-size", type=positive, default=192, help="long side's limit (default: %(default)s)")
    p.add_argument("--rois-per-image", type=positive, default=16, help="to train the heads on (default: %(default)s)")
    p.add_argument("--lr", type=float, default=0.02, help="learning rate (default: %(default)s)")
    p.add_argument("--momentum", type=float, default=0.9, help="of SGD (default: %(default)s)")
    p.add_argument("--wd", "--weight-decay", dest="weight_decay", type=float, default=1e-4, help="(default: 1e-4)")
    p.add_argument("--warm-up", type=positive, default=50, help="steps to the full rate (default: %(default)s)")
    p.add_argument(
        "--lr-drops", type=float, nargs="*", default=[0.6, 0.85], help="shares of the run (default: 0.6 0.85)"
    )
    p.add_argument("--eval-freq", type=positive, default=200, help="steps between evaluations (default: %(default)s)")
    p.add_argument("--print-freq", type=positive, default=20, help="steps between two lines (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    add_flag(p, "--amp", "mixed precision: bf16, or fp16 where a GPU lacks it (default: True)", default=True)
    return p.parse_args()


if __name__ == "__main__":
    with one_line_errors():
        main(parse_arguments())
