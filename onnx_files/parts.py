"""Take a network apart into the modules that the ONNX exporter knows."""

from typing import NamedTuple, TypeVar

from backbone.feature_pyramid import FeaturePyramidNetwork, LastLevelMaxPool
from backbone.resnet import ResNet
from backbone.resnet50_fpn import BackboneWithFPN
from network_files import MaskRCNN
from network_files.heads import FastRCNNPredictor, MaskRCNNPredictor, RPNHead
from network_files.roi_align import PyramidRoIAlign

Kind = TypeVar("Kind")


class Parts(NamedTuple):
    """The modules of a network that a caller may replace by others, as those that `build_model` gives it."""

    body: ResNet
    fpn: FeaturePyramidNetwork
    rpn_head: RPNHead
    box_roi_pool: PyramidRoIAlign
    box_predictor: FastRCNNPredictor
    mask_roi_pool: PyramidRoIAlign
    mask_predictor: MaskRCNNPredictor

    @classmethod
    def of(cls, model: MaskRCNN) -> "Parts":
        """The parts of a network.

        Raises:
            ValueError: one of them is of another class; the message names it.
        """
        backbone, heads = known("backbone", model.backbone, BackboneWithFPN), model.roi_heads
        fpn = known("backbone.fpn", backbone.fpn, FeaturePyramidNetwork)
        known("backbone.fpn.extra_blocks", fpn.extra_blocks, LastLevelMaxPool)
        return cls(
            body=known("backbone.body", backbone.body, ResNet),
            fpn=fpn,
            rpn_head=known("rpn.head", model.rpn.head, RPNHead),
            box_roi_pool=known("roi_heads.box_roi_pool", heads.box_roi_pool, PyramidRoIAlign),
            box_predictor=known("roi_heads.box_predictor", heads.box_predictor, FastRCNNPredictor),
            mask_roi_pool=known("roi_heads.mask_roi_pool", heads.mask_roi_pool, PyramidRoIAlign),
            mask_predictor=known("roi_heads.mask_predictor", heads.mask_predictor, MaskRCNNPredictor),
        )


def known(name: str, module: object, kind: type[Kind]) -> Kind:
    """The module, if it is of a class.

    Raises:
        ValueError: it is of another.
    """
    if not isinstance(module, kind):
        raise ValueError(f"{name} is a {type(module).__name__}; the ONNX exporter knows only {kind.__name__}")
    return module
