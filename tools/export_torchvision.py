"""Write a trained checkpoint as a plain torchvision state dict, and print the code that loads it in torchvision.

python tools/export_torchvision.py save_weights/model_25.pth mask_rcnn.pth
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_files.atomic_files import file_to_write, replacing
from train_utils.errors import InputError, one_line_errors, reading_input
from train_utils.models import config_of
from train_utils.weight_files.weights import is_mask_rcnn, read_weight_file, state_dict_of

TORCHVISION_EPS = 1e-5  # of BatchNorm2d, which torchvision uses when it builds a network without weights
BUILDERS = {"v1": "maskrcnn_resnet50_fpn", "v2": "maskrcnn_resnet50_fpn_v2"}


def main(checkpoint: str, output: str) -> None:
    content = read_weight_file(checkpoint)
    state = state_dict_of(content, checkpoint)
    if not is_mask_rcnn(state):
        raise InputError(f"{checkpoint}: not the weights of a Mask R-CNN")
    config = config_of(content, state)
    if config.arch not in BUILDERS:
        raise InputError(f"{checkpoint}: a network with --arch {config.arch}, which torchvision does not provide")
    if config.channels is not None:
        raise InputError(f"{checkpoint}: was trained with --channels {config.channels}; torchvision takes 8-bit RGB")
    if config.anchor_sizes or config.anchor_ratios:
        raise InputError(
            f"{checkpoint}: was trained with --anchor-sizes or --anchor-ratios; only torchvision's are exported"
        )
    with reading_input():
        path = file_to_write(output, checkpoint)
        with replacing(path) as file:
            torch.save(torchvision_state(state, config.norm_eps), file)
    print(f"# {output}: {len(state)} tensors, {config.num_classes} classes with background; load it with")
    builder = f"torchvision.models.detection.{BUILDERS[config.arch]}"
    sizes = f"num_classes={config.num_classes}, min_size={config.min_size}, max_size={config.max_size}"
    print("import torch, torchvision")
    print(f"model = {builder}(weights=None, weights_backbone=None, {sizes}).eval()")
    print(f"model.load_state_dict(torch.load({output!r}, weights_only=True))")


def torchvision_state(state: dict[str, Tensor], norm_eps: float) -> dict[str, Tensor]:
    """Adapt a state dict to BatchNorm2d, which torchvision's builders use; evaluation results stay the same.

    This adds the counters that FrozenBatchNorm2d lacks. The difference between `norm_eps` and torchvision's epsilon is
    added to the backbone's variances, as a normalisation uses only the sum of variance and epsilon.
    """
    result = {}
    for key, value in state.items():
        if key.startswith("backbone.body.") and key.endswith("running_var"):
            value = value + (norm_eps - TORCHVISION_EPS)
        result[key] = value.clone()
        counter = key.replace("running_var", "num_batches_tracked")
        if key.endswith("running_var") and counter not in state:
            result[counter] = torch.zeros((), dtype=torch.int64)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a checkpoint of train.py, or other weights that validation.py accepts")
    parser.add_argument("output", help="the file to write")
    with one_line_errors():
        args = parser.parse_args()
        main(args.checkpoint, args.output)
