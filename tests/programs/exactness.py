"""Compare this project with torchvision, COCO and Detectron2: the tables of docs/EXACTNESS.md.

    python -m tests.programs.exactness --write              # all parts, into docs/EXACTNESS.md; 20 minutes on one core
    python -m tests.programs.exactness --only stages masks  # some parts, printed
    python -m tests.programs.exactness --quick --seed 1     # all parts with smaller inputs

Needs the real photos (tests/README.md).

Photos, weights, boxes and masks are drawn anew from the seed. The exit status is 1 if a row exceeds its tolerance.
Parts that are not run keep their text in the page.
"""

import argparse
import functools
import random
import re
import sys
import textwrap
import time
from argparse import Namespace
from pathlib import Path

import torch
import torchvision

from my_dataset_coco import CocoDetection
from tests.helpers.exact_outputs import code_checks, detectron2_checks, mask_target_checks, metric_checks, weight_checks
from tests.helpers.exact_rows import Check, merged, relative, table
from tests.helpers.exact_stages import same_detections, stage_checks
from tests.helpers.exact_training import gradient_checks, trained_weights, trajectory_checks
from tests.helpers.parity import (
    DIFFERENT_ARGUMENTS,
    OBJECTNESS_TOLERANCE,
    Batch,
    detections_of,
    edge_cases,
    in_float64,
    losses_of,
    pair,
    pair_for_fine_tuning,
    pair_of_v2,
    synthetic_batch,
)
from tests.helpers.photos import load_photos, with_compact_masks
from tests.helpers.project import ROOT, real_data

PAGE = ROOT / "docs" / "EXACTNESS.md"
FEWEST_DETECTIONS = 200  # of three photos; the limit is 100 per image
INTRODUCTION = """# Exactness: agreement with torchvision, COCO and Detectron2

With the same weights, input and state of the random number generator, this project's network computes what
torchvision's computes. The two are compared in float64, where they agree to nine digits on every processor. In float32,
rounding decides at thresholds, ranks and ReLUs, even when torchvision's network is compared with itself in another
memory format. In short:

- **Inference.** Boxes, scores, masks and each stage on the way agree within 1e-9. Sizes, anchors, labels, samples, mask
  targets and pasted masks are identical, and every detection has its counterpart.
- **Training.** A step draws the same samples and leaves the generator in the same state. The five losses agree within
  1e-7 relative, and all gradients within 1e-9 of their largest entry, also where BatchNorm is trained. After 20 steps
  of SGD, all parameters agree as well.
- **Float32.** The tables give the differences due to rounding, without a bound where rounding decides: torchvision's
  own gradients of a trained network change by 2.5e-2 with the memory format.
- **Weights.** Files in torchvision's published formats (v1 with its older keys, v2) load here and give the same
  detections, and the keys written here are torchvision's.
- **Masks and metrics.** Run-length codes equal, byte for byte, those of pasted masks encoded by pycocotools. The COCO
  metrics reproduce the official figures of the COCO API's demonstration, with hotcoco and with pycocotools.
- **Detectron2.** A file in the format of its model zoo gives the same detections on the same resized photos, with boxes
  within 2e-4 pixels. On the original photos, which both resize differently, the mean mask IoU is 0.93 (last rows).

A whole training on COCO, and the published weight files, were not measured here; random weights in the same format
replace the files. [DEVIATIONS.md](DEVIATIONS.md) lists what differs from torchvision's scripts and from the papers, and
gives the published recipe; [METHOD.md](METHOD.md) maps the papers to the code.

**How to read the tables.** `python -m tests.programs.exactness --write` writes them; `make test-all` checks the same
rows on smaller inputs. Each row compares this project with the installed torchvision (or pycocotools, or Detectron2) on
the same input, drawn from the seed. "Largest difference" is over all compared numbers. "Relative" is this difference
divided by the largest entry of the reference; for gradients and trained parameters, it is taken per tensor. Where a row
counts things, the difference is the number of unequal ones. A run with nothing to compare fails, so no row is empty.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--write", action="store_true", help="into docs/EXACTNESS.md")
    parser.add_argument("--seed", type=int, help="seed of all random draws (default: from the clock)")
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer of them")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = time.time_ns() % 1_000_000
    args.data = real_data()
    if args.data is None:
        print("error: no photos; set MASKRCNN_TEST_DATA to the folder that holds coco_tiny", file=sys.stderr)
        return 2
    held = True
    for name in args.only:
        heading, words, make = PARTS[name]
        torch.manual_seed(args.seed)
        checks = make(args)
        held &= all(check.held for check in checks)
        section = f"## {heading}\n\n{textwrap.fill(words, 120)}\n\nSeed {args.seed}, {versions()}.\n\n{table(checks)}\n"
        print(section, flush=True)
        if args.write:
            write_section(heading, section)
    return 0 if held else 1


def versions() -> str:
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}"


def write_section(heading: str, section: str) -> None:
    """Write a part into the page: in place of its older text, or after the parts that precede it."""
    old = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else INTRODUCTION
    parts = re.split(r"(?m)^(?=## )", old)
    headings = [part.partition("\n")[0].removeprefix("## ") for part in parts]
    made = [other for other, _, _ in PARTS.values()]
    if heading in headings:
        parts[headings.index(heading)] = section
    else:
        earlier = made[: made.index(heading)]
        last = max([i for i, other in enumerate(headings) if other in earlier], default=0)
        parts.insert(last + 1, section)
    PAGE.write_text("\n".join(part.strip() + "\n" for part in parts), encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- what goes in


@functools.cache
def photos(data: Path, seed: int, count: int) -> Batch:
    """Random photos of coco_tiny's training split in `data`, of different sizes, with 1 to 15 objects each."""
    dataset = CocoDetection(data / "coco_tiny", "train")
    order = random.Random(seed).sample(range(len(dataset)), len(dataset))
    chosen = [i for i in order if len(dataset.target(i)["labels"]) <= 15]
    sizes = [dataset.get_height_and_width(i) for i in chosen]
    other = next(k for k, size in enumerate(sizes) if size != sizes[0])
    rest = [k for k in range(1, len(chosen)) if k != other]
    ids = [dataset.image_id(chosen[k]) for k in (0, other, *rest)[:count]]
    return load_photos(data / "coco_tiny", "train", ids)


