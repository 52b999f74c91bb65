"""Networks and weight files in the styles that torchvision publishes, with random numbers for weights."""

import re
from argparse import Namespace
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as ReferenceMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from tests.helpers.parity import OLDER_KEYS, enliven_norms, few_proposals, spread_logits, synthetic_batch

SIZES = dict(min_size=96, max_size=128)


def evaluation_args(**given) -> Namespace:
    unset = dict.fromkeys(("num_classes", "arch", "label_json_path", "detections", "agnostic_nms", "nms_thresh"))
    return Namespace(**(unset | SIZES | given))


def enlivened(model: nn.Module) -> nn.Module:
    """With normalisations that matter and predictors that find something; evaluation mode."""
    enliven_norms(model)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    spread_logits(model.rpn.head.cls_logits, 1.0)
    spread_logits(model.roi_heads.box_predictor.cls_score, 3.0)
    spread_logits(model.roi_heads.mask_predictor.mask_fcn_logits, 2.0)
    with torch.no_grad(), few_proposals(model):
        model.eval()(synthetic_batch()[0][:1])
    return model


@cache
def published_v1() -> nn.Module:
    """torchvision's network as `maskrcnn_resnet50_fpn(weights=COCO_V1)` builds it, with random numbers instead."""
    torch.manual_seed(21)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
    model = ReferenceMaskRCNN(backbone, 91, **SIZES)
    enliven_norms(model)
    for module in model.modules():  # variances so small that an epsilon of 1e-5 would show
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.mul_(1e-4)
            module.weight.mul_(1e-2)
    overwrite_eps(model, 0.0)
    spread_logits(model.rpn.head.cls_logits, 1.0)
    spread_logits(model.roi_heads.box_predictor.cls_score, 3.0)
    with torch.no_grad(), few_proposals(model):
        model.eval()(synthetic_batch()[0][:1])
    return model


@cache
def published_v2() -> nn.Module:
    """torchvision's second version, with random numbers."""
    torch.manual_seed(22)
    return enlivened(maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **SIZES))


def in_older_style(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys as in maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth."""
    older = {}
    for key, value in state.items():
        for pattern, replacement in OLDER_KEYS:
            key = re.sub(pattern, replacement, key)
        older[key] = value
    return older
