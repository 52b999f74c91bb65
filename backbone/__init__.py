"""Image batch -> feature pyramid."""

from backbone.feature_pyramid import FeaturePyramidNetwork, LastLevelMaxPool
from backbone.resnet import ResNet
from backbone.resnet50_fpn import BackboneWithFPN, resnet50_fpn_backbone

__all__ = ["BackboneWithFPN", "FeaturePyramidNetwork", "LastLevelMaxPool", "ResNet", "resnet50_fpn_backbone"]