def batch_of(args: Namespace) -> Batch:
    return photos(args.data, args.seed, 2 if args.quick else 3)


def trained_size(args: Namespace) -> dict[str, int]:
    return dict(min_size=64, max_size=96) if args.quick else dict(min_size=96, max_size=128)


@functools.cache
def trained_once(data: Path, seed: int, quick: bool) -> dict:
    """Train until the network detects enough, whatever the photos and the machine's rounding."""
    args = Namespace(data=data, seed=seed, quick=quick)
    for steps in (15, 30, 60, 120) if quick else (60, 100, 160, 260, 400):
        weights = trained_weights(batch_of(args), **trained_size(args), steps=steps, seed=seed)
        found = detections_of(trained_pair(weights, args)[0], batch_of(args)[0])
        if sum(len(detection["boxes"]) for detection in found) >= (20 if quick else FEWEST_DETECTIONS):
            return weights
    raise ValueError(f"trained by {steps} steps, the network finds too little in the photos of --seed {seed}")


def trained_pair(weights: dict, args: Namespace) -> tuple:
    fewer = dict(rpn_post_nms_top_n_test=150, box_detections_per_img=60) if args.quick else {}
    return pair_for_fine_tuning(weights, **trained_size(args), **fewer)


def trained(args: Namespace) -> dict:
    """Weights that detect objects in the photos."""
    return trained_once(args.data, args.seed, args.quick)


# ----------------------------------------------------------------------------------------------------------- the parts


def random_weights(args: Namespace) -> list[Check]:
    size = dict(min_size=96, max_size=128) if args.quick else dict(min_size=320, max_size=480)
    reference, own = pair(full=True, **size, rpn_post_nms_top_n_test=300, box_detections_per_img=100)
    return stage_checks(reference, own, in_float64(batch_of(args)), args.seed)


def trained_stages(args: Namespace) -> list[Check]:
    return stage_checks(*trained_pair(trained(args), args), batch_of(args), args.seed)


def gradients(args: Namespace) -> list[Check]:
    batch = batch_of(args)
    rois = 32 if args.quick else 128
    checks = []
    if not args.quick:
        reference, own = pair(full=True, dtype=torch.float32, box_batch_size_per_image=rois)
        checks = named("random weights", gradient_checks(reference.train(), own.train(), batch, args.seed))
    weights = trained(args)
    reference, own = pair_for_fine_tuning(weights, box_batch_size_per_image=rois, **trained_size(args))
    reference.to(memory_format=torch.channels_last).train()
    own.train()
    return checks + named("trained", gradient_checks(reference, own, batch, args.seed))


def named(prefix: str, checks: list[Check]) -> list[Check]:
    return [check._replace(row=check.row._replace(stage=f"{prefix}: {check.row.stage}")) for check in checks]


def trajectory(args: Namespace) -> list[Check]:
    """On small images; with --quick, only a few steps in float64."""
    few = dict(rpn_pre_nms_top_n_train=50, rpn_post_nms_top_n_train=100, box_batch_size_per_image=32)
    reference, own = pair_for_fine_tuning(trained(args), min_size=64, max_size=96, **few)
    own.to(memory_format=torch.contiguous_format)
    steps = 3 if args.quick else 20
    return trajectory_checks(reference, own, batch_of(args), 0.005, steps, args.seed, only_float64=args.quick)


def arguments(args: Namespace) -> list[Check]:
    images, targets = (values[:2] for values in in_float64(synthetic_batch()))
    checks = []
    for name in list(DIFFERENT_ARGUMENTS)[: 2 if args.quick else None]:
        given = DIFFERENT_ARGUMENTS[name]
        one_class = [dict(target, labels=torch.ones_like(target["labels"])) for target in targets]
        fitting = one_class if given.get("num_classes") == 2 else targets
        checks += both_ways(name, *pair(**({"min_size": 64} | given)), images, fitting)
    return checks


