"""Compare exported networks of each architecture with the network in float64: the largest differences on photos.

    python benchmarks/onnx_variants.py                                  # 224 to 384 px, 100 proposals: a few minutes
    python benchmarks/onnx_variants.py --min-size 800 --max-size 1333 --proposals 1000 --archs v1

The weights are random, with more candidates than the 100 detections kept per photo. Cases: photos in a file for any
size; the same with a score threshold that nothing exceeds; and two photos, cropped to one size, in a file for a batch
of this size. The counterpart of a detection has the same label and a box within a pixel. "torch fp32" shows the
rounding of the network itself. The ranges for int8 come from the first photo.
"""

import copy
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from common import counterparts, machine, parser, training_photos
from measured_rows import progress, table
from torch import Tensor

from network_files import MaskRCNN
from onnx_files.network_graph import GraphOptions, network_graph
from onnx_files.precision import quantise
from onnx_files.runtimes import open_session
from tests.helpers.exported import lively_network
from train_utils.errors import one_line_errors
from train_utils.option_parsing import positive

ARCHS = ("v1", "v2", "detectron2")
WITHIN = 1.0  # pixels between the boxes of counterparts
HEADER = ("", "case", "way", "detections", "without counterpart", "boxes, px", "scores", "masks")
Detections = list[dict[str, Tensor]]  # per image
Way = Callable[[], Detections]


def main(args: Namespace) -> str:
    torch.set_num_threads(args.threads)
    photos, _ = training_photos(args.photos)
    rows = []
    for arch in args.archs:
        sizes = {"min_size": args.min_size, "max_size": args.max_size, "proposals": args.proposals}
        model = lively_network(arch, 90, thin=False, **sizes)
        for case, images, ways in cases(model, photos, args.threads):
            exact = in_torch(copy.deepcopy(model).double(), images, torch.float64)()
            for name, way in ways.items():
                rows.append((arch, case, name, *differences(way(), exact)))
                progress(", ".join(map(str, rows[-1])))
    title = f"{args.min_size}/{args.max_size} px, {args.proposals} proposals, {len(photos)} photos"
    return "\n".join((machine(torch.device("cpu")), "", table(title, rows, HEADER)))


def cases(
    model: MaskRCNN, photos: Sequence[Tensor], threads: int
) -> Iterator[tuple[str, Sequence[Tensor], dict[str, Way]]]:
    """Yield the name of each case, its images, and the ways to detect in them."""
    yield "photos", photos, in_runtimes(model, photos, threads, lower=True)

    usual, model.roi_heads.score_thresh = model.roi_heads.score_thresh, 1.0
    yield "none", photos[:1], in_runtimes(model, photos[:1], threads)
    model.roi_heads.score_thresh = usual

    height, width = (min(photo.shape[k] for photo in photos[:2]) for k in (1, 2))
    pair = [photo[:, :height, :width].contiguous() for photo in photos[:2]]
    yield f"batch, {height} x {width}", pair, in_runtimes(model, pair, threads, batch=2, size=(height, width))


def in_runtimes(
    model: MaskRCNN, images: Sequence[Tensor], threads: int, lower: bool = False, **settings: Any
) -> dict[str, Way]:
    """Ways to detect in images, by name; `lower` adds the lower precisions."""
    content = network_graph(model, GraphOptions(**settings), {})
    files = {"onnxruntime fp32": content, "openvino fp32": content}
    if lower:
        arrays = ({"image": (image / 255).numpy()} for image in images[:1])
        half = network_graph(model, GraphOptions(weights="float16"), {})
        files |= {"onnxruntime fp16": half, "onnxruntime int8": quantise(content, arrays), "openvino bf16": content}
    ways = {"torch fp32": in_torch(model, images, torch.float32)}
    for name, file in files.items():
        runtime, precision = name.split()
        ways[name] = exported(
            file.SerializeToString(), runtime, "bf16" if precision == "bf16" else "fp32", images, threads
        )
    return ways


def in_torch(model: MaskRCNN, images: Sequence[Tensor], dtype: torch.dtype) -> Way:
    @torch.inference_mode()
    def detect() -> Detections:
        return [model.detect([image.to(dtype) / 255])[0] for image in images]

    return detect


def exported(content: bytes, runtime: str, precision: str, images: Sequence[Tensor], threads: int) -> Way:
    def detect() -> Detections:
        session = open_session(content, runtime, threads, precision)
        if session.batch:
            outputs = session.run(np.stack([image.numpy() for image in images]).astype(np.float32) / np.float32(255))
            counts = (outputs["labels"] > 0).sum(1)
            found = [{name: value[i, :count] for name, value in outputs.items()} for i, count in enumerate(counts)]
        else:
            found = [session.detect(image.numpy()) for image in images]
        return [{name: torch.from_numpy(value) for name, value in each.items()} for each in found]

    return detect


def differences(found: Detections, exact: Detections) -> tuple:
    """The cells of a row: detections, those of both without counterpart, and the largest differences of the others."""
    total, alone, largest = 0, 0, dict.fromkeys(("boxes", "scores", "masks"), 0.0)
    for own, reference in zip(found, exact, strict=True):
        i, j = counterparts(own, reference, WITHIN)
        total += len(own["labels"])
        alone += len(own["labels"]) + len(reference["labels"]) - 2 * len(i)
        for name in largest if len(i) else ():
            largest[name] = max(largest[name], float((own[name][i] - reference[name][j]).abs().max()))
    return total, alone, *(f"{value:.1e}" if total else "" for value in largest.values())


def parse(arguments: Sequence[str]) -> Namespace:
    p = parser(__doc__)
    p.add_argument("--archs", nargs="+", choices=ARCHS, default=ARCHS, help="(default: all)")
    p.add_argument("--photos", type=positive, default=3, help="(default: %(default)s)")
    p.add_argument("--min-size", type=positive, default=224, help="short side of the input (default: %(default)s)")
    p.add_argument("--max-size", type=positive, default=384, help="long side's limit (default: %(default)s)")
    p.add_argument("--proposals", type=positive, default=100, help="of the RPN (default: %(default)s)")
    p.add_argument("--threads", type=positive, default=1, help="(default: %(default)s)")
    return p.parse_args(arguments)


if __name__ == "__main__":
    with one_line_errors():
        print(main(parse(sys.argv[1:])))
