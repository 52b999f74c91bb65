"""Write trained weights as an ONNX file, which runs without torch.

    python tools/export_onnx.py save_weights/model_25.pth model.onnx
    python tools/export_onnx.py maskrcnn_resnet50_fpn_coco.pth model.onnx --uint8
    python tools/export_onnx.py save_weights/model_25.pth small.onnx --precision int8    # a quarter of the size

Accepts all weights that validation.py accepts: of this project, of torchvision (v1 and v2) and of Detectron2. The input
is `image`, RGB [3, height, width] of any size, float32 in 0..1 or with --uint8 bytes; the network normalises and
resizes it. A network with --channels takes [C, height, width]; values of more than 8 bits are float32, not scaled. The
outputs are `boxes` [N, 4] (x1, y1, x2, y2 in pixels of the image), `labels` [N], `scores` [N], best first, and `masks`
[N, 1, 28, 28], the probabilities within each box. Class names, category ids, thresholds and the network's settings are
in the metadata. tools/predict_onnx.py runs the file; see docs/ONNX.md for more.

With --batch or --size the shapes of the outputs are fixed: N is the largest number of detections, and zeros follow
the detections found. --precision writes a smaller file, unless it loses more AP on the validation images than
--max-ap-drop.

The graph is written operator by operator from the network's modules, not traced by an exporter of torch. It is exact,
accepts any image size, supports Detectron2's variant, and depends only on the ONNX standard (opset 17).
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files.atomic_files import file_to_write, refuse_overwriting
from dataset_files.dataset import files_of
from train_utils.errors import InputError, one_line_errors, optional_package, reading_input
from train_utils.option_parsing import add_flag, positive
from train_utils.options import InferenceSettings
from train_utils.trained_model import TrainedModel, open_trained_model

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnx_files.network_graph import GraphOptions


def main(args: argparse.Namespace) -> None:
    optional_package("onnx", "the export needs the package onnx", "onnx")
    from onnx_files.network_graph import GraphOptions, build, write

    with reading_input():
        output = file_to_write(args.output, args.weights, args.label_json_path)
    settings = InferenceSettings(
        args.weights, device="cpu", label_json_path=args.label_json_path, min_size=args.min_size,
        max_size=args.max_size, agnostic_nms=args.agnostic_nms,
    )  # fmt: skip
    trained = open_trained_model(settings)
    if args.uint8 and trained.config.values not in (None, "uint8"):
        raise InputError(f"{args.weights}: takes {trained.config.values} values, as float32; leave --uint8 out")
    options = GraphOptions("uint8" if args.uint8 else "float32", args.batch, args.size and (args.size[0], args.size[1]))
    with reading_input():
        content = reduced_model(trained, options, args, output) if args.precision else build(trained, options)
        write(content, output)
    size = output.stat().st_size / 1e6
    print(f"{output}: {size:.0f} MB, {trained.config.arch}, {len(trained.classes.names)} classes")
    print(f"run it with: python tools/predict_onnx.py {output} photo.jpg")


def reduced_model(
    trained: TrainedModel, options: "GraphOptions", args: argparse.Namespace, output: Path
) -> "ModelProto":
    """Build the ONNX model in a lower precision, and print its AP beside the AP of the float32 model.

    Raises:
        InputError: the model loses more AP than --max-ap-drop.
    """
    from onnx_files.network_graph import GraphOptions, build
    from onnx_files.precision import at_intervals, build_reduced, compare_ap, open_images

    validation, training = open_images(trained, args.data_path, with_training=args.precision == "int8")
    with reading_input():
        refuse_overwriting(files_of(validation), [output])
    validation = validation.drop_items(range(args.images or len(validation), len(validation)))
    if args.precision == "int8" and training is None:
        raise InputError("--precision int8 is calibrated on training images, of which there are none; give --data-path")
    images = at_intervals(training, args.calibration_images) if training else ()
    content = build_reduced(trained, options, args.precision, images)
    plain = GraphOptions(options.input_type)
    # The data have images of many sizes.
    measured = content if options == plain else build_reduced(trained, plain, args.precision, ())
    full, small = compare_ap(trained, [build(trained, plain), measured], validation)
    for name, before, after in zip(("box AP", "mask AP"), full, small):
        print(f"{name}: {before:.4f} in fp32, {after:.4f} in {args.precision}")
    drop = max(before - after for before, after in zip(full, small))
    if drop > args.max_ap_drop:
        raise InputError(
            f"{args.precision} loses {drop:.4f} AP, more than --max-ap-drop {args.max_ap_drop:g}; nothing is written"
        )
    return content


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a checkpoint of train.py, or other weights that validation.py accepts")
    parser.add_argument("output", help="the file to write")
    parser.add_argument("--uint8", action="store_true", help="the image is uint8 in 0..255, not float32 in 0..1")
    parser.add_argument("--label-json-path", help="JSON with the class names, label -> name or name -> label")
    parser.add_argument("--min-size", type=positive, help="short side of the network's input (default: as in training)")
    parser.add_argument("--max-size", type=positive, help="limit of the long side (default: as in training)")
    add_flag(parser, "--agnostic-nms", "one label per object (default: as in training, else off)", default=None)
    parser.add_argument("--batch", type=positive, help="images per run, of one size (default: one, not in a batch)")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("H", "W"), help="size of all images (default: any)")
    parser.add_argument("--precision", choices=("fp16", "int8"), help="write weights in fp16, or quantise to int8")
    parser.add_argument("--max-ap-drop", type=float, default=0.01, help="largest loss of AP to accept (%(default)s)")
    parser.add_argument("--data-path", help="with --precision: the data (default: those of the run)")
    parser.add_argument("--images", type=positive, help="evaluate only so many validation images (default: all)")
    parser.add_argument(
        "--calibration-images", type=positive, default=64, help="training images for int8 (%(default)s)"
    )
    with one_line_errors():
        main(parser.parse_args())