def edges(args: Namespace) -> list[Check]:
    reference, own = pair()
    detections_of(reference, in_float64(synthetic_batch())[0])  # it keeps the strides of its first batch
    cases = list(edge_cases().items())[: 2 if args.quick else None]
    return [check for name, batch in cases for check in both_ways(name, reference, own, *in_float64(batch))]


@torch.no_grad()
def both_ways(name: str, reference, own, images: list, targets: list[dict]) -> list[Check]:
    """The five losses, ours from compact masks, in one row, and the detections."""
    expected = losses_of(reference, images, targets)
    found = losses_of(own, images, with_compact_masks(targets))
    rows = [relative("", key, found[key], value, 0).row for key, value in expected.items()]
    losses = Check(merged(name, "the five losses", rows), OBJECTNESS_TOLERANCE, relative=True)
    return [losses, *same_detections(name, "detections", own.eval()(images), reference.eval()(images))]


def second_version(args: Namespace) -> list[Check]:
    batch = batch_of(args)
    numbers = dict(box_batch_size_per_image=32, rpn_post_nms_top_n_test=300)
    if args.quick:
        numbers = dict(box_batch_size_per_image=8, rpn_post_nms_top_n_test=50, box_detections_per_img=30)
    reference, own = pair_of_v2(batch[0], **trained_size(args), **numbers)
    own.to(memory_format=torch.contiguous_format)
    checks = stage_checks(reference.double(), own.double(), in_float64(batch), args.seed)
    reference.float()
    own.float()
    for mode in ("training",) if args.quick else ("evaluation", "training"):
        for model in (reference, own):
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.train(mode == "training")
        checks += named(f"BatchNorm in {mode}", gradient_checks(reference, own, batch, args.seed))
    return checks


def outputs(args: Namespace) -> list[Check]:
    return mask_target_checks(6 if args.quick else 60) + code_checks(10_000 if args.quick else 30_000)


def weight_files(args: Namespace) -> list[Check]:
    return weight_checks(synthetic_batch()[0][:1])


# Name: heading, description, and the function that returns the rows.
PARTS = {
    "stages": (
        "Stage by stage, random weights",
        "In float64, three photos of different sizes in one batch, short side 320. Each stage receives the output of "
        "torchvision's previous stage; the end-to-end rows start from the photos.",
        random_weights,
    ),
    "trained": (
        "Stage by stage, trained weights",
        "The same in float32, after 60 steps of training from scratch on the photos (short side 96), or more steps "
        f"until the network finds {FEWEST_DETECTIONS} boxes with a score above 0.05. The backbone is frozen as in "
        "fine-tuning; this project's network uses the channels-last memory format, as in train.py.",
        trained_stages,
    ),
    "gradients": (
        "Losses and gradients",
        "One training step from the same state of the random number generator, with 128 RoIs per image. If the "
        "input of a ReLU is within rounding of 0, rounding decides whether its gradient flows: torchvision's own "
        "float32 gradients of a trained network changed by 2.5e-2 with the memory format alone. Float64 shows the "
        "difference without this effect.",
        gradients,
    ),
    "trajectory": (
        "Twenty steps of SGD",
        "From the trained weights, with warm-up, momentum, weight decay and flips, two photos per step; this "
        "project uses its own training step and schedule. Proposals and sizes are small (short side 64, 100 "
        "proposals, 32 RoIs). In float64 both end at the same weights. In float32 and bf16, rounding occasionally "
        "decides whether a proposal passes NMS; the samples then differ and the runs diverge, as do two runs of "
        "torchvision in different memory formats: those rows are only measured. The measure is the "
        "norm of all differences, as a share of the distance that torchvision's float32 run has covered.",
        trajectory,
    ),
    "arguments": (
        "Other arguments",
        "On drawn images; tests/helpers/parity.py defines each set of arguments under the name in the first column. In "
        "float64, with a thin backbone.",
        arguments,
    ),
    "edges": (
        "Edge cases",
        "In float64, with a thin backbone.",
        edges,
    ),
    "v2": (
        "The v2 network",
        "`maskrcnn_resnet50_fpn_v2` with random weights, on the same photos (short side 96).",
        second_version,
    ),
    "masks": (
        "Masks",
        "Mask targets from compact masks, and run-length codes computed without pasting.",
        outputs,
    ),
    "weights": (
        "Weights",
        "Files in torchvision's published formats, with random weights.",
        weight_files,
    ),
    "metrics": (
        "COCO metrics",
        "The demonstration of the COCO API: 12 figures for boxes and 12 for masks, each from both libraries.",
        lambda args: metric_checks(args.data / "cocoapi_demo"),
    ),
    "detectron2": (
        "Detectron2",
        "A file in the format of Detectron2's model zoo with random weights, on three photos with Detectron2's "
        "outputs.",
        lambda args: detectron2_checks(args.data / "detectron2_zoo"),
    ),
}

if __name__ == "__main__":
    sys.exit(main())
