"""Write trained weights as an ONNX file, which runs without torch.

    python tools/export_onnx.py save_weights/model_25.pth model.onnx
    python tools/export_onnx.py maskrcnn_resnet50_fpn_coco.pth model.onnx --uint8

Accepts all weights that validation.py accepts: of this project, of torchvision (v1 and v2) and of Detectron2. The input
is `image`, RGB [3, height, width] of any size, float32 in 0..1 or with --uint8 bytes; the network normalises and
resizes it. The outputs are `boxes` [N, 4] (x1, y1, x2, y2 in pixels of the image), `labels` [N], `scores` [N], best
first, and `masks` [N, 1, 28, 28], the probabilities within each box. Class names, category ids, thresholds and the
network's settings are in its metadata. tools/predict_onnx.py runs it; see docs/ONNX.md for more.

The graph is written operator by operator from the network's modules, not traced by an exporter of torch. It is exact,
accepts any image size, supports Detectron2's variant, and depends only on the ONNX standard (opset 17).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files.atomic_files import refuse_overwriting  # noqa: E402 (the path comes first)
from train_utils.errors import InputError, one_line_errors, reading_input  # noqa: E402
from train_utils.option_parsing import add_flag, positive  # noqa: E402
from train_utils.options import InferenceSettings  # noqa: E402
from train_utils.trained_model import open_trained_model  # noqa: E402


def main(args: argparse.Namespace) -> None:
    try:
        from onnx_files.export import export
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise InputError("the package onnx is missing; install it with: pip install onnx") from None
    output = Path(args.output)
    with reading_input():
        refuse_overwriting([Path(path) for path in (args.weights, args.label_json_path) if path], [output])
    trained = open_trained_model(
        InferenceSettings(
            weights_path=args.weights,
            device="cpu",
            label_json_path=args.label_json_path,
            min_size=args.min_size,
            max_size=args.max_size,
            agnostic_nms=args.agnostic_nms,
        )
    )
    with reading_input():
        description = export(trained, output, "uint8" if args.uint8 else "float32")
    size = output.stat().st_size / 1e6
    print(f"{output}: {size:.0f} MB, {description.network['arch']}, {len(description.names)} classes")
    print(f"run it with: python tools/predict_onnx.py {output} photo.jpg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a checkpoint of train.py, or other weights that validation.py accepts")
    parser.add_argument("output", help="the file to write")
    parser.add_argument("--uint8", action="store_true", help="the image is uint8 in 0..255, not float32 in 0..1")
    parser.add_argument("--label-json-path", help="JSON with the class names, label -> name or name -> label")
    parser.add_argument("--min-size", type=positive, help="short side of the network's input (default: as in training)")
    parser.add_argument("--max-size", type=positive, help="limit of the long side (default: as in training)")
    add_flag(parser, "--agnostic-nms", "one label per object (default: as in training, else off)", default=None)
    with one_line_errors():
        main(parser.parse_args())
