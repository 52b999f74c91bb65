"""Convert a Detectron2 Mask R-CNN to a weight file of this project. The file also describes the network.

    python tools/convert_detectron2.py model_final_f10217.pkl mask_rcnn_detectron2.pth
    python tools/convert_detectron2.py output/model_final.pth mine.pth --label-json-path my_classes.json

The scripts also read Detectron2's files directly. Use this tool to publish weights, or to store their class names.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files.atomic_files import file_to_write, replacing
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.weight_files.detectron2 import from_detectron2, is_detectron2
from train_utils.weight_files.weights import read_tensors, state_dict_of


def main(source: str, output: str, label_json: str | None) -> None:
    state = state_dict_of(read_tensors(Path(source)), source)
    if not is_detectron2(state):
        raise InputError(f"{source}: not a Detectron2 network (no key starts with backbone.bottom_up)")
    content = from_detectron2(state, source, label_json)
    with reading_input():
        path = file_to_write(output, source, label_json)
        with replacing(path) as file:
            torch.save(content, file)
    names = content.get("class_names")
    print(f"{output}: {len(content['model'])} tensors, {content['model_config']['num_classes'] - 1} labels")
    print(f"classes: {', '.join(names.values())}" if names else "no class names; give them with --label-json-path")
    print(f"use it with --weights-path {output} or --pretrain {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="model_final_*.pkl of the model zoo, or model_final.pth of your own training")
    parser.add_argument("output", help="the file to write")
    parser.add_argument("--label-json-path", help="JSON with the class names, label -> name or name -> label")
    with one_line_errors():
        args = parser.parse_args()
        main(args.source, args.output, args.label_json_path)
